//! Turns texts into tokens.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::EngineRole::Evaluator;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::Role::Source;
use super::role::field;
use super::shared::TOKENIZERS;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// Turns texts into tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The texts that are joined, in order.
    pub texts: Vec<BlobDigest>,
    /// The model's vocabulary: a document of its `tokenizer.*` metadata, chat template apart.
    pub tokenizer: BlobDigest,
    /// Whether special tokens in the text are read as such.
    pub parse_special: bool,
    /// The engine that tokenizes.
    pub engine: Fingerprint,
}

impl Tokens {
    /// Output: the tokens, 32-bit little-endian.
    pub const TOKENS: Output = Output::new("tokens");
    /// How many tokens.
    pub const COUNT: Fact<u64> = Fact::new("tokens");
    /// The token that every chunk begins with, -1 for none.
    pub const BOS: Fact<i32> = Fact::new("bos");
}

impl Document for Tokens {
    const KIND: &'static str = "tokens";
    const FIELDS: &'static [Field] = &[
        field("texts", Source),
        field("tokenizer", Input(TOKENIZERS)),
        field("parse_special", Setting),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::TOKENS.as_str()];
}
