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

/// How texts are cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chunking {
    /// Each file by itself: no chunk crosses a file, so a file more costs only its own chunks.
    PerFile,
    /// All files as one text.
    Joined,
}

/// Checks the texts of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    /// The texts, in order.
    pub texts: Vec<BlobDigest>,
    /// How they are cut.
    pub chunking: Chunking,
    /// Whether special tokens in the text are read as such.
    pub parse_special: bool,
}

impl Corpus {
    /// Output: the texts, and how they are cut.
    pub const CORPUS: Output = Output::new("corpus");
    /// How many texts.
    pub const TEXTS: Fact<u64> = Fact::new("texts");
    /// How many bytes they have.
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
