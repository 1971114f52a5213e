//! A model's tensors, each quantized by an action of its own: what `promote` makes candidates of, what `measured`
//! policies try, and what `error` policies compare with the source.

use std::sync::Arc;
use std::sync::Mutex;

use serde::Deserialize;
use serde::Serialize;

use crate::action;
use crate::action::Action;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine;
use crate::engine::QuantizeJob;
use crate::fs;
use crate::imatrix::Imatrix;
use crate::step::Env;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::imatrix;
use crate::step::join::Slices;
use crate::step::join::slice_bytes;
use crate::step::model::INDEX;
use crate::step::model::IndexedTensor;
use crate::step::model::ModelIndex;
use crate::step::model::decode;
use crate::step::model::encode;
use crate::step::source_file::SourceFile;
use crate::tensor_type::TensorType;

/// The version of [`TensorErrors`], and of how they are summed up.
pub const ERRORS: u32 = 1;

/// What a tensor lost in a type: output `errors`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TensorErrors {
    /// [`ERRORS`].
    pub schema: u32,
    /// For each matrix (an expert, or the tensor itself) the sum of squared differences, weighted by column.
    pub errors: Vec<f64>,
    /// For each matrix the sum of squared values, weighted by column.
    pub norms: Vec<f64>,
}

fn job_of<'w>(tensor: &IndexedTensor, to: TensorType, weights: Option<&'w [f32]>) -> QuantizeJob<'w> {
    let dim = |index: usize| tensor.dims.get(index).copied().unwrap_or(1);
    QuantizeJob {
        from: tensor.ty,
        to,
        columns: dim(0),
        rows_per_matrix: dim(1),
        matrices: dim(2) * dim(3),
        weights,
    }
}

/// A model's tensors with their importances.
pub struct Tensors<'i> {
    /// The model.
    pub model: &'i Outcome,
    /// Its tensors, in the file's order.
    pub index: ModelIndex,
    slices: Slices,
    imatrix: Option<BlobDigest>,
    /// Read when the first tensor needs it.
    loaded: Mutex<Option<Arc<Imatrix>>>,
    quantizer: Fingerprint,
}

impl<'i> Tensors<'i> {
    /// Looks up a model's tensors, and their importances if it was joined with an imatrix.
    pub fn load(model: &'i Outcome, join: Option<&Outcome>, env: &Env<'_>) -> Result<Self, StepError> {
        let slices = match join {
            Some(join) => decode(env, "slices", join.output("slices")?)?,
            None => Slices {
                schema: INDEX,
                tensors: std::collections::BTreeMap::new(),
            },
        };
        Ok(Self {
            model,
            index: decode(env, "model index", model.output("model")?)?,
            slices,
            imatrix: join.map(|join| join.output("imatrix")).transpose()?,
            loaded: Mutex::new(None),
            quantizer: env.quantizer.fingerprint(),
        })
    }

    /// Returns a tensor by its place in the index.
    pub fn get(&self, at: usize) -> Result<&IndexedTensor, StepError> {
        let tensor = self.index.tensors.get(at);
        tensor.ok_or_else(|| StepError::input(format!("the model has no tensor {at}")))
    }

    /// Returns the action that quantizes a tensor.
    pub fn action(&self, tensor: &IndexedTensor, to: TensorType) -> Action {
        Action::Tensor(self.inputs(tensor, to))
    }

    fn inputs(&self, tensor: &IndexedTensor, to: TensorType) -> action::Tensor {
        let weights = self.slices.tensors.get(&tensor.name).copied();
        action::Tensor {
            source: tensor.bytes,
            from: tensor.ty.name().to_owned(),
            dims: tensor.dims.clone(),
            to: to.name().to_owned(),
            weights: weights.filter(|_| to.uses_imatrix()),
            quantizer: self.quantizer,
        }
    }

