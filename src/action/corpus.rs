//! Checks the texts of a corpus.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
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

impl Document for Corpus {
    const KIND: &'static str = "corpus";
    const FIELDS: &'static [Field] = &[
        field("texts", Source),
        field("chunking", Setting),
        field("parse_special", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &["corpus"];
}
