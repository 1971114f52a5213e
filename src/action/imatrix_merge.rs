//! `imatrix-merge`: one imatrix from several.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use crate::digest::BlobDigest;
use crate::vocab::MergeMode;
use crate::vocab::inputs::IMATRICES;

/// Merges imatrices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixMerge {
    /// The digests of the imatrices, in order.
    pub imatrices: Vec<BlobDigest>,
    /// How they are merged.
    pub mode: MergeMode,
    /// The weight of each imatrix, in millionths.
    pub weights: Vec<u64>,
}

impl ImatrixMerge {
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
}

impl Document for ImatrixMerge {
    const KIND: &'static str = "imatrix-merge";
    const FIELDS: &'static [Field] = &[
        field("imatrices", Input(IMATRICES)),
        field("mode", Setting),
        field("weights", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::IMATRIX.as_str()];
}
