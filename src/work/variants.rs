//! Models that differ from a source only in types and bytes of tensors.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use super::StepError;
use super::documents::decode;
use super::model_documents::Compute;
use super::model_documents::ComputeTensor;
use crate::digest::BlobDigest;
use crate::store::Store;
use crate::tensor_type::TensorType;

/// How many documents of models stay in memory.
const DOCUMENTS: usize = 4;

/// A tensor's type and the digest of its bytes, for tensors that differ from a model, by name.
pub(super) type Difference = BTreeMap<String, (TensorType, BlobDigest)>;

/// Which models are variants of which, and the documents of models that were read last.
#[derive(Default)]
pub(super) struct Variants {
    bases: BTreeMap<BlobDigest, BlobDigest>,
    read: VecDeque<(BlobDigest, Arc<Compute>)>,
}

impl Variants {
    /// Says that a model is a variant of another one.
    pub(super) fn add(&mut self, compute: BlobDigest, base: BlobDigest) {
        self.bases.insert(compute, base);
    }

    /// Returns the model that another one is a variant of, if that is known.
    pub(super) fn base_of(&self, compute: &BlobDigest) -> Option<BlobDigest> {
        self.bases.get(compute).copied()
    }

    /// Returns the document of a model's tensors and hyperparameters.
    pub(super) fn document(&mut self, store: &Store, digest: BlobDigest) -> Result<Arc<Compute>, StepError> {
        let known = self.read.iter().position(|(known, _)| *known == digest);
        let found = match known.and_then(|at| self.read.remove(at)) {
            Some((_, found)) => found,
            None => Arc::new(decode(store, "model document", digest)?),
        };
        self.read.push_back((digest, Arc::clone(&found)));
        while self.read.len() > DOCUMENTS {
            self.read.pop_front();
        }
        Ok(found)
    }
}

/// Returns the tensors of a model that another one has in another type or with other bytes; nothing if the two do not have the
/// same tensors and hyperparameters.
pub(super) fn difference(base: &Compute, other: &Compute) -> Option<Difference> {
    if base.hyperparameters != other.hyperparameters || base.tensors.len() != other.tensors.len() {
        return None;
    }
    let mut found = Difference::new();
    // Both are sorted by name.
    for (own, other) in base.tensors.iter().zip(&other.tensors) {
        if own.name != other.name || own.dims != other.dims {
            return None;
        }
        let what = |tensor: &ComputeTensor| (tensor.ty, tensor.bytes);
        if what(own) != what(other) {
            found.insert(own.name.clone(), what(other));
        }
    }
    Some(found)
}
