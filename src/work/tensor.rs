//! One tensor, quantized.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::DOCUMENT_CAP;
use crate::action::Tensor;
use crate::digest::BlobDigest;
use crate::engine::QuantizeJob;
use crate::engine::Role;
use crate::fs;
use crate::observer::Unit;
use crate::store::Store;
use crate::tensor_type::TensorType;

impl Tensor {
    /// Returns the job without the importances.
    pub(super) fn job(&self) -> Result<QuantizeJob<'static>, StepError> {
        let ty = |name: &str| {
            let ty = TensorType::from_name(name);
            ty.ok_or_else(|| StepError::input(format!("there is no tensor type `{name}`")))
        };
        let dim = |index: usize| self.dims.get(index).copied().unwrap_or(1);
        Ok(QuantizeJob {
            from: ty(&self.from)?,
            to: ty(&self.to)?,
            columns: dim(0),
            rows_per_matrix: dim(1),
            matrices: dim(2) * dim(3),
            weights: None,
        })
    }

    /// Returns the file that holds the tensor, and where it begins there.
    pub(super) fn place(&self, context: &Context<'_>) -> Result<(SourceFile, u64), StepError> {
        context.tensor_place(&self.source)
    }
}

/// Reads importances from the store, 32-bit little-endian floats.
pub(super) fn weights(store: &Store, digest: &BlobDigest) -> Result<Vec<f32>, StepError> {
    let bytes = store.read(digest, DOCUMENT_CAP)?;
    let (values, rest) = bytes.as_chunks::<4>();
    if rest.is_empty() {
        Ok(values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    } else {
        Err(StepError::Document {
            what: "importances",
            problem: format!("{} bytes are not 32-bit numbers", bytes.len()),
        })
    }
}

impl Work for Tensor {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(vec![self.place(context)?.0])
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let (source, start) = self.place(context)?;
        let weights = self.weights.as_ref().map(|digest| weights(context.store(), digest));
        let weights = weights.transpose()?;
        let job = QuantizeJob {
            weights: weights.as_deref(),
            ..self.job()?
        };
        let engine = context.machine.engine(Role::Quantizer, &self.quantizer)?;
        let what = || format!("quantizing a tensor to {}", job.to);
        let quantizer = engine.quantizer().map_err(StepError::engine(what()))?;
        let file = source.open()?;
        let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, start + offset);
        let mut writer = context.store().writer()?;
        let progress = |bytes: u64| context.advance(Unit::BytesQuantized, bytes);
        quantizer
            .quantize(&job, &read, &mut writer, context.cancel(), &progress)
            .map_err(StepError::engine(what()))?;
        let digest = writer.commit()?;
        let expected = job.to.tensor_bytes(&self.dims);
        if expected != Some(digest.len) {
            return Err(StepError::input(format!(
                "a tensor became {} bytes of {}, not {}",
                digest.len,
                job.to,
                expected.unwrap_or_default()
            )));
        }
        let mut made = ActionOutputs::default();
        made.output(Self::TENSOR, digest);
        Ok(made)
    }
}
