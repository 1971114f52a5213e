//! `tensor-loss`: what a quantized tensor costs, from gradients and the second moments of its input.

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
use super::role::output;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Quantizer;
use crate::vocab::inputs::MOMENTS;

/// Computes what the errors of a quantized tensor cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLoss {
    /// The key of the action that quantizes the tensor; it has the source, types and dimensions.
    pub tensor: ActionDigest,
    /// The factors of gradients at the tensor. Without, the result is the squared error of the tensor's outputs.
    pub factors: Option<BlobDigest>,
    /// The second moments of the tensor's input. Without, columns count as independent.
    pub moments: Option<BlobDigest>,
    /// The engine that dequantizes.
    pub quantizer: Fingerprint,
    /// The version of the computation and of the format.
    pub form: u32,
}

impl TensorLoss {
    /// Output: the loss of each matrix.
    pub const LOSS: Output = Output::new("loss");
    /// The version of the computation and of the format: raise it when a loss is computed or written in another way.
    pub const FORM: u32 = 1;
}

impl Document for TensorLoss {
    const KIND: &'static str = "tensor-loss";
    const FIELDS: &'static [Field] = &[
        field("tensor", Key(&["tensor", "refined-tensor"])),
        field("factors", PartOf(&[output("gradients", "index")])),
        field("moments", PartOf(MOMENTS)),
        field("quantizer", Engine(Quantizer)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::LOSS.as_str()];
}
