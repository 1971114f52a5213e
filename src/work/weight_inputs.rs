//! Which weights of a model share an input.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use crate::action::WeightInputs;
use crate::digest::Fingerprint;

impl Work for WeightInputs {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().model(&self.model)?.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let located = context.located();
        let inputs = context.with_model(self.engine, located.model(&self.model)?, self.context, |model| {
            let inputs = model.inputs(context.cancel());
            inputs.map_err(StepError::engine("finding the inputs of weights"))
        })?;
        let mut made = ActionOutputs::default();
        made.output(Self::INPUTS, context.store().put(&encode(&inputs)?)?);
        Ok(made)
    }
}
