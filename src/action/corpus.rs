//! Checks the texts of a corpus.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Setting;
use super::role::Role::Source;
use super::role::field;
use crate::digest::BlobDigest;
use crate::vocab::Chunking;

/// Checks the texts of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    /// The digests of the texts, in order.
    pub texts: Vec<BlobDigest>,
    /// How the texts are cut into chunks.
    pub chunking: Chunking,
    /// Whether the text of a special token, such as `<s>`, becomes that token.
    pub parse_special: bool,
}

impl Corpus {
    /// Output: the texts, and how they are cut.
    pub const CORPUS: Output = Output::new("corpus");
    /// The number of texts.
    pub const TEXTS: Fact<u64> = Fact::new("texts");
    /// The size of the texts in bytes.
    pub const BYTES: Fact<u64> = Fact::new("bytes");
}

impl Document for Corpus {
    const KIND: &'static str = "corpus";
    const FIELDS: &'static [Field] = &[
        field("texts", Source),
        field("chunking", Setting),
        field("parse_special", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::CORPUS.as_str()];
}
