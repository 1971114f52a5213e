//! `gradients`: the factors of gradients at the weights of a model, over a text.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::COMPUTES;
use crate::vocab::inputs::CORPORA;
use crate::vocab::inputs::TOKENIZERS;

/// Collects the factors of gradients at all weights of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gradients {
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The maximum number of chunks, spread over the corpus.
    pub chunks: u64,
    /// Chunks per block.
    pub block: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
    /// The version of the document's format.
    pub form: u32,
}

impl Gradients {
    /// Output: a document that names the factors of each weight, which are outputs by the weight's name. A model without gradients has none.
    pub const INDEX: Output = Output::new("index");
    /// Why the model has no gradients, if it has none.
    pub const MISSING: Fact<String> = Fact::new("missing");
    /// The number of chunks.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The version of the index.
    pub const FORM: u32 = 1;
}

impl Document for Gradients {
    const KIND: &'static str = "gradients";
    const FIELDS: &'static [Field] = &[
        field("model", Input(COMPUTES)),
        field("tokenizer", Input(TOKENIZERS)),
        field("corpus", Input(CORPORA)),
        field("context", Setting),
        field("chunks", Setting),
        field("block", Setting),
        field("engine", Engine(Evaluator)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::INDEX.as_str()];
}
