//! What engines are used for, and what they can do.

use std::fmt;

use super::Role;

/// Something that an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Turn texts into tokens.
    Tokenize,
    /// Collect an imatrix.
    Collect,
    /// Add up the second moments of inputs.
    Moments,
    /// Compute logits.
    Score,
    /// Compute logits of a loaded model with some of its tensors replaced.
    Probe,
    /// Compute gradients at the outputs of the weights.
    Gradients,
    /// Quantize a tensor.
    Quantize,
    /// Compute the squared error of a quantized tensor.
    Compare,
    /// Choose better codes for a quantized tensor.
    Refine,
}

impl Capability {
    /// Returns the role whose identity stands for it.
    pub const fn role(self) -> Role {
        match self {
            Self::Tokenize | Self::Collect | Self::Moments | Self::Score | Self::Probe | Self::Gradients => {
                Role::Evaluator
            }
            Self::Quantize | Self::Compare | Self::Refine => Role::Quantizer,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tokenize => "tokenize texts",
            Self::Collect => "collect an imatrix",
            Self::Moments => "collect second moments of inputs",
            Self::Score => "evaluate a model",
            Self::Probe => "measure tensor types on a loaded model",
            Self::Gradients => "compute gradients",
            Self::Quantize => "quantize tensors",
            Self::Compare => "compute the errors of quantized tensors",
            Self::Refine => "refine the codes of quantized tensors",
        })
    }
}
