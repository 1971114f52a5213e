//! `join`: checks that an imatrix fits a model.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use crate::digest::BlobDigest;
use crate::vocab::Severity;
use crate::vocab::inputs::IMATRICES;
use crate::vocab::inputs::SHAPES;

/// Checks that an imatrix fits a model, and extracts the importances of each tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The model's shape: names, types and dimensions of its tensors, and its hyperparameters.
    pub shape: BlobDigest,
    /// The imatrix.
    pub imatrix: BlobDigest,
    /// What to do if a quantizable tensor has no data.
    pub missing: Severity,
    /// What to do if an expert received too few tokens.
    pub unrouted: Severity,
    /// The minimum number of tokens for an expert to count as covered.
    pub min_count: u64,
}

impl Join {
    /// Output: which tensors have importances.
    pub const COVERAGE: Output = Output::new("coverage");
    /// Output: the digest of each tensor's importances.
    pub const SLICES: Output = Output::new("slices");
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
    /// Output: the report on what fits and what does not.
    pub const REPORT: Output = Output::new("join");
    /// The number of tensors with importances.
    pub const MATCHED: Fact<u64> = Fact::new("matched");
    /// The number of quantizable tensors without importances.
    pub const MISSING: Fact<u64> = Fact::new("missing");
    /// The number of tensors with importances of the wrong length.
    pub const WRONG_LENGTH: Fact<u64> = Fact::new("wrong_length");
    /// The number of experts that received too few tokens.
    pub const UNROUTED: Fact<u64> = Fact::new("unrouted");
    /// The number of tensors in the imatrix.
    pub const ENTRIES: Fact<u64> = Fact::new("entries");
    /// The number of chunks of the imatrix.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The data set name of the imatrix.
    pub const DATASET: Fact<String> = Fact::new("dataset");
}

impl Document for Join {
    const KIND: &'static str = "join";
    const FIELDS: &'static [Field] = &[
        field("shape", Input(SHAPES)),
        field("imatrix", Input(IMATRICES)),
        field("missing", Setting),
        field("unrouted", Setting),
        field("min_count", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &[
        Self::COVERAGE.as_str(),
        Self::SLICES.as_str(),
        Self::IMATRIX.as_str(),
        Self::REPORT.as_str(),
    ];
}
