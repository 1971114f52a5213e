//! What runs left on record, read back: for `forge log` and for "when did this run, and why?". A record explains; nothing
//! rests on it. Lines and fields that are not known are skipped, and so is the torn last line of a run that was killed.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::store::Store;
use crate::store::StoreError;
use crate::vocab::verdict::Counts;
use crate::vocab::verdict::StepOutcome;

/// The version of the lines of a record (`cache-schema/run.v2.json`).
pub const SCHEMA: u32 = 2;

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is active.
    Running,
    /// It has no end on record: it was killed, or the machine stopped.
    Killed,
    /// Everything was done.
    Done,
    /// The recipe or a step failed.
    Failed,
    /// The machine failed.
    Environment,
    /// The user stopped it.
    Stopped,
    /// Another version of forge recorded it, in other words: only its name, its start and its command are known.
    OtherVersion,
}

/// An action of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActionRun {
    /// Its kind.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// `ran`, `hit` or `waited`.
    pub outcome: String,
    /// How long it took, in milliseconds.
    pub cost_ms: u64,
    /// How many bytes it made.
    pub bytes: u64,
}

/// A field of a step's action that was not what it had been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Its path in the document.
    pub field: String,
    /// The value before.
    pub before: Option<String>,
    /// The value in this run.
    pub after: Option<String>,
}

/// A step of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StepRun {
    /// Its name.
    pub step: String,
    /// Why it ran; nothing where it did not.
    pub why: Option<String>,
    /// What of its action had changed.
    pub changes: Vec<Change>,
    /// How it ended; nothing where the run ended first.
    pub outcome: Option<StepOutcome>,
    /// When it began, in milliseconds since the run began.
    pub at_ms: u64,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
    /// What came of it, or the error.
    pub summary: String,
    /// Its actions, in the order of their ends.
    pub actions: Vec<ActionRun>,
    /// What was warned of.
    pub warnings: Vec<String>,
    /// What was noted.
    pub notes: Vec<String>,
    /// The files that it wrote.
    pub outputs: Vec<String>,
    /// What the engine said, as a blob.
    pub log: Option<BlobDigest>,
    /// The script that repeats it, where it failed.
    pub kept: Option<String>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Its name.
    pub run: String,
    /// When it began, RFC 3339 in UTC.
    pub started: Option<String>,
    /// The recipe's name.
    pub recipe: Option<String>,
    /// The command line.
    pub command: Vec<String>,
    /// How it stands.
    pub state: State,
    /// Steps that ran.
    pub ran: u64,
    /// Steps of which only files were written to the output folder.
    pub wrote: u64,
    /// Steps whose result was in the store.
    pub hit: u64,
    /// Steps that failed.
    pub failed: u64,
    /// Steps that were not started.
    pub skipped: u64,
    /// How long it took, in milliseconds; of a run that was killed, until the last that is known of it.
    pub elapsed_ms: u64,
    /// The steps, in the order in which they are first spoken of.
    pub steps: Vec<StepRun>,
}

impl Run {
    /// Counts the steps.
    pub fn counts(&self) -> Counts<StepOutcome> {
        let mut counts = Counts::default();
        for (outcome, steps) in [
            (StepOutcome::Ran, self.ran),
            (StepOutcome::Wrote, self.wrote),
            (StepOutcome::Hit, self.hit),
            (StepOutcome::Failed, self.failed),
            (StepOutcome::Skipped, self.skipped),
        ] {
            counts.add(outcome, usize::try_from(steps).unwrap_or(usize::MAX));
        }
        counts
    }
}

/// When and why an action ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ran {
    /// The run.
    pub run: String,
    /// When the run began, RFC 3339 in UTC.
    pub started: Option<String>,
    /// The recipe.
    pub recipe: Option<String>,
    /// The step that it was a part of.
    pub step: String,
    /// Why that step ran.
    pub why: Option<String>,
    /// How long the action took, in milliseconds.
    pub cost_ms: u64,
    /// What began it: the steps before that ran in the same run for a reason of their own.
    pub began: Vec<Began>,
}

/// A step that ran for a reason of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Began {
    /// The step.
    pub step: String,
    /// Why it ran.
    pub why: String,
    /// What of its action had changed.
    pub changes: Vec<Change>,
}

