//! What decides on the length of a candidate's header.

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;
use crate::vocab::inputs::JOINED;
use crate::vocab::role;
use crate::vocab::role::Role;
use crate::vocab::role::field;
use crate::vocab::role::output;

/// What decides on the length of a candidate's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderDocument {
    /// The source's metadata, byte for byte.
    pub metadata: BlobDigest,
    /// The name of the imatrix's text, which the header says where there is an imatrix.
    pub dataset: Option<String>,
}

impl HeaderDocument {
    const ROLE: Role = Role::Fields(&[
        field("metadata", Role::Input(&[output("inspect-model", "metadata")])),
        field("dataset", Role::PartOf(JOINED)),
    ]);

    /// Returns the field of a document that has it.
    pub(super) const fn field() -> role::Field {
        field("header", Self::ROLE)
    }
}
