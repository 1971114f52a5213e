//! `forge log`: the recorded runs, and what each did.

use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::cli::why::short;
use crate::prose;
use crate::runs;
use crate::runs::Run;
use crate::runs::RunError;
use crate::runs::State;
use crate::runs::StepRun;
use crate::session::SessionError;
use crate::store::Store;
use crate::vocab::verdict::Word;

/// The maximum length of a log of a step: ten thousand lines of a thousand bytes.
const LOG_CAP: u64 = 64 << 20;

pub(super) fn run(args: &args::Log, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = files.store(terminal)?;
    match &args.command {
        None => list(&store, args.number, terminal),
        Some(args::LogCommand::Show(show)) => show_run(&store, show, terminal),
    }
}

fn failure(error: RunError) -> Failure {
    let message = error.to_string();
    match error {
        RunError::Store(error) => session_failure(&SessionError::Store(error)),
        RunError::Ambiguous { found, .. } => {
            let names: Vec<&str> = found.iter().map(String::as_str).collect();
            let diagnostic = Diagnostic::error(message).code("usage::no-such-run");
            Failure::new(
                Exit::Usage,
                diagnostic.hint(format!("the matching runs are {}", prose::names(&names, 5))),
            )
        }
        RunError::Unknown { .. } => {
            let diagnostic = Diagnostic::error(message).code("usage::no-such-run");
            Failure::new(Exit::Usage, diagnostic.hint("`forge log -n 0` lists all runs"))
        }
        RunError::None => {
            let diagnostic = Diagnostic::error(message).code("usage::no-such-run");
            Failure::new(
                Exit::Usage,
                diagnostic.hint("only builds that run something are recorded; `--cache-dir DIR` selects another store"),
            )
        }
    }
}

fn read(store: &Store, id: &str) -> Result<Run, Failure> {
    runs::read(store, id).map_err(|error| session_failure(&SessionError::Store(error)))
}

fn list(store: &Store, number: usize, terminal: &Terminal) -> Result<Exit, Failure> {
    let ids = store.runs().map_err(|error| failure(error.into()))?;
    let most = if number == 0 { usize::MAX } else { number };
    let mut shown = 0;
    let mut rows = Vec::new();
    for id in ids.iter().rev().take(most) {
        let run = read(store, id)?;
        shown += 1;
        if terminal.is_json() {
            let line = json!({
                "schema": json::SCHEMA, "reason": "run", "run": run.run, "started": run.started, "recipe": run.recipe,
                "state": run.state, "exit": exit(run.state), "ran": run.ran, "wrote": run.wrote, "hit": run.hit,
                "failed": run.failed, "skipped": run.skipped, "elapsed_ms": run.elapsed_ms,
            });
            terminal.data(&format!("{line}\n"));
        } else {
            rows.push(row_of(&run));
        }
    }
    if !terminal.is_json() {
        terminal.data(&table::rows(&rows, 2));
        if shown == 0 {
            terminal.line("this store has no recorded runs");
        } else if shown < ids.len() {
            terminal.line(&format!(
                "{} earlier runs are not shown: `forge log -n 0`",
                ids.len() - shown
            ));
        }
    }
    Ok(Exit::Done)
}

/// The status that the process ended with; `None` if it is running or was killed.
fn exit(state: State) -> Option<u8> {
    match state {
        State::Done => Some(0),
        State::Failed => Some(1),
        State::Environment => Some(3),
        // The signal decides it, and is not on record.
        State::Stopped | State::Running | State::Killed | State::OtherVersion => None,
    }
}

fn state(state: State) -> String {
    match (state, exit(state)) {
        (State::Running, _) => "running".to_owned(),
        (State::Stopped, _) => "stopped".to_owned(),
        (State::OtherVersion, _) => "recorded by another version of forge".to_owned(),
        (_, Some(0)) => "done".to_owned(),
        (_, Some(exit)) => format!("failed, exit {exit}"),
        _ => "killed".to_owned(),
    }
}

fn row_of(run: &Run) -> Vec<Cell> {
    let counts = run.counts();
    let counts = counts.all().map(|(word, steps)| right(format!("{steps} {word}")));
    let mut row = vec![left(&run.run), left(run.recipe.as_deref().unwrap_or("?"))];
    row.extend(counts);
    row.extend([right(prose::duration_ms(run.elapsed_ms)), left(state(run.state))]);
    row
}

