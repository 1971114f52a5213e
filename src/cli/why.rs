//! `forge why`: why a step or a tensor runs, or when and why it ran last.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::progress::Progress;
use crate::cli::selection;
use crate::cli::signals;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::observer::Silent;
use crate::prose;
use crate::session::Reasons;
use crate::session::SessionError;
use crate::step::Class;
use crate::vocab::verdict::Verdict;
use crate::why::Answer;
use crate::why::Overview;
use crate::why::ReadFiles;
use crate::why::Root;
use crate::why::RootKind;
use crate::why::Tree;

/// So many steps that follow are named.
const NAMED: usize = 12;

pub(super) fn run(args: &args::Why, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let words = args.step.iter().chain(&args.tensor).cloned();
    let (recipe, words) = selection::recipe_and_steps(&args.recipe, words, files)?;
    let (step, tensor) = match words.as_slice() {
        [] => (None, None),
        [step] => (Some(step), None),
        [step, tensor] => (Some(step), Some(tensor.as_str())),
        [_, _, more, ..] => {
            let error = Diagnostic::error(format!("`{more}` was given after a step and a tensor")).code("usage");
            let hint = "`forge why [RECIPE] [STEP] [TENSOR]`: a recipe is a file, or comes after `-f`";
            return Err(Failure::new(Exit::Usage, error.hint(hint)));
        }
    };
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    let target = Target {
        out: args.out.clone(),
        ..Target::whole(recipe, None)
    };
    let (session, _) = files.session(&target, terminal, cancel)?;
    let read = if args.no_read {
        ReadFiles::Never
    } else {
        ReadFiles::Unknown
    };
    let wanted: Vec<String> = step.into_iter().cloned().collect();
    let reasons = if terminal.is_json() {
        session.why(&wanted, tensor, read, &Silent)
    } else {
        let progress = Progress::new(terminal, session.graph());
        session.why(&wanted, tensor, read, &progress)
    };
    let reasons = match reasons {
        Err(SessionError::Step(error)) if error.class() == Class::Stopped => return Ok(Exit::Stopped),
        reasons => reasons.map_err(|error| session_failure(&error))?,
    };
    match &reasons {
        Reasons::Overview(overview) if terminal.is_json() => terminal.data(&line("why-recipe", &shown(overview))),
        Reasons::Overview(overview) => terminal.data(overview_text(overview).as_str()),
        Reasons::Steps(answers) => {
            for (number, answer) in answers.iter().enumerate() {
                if terminal.is_json() {
                    terminal.data(&line("why", &json_of(answer)));
                } else {
                    if number > 0 {
                        terminal.data("\n");
                    }
                    terminal.data(text(answer, terminal.verbose).as_str());
                }
            }
        }
    }
    Ok(Exit::Done)
}

fn json_of(document: &impl Serialize) -> Value {
    serde_json::to_value(document).unwrap_or_default()
}

/// The overview with its pairs as objects.
fn shown(overview: &Overview) -> Value {
    json!({
        "schema": overview.schema,
        "recipe": overview.recipe,
        "steps": overview.steps.iter().map(|(step, verdict)| json!({ "step": step, "verdict": verdict })).collect::<Vec<_>>(),
        "causes": overview.causes.iter()
            .map(|(root, follows)| json!({ "root": root, "follows": follows }))
            .collect::<Vec<_>>(),
    })
}

/// A message that contains a document with its own schema.
fn line(reason: &str, answer: &Value) -> String {
    let line = json!({ "schema": json::SCHEMA, "reason": reason, "answer": answer });
    format!("{line}\n")
}

