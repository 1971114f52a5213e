//! A model's tensors with their importances: what `promote` makes candidates of, what `measured` policies try, and what `error`
//! policies compare with the source. Each is quantized by an action of its own.

use std::sync::Arc;
use std::sync::Mutex;

use super::Context;
use super::LocatedModel;
use super::Performed;
use super::StepError;
use super::documents::decode;
use super::imatrix;
use super::join::Slices;
use super::join::slice_bytes;
use super::locked;
use super::model_documents::IndexedTensor;
use super::model_documents::ModelIndex;
use super::moments::InputMoments;
use super::moments::MomentsIndex;
use super::tensor_error::TensorErrors;
use super::tensor_loss::TensorLosses;
use crate::action;
use crate::action::Action;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::imatrix::Imatrix;
use crate::method::rounding::RoundingDocument;
use crate::rounding::why_not_refined;
use crate::store::Store;
use crate::tensor_type::TensorType;
use crate::vocab::ERROR_FORM;

/// The matrix that tokens are looked up in. It has inputs only where it is the output matrix too.
const EMBEDDING: &str = "token_embd.weight";
/// How many times as much an embedding that is the output matrix too is damped: its rows are also looked up, where all errors count alike.
/// Measured on quickstart's model in Q2_K and Q4_K (40 chunks): 1, 10, 30 and 100 times give 0.712, 0.687, 0.665 and 0.658 of the divergence of
/// ggml's bytes, and 0.676, 0.645, 0.642 and 0.650.
const LOOKED_UP: u32 = 50;

/// A model's tensors with their importances.
pub struct Tensors {
    /// Its tensors, in the file's order.
    pub index: ModelIndex,
    slices: Slices,
    imatrix: Option<BlobDigest>,
    /// Read when the first tensor needs it.
    loaded: Mutex<Option<Arc<Imatrix>>>,
    quantizer: Fingerprint,
    rounding: Option<Rounding>,
}

/// How codes are refined.
struct Rounding {
    document: RoundingDocument,
    index: MomentsIndex,
}

