//! Quantizes one tensor.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::EngineRole::Quantizer;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::PartOf;
use super::role::field;
use super::role::output;
use super::shared::MODELS;
use super::shared::SLICES;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// Quantizes one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// The tensor's bytes in the source.
    pub source: BlobDigest,
    /// Its type in the source.
    pub from: String,
    /// Its dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Its type in the candidate.
    pub to: String,
    /// Its importances, 32-bit floats, one for each column of each matrix, where the type uses them.
    pub weights: Option<BlobDigest>,
    /// The quantizer.
    pub quantizer: Fingerprint,
}

impl Tensor {
    /// Output: the quantized bytes.
    pub const TENSOR: Output = Output::new("tensor");
}

impl Document for Tensor {
    const KIND: &'static str = "tensor";
    const FIELDS: &'static [Field] = &[
        field("source", PartOf(MODELS)),
        field("from", PartOf(MODELS)),
        field("dims", PartOf(MODELS)),
        field("to", PartOf(&[output("policy", "policy")])),
        field("weights", PartOf(SLICES)),
        field("quantizer", Engine(Quantizer)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::TENSOR.as_str()];
}
