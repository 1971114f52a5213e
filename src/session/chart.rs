//! The figures of builds as a chart of loss against bytes: tables of metrics, with what manifests and certificates next to them
//! say about each candidate.

use std::path::Path;
use std::path::PathBuf;

use crate::container;
use crate::diff;
use crate::fs;
use crate::manifest;
use crate::manifest::Manifest;
use crate::mix::Mix;
use crate::recipe::StepId;
use crate::report::chart::CandidateInfo;
use crate::report::chart::Chart;
use crate::report::chart::Measured;
use crate::report::metrics;
use crate::report::metrics::Metrics;
use crate::store::Store;

/// Why a chart cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// A file cannot be read.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// A file is no table of metrics.
    #[error("`{}` is not a table of metrics (`{}`): {problem}", path.display(), metrics::SCHEMA)]
    NoMetrics {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// There are several evaluations, and none is named, or one that is not there.
    #[error("{}", no_eval(.wanted.as_ref(), .known))]
    Eval {
        /// The one that was wanted.
        wanted: Option<String>,
        /// Those that there are.
        known: Vec<String>,
    },
    /// Nothing has a place on the axes.
    #[error("no candidate has a loss above 0")]
    Nothing,
}

fn no_eval(wanted: Option<&String>, known: &[String]) -> String {
    let known = crate::prose::names(known, 8);
    match wanted {
        Some(wanted) => format!("there is no evaluation `{wanted}`; there are {known}"),
        None => format!("there are several evaluations: {known}"),
    }
}

/// Makes a chart of tables of metrics. Beside each, manifests of its candidates (`NAME.gguf.manifest.json`) tell how they were made; what
/// their policies predicted stands in the policies' tables, in the store. Without a manifest, names that end in one of llama.cpp's mixes are
/// taken for such.
///
/// # Errors
/// [`ChartError`]
pub fn chart(paths: &[PathBuf], eval: Option<&str>, store: Option<&Store>) -> Result<Chart, ChartError> {
    let mut tables: Vec<(&Path, Metrics)> = Vec::new();
    for path in paths {
        tables.push((path, read(path)?));
    }
    let mut known: Vec<String> = Vec::new();
    for row in tables.iter().flat_map(|(_, table)| &table.rows) {
        if !known.contains(&row.eval) {
            known.push(row.eval.clone());
        }
    }
    let eval = match (eval, known.as_slice()) {
        (Some(wanted), known) if known.iter().any(|eval| eval == wanted) => wanted,
        (None, [only]) => only,
        (wanted, _) => {
            return Err(ChartError::Eval {
                wanted: wanted.map(str::to_owned),
                known,
            });
        }
    };
    let mut recipes: Vec<&str> = Vec::new();
    let mut measured = Vec::new();
    for (path, table) in &tables {
        if !recipes.contains(&table.recipe.as_str()) {
            recipes.push(&table.recipe);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let rows = table.rows.iter().filter(|row| row.eval == eval);
        let (mut of_table, choices): (Vec<Measured>, Vec<Option<Choice>>) = rows
            .map(|row| {
                let (info, choice) = describe(folder, row, store);
                let row = row.clone();
                (Measured { row, info }, choice)
            })
            .unzip();
        join(&mut of_table, &choices);
        measured.extend(of_table);
    }
    // Series of one name in two recipes are two series.
    if recipes.len() > 1 {
        let of_recipe = tables
            .iter()
            .flat_map(|(_, table)| table.rows.iter().filter(|row| row.eval == eval).map(|_| &table.recipe));
        for (measured, recipe) in measured.iter_mut().zip(of_recipe) {
            measured.info.series = format!("{recipe}: {}", measured.info.series);
        }
    }
    let title = format!("{}, {eval}", recipes.join(" and "));
    Chart::of(title, &measured).ok_or(ChartError::Nothing)
}

fn read(path: &Path) -> Result<Metrics, ChartError> {
    let no_metrics = |problem: String| ChartError::NoMetrics {
        path: path.to_owned(),
        problem,
    };
    let bytes = fs::read_small(path, metrics::CAP)?;
    Metrics::parse(&bytes).map_err(|error| no_metrics(error.to_string()))
}

/// How a policy with a budget chose.
struct Choice {
    method: String,
    /// All that decided but the budget.
    except_budget: serde_json::Value,
}

/// Makes one series of candidates that have a policy each, if these differ in nothing but their budgets: what is written one by one
/// belongs together no less than what one policy chooses for several.
fn join(measured: &mut [Measured], choices: &[Option<Choice>]) {
    let alone = |at: usize| {
        let series = &measured[at].info.series;
        measured.iter().filter(|other| other.info.series == *series).count() == 1
    };
    let mut sweeps: Vec<(&Choice, Vec<usize>)> = Vec::new();
    for (at, choice) in choices.iter().enumerate() {
        let Some(choice) = choice.as_ref().filter(|_| alone(at)) else {
            continue;
        };
        match sweeps
            .iter_mut()
            .find(|(first, _)| first.except_budget == choice.except_budget)
        {
            Some((_, sweep)) => sweep.push(at),
            None => sweeps.push((choice, vec![at])),
        }
    }
    for (choice, sweep) in sweeps.into_iter().filter(|(_, sweep)| sweep.len() > 1) {
        let names: Vec<&str> = sweep.iter().map(|at| measured[*at].row.candidate.as_str()).collect();
        let prefix = common_words(&names).len();
        let series = match names[0][..prefix].trim_end_matches('-') {
            "" => choice.method.clone(),
            name => series_of(name, Some(&choice.method)),
        };
        if measured.iter().any(|other| other.info.series == series) {
            continue;
        }
        for at in sweep {
            let Measured { row, info } = &mut measured[at];
            row.candidate[prefix..].clone_into(&mut info.label);
            info.series.clone_from(&series);
        }
    }
}

/// The words that all names begin with, and the hyphen after them.
fn common_words<'a>(names: &[&'a str]) -> &'a str {
    let Some(first) = names.first() else { return "" };
    let ends = first.rmatch_indices('-').map(|(at, _)| &first[..=at]);
    ends.into_iter()
        .find(|prefix| names.iter().all(|name| name.starts_with(prefix)))
        .unwrap_or_default()
}

