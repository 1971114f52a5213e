//! Types that actions, the methods of policies and engines share.

pub mod inputs;
pub mod role;

use serde::Serialize;

/// The version of the document with a tensor's errors: raise it when an error is computed or told in another way.
pub const ERROR_FORM: u32 = 1;

/// What an engine is used for. Each role has an identity of its own, so that a new evaluator does not quantize again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineRole {
    /// Runs models: tokens, imatrices, log-probabilities.
    Evaluator,
    /// Quantizes tensors and computes their errors.
    Quantizer,
}

impl EngineRole {
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
