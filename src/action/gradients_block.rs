//! `gradients-block`: the factors of gradients at all weights over one block of chunks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::COMPUTES;

/// Adds up the factors of gradients at all weights over a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GradientsBlock {
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// The tokens of the block: `chunks` rows of `context` tokens, 32-bit little-endian.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
    /// The version of the arithmetic and of the format.
    pub form: u32,
}

impl GradientsBlock {
    /// Output: the factors of all weights, a [`crate::fisher::ModelFactors`]. A model without gradients has none.
    pub const FACTORS: Output = Output::new("factors");
    /// Why the model has no gradients, if it has none.
    pub const MISSING: Fact<String> = Fact::new("missing");
    /// The version of the arithmetic and of the format: raise it when factors are computed or written in another way.
    pub const FORM: u32 = 1;
}

impl Document for GradientsBlock {
    const KIND: &'static str = "gradients-block";
    const FIELDS: &'static [Field] = &[
        field("model", Input(COMPUTES)),
        field("tokens", PartOf(&[output("tokens", "tokens")])),
        field("context", Setting),
        field("engine", Engine(Evaluator)),
        field("form", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::FACTORS.as_str()];
}
