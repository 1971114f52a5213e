//! What an engine is: the facts that decide its bytes and figures, as a document and its fingerprint.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Role;
use crate::digest::Fingerprint;

/// Version of the identity document.
const SCHEMA: u32 = 1;

/// What identifies an engine. Two engines of equal documents give equal results on equal inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Version of this document's form.
    pub schema: u32,
    /// The engine's name.
    pub engine: String,
    /// What it is used for: `quantizer` or `evaluator`.
    pub role: String,
    /// The facts, by name.
    pub facts: BTreeMap<String, String>,
}

impl Identity {
    /// Makes the identity of an engine in a role.
    pub fn new(engine: impl Into<String>, role: Role, facts: BTreeMap<String, String>) -> Self {
        Self {
            schema: SCHEMA,
            engine: engine.into(),
            role: role.as_str().to_owned(),
            facts,
        }
    }

    /// Returns the canonical document: JSON of the fields in order, facts sorted by name.
    pub fn document(&self) -> Vec<u8> {
        // Strings, one integer and a map of strings always serialize.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Returns the digest of the document.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.document())
    }
}
