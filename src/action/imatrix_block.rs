//! `imatrix-block`: the imatrix of one block of chunks.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;

/// Collects the imatrix of a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixBlock {
    /// The compute-relevant part of the model: a document with its tensors and the metadata that affect the computation.
    pub model: BlobDigest,
    /// The tokens of the block: `chunks` rows of `context` tokens, 32-bit little-endian.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// Whether data is also collected for the output tensor.
    pub process_output: bool,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

impl ImatrixBlock {
    /// Output: the imatrix.
    pub const IMATRIX: Output = Output::new("imatrix");
}

impl Document for ImatrixBlock {
    const KIND: &'static str = "imatrix-block";
    const FIELDS: &'static [Field] = &[
        field("model", Input(&[output("inspect-model", "compute")])),
        field("tokens", PartOf(&[output("tokens", "tokens")])),
        field("context", Setting),
        field("process_output", Setting),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::IMATRIX.as_str()];
}
