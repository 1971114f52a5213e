//! Reads a GGUF model's header and digests its tensors.

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

/// Reads a GGUF model's header and digests its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectModel {
    /// The file, or its shards in order.
    pub files: Vec<BlobDigest>,
    /// The version of the index that is made.
    pub index: u32,
}

impl InspectModel {
    /// Output: the place and digest of every tensor.
    pub const MODEL: Output = Output::new("model");
    /// Output: all metadata.
    pub const METADATA: Output = Output::new("metadata");
    /// Output: the metadata that decide what the model computes.
    pub const HYPERPARAMETERS: Output = Output::new("hyperparameters");
    /// Output: the vocabulary.
    pub const TOKENIZER: Output = Output::new("tokenizer");
    /// Output: the tensors and hyperparameters.
    pub const COMPUTE: Output = Output::new("compute");
    /// Output: names, types and dimensions of the tensors.
    pub const SHAPE: Output = Output::new("shape");
    /// How many weights the model has.
    pub const ELEMENTS: Fact<u64> = Fact::new("elements");
    /// How many tensors.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// How many bytes its files have.
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
