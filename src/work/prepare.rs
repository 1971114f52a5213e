//! Prepares engines for several actions, so that they share a loaded model and the start of its computation.

use super::Context;
use super::StepError;
use super::eval_block;
use crate::action::Action;
use crate::action::MomentsBlock;

impl Context<'_> {
    /// Prepares the engine for actions that run one after the other, and returns the order in which it does them best. Preparing
    /// changes no result.
    ///
    /// # Errors
    ///
    /// Errors of loading the model.
    pub(super) fn prepare(&self, actions: &[Action]) -> Result<Vec<usize>, StepError> {
        if let Some(moments) = all_moments(actions) {
            if self.is_isolated(&moments[0].engine)? {
                return self.prepare_in_worker(actions);
            }
            self.prepare_moments(&moments)?;
            return Ok((0..actions.len()).collect());
        }
        let blocks = actions.iter().map(|action| match action {
            Action::EvalBlock(block) => Some(block.clone()),
            _ => None,
        });
        let Some(blocks) = blocks.collect::<Option<Vec<_>>>().filter(|blocks| blocks.len() > 1) else {
            return Ok((0..actions.len()).collect());
        };
        if self.is_isolated(&blocks[0].engine)? {
            self.prepare_in_worker(actions)
        } else {
            eval_block::prepare(self, &blocks)
        }
    }
}

/// Returns the actions if all of them add up second moments, and there are any.
fn all_moments(actions: &[Action]) -> Option<Vec<MomentsBlock>> {
    let moments = actions.iter().map(|action| match action {
        Action::MomentsBlock(block) => Some(block.clone()),
        _ => None,
    });
    moments
        .collect::<Option<Vec<_>>>()
        .filter(|moments| !moments.is_empty())
}
