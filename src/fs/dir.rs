//! Directories, names in them, and the room that is left.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::fs::PathError;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without the directory.
    pub name: OsString,
    /// True if it is a directory itself (a symbolic link to one is not).
    pub is_dir: bool,
}

/// Lists a directory, sorted by name so that nothing depends on the order on disk.
pub fn list(path: &Path) -> Result<Vec<Entry>, PathError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(PathError::on(path, "list"))? {
        let entry = entry.map_err(PathError::on(path, "list"))?;
        let is_dir = entry.file_type().map_err(PathError::on(&entry.path(), "look at"))?.is_dir();
        entries.push(Entry { name: entry.file_name(), is_dir });
    }
    entries.sort();
    Ok(entries)
}

/// Makes a directory and those above it, each with mode 0755 whatever the umask says, and syncs the directory above
/// each one that it made. Those that are there already stay as they are.
pub fn create_dir_all(path: &Path) -> Result<(), PathError> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_dir_all(parent)?;
    match fs::create_dir(path) {
        Ok(()) => {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(path, mode).map_err(PathError::on(path, "set the mode of"))?;
            sync_dir(parent)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(PathError::new(path, "create directory", error)),
    }
}

/// Returns the directory that holds a path: `.` for a bare name.
pub(super) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), PathError> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(PathError::on(path, "sync directory"))
}

/// Returns true if something is there. A broken symbolic link is not; what cannot be looked at is an error.
pub fn exists(path: &Path) -> Result<bool, PathError> {
    path.try_exists().map_err(PathError::on(path, "look at"))
}

/// Renames within one file system; what stood at `to` is replaced in one step. Nothing is synced.
pub fn rename(from: &Path, to: &Path) -> Result<(), PathError> {
    fs::rename(from, to).map_err(PathError::on(to, "rename to"))
}

/// Removes a file; says whether there was one.
pub fn remove_file(path: &Path) -> Result<bool, PathError> {
    gone(path, fs::remove_file(path))
}

/// Removes a directory with all that is in it, following no links; says whether there was one.
pub fn remove_dir_all(path: &Path) -> Result<bool, PathError> {
    gone(path, fs::remove_dir_all(path))
}

fn gone(path: &Path, outcome: io::Result<()>) -> Result<bool, PathError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PathError::new(path, "remove", error)),
    }
}

/// Returns how many bytes the user may still write to the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64, PathError> {
    let facts = rustix::fs::statvfs(path).map_err(|error| PathError::new(path, "measure the space at", error.into()))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}
