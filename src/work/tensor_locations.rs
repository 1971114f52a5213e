//! Where the bytes of tensors are in the files of models.

use std::collections::BTreeSet;
use std::collections::HashMap;

use super::Located;
use super::SourceFile;
use super::StepError;
use super::documents::decode;
use super::model_documents::ModelIndex;
use crate::digest::BlobDigest;
use crate::store::Store;

/// The places of the tensors of models whose index was read.
#[derive(Default)]
pub(super) struct TensorLocations {
    read: BTreeSet<BlobDigest>,
    /// The index of the model, the file of it, and where the tensor begins there.
    of: HashMap<BlobDigest, (BlobDigest, usize, u64)>,
}

impl TensorLocations {
    /// Returns a file of these models that holds a tensor with these bytes, and where it begins there.
    pub(super) fn find(
        &mut self,
        store: &Store,
        located: &Located,
        tensor: &BlobDigest,
    ) -> Result<(SourceFile, u64), StepError> {
        for digest in located.models().iter().filter_map(|model| model.index) {
            if !self.read.contains(&digest) {
                let index: ModelIndex = decode(store, "model index", digest)?;
                for tensor in index.tensors {
                    self.of.insert(tensor.bytes, (digest, tensor.shard, tensor.start));
                }
                self.read.insert(digest);
            }
        }
        let not_located = StepError::NotLocated {
            what: "tensor",
            digest: *tensor,
        };
        let Some((index, shard, start)) = self.of.get(tensor).copied() else {
            return Err(not_located);
        };
        let file = located.with_index(&index)?.files.get(shard);
        file.map(|file| (file.clone(), start)).ok_or(not_located)
    }
}
