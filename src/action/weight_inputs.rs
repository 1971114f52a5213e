//! `weight-inputs`: which weights of a model share an input.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Output;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Input;
use super::role::Role::Setting;
use super::role::field;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::inputs::COMPUTES;

/// Finds out which weights of a model share an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightInputs {
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

impl WeightInputs {
    /// Output: the inputs, in the order in which the model computes.
    pub const INPUTS: Output = Output::new("inputs");
}

impl Document for WeightInputs {
    const KIND: &'static str = "weight-inputs";
    const FIELDS: &'static [Field] = &[
        field("model", Input(COMPUTES)),
        field("context", Setting),
        field("engine", Engine(Evaluator)),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::INPUTS.as_str()];
}
