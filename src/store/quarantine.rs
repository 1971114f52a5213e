//! What stands in the store under the name of a file and is none: a directory, a link, a pipe, a socket. It is moved to
//! `quarantine/`, never followed and never emptied, and the store goes on without it.

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
pub(super) struct Moved {
    pub(super) path: PathBuf,
    pub(super) to: PathBuf,
    /// What it was, in words.
    pub(super) what: &'static str,
}

/// Moves what has the name of a file of the store and is no regular file to the quarantine; returns nothing if there is
/// nothing of that kind. It takes no lock but one on the quarantine itself, so whoever holds another may call it.
pub(super) fn quarantine_unless_file(root: &Path, path: &Path) -> Result<Option<Moved>, StoreError> {
    move_if(root, path, |kind| kind != FileKind::Plain)
}

/// Does what [`quarantine_unless_file`] does where the name is that of a directory, and a file has it.
pub(super) fn quarantine_unless_directory(root: &Path, path: &Path) -> Result<Option<Moved>, StoreError> {
    move_if(root, path, |kind| kind != FileKind::Directory)
}

fn move_if(root: &Path, path: &Path, wanted: impl Fn(FileKind) -> bool) -> Result<Option<Moved>, StoreError> {
    // Mostly there is nothing to move, and that takes one look.
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
    let hash = hash_of_place(root, path).unwrap_or_else(|| Hash::of(path.as_os_str().as_encoded_bytes()));
    let to = free_name(&quarantine, &hash, ".odd")?;
    match fs::rename(path, &to) {
        Ok(()) => Ok(Some(Moved {
            path: path.to_owned(),
            to,
            what,
        })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the hash that a place in the store stands for (`ab/cdef...`), if it is one of those.
fn hash_of_place(root: &Path, path: &Path) -> Option<Hash> {
    let within = path.strip_prefix(root).ok()?;
    let mut parts = within.iter().rev();
    let (rest, first) = (parts.next()?, parts.next()?);
    format!("{}{}", first.to_str()?, rest.to_str()?).parse().ok()
}

/// Returns whether a path is one that a blob, a result, or another file that is stored under a hash could have.
pub(super) fn is_place(root: &Path, path: &Path) -> bool {
    hash_of_place(root, path).is_some()
}

/// Returns a path in the quarantine that nothing has yet.
pub(super) fn free_name(quarantine: &Path, hash: &Hash, suffix: &str) -> Result<PathBuf, StoreError> {
    let mut count = 0_u64;
    let mut to = quarantine.join(format!("{hash}-{count}{suffix}"));
    while fs::facts(&to)?.is_some() {
        count += 1;
        to = quarantine.join(format!("{hash}-{count}{suffix}"));
    }
    Ok(to)
}

/// Removes something from the store, be it a file or a directory with all that is in it, no link followed; says whether
/// there was anything.
pub(super) fn remove(path: &Path) -> Result<bool, StoreError> {
    Ok(match fs::facts(path)? {
        Some(found) if found.kind == FileKind::Directory => fs::remove_dir_all(path)?,
        Some(_) => fs::remove_file(path)?,
        None => false,
    })
}

/// Opens a file of the store. One whose mode was taken from it gets it back, if this user may do that.
pub(super) fn open_own(path: &Path) -> Result<(File, Stamp), fs::PathError> {
    match fs::open_plain(path) {
        Err(error) if error.is_permission() && fs::restore_mode(path, READ_ONLY) => fs::open_plain(path),
        opened => opened,
    }
}

/// Reads a small file of the store, as [`open_own`] opens it.
pub(super) fn read_own(path: &Path, cap: u64) -> Result<(Vec<u8>, Stamp), fs::PathError> {
    match fs::read_plain(path, cap) {
        Err(error) if error.is_permission() && fs::restore_mode(path, READ_ONLY) => fs::read_plain(path, cap),
        read => read,
    }
}

impl Store {
    /// Moves what has the name of a file of the store and is no regular file to the quarantine.
    pub(super) fn quarantine_unless_file(&self, path: &Path) -> Result<Option<Moved>, StoreError> {
        quarantine_unless_file(self.root(), path)
    }

    /// Removes a file of the store that may be removed at any time; what is no file is moved aside. Says whether the name
    /// was taken.
    pub(super) fn discard(&self, path: &Path) -> Result<bool, StoreError> {
        if self.quarantine_unless_file(path)?.is_some() {
            return Ok(true);
        }
        Ok(fs::remove_file(path)?)
    }
}
