//! `imatrix-moments`: the imatrix that is the diagonal of second moments.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use crate::digest::BlobDigest;
use crate::vocab::inputs::MOMENTS;

/// Makes an imatrix of second moments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixMoments {
    /// The second moments of all inputs.
    pub moments: BlobDigest,
    /// Whether it has data for the output tensor.
    pub process_output: bool,
}

impl ImatrixMoments {
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
}

impl Document for ImatrixMoments {
    const KIND: &'static str = "imatrix-moments";
    const FIELDS: &'static [Field] = &[field("moments", Input(MOMENTS)), field("process_output", Setting)];
    const OUTPUTS: &'static [&'static str] = &[Self::IMATRIX.as_str()];
}
