//! What the commands of `forge cache` share: opening the store, its errors, and lines of JSON.

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

/// Opens the store, for commands that need no recipe.
pub(super) fn open(files: &Files, terminal: &Terminal) -> Result<Store, Failure> {
    let (directory, config) = files.cache()?;
    terminal.set_preferred_color(config.color());
    Store::open(&directory).map_err(|error| failure(&error))
}

/// Describes why the store cannot be used, with a hint.
pub(super) fn failure(error: &StoreError) -> Failure {
    let diagnostic = Diagnostic::from_error(error).code("environment::store");
    let hint = match error {
        StoreError::Busy { .. } => Some("wait until it has finished, then try again"),
        StoreError::InUse { .. } => Some("wait until they have finished, or stop them"),
        StoreError::LeadsOut { .. } => Some("a forge store never contains this: use another folder for the store"),
        StoreError::NotAManifest { .. } => Some("name a manifest (`.manifest.json`), or the output that it belongs to"),
        StoreError::NotAStore { .. } => Some("name the store with `--cache-dir DIR` or `FORGE_CACHE_DIR`"),
        _ if error.class() == ErrorClass::Permission => Some("check the permissions of the folder"),
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
