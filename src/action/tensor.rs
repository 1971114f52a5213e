//! `tensor`: one quantized tensor.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::PartOf;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::MODELS;
use crate::vocab::inputs::SLICES;

/// Quantizes one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// The digest of the tensor's bytes in the source model.
    pub source: BlobDigest,
    /// The tensor type in the source model.
    pub from: String,
    /// The dimensions, row length first.
    pub dims: Vec<u64>,
    /// The tensor type in the candidate.
    pub to: String,
    /// The digest of the importances: 32-bit floats, one for each column of each matrix. Only for types that use them.
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
