//! `eval`: the figures of a candidate, over all its blocks of chunks.

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
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::CORPORA;
use crate::vocab::inputs::TOKENIZERS;

/// Measures a candidate over all its blocks of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eval {
    /// The compute-relevant part of the candidate.
    pub candidate: BlobDigest,
    /// The compute-relevant part of the reference, if KLD is measured.
    pub reference: Option<BlobDigest>,
    /// The reference's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// The number of bootstrap resamples.
    pub bootstrap: u32,
    /// The seed of the bootstrap.
    pub seed: u64,
    /// The version of the figures' format.
    pub codec: u32,
    /// The engine that runs the models.
    pub engine: Fingerprint,
}

impl Eval {
    /// Output: the figures.
    pub const FIGURES: Output = Output::new("figures");
    /// The number of evaluated chunks.
    pub const CHUNKS: Fact<u64> = Fact::new("chunks");
    /// The perplexity, rounded for display.
    pub const PPL: Fact<String> = Fact::new("ppl");
    /// The mean KL divergence in nats, rounded for display.
    pub const KLD_MEAN: Fact<String> = Fact::new("kld_mean");
}

impl Document for Eval {
    const KIND: &'static str = "eval";
    const FIELDS: &'static [Field] = &[
        field("candidate", Input(&[output("promote", "compute")])),
        field("reference", Input(&[output("inspect-model", "compute")])),
        field("tokenizer", Input(TOKENIZERS)),
        field("corpus", Input(CORPORA)),
        field("context", Setting),
        field("chunks", Setting),
        field("block", Setting),
        field("bootstrap", Setting),
        field("seed", Setting),
        field("codec", Version),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::FIGURES.as_str()];
}
