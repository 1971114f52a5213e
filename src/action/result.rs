//! The result of an action.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;

/// The result of an action that ran. It is the only record that the store trusts about the action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResult {
    /// The version of the format, [`ActionResult::SCHEMA`].
    pub schema: u32,
    /// The digest of the action's document.
    pub action: BlobDigest,
    /// The digest of each output, by name.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// The time that the action took, in milliseconds: an estimate of what running it again costs.
    pub cost_ms: u64,
    /// Short facts about the outputs, so that readers need not open them.
    pub facts: BTreeMap<String, String>,
}

impl ActionResult {
    /// The version of the format.
    pub const SCHEMA: u32 = 1;

    /// Returns an output by name.
    pub fn output(&self, name: &str) -> Option<BlobDigest> {
        self.outputs.get(name).copied()
    }
}
