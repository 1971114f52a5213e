//! Second moments of many inputs over the same chunks: those that fit into memory together are added up in one pass over the chunks.
//!
//! The inputs of a block of chunks are separate actions, so that an interrupted step continues with those that are missing. Before they
//! run one by one, they are announced ([`Context::prepare`]); the first one that runs then adds up as many of them as fit, and the others
//! find theirs.

use std::collections::BTreeMap;

use super::Context;
use super::StepError;
use super::blocks::Block;
use super::documents::decode;
use super::locked;
use super::models::MomentsBatch;
use super::moments_sum::writing;
use super::perform::output_of;
use crate::action::Action;
use crate::action::MomentsBlock;
use crate::action::WeightInputs;
use crate::digest::BlobDigest;
use crate::engine::WeightInput;
use crate::moments;
use crate::moments::Accumulator;
use crate::observer::Unit;
use crate::prose;

/// Returns the bytes of memory that the sums of an input take.
pub(super) fn memory_of(input: &WeightInput) -> u64 {
    Accumulator::bytes(input.columns, input.matrices)
}

/// Divides inputs into those that are added up in one pass each, within some bytes of memory ([`moments::passes`]).
pub(super) fn passes(inputs: &[WeightInput], memory: u64) -> Vec<&[WeightInput]> {
    moments::passes(inputs, memory_of, memory)
}

/// Says whether two actions differ in their input only.
fn same_block(one: &MomentsBlock, other: &MomentsBlock) -> bool {
    MomentsBlock {
        input: other.input.clone(),
        ..one.clone()
    } == *other
}

impl Context<'_> {
    /// Returns the inputs of the weights of a model, in the order in which it computes.
    pub(super) fn weight_inputs(&self, of: &MomentsBlock) -> Result<Vec<WeightInput>, StepError> {
        let action = Action::WeightInputs(WeightInputs {
            model: of.model,
            context: of.context,
            engine: of.engine,
        });
        if let Some(result) = self.store().lookup(&action.digest())? {
            return decode(
                self.store(),
                "list of inputs",
                output_of(&result, WeightInputs::INPUTS)?,
            );
        }
        let located = self.located();
        self.with_model(of.engine, located.model(&of.model)?, of.context, |model| {
            let inputs = model.inputs(self.cancel());
            inputs.map_err(StepError::engine("finding the inputs of weights"))
        })
    }

    /// Announces actions that add up second moments over one block of chunks.
    pub(super) fn prepare_moments(&self, actions: &[MomentsBlock]) -> Result<(), StepError> {
        let Some(of) = actions
            .first()
            .filter(|of| actions.iter().all(|other| same_block(of, other)))
        else {
            return Ok(());
        };
        let mut left = self.weight_inputs(of)?;
        left.retain(|input| actions.iter().any(|action| action.input == input.name()));
        *locked(&self.machine.models.moments) = Some(MomentsBatch {
            of: of.clone(),
            left,
            found: BTreeMap::new(),
        });
        Ok(())
    }

    /// Returns the second moments of an action's input, written to the store: those that an earlier pass found, or those of a new pass.
    pub(super) fn second_moments(&self, action: &MomentsBlock) -> Result<BlobDigest, StepError> {
        let announced = locked(&self.machine.models.moments).take();
        let mut batch = match announced.filter(|batch| same_block(&batch.of, action)) {
            Some(batch) => batch,
            None => MomentsBatch {
                of: action.clone(),
                left: self.weight_inputs(action)?,
                found: BTreeMap::new(),
            },
        };
        let found = match batch.found.remove(&action.input) {
            Some(found) if self.store().has(&found) => found,
            _ => self.pass(&mut batch, action)?,
        };
        *locked(&self.machine.models.moments) = Some(batch);
        Ok(found)
    }

    /// Adds up an action's input and those after it that fit into memory beside it.
    fn pass(&self, batch: &mut MomentsBatch, action: &MomentsBlock) -> Result<BlobDigest, StepError> {
        let unknown = || StepError::input(format!("the model has no input of a weight `{}`", action.input));
        let start = batch.left.iter().position(|input| input.name() == action.input);
        let start = start.ok_or_else(unknown)?;
        let memory = self.machine.memory();
        let taken = passes(&batch.left[start..], memory)
            .first()
            .map_or(0, |pass| pass.len());
        let inputs: Vec<WeightInput> = batch.left.drain(start..start + taken).collect();
        let needed = inputs.iter().map(memory_of).fold(0, u64::saturating_add);
        if needed > memory {
            let (needed, memory) = (prose::bytes(needed), prose::bytes(memory));
            return Err(StepError::input_hint(
                format!(
                    "the second moments of the input of `{}` take {needed} of memory, and {memory} may be used",
                    action.input
                ),
                "raise `memory` in `[pools]` of forge.toml, or build on a machine with more memory",
            ));
        }
        let block = Block::load(self.store(), action.tokens, action.context)?;
        let located = self.located();
        let sums = self.with_model(action.engine, located.model(&action.model)?, action.context, |model| {
            let progress = |_: usize| self.advance(Unit::Chunks, 1);
            let sums = model.moments(&block.chunks, &inputs, self.cancel(), &progress);
            sums.map_err(StepError::engine("collecting second moments"))
        })?;
        let mut own = None;
        for (input, sums) in inputs.iter().zip(sums) {
            self.check_cancel()?;
            let mut writer = self.store().writer()?;
            sums.write(&mut writer).map_err(writing)?;
            // Each frees its memory before the next is written.
            drop(sums);
            let digest = writer.commit()?;
            if input.name() == action.input {
                own = Some(digest);
            } else {
                batch.found.insert(input.name().to_owned(), digest);
            }
        }
        own.ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_fit_together_are_one_pass() {
        let input = |name: &str, columns| WeightInput {
            weights: vec![name.to_owned()],
            columns,
            matrices: 1,
        };
        let inputs = [input("a", 256), input("b", 256), input("c", 512), input("d", 256)];
        let names = |memory: u64| -> Vec<Vec<&str>> {
            let passes = passes(&inputs, memory);
            passes
                .iter()
                .map(|pass| pass.iter().map(WeightInput::name).collect())
                .collect()
        };
        let unit = memory_of(&inputs[0]);
        assert_eq!(names(u64::MAX), [["a", "b", "c", "d"]]);
        assert_eq!(names(2 * unit), [vec!["a", "b"], vec!["c"], vec!["d"]]);
        assert_eq!(names(0), [["a"], ["b"], ["c"], ["d"]]);
        assert!(passes(&[], 0).is_empty());
    }
}
