//! Answers as a document that anybody can check: `forge.certificate.v2`.

use std::fmt::Display;
use std::fmt::Write as _;

use serde::Serialize;

use crate::allocation::answer::Answer;
use crate::allocation::answer::Status;
use crate::allocation::problem::Problem;
use crate::allocation::scale::Scale;

/// Name and version of the document.
pub const SCHEMA: &str = "forge.certificate.v2";

/// What the losses of a problem are differences to: a choice that was measured as a whole.
#[derive(Debug, Clone)]
pub struct Base<'a> {
    /// The name of its option of each group. These options have the loss 0.
    pub choice: Vec<&'a str>,
    /// Its loss.
    pub loss: f64,
    /// What the loss of every other option has on top of its difference, in units: it makes a choice with fewer changes.
    pub penalty: u64,
}

impl Base<'_> {
    /// Returns the loss that an answer is predicted to have as a whole, from the integers of the problem.
    pub fn predicted(&self, problem: &Problem, scale: Scale, answer: &Answer) -> f64 {
        let chosen = problem.groups().iter().zip(&answer.choice);
        let names = chosen.map(|(group, option)| group.options[*option].name.as_str());
        let changes = names.zip(&self.choice).filter(|(name, base)| name != *base).count();
        let units = i128::from(answer.loss) - i128::from(self.penalty) * changes as i128;
        self.loss + scale.loss_of(units)
    }
}

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
    losses: &'static str,
    base: Option<BaseOf<'a>>,
    capacities: Vec<CapacityOf<'a>>,
    groups: Vec<GroupOf<'a>>,
}

#[derive(Serialize)]
struct BaseOf<'a> {
    choice: &'a [&'a str],
    loss: String,
    penalty: u64,
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
    /// The loss as a whole, where losses are differences.
    predicted: Option<String>,
}

#[derive(Serialize)]
struct MultipliersOf<'a> {
    numerators: &'a [u64],
    denominator: u64,
}

/// Returns the certificate of answers to a problem, as JSON. Answers of [`Status::NothingFound`] prove nothing and are left
/// out. Losses are absolute; with a base, they are differences to it.
///
/// # Errors
/// As `serde_json`; not for documents of this form.
pub fn document(
    problem: &Problem,
    scale: Scale,
    base: Option<&Base<'_>>,
    answers: &[Answer],
) -> Result<String, serde_json::Error> {
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
    let answers: Vec<AnswerOf<'_>> = answers
        .iter()
        .filter_map(|answer| {
            let predicted = base.map(|base| base.predicted(problem, scale, answer));
            answer_of(problem, answer, predicted)
        })
        .collect();
    let losses = if base.is_some() { "difference" } else { "absolute" };
    let base = base.map(|base| BaseOf {
        choice: &base.choice,
        loss: format!("{:e}", base.loss),
        penalty: base.penalty,
    });
    let text = text_of(problem, scale, losses, base.as_ref(), &answers);
    let document = Document {
        schema: SCHEMA,
        problem: ProblemOf {
            unit_exponent: scale.exponent(),
            losses,
            base,
            capacities: capacities.collect(),
            groups: groups.collect(),
        },
        answers,
        digest: blake3::hash(text.as_bytes()).to_string(),
    };
    serde_json::to_string(&document)
}

fn answer_of<'a>(problem: &'a Problem, answer: &'a Answer, predicted: Option<f64>) -> Option<AnswerOf<'a>> {
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
        predicted: predicted.map(|predicted| format!("{predicted:e}")),
    })
}

/// The document as text, for its digest: a line for each fact, its fields parted by tabs. Names are written as JSON
/// strings, so that no name can look like a field.
fn text_of(
    problem: &Problem,
    scale: Scale,
    losses: &str,
    base: Option<&BaseOf<'_>>,
    answers: &[AnswerOf<'_>],
) -> String {
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let mut text = format!("unit\t{}\nlosses\t{losses}\n", scale.exponent());
    if let Some(base) = base {
        list(&mut text, "base", base.choice.iter().map(|name| quoted(name)));
        let _ = writeln!(text, "base-loss\t{}\npenalty\t{}", base.loss, base.penalty);
    }
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
        if let Some(predicted) = &answer.predicted {
            let _ = writeln!(text, "predicted\t{predicted}");
        }
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
