//! Types that actions and engines share.

use serde::Serialize;

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
