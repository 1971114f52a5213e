//! Holds figures against bounds.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::metrics::MetricsRow;
use super::metrics::ROW;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::Role::Fields;
use super::role::Role::Setting;
use super::role::field;

/// Holds figures against bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The rows that are judged.
    pub rows: Vec<MetricsRow>,
    /// The rows that `baseline` means, one for each evaluation.
    pub baseline: Vec<MetricsRow>,
    /// The requirements, as written.
    pub require: Vec<String>,
    /// The confidence of comparisons, in millionths.
    pub confidence: u64,
    /// Resamples of the bootstrap.
    pub bootstrap: u32,
    /// The seed of the bootstrap.
    pub seed: u64,
}

impl Gate {
    /// Output: the result of every requirement.
    pub const VERDICT: Output = Output::new("verdict");
    /// How many requirements there are.
    pub const CHECKS: Fact<u64> = Fact::new("checks");
    /// How many are not met.
    pub const FAILED: Fact<u64> = Fact::new("failed");
}

impl Document for Gate {
    const KIND: &'static str = "gate";
    const FIELDS: &'static [Field] = &[
        field("rows", Fields(ROW)),
        field("baseline", Fields(ROW)),
        field("require", Setting),
        field("confidence", Setting),
        field("bootstrap", Setting),
        field("seed", Setting),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::VERDICT.as_str()];
}
