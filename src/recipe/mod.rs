//! Recipes: from text with places to checked values.
//!
//! ```text
//! text::Source -> raw (every key and value with its place) -> read (typed, sections with sweeps) -> Recipe (expanded)
//! ```
//!
//! No stage stops at the first error: all errors of a recipe are returned at once, in the order of the text. There is no
//! I/O here: files named by `extends` come from a closure that the caller gives.

// Errors carry their places; they are made once and never on a hot path.
#![allow(clippy::result_large_err)]

pub mod model;

mod body;
mod calibration;
mod decl;
mod expand;
mod expand_candidates;
mod expand_evals;
mod expand_moments;
mod expand_policy;
mod extends;
pub(crate) mod read;
mod read_evals;
mod read_moments;
mod read_policy;
mod read_steps;
mod show;
mod version;
mod warn;

pub use crate::quantity::Decimal;
pub use crate::quantity::Quantity;
pub use crate::recipe::calibration::Calibration;
pub use crate::recipe::calibration::CalibrationUse;
pub use crate::recipe::model::*;
pub use crate::recipe::warn::RecipeWarning;
pub use crate::syntax::error;
pub use crate::syntax::error::LoadError;
pub use crate::syntax::error::RecipeError;
pub use crate::syntax::names;

use crate::text::Source;

/// The version of the language.
pub const SCHEMA: u32 = 1;

/// A recipe that was read, and what is odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The recipe.
    pub recipe: Recipe,
    /// In the order of the text.
    pub warnings: Vec<RecipeWarning>,
}

/// Reads a recipe.
///
/// `load` is asked for each file that `extends` names, by its path relative to the directory of `source` (or absolute,
/// where a recipe says so), and returns its text with the name that messages shall print for it.
///
/// # Errors
///
/// Everything that is wrong, file by file in the order of the text.
pub fn parse(
    source: &Source,
    load: &mut dyn FnMut(&str) -> Result<Source, LoadError>,
) -> Result<Parsed, Vec<RecipeError>> {
    let mut errors = Vec::new();
    let merged = extends::load(source, load, &mut errors);
    let recipe = check(&merged, &mut errors);
    let order = |place: &Place| {
        let file = merged.files.iter().position(|file| file.source == place.source);
        (file.unwrap_or(usize::MAX), place.span)
    };
    match recipe {
        Some(recipe) if errors.is_empty() => {
            let mut warnings = warn::warnings(&recipe);
            warnings.sort_by_cached_key(|warning| order(warning.place()));
            Ok(Parsed { recipe, warnings })
        }
        _ => {
            errors.sort_by_cached_key(|error| order(error.place()));
            Err(errors)
        }
    }
}

/// Reads a recipe without `extends`.
///
/// # Errors
///
/// Everything that is wrong, in the order of the text; `extends` is.
pub fn parse_alone(source: &Source) -> Result<Parsed, Vec<RecipeError>> {
    parse(source, &mut |_| {
        Err(LoadError {
            message: "no other file can be read here".to_owned(),
        })
    })
}

/// Reads what was loaded; returns a recipe unless something is wrong, which then is in `errors`.
fn check(merged: &extends::Merged, errors: &mut Vec<RecipeError>) -> Option<Recipe> {
    if merged.entries.is_empty() && !errors.is_empty() {
        return None;
    }
    let top = read::top(merged, errors);
    let sections = read::sections(merged, errors);
    let mut names = crate::syntax::declared::Names::default();
    for section in &sections {
        names.add(section.kind, section.name, &section.place);
    }
    let sources = read::sources(&sections, &merged.files, &mut names, errors);
    // What is wrong with a section's header may have been the source that others mean.
    names.sources_unsure |= !errors.is_empty() && sources.is_empty();
    let implicit = implicit_metrics(&mut names);
    let context = read::Context {
        names: &names,
        files: &merged.files,
    };
    let (mut decls, mut resolved) = read_steps::steps(&sections, &context, errors);
    if let Some((decl, section)) = implicit {
        decls.metrics.push(decl);
        resolved.push(section);
    }
    let top = top?;
    if !errors.is_empty() {
        return None;
    }
    let expansion = expand::Expansion::new(&decls, errors);
    let (mut steps, gate_candidates) = (expansion.steps, expansion.gate_candidates);
    for step in &mut steps {
        let section = (step.id.kind.as_str().to_owned(), step.id.name.clone());
        step.engine = decls.engines.get(&section).cloned();
    }
    resolved.extend(expansion.implicit);
    for section in resolved.iter_mut().filter(|section| section.kind == "gate") {
        if let Some(labels) = gate_candidates.get(&section.name) {
            let list = labels.iter().map(|label| toml::Value::from(label.as_str())).collect();
            section.entries.insert(1, ("candidates", toml::Value::Array(list)));
        }
    }
    let rank = |section: &ResolvedSection| read::kinds().position(|kind| kind == section.kind);
    let mut all = vec![top.resolved];
    let mut definitions = std::collections::BTreeMap::new();
    for (source, section) in sources {
        definitions.insert(source.name.clone(), source);
        all.push(section);
    }
    resolved.sort_by(|a, b| (rank(a), &a.name).cmp(&(rank(b), &b.name)));
    all.append(&mut resolved);
    Some(Recipe {
        name: top.name,
        description: top.description,
        engine: top.engine,
        sources: definitions,
        steps,
        resolved: all,
    })
}

/// Declares `metrics.all` if evaluations or gates need a table and the recipe has none.
fn implicit_metrics(
    names: &mut crate::syntax::declared::Names,
) -> Option<(decl::Decl<decl::Metrics>, ResolvedSection)> {
    if names.of("metrics").next().is_some() {
        return None;
    }
    let asked = names.of("eval").chain(names.of("gate")).next();
    let place = asked.map(|(_, place)| place.clone())?;
    names.add("metrics", "all", &place);
    let metrics = decl::Metrics {
        evals: read_evals::all_evals(names),
    };
    let entries = read_evals::metrics_entries(&metrics);
    let resolved = ResolvedSection {
        kind: "metrics",
        name: "all".to_owned(),
        entries,
    };
    Some((
        decl::Decl {
            name: "all".to_owned(),
            place,
            body: metrics,
        },
        resolved,
    ))
}
