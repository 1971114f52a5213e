//! The evidence of a gate: every requirement for every candidate, met or not.

use serde::Deserialize;
use serde::Serialize;

use crate::requirement::Bound;
use crate::requirement::Figure;
use crate::requirement::Requirement;

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

impl Check {
    /// Returns the requirement and what was measured, rounded: `kld_mean < 0.004 (is 0.00499)`.
    pub fn shown(&self) -> String {
        let Ok(require) = Requirement::parse(&self.require) else {
            return format!("{} (is {})", self.require, self.found);
        };
        let found = require.shown(self.found, self.bound);
        // Means over chunks are compared, which these figures are functions of.
        let of = match require.figure {
            Figure::Ppl => " of ln PPL",
            Figure::RmsDp => " of squares",
            _ => "",
        };
        let difference = self.difference.map_or_else(String::new, |[low, high]| {
            format!("; interval of the paired difference{of}: {low:+.2e} to {high:+.2e}")
        });
        match require.bound {
            Bound::Baseline { .. } => {
                let bound = require.shown(self.bound, self.found);
                format!("{require} (is {found}, the bound is {bound}{difference})")
            }
            Bound::Number { .. } | Bound::Size(_) => format!("{require} (is {found})"),
        }
    }
}

/// Returns checks as a list: each as [`Check::shown`], with the candidate where there are several.
pub fn shown(checks: &[Check], most: usize) -> String {
    let one = checks.windows(2).all(|pair| pair[0].candidate == pair[1].candidate);
    let of = |check: &Check| {
        if one {
            check.shown()
        } else {
            format!("`{}` {}", check.candidate, check.shown())
        }
    };
    let mut shown: Vec<String> = checks.iter().take(most).map(of).collect();
    if checks.len() > most {
        shown.push(format!("{} more", checks.len() - most));
    }
    shown.join("; ")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(candidate: &str, require: &str, found: f64, bound: f64) -> Check {
        Check {
            candidate: candidate.to_owned(),
            eval: "quality".to_owned(),
            require: require.to_owned(),
            found,
            bound,
            difference: None,
            met: false,
            evidence: String::new(),
        }
    }

    #[test]
    fn requirements_are_shown_with_what_was_measured() {
        let kld = check("a", "kld_mean < 0.004", 0.004_991_23, 0.004);
        let size = check("a", "bytes <= 6 MiB", 7_000_000.0, 6_291_456.0);
        assert_eq!(shown(std::slice::from_ref(&kld), 3), "kld_mean < 0.004 (is 0.00499)");
        assert_eq!(
            shown(&[kld.clone(), size.clone()], 3),
            "kld_mean < 0.004 (is 0.00499); bytes <= 6 MiB (is 6.68 MiB)"
        );
        let other = Check {
            candidate: "b".to_owned(),
            ..size
        };
        assert_eq!(
            shown(&[kld, other.clone(), other], 2),
            "`a` kld_mean < 0.004 (is 0.00499); `b` bytes <= 6 MiB (is 6.68 MiB); 1 more"
        );
        let compared = Check {
            difference: Some([-0.0001, 0.0003]),
            ..check("a", "kld_mean < 0.9 * baseline", 0.0012, 0.0011)
        };
        assert_eq!(
            compared.shown(),
            "kld_mean < 0.9 * baseline (is 0.00120, the bound is 0.00110; interval of the paired difference: -1.00e-4 to +3.00e-4)"
        );
    }
}
