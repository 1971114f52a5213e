//! `forge policy`: choices of tensor types, and the proofs that come with them.

use serde_json::json;

use crate::certificate;
use crate::certificate::Checked;
use crate::certificate::Losses;
use crate::certificate::Predicted;
use crate::certificate::Verdict;
use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::policy_source::read;
use crate::cli::terminal::Terminal;
use crate::prose;

/// The maximum length of a certificate: some hundred bytes for each option of each group.
const CERTIFICATE_CAP: u64 = 1 << 30;

pub(super) fn run(args: &args::Policy, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    match args {
        args::Policy::Check(args) => check(args, files, terminal),
        args::Policy::Export(args) => crate::cli::policy_exchange::export(args, files, terminal),
        args::Policy::Import(args) => crate::cli::policy_exchange::import(args, files, terminal),
        args::Policy::Groups(args) => crate::cli::policy_groups::run(args, files, terminal),
        args::Policy::Show(args) => crate::cli::policy_show::run(args, files, terminal),
        args::Policy::Diff(args) => crate::cli::policy_show::diff(args, files, terminal),
        args::Policy::Chart(args) => crate::cli::policy_chart::run(args, files, terminal),
    }
}

fn check(args: &args::PolicyCheck, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut diagnostics = Vec::new();
    let mut unread = 0;
    let mut exit = Exit::Recipe;
    for path in &args.certificates {
        let text = match read(path, CERTIFICATE_CAP, files) {
            Ok(text) => text,
            Err(failure) => {
                exit = failure.exit;
                unread += 1;
                diagnostics.extend(failure.diagnostics);
                continue;
            }
        };
        match certificate::check(&text, args.states) {
            Ok(answers) if answers.is_empty() => {
                let refused = Diagnostic::error(format!("`{path}` is refused")).code("policy::certificate");
                diagnostics.push(refused.caused_by("it makes no claim"));
            }
            Ok(answers) => {
                for (at, answer) in answers.iter().enumerate() {
                    if terminal.is_json() {
                        terminal.data(&line(path, at + 1, answer));
                    } else {
                        terminal.data(Block::of(format_args!("{}", sentence(path, at + 1, answer))).as_str());
                    }
                }
            }
            Err(wrong) => {
                let refused = Diagnostic::error(format!("`{path}` is refused"))
                    .code("policy::certificate")
                    .caused_by(wrong.to_string());
                diagnostics.push(match wrong {
                    certificate::CertificateError::NotShown { .. } => {
                        refused.hint("the claim may still be true: allow a longer search with `--states N`")
                    }
                    _ => refused.hint("do not rely on it: create it again"),
                });
            }
        }
    }
    if diagnostics.is_empty() {
        Ok(Exit::Done)
    } else {
        // One that is refused is what matters most.
        let exit = if diagnostics.len() > unread { Exit::Recipe } else { exit };
        Err(Failure { diagnostics, exit })
    }
}

/// The loss that units stand for.
fn loss_of(units: f64, exponent: i32) -> f64 {
    units * 2_f64.powi(-exponent)
}

fn sentence(path: &str, number: usize, answer: &Checked) -> String {
    let loss = loss_of(answer.loss as f64, answer.unit_exponent);
    let bytes = |sizes: &[u64]| {
        let sizes: Vec<String> = sizes.iter().map(|size| prose::bytes(*size)).collect();
        sizes.join(" and ")
    };
    let (uses, limits) = (bytes(&answer.uses), bytes(&answer.limits));
    // A difference is no loss of the model.
    let loss = match answer.predicted {
        Some(Predicted {
            loss: predicted,
            base,
            changes,
        }) => {
            let types = prose::count(changes as u64, "type");
            let differ = if changes == 1 { "differs" } else { "differ" };
            format!(
                "predicted loss {predicted:.6e} (difference {loss:.6e} to the measured loss {base:.6e}; {types} {differ})"
            )
        }
        None => format!("{loss:.6e}"),
    };
    let word = if answer.predicted.is_some() { "" } else { "loss " };
    match answer.verdict {
        Verdict::Optimal => {
            format!("{path}: answer {number} is optimal: {word}{loss} in {uses}, of at most {limits}\n")
        }
        Verdict::Gap { gap } => {
            let gap = loss_of(gap as f64, answer.unit_exponent);
            format!(
                "{path}: answer {number} is at most {gap:.3e} above the least possible loss: {loss} in {uses}, of at most \
                 {limits}\n"
            )
        }
        Verdict::BelowMinimum => {
            format!("{path}: answer {number} is the smallest possible: {uses}; the limit of {limits} cannot be met\n")
        }
    }
}

fn line(path: &str, number: usize, answer: &Checked) -> String {
    let (verdict, gap) = match answer.verdict {
        Verdict::Optimal => ("optimal", Some(0)),
        Verdict::Gap { gap } => ("gap", Some(gap)),
        Verdict::BelowMinimum => ("below-minimum", None),
    };
    let line = json!({
        "schema": crate::cli::json::SCHEMA,
        "reason": "certificate",
        "file": path,
        "answer": number,
        "verdict": verdict,
        "limits": answer.limits,
        "uses": answer.uses,
        "loss": loss_of(answer.loss as f64, answer.unit_exponent),
        "losses": answer.losses.map(Losses::as_str),
        "predicted": answer.predicted.map(|predicted| predicted.loss),
        "base_loss": answer.predicted.map(|predicted| predicted.base),
        "gap": gap.map(|gap| loss_of(gap as f64, answer.unit_exponent)),
    });
    format!("{line}\n")
}