/// A line of any kind: what is not there is empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    reason: String,
    schema: Option<u32>,
    at_ms: u64,
    started: Option<String>,
    command: Vec<String>,
    recipe: Option<String>,
    step: Option<String>,
    why: Option<String>,
    changes: Vec<Change>,
    kind: String,
    key: String,
    outcome: Option<String>,
    cost_ms: u64,
    bytes: u64,
    message: String,
    path: String,
    log: Option<BlobDigest>,
    // Counts of a step's actions, or of a run's steps.
    ran: u64,
    wrote: u64,
    hit: u64,
    failed: u64,
    skipped: u64,
    elapsed_ms: u64,
    summary: String,
}

/// Why a run cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No run has such a name.
    #[error("no run is called `{wanted}`")]
    Unknown {
        /// What was asked for.
        wanted: String,
    },
    /// Several runs have names that start so.
    #[error("{} runs have names that start with `{wanted}`", found.len())]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Their names.
        found: Vec<String>,
    },
    /// Nothing is on record.
    #[error("this store has no recorded runs")]
    None,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the name of the run that is meant: a name, the start of one, or `last`.
pub fn find(store: &Store, wanted: &str) -> Result<String, RunError> {
    let runs = store.runs()?;
    let Some(last) = runs.last() else {
        return Err(RunError::None);
    };
    if wanted == "last" {
        return Ok(last.clone());
    }
    if runs.iter().any(|run| run == wanted) {
        return Ok(wanted.to_owned());
    }
    let found: Vec<String> = runs.iter().filter(|run| run.starts_with(wanted)).cloned().collect();
    match found.as_slice() {
        [] => Err(RunError::Unknown {
            wanted: wanted.to_owned(),
        }),
        [only] => Ok(only.clone()),
        _ => Err(RunError::Ambiguous {
            wanted: wanted.to_owned(),
            found,
        }),
    }
}