fn describe(folder: &Path, row: &metrics::Row, store: Option<&Store>) -> (CandidateInfo, Option<Choice>) {
    by_manifest(folder, row, store).unwrap_or_else(|| (by_name(&row.candidate), None))
}

/// What the manifest of a candidate says, if it belongs to the file that was measured.
fn by_manifest(folder: &Path, row: &metrics::Row, store: Option<&Store>) -> Option<(CandidateInfo, Option<Choice>)> {
    let path = folder.join(format!("{}{}", container::file_name(&row.candidate), manifest::SUFFIX));
    let manifest = Manifest::parse(&fs::read_small(&path, manifest::CAP).ok()?).ok()?;
    let digest = manifest.subject.first()?.digest.get("blake3")?;
    if *digest != row.blake3 {
        return None;
    }
    let made_by = &manifest.predicate.build_definition.external_parameters.step;
    let candidate: StepId = made_by.parse().ok()?;
    let record = diff::policy_of(&manifest)?;
    let method = &record.document["inputs"]["method"];
    let mix = method["name"] == "mix";
    let label = match (&candidate.variant, method["mix"].as_str()) {
        (_, Some(name)) if mix => name.to_owned(),
        (Some(variant), _) => variant.clone(),
        (None, _) => candidate.name.clone(),
    };
    let info = CandidateInfo {
        series: series_of(&candidate.name, method["name"].as_str()),
        label,
        mix,
        predicted: diff::table_of(&manifest, store).and_then(|table| table.predicted_loss?.parse().ok()),
    };
    Some((info, choice_of(&record.document["inputs"])))
}

/// How a policy chose, by the inputs of its action; nothing where it had no budget.
fn choice_of(inputs: &serde_json::Value) -> Option<Choice> {
    let mut except_budget = inputs.clone();
    let method = except_budget.get_mut("method")?.as_object_mut()?;
    let _budget = method.remove("budget")?;
    let method = method.get("name")?.as_str()?.to_owned();
    Some(Choice { method, except_budget })
}

fn series_of(name: &str, method: Option<&str>) -> String {
    match method {
        Some(method) if method != name => format!("{name} ({method})"),
        _ => name.to_owned(),
    }
}

/// What the name alone says: `tiny-Q4_K_M` is a mix.
fn by_name(candidate: &str) -> CandidateInfo {
    let parts = candidate.rsplit_once('-');
    let (series, label, mix) = match parts {
        Some((series, label)) => (series, label, Mix::from_name(label).is_some()),
        None => (candidate, candidate, Mix::from_name(candidate).is_some()),
    };
    CandidateInfo {
        series: series.to_owned(),
        label: label.to_owned(),
        mix,
        predicted: None,
    }
}
