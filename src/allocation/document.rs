//! Answers as a document that anybody can check: `forge.certificate.v1`.

use std::fmt::Display;
use std::fmt::Write as _;

use serde::Serialize;

use crate::allocation::answer::Answer;
use crate::allocation::answer::Status;
use crate::allocation::problem::Problem;
use crate::allocation::scale::Scale;

/// Name and version of the document.
pub const SCHEMA: &str = "forge.certificate.v1";

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    problem: ProblemOf<'a>,
    answers: Vec<AnswerOf<'a>>,
    /// BLAKE3 of the text form.
    digest: String,
}

#[derive(Serialize)]
struct ProblemOf<'a> {
    unit_exponent: i32,
    capacities: Vec<CapacityOf<'a>>,
    groups: Vec<GroupOf<'a>>,
}

#[derive(Serialize)]
struct CapacityOf<'a> {
    name: &'a str,
    constant: u64,
}

#[derive(Serialize)]
struct GroupOf<'a> {
    name: &'a str,
    options: Vec<OptionOf<'a>>,
}

#[derive(Serialize)]
struct OptionOf<'a> {
    name: &'a str,
    loss: i64,
    uses: &'a [u64],
}

#[derive(Serialize)]
struct AnswerOf<'a> {
    claim: &'static str,
    limits: &'a [u64],
    choice: Vec<&'a str>,
    loss: i64,
    uses: &'a [u64],
    multipliers: MultipliersOf<'a>,
    bound: String,
    least: i64,
    gap: u64,
}

#[derive(Serialize)]
struct MultipliersOf<'a> {
    numerators: &'a [u64],
    denominator: u64,
}

/// Returns the certificate of answers to a problem, as JSON. Answers of [`Status::NothingFound`] prove nothing and are left
/// out.
///
/// # Errors
/// As `serde_json`; not for documents of this form.
pub fn document(problem: &Problem, scale: Scale, answers: &[Answer]) -> Result<String, serde_json::Error> {
    let groups = problem.groups().iter().map(|group| GroupOf {
        name: &group.name,
        options: group
            .options
            .iter()
            .map(|option| OptionOf {
                name: &option.name,
                loss: option.loss,
                uses: &option.uses,
            })
            .collect(),
    });
    let capacities = problem.capacities().iter().map(|capacity| CapacityOf {
        name: &capacity.name,
        constant: capacity.constant,
    });
    let answers: Vec<AnswerOf<'_>> = answers.iter().filter_map(|answer| answer_of(problem, answer)).collect();
    let text = text_of(problem, scale, &answers);
    let document = Document {
        schema: SCHEMA,
        problem: ProblemOf {
            unit_exponent: scale.exponent(),
            capacities: capacities.collect(),
            groups: groups.collect(),
        },
        answers,
        digest: blake3::hash(text.as_bytes()).to_string(),
    };
    serde_json::to_string(&document)
}

fn answer_of<'a>(problem: &'a Problem, answer: &'a Answer) -> Option<AnswerOf<'a>> {
    let claim = match answer.status {
        Status::Optimal => "optimal",
        Status::Gap => "gap",
        Status::BelowMinimum => "below-minimum",
        Status::NothingFound => return None,
    };
    let chosen = problem.groups().iter().zip(&answer.choice);
    Some(AnswerOf {
        claim,
        limits: &answer.limits,
        choice: chosen
            .map(|(group, option)| group.options[*option].name.as_str())
            .collect(),
        loss: answer.loss,
        uses: &answer.uses,
        multipliers: MultipliersOf {
            numerators: &answer.multipliers.numerators,
            denominator: answer.multipliers.denominator,
        },
        bound: answer.bound.to_string(),
        least: answer.least(),
        gap: answer.gap(),
    })
}

/// The document as text, for its digest: a line for each fact, its fields parted by tabs. Names are written as JSON
/// strings, so that no name can look like a field.
fn text_of(problem: &Problem, scale: Scale, answers: &[AnswerOf<'_>]) -> String {
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let mut text = format!("unit\t{}\n", scale.exponent());
    for capacity in problem.capacities() {
        let _ = writeln!(text, "capacity\t{}\t{}", quoted(&capacity.name), capacity.constant);
    }
    for group in problem.groups() {
        let _ = writeln!(text, "group\t{}", quoted(&group.name));
        for option in &group.options {
            let _ = write!(text, "option\t{}\t{}", quoted(&option.name), option.loss);
            list(&mut text, "", &option.uses);
        }
    }
    for answer in answers {
        let _ = writeln!(text, "answer\t{}", answer.claim);
        list(&mut text, "limits", answer.limits);
        list(&mut text, "choice", answer.choice.iter().map(|name| quoted(name)));
        let _ = writeln!(text, "loss\t{}", answer.loss);
        list(&mut text, "uses", answer.uses);
        list(&mut text, "multipliers", answer.multipliers.numerators);
        let _ = writeln!(text, "denominator\t{}", answer.multipliers.denominator);
        let _ = writeln!(
            text,
            "bound\t{}\nleast\t{}\ngap\t{}",
            answer.bound, answer.least, answer.gap
        );
    }
    text
}

fn list(text: &mut String, kind: &str, fields: impl IntoIterator<Item: Display>) {
    text.push_str(kind);
    for field in fields {
        let _ = write!(text, "\t{field}");
    }
    text.push('\n');
}
