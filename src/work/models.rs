//! Models that a process has loaded. One stays loaded after an action, so that the next action on the same model finds it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;

use super::locked;
use super::variants::Difference;
use crate::action::MomentsBlock;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Gradients;
use crate::engine::Model;
use crate::engine::Prober;
use crate::engine::Tokenizer;
use crate::engine::WeightInput;
use crate::rounding::Factor;

/// What a loaded model is found by: the engine, the document that describes the model, and the tokens in a chunk.
pub(super) type Key = (Fingerprint, BlobDigest, u32);

/// Loaded models. A step takes a model out while it works with it, so that concurrent steps do not wait for each other. At most one
/// unused model of each kind stays loaded, and it is freed before another is loaded.
#[derive(Default)]
pub struct Models {
    pub(super) tokenizer: Mutex<Option<(Key, Box<dyn Tokenizer>)>>,
    pub(super) model: Mutex<Option<(Key, Box<dyn Model>)>>,
    pub(super) probing: Mutex<Option<(Key, Box<Probing>)>>,
    pub(super) gradients: Mutex<Option<(Key, Box<dyn Gradients>)>>,
    /// The last factorization of second moments: tensors with the same input follow each other.
    pub(super) factor: Mutex<Option<CachedFactor>>,
    /// Second moments that are asked for next.
    pub(super) moments: Mutex<Option<MomentsBatch>>,
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Models").finish_non_exhaustive()
    }
}

/// A factorization, and what it is of: second moments, which of their matrices, and the damping in millionths.
pub(super) struct CachedFactor {
    pub(super) key: (BlobDigest, u64, u32),
    pub(super) factor: Arc<Factor>,
}

/// A loaded model some of whose tensors are replaced.
pub(super) struct Probing {
    pub(super) prober: Box<dyn Prober>,
    /// The tensors that are replaced now, with the digest of their bytes.
    pub(super) replaced: BTreeMap<String, BlobDigest>,
    /// The document of what it computes now, if that is known.
    pub(super) compute: Option<BlobDigest>,
    /// Variants by their documents.
    pub(super) known: BTreeMap<BlobDigest, Arc<Difference>>,
    /// What is asked for next.
    pub(super) batch: Batch,
}

/// Variants that are computed on the same tokens, one after the other.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) tokens: Option<BlobDigest>,
    /// What most of them have in common.
    pub(super) common: Difference,
    /// Where each begins to differ from that, in the order in which the model computes.
    pub(super) places: BTreeMap<BlobDigest, usize>,
    /// Those that are not computed yet.
    pub(super) left: BTreeSet<BlobDigest>,
    /// Where computing begins with what is kept.
    pub(super) kept: usize,
}

/// The inputs of a block of chunks that are still to be added up, and what was found.
#[derive(Debug)]
pub(super) struct MomentsBatch {
    /// An action of the block; only its input differs from that of the others.
    pub(super) of: MomentsBlock,
    /// In the order in which the model computes.
    pub(super) left: Vec<WeightInput>,
    pub(super) found: BTreeMap<String, BlobDigest>,
}

pub(super) fn take<T>(slot: &Mutex<Option<(Key, T)>>, key: &Key) -> Option<T> {
    let mut slot = locked(slot);
    let found = slot.take_if(|(known, _)| known == key);
    found.map(|(_, model)| model)
}

impl Models {
    /// Frees what takes memory of its own: models that are loaded to have tensors replaced, or for their gradients.
    pub fn release(&self) {
        drop(locked(&self.probing).take());
        drop(locked(&self.gradients).take());
        drop(locked(&self.moments).take());
        drop(locked(&self.factor).take());
    }

    pub(super) fn release_all(&self) {
        drop(locked(&self.model).take());
        drop(locked(&self.probing).take());
        drop(locked(&self.gradients).take());
    }
}
