//! The second moments of one input over one block of chunks.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use crate::action::MomentsBlock;
use crate::digest::Fingerprint;

impl Work for MomentsBlock {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().model(&self.model)?.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let mut made = ActionOutputs::default();
        made.output(Self::MOMENTS, context.second_moments(self)?);
        Ok(made)
    }
}
