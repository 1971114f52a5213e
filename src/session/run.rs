//! The record of a run in the store: written while the run goes on, so that a build that is killed leaves one too. A build
//! that finds everything done leaves none.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;
use std::time::SystemTime;

use serde::Serialize;

use super::Settings;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::engine::Identity;
use crate::graph::NodeId;
use crate::observer::ActionOutcome;
use crate::observer::BuildOutcome;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::StepOutcome;
use crate::scheduler::Failure;
use crate::scheduler::Report;
use crate::step::Class;
use crate::step::StepError;
use crate::store::RunWriter;
use crate::store::Store;

/// The version of the record's lines.
const SCHEMA: u32 = 1;
/// The script that repeats a failed step.
const AGAIN: &str = "again.sh";

/// The first line of a record.
#[derive(Serialize)]
struct First<'a> {
    reason: &'static str,
    schema: u32,
    at_ms: u64,
    started: String,
    forge: &'static str,
    command: &'a [String],
    folder: String,
    out: String,
    engines: Vec<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    at_ms: u64,
    #[serde(flatten)]
    event: &'a Event,
}

/// A run: its name, and what happened.
pub(super) struct Run<'a> {
    store: &'a Store,
    engines: Vec<&'a Identity>,
    wish: String,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The lines of a run that is not worth a record yet.
    waiting: Vec<u8>,
    writer: Option<RunWriter>,
    /// The record could not be begun or continued: there is none.
    broken: bool,
    ran: BTreeSet<ActionDigest>,
    logs: BTreeMap<String, BlobDigest>,
}

impl<'a> Run<'a> {
    pub(super) fn start(
        store: &'a Store,
        settings: &Settings,
        engines: Vec<&'a Identity>,
        started: SystemTime,
    ) -> Self {
        let fingerprints = engines
            .iter()
            .map(|identity| identity.fingerprint().to_string())
            .collect();
        let run = Self {
            store,
            engines,
            wish: format!("{}-{}", rfc3339(started).replace([':', '-'], ""), std::process::id()),
            since: Instant::now(),
            state: Mutex::default(),
        };
        let line = First {
            reason: "run-started",
            schema: SCHEMA,
            at_ms: 0,
            started: rfc3339(started),
            forge: env!("CARGO_PKG_VERSION"),
            command: &settings.command,
            folder: settings.folder.display().to_string(),
            out: settings.out.display().to_string(),
            engines: fingerprints,
        };
        push(&mut run.state().waiting, &line);
        run
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing between its lines can be left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the run's name.
    pub(super) fn id(&self) -> String {
        let state = self.state();
        let id = state.writer.as_ref().map(RunWriter::id);
        id.unwrap_or(&self.wish).to_owned()
    }

    /// Returns whether an action ran in this run.
    pub(super) fn has_run(&self, key: &ActionDigest) -> bool {
        self.state().ran.contains(key)
    }

    fn note(&self, event: &Event) {
        let mut state = self.state();
        let mut worth = state.writer.is_some();
        match event {
            Event::Progress { .. } => return,
            Event::ActionFinished {
                outcome: ActionOutcome::Ran,
                key,
                ..
            } => {
                state.ran.insert(*key);
            }
            Event::StepLog { step, log, .. } => {
                state.logs.insert(step.clone(), *log);
            }
            Event::StepStarted { .. }
            | Event::StepFinished {
                outcome: StepOutcome::Failed,
                ..
            } => worth = true,
            _ => {}
        }
        let at_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        push(&mut state.waiting, &Line { at_ms, event });
        if worth {
            self.write(&mut state);
        }
    }

    /// Writes what waits. It explains, and nothing rests on it: a record that cannot be written ends there.
    fn write(&self, state: &mut State) {
        if state.writer.is_none() && !state.broken {
            state.writer = self.store.start_run(&self.wish).ok();
            state.broken = state.writer.is_none();
            for identity in &self.engines {
                self.store
                    .note_engine(&identity.fingerprint(), &identity.document())
                    .ok();
            }
        }
        let lines = std::mem::take(&mut state.waiting);
        if let Some(writer) = &mut state.writer
            && !state.broken
        {
            state.broken = writer.append(&lines).is_err();
        }
    }

    /// Keeps what each failed step left behind, with a script that repeats just that step; returns the scripts. A gate
    /// that judged is no step that failed to run. `document` returns a step's action, if that could be told.
    ///
    /// Half-written files are not kept: a step commits its parts (a tensor, a block of chunks, a text's tokens) one by one, so
    /// whoever repeats it goes on where it failed, and what it was writing then is made of those parts in moments.
    pub(super) fn keep_failed(
        &self,
        settings: &Settings,
        failures: &[Failure],
        document: &dyn Fn(&NodeId) -> Option<Vec<u8>>,
    ) -> BTreeMap<NodeId, PathBuf> {
        let mut kept = BTreeMap::new();
        for failure in failures {
            if matches!(failure.error, StepError::Gate { .. }) {
                continue;
            }
            let step = failure.node.to_string();
            let action = document(&failure.node);
            if let Ok(folder) = self.keep(settings, &step, &failure.error, action.as_deref()) {
                kept.insert(failure.node.clone(), folder);
            }
        }
        kept
    }

    fn keep(
        &self,
        settings: &Settings,
        step: &str,
        error: &StepError,
        action: Option<&[u8]>,
    ) -> Result<PathBuf, crate::store::StoreError> {
        let folder = self.store.failed_folder(&self.id(), step)?;
        let leave = |name: &str, bytes: &[u8]| self.store.leave(&folder, name, bytes);
        leave(AGAIN, again(&settings.again, step).as_bytes())?;
        let mut text = format!("step `{step}` failed: {error}\n");
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let _ = writeln!(text, "caused by: {cause}");
            source = cause.source();
        }
        leave("error.txt", text.as_bytes())?;
        if let Some(action) = action {
            leave("action.json", action)?;
        }
        let log = self.state().logs.get(step).copied();
        if let Some(log) = log {
            leave("log.txt", &self.store.read(&log, 64 << 20)?)?;
        }
        Ok(folder.join(AGAIN))
    }
}

