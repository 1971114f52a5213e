//! Types that recipes, actions, the methods of policies and engines share.

pub mod inputs;
pub mod role;
pub mod verdict;

use serde::Deserialize;
use serde::Serialize;

/// The version of the document with a tensor's errors: raise it when an error is computed or written in another way.
pub const ERROR_FORM: u32 = 1;

/// The version of the algorithm that refines codes (`rounding`): raise it when it gives other bytes.
pub const ROUNDING: u32 = 2;

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

/// How texts become chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chunking {
    /// Each file separately: no chunk spans two files, so adding a file adds only its own chunks.
    PerFile,
    /// All files joined into one text.
    Joined,
}

/// How imatrices are merged; `imatrix::merge` has the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMode {
    /// Adds sums and counts: every token has the same weight.
    Sum,
    /// Averages the importances: every imatrix has its own weight.
    Mean,
    /// Takes the largest importance of each column.
    Max,
}

impl MergeMode {
    /// Returns the word for it in recipes and documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }
}

/// What to do about a problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Warn.
    Warn,
    /// Fail.
    Fail,
}
