//! Errors of the file system, each with its path.

use std::io;
use std::path::Path;
use std::path::PathBuf;

/// An operation on a path failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`: {source}", path.display())]
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
            source,
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

    /// Returns true if there is no room: the disk is full, or the user's quota is used up.
    pub fn is_disk_full(&self) -> bool {
        matches!(self.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Returns true if the user may not do this here: no permission, or the file system is read-only.
    pub fn is_permission(&self) -> bool {
        matches!(
            self.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}
