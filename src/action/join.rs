//! Holds an imatrix against a model.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
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

impl Document for Join {
    const KIND: &'static str = "join";
    const FIELDS: &'static [Field] = &[
        field("shape", Input(SHAPES)),
        field("imatrix", Input(IMATRICES)),
        field("missing", Setting),
        field("unrouted", Setting),
        field("min_count", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &["coverage", "slices", "imatrix", "join"];
}
