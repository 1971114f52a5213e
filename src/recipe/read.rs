//! The top of a recipe, its sources and its names: what has to be known before steps are read.

use std::collections::BTreeSet;

use crate::recipe::SCHEMA;
use crate::recipe::extends::File;
use crate::recipe::extends::Merged;
use crate::recipe::extends::resolve;
use crate::recipe::model::EngineRef;
use crate::recipe::model::Place;
use crate::recipe::model::RecipePath;
use crate::recipe::model::ResolvedSection;
use crate::recipe::model::SourceDef;
use crate::recipe::model::SourceKind;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepKind;
use crate::recipe::version;
use crate::syntax::declared::Names;
use crate::syntax::declared::SOURCE;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::names::name_problem;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::syntax::words::section_words;

/// One `[kind.name]`.
pub(crate) struct Section<'a> {
    pub(crate) kind: &'static str,
    pub(crate) name: &'a str,
    pub(crate) place: Place,
    pub(crate) entries: &'a [RawEntry],
}

impl Section<'_> {
    pub(crate) fn words(&self) -> String {
        section_words(self.kind, self.name)
    }
}

/// What readers of steps need besides their section.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a Names,
    pub(crate) files: &'a [File],
}

/// What the top of a recipe says.
pub(crate) struct Top {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    pub(crate) engine: EngineRef,
    pub(crate) resolved: ResolvedSection,
}

/// Returns the sections of all kinds that are tables with good names; reports the others.
pub(crate) fn sections<'a>(merged: &'a Merged, errors: &mut Vec<RecipeError>) -> Vec<Section<'a>> {
    let mut sections = Vec::new();
    for entry in &merged.entries {
        let Some(kind) = kinds().find(|kind| *kind == entry.key) else {
            continue;
        };
        let named = match &entry.value.value {
            RawValue::Table(named) => named,
            RawValue::Array(_) | RawValue::String(_) => {
                errors.push(RecipeError::UnnamedSection {
                    place: entry.key_place.clone(),
                    kind: kind.to_owned(),
                });
                continue;
            }
            other => {
                errors.push(RecipeError::WrongType {
                    place: entry.value.place.clone(),
                    key: kind.to_owned(),
                    expected: format!("a table of sections, `[{kind}.NAME]`"),
                    found: other.kind(),
                });
                continue;
            }
        };
        if named
            .iter()
            .any(|entry| !matches!(entry.value.value, RawValue::Table(_)))
        {
            errors.push(RecipeError::UnnamedSection {
                place: entry.key_place.clone(),
                kind: kind.to_owned(),
            });
            continue;
        }
        for section in named {
            let RawValue::Table(entries) = &section.value.value else {
                continue;
            };
            let place = section.key_place.clone();
            if let Some(problem) = name_problem(&section.key) {
                let name = section.key.clone();
                errors.push(RecipeError::BadName {
                    place,
                    name,
                    what: format!("a `{kind}` section"),
                    problem,
                });
                continue;
            }
            sections.push(Section {
                kind,
                name: &section.key,
                place,
                entries,
            });
        }
    }
    sections.sort_by_key(|section| (kinds().position(|kind| kind == section.kind), section.name));
    sections
}

/// Returns the words of all kinds of sections.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    [SOURCE]
        .into_iter()
        .chain(StepKind::ALL.into_iter().map(StepKind::as_str))
}

/// Reads the keys at the top, and reports unknown ones and unknown kinds of sections.
pub(crate) fn top(merged: &Merged, errors: &mut Vec<RecipeError>) -> Option<Top> {
    let source = &merged.files.first()?.source;
    version::check(
        merged.entries.iter().find(|entry| entry.key == "schema"),
        source,
        errors,
    );
    let keys = ["schema", "name", "description", "engine", "extends"];
    let mut entries = Vec::new();
    for entry in &merged.entries {
        let known = keys.contains(&entry.key.as_str());
        if !known && kinds().all(|kind| kind != entry.key) && matches!(entry.value.value, RawValue::Table(_)) {
            errors.push(RecipeError::UnknownSection {
                place: entry.key_place.clone(),
                found: entry.key.clone(),
                known: kinds().collect(),
            });
        } else if known || kinds().all(|kind| kind != entry.key) {
            entries.push(entry.clone());
        }
    }
    let head = Place::new(source, 0..0);
    let mut reader = Reader::new("a recipe".to_owned(), head, ("", ""), &entries, errors);
    for key in keys {
        reader.has(key);
    }
    let name = reader.required("name", "name = \"my-recipe\"", |field| {
        let name = field.string("the recipe's name")?;
        match name_problem(name) {
            None => Ok(name.to_owned()),
            Some(problem) => Err(RecipeError::BadName {
                place: field.place(),
                name: name.to_owned(),
                what: "a recipe".to_owned(),
                problem,
            }),
        }
    });
    let description = reader.read("description", |field| field.string("a text").map(str::to_owned));
    let engine = reader.read("engine", engine);
    let engine = engine.unwrap_or_else(|| EngineRef {
        name: EngineRef::DEFAULT.to_owned(),
        origin: Place::new(source, 0..0),
    });
    reader.put("schema", i64::from(SCHEMA));
    if let Some(name) = &name {
        reader.put("name", name.as_str());
    }
    if let Some(description) = &description {
        reader.put("description", description.as_str());
    }
    reader.put("engine", engine.name.as_str());
    let resolved = reader.finish()?;
    Some(Top {
        name: name?,
        description,
        engine,
        resolved,
    })
}

