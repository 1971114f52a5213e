//! Brings the bytes of one file under another name, as a file of its own.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::fs::Durability;
use crate::fs::NamedFile;
use crate::fs::PathError;
use crate::fs::TempFile;
use crate::fs::dir::parent_of;

const BLOCK: usize = 1 << 20;

/// Sees the bytes of a file go by, block after block, and at the end `None`; an error stops everything.
pub type Check<'a, E> = dyn FnMut(Option<&[u8]>) -> Result<(), E> + 'a;

/// Brings the bytes of `from` to the path `to`: a fresh file (never a hard link), by reflink where the file system has
/// it, else by copying, under a temporary name in the directory of `to` first. Every byte of the fresh file passes
/// through `check`, in order, and then `None`, before it gets its name; if `check` returns an error, nothing is left.
///
/// # Errors
///
/// Whatever `check` returns, or a [`PathError`] turned into `E`.
pub fn place<E: From<PathError>>(
    from: &File,
    from_path: &Path,
    to: &Path,
    check: &mut Check<'_, E>,
) -> Result<NamedFile, E> {
    let mut temp = TempFile::new_in(parent_of(to))?;
    let (source, copies) = match reflink(from_path, from, &temp)? {
        Some(shared) => {
            temp = shared;
            (None, false)
        }
        None => (Some(from), true),
    };
    let mut block = vec![0; BLOCK];
    let mut input = source
        .unwrap_or(temp.file())
        .try_clone()
        .map_err(PathError::on(from_path, "read"))?;
    loop {
        let read = match input.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PathError::new(from_path, "read", error).into()),
        };
        check(Some(&block[..read]))?;
        if copies {
            temp.write_all(&block[..read]).map_err(PathError::on(to, "write"))?;
        }
    }
    check(None)?;
    Ok(temp.persist(to, Durability::Synced)?)
}

/// Makes a reflink of `from` in place of the empty `temp`, with the mode that `temp` has; `None` where that cannot be.
fn reflink(from_path: &Path, from: &File, temp: &TempFile) -> Result<Option<TempFile>, PathError> {
    let shared = temp.path().with_added_extension("reflink");
    if reflink_copy::reflink(from_path, &shared).is_err() {
        return Ok(None);
    }
    // From here on the file goes away by itself unless it is kept.
    let shared = TempFile::adopt(&shared)?;
    let mode = temp
        .file()
        .metadata()
        .map_err(PathError::on(temp.path(), "look at"))?
        .mode();
    shared.set_mode(mode & 0o7777)?;
    // The name may now refer to another file between the open and the reflink: then copy what was opened.
    let opened = from.metadata().map_err(PathError::on(from_path, "look at"))?;
    let named = fs::metadata(from_path).map_err(PathError::on(from_path, "look at"))?;
    let same = (opened.dev(), opened.ino()) == (named.dev(), named.ino());
    Ok(same.then_some(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(from: &Path, to: &Path, good: bool) -> Result<Vec<u8>, PathError> {
        let mut seen = Vec::new();
        place(&crate::fs::open(from)?, from, to, &mut |bytes| match bytes {
            Some(bytes) => {
                seen.extend_from_slice(bytes);
                Ok(())
            }
            None if good => Ok(()),
            None => Err(PathError::new(from, "verify", io::ErrorKind::InvalidData.into())),
        })?;
        Ok(seen)
    }

    #[test]
    fn the_fresh_file_shares_nothing_that_can_be_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let bytes: Vec<u8> = (0..3 * BLOCK + 7).map(|at| at as u8).collect();
        fs::write(&from, &bytes).unwrap();
        crate::fs::make_read_only(&from).unwrap();
        fs::write(&to, b"what stood there").unwrap();
        let seen = run(&from, &to, true).unwrap();
        assert_eq!(seen, bytes, "every byte passed the check");
        let facts = fs::metadata(&to).unwrap();
        assert_eq!(facts.nlink(), 1);
        assert_ne!(facts.ino(), fs::metadata(&from).unwrap().ino());
        assert_eq!(facts.mode() & 0o200, 0o200, "the user may write to an output");
        fs::write(&to, b"edited").unwrap();
        assert_eq!(fs::read(&from).unwrap(), bytes);
    }

    #[test]
    fn a_failed_check_keeps_the_old_file_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, b"bytes").unwrap();
        fs::write(&to, b"old").unwrap();
        assert!(run(&from, &to, false).is_err());
        assert_eq!(fs::read(&to).unwrap(), b"old");
        assert_eq!(crate::fs::list(dir.path()).unwrap().len(), 2, "no temporary file stays");
    }
}
