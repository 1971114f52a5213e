//! The document as the checker reads it.

use serde::Deserialize;

/// Name and version of the documents that are read.
pub const SCHEMA: &str = "forge.certificate.v2";

/// An older version, which is still read: it does not say what its losses are.
pub(super) const SCHEMA_1: &str = "forge.certificate.v1";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Document {
    pub(crate) schema: String,
    pub(crate) problem: Problem,
    pub(crate) answers: Vec<Answer>,
    pub(crate) digest: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Problem {
    pub(crate) unit_exponent: i32,
    /// `None` in version 1.
    #[serde(default)]
    pub(crate) losses: Option<Losses>,
    #[serde(default)]
    pub(crate) base: Option<Base>,
    pub(crate) capacities: Vec<Capacity>,
    pub(crate) groups: Vec<Group>,
}

/// What the losses of the options are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Losses {
    /// Losses of the options themselves.
    Absolute,
    /// Differences to the loss of the base.
    Difference,
}

impl Losses {
    /// Returns the word for it in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Difference => "difference",
        }
    }
}

/// The choice that losses are differences to.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Base {
    pub(crate) choice: Vec<String>,
    pub(crate) loss: String,
    pub(crate) penalty: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Capacity {
    pub(crate) name: String,
    pub(crate) constant: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) options: Vec<Choice>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Choice {
    pub(crate) name: String,
    pub(crate) loss: i64,
    pub(crate) uses: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Claim {
    Optimal,
    Gap,
    BelowMinimum,
}

impl Claim {
    fn word(self) -> &'static str {
        match self {
            Self::Optimal => "optimal",
            Self::Gap => "gap",
            Self::BelowMinimum => "below-minimum",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Answer {
    pub(crate) claim: Claim,
    pub(crate) limits: Vec<u64>,
    pub(crate) choice: Vec<String>,
    pub(crate) loss: i64,
    pub(crate) uses: Vec<u64>,
    pub(crate) multipliers: Multipliers,
    pub(crate) bound: String,
    pub(crate) least: i64,
    pub(crate) gap: u64,
    #[serde(default)]
    pub(crate) predicted: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Multipliers {
    pub(crate) numerators: Vec<u64>,
    pub(crate) denominator: u64,
}

impl Document {
    /// The digest of the document: BLAKE3 of its text form, which `cache-schema/README.md` describes.
    pub(crate) fn digest_of_text(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut line = |kind: &str, fields: &[String]| {
            hasher.update(kind.as_bytes());
            for field in fields {
                hasher.update(b"\t");
                hasher.update(field.as_bytes());
            }
            hasher.update(b"\n");
        };
        let name = |name: &String| serde_json::Value::String(name.clone()).to_string();
        let numbers = |numbers: &[u64]| -> Vec<String> { numbers.iter().map(u64::to_string).collect() };
        let problem = &self.problem;
        line("unit", &[problem.unit_exponent.to_string()]);
        if let Some(losses) = problem.losses {
            line("losses", &[losses.as_str().to_owned()]);
        }
        if let Some(base) = &problem.base {
            let choice: Vec<String> = base.choice.iter().map(name).collect();
            line("base", &choice);
            line("base-loss", std::slice::from_ref(&base.loss));
            line("penalty", &[base.penalty.to_string()]);
        }
        for capacity in &problem.capacities {
            line("capacity", &[name(&capacity.name), capacity.constant.to_string()]);
        }
        for group in &problem.groups {
            line("group", &[name(&group.name)]);
            for option in &group.options {
                let mut fields = vec![name(&option.name), option.loss.to_string()];
                fields.extend(numbers(&option.uses));
                line("option", &fields);
            }
        }
        for answer in &self.answers {
            line("answer", &[answer.claim.word().to_owned()]);
            line("limits", &numbers(&answer.limits));
            let choice: Vec<String> = answer.choice.iter().map(name).collect();
            line("choice", &choice);
            line("loss", &[answer.loss.to_string()]);
            line("uses", &numbers(&answer.uses));
            line("multipliers", &numbers(&answer.multipliers.numerators));
            line("denominator", &[answer.multipliers.denominator.to_string()]);
            line("bound", std::slice::from_ref(&answer.bound));
            line("least", &[answer.least.to_string()]);
            line("gap", &[answer.gap.to_string()]);
            if let Some(predicted) = &answer.predicted {
                line("predicted", std::slice::from_ref(predicted));
            }
        }
        hasher.finalize().to_hex().to_string()
    }
}
