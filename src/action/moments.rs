//! `moments`: the second moments of all inputs of a model.

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
use crate::vocab::inputs::SHAPES;
use crate::vocab::inputs::TOKENIZERS;

/// Collects the second moments of all inputs of a model's weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moments {
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// The model's tensors without their bytes.
    pub shape: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// The data set name that an imatrix made of them records.
    pub dataset: String,
    /// Tokens per chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Of how many chunks of a text one is kept for validation; 0 for none.
    pub held_out: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
    /// The version of the document's format.
    pub form: u32,
}

impl Moments {
    /// Output: a document that names the second moments of each input.
    pub const INDEX: Output = Output::new("index");
    /// The number of inputs.
    pub const INPUTS: Fact<u64> = Fact::new("inputs");
    /// The number of chunks, those for validation included.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The number of chunks for validation.
    pub const HELD_OUT: Fact<u64> = Fact::new("held_out");
    /// The bytes of the second moments of all inputs.
    pub const BYTES: Fact<u64> = Fact::new("bytes");
    /// The version of the index.
    pub const FORM: u32 = 1;
}

impl Document for Moments {
    const KIND: &'static str = "moments";
    const FIELDS: &'static [Field] = &[
        field("model", Input(COMPUTES)),
        field("shape", Input(SHAPES)),
        field("tokenizer", Input(TOKENIZERS)),
        field("corpus", Input(CORPORA)),
        field("dataset", Setting),
        field("context", Setting),
        field("chunks", Setting),
        field("block", Setting),
        field("held_out", Setting),
        field("engine", Engine(Evaluator)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::INDEX.as_str()];
}
