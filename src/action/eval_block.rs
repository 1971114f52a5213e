//! `eval-block`: the figures of a candidate on one block of chunks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Key;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;

/// Measures a candidate on a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalBlock {
    /// The compute-relevant part of the candidate.
    pub candidate: BlobDigest,
    /// The key of the action that computes the reference's log-probabilities, if KLD is measured. It is not their digest, so that the
    /// result stays valid after garbage collection removes them: they are large and cheap to compute again.
    pub reference: Option<ActionDigest>,
    /// The tokens of the block.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The version of the figures' format.
    pub codec: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

impl EvalBlock {
    /// Output: the figures of each token.
    pub const FIGURES: Output = Output::new("figures");
}

impl Document for EvalBlock {
    const KIND: &'static str = "eval-block";
    const FIELDS: &'static [Field] = &[
        field(
            "candidate",
            PartOf(&[
                output("promote", "compute"),
                output("inspect-model", "compute"),
                output("tensor", "tensor"),
            ]),
        ),
        field("reference", Key(&["reference-block"])),
        field("tokens", PartOf(&[output("tokens", "tokens")])),
        field("context", Setting),
        field("codec", Version),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::FIGURES.as_str()];
}