fn show_run(store: &Store, show: &args::LogShow, terminal: &Terminal) -> Result<Exit, Failure> {
    let id = runs::find(store, &show.run).map_err(failure)?;
    let run = read(store, &id)?;
    let Some(wanted) = &show.step else {
        if terminal.is_json() {
            let line = json!({ "schema": json::SCHEMA, "reason": "run-shown", "exit": exit(run.state), "record": run });
            terminal.data(&format!("{line}\n"));
        } else {
            terminal.data(text(&run).as_str());
        }
        return Ok(Exit::Done);
    };
    let mut steps: Vec<&StepRun> = run.steps.iter().filter(|step| step.step == *wanted).collect();
    if steps.is_empty() {
        // All variants of a sweep, all candidates of an evaluation.
        let variant = |step: &str| {
            step.strip_prefix(wanted.as_str())
                .is_some_and(|rest| rest.starts_with(['@', '/']))
        };
        steps.extend(run.steps.iter().filter(|step| variant(&step.step)));
    }
    if steps.is_empty() {
        let near = prose::closest(wanted, run.steps.iter().map(|step| step.step.as_str()));
        let near = near.map(|near| format!("did you mean `{near}`?"));
        let missing = Diagnostic::error(format!("run {id} has no step `{wanted}`")).code("usage::no-such-step");
        return Err(Failure::new(
            Exit::Usage,
            near.into_iter().fold(missing, Diagnostic::hint),
        ));
    }
    for step in steps {
        let log = log_of(store, step);
        if terminal.is_json() {
            let line = json!({
                "schema": json::SCHEMA, "reason": "run-step", "run": id, "step": step,
                "log": log.as_ref().and_then(|log| log.as_ref().ok()).map_or(Value::Null, |log| json!(log)),
            });
            terminal.data(&format!("{line}\n"));
        } else {
            terminal.data(step_text(step, log).as_str());
        }
    }
    Ok(Exit::Done)
}

/// Returns what the engine said; nothing where it said nothing, an error where that is no longer in the store.
fn log_of(store: &Store, step: &StepRun) -> Option<Result<String, String>> {
    let log = step.log?;
    Some(match store.read(&log, LOG_CAP) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) => Err(error.to_string()),
    })
}

fn text(run: &Run) -> Block {
    let mut text = Block::of(format_args!("run {}: {}\n", run.run, state(run.state)));
    for (name, value) in [
        ("recipe", run.recipe.clone()),
        ("started", run.started.clone()),
        ("took", Some(prose::duration_ms(run.elapsed_ms))),
        ("command", Some(run.command.join(" "))),
    ] {
        let _ = writeln!(text, "  {name:8} {}", value.unwrap_or_else(|| "unknown".to_owned()));
    }
    let width = run.steps.iter().map(|step| step.step.len()).max().unwrap_or(0);
    for step in &run.steps {
        let outcome = outcome(step);
        let _ = writeln!(
            text,
            "{outcome:10} {:width$}  {:>9}  {}",
            step.step,
            prose::duration_ms(step.elapsed_ms),
            step.summary
        );
        if let Some(why) = &step.why {
            let _ = writeln!(text, "           because {why}");
        }
        for (kind, count, cost) in kinds(step) {
            let _ = writeln!(
                text,
                "           {}, {}",
                prose::count(count, &format!("{kind} action")),
                prose::duration_ms(cost)
            );
        }
        write_details(step, &mut text);
    }
    let _ = writeln!(text, "{}", run.counts());
    text
}

fn outcome(step: &StepRun) -> &'static str {
    step.outcome.map_or("unfinished", Word::as_str)
}

/// The actions that ran, by kind: how many, and what they cost together.
fn kinds(step: &StepRun) -> Vec<(&str, u64, u64)> {
    let mut kinds: Vec<(&str, u64, u64)> = Vec::new();
    for action in step.actions.iter().filter(|action| action.outcome == "ran") {
        match kinds.iter_mut().find(|(kind, ..)| *kind == action.kind) {
            Some((_, count, cost)) => {
                *count += 1;
                *cost += action.cost_ms;
            }
            None => kinds.push((&action.kind, 1, action.cost_ms)),
        }
    }
    kinds
}

fn write_details(step: &StepRun, text: &mut Block) {
    let lines = step.warnings.iter().map(|line| ("warning", line));
    let lines = lines.chain(step.notes.iter().map(|line| ("note", line)));
    let lines = lines.chain(step.outputs.iter().map(|line| ("wrote", line)));
    for (what, line) in lines.chain(step.kept.iter().map(|line| ("repeat: sh", line))) {
        let _ = writeln!(text, "           {what} {line}");
    }
}

fn step_text(step: &StepRun, log: Option<Result<String, String>>) -> Block {
    let mut text = Block::of(format_args!(
        "{}: {} after {}\n",
        step.step,
        outcome(step),
        prose::duration_ms(step.elapsed_ms)
    ));
    if let Some(why) = &step.why {
        let _ = writeln!(text, "  because {why}");
    }
    for change in &step.changes {
        let value = |value: &Option<String>| short(value.as_deref().unwrap_or("nothing"));
        let _ = writeln!(
            text,
            "    {}: {} -> {}",
            change.field.trim_start_matches("inputs."),
            value(&change.before),
            value(&change.after)
        );
    }
    if !step.summary.is_empty() {
        let _ = writeln!(text, "  {}", step.summary);
    }
    let actions = step.actions.iter().map(|action| {
        vec![
            left(&action.outcome),
            left(&action.kind),
            left(action.key.get(..8).unwrap_or(&action.key)),
            right(prose::duration_ms(action.cost_ms)),
            right(prose::bytes(action.bytes)),
        ]
    });
    table::add(&mut text, "  ", &actions.collect::<Vec<_>>());
    write_details(step, &mut text);
    match log {
        Some(Ok(log)) => {
            let _ = writeln!(text, "  the engine's log:");
            for line in log.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
        Some(Err(error)) => {
            let _ = writeln!(text, "  the engine's log is no longer in the store: {error}");
        }
        None => {
            let _ = writeln!(text, "  the engine logged nothing");
        }
    }
    text
}
