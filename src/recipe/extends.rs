//! Recipes that extend other recipes.

use std::collections::HashMap;

use crate::syntax::error::ExtendsProblem;
use crate::syntax::error::LoadError;
use crate::syntax::error::RecipeError;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::syntax::raw::read;
use crate::text::Source;

/// How many files may extend each other in a row.
const MAX_DEPTH: usize = 16;

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
            crate::recipe::version::check(version.as_ref(), &merged.files[file].source, errors);
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

/// Returns the path without `.` and, as far as names alone allow, without `..`.
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
}
