//! `gate`: compares figures with requirements.

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

/// Compares figures with requirements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The rows that the requirements apply to.
    pub rows: Vec<MetricsRow>,
    /// The rows that `baseline` refers to, one for each evaluation.
    pub baseline: Vec<MetricsRow>,
    /// The requirements, as the recipe writes them.
    pub require: Vec<String>,
    /// The confidence level of comparisons, in millionths.
    pub confidence: u64,
    /// The number of bootstrap resamples.
    pub bootstrap: u32,
    /// The seed of the bootstrap.
    pub seed: u64,
}

impl Gate {
    /// Output: the result of every requirement.
    pub const VERDICT: Output = Output::new("verdict");
    /// The number of requirements.
    pub const CHECKS: Fact<u64> = Fact::new("checks");
    /// The number of requirements that are not met.
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
