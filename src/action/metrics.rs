//! Makes the table of candidates.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::EngineRole::Evaluator;
use super::role::Field;
use super::role::Role::Engine;
use super::role::Role::Fields;
use super::role::Role::Input;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// A row of the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// The evaluation's name.
    pub eval: String,
    /// The candidate's name.
    pub candidate: String,
    /// Its file.
    pub file: BlobDigest,
    /// How many weights it holds.
    pub elements: u64,
    /// Its figures.
    pub figures: BlobDigest,
    /// What its policy measured of it on other text: mean and deviation of a chunk's divergence in trillionths of a nat, chunks,
    /// tokens in a chunk.
    pub probed: Option<String>,
    /// The engine that measured.
    pub engine: Fingerprint,
}

/// Makes the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The recipe's name.
    pub recipe: String,
    /// The rows, in the recipe's order.
    pub rows: Vec<MetricsRow>,
    /// The version of the table.
    pub table: u32,
}

/// The fields of a row.
pub(super) const ROW: &[Field] = &[
    field("eval", Setting),
    field("candidate", Setting),
    field("file", PartOf(&[output("promote", "assembly")])),
    field("elements", PartOf(&[output("promote", "assembly")])),
    field("figures", Input(&[output("eval", "figures")])),
    field("probed", PartOf(&[output("policy", "policy")])),
    field("engine", Engine(Evaluator)),
];

impl Metrics {
    /// Output: the table as JSON.
    pub const JSON: Output = Output::new("json");
    /// Output: the table as Markdown.
    pub const MARKDOWN: Output = Output::new("markdown");
    /// How many rows it has.
    pub const ROWS: Fact<u64> = Fact::new("rows");
    /// How many of them are on the Pareto front.
    pub const FRONT: Fact<u64> = Fact::new("front");
}

impl Document for Metrics {
    const KIND: &'static str = "metrics";
    const FIELDS: &'static [Field] = &[
        field("recipe", Setting),
        field("rows", Fields(ROW)),
        field("table", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::JSON.as_str(), Self::MARKDOWN.as_str()];
}
