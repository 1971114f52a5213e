//! `overlap`: what an evaluation's text has in common with a text that candidates were calibrated on.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Source;
use super::role::Role::Version;
use super::role::field;
use crate::digest::BlobDigest;

/// Compares two texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// The digests of the texts that candidates are evaluated on.
    pub evaluation: Vec<BlobDigest>,
    /// The digests of the texts that they were calibrated on.
    pub calibration: Vec<BlobDigest>,
    /// The version of the rules by which texts are compared.
    pub rules: u32,
}

impl Overlap {
    /// Output: what the texts have in common.
    pub const OVERLAP: Output = Output::new("overlap");
}

impl Document for Overlap {
    const KIND: &'static str = "overlap";
    const FIELDS: &'static [Field] = &[
        field("evaluation", Source),
        field("calibration", Source),
        field("rules", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::OVERLAP.as_str()];
}
