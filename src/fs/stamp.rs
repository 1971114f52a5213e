//! What the file system knows about a file without reading it.

use std::fs;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::fs::PathError;

/// Which file it is and when it last changed. Stamps are compared for equality only, never for order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The device that holds the file.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its bytes last changed, in nanoseconds since 1970. Anybody may set this.
    pub mtime_ns: i64,
    /// When its bytes or its facts last changed, in nanoseconds since 1970. Only the kernel sets this.
    pub ctime_ns: i64,
}

impl Stamp {
    /// Looks at a path, following symbolic links.
    pub fn of(path: &Path) -> Result<Self, PathError> {
        fs::metadata(path)
            .map(|facts| Self::from(&facts))
            .map_err(PathError::on(path, "look at"))
    }

    /// Looks at an open file; `path` is only for the error.
    pub fn of_file(file: &File, path: &Path) -> Result<Self, PathError> {
        file.metadata()
            .map(|facts| Self::from(&facts))
            .map_err(PathError::on(path, "look at"))
    }

    /// Looks at a path; `None` if nothing is there or it is not a plain file.
    pub fn of_plain_file(path: &Path) -> Result<Option<Self>, PathError> {
        match fs::metadata(path) {
            Ok(facts) => Ok(facts.is_file().then(|| Self::from(&facts))),
            Err(error) => {
                let error = PathError::new(path, "look at", error);
                if error.is_not_found() { Ok(None) } else { Err(error) }
            }
        }
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(facts: &fs::Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
        Self {
            dev: facts.dev(),
            ino: facts.ino(),
            size: facts.size(),
            mtime_ns: nanos(facts.mtime(), facts.mtime_nsec()),
            ctime_ns: nanos(facts.ctime(), facts.ctime_nsec()),
        }
    }
}
