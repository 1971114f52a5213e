//! The imatrix that is the diagonal of second moments.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::documents::decode;
use super::imatrix;
use super::moments::MomentsIndex;
use super::moments_sum::damaged;
use crate::action::ImatrixMoments;
use crate::imatrix::Entry;
use crate::imatrix::Imatrix;
use crate::moments::MomentsFile;

/// The sums of squares of an input by column, matrix by matrix, and the number of input vectors of each.
struct Diagonal {
    squares: Vec<f64>,
    rows: Vec<u64>,
}

impl Diagonal {
    fn add(&mut self, file: &MomentsFile<'_>) {
        let of_matrix = |matrix| file.diagonal(matrix).unwrap_or_default();
        let squares = (0..file.matrices()).flat_map(of_matrix).map(f64::from);
        if self.rows.is_empty() {
            self.squares = squares.collect();
            self.rows = file.rows().to_vec();
            return;
        }
        self.squares
            .iter_mut()
            .zip(squares)
            .for_each(|(sum, more)| *sum += more);
        self.rows
            .iter_mut()
            .zip(file.rows())
            .for_each(|(sum, more)| *sum += more);
    }
}

impl Work for ImatrixMoments {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let index: MomentsIndex = decode(store, "index of second moments", self.moments)?;
        let mut made = Imatrix {
            datasets: vec![index.dataset],
            chunk_count: u32::try_from(index.chunks + index.held_out).unwrap_or(u32::MAX),
            chunk_size: index.context,
            ..Imatrix::default()
        };
        for input in &index.inputs {
            context.check_cancel()?;
            let mut diagonal = Diagonal {
                squares: Vec::new(),
                rows: Vec::new(),
            };
            for part in std::iter::once(&input.moments).chain(&input.validation) {
                let bytes = store.map(part)?;
                diagonal.add(&MomentsFile::parse(&bytes).map_err(damaged)?);
            }
            let squares = diagonal.squares.iter().map(|sum| *sum as f32).collect();
            let rows = diagonal.rows.iter().map(|rows| *rows as f32).collect();
            let entry = Entry::new(squares, rows)
                .ok_or_else(|| StepError::input(format!("there are no second moments of `{}`", input.input.name())))?;
            for weight in &input.input.weights {
                if weight.starts_with("blk.") || (self.process_output && weight == "output.weight") {
                    made.entries.insert(weight.clone(), entry.clone());
                }
            }
        }
        imatrix::save(store, &made)
    }
}
