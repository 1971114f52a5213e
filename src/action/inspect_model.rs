//! `inspect-model`: the documents that describe a model.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Source;
use super::role::Role::Version;
use super::role::field;
use crate::digest::BlobDigest;

/// Reads a model's header and hashes its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectModel {
    /// The digest of the file, or of its shards in order.
    pub files: Vec<BlobDigest>,
    /// The version of the index format.
    pub index: u32,
}

impl InspectModel {
    /// Output: the index, with the position and digest of every tensor.
    pub const MODEL: Output = Output::new("model");
    /// Output: all metadata.
    pub const METADATA: Output = Output::new("metadata");
    /// Output: the compute-relevant part: tensors, and the metadata that affect the computation.
    pub const HYPERPARAMETERS: Output = Output::new("hyperparameters");
    /// Output: the vocabulary.
    pub const TOKENIZER: Output = Output::new("tokenizer");
    /// Output: the tensors and hyperparameters.
    pub const COMPUTE: Output = Output::new("compute");
    /// Output: names, types and dimensions of the tensors.
    pub const SHAPE: Output = Output::new("shape");
    /// The number of weights.
    pub const ELEMENTS: Fact<u64> = Fact::new("elements");
    /// The number of tensors.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// The size of the files in bytes.
    pub const BYTES: Fact<u64> = Fact::new("bytes");
    /// The architecture.
    pub const ARCHITECTURE: Fact<String> = Fact::new("architecture");
}

impl Document for InspectModel {
    const KIND: &'static str = "inspect-model";
    const FIELDS: &'static [Field] = &[field("files", Source), field("index", Version)];
    const OUTPUTS: &'static [&'static str] = &[
        Self::MODEL.as_str(),
        Self::METADATA.as_str(),
        Self::HYPERPARAMETERS.as_str(),
        Self::TOKENIZER.as_str(),
        Self::COMPUTE.as_str(),
        Self::SHAPE.as_str(),
    ];
}
