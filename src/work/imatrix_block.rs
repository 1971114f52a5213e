//! The imatrix of a block of chunks.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::imatrix;
use crate::action::ImatrixBlock;
use crate::digest::Fingerprint;
use crate::engine::CollectOptions;
use crate::observer::Unit;

impl Work for ImatrixBlock {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().model(&self.model)?.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let block = Block::load(context.store(), self.tokens, self.context)?;
        let located = context.located();
        let options = CollectOptions {
            process_output: self.process_output,
        };
        let imatrix = context.with_model(self.engine, located.model(&self.model)?, self.context, |model| {
            model
                .collect(&block.chunks, options, context.cancel(), &|_| {
                    context.advance(Unit::Chunks, 1);
                })
                .map_err(StepError::engine("collecting the imatrix"))
        })?;
        imatrix::save(context.store(), &imatrix)
    }
}
