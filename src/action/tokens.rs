//! `tokens`: texts as tokens.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::Role::Source;
use super::role::field;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::TOKENIZERS;

/// Tokenizes texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The digests of the texts, which are joined in this order.
    pub texts: Vec<BlobDigest>,
    /// The model's vocabulary: a document with its `tokenizer.*` metadata except the chat template.
    pub tokenizer: BlobDigest,
    /// Whether the text of a special token, such as `<s>`, becomes that token.
    pub parse_special: bool,
    /// The engine that tokenizes.
    pub engine: Fingerprint,
}

impl Tokens {
    /// Output: the tokens, 32-bit little-endian.
    pub const TOKENS: Output = Output::new("tokens");
    /// The number of tokens.
    pub const COUNT: Fact<u64> = Fact::new("tokens");
    /// The token at the start of every chunk; -1 if there is none.
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
