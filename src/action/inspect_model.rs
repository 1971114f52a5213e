//! Reads a GGUF model's header and digests its tensors.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::role::Field;
use super::role::Role::Source;
use super::role::Role::Version;
use super::role::field;
use crate::digest::BlobDigest;

/// Reads a GGUF model's header and digests its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectModel {
    /// The file, or its shards in order.
    pub files: Vec<BlobDigest>,
    /// The version of the index that is made.
    pub index: u32,
}

impl Document for InspectModel {
    const KIND: &'static str = "inspect-model";
    const FIELDS: &'static [Field] = &[field("files", Source), field("index", Version)];
    const OUTPUTS: &'static [&'static str] = &["model", "metadata", "hyperparameters", "tokenizer", "compute", "shape"];
}