/// Reads the record of a run.
pub fn read(store: &Store, id: &str) -> Result<Run, StoreError> {
    let goes_on = store.is_run_active(id);
    let bytes = store.read_run(id)?;
    let mut run = parse(id, &bytes);
    if goes_on && run.state == State::Killed {
        run.state = State::Running;
    }
    Ok(run)
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = Line> {
    bytes
        .split(|&byte| byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
}

fn parse(id: &str, bytes: &[u8]) -> Run {
    let mut run = Run {
        run: id.to_owned(),
        started: None,
        recipe: None,
        command: Vec::new(),
        state: State::Killed,
        ran: 0,
        wrote: 0,
        hit: 0,
        failed: 0,
        skipped: 0,
        elapsed_ms: 0,
        steps: Vec::new(),
    };
    let mut places = BTreeMap::new();
    for line in lines(bytes) {
        run.elapsed_ms = run.elapsed_ms.max(line.at_ms);
        match line.reason.as_str() {
            "run-started" => {
                run.started = line.started;
                run.command = line.command;
                if line.schema != Some(SCHEMA) {
                    run.state = State::OtherVersion;
                    return run;
                }
                continue;
            }
            "build-started" => {
                run.recipe = line.recipe;
                continue;
            }
            "build-finished" => {
                (run.ran, run.wrote, run.hit) = (line.ran, line.wrote, line.hit);
                (run.failed, run.skipped) = (line.failed, line.skipped);
                run.elapsed_ms = line.elapsed_ms;
                run.state = match line.outcome.as_deref() {
                    Some("failed") => State::Failed,
                    Some("environment") => State::Environment,
                    Some("stopped") => State::Stopped,
                    _ => State::Done,
                };
                continue;
            }
            _ => {}
        }
        let Some(name) = line.step else { continue };
        let place = *places.entry(name.clone()).or_insert_with(|| {
            run.steps.push(StepRun {
                step: name,
                ..StepRun::default()
            });
            run.steps.len() - 1
        });
        let step = &mut run.steps[place];
        match line.reason.as_str() {
            "step-started" => {
                step.why = line.why;
                step.changes = line.changes;
                step.at_ms = line.at_ms;
            }
            "action-finished" => step.actions.push(ActionRun {
                kind: line.kind,
                key: line.key,
                outcome: line.outcome.unwrap_or_default(),
                cost_ms: line.cost_ms,
                bytes: line.bytes,
            }),
            "warning" => step.warnings.push(line.message),
            "note" => step.notes.push(line.message),
            "output-written" => step.outputs.push(line.path),
            "step-log" => step.log = line.log,
            "step-kept" => step.kept = Some(line.path),
            "step-finished" => {
                step.outcome = line.outcome.and_then(|word| StepOutcome::of(&word));
                step.elapsed_ms = line.elapsed_ms;
                step.summary = line.summary;
            }
            _ => {}
        }
    }
    if run.state == State::Killed {
        let count = |outcome| {
            let steps = run.steps.iter().filter(|step| !step.step.starts_with("source."));
            steps.filter(|step| step.outcome == Some(outcome)).count() as u64
        };
        (run.ran, run.wrote, run.hit) = (
            count(StepOutcome::Ran),
            count(StepOutcome::Wrote),
            count(StepOutcome::Hit),
        );
        (run.failed, run.skipped) = (count(StepOutcome::Failed), count(StepOutcome::Skipped));
    }
    run
}

/// Returns when an action ran last, as far as that is on record, and the run. What began it is not filled in: records do
/// not say which step needs which.
pub fn last_ran(store: &Store, key: &ActionDigest) -> Option<(Ran, Run)> {
    let key = key.to_string();
    for id in store.runs().ok()?.into_iter().rev() {
        let Ok(bytes) = store.read_run(&id) else { continue };
        // Most records do not name it, and looking for 64 digits is much faster than reading JSON.
        if !contains(&bytes, key.as_bytes()) {
            continue;
        }
        let run = parse(&id, &bytes);
        for step in &run.steps {
            let ran = |action: &&ActionRun| action.key == key && action.outcome == "ran";
            if let Some(action) = step.actions.iter().find(ran) {
                let ran = Ran {
                    run: id,
                    started: run.started.clone(),
                    recipe: run.recipe.clone(),
                    step: step.step.clone(),
                    why: step.why.clone(),
                    cost_ms: action.cost_ms,
                    began: Vec::new(),
                };
                return Some((ran, run));
            }
        }
    }
    None
}

fn contains(text: &[u8], wanted: &[u8]) -> bool {
    text.split(|&byte| byte == b'"').any(|word| word == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"reason":"run-started","schema":2,"at_ms":0,"started":"2026-11-21T10:00:00Z","command":["forge","build"],"new":1}
{"at_ms":1,"reason":"build-started","recipe":"r","steps":2,"engine":"e"}
{"at_ms":1,"reason":"step-finished","step":"source.model","outcome":"hit","ran":0,"hit":1,"elapsed_ms":0,"summary":""}
{"at_ms":2,"reason":"step-started","step":"policy.a","why":"it is new","changes":[]}
{"at_ms":3,"reason":"action-finished","step":"policy.a","kind":"policy","key":"abc","outcome":"ran","cost_ms":1,"bytes":7}
{"at_ms":4,"reason":"something-new","step":"policy.a"}
{"at_ms":5,"reason":"step-finished","step":"policy.a","outcome":"ran","ran":1,"hit":0,"elapsed_ms":3,"summary":"fine"}
"#;

    #[test]
    fn a_record_without_an_end_is_of_a_run_that_was_killed() {
        let torn = format!("{RECORD}{{\"at_ms\":9,\"rea");
        let run = parse("id", torn.as_bytes());
        assert_eq!(run.state, State::Killed);
        assert_eq!((run.ran, run.hit, run.elapsed_ms), (1, 0, 5));
        assert_eq!(run.steps[0].outcome, Some(StepOutcome::Hit));
        assert_eq!(run.steps[1].why.as_deref(), Some("it is new"));
        assert_eq!(run.steps[1].actions[0].bytes, 7);
        let whole = format!(
            "{RECORD}{}\n",
            r#"{"at_ms":6,"reason":"build-finished","ran":1,"hit":1,"failed":0,"skipped":0,"elapsed_ms":6,"outcome":"done"}"#
        );
        let run = parse("id", whole.as_bytes());
        assert_eq!((run.state, run.hit, run.elapsed_ms), (State::Done, 1, 6));
    }

    #[test]
    fn a_record_of_another_version_is_not_read_as_one_of_this() {
        let old = RECORD.replace("\"schema\":2", "\"schema\":1");
        let run = parse("id", old.as_bytes());
        assert_eq!((run.state, run.steps.len()), (State::OtherVersion, 0));
        assert_eq!(run.started.as_deref(), Some("2026-11-21T10:00:00Z"));
    }
}
