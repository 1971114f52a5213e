//! What an action left behind.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;

/// The record of an action that was carried out: the only truth about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResult {
    /// The version of this form.
    pub schema: u32,
    /// The action's document in the store.
    pub action: BlobDigest,
    /// Outputs by name, each a blob in the store.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// How long it took, in milliseconds: what it would cost to make again.
    pub cost_ms: u64,
    /// Short facts about the outputs that spare readers a look into them.
    pub facts: BTreeMap<String, String>,
}

impl ActionResult {
    /// The version of the form.
    pub const SCHEMA: u32 = 1;

    /// Returns an output by name.
    pub fn output(&self, name: &str) -> Option<BlobDigest> {
        self.outputs.get(name).copied()
    }
}
