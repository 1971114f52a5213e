//! Directories, names in them, and the free space of a disk.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::PathError;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without the directory.
    pub name: OsString,
    /// True if it is a directory itself (a symbolic link to one is not).
    pub is_dir: bool,
    /// True if it is a regular file itself (a symbolic link to one is not).
    pub is_file: bool,
}

/// Lists a directory, sorted by name so that nothing depends on the order on disk.
pub fn list(path: &Path) -> Result<Vec<Entry>, PathError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(PathError::on(path, "list"))? {
        let entry = entry.map_err(PathError::on(path, "list"))?;
        let kind = match entry.file_type() {
            Ok(kind) => kind,
            // Where the file system does not say it with the name, it may be gone by now.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(PathError::new(&entry.path(), "look at", error)),
        };
        entries.push(Entry {
            name: entry.file_name(),
            is_dir: kind.is_dir(),
            is_file: kind.is_file(),
        });
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
    if create_dir(path)? { sync_dir(parent) } else { Ok(()) }
}

/// Makes one directory with mode 0755 whatever the umask says; says whether it was not there. Nothing is synced.
pub fn create_dir(path: &Path) -> Result<bool, PathError> {
    match fs::create_dir(path) {
        Ok(()) => {
            let mode = fs::Permissions::from_mode(0o755);
            fs::set_permissions(path, mode).map_err(PathError::on(path, "set the mode of"))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
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
    fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(PathError::on(path, "sync directory"))
}

/// Returns true if something is there. A broken symbolic link is not; what cannot be looked at is an error.
pub fn exists(path: &Path) -> Result<bool, PathError> {
    path.try_exists().map_err(PathError::on(path, "look at"))
}

/// Returns the absolute path of something that is there, with all symbolic links followed.
pub fn resolve(path: &Path) -> Result<PathBuf, PathError> {
    fs::canonicalize(path).map_err(PathError::on(path, "resolve"))
}

/// Returns true if the path is a plain file (no symbolic link) that has no other name.
pub fn is_only_name(path: &Path) -> Result<bool, PathError> {
    let facts = fs::symlink_metadata(path).map_err(PathError::on(path, "look at"))?;
    Ok(facts.is_file() && facts.nlink() == 1)
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

/// Returns the path, or the first of those above it at which there is something.
pub fn nearest_existing(path: &Path) -> &Path {
    let mut nearest = path;
    while nearest.parent().is_some()
        && fs::metadata(nearest).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    {
        nearest = parent_of(nearest);
    }
    nearest
}

/// Checks that files can be created in a directory, which need not exist yet.
///
/// # Errors
///
/// The directory, or the first of those above it that exists, is no directory, or the user may not write to it.
pub fn check_writable(path: &Path) -> Result<(), PathError> {
    let nearest = nearest_existing(path);
    let facts = fs::metadata(nearest).map_err(PathError::on(nearest, "look at"))?;
    if !facts.is_dir() {
        return Err(PathError::new(nearest, "write to", io::ErrorKind::NotADirectory.into()));
    }
    let needed = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    rustix::fs::access(nearest, needed).map_err(|error| PathError::new(nearest, "write to", error.into()))
}

/// Returns how many bytes the user may still write to the file system that holds `path`.
pub fn free_space(path: &Path) -> Result<u64, PathError> {
    let facts =
        rustix::fs::statvfs(path).map_err(|error| PathError::new(path, "measure the space at", error.into()))?;
    Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_listed_in_order_and_removed_with_all_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("b/c");
        create_dir_all(&sub).unwrap();
        create_dir_all(&sub).unwrap();
        fs::write(dir.path().join("c"), b"").unwrap();
        fs::write(dir.path().join("a"), b"").unwrap();
        let names: Vec<_> = list(dir.path())
            .unwrap()
            .into_iter()
            .map(|entry| (entry.name, entry.is_dir))
            .collect();
        assert_eq!(names, [("a".into(), false), ("b".into(), true), ("c".into(), false)]);
        assert!(remove_dir_all(&dir.path().join("b")).unwrap());
        assert!(!remove_dir_all(&dir.path().join("b")).unwrap());
        assert!(remove_file(&dir.path().join("a")).unwrap());
        assert!(!remove_file(&dir.path().join("a")).unwrap());
        let error = create_dir_all(&dir.path().join("c/d")).unwrap_err();
        assert_eq!(
            (error.kind(), error.path),
            (io::ErrorKind::AlreadyExists, dir.path().join("c"))
        );
        assert!(free_space(dir.path()).unwrap() > 0);
    }

    #[test]
    fn a_link_or_a_second_name_is_not_the_only_name() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, second] = ["file", "link", "second"].map(|name| dir.path().join(name));
        fs::write(&file, b"").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(is_only_name(&file).unwrap());
        assert!(!is_only_name(&link).unwrap());
        fs::hard_link(&file, &second).unwrap();
        assert!(!is_only_name(&file).unwrap());
    }
}