    /// Quantizes a tensor, unless that was done before; returns the digest of its bytes. `expected` is how many these must
    /// be; `progress` is told of bytes of the source.
    pub fn quantize(
        &self,
        task: &Task<'_>,
        tensor: &IndexedTensor,
        to: TensorType,
        expected: u64,
        progress: &dyn Fn(u64),
    ) -> Result<BlobDigest, StepError> {
        let inputs = self.inputs(tensor, to);
        let weights = inputs.weights;
        let shard = self.shard(tensor)?;
        let action = Action::Tensor(inputs);
        let reads = std::slice::from_ref(shard);
        let performed = task.perform_part(&tensor.name, &action, reads, |made| {
            let weights = weights
                .map(|digest| self.weights(task.env, &tensor.name, digest))
                .transpose()?;
            let job = job_of(tensor, to, weights.as_deref());
            let file = shard.open()?;
            let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, tensor.start + offset);
            let mut writer = task.env.store.writer()?;
            engine::quantize(&job, &read, &mut writer, &task.env.cancel, progress)
                .map_err(StepError::engine(format!("quantizing `{}` to {to}", tensor.name)))?;
            let digest = writer.commit()?;
            if digest.len != expected {
                return Err(StepError::input(format!(
                    "`{}` became {} bytes of {to}, not {expected}",
                    tensor.name, digest.len
                )));
            }
            made.output("tensor", digest);
            Ok(())
        })?;
        Outcome::of(performed, Vec::new()).output("tensor")
    }

    /// Returns the file that holds a tensor.
    pub fn shard(&self, tensor: &IndexedTensor) -> Result<&SourceFile, StepError> {
        self.model
            .files
            .get(tensor.shard)
            .ok_or_else(|| StepError::input("the model has lost a part"))
    }

    /// Returns what a tensor lost in a type, matrix by matrix, unless that was told before: of the bytes that a candidate
    /// would have, weighted by the mean squared activation of each column where the imatrix has data. `progress` is told of
    /// bytes of the source.
    ///
    /// # Errors
    ///
    /// As quantizing the tensor ends with.
    pub fn errors(
        &self,
        task: &Task<'_>,
        tensor: &IndexedTensor,
        to: TensorType,
        expected: u64,
        progress: &dyn Fn(u64),
    ) -> Result<TensorErrors, StepError> {
        let store = task.env.store;
        let action = self.error_action(tensor, to);
        let shard = self.shard(tensor)?;
        let performed = task.perform_part(&tensor.name, &action, std::slice::from_ref(shard), |made| {
            let quantized = self.quantize(task, tensor, to, expected, &|_| {})?;
            let quantized = store.map(&quantized)?;
            let weights = self.slices.tensors.get(&tensor.name);
            let weights = weights
                .map(|digest| self.weights(task.env, &tensor.name, *digest))
                .transpose()?;
            let job = job_of(tensor, to, weights.as_deref());
            let file = shard.open()?;
            let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, tensor.start + offset);
            let lost = engine::compare(&job, &read, &quantized, &task.env.cancel, progress)
                .map_err(StepError::engine(format!("comparing `{}` with its {to}", tensor.name)))?;
            let document = TensorErrors {
                schema: ERRORS,
                errors: lost.iter().map(|matrix| matrix.error).collect(),
                norms: lost.iter().map(|matrix| matrix.norm).collect(),
            };
            made.output("errors", store.put(&encode(&document)?)?);
            Ok(())
        })?;
        let errors = Outcome::of(performed, Vec::new()).output("errors")?;
        decode(task.env, "tensor's errors", errors)
    }

    /// Returns the action that compares a tensor with itself in a type.
    pub fn error_action(&self, tensor: &IndexedTensor, to: TensorType) -> Action {
        Action::TensorError(action::TensorError {
            tensor: self.action(tensor, to).digest(),
            weights: self.slices.tensors.get(&tensor.name).copied(),
            quantizer: self.quantizer,
            form: ERRORS,
        })
    }

    /// Returns how many rows each matrix of a tensor has seen; nothing without data.
    pub fn counts(&self, env: &Env<'_>, tensor: &str) -> Result<Vec<f32>, StepError> {
        if !self.slices.tensors.contains_key(tensor) {
            return Ok(Vec::new());
        }
        let imatrix = self.imatrix(env)?;
        let entry = imatrix.entries.get(tensor);
        Ok(entry.map(|entry| entry.counts.clone()).unwrap_or_default())
    }

    /// Returns how many tokens the imatrix has seen: as many rows as the matrix that saw the most. Experts see fewer.
    pub fn tokens(&self, env: &Env<'_>) -> Result<f64, StepError> {
        if self.imatrix.is_none() {
            return Ok(0.0);
        }
        let imatrix = self.imatrix(env)?;
        let counts = imatrix.entries.values().flat_map(|entry| &entry.counts);
        Ok(counts.fold(0.0, |most, count| f64::max(most, f64::from(*count))))
    }

    fn imatrix(&self, env: &Env<'_>) -> Result<Arc<Imatrix>, StepError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(imatrix) = &*loaded {
            return Ok(Arc::clone(imatrix));
        }
        let digest = self.imatrix.ok_or_else(|| StepError::input("there is no imatrix"))?;
        let imatrix = Arc::new(imatrix::load(env, digest)?);
        *loaded = Some(Arc::clone(&imatrix));
        Ok(imatrix)
    }

    fn weights(&self, env: &Env<'_>, tensor: &str, expected: BlobDigest) -> Result<Vec<f32>, StepError> {
        let imatrix = self.imatrix(env)?;
        let weights = imatrix
            .entries
            .get(tensor)
            .map(crate::imatrix::Entry::weights)
            .unwrap_or_default();
        if BlobDigest::of(&slice_bytes(&weights)) == expected {
            Ok(weights)
        } else {
            Err(StepError::Document {
                what: "imatrix",
                problem: format!("its importances of `{tensor}` are not those of the join"),
            })
        }
    }
}
