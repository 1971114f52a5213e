//! The factors of gradients at all weights of a model over one block of chunks.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::documents::decode;
use super::model_documents::Compute;
use crate::action::GradientsBlock;
use crate::digest::Fingerprint;
use crate::engine::EngineError;
use crate::engine::Inputs;
use crate::engine::Labels;
use crate::engine::WeightGradient;
use crate::fisher::FactorsError;
use crate::fisher::InputSums;
use crate::fisher::LookupFactors;
use crate::fisher::ModelFactors;
use crate::fisher::OutputFactors;
use crate::fisher::ProductFactors;
use crate::fisher::WeightFactors;
use crate::observer::Unit;

/// Labels are sampled with this seed and the tokens of a chunk.
const SEED: u64 = 0;

/// Adds the gradients of one use of a weight of `rows` rows.
fn add(factors: &mut WeightFactors, weight: &WeightGradient<'_>, rows: usize) -> Result<(), FactorsError> {
    for part in weight.parts {
        match part.inputs {
            Inputs::Lookup(looked_up) => {
                let lookup = &mut factors.lookup;
                let lookup = lookup.get_or_insert_with(|| LookupFactors::new(rows, weight.columns));
                lookup.add(looked_up, part.deltas)?;
            }
            Inputs::Rows(inputs) => {
                let product = factors.product.get_or_insert_with(|| ProductFactors {
                    outputs: OutputFactors::new(weight.outputs, weight.matrices),
                    inputs: InputSums::new(weight.columns, weight.matrices),
                });
                product.outputs.add(part.matrix, part.deltas)?;
                product.inputs.add(part.matrix, inputs)?;
            }
        }
    }
    Ok(())
}

impl Work for GradientsBlock {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().model(&self.model)?.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let block = Block::load(store, self.tokens, self.context)?;
        let compute: Compute = decode(store, "model", self.model)?;
        let rows_of = |name: &str| {
            let tensor = compute.tensors.iter().find(|tensor| tensor.name == name);
            let rows = tensor.and_then(|tensor| tensor.dims.get(1)).copied().unwrap_or(1);
            usize::try_from(rows).unwrap_or(usize::MAX)
        };
        let located = context.located();
        let model = located.model(&self.model)?;
        let mut factors = ModelFactors::default();
        let computed = context.with_gradients(self.engine, model, self.context, |gradients| {
            for chunk in &block.chunks {
                let each = &mut |weight: &WeightGradient<'_>| {
                    let factors = factors.weights.entry(weight.tensor.to_owned()).or_default();
                    add(factors, weight, rows_of(weight.tensor)).map_err(|error| EngineError::Gradient {
                        node: weight.tensor.to_owned(),
                        what: error.to_string(),
                    })
                };
                let labels = Labels::Sampled { seed: SEED };
                let done = gradients.gradients(chunk, 0, labels, context.cancel(), each);
                done.map_err(StepError::engine("computing gradients"))?;
                context.advance(Unit::Chunks, 1);
            }
            Ok(())
        })?;
        let mut made = ActionOutputs::default();
        if let Err(missing) = computed {
            made.fact(Self::MISSING, missing.0);
            return Ok(made);
        }
        // Also tokens that were routed to other experts.
        let tokens: usize = block.chunks.iter().map(Vec::len).sum();
        for weight in factors.weights.values_mut() {
            weight.add_tokens(tokens as u64);
        }
        made.output(Self::FACTORS, store.put(&factors.to_bytes())?);
        Ok(made)
    }
}
