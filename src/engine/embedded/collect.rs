//! Collecting importances.
//!
//! The rules are those of `llama-imatrix`, so that its files and ours can be joined: weights of plain products
//! (`MUL_MAT`) count if they are called `blk.*`, or are `output.weight` and asked for, and have at least 16 rows of F32
//! input; weights of routed products (`MUL_MAT_ID`, mixtures of experts) always count, with sums and counts per expert.
//! A plain weight has one count, also if it is three-dimensional. Sums are kept in 64-bit floats here and rounded once.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::product::Computed;
use super::product::Listener;
use super::product::Planned;
use crate::engine::EngineError;
use crate::imatrix::Entry;
use crate::imatrix::Imatrix;

/// Products of fewer rows do not count, as in `llama-imatrix`, so that generated tokens do not. A chunk is cut into batches of at
/// least this many tokens.
pub(super) const LEAST_ROWS: u32 = 16;

/// The sums of one weight.
struct Sums {
    columns: usize,
    /// `columns` per matrix.
    squares: Vec<f64>,
    /// One, or one per matrix.
    rows: Vec<u64>,
}

/// Adds up the squares of inputs.
pub(super) struct Importances {
    process_output: bool,
    chunk: usize,
    weights: BTreeMap<String, Sums>,
}

impl Importances {
    pub(super) fn new(process_output: bool) -> Self {
        Self {
            process_output,
            chunk: 0,
            weights: BTreeMap::new(),
        }
    }

    /// Returns what was collected, of no data set yet.
    pub(super) fn finish(self, chunks: u32, context: u32) -> Result<Imatrix, EngineError> {
        let mut entries = BTreeMap::new();
        for (name, sums) in self.weights {
            let squares = sums.squares.iter().map(|sum| *sum as f32).collect();
            let rows = sums.rows.iter().map(|rows| *rows as f32).collect();
            let Some(entry) = Entry::new(squares, rows) else {
                let what = format!("{} sums for {} counts", sums.squares.len(), sums.rows.len());
                return Err(EngineError::Collect { tensor: name, what });
            };
            entries.insert(name, entry);
        }
        Ok(Imatrix {
            datasets: Vec::new(),
            chunk_count: chunks,
            chunk_size: context,
            entries,
        })
    }
}

impl Listener for Importances {
    fn begin_chunk(&mut self, chunk: usize) {
        self.chunk = chunk;
    }

    fn wants(&mut self, product: Planned<'_>) -> bool {
        let named = product.weight.starts_with("blk.") || (self.process_output && product.weight == "output.weight");
        product.routed || (product.rows >= u64::from(LEAST_ROWS) && product.is_f32 && named)
    }

    fn receive(&mut self, product: &Computed<'_>) -> Result<ControlFlow<()>, EngineError> {
        let &Computed {
            weight,
            columns,
            matrices,
            routed,
            ..
        } = product;
        let sums = self.weights.entry(weight.to_owned()).or_insert_with(|| Sums {
            columns,
            squares: vec![0.0; columns * matrices],
            rows: vec![0; if routed { matrices } else { 1 }],
        });
        if sums.squares.len() != columns * matrices || sums.columns != columns {
            let what = format!("its input has {columns} columns and {matrices} matrices, unlike before");
            let tensor = weight.to_owned();
            return Err(EngineError::Collect { tensor, what });
        }
        if routed && sums.rows.len() != matrices {
            let all = sums.rows[0];
            sums.rows = vec![all; matrices];
        }
        product.each_row(&mut |matrix, row| {
            add_row(&mut sums.squares[matrix * columns..(matrix + 1) * columns], row);
            if routed {
                sums.rows[matrix] += 1;
            }
        })?;
        if !routed {
            let added = (product.rows() / matrices) as u64;
            sums.rows.iter_mut().for_each(|rows| *rows += added);
        }
        if sums.squares.iter().all(|sum| sum.is_finite()) {
            return Ok(ControlFlow::Continue(()));
        }
        Err(EngineError::NonFiniteActivations {
            tensor: weight.to_owned(),
            chunk: self.chunk,
        })
    }
}

/// Adds the squares of a row to the sums of its columns.
fn add_row(squares: &mut [f64], row: &[f32]) {
    for (sum, value) in squares.iter_mut().zip(row) {
        *sum += f64::from(*value) * f64::from(*value);
    }
}
