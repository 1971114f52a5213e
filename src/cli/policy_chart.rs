//! `forge policy chart`: loss against bytes, in the terminal and as a picture.

use std::path::Path;
use std::path::PathBuf;

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::environment::variable;
use crate::cli::files::Files;
use crate::cli::json::SCHEMA;
use crate::cli::policy_source::store;
use crate::cli::terminal::Terminal;
use crate::fs;
use crate::report::chart::Chart;
use crate::report::chart::Style;
use crate::session;
use crate::session::ChartError;

pub(super) fn run(args: &args::PolicyChart, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut paths = Vec::new();
    // What `-f` names comes first; without any file, that is the recipe of the current folder.
    let recipe = (args.recipe.recipe.is_some() || args.files.is_empty()).then(|| args.recipe.file());
    for file in recipe.into_iter().chain(args.files.iter().map(String::as_str)) {
        paths.extend(tables(file, args.out.as_deref(), files, terminal)?);
    }
    let store = store(files, terminal);
    let chart = session::chart(&paths, args.eval.as_deref(), store.as_ref()).map_err(|error| failure(&error))?;
    if let Some(svg) = &args.svg {
        let path = files.path(svg);
        fs::write_atomic(&path, chart.svg().as_bytes(), fs::Durability::Synced).map_err(|error| {
            let written = Diagnostic::from_error(&error).code("environment::chart");
            Failure::new(Exit::Environment, written)
        })?;
        if !terminal.quiet && !terminal.is_json() {
            terminal.line(&format!("wrote {}", svg.display()));
        }
    }
    if terminal.is_json() {
        terminal.data(&line(&chart, args.svg.as_deref()));
    } else if args.svg.is_none() {
        terminal.data(&chart.terminal(Style {
            width: args.width.into(),
            height: args.height.into(),
            ascii: args.ascii || !locale_has_unicode(),
        }));
    }
    Ok(Exit::Done)
}

/// Whether the locale names a character set that has more than ASCII. One that says nothing is no reason to do without.
fn locale_has_unicode() -> bool {
    let named = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(variable);
    named.is_none_or(|locale| {
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Returns the tables of metrics that a word means: those of a recipe's build, or the file itself.
fn tables(file: &str, out: Option<&Path>, files: &Files, terminal: &Terminal) -> Result<Vec<PathBuf>, Failure> {
    if !files.is_recipe(file) {
        return Ok(vec![files.path(Path::new(file))]);
    }
    let recipe = files.recipe(file, terminal)?.recipe;
    let folder = files.out(file, &recipe.name, out);
    let names = fs::list(&folder)
        .unwrap_or_default()
        .into_iter()
        .map(|entry| entry.name);
    let mut found: Vec<PathBuf> = names
        .filter(|name| {
            let name = name.to_string_lossy();
            name == "metrics.json" || (name.starts_with("metrics-") && name.ends_with(".json"))
        })
        .map(|name| folder.join(name))
        .collect();
    found.sort();
    if found.is_empty() {
        let none =
            Diagnostic::error(format!("`{}` has no `metrics.json`", folder.display())).code("policy::no-metrics");
        return Err(Failure::new(
            Exit::Recipe,
            none.hint(format!(
                "build the recipe, with an evaluation (`[eval.NAME]`): `forge build {file}`"
            )),
        ));
    }
    Ok(found)
}

fn failure(error: &ChartError) -> Failure {
    let diagnostic = Diagnostic::from_error(error);
    match error {
        ChartError::Eval { .. } => {
            let diagnostic = diagnostic.code("usage::eval").hint("name one: `--eval NAME`");
            Failure::new(Exit::Usage, diagnostic)
        }
        ChartError::Path(path) if path.is_not_found() => {
            Failure::new(Exit::Usage, diagnostic.code("usage::no-such-file"))
        }
        ChartError::Path(_) => Failure::new(Exit::Environment, diagnostic.code("environment::chart")),
        ChartError::NoMetrics { .. } | ChartError::Nothing => {
            Failure::new(Exit::Recipe, diagnostic.code("policy::chart"))
        }
    }
}

fn line(chart: &Chart, svg: Option<&Path>) -> String {
    let series = chart.series.iter().map(|series| {
        let points = series.points.iter().map(|point| {
            json!({
                "candidate": point.candidate,
                "label": point.label,
                "bytes": point.bytes,
                "bpw": point.bpw,
                "loss": point.loss,
                "ci95": point.interval,
                "predicted": point.predicted,
                "front": point.front,
                "historical": point.historical,
            })
        });
        json!({ "name": series.name, "mixes": series.mixes, "points": points.collect::<Vec<_>>() })
    });
    let line = json!({
        "schema": SCHEMA,
        "reason": "chart",
        "title": chart.title,
        "loss": chart.loss.title(),
        "series": series.collect::<Vec<_>>(),
        "notes": chart.notes,
        "svg": svg.map(|svg| svg.display().to_string()),
    });
    format!("{line}\n")
}
