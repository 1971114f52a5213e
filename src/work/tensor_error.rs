//! What a tensor loses in a type: the squared differences between its values and those of its quantized bytes.

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::perform::output_of;
use super::tensor::weights;
use crate::action;
use crate::action::Action;
use crate::action::TensorError;
use crate::digest::ActionDigest;
use crate::engine::QuantizeJob;
use crate::engine::Role;
use crate::fs;
use crate::observer::Unit;
use crate::vocab::ERROR_FORM;

/// What a tensor lost in a type: output `errors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorErrors {
    /// [`ERROR_FORM`].
    pub schema: u32,
    /// For each matrix (an expert, or the tensor itself) the sum of squared differences, weighted by column.
    pub errors: Vec<f64>,
    /// For each matrix the sum of squared values, weighted by column.
    pub norms: Vec<f64>,
}

/// Returns the action that quantizes a tensor, by the key of that or of the one that also refines its codes.
pub(super) fn quantizing(key: &ActionDigest, context: &Context<'_>) -> Result<action::Tensor, StepError> {
    match context.action(key)? {
        Action::Tensor(tensor) => Ok(tensor),
        Action::RefinedTensor(refined) => Ok(refined.plain()),
        other => Err(StepError::Document {
            what: "action",
            problem: format!("it is of kind `{}`, not `tensor`", other.kind()),
        }),
    }
}

impl Work for TensorError {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(vec![quantizing(&self.tensor, context)?.place(context)?.0])
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let tensor = quantizing(&self.tensor, context)?;
        let store = context.store();
        let quantized = output_of(&context.result_of(&self.tensor)?, action::Tensor::TENSOR)?;
        let quantized = store.map(&quantized)?;
        let weights = self.weights.as_ref().map(|digest| weights(store, digest)).transpose()?;
        let job = QuantizeJob {
            weights: weights.as_deref(),
            ..tensor.job()?
        };
        let engine = context.machine.engine(Role::Quantizer, &self.quantizer)?;
        let what = || format!("comparing a tensor with its {}", job.to);
        let quantizer = engine.quantizer().map_err(StepError::engine(what()))?;
        let (source, start) = tensor.place(context)?;
        let file = source.open()?;
        let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, start + offset);
        let progress = |bytes: u64| context.advance(Unit::BytesCompared, bytes);
        let lost = quantizer
            .compare(&job, &read, &quantized, context.cancel(), &progress)
            .map_err(StepError::engine(what()))?;
        let document = TensorErrors {
            schema: ERROR_FORM,
            errors: lost.iter().map(|matrix| matrix.error).collect(),
            norms: lost.iter().map(|matrix| matrix.norm).collect(),
        };
        let mut made = ActionOutputs::default();
        made.output(Self::ERRORS, store.put(&encode(&document)?)?);
        Ok(made)
    }
}