fn text(answer: &Answer, verbose: bool) -> Block {
    let mut text = Block::new();
    let name = match &answer.tensor {
        Some(tensor) => format!("{} {tensor}", answer.step),
        None => answer.step.clone(),
    };
    let _ = writeln!(text, "{}  {name}: {}", answer.verdict, answer.why);
    if !answer.roots.is_empty() {
        let _ = writeln!(text, "\nbecause");
        for root in &answer.roots {
            root_text(root, "  ", &mut text);
        }
        follows(&answer.follows, &mut text);
    }
    if !answer.tree.causes.is_empty() {
        let _ = writeln!(text, "\nhow this leads to {}", answer.step);
        let mut seen = BTreeSet::new();
        for cause in &answer.tree.causes {
            tree(cause, 1, &mut seen, &mut text);
        }
    }
    if let Some(compared) = &answer.compared
        && (verbose || answer.tensor.is_some() || answer.roots.iter().any(|root| root.cause == RootKind::New))
        && !answer.fields.is_empty()
    {
        let _ = writeln!(
            text,
            "\ncompared with `{}` of recipe `{}`",
            compared.step, compared.recipe
        );
        for field in &answer.fields {
            let value = |value: &Option<String>| short(value.as_deref().unwrap_or("nothing"));
            let from = field
                .from
                .as_ref()
                .map(|from| format!("  from {from}"))
                .unwrap_or_default();
            let _ = writeln!(
                text,
                "  {}: {} -> {}{from}",
                field.field.trim_start_matches("inputs."),
                value(&field.before),
                value(&field.after)
            );
        }
    }
    match (&answer.last_ran, answer.verdict) {
        (Some(ran), _) => {
            let when = ran.started.as_deref();
            let when = when.map_or_else(|| "at an unknown time".to_owned(), |time| format!("on {time}"));
            let of = match &ran.recipe {
                Some(recipe) if *recipe != answer.recipe || ran.step != answer.step => {
                    format!(" for `{}` of recipe `{recipe}`", ran.step)
                }
                _ => String::new(),
            };
            let _ = writeln!(
                text,
                "\nit last ran {when}{of} (took {}, run {})",
                prose::duration_ms(ran.cost_ms),
                ran.run
            );
            if let Some(why) = &ran.why {
                let _ = writeln!(text, "  because {why}");
            }
            for began in &ran.began {
                let _ = writeln!(text, "  in that run {}: {}", began.step, began.why);
                for change in &began.changes {
                    let value = |value: &Option<String>| short(value.as_deref().unwrap_or("nothing"));
                    let field = change.field.trim_start_matches("inputs.");
                    let _ = writeln!(
                        text,
                        "    {field}: {} -> {}",
                        value(&change.before),
                        value(&change.after)
                    );
                }
            }
        }
        (None, Verdict::Hit) => {
            let _ = writeln!(text, "\nno recorded run has run it");
        }
        _ => {}
    }
    text
}

/// Adds a root cause; its first line begins after `indent`.
fn root_text(root: &Root, indent: &str, text: &mut Block) {
    let place = match &root.step {
        Some(step) => format!("{step}: "),
        None => String::new(),
    };
    let _ = writeln!(text, "{indent}{place}{}", root.what);
    for detail in &root.details {
        let change = match (&detail.before, &detail.after) {
            (Some(before), Some(after)) => format!(": {before} -> {after}"),
            (Some(before), None) => format!(": {before} -> gone"),
            (None, Some(after)) => format!(": new, {after}"),
            (None, None) => String::new(),
        };
        let _ = writeln!(text, "    {}{change}", detail.name);
    }
}

fn follows(steps: &[String], text: &mut Block) {
    if steps.is_empty() {
        return;
    }
    let verb = if steps.len() == 1 { "follows" } else { "follow" };
    let mut names: Vec<&str> = steps.iter().take(NAMED).map(String::as_str).collect();
    let more = format!("{} more", steps.len().saturating_sub(NAMED));
    if steps.len() > NAMED {
        names.push(&more);
    }
    let _ = writeln!(
        text,
        "and {} {verb}: {}",
        prose::count(steps.len() as u64, "step"),
        names.join(", ")
    );
}

/// Several steps may have the same cause: it is printed once.
fn tree<'t>(node: &'t Tree, depth: usize, seen: &mut BTreeSet<&'t str>, text: &mut Block) {
    let shown = !seen.insert(&node.step) && !node.causes.is_empty();
    let again = if shown { " (as above)" } else { "" };
    let _ = writeln!(
        text,
        "{:width$}{}: {}{again}",
        "",
        node.step,
        node.what,
        width = 2 * depth
    );
    if !shown {
        for cause in &node.causes {
            tree(cause, depth + 1, seen, text);
        }
    }
}

/// Shortens a digest to its first digits.
pub(super) fn short(value: &str) -> String {
    let plain = value.trim_matches('"');
    let (hash, length) = plain.split_once(':').unwrap_or((plain, ""));
    if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let size = length.parse().map(|length| format!(" ({})", prose::bytes(length)));
        return format!("{}{}", &hash[..8], size.unwrap_or_default());
    }
    value.to_owned()
}

fn overview_text(overview: &Overview) -> Block {
    let mut text = Block::new();
    for (root, steps) in &overview.causes {
        root_text(root, "", &mut text);
        let _ = write!(text, "  ");
        follows(steps, &mut text);
        if steps.is_empty() {
            let _ = writeln!(text, "no step follows");
        }
    }
    let counts = overview.counts();
    if counts.steps() == counts.of(Verdict::Hit) {
        let _ = writeln!(text, "why: nothing to do ({} hit)", counts.of(Verdict::Hit));
    } else {
        let steps = prose::count(counts.steps() as u64, "step");
        let _ = writeln!(text, "why: {steps}: {counts}");
    }
    text
}
