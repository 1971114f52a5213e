//! `forge table`: the table of the last build, or of files with figures, without a build.

use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::TableFormat;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::json::SCHEMA;
use crate::cli::terminal::Terminal;
use crate::cli::terminal::columns;
use crate::report::metrics::Metrics;
use crate::report::table::Table;
use crate::session;
use crate::session::TableError;

pub(super) fn run(args: &args::Table, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut tables = Vec::new();
    for file in &args.files {
        tables.extend(tables_of(file, args.out.as_deref(), files, terminal)?);
    }
    let mut table = Table::of(&tables);
    if !args.columns.is_empty() {
        table.choose(args.columns.clone());
    }
    if let Some(sort) = args.sort {
        table.sort(sort);
    }
    if terminal.is_json() {
        terminal.data(&line(&table.document()));
        return Ok(Exit::Done);
    }
    match args.format {
        TableFormat::Text => terminal.data(&table.text(columns())),
        TableFormat::Markdown => terminal.document(&table.markdown()),
        TableFormat::Csv => terminal.document(&table.csv()),
        TableFormat::Json => {
            let text = serde_json::to_string_pretty(&table.document()).unwrap_or_default();
            terminal.document(&format!("{text}\n"));
        }
    }
    Ok(Exit::Done)
}

/// Returns the line of a table that no step has just made.
fn line(table: &Value) -> String {
    let line = json!({ "schema": SCHEMA, "reason": "table", "step": null, "table": table });
    format!("{line}\n")
}

fn tables_of(file: &str, out: Option<&Path>, files: &Files, terminal: &Terminal) -> Result<Vec<Metrics>, Failure> {
    let store = files.existing_store(file, terminal)?;
    if files.is_recipe(file) {
        let recipe = files.recipe(file, terminal)?.recipe;
        let out = files.out(file, &recipe.name, out);
        return session::last_tables(&recipe, &out, store.as_ref()).map_err(|error| failure(&error, file));
    }
    let path = files.path(Path::new(file));
    let table = session::table_of_file(&path, store.as_ref()).map_err(|error| failure(&error, file))?;
    Ok(vec![table])
}

fn failure(error: &TableError, file: &str) -> Failure {
    let diagnostic = Diagnostic::from_error(error);
    match error {
        TableError::NotBuilt { .. } => {
            let diagnostic = diagnostic.code("table::not-built");
            Failure::new(Exit::Recipe, diagnostic.hint(format!("build it: `forge build {file}`")))
        }
        TableError::NoTable { .. } => {
            let diagnostic = diagnostic.code("table::no-evaluation");
            let hint = format!("add an evaluation (`[eval.NAME]`) to `{file}`, then build it: `forge build {file}`");
            Failure::new(Exit::Recipe, diagnostic.hint(hint))
        }
        TableError::NoFigures { .. } => {
            let diagnostic = diagnostic.code("table::no-figures");
            let hint = "build its recipe with an evaluation (`[eval.NAME]`), or choose the store of that build: `--cache-dir DIR`";
            Failure::new(Exit::Recipe, diagnostic.hint(hint))
        }
        TableError::Path(path) if path.is_not_found() => {
            let diagnostic = diagnostic.code("usage::no-such-file");
            let hint = "give a recipe that was built, a `metrics.json`, or the manifest of a candidate";
            Failure::new(Exit::Usage, diagnostic.hint(hint))
        }
        TableError::Path(_) => Failure::new(Exit::Environment, diagnostic.code("environment::table")),
        TableError::Unknown { .. } => {
            let diagnostic = diagnostic.code("usage::no-table");
            let hint = "give a recipe that was built, a `metrics.json`, or the manifest of a candidate";
            Failure::new(Exit::Usage, diagnostic.hint(hint))
        }
    }
}
