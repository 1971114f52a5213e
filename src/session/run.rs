//! The record of a run in the store: written during the run, so that a killed build leaves one too. A build
//! with nothing to do leaves none.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;
use std::time::SystemTime;

use serde::Serialize;

use super::Commands;
use super::Settings;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::engine::Identity;
use crate::graph::NodeId;
use crate::observer::ActionOutcome;
use crate::observer::Event;
use crate::observer::Observer;
use crate::runs::SCHEMA;
use crate::scheduler::Failure;
use crate::step::StepError;
use crate::store::RunWriter;
use crate::store::Store;
use crate::store::StoreError;
use crate::vocab::verdict::StepOutcome;
use crate::work::FailedAction;
use crate::work::FailedActions;

/// The script that repeats a failed step.
const SCRIPT: &str = "repeat.sh";
/// The document of the action that failed.
const ACTION: &str = "action.json";

/// The first line of a record.
#[derive(Serialize)]
struct Header<'a> {
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
    preferred_id: String,
    since: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The lines of a run that has no record yet.
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
            preferred_id: format!("{}-{}", rfc3339(started).replace([':', '-'], ""), std::process::id()),
            since: Instant::now(),
            state: Mutex::default(),
        };
        let line = Header {
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
        id.unwrap_or(&self.preferred_id).to_owned()
    }

    /// Returns whether an action ran in this run.
    pub(super) fn has_run(&self, key: &ActionDigest) -> bool {
        self.state().ran.contains(key)
    }

    fn note(&self, event: &Event) {
        let mut state = self.state();
        let mut is_relevant = state.writer.is_some();
        match event {
            // The store has the table, and a record with the digests of a table would keep their blobs in the store.
            Event::Progress { .. }
            | Event::MeasuringSpeeds
            | Event::Table { .. }
            | Event::PartialTable { .. }
            | Event::Outputs { .. }
            | Event::StaleOutputs { .. } => return,
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
            } => is_relevant = true,
            _ => {}
        }
        let at_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        push(&mut state.waiting, &Line { at_ms, event });
        if is_relevant {
            self.write(&mut state);
        }
    }

    /// Writes what waits. It explains, and no result depends on it: a record that cannot be written ends there.
    fn write(&self, state: &mut State) {
        if state.writer.is_none() && !state.broken {
            state.writer = self.store.start_run(&self.preferred_id).ok();
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

    /// Keeps, for each failed step, the error, the log, the action that failed and a script that repeats it; returns the
    /// scripts. A gate whose requirements are not met did not fail to run, so nothing is kept of it.
    ///
    /// Unfinished files are not kept: the actions of a step (a tensor, a block of chunks) are committed one by one, so the script
    /// continues where the step failed.
    pub(super) fn keep_failed(
        &self,
        commands: &Commands,
        failures: &[Failure],
        failed: &FailedActions,
    ) -> BTreeMap<NodeId, PathBuf> {
        let mut kept = BTreeMap::new();
        for failure in failures {
            if matches!(failure.error, StepError::Gate { .. }) {
                continue;
            }
            let step = failure.node.to_string();
            let action = failed.take(&step);
            // The folder only explains: that it cannot be written is no failure of its own.
            if let Ok(script) = self.keep(commands, &step, &failure.error, action.as_ref()) {
                kept.insert(failure.node.clone(), script);
            }
        }
        kept
    }

    fn keep(
        &self,
        commands: &Commands,
        step: &str,
        error: &StepError,
        action: Option<&FailedAction>,
    ) -> Result<PathBuf, StoreError> {
        let folder = self.store.failed_folder(&self.id(), step)?;
        let leave = |name: &str, bytes: &[u8]| self.store.write_failed_file(&folder, name, bytes);
        let document = folder.join(ACTION);
        let script = script(
            commands,
            step,
            action.map(|action| (document.as_path(), action.files.as_slice())),
        );
        leave(SCRIPT, script.as_bytes())?;
        let mut text = format!("step `{step}` failed: {error}\n");
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let _ = writeln!(text, "caused by: {cause}");
            source = cause.source();
        }
        leave("error.txt", text.as_bytes())?;
        if let Some(action) = action {
            leave(ACTION, &action.document)?;
        }
        let log = self.state().logs.get(step).copied();
        if let Some(log) = log {
            leave("log.txt", &self.store.read(&log, 64 << 20)?)?;
        }
        Ok(folder.join(SCRIPT))
    }
}

fn push(lines: &mut Vec<u8>, line: &impl Serialize) {
    // Strings, numbers and lists of them always can be written.
    if let Ok(line) = serde_json::to_vec(line) {
        lines.extend(line);
        lines.push(b'\n');
    }
}

/// Returns a script that runs the action that failed, if one is known, and then the rest of its step.
fn script(commands: &Commands, step: &str, action: Option<(&Path, &[PathBuf])>) -> String {
    let mut script = "#!/bin/sh\n# Repeats a step of a build that failed, with the same settings.\nset -e\n".to_owned();
    if let Some((document, files)) = action {
        script.push_str("# The action that failed, in a process of its own. If it succeeds, its result is kept.\n");
        let words = commands.exec.iter().cloned().chain([document.display().to_string()]);
        let sources = files
            .iter()
            .flat_map(|file| ["--source".to_owned(), file.display().to_string()]);
        let _ = writeln!(script, "{}", quoted(words.chain(sources)));
    }
    script.push_str("# The rest of the step, as the recipe is now.\n");
    let words = commands.build.iter().cloned().chain([step.to_owned()]);
    let _ = writeln!(script, "exec {}", quoted(words));
    script
}

/// Quotes words for a shell.
fn quoted(words: impl Iterator<Item = String>) -> String {
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    quoted.join(" ")
}

/// Forwards events to the run's record and to the user's observer.
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

/// Writes a time as RFC 3339 in UTC.
pub(super) fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_quotes_every_word() {
        let words = |text: &str| text.split('|').map(str::to_owned).collect::<Vec<_>>();
        let commands = Commands {
            build: words("/a b/forge|build|it's.toml"),
            exec: words("/a b/forge|exec"),
        };
        let files = [PathBuf::from("/m/a model.gguf")];
        let script = script(&commands, "promote.x@Q4_0", Some((Path::new("/f/action.json"), &files)));
        let commands: Vec<&str> = script.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            commands,
            [
                "set -e",
                "'/a b/forge' 'exec' '/f/action.json' '--source' '/m/a model.gguf'",
                "exec '/a b/forge' 'build' 'it'\\''s.toml' 'promote.x@Q4_0'"
            ]
        );
    }
}
