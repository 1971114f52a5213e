//! Raw recipes: every key and value with its place, before anything is understood; and files that extend each other.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use crate::recipe::error::ExtendsProblem;
use crate::recipe::error::LoadError;
use crate::recipe::error::RecipeError;
use crate::recipe::model::Place;
use crate::text::Source;
use crate::text::Span;

/// How many files may extend each other in a row.
const MAX_DEPTH: usize = 16;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    pub(crate) value: RawValue,
    pub(crate) place: Place,
    /// Which of the recipe's files states it.
    pub(crate) file: usize,
}

/// A TOML value. Numbers stay texts, so that nothing is lost.
#[derive(Debug, Clone)]
pub(crate) enum RawValue {
    String(String),
    /// The value (if it fits) and how it is written.
    Integer(Option<i64>, String),
    Float(String),
    Boolean(bool),
    Datetime,
    Array(Vec<Raw>),
    Table(Vec<RawEntry>),
}

impl RawValue {
    /// Returns the type with an article.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(..) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct RawEntry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Raw,
}

/// Reads one file into entries in the order of the text.
pub(crate) fn read(source: &Source, file: usize) -> Result<Vec<RawEntry>, Vec<RecipeError>> {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    if errors.is_empty() {
        return Ok(entries(table.get_ref(), source, file));
    }
    let end = source.text().len();
    let error = |error: toml::de::Error| {
        let span = error
            .span()
            .map_or(end..end, |span| span.start.min(end)..span.end.min(end));
        let mut message = error.message().trim_end().to_owned();
        if let ("duplicate key", Some(key)) = (message.as_str(), source.text().get(span.clone())) {
            message = format!("the key `{key}` is there already");
        }
        RecipeError::Syntax {
            place: Place::new(source, span),
            message,
        }
    };
    Err(errors.into_iter().map(error).collect())
}

fn entries(table: &DeTable<'_>, source: &Source, file: usize) -> Vec<RawEntry> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        RawEntry {
            key: name.clone().into_owned(),
            key_place: Place::new(source, key.span()),
            value: raw(value, source, file),
        }
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.key_place.span);
    entries
}

fn raw(value: &Spanned<DeValue<'_>>, source: &Source, file: usize) -> Raw {
    let parsed = match value.get_ref() {
        DeValue::String(text) => RawValue::String(text.clone().into_owned()),
        DeValue::Integer(number) => RawValue::Integer(
            i64::from_str_radix(number.as_str(), number.radix()).ok(),
            number.to_string(),
        ),
        DeValue::Float(number) => RawValue::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => RawValue::Boolean(*value),
        DeValue::Datetime(_) => RawValue::Datetime,
        DeValue::Array(values) => RawValue::Array(values.iter().map(|value| raw(value, source, file)).collect()),
        DeValue::Table(table) => RawValue::Table(entries(table, source, file)),
    };
    Raw {
        value: parsed,
        place: Place::new(source, value.span()),
        file,
    }
}

/// Returns the place of `range` (bytes of the decoded `text`) inside a string value, or of the whole value where escapes
/// or line breaks make the bytes of the file differ.
pub(crate) fn inside(place: &Place, text: &str, range: std::ops::Range<usize>) -> Place {
    let Span { start, end } = place.span;
    let inner = place.source.text().get(start + 1..end.saturating_sub(1));
    if inner == Some(text) && range.start <= range.end && range.end <= text.len() {
        Place {
            source: place.source.clone(),
            span: (start + 1 + range.start..start + 1 + range.end).into(),
        }
    } else {
        place.clone()
    }
}

/// One of a recipe's files.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) source: Source,
    /// The directory that its paths are relative to, itself relative to that of the first file; empty for that one.
    pub(crate) directory: String,
}

/// All entries of a recipe's files, those of extended files filled in where the extending ones say nothing.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    pub(crate) files: Vec<File>,
    pub(crate) entries: Vec<RawEntry>,
}

