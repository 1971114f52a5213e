//! Tables of candidates without a build: those of the last build, from the store; of files with figures; of candidates by their
//! manifests.

use std::path::Path;
use std::path::PathBuf;

use super::Session;
use crate::action;
use crate::content::Content;
use crate::digest::BlobDigest;
use crate::fs;
use crate::graph::NodeId;
use crate::manifest;
use crate::manifest::Manifest;
use crate::recipe::Recipe;
use crate::recipe::StepId;
use crate::report::metrics;
use crate::report::metrics::Metrics;
use crate::scheduler::Report;
use crate::step::metrics::json_name;
use crate::step::metrics::tables;
use crate::store::Store;
use crate::work::DOCUMENT_CAP;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The recipe measures nothing.
    #[error("recipe `{recipe}` has no table: it measures no candidate")]
    NoTable {
        /// The recipe's name.
        recipe: String,
    },
    /// No build has made the table.
    #[error("recipe `{recipe}` has no table yet: no build has finished one")]
    NotBuilt {
        /// The recipe's name.
        recipe: String,
    },
    /// A file cannot be read.
    #[error(transparent)]
    Path(#[from] fs::PathError),
    /// A file is neither a table nor a manifest.
    #[error("`{}` is neither figures (`{}`) nor a manifest: {problem}", path.display(), metrics::SCHEMA)]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// Neither the store nor a table beside a candidate has figures of it.
    #[error("there are no figures of the candidate of `{}`", path.display())]
    NoFigures {
        /// The manifest.
        path: PathBuf,
    },
}

/// Returns the digests of the tables of a build, in the recipe's order.
pub(super) fn digests<'r>(recipe: &'r Recipe, report: &Report) -> impl Iterator<Item = (&'r StepId, BlobDigest)> {
    tables(recipe).filter_map(|id| {
        let outcome = report.outcomes.get(&NodeId::Step(id.clone()))?;
        Some((id, outcome.output(action::Metrics::JSON).ok()?))
    })
}

/// Reads a table from the store.
pub(super) fn read(store: &Store, digest: &BlobDigest) -> Option<Metrics> {
    Metrics::parse(&store.read(digest, DOCUMENT_CAP).ok()?).ok()
}

impl Session {
    /// Returns the tables of candidates of a build, in the recipe's order.
    pub fn tables(&self, report: &Report) -> Vec<Metrics> {
        self.tables_by_step(report).map(|(_, table)| table).collect()
    }

    pub(super) fn tables_by_step(&self, report: &Report) -> impl Iterator<Item = (&StepId, Metrics)> {
        digests(&self.recipe, report).filter_map(|(id, digest)| Some((id, read(&self.store, &digest)?)))
    }
}

/// Returns the tables of the last build of a recipe into a folder, in the recipe's order. The store records the last builds of all
/// recipes of a name; the file in the folder says which of them wrote into it. Without such a file, the last one counts.
///
/// # Errors
///
/// [`TableError::NoTable`], [`TableError::NotBuilt`].
pub fn last_tables(recipe: &Recipe, out: &Path, store: Option<&Store>) -> Result<Vec<Metrics>, TableError> {
    let name = || recipe.name.clone();
    let steps: Vec<&StepId> = tables(recipe).collect();
    if steps.is_empty() {
        return Err(TableError::NoTable { recipe: name() });
    }
    let only = steps.len() == 1;
    let found = steps.iter().filter_map(|step| {
        let file = fs::read_small(&out.join(json_name(step, only)), metrics::CAP).ok();
        let recorded = store.map_or_else(Vec::new, |store| recorded(store, &recipe.name, &step.to_string()));
        let digest = file.as_deref().map(BlobDigest::of);
        let written = digest.filter(|digest| recorded.contains(digest));
        let wanted = written.or_else(|| recorded.first().copied());
        let known = store.and_then(|store| read(store, &wanted?));
        known.or_else(|| Metrics::parse(file.as_deref()?).ok())
    });
    let found: Vec<Metrics> = found.collect();
    if found.is_empty() {
        return Err(TableError::NotBuilt { recipe: name() });
    }
    Ok(found)
}

/// Returns the digests of the tables that a step made, the newest first.
fn recorded(store: &Store, recipe: &str, step: &str) -> Vec<BlobDigest> {
    let last = store.last(recipe, step).into_iter();
    let records = last.chain(store.earlier(recipe, step));
    let tables = records.filter_map(|record| {
        let result = store.lookup_shallow(&record.action).ok()??;
        result.output(action::Metrics::JSON.as_str())
    });
    tables.collect()
}

/// Returns the figures that a file has (`metrics.json`), or those of the candidate that a manifest describes: from the store, else
/// from tables beside the manifest. A candidate's file stands for its manifest.
///
/// # Errors
///
/// [`TableError::Path`], [`TableError::Unknown`], [`TableError::NoFigures`].
pub fn table_of_file(path: &Path, store: Option<&Store>) -> Result<Metrics, TableError> {
    let unknown = |problem: String| TableError::Unknown {
        path: path.to_owned(),
        problem,
    };
    match Content::of(path)? {
        Content::Json => {}
        Content::Model => {
            let mut manifest = path.as_os_str().to_owned();
            manifest.push(manifest::SUFFIX);
            return table_of_file(Path::new(&manifest), store);
        }
        Content::Damaged(error) => return Err(unknown(error.to_string())),
        other => return Err(unknown(format!("it is {}", other.as_str()))),
    }
    let bytes = fs::read_small(path, manifest::CAP.max(metrics::CAP))?;
    if let Ok(manifest) = Manifest::parse(&bytes) {
        return of_manifest(path, &manifest, store);
    }
    Metrics::parse(&bytes).map_err(|error| unknown(error.to_string()))
}

fn of_manifest(path: &Path, manifest: &Manifest, store: Option<&Store>) -> Result<Metrics, TableError> {
    let none = || TableError::NoFigures { path: path.to_owned() };
    let digest = manifest.subject.first().and_then(|file| file.digest.get("blake3"));
    let digest = digest.ok_or_else(none)?;
    let known = store.map_or_else(Vec::new, all_recorded);
    let folder = path.parent().unwrap_or(Path::new(""));
    let names = fs::list(folder)
        .unwrap_or_default()
        .into_iter()
        .map(|entry| PathBuf::from(entry.name));
    let tables = names.filter(|name| {
        let is_json = name.extension().is_some_and(|extension| extension == "json");
        is_json && name.to_string_lossy().starts_with("metrics")
    });
    let beside = tables.filter_map(|name| Metrics::parse(&fs::read_small(&folder.join(name), metrics::CAP).ok()?).ok());
    for table in known.into_iter().chain(beside) {
        let rows: Vec<_> = table.rows.into_iter().filter(|row| row.blake3 == *digest).collect();
        if !rows.is_empty() {
            return Ok(Metrics::new(table.recipe, rows));
        }
    }
    Err(none())
}

/// Returns all tables that the store has, those of the last builds first.
fn all_recorded(store: &Store) -> Vec<Metrics> {
    let mut records = store.all_last().unwrap_or_default();
    records.retain(|record| record.step.starts_with("metrics."));
    let tables = records
        .iter()
        .flat_map(|record| recorded(store, &record.recipe, &record.step));
    tables.filter_map(|digest| read(store, &digest)).collect()
}
