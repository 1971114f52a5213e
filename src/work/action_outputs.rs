//! What an action makes.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::action::Fact;
use crate::action::Output;
use crate::digest::BlobDigest;

/// The outputs of an action and facts about them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionOutputs {
    /// Blobs by name.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// Short facts about them.
    pub facts: BTreeMap<String, String>,
}

impl ActionOutputs {
    /// Adds an output.
    pub fn output(&mut self, output: Output, digest: BlobDigest) {
        self.outputs.insert(output.as_str().to_owned(), digest);
    }

    /// Adds a fact.
    pub fn fact<T>(&mut self, fact: Fact<T>, value: impl ToString) {
        self.facts.insert(fact.as_str().to_owned(), value.to_string());
    }
}
