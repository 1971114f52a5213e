//! `refined-tensor`: one quantized tensor whose codes are chosen under the second moments of its input.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::Tensor;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::MODELS;
use crate::vocab::inputs::MOMENTS;
use crate::vocab::inputs::SLICES;

/// Quantizes one tensor, and chooses its codes under the second moments of its input. The fields of [`Tensor`] make the bytes that it
/// improves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefinedTensor {
    /// As [`Tensor::source`].
    pub source: BlobDigest,
    /// As [`Tensor::from`].
    pub from: String,
    /// As [`Tensor::dims`].
    pub dims: Vec<u64>,
    /// As [`Tensor::to`].
    pub to: String,
    /// As [`Tensor::weights`].
    pub weights: Option<BlobDigest>,
    /// The second moments of its input.
    pub moments: BlobDigest,
    /// Those of the chunks for validation.
    pub validation: Option<BlobDigest>,
    /// What is added to the diagonal of the second moments, in millionths of its mean.
    pub damping: u32,
    /// The version of the algorithm.
    pub version: u32,
    /// The quantizer.
    pub quantizer: Fingerprint,
}

impl RefinedTensor {
    /// Output: the quantized bytes.
    pub const TENSOR: Output = Tensor::TENSOR;
    /// Output: what became of each matrix.
    pub const REPORT: Output = Output::new("report");
    /// The number of matrices.
    pub const MATRICES: Fact<u64> = Fact::new("matrices");
    /// The number of matrices that kept the quantizer's own bytes.
    pub const KEPT: Fact<u64> = Fact::new("kept");

    /// Returns the action that quantizes the tensor without refining it.
    pub fn plain(&self) -> Tensor {
        Tensor {
            source: self.source,
            from: self.from.clone(),
            dims: self.dims.clone(),
            to: self.to.clone(),
            weights: self.weights,
            quantizer: self.quantizer,
        }
    }
}

impl Document for RefinedTensor {
    const KIND: &'static str = "refined-tensor";
    const FIELDS: &'static [Field] = &[
        field("source", PartOf(MODELS)),
        field("from", PartOf(MODELS)),
        field("dims", PartOf(MODELS)),
        field("to", PartOf(&[output("policy", "policy")])),
        field("weights", PartOf(SLICES)),
        field("moments", PartOf(MOMENTS)),
        field("validation", PartOf(MOMENTS)),
        field("damping", Setting),
        field("version", Version),
        field("quantizer", Engine(Quantizer)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::TENSOR.as_str(), Self::REPORT.as_str()];
}
