//! Assembles a candidate of its tensors.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Document;
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
    const OUTPUTS: &'static [&'static str] = &["header", "compute", "assembly", "hyperparameters", "tokenizer"];
}
