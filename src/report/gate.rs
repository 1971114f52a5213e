//! The evidence of a gate: every requirement for every candidate, met or not.

use serde::Deserialize;
use serde::Serialize;

/// The name of the form of a gate's verdict.
pub const SCHEMA: &str = "forge.gate.v1";

/// How one requirement fared for one candidate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// The candidate's name.
    pub candidate: String,
    /// The evaluation's name.
    pub eval: String,
    /// The requirement, as written.
    pub require: String,
    /// What was measured.
    pub found: f64,
    /// What it was compared with.
    pub bound: f64,
    /// For a comparison with the baseline: the interval of the paired difference, candidate less bound.
    pub difference: Option<[f64; 2]>,
    /// Whether it is met.
    pub met: bool,
    /// The comparison as a sentence.
    pub evidence: String,
}

/// A gate's verdict.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// `forge.gate.v1`.
    pub schema: String,
    /// All checks, candidate by candidate.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// Joins checks to a verdict.
    pub fn new(checks: Vec<Check>) -> Self {
        Self {
            schema: SCHEMA.to_owned(),
            checks,
        }
    }

    /// Returns the checks that are not met.
    pub fn failures(&self) -> Vec<&Check> {
        self.checks.iter().filter(|check| !check.met).collect()
    }
}
