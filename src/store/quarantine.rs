//! Entries that have the name of a file of the store and are not files: a directory, a link, a pipe, a socket. They are moved to
//! `quarantine/`, never followed and never emptied, and count as missing.

use std::path::Path;
use std::path::PathBuf;

use crate::digest::Hash;
use crate::fs;
use crate::fs::File;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;

/// The mode of the store's blobs and results.
const READ_ONLY: u32 = 0o444;

/// Something that was moved to the quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Quarantined {
    pub(super) path: PathBuf,
    pub(super) to: PathBuf,
    /// What it was, such as `a named pipe`.
    pub(super) what: &'static str,
}

/// Quarantines what has the name of a file of the store and is not a regular file. Returns `None` if there is no such entry. The
/// only lock that it takes is the one on the quarantine, so callers may hold other locks.
pub(super) fn quarantine_unless_file(root: &Path, path: &Path) -> Result<Option<Quarantined>, StoreError> {
    move_if(root, path, |kind| kind != FileKind::Plain)
}

/// Quarantines what has the name of a directory of the store and is not a directory.
pub(super) fn quarantine_unless_directory(root: &Path, path: &Path) -> Result<Option<Quarantined>, StoreError> {
    move_if(root, path, |kind| kind != FileKind::Directory)
}

fn move_if(root: &Path, path: &Path, wanted: impl Fn(FileKind) -> bool) -> Result<Option<Quarantined>, StoreError> {
    // In most cases there is nothing to move, and this takes one `stat`.
    if !fs::facts(path)?.is_some_and(|found| wanted(found.kind)) {
        return Ok(None);
    }
    let quarantine = root.join(layout::QUARANTINE);
    fs::create_dir_all(&quarantine)?;
    // One at a time: another process may have moved it already and put a file in its place.
    let _lock = fs::lock_directory(&quarantine)?;
    if !fs::facts(path)?.is_some_and(|found| wanted(found.kind)) {
        return Ok(None);
    }
    let what = fs::what_is(path).unwrap_or("something else");
    let hash = hash_in_path(root, path).unwrap_or_else(|| Hash::of(path.as_os_str().as_encoded_bytes()));
    let to = free_name(&quarantine, &hash, ".odd")?;
    match fs::rename(path, &to) {
        Ok(()) => Ok(Some(Quarantined {
            path: path.to_owned(),
            to,
            what,
        })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the hash in a path of the store (`ab/cdef...`), if it has one.
fn hash_in_path(root: &Path, path: &Path) -> Option<Hash> {
    let within = path.strip_prefix(root).ok()?;
    let mut parts = within.iter().rev();
    let (rest, first) = (parts.next()?, parts.next()?);
    format!("{}{}", first.to_str()?, rest.to_str()?).parse().ok()
}

/// Returns whether a path is that of a file that is stored under a hash, such as a blob or a result.
pub(super) fn is_hash_path(root: &Path, path: &Path) -> bool {
    hash_in_path(root, path).is_some()
}

/// Returns a free path in the quarantine.
pub(super) fn free_name(quarantine: &Path, hash: &Hash, suffix: &str) -> Result<PathBuf, StoreError> {
    let mut count = 0_u64;
    let mut to = quarantine.join(format!("{hash}-{count}{suffix}"));
    while fs::facts(&to)?.is_some() {
        count += 1;
        to = quarantine.join(format!("{hash}-{count}{suffix}"));
    }
    Ok(to)
}

/// Removes a file of the store, or a directory with its contents. Follows no link. Returns whether it existed.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    Ok(match fs::facts(path)? {
        Some(found) if found.kind == FileKind::Directory => fs::remove_dir_all(path)?,
        Some(_) => fs::remove_file(path)?,
        None => false,
    })
}

/// Opens a file of the store. If its mode forbids reading, restores the mode if the user may do so.
pub(super) fn open_own(path: &Path) -> Result<(File, Stamp), fs::PathError> {
    match fs::open_plain(path) {
        Err(error) if error.is_permission() && fs::restore_mode(path, READ_ONLY) => fs::open_plain(path),
        opened => opened,
    }
}

/// Reads a small file of the store. Restores its mode as [`open_own`] does.
pub(super) fn read_own(path: &Path, cap: u64) -> Result<(Vec<u8>, Stamp), fs::PathError> {
    match fs::read_plain(path, cap) {
        Err(error) if error.is_permission() && fs::restore_mode(path, READ_ONLY) => fs::read_plain(path, cap),
        read => read,
    }
}

impl Store {
    /// Quarantines what has the name of a file of the store and is not a regular file.
    pub(super) fn quarantine_unless_file(&self, path: &Path) -> Result<Option<Quarantined>, StoreError> {
        quarantine_unless_file(self.root(), path)
    }

    /// Removes a file of the store that may be removed at any time. Quarantines what is not a file. Returns whether there was
    /// anything.
    pub(super) fn discard(&self, path: &Path) -> Result<bool, StoreError> {
        if self.quarantine_unless_file(path)?.is_some() {
            return Ok(true);
        }
        Ok(fs::remove_file(path)?)
    }
}
