//! `moments-sum`: the second moments of an input over several blocks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;

/// Adds up the second moments of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentsSum {
    /// The second moments of the blocks, in order.
    pub parts: Vec<BlobDigest>,
}

impl MomentsSum {
    /// Output: the second moments.
    pub const MOMENTS: Output = Output::new("moments");
}

impl Document for MomentsSum {
    const KIND: &'static str = "moments-sum";
    const FIELDS: &'static [Field] = &[field("parts", Input(&[output("moments-block", "moments")]))];
    const OUTPUTS: &'static [&'static str] = &[Self::MOMENTS.as_str()];
}
