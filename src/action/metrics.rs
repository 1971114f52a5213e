//! `metrics`: the table of candidates.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
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
use crate::vocab::EngineRole::Evaluator;

/// A row of the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// The name of the evaluation.
    pub eval: String,
    /// The name of the candidate.
    pub candidate: String,
    /// The digest of the candidate's file.
    pub file: BlobDigest,
    /// The number of weights in the file.
    pub elements: u64,
    /// The digest of its figures.
    pub figures: BlobDigest,
    /// The held-out KLD that its policy measured: mean and standard deviation over chunks in trillionths of a nat, number of chunks,
    /// tokens per chunk.
    pub probed: Option<String>,
    /// The engine that computed the figures.
    pub engine: Fingerprint,
    /// The texts that the candidate was calibrated on and that overlap with the evaluation's, where the recipe allows that.
    pub overlaps: Vec<RowOverlap>,
}

/// A text that a candidate was calibrated on and that overlaps with the text of its evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowOverlap {
    /// The name of the corpus that the candidate was calibrated on.
    pub corpus: String,
    /// The number of files of the evaluation that the corpus has, too.
    pub same_files: u64,
    /// The share of the evaluation's text that stands in the corpus, in thousandths.
    pub share: u32,
    /// The number of words of the longest common passage. Not counted where all files are the same.
    pub passage: Option<u64>,
}

/// Builds the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The name of the recipe.
    pub recipe: String,
    /// The rows, in the recipe's order.
    pub rows: Vec<MetricsRow>,
    /// The version of the table's format.
    pub table: u32,
}

/// The roles of the fields of an overlap.
const OVERLAP: &[Field] = &[
    field("corpus", Setting),
    field("same_files", PartOf(&[output("overlap", "overlap")])),
    field("share", PartOf(&[output("overlap", "overlap")])),
    field("passage", PartOf(&[output("overlap", "overlap")])),
];

/// The roles of the fields of a row.
pub(super) const ROW: &[Field] = &[
    field("eval", Setting),
    field("candidate", Setting),
    field("file", PartOf(&[output("promote", "assembly")])),
    field("elements", PartOf(&[output("promote", "assembly")])),
    field("figures", Input(&[output("eval", "figures")])),
    field("probed", PartOf(&[output("policy", "policy")])),
    field("engine", Engine(Evaluator)),
    field("overlaps", Fields(OVERLAP)),
];

impl Metrics {
    /// Output: the table as JSON.
    pub const JSON: Output = Output::new("json");
    /// Output: the table as Markdown.
    pub const MARKDOWN: Output = Output::new("markdown");
    /// The number of rows.
    pub const ROWS: Fact<u64> = Fact::new("rows");
    /// The number of rows on the Pareto front.
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
