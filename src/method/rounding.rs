//! `rounding = "refined"`: codes that are chosen under the second moments of inputs. Policies of all methods can have it.

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;
use crate::vocab::ROUNDING;
use crate::vocab::inputs::MOMENTS;
use crate::vocab::role::Field;
use crate::vocab::role::Role::Fields;
use crate::vocab::role::Role::Input;
use crate::vocab::role::Role::Setting;
use crate::vocab::role::Role::Version;
use crate::vocab::role::field;

/// What is added to the diagonal of second moments, in millionths of its mean: more and less than 1 % are worse.
const DAMPING: u32 = 10_000;

/// How codes are refined, as documents have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundingDocument {
    /// The second moments of all inputs.
    pub moments: BlobDigest,
    /// What is added to the diagonal of the second moments, in millionths of its mean.
    pub damping: u32,
    /// The version of the algorithm.
    pub version: u32,
}

impl RoundingDocument {
    /// The fields.
    pub const FIELDS: &'static [Field] = &[
        field("moments", Input(MOMENTS)),
        field("damping", Setting),
        field("version", Version),
    ];

    /// Returns the field that holds it.
    pub const fn field() -> Field {
        field("rounding", Fields(Self::FIELDS))
    }

    /// Returns the document for some second moments, with the usual settings.
    pub fn new(moments: BlobDigest) -> Self {
        Self {
            moments,
            damping: DAMPING,
            version: ROUNDING,
        }
    }
}
