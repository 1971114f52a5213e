//! `imatrix-collect`: an imatrix as the sum of its blocks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::CORPORA;
use crate::vocab::inputs::TOKENIZERS;

/// Collects an imatrix: the sum of its blocks of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixCollect {
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// The data set name that the imatrix file records.
    pub dataset: String,
    /// Tokens per chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Whether data is also collected for the output tensor.
    pub process_output: bool,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

impl ImatrixCollect {
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
    /// The number of tensors with data.
    pub const ENTRIES: Fact<u64> = Fact::new("entries");
    /// The number of chunks.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The data set name.
    pub const DATASET: Fact<String> = Fact::new("dataset");
}

impl Document for ImatrixCollect {
    const KIND: &'static str = "imatrix-collect";
    const FIELDS: &'static [Field] = &[
        field("model", Input(&[output("inspect-model", "compute")])),
        field("tokenizer", Input(TOKENIZERS)),
        field("corpus", Input(CORPORA)),
        field("dataset", Setting),
        field("context", Setting),
        field("chunks", Setting),
        field("block", Setting),
        field("process_output", Setting),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::IMATRIX.as_str()];
}
