//! `forge cache`: the store itself. One file a verb, or a few that belong together.

pub(super) mod args;
mod clean;
mod gc;
mod list;
mod pin;
mod size;
mod verify;

use serde_json::Value;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args::Verb;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::terminal::Terminal;
use crate::store::ErrorClass;
use crate::store::Store;
use crate::store::StoreError;

pub(super) use gc::hold_limit;

pub(super) fn run(cache: &args::Cache, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    match &cache.verb {
        Verb::Dir => size::dir(files, terminal),
        Verb::Size => size::run(files, terminal),
        Verb::List(list) => list::run(list, files, terminal),
        Verb::Verify(verify) => verify::run(verify, files, terminal),
        Verb::Gc(gc) => gc::run(gc, files, terminal),
        Verb::Pin(pin) => pin::pin(pin, files, terminal),
        Verb::Unpin(unpin) => pin::unpin(unpin, files, terminal),
        Verb::Clean(clean) => clean::run(clean, files, terminal),
    }
}

/// Opens the store, for verbs that need no recipe.
fn open(files: &Files, terminal: &Terminal) -> Result<Store, Failure> {
    let (directory, machine) = files.cache()?;
    terminal.prefer(machine.color());
    Store::open(&directory).map_err(|error| failure(&error))
}

/// Says why the store could not be used.
fn failure(error: &StoreError) -> Failure {
    let diagnostic = Diagnostic::from_error(error).code("environment::store");
    let hint = match error {
        StoreError::Busy { .. } => Some("wait until it has ended, then try again"),
        StoreError::InUse { .. } => Some("wait until they have ended, or stop them"),
        StoreError::LeadsOut { .. } => {
            Some("no store of forge has such a thing in it: do not use this one, start anew")
        }
        StoreError::NotAManifest { .. } => {
            Some("name an output's `.manifest.json`, or the output beside which it stands")
        }
        StoreError::NotAStore { .. } => Some("name the store with `--cache-dir DIR` or `FORGE_CACHE_DIR`"),
        _ if error.class() == ErrorClass::Permission => Some("see who may read and write there"),
        _ => None,
    };
    let exit = if matches!(error, StoreError::NotAManifest { .. }) {
        Exit::Recipe
    } else {
        Exit::Environment
    };
    Failure::new(exit, hint.into_iter().fold(diagnostic, Diagnostic::hint))
}

/// Prints a line for programs.
fn line(terminal: &Terminal, reason: &str, facts: Value) {
    let mut line = serde_json::json!({ "schema": json::SCHEMA, "reason": reason });
    if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
        line.extend(facts);
    }
    terminal.data(&format!("{line}\n"));
}
