//! Second moments of the inputs of weights.
//!
//! Products with the same input, as queries, keys and values, have the same second moments, so each input is collected once. Which weights
//! share one follows from the graph. Products count by the rules of an imatrix, and also the one that makes the logits, whatever its weight is called.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::collect::LEAST_ROWS;
use super::product::Computed;
use super::product::Listener;
use super::product::Planned;
use crate::engine::EngineError;
use crate::engine::WeightInput;
use crate::moments::Accumulator;

fn counts(product: &Planned<'_>) -> bool {
    let named = product.weight.starts_with("blk.") || ["output.weight", "token_embd.weight"].contains(&product.weight);
    product.routed || (product.rows >= u64::from(LEAST_ROWS) && product.is_f32 && named)
}

/// Finds out which weights share an input.
#[derive(Default)]
pub(super) struct Survey {
    /// In the order of their first use.
    weights: Vec<Surveyed>,
}

struct Surveyed {
    name: String,
    columns: u64,
    matrices: u64,
    inputs: Vec<(usize, usize)>,
}

impl Survey {
    /// Returns the inputs in the order in which the model computes. A weight that is used with several inputs has one of its own, with the
    /// rows of all of them.
    pub(super) fn finish(self) -> Vec<WeightInput> {
        let mut found: Vec<WeightInput> = Vec::new();
        let mut by_inputs: BTreeMap<Vec<(usize, usize)>, usize> = BTreeMap::new();
        for weight in self.weights {
            let at = *by_inputs.entry(weight.inputs).or_insert_with(|| {
                found.push(WeightInput {
                    weights: Vec::new(),
                    columns: weight.columns,
                    matrices: weight.matrices,
                });
                found.len() - 1
            });
            found[at].weights.push(weight.name);
        }
        found
    }
}

impl Listener for Survey {
    fn wants(&mut self, product: Planned<'_>) -> bool {
        if counts(&product) {
            let known = self.weights.iter_mut().find(|known| known.name == product.weight);
            match known {
                Some(known) => known.inputs.push(product.input),
                None => self.weights.push(Surveyed {
                    name: product.weight.to_owned(),
                    columns: product.columns,
                    matrices: product.matrices,
                    inputs: vec![product.input],
                }),
            }
        }
        false
    }

    fn receive(&mut self, _product: &Computed<'_>) -> Result<ControlFlow<()>, EngineError> {
        Ok(ControlFlow::Continue(()))
    }
}

/// Adds up the second moments of some inputs.
pub(super) struct Moments {
    chunk: usize,
    /// By the weight that stands for the input.
    inputs: BTreeMap<String, Accumulator>,
    /// The last product of a computation that counts.
    last: Option<String>,
    /// The rows of a product, by matrix.
    rows: Vec<Vec<f32>>,
}

impl Moments {
    /// Prepares for some inputs, in the order in which the model computes.
    pub(super) fn new(inputs: &[WeightInput]) -> Self {
        let accumulator = |input: &WeightInput| {
            let size = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
            Accumulator::new(size(input.columns), size(input.matrices))
        };
        Self {
            chunk: 0,
            inputs: inputs
                .iter()
                .map(|input| (input.name().to_owned(), accumulator(input)))
                .collect(),
            last: inputs.last().map(|input| input.name().to_owned()),
            rows: Vec::new(),
        }
    }

    /// Returns the sums of an input.
    pub(super) fn take(&mut self, input: &WeightInput) -> Option<Accumulator> {
        self.inputs.remove(input.name())
    }
}

impl Listener for Moments {
    fn begin_chunk(&mut self, chunk: usize) {
        self.chunk = chunk;
    }

    fn wants(&mut self, product: Planned<'_>) -> bool {
        counts(&product) && self.inputs.contains_key(product.weight)
    }

    fn receive(&mut self, product: &Computed<'_>) -> Result<ControlFlow<()>, EngineError> {
        let tensor = || product.weight.to_owned();
        let Some(sums) = self.inputs.get_mut(product.weight) else {
            return Ok(ControlFlow::Continue(()));
        };
        if (sums.columns(), sums.matrices()) != (product.columns, product.matrices) {
            let what = format!(
                "its input has {} columns and {} matrices, unlike before",
                product.columns, product.matrices
            );
            return Err(EngineError::Collect { tensor: tensor(), what });
        }
        self.rows.resize_with(product.matrices, Vec::new);
        self.rows.iter_mut().for_each(Vec::clear);
        product.each_row(&mut |matrix, row| self.rows[matrix].extend_from_slice(row))?;
        let inputs = self.rows.iter().map(Vec::as_slice).enumerate();
        let inputs: Vec<(usize, &[f32])> = inputs.filter(|(_, rows)| !rows.is_empty()).collect();
        sums.add(&inputs);
        if !sums.is_finite() {
            let chunk = self.chunk;
            return Err(EngineError::NonFiniteActivations {
                tensor: tensor(),
                chunk,
            });
        }
        // Nothing that comes after it is needed.
        if self.last.as_deref() == Some(product.weight) {
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    }
}