/// Reads a recipe and the files it extends.
pub(crate) fn load(
    source: &Source,
    loader: &mut dyn FnMut(&str) -> Result<Source, LoadError>,
    errors: &mut Vec<RecipeError>,
) -> Merged {
    let mut merged = Merged::default();
    let mut chain: Vec<String> = Vec::new();
    let mut source = source.clone();
    let mut directory = String::new();
    loop {
        let file = merged.files.len();
        let read = read(&source, file);
        merged.files.push(File {
            source,
            directory: directory.clone(),
        });
        let mut entries = match read {
            Ok(entries) => entries,
            Err(syntax) => {
                errors.extend(syntax);
                // What this file would have said is not known: nothing can be missing or unknown.
                merged.entries.clear();
                return merged;
            }
        };
        let extends = entries
            .iter()
            .position(|entry| entry.key == "extends")
            .map(|at| entries.remove(at));
        if file > 0 {
            let version = entries
                .iter()
                .position(|entry| entry.key == "schema")
                .map(|at| entries.remove(at));
            crate::recipe::read::schema(version.as_ref(), &merged.files[file].source, errors);
        }
        merge(&mut merged.entries, entries, 0);
        let Some(extends) = extends else { return merged };
        let place = extends.value.place.clone();
        let RawValue::String(path) = extends.value.value else {
            errors.push(RecipeError::WrongType {
                place,
                key: "extends".to_owned(),
                expected: "the path of a recipe".to_owned(),
                found: extends.value.value.kind(),
            });
            return merged;
        };
        let resolved = resolve(&directory, &path);
        let normal = normalize(&resolved);
        let problem = if path.is_empty() {
            Some(ExtendsProblem::Load(LoadError {
                message: "the path is empty".to_owned(),
            }))
        } else if chain.contains(&normal) {
            Some(ExtendsProblem::Cycle {
                path: chain.iter().chain([&normal]).cloned().collect(),
            })
        } else if chain.len() >= MAX_DEPTH {
            Some(ExtendsProblem::TooDeep(MAX_DEPTH))
        } else {
            None
        };
        let loaded = match problem {
            Some(problem) => Err(problem),
            None => loader(&resolved).map_err(ExtendsProblem::Load),
        };
        match loaded {
            // The first file's own name is not known here; a recipe that extends itself is found by its text.
            Ok(next) if merged.files.iter().any(|file| file.source == next) => {
                let problem = ExtendsProblem::Cycle {
                    path: vec![next.name().to_owned(), next.name().to_owned()],
                };
                errors.push(RecipeError::Extends { place, path, problem });
                return merged;
            }
            Ok(next) => source = next,
            Err(problem) => {
                errors.push(RecipeError::Extends { place, path, problem });
                // The rest can't be checked without what is missing: names would seem unknown that are not.
                merged.entries.clear();
                return merged;
            }
        }
        parent(&resolved).clone_into(&mut directory);
        chain.push(normal);
    }
}

/// Fills `base` into `entries`, tables by key down to `[kind.name]`, everything else whole.
fn merge(entries: &mut Vec<RawEntry>, base: Vec<RawEntry>, depth: usize) {
    // By key: a recipe may have 100,000 of them. The keys of one table are distinct.
    let at: HashMap<String, usize> = entries.iter().map(|entry| entry.key.clone()).zip(0..).collect();
    for addition in base {
        let Some(present) = at.get(&addition.key).and_then(|at| entries.get_mut(*at)) else {
            entries.push(addition);
            continue;
        };
        if let (RawValue::Table(present), RawValue::Table(addition), true) =
            (&mut present.value.value, addition.value.value, depth < 2)
        {
            merge(present, addition, depth + 1);
        }
    }
}

/// Returns `path`, stated relative to `directory`, relative to what `directory` is relative to.
pub(crate) fn resolve(directory: &str, path: &str) -> String {
    if directory.is_empty() || std::path::Path::new(path).is_absolute() {
        path.to_owned()
    } else if directory.ends_with('/') {
        format!("{directory}{path}")
    } else {
        format!("{directory}/{path}")
    }
}

fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) => "/",
        Some(at) => &path[..at],
        None => "",
    }
}

/// Returns the path without `.` and, as far as names alone can tell, without `..`.
fn normalize(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." if parts.last().is_some_and(|last| !matches!(*last, ".." | "")) => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_resolve_by_names() {
        assert_eq!(resolve("", "a.gguf"), "a.gguf");
        assert_eq!(resolve("base", "a.gguf"), "base/a.gguf");
        assert_eq!(resolve("base", "/m/a.gguf"), "/m/a.gguf");
        assert_eq!(resolve("/", "a.gguf"), "/a.gguf");
        assert_eq!(parent("a/b/c.toml"), "a/b");
        assert_eq!(parent("/c.toml"), "/");
        assert_eq!(parent("c.toml"), "");
        assert_eq!(normalize("./a/../b/./c"), "b/c");
        assert_eq!(normalize("../a/.."), "..");
    }

    #[test]
    fn places_inside_strings_are_exact_where_they_can_be() {
        let source = Source::new("r", "a = \"kld < 1\"\nb = \"k\\u006cd < 1\"\n");
        let entries = read(&source, 0).unwrap();
        let at = |index: usize| inside(&entries[index].value.place, "kld < 1", 0..3).span.range();
        assert_eq!(&source.text()[at(0)], "kld");
        assert_eq!(&source.text()[at(1)], "\"k\\u006cd < 1\"", "escapes: the whole value");
    }

    #[test]
    fn all_syntax_errors_are_reported() {
        let errors = read(&Source::new("r", "a = \nb = 2\nc = \"x\nd = 3\n"), 0).unwrap_err();
        assert!(errors.len() >= 2, "{errors:?}");
    }

    #[test]
    fn deep_nesting_is_refused_without_a_stack_overflow() {
        let arrays = format!("a = {}{}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(read(&Source::new("r", arrays), 0).is_err());
        let dotted = format!("{}a = 1", "a.".repeat(20_000));
        let _ = read(&Source::new("r", dotted), 0);
        let header = format!("[{}a]\n", "a.".repeat(20_000));
        let _ = read(&Source::new("r", header), 0);
    }
}
