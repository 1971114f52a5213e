//! What candidates are compared by.

use crate::digest::Hash;

/// What is compared of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tensor {
    pub(super) ty: String,
    pub(super) dims: Vec<u64>,
    pub(super) bytes: u64,
    /// The BLAKE3 of its bytes.
    pub(super) digest: Option<Hash>,
}
