//! The document as the checker reads it.

use serde::Deserialize;

/// Name and version of the documents that are read.
pub const SCHEMA: &str = "forge.certificate.v1";

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
    pub(crate) capacities: Vec<Capacity>,
    pub(crate) groups: Vec<Group>,
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
        }
        hasher.finalize().to_hex().to_string()
    }
}
