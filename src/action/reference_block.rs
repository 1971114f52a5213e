//! `reference-block`: the reference's log-probabilities on one block of chunks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
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

/// Computes the reference's log-probabilities on a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceBlock {
    /// The compute-relevant part of the reference.
    pub model: BlobDigest,
    /// The tokens of the block.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The storage format of the log-probabilities.
    pub codec: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

impl ReferenceBlock {
    /// Output: the log-probabilities.
    pub const REFERENCE: Output = Output::new("reference");
}

impl Document for ReferenceBlock {
    const KIND: &'static str = "reference-block";
    const FIELDS: &'static [Field] = &[
        field("model", Input(&[output("inspect-model", "compute")])),
        field("tokens", PartOf(&[output("tokens", "tokens")])),
        field("context", Setting),
        field("codec", Version),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::REFERENCE.as_str()];
}
