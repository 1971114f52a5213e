//! File patterns of recipes, and the files that match them.

use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use crate::fs;

/// Why the files of a pattern cannot be listed.
#[derive(Debug)]
pub enum Unmatched {
    /// It is not a pattern.
    Pattern(&'static str),
    /// A folder cannot be read.
    Folder(glob::GlobError),
    /// The metadata of a file cannot be read.
    File(fs::PathError),
    /// A file that matches has a name that is not UTF-8, so no manifest can name it.
    NotUtf8(PathBuf),
}

/// Returns whether a path of a recipe is a pattern.
pub fn is_pattern(resolved: &str) -> bool {
    resolved.contains(['*', '?', '['])
}

/// Returns the files that match a pattern, sorted by name; a relative pattern starts in `folder`. A name that starts with a
/// dot is matched only by a part of the pattern that does.
pub fn matches(resolved: &str, folder: &Path) -> Result<Vec<PathBuf>, Unmatched> {
    let options = glob::MatchOptions {
        // `glob` panics with this option where any name in a folder is not UTF-8: `is_hidden` does its work.
        require_literal_leading_dot: false,
        require_literal_separator: true,
        case_sensitive: true,
    };
    let absolute = anchored(resolved, folder);
    let matches = glob::glob_with(&absolute, options).map_err(|error| Unmatched::Pattern(error.msg))?;
    check_names(&absolute)?;
    let mut files: Vec<PathBuf> = Vec::new();
    for path in matches {
        let path = match path {
            Ok(path) if is_hidden(&path, &absolute) => continue,
            Ok(path) => path,
            Err(error) if is_hidden(error.path(), &absolute) => continue,
            Err(error) => return Err(Unmatched::Folder(error)),
        };
        if fs::Stamp::of_plain_file(&path).map_err(Unmatched::File)?.is_some() {
            files.push(path);
        }
    }
    // `glob` sorts by name, too, but the order must not depend on that.
    files.sort();
    Ok(files)
}

/// Returns whether a part of the path starts with a dot and no part of the pattern that starts with one stands for it.
fn is_hidden(path: &Path, pattern: &str) -> bool {
    let dotted: Vec<glob::Pattern> = Path::new(pattern)
        .components()
        .filter_map(|part| part.as_os_str().to_str())
        .filter(|part| part.starts_with('.'))
        .filter_map(|part| glob::Pattern::new(part).ok())
        .collect();
    path.components().any(|part| match part {
        Component::Normal(name) => {
            let name = name.to_string_lossy();
            name.starts_with('.') && !dotted.iter().any(|pattern| pattern.matches(&name))
        }
        _ => false,
    })
}

/// Fails if the folder that a pattern names without wildcards holds a file that it would match, were the name UTF-8. `glob`
/// skips such a file, and a text would silently be missing.
fn check_names(pattern: &str) -> Result<(), Unmatched> {
    let (folder, last) = match pattern.rsplit_once('/') {
        Some(("", last)) => ("/", last),
        Some((folder, last)) => (folder, last),
        None => (".", pattern),
    };
    // Brackets may only escape a character. Then the folder is not found under this name, and there is no error.
    let (Ok(last), false) = (glob::Pattern::new(last), is_pattern(folder)) else {
        return Ok(());
    };
    let entries = fs::list(Path::new(folder)).unwrap_or_default();
    let unnamed = entries
        .into_iter()
        .find(|entry| entry.name.to_str().is_none() && last.matches(&entry.name.to_string_lossy()));
    match unnamed {
        Some(entry) => Err(Unmatched::NotUtf8(Path::new(folder).join(entry.name))),
        None => Ok(()),
    }
}

/// Returns a pattern that starts in `folder`, whatever characters the folder's name has.
pub fn anchored(resolved: &str, folder: &Path) -> String {
    let base = glob::Pattern::escape(&folder.to_string_lossy());
    if Path::new(resolved).is_absolute() || base.is_empty() {
        resolved.to_owned()
    } else {
        format!("{base}/{resolved}")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    #[test]
    fn names_that_start_with_a_dot_take_a_dot_in_the_pattern() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", ".b.txt", ".c/d.txt", "e/f.txt", "e/.g.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text").unwrap();
        }
        let found = |pattern: &str| -> Vec<String> {
            let files = matches(pattern, dir.path()).unwrap();
            let names = files.iter().map(|file| file.strip_prefix(dir.path()).unwrap());
            names.map(|name| name.display().to_string()).collect()
        };
        assert_eq!(found("*.txt"), ["a.txt"]);
        assert_eq!(found(".*.txt"), [".b.txt"]);
        assert_eq!(found("*/*.txt"), ["e/f.txt"]);
        assert_eq!(found(".c/*.txt"), [".c/d.txt"]);
        assert_eq!(found("**/*.txt"), ["a.txt", "e/f.txt"]);
    }

    #[test]
    fn a_name_that_is_not_utf8_is_refused_where_it_matches_and_harmless_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.txt"), "text").unwrap();
        std::fs::write(dir.path().join(OsStr::from_bytes(b"\xff.md")), "text").unwrap();
        assert_eq!(matches("*.txt", dir.path()).unwrap().len(), 1);
        let odd = dir.path().join(OsStr::from_bytes(b"\xff.txt"));
        std::fs::write(&odd, "text").unwrap();
        assert!(matches!(matches("*.txt", dir.path()), Err(Unmatched::NotUtf8(path)) if path == odd));
        assert_eq!(matches("a*.txt", dir.path()).unwrap().len(), 1);
    }
}
