//! A candidate as a document: what stands where in its file, and what made it.

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::store::BorrowedBlob;
use crate::tensor_type::TensorType;

/// Where a tensor of a candidate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    /// It is the source's, unchanged.
    Source,
    /// It was quantized, and is in the store.
    Store,
}

/// A tensor of a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssembledTensor {
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub ty: TensorType,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Where its bytes begin in the file.
    pub start: u64,
    /// Its bytes.
    pub bytes: BlobDigest,
    /// Where they come from.
    pub from: From,
    /// The action that quantized it.
    pub action: Option<ActionDigest>,
}

/// A candidate as header and tensors: output `assembly`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assembly {
    /// The version of this form.
    pub schema: u32,
    /// The whole file.
    pub file: BlobDigest,
    /// SHA-256 of the whole file, for verifiers that know no BLAKE3.
    pub sha256: String,
    /// Everything before the first tensor.
    pub header: BlobDigest,
    /// The tensors, in the file's order.
    pub tensors: Vec<AssembledTensor>,
}

impl Assembly {
    /// Returns the tensors that the store need not keep while the file is there.
    pub fn borrowed_blobs(&self) -> Vec<BorrowedBlob> {
        let quantized = self.tensors.iter().filter(|tensor| tensor.from == From::Store);
        quantized
            .map(|tensor| BorrowedBlob {
                bytes: tensor.bytes,
                start: tensor.start,
            })
            .collect()
    }
}
