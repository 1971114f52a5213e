//! Holds an imatrix against a model.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use super::shared::IMATRICES;
use super::shared::SHAPES;
use crate::digest::BlobDigest;

/// What to do about a flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Say so.
    Warn,
    /// Stop.
    Fail,
}

/// Holds an imatrix against a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The model's shape: names, types and dimensions of its tensors, and its hyperparameters.
    pub shape: BlobDigest,
    /// The imatrix.
    pub imatrix: BlobDigest,
    /// What to do where a quantizable tensor has no data.
    pub missing: Severity,
    /// What to do where an expert was never routed.
    pub unrouted: Severity,
    /// The fewest rows that a matrix must have seen to count as routed.
    pub min_count: u64,
}

impl Join {
    /// Output: which tensors have data.
    pub const COVERAGE: Output = Output::new("coverage");
    /// Output: the digest of each tensor's importances.
    pub const SLICES: Output = Output::new("slices");
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
    /// Output: what fits and what does not.
    pub const REPORT: Output = Output::new("join");
    /// How many tensors have data.
    pub const MATCHED: Fact<u64> = Fact::new("matched");
    /// How many quantizable tensors have none.
    pub const MISSING: Fact<u64> = Fact::new("missing");
    /// How many have data of the wrong length.
    pub const WRONG_LENGTH: Fact<u64> = Fact::new("wrong_length");
    /// How many experts saw too few rows.
    pub const UNROUTED: Fact<u64> = Fact::new("unrouted");
    /// How many tensors the imatrix has data for.
    pub const ENTRIES: Fact<u64> = Fact::new("entries");
    /// How many chunks it was collected on.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The name of its text.
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
