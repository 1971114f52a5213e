//! What engines are used for, and what they can do.

use std::fmt;

/// What an engine is used for. Each role has an identity of its own, so that a new evaluator does not quantize again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It runs models: tokens, imatrices, log-probabilities.
    Evaluator,
    /// It turns numbers into quantized bytes and back.
    Quantizer,
}

impl Role {
    /// Both roles.
    pub const ALL: [Self; 2] = [Self::Quantizer, Self::Evaluator];

    /// Returns the word for it, as identities and action documents spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evaluator => "evaluator",
            Self::Quantizer => "quantizer",
        }
    }
}

/// Something that an engine can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Turn texts into tokens.
    Tokenize,
    /// Collect an imatrix.
    Collect,
    /// Compute logits.
    Score,
    /// Compute logits of a loaded model with some of its tensors replaced.
    Probe,
    /// Quantize a tensor.
    Quantize,
    /// Compute the squared error of a quantized tensor.
    Compare,
}

impl Capability {
    /// Returns the role whose identity stands for it.
    pub const fn role(self) -> Role {
        match self {
            Self::Tokenize | Self::Collect | Self::Score | Self::Probe => Role::Evaluator,
            Self::Quantize | Self::Compare => Role::Quantizer,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tokenize => "tokenize texts",
            Self::Collect => "collect an imatrix",
            Self::Score => "evaluate a model",
            Self::Probe => "measure tensor types on a loaded model",
            Self::Quantize => "quantize tensors",
            Self::Compare => "compute the errors of quantized tensors",
        })
    }
}
