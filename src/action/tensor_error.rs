//! `tensor-error`: the squared errors of a quantized tensor.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Key;
use super::role::Role::PartOf;
use super::role::Role::Version;
use super::role::field;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::SLICES;

/// Computes the squared errors of a quantized tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorError {
    /// The key of the action that quantizes the tensor; it has the source, types and dimensions. It is not the digest of the quantized
    /// bytes, so that the result stays valid after garbage collection removes them.
    pub tensor: ActionDigest,
    /// The importances that weight the squared errors, whether or not the type uses them.
    pub weights: Option<BlobDigest>,
    /// The engine that dequantizes and compares.
    pub quantizer: Fingerprint,
    /// The version of the errors' format.
    pub form: u32,
}

impl TensorError {
    /// Output: the squared errors of each matrix.
    pub const ERRORS: Output = Output::new("errors");
}

impl Document for TensorError {
    const KIND: &'static str = "tensor-error";
    const FIELDS: &'static [Field] = &[
        field("tensor", Key(&["tensor", "refined-tensor"])),
        field("weights", PartOf(SLICES)),
        field("quantizer", Engine(Quantizer)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::ERRORS.as_str()];
}
