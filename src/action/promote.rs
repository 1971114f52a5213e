//! Assembles a candidate of its tensors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::EngineRole::Quantizer;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use super::shared::MODELS;
use super::shared::SLICES;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// Assembles a candidate of its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// The index of the source model: all its metadata, and the digest of each tensor.
    pub model: BlobDigest,
    /// The source's metadata, byte for byte.
    pub metadata: BlobDigest,
    /// The table of types.
    pub policy: BlobDigest,
    /// The digest of each tensor's importances, where there is an imatrix.
    pub slices: Option<BlobDigest>,
    /// What the metadata say of the imatrix.
    pub imatrix: BTreeMap<String, String>,
    /// Whether quantized tensors may be quantized again.
    pub allow_requantize: bool,
    /// The quantizer.
    pub quantizer: Fingerprint,
    /// The version of the writer.
    pub writer: u32,
}

impl Promote {
    /// Output: all bytes before the first tensor.
    pub const HEADER: Output = Output::new("header");
    /// Output: the tensors and hyperparameters.
    pub const COMPUTE: Output = Output::new("compute");
    /// Output: what stands where in the file.
    pub const ASSEMBLY: Output = Output::new("assembly");
    /// Output: the metadata that decide what the model computes.
    pub const HYPERPARAMETERS: Output = Output::new("hyperparameters");
    /// Output: the vocabulary.
    pub const TOKENIZER: Output = Output::new("tokenizer");
    /// The digest of the file.
    pub const FILE: Fact<BlobDigest> = Fact::new("file");
    /// The SHA-256 of the file.
    pub const SHA256: Fact<String> = Fact::new("sha256");
    /// How many weights the candidate has.
    pub const ELEMENTS: Fact<u64> = Fact::new("elements");
    /// How many tensors.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// How many of them changed type.
    pub const QUANTIZED: Fact<u64> = Fact::new("quantized");
    /// What its policy measured of it, as `metrics` takes it.
    pub const PROBED: Fact<String> = Fact::new("probed");
}

impl Document for Promote {
    const KIND: &'static str = "promote";
    const FIELDS: &'static [Field] = &[
        field("model", Input(MODELS)),
        field("metadata", Input(&[output("inspect-model", "metadata")])),
        field("policy", Input(&[output("policy", "policy")])),
        field("slices", Input(SLICES)),
        field("imatrix", PartOf(&[output("join", "imatrix")])),
        field("allow_requantize", Setting),
        field("quantizer", Engine(Quantizer)),
        field("writer", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[
        Self::HEADER.as_str(),
        Self::COMPUTE.as_str(),
        Self::ASSEMBLY.as_str(),
        Self::HYPERPARAMETERS.as_str(),
        Self::TOKENIZER.as_str(),
    ];
}
