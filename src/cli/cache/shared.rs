//! What the verbs of `forge cache` share: opening the store, its errors, and lines of JSON.

use serde_json::Value;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::terminal::Terminal;
use crate::store::ErrorClass;
use crate::store::Store;
use crate::store::StoreError;

/// Opens the store, for verbs that need no recipe.
pub(super) fn open(files: &Files, terminal: &Terminal) -> Result<Store, Failure> {
    let (directory, machine) = files.cache()?;
    terminal.prefer(machine.color());
    Store::open(&directory).map_err(|error| failure(&error))
}

/// Describes why the store cannot be used, with a hint.
pub(super) fn failure(error: &StoreError) -> Failure {
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

/// Prints a line of JSON.
pub(super) fn line(terminal: &Terminal, reason: &str, facts: Value) {
    let mut line = serde_json::json!({ "schema": json::SCHEMA, "reason": reason });
    if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
        line.extend(facts);
    }
    terminal.data(&format!("{line}\n"));
}