/// Reads the name of an engine.
pub(crate) fn engine(field: Field<'_>) -> Result<EngineRef, RecipeError> {
    Ok(EngineRef {
        name: field.string("the name of an engine")?.to_owned(),
        origin: field.place(),
    })
}

/// Reads the sources.
pub(crate) fn sources(
    sections: &[Section<'_>],
    files: &[File],
    names: &mut Names,
    errors: &mut Vec<RecipeError>,
) -> Vec<(SourceDef, ResolvedSection)> {
    let imported = imported(sections);
    let mut sources = Vec::new();
    for section in sections.iter().filter(|section| section.kind == SOURCE) {
        let mut reader = Reader::new(
            section.words(),
            section.place.clone(),
            (SOURCE, section.name),
            section.entries,
            errors,
        );
        let path = reader.required("path", "path = \"model.gguf\"", |field| path(field, files));
        let kinds = [("model", SourceKind::Model), ("imatrix", SourceKind::Imatrix)];
        let kind = reader.read("kind", |field| field.word(&kinds, &[]));
        let by_use = if imported.contains(section.name) {
            SourceKind::Imatrix
        } else {
            SourceKind::Model
        };
        let kind = Some(kind.unwrap_or(by_use));
        if let (Some(path), Some(kind)) = (&path, kind) {
            reader.put("path", path.resolved.as_str());
            reader.put("kind", if kind == SourceKind::Model { "model" } else { "imatrix" });
        }
        let resolved = reader.finish();
        let (Some(path), Some(kind), Some(resolved)) = (path, kind, resolved) else {
            names.sources_unsure = true;
            continue;
        };
        let list = if kind == SourceKind::Model {
            &mut names.models
        } else {
            &mut names.matrices
        };
        list.push((section.name.to_owned(), section.place.clone()));
        let name = SourceName::new(section.name);
        sources.push((
            SourceDef {
                name,
                path,
                kind,
                origin: section.place.clone(),
            },
            resolved,
        ));
    }
    sources
}

/// Returns the names of the sources that sections of imatrices import. What a file is, its use tells: names of files differ.
fn imported<'a>(sections: &[Section<'a>]) -> BTreeSet<&'a str> {
    let imatrices = sections.iter().filter(|section| section.kind == "imatrix");
    let sources = imatrices
        .flat_map(|section| section.entries)
        .filter(|entry| entry.key == "source");
    let names = sources.filter_map(|entry| match &entry.value.value {
        RawValue::String(name) => Some(name.as_str()),
        _ => None,
    });
    names.collect()
}

/// Reads a path.
pub(crate) fn path(field: Field<'_>, files: &[File]) -> Result<RecipePath, RecipeError> {
    let written = field.string("a path")?;
    let problem = match written {
        "" => Some("it is empty"),
        text if text.contains('\0') => Some("it contains a NUL character"),
        _ => None,
    };
    if let Some(problem) = problem {
        return Err(RecipeError::BadPath {
            place: field.place(),
            key: field.key.to_owned(),
            problem,
        });
    }
    let directory = files.get(field.raw.file).map_or("", |file| file.directory.as_str());
    let resolved = resolve(directory, written);
    Ok(RecipePath {
        written: written.to_owned(),
        resolved,
        origin: field.place(),
    })
}

/// Reads a file pattern.
pub(crate) fn file_pattern(field: Field<'_>, files: &[File]) -> Result<RecipePath, RecipeError> {
    let mut path = path(field, files)?;
    if let Err(error) = glob::Pattern::new(&path.written) {
        let rest = path.written.get(error.pos..).and_then(|rest| rest.chars().next());
        let range = error.pos..error.pos + rest.map_or(0, char::len_utf8);
        return Err(RecipeError::BadGlob {
            place: crate::syntax::raw::inside(&field.raw.place, &path.written, range),
            pattern: path.written,
            message: error.msg,
        });
    }
    let directory = files.get(field.raw.file).map_or("", |file| file.directory.as_str());
    path.resolved = resolve(&glob::Pattern::escape(directory), &path.written);
    Ok(path)
}
