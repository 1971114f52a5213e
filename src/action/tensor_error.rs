//! Compares a quantized tensor with its source.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::EngineRole::Quantizer;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Key;
use super::role::Role::PartOf;
use super::role::Role::Version;
use super::role::field;
use super::shared::SLICES;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// Compares a quantized tensor with its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorError {
    /// The action that quantizes the tensor: source, types and dimensions stand there. Not the digest of what it made, so that
    /// the errors stay known after the quantized bytes were collected.
    pub tensor: ActionDigest,
    /// The importances that squares are weighted with, whether or not the type uses them.
    pub weights: Option<BlobDigest>,
    /// What turns quantized bytes into numbers.
    pub quantizer: Fingerprint,
    /// The version of the errors.
    pub form: u32,
}

impl TensorError {
    /// Output: the squared errors of each matrix.
    pub const ERRORS: Output = Output::new("errors");
}

impl Document for TensorError {
    const KIND: &'static str = "tensor-error";
    const FIELDS: &'static [Field] = &[
        field("tensor", Key("tensor")),
        field("weights", PartOf(SLICES)),
        field("quantizer", Engine(Quantizer)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::ERRORS.as_str()];
}