fn push(lines: &mut Vec<u8>, line: &impl Serialize) {
    // Strings, numbers and lists of them always can be written.
    if let Ok(line) = serde_json::to_vec(line) {
        lines.extend(line);
        lines.push(b'\n');
    }
}

/// Returns a script that runs a command with a step as its last word.
fn again(command: &[String], step: &str) -> String {
    let quoted: Vec<String> = command
        .iter()
        .map(String::as_str)
        .chain([step])
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    format!(
        "#!/bin/sh\n# Repeats one step of a build that failed, with the same settings.\nexec {}\n",
        quoted.join(" ")
    )
}

/// Lets the run's record listen beside the user's observer.
pub(super) struct Tee<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) observer: &'a dyn Observer,
}

impl Observer for Tee<'_> {
    fn event(&self, event: &Event) {
        self.run.note(event);
        self.observer.event(event);
    }
}

/// Says how a build ended.
pub(super) fn outcome_of(report: &Report) -> BuildOutcome {
    let class = |wanted: Class| report.failures.iter().any(|failure| failure.error.class() == wanted);
    if report.stopped {
        BuildOutcome::Stopped
    } else if class(Class::Step) {
        BuildOutcome::Failed
    } else if report.failures.is_empty() {
        BuildOutcome::Done
    } else {
        BuildOutcome::Environment
    }
}

/// Writes a time as RFC 3339 in UTC.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_quotes_every_word() {
        let command = ["/a b/forge", "build", "it's.toml"].map(str::to_owned);
        let script = again(&command, "promote.x@Q4_0");
        assert!(
            script.ends_with("\nexec '/a b/forge' 'build' 'it'\\''s.toml' 'promote.x@Q4_0'\n"),
            "{script}"
        );
    }
}
