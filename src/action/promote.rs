//! `promote`: a candidate, assembled from its tensors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::method::rounding::RoundingDocument;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::MODELS;
use crate::vocab::inputs::SLICES;

/// Assembles a candidate from its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// The index of the source model, with the digest of each tensor.
    pub model: BlobDigest,
    /// The metadata of the source model, byte for byte.
    pub metadata: BlobDigest,
    /// The table with the type of each tensor.
    pub policy: BlobDigest,
    /// The digest of each tensor's importances, if there is an imatrix.
    pub slices: Option<BlobDigest>,
    /// What the candidate's metadata record about the imatrix.
    pub imatrix: BTreeMap<String, String>,
    /// Whether tensors that are already quantized may be requantized.
    pub allow_requantize: bool,
    /// The quantizer.
    pub quantizer: Fingerprint,
    /// The version of the file writer.
    pub writer: u32,
    /// How codes are refined; without it, tensors have the quantizer's own bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RoundingDocument>,
}

impl Promote {
    /// Output: the header, all bytes before the first tensor.
    pub const HEADER: Output = Output::new("header");
    /// Output: the tensors and hyperparameters.
    pub const COMPUTE: Output = Output::new("compute");
    /// Output: the assembly, which lists the parts of the file in order.
    pub const ASSEMBLY: Output = Output::new("assembly");
    /// Output: the compute-relevant part: tensors, and the metadata that affect the computation.
    pub const HYPERPARAMETERS: Output = Output::new("hyperparameters");
    /// Output: the vocabulary.
    pub const TOKENIZER: Output = Output::new("tokenizer");
    /// The digest of the file.
    pub const FILE: Fact<BlobDigest> = Fact::new("file");
    /// The SHA-256 of the file.
    pub const SHA256: Fact<String> = Fact::new("sha256");
    /// The number of weights.
    pub const ELEMENTS: Fact<u64> = Fact::new("elements");
    /// The number of tensors.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// The number of tensors whose type differs from the source.
    pub const QUANTIZED: Fact<u64> = Fact::new("quantized");
    /// The held-out KLD that its policy measured, in the form that `metrics` takes.
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
        RoundingDocument::field(),
    ];
    const OUTPUTS: &'static [&'static str] = &[
        Self::HEADER.as_str(),
        Self::COMPUTE.as_str(),
        Self::ASSEMBLY.as_str(),
        Self::HYPERPARAMETERS.as_str(),
        Self::TOKENIZER.as_str(),
    ];
}
