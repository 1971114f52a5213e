//! Errors of the file system, each with its path.

use std::io;
use std::path::Path;
use std::path::PathBuf;

/// An operation on a path failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`: {source}{}", path.display(), searched(path, source.kind()))]
pub struct PathError {
    /// The path.
    pub path: PathBuf,
    /// What was being done, as a verb: `open`, `read`, `sync`, ...
    pub operation: &'static str,
    /// What the system answered.
    pub source: io::Error,
}

impl PathError {
    /// Joins a path, an operation (a verb) and what the system answered.
    pub fn new(path: &Path, operation: &'static str, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            operation,
            source: with_size_limit(source),
        }
    }

    /// Returns a closure for `map_err` that adds `path` and `operation` to an `io::Error`.
    pub fn on(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(path, operation, source)
    }

    /// Returns the kind of the system's answer.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// Returns true if the path, or a directory on the way to it, is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
    }

    /// Returns true if there is no space: the disk is full, or the user's quota is used up.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Returns true if a file would have become larger than this process, or the file system, allows.
    pub fn is_over_size_limit(&self) -> bool {
        matches!(self.source.get_ref(), Some(inner) if inner.is::<OverSizeLimit>())
    }

    /// Returns true if the user may not do this here: no permission, or the file system is read-only.
    pub fn is_permission(&self) -> bool {
        matches!(
            self.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}

/// Returns that a file is not there, with the whole path that was looked for.
pub fn no_such_file(path: &Path) -> String {
    format!("there is no such file{}", searched(path, io::ErrorKind::NotFound))
}

/// Returns where a path that is not there was looked for, if it does not say that itself.
fn searched(path: &Path, found: io::ErrorKind) -> String {
    if found == io::ErrorKind::NotFound && path.is_relative() {
        let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        format!("; looked for `{}`", whole.display())
    } else {
        String::new()
    }
}

/// A file would have become too large.
#[derive(Debug, thiserror::Error)]
#[error("the file would be larger than {}", match .limit {
    Some(limit) => format!("the limit of this process, {limit} bytes (`ulimit -f`)"),
    None => "the file system allows".to_owned(),
})]
struct OverSizeLimit {
    /// The limit of the process in bytes, if it has one.
    limit: Option<u64>,
}

/// Puts the limit on file size into the system's `EFBIG`, which names none.
fn with_size_limit(source: io::Error) -> io::Error {
    if source.raw_os_error() != Some(rustix::io::Errno::FBIG.raw_os_error()) {
        return source;
    }
    let limit = crate::fs::file_size_limit();
    io::Error::new(io::ErrorKind::FileTooLarge, OverSizeLimit { limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_that_is_not_there_is_shown_whole() {
        let message = |path: &Path, kind: io::ErrorKind| PathError::new(path, "open", kind.into()).to_string();
        let here = std::path::absolute("a.gguf").unwrap();
        let found = message(Path::new("a.gguf"), io::ErrorKind::NotFound);
        assert!(
            found.ends_with(&format!("; looked for `{}`", here.display())),
            "{found}"
        );
        for (path, kind) in [
            (here.as_path(), io::ErrorKind::NotFound),
            (Path::new("a.gguf"), io::ErrorKind::PermissionDenied),
        ] {
            assert!(!message(path, kind).contains("looked for"));
        }
    }

    #[test]
    fn a_file_that_is_too_large_for_the_system_is_not_one_that_is_too_large_to_read() {
        let path = Path::new("a.gguf");
        let error = PathError::new(path, "write", io::Error::from(rustix::io::Errno::FBIG));
        assert!(error.is_over_size_limit());
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(
            error
                .to_string()
                .starts_with("cannot write `a.gguf`: the file would be larger than the "),
            "{error}"
        );
        let error = PathError::new(path, "read", io::ErrorKind::FileTooLarge.into());
        assert!(!error.is_over_size_limit());
    }
}
