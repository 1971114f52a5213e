//! `imatrix-import`: an imatrix file of another program.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Source;
use super::role::field;
use crate::digest::BlobDigest;

/// Imports an imatrix file of another program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixImport {
    /// The digest of the file.
    pub file: BlobDigest,
}

impl ImatrixImport {
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
}

impl Document for ImatrixImport {
    const KIND: &'static str = "imatrix-import";
    const FIELDS: &'static [Field] = &[field("file", Source)];
    const OUTPUTS: &'static [&'static str] = &[Self::IMATRIX.as_str()];
}
