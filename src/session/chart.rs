//! The figures of builds as a chart of loss against bytes: tables of metrics, with what manifests and certificates beside them
//! tell of each candidate.

use std::path::Path;
use std::path::PathBuf;

use crate::diff;
use crate::fs;
use crate::manifest;
use crate::manifest::Manifest;
use crate::policy::Mix;
use crate::recipe::StepId;
use crate::report::chart::Chart;
use crate::report::chart::Measured;
use crate::report::chart::Told;
use crate::report::metrics;
use crate::report::metrics::Metrics;
use crate::store::Store;

/// No table of metrics is longer: a row has some 800 bytes.
const METRICS_CAP: u64 = 64 << 20;

/// Why a chart cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// A file cannot be read.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// A file is no table of metrics.
    #[error("`{}` is no table of metrics (`{}`): {problem}", path.display(), metrics::SCHEMA)]
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
    let known = crate::report::words::names(known, 8);
    match wanted {
        Some(wanted) => format!("there is no evaluation `{wanted}`, but {known}"),
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
        for row in table.rows.iter().filter(|row| row.eval == eval) {
            measured.push(Measured {
                row: row.clone(),
                told: told(folder, row, store),
            });
        }
    }
    // Series of one name in two recipes are two series.
    if recipes.len() > 1 {
        let of_recipe = tables
            .iter()
            .flat_map(|(_, table)| table.rows.iter().filter(|row| row.eval == eval).map(|_| &table.recipe));
        for (measured, recipe) in measured.iter_mut().zip(of_recipe) {
            measured.told.series = format!("{recipe}: {}", measured.told.series);
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
    let bytes = fs::read_small(path, METRICS_CAP)?;
    let table: Metrics = serde_json::from_slice(&bytes).map_err(|error| no_metrics(error.to_string()))?;
    if table.schema == metrics::SCHEMA {
        Ok(table)
    } else {
        Err(no_metrics(format!("its schema is `{}`", table.schema)))
    }
}

fn told(folder: &Path, row: &metrics::Row, store: Option<&Store>) -> Told {
    by_manifest(folder, row, store).unwrap_or_else(|| by_name(&row.candidate))
}

/// What the manifest of a candidate tells, if it is of the very file that was measured.
fn by_manifest(folder: &Path, row: &metrics::Row, store: Option<&Store>) -> Option<Told> {
    let path = folder.join(format!("{}.gguf{}", row.candidate, manifest::SUFFIX));
    let manifest = Manifest::parse(&fs::read_small(&path, manifest::CAP).ok()?).ok()?;
    let digest = manifest.subject.first()?.digest.get("blake3")?;
    if *digest != row.blake3 {
        return None;
    }
    let made_by = &manifest.predicate.build_definition.external_parameters.step;
    let candidate: StepId = made_by.parse().ok()?;
    let record = manifest.predicate.forge.actions.values().find(|record| {
        let step = record.step.as_deref();
        step.is_some_and(|step| step.starts_with("policy."))
    })?;
    let method = &record.document["inputs"]["method"];
    let mix = method["name"] == "mix";
    let label = match (&candidate.variant, method["mix"].as_str()) {
        (_, Some(name)) if mix => name.to_owned(),
        (Some(variant), _) => variant.clone(),
        (None, _) => candidate.name.clone(),
    };
    Some(Told {
        series: series_of(&candidate.name, method["name"].as_str()),
        label,
        mix,
        predicted: diff::table_of(&manifest, store).and_then(|table| table.predicted_loss?.parse().ok()),
    })
}

fn series_of(name: &str, method: Option<&str>) -> String {
    match method {
        Some(method) if method != name => format!("{name} ({method})"),
        _ => name.to_owned(),
    }
}

/// What a name alone tells: `tiny-Q4_K_M` is a mix.
fn by_name(candidate: &str) -> Told {
    let parts = candidate.rsplit_once('-');
    let (series, label, mix) = match parts {
        Some((series, label)) => (series, label, Mix::from_name(label).is_some()),
        None => (candidate, candidate, Mix::from_name(candidate).is_some()),
    };
    Told {
        series: series.to_owned(),
        label: label.to_owned(),
        mix,
        predicted: None,
    }
}
