//! What an action gave.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;

/// What an action gave: the digests of its outputs, what making them cost, and what is worth saying of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionResult {
    /// The version of this document.
    pub schema: u32,
    /// The action's canonical document, itself a blob.
    pub action: BlobDigest,
    /// The outputs by name.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// How long making them took, in milliseconds.
    pub cost_ms: u64,
    /// Small texts that the action found out.
    pub facts: BTreeMap<String, String>,
}
