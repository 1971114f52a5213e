//! Imatrices merged to one.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::imatrix;
use crate::action::ImatrixMerge;
use crate::imatrix::Imatrix;
use crate::imatrix::Weight;
use crate::prose;

impl Work for ImatrixMerge {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let loaded = self
            .imatrices
            .iter()
            .map(|digest| imatrix::load(context.store(), *digest));
        let imatrices = loaded.collect::<Result<Vec<Imatrix>, StepError>>()?;
        let weighted: Vec<(&Imatrix, Weight)> = imatrices
            .iter()
            .zip(&self.weights)
            .enumerate()
            .map(|(at, (imatrix, weight))| Ok((imatrix, weight_of(*weight, &name(at, imatrix))?)))
            .collect::<Result<_, StepError>>()?;
        let merged = Imatrix::merge(&weighted, self.mode).map_err(|error| StepError::input(error.to_string()))?;
        for partial in &merged.partial {
            let lacking: Vec<String> = partial
                .missing_in
                .iter()
                .filter_map(|&at| Some(name(at, imatrices.get(at)?)))
                .collect();
            context.warn(format!(
                "{} has no data for `{}`",
                prose::names(&lacking, 3),
                partial.name
            ));
        }
        imatrix::save(context.store(), &merged.imatrix)
    }
}

/// Names an imatrix by its place in the list and its text.
fn name(at: usize, imatrix: &Imatrix) -> String {
    match imatrix.datasets.first() {
        Some(dataset) => format!("imatrix {} ({dataset})", at + 1),
        None => format!("imatrix {}", at + 1),
    }
}

fn weight_of(millionths: u64, name: &str) -> Result<Weight, StepError> {
    let weight = u32::try_from(millionths).ok().and_then(Weight::from_millionths);
    weight.ok_or_else(|| StepError::input(format!("the weight of {name} must be above 0 and below 4294")))
}