impl Tensors {
    /// Reads the index of a model from the store. `slices` are the digests of the importances, where there are any; the
    /// importances themselves come from `imatrix`, or are in the store.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn load(
        store: &Store,
        index: BlobDigest,
        slices: Slices,
        imatrix: Option<BlobDigest>,
        quantizer: Fingerprint,
    ) -> Result<Self, StepError> {
        Ok(Self {
            index: decode(store, "model index", index)?,
            slices,
            imatrix,
            loaded: Mutex::new(None),
            quantizer,
            rounding: None,
        })
    }

    /// Has codes refined.
    ///
    /// # Errors
    ///
    /// Errors of reading the index of the second moments.
    pub fn refine(&mut self, store: &Store, rounding: Option<RoundingDocument>) -> Result<(), StepError> {
        let load = |document: RoundingDocument| {
            let index = decode(store, "index of second moments", document.moments)?;
            Ok::<_, StepError>(Rounding { document, index })
        };
        self.rounding = rounding.map(load).transpose()?;
        Ok(())
    }

    /// Reads the index of a model of which the documents of its tensors and vocabulary are known.
    ///
    /// # Errors
    ///
    /// [`StepError::NotLocated`], and errors of the store.
    pub fn of_model(
        context: &Context<'_>,
        model: &LocatedModel,
        slices: Slices,
        imatrix: Option<BlobDigest>,
        quantizer: Fingerprint,
    ) -> Result<Self, StepError> {
        let index = model.index.ok_or(StepError::NotLocated {
            what: "source model",
            digest: model.compute,
        })?;
        Self::load(context.store(), index, slices, imatrix, quantizer)
    }

    /// Returns a tensor by its place in the index.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if there is none.
    pub fn get(&self, at: usize) -> Result<&IndexedTensor, StepError> {
        let tensor = self.index.tensors.get(at);
        tensor.ok_or_else(|| StepError::input(format!("the model has no tensor {at}")))
    }

    /// Returns the action that makes the bytes of a tensor in a type: that quantizes it, and refines its codes if they are to be refined and
    /// can be.
    pub fn action(&self, tensor: &IndexedTensor, to: TensorType) -> Action {
        let plain = self.plain_action(tensor, to);
        match (&self.rounding, self.moments_of(tensor, to)) {
            (Some(Rounding { document, .. }), Some(moments)) => Action::RefinedTensor(action::RefinedTensor {
                source: plain.source,
                from: plain.from,
                dims: plain.dims,
                to: plain.to,
                weights: plain.weights,
                moments: moments.moments,
                validation: moments.validation,
                damping: document.damping * if tensor.name == EMBEDDING { LOOKED_UP } else { 1 },
                version: document.version,
                quantizer: plain.quantizer,
            }),
            _ => Action::Tensor(plain),
        }
    }

    /// Returns the second moments that the codes of a tensor in a type are refined under; `None` if they are not refined.
    pub fn moments_of(&self, tensor: &IndexedTensor, to: TensorType) -> Option<&InputMoments> {
        let rounding = self.rounding.as_ref().filter(|_| why_not_refined(to).is_none())?;
        let moments = rounding.index.of_weight(&tensor.name)?;
        let dim = |at: usize| tensor.dims.get(at).copied().unwrap_or(1);
        let fits = moments.input.columns == dim(0) && moments.input.matrices == dim(2) * dim(3);
        fits.then_some(moments)
    }

    /// Returns the place of a tensor's input among those with second moments.
    pub fn input_of(&self, tensor: &IndexedTensor) -> Option<usize> {
        self.rounding.as_ref()?.index.place_of(&tensor.name)
    }

    /// Returns the action that quantizes a tensor without refining it.
    fn plain_action(&self, tensor: &IndexedTensor, to: TensorType) -> action::Tensor {
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

    /// Returns the action that compares a tensor with itself in a type.
    pub fn error_action(&self, tensor: &IndexedTensor, to: TensorType) -> Action {
        Action::TensorError(action::TensorError {
            tensor: self.action(tensor, to).digest(),
            weights: self.slices.tensors.get(&tensor.name).copied(),
            quantizer: self.quantizer,
            form: ERROR_FORM,
        })
    }

    /// Quantizes a tensor, unless that was done before.
    ///
    /// # Errors
    ///
    /// As quantizing fails with.
    pub fn quantize(
        &self,
        context: &Context<'_>,
        tensor: &IndexedTensor,
        to: TensorType,
    ) -> Result<Performed, StepError> {
        let action = self.action(tensor, to);
        if to.uses_imatrix() && context.may_run(&action)? {
            self.save_weights(context, &tensor.name)?;
        }
        let performed = context.perform_part(&tensor.name, &action);
        performed.map_err(|error| error.about(format!("quantizing `{}` to {to}", tensor.name)))
    }

    /// Returns what a tensor lost in a type, matrix by matrix, unless that was found out before: of the bytes that a candidate
    /// would have, weighted by the mean squared activation of each column where the imatrix has data.
    ///
    /// # Errors
    ///
    /// As quantizing the tensor fails with.
    pub fn errors(
        &self,
        context: &Context<'_>,
        tensor: &IndexedTensor,
        to: TensorType,
    ) -> Result<TensorErrors, StepError> {
        let action = self.error_action(tensor, to);
        if context.may_run(&action)? {
            self.save_weights(context, &tensor.name)?;
            self.quantize(context, tensor, to)?;
        }
        let performed = context.perform_part(&tensor.name, &action);
        let performed = performed.map_err(|error| error.about(format!("comparing `{}` with its {to}", tensor.name)))?;
        let errors = performed.output(action::TensorError::ERRORS)?;
        decode(context.store(), "tensor's errors", errors)
    }

    /// Returns what a tensor costs in a type, unless that was found out before: see [`action::TensorLoss`].
    ///
    /// # Errors
    ///
    /// As quantizing the tensor fails with.
    pub(super) fn loss(
        &self,
        context: &Context<'_>,
        tensor: &IndexedTensor,
        to: TensorType,
        factors: Option<BlobDigest>,
        moments: Option<BlobDigest>,
    ) -> Result<TensorLosses, StepError> {
        let action = Action::TensorLoss(action::TensorLoss {
            tensor: self.action(tensor, to).digest(),
            factors,
            moments,
            quantizer: self.quantizer,
            form: action::TensorLoss::FORM,
        });
        if context.may_run(&action)? {
            self.quantize(context, tensor, to)?;
        }
        let performed = context.perform_part(&tensor.name, &action);
        let performed = performed.map_err(|error| error.about(format!("comparing `{}` with its {to}", tensor.name)))?;
        let losses = performed.output(action::TensorLoss::LOSS)?;
        decode(context.store(), "tensor's loss", losses)
    }

    /// Returns how many rows each matrix of a tensor has seen; nothing without data.
    ///
    /// # Errors
    ///
    /// Errors of reading the imatrix.
    pub fn counts(&self, store: &Store, tensor: &str) -> Result<Vec<f32>, StepError> {
        if !self.slices.tensors.contains_key(tensor) {
            return Ok(Vec::new());
        }
        let imatrix = self.imatrix(store)?;
        let entry = imatrix.entries.get(tensor);
        Ok(entry.map(|entry| entry.counts.clone()).unwrap_or_default())
    }

    /// Returns how many tokens the imatrix has seen: as many rows as the matrix that saw the most. Experts see fewer.
    ///
    /// # Errors
    ///
    /// Errors of reading the imatrix.
    pub fn tokens(&self, store: &Store) -> Result<f64, StepError> {
        if self.imatrix.is_none() {
            return Ok(0.0);
        }
        let imatrix = self.imatrix(store)?;
        let counts = imatrix.entries.values().flat_map(|entry| &entry.counts);
        Ok(counts.fold(0.0, |most, count| f64::max(most, f64::from(*count))))
    }

    fn imatrix(&self, store: &Store) -> Result<Arc<Imatrix>, StepError> {
        let mut loaded = locked(&self.loaded);
        if let Some(imatrix) = &*loaded {
            return Ok(Arc::clone(imatrix));
        }
        let digest = self.imatrix.ok_or_else(|| StepError::input("there is no imatrix"))?;
        let imatrix = Arc::new(imatrix::load(store, digest)?);
        *loaded = Some(Arc::clone(&imatrix));
        Ok(imatrix)
    }

    /// Brings the importances of a tensor into the store, where the actions that use them find them.
    fn save_weights(&self, context: &Context<'_>, tensor: &str) -> Result<(), StepError> {
        let store = context.store();
        let Some(expected) = self.slices.tensors.get(tensor) else {
            return Ok(());
        };
        if store.has(expected) || self.imatrix.is_none() {
            return Ok(());
        }
        let imatrix = self.imatrix(store)?;
        let weights = imatrix.entries.get(tensor).map(crate::imatrix::Entry::weights);
        let bytes = slice_bytes(&weights.unwrap_or_default());
        if BlobDigest::of(&bytes) != *expected {
            return Err(StepError::Document {
                what: "imatrix",
                problem: format!("its importances of `{tensor}` are not those of the join"),
            });
        }
        store.put(&bytes)?;
        Ok(())
    }
}
