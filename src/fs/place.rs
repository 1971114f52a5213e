//! Brings the bytes of one file under another name, as a file of its own.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::fs::Durability;
use crate::fs::PathError;
use crate::fs::TempFile;
use crate::fs::dir::parent_of;

/// How the bytes came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The two files share their blocks until one is written to.
    Reflink,
    /// The bytes were copied.
    Copy,
}

const BLOCK: usize = 1 << 20;

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
    check: &mut dyn FnMut(Option<&[u8]>) -> Result<(), E>,
) -> Result<Placed, E> {
    let mut temp = TempFile::new_in(parent_of(to))?;
    let (source, placed) = match reflink(from_path, from, &temp)? {
        Some(shared) => {
            temp = shared;
            (None, Placed::Reflink)
        }
        None => (Some(from), Placed::Copy),
    };
    let mut block = vec![0; BLOCK];
    let mut input = source.unwrap_or(temp.file()).try_clone().map_err(PathError::on(from_path, "read"))?;
    loop {
        let read = match input.read(&mut block) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(PathError::new(from_path, "read", error).into()),
        };
        check(Some(&block[..read]))?;
        if placed == Placed::Copy {
            temp.write_all(&block[..read]).map_err(PathError::on(to, "write"))?;
        }
    }
    check(None)?;
    temp.persist(to, Durability::Synced)?;
    Ok(placed)
}

/// Makes a reflink of `from` in place of the empty `temp`, with the mode that `temp` has; `None` where that cannot be.
fn reflink(from_path: &Path, from: &File, temp: &TempFile) -> Result<Option<TempFile>, PathError> {
    let shared = temp.path().with_added_extension("reflink");
    if reflink_copy::reflink(from_path, &shared).is_err() {
        return Ok(None);
    }
    // From here on the file goes away by itself unless it is kept.
    let shared = TempFile::adopt(&shared)?;
    let mode = temp.file().metadata().map_err(PathError::on(temp.path(), "look at"))?.mode();
    shared.set_mode(mode & 0o7777)?;
    // The name could have come to stand for another file between the open and the reflink: then copy what was opened.
    let opened = from.metadata().map_err(PathError::on(from_path, "look at"))?;
    let named = fs::metadata(from_path).map_err(PathError::on(from_path, "look at"))?;
    let same = (opened.dev(), opened.ino()) == (named.dev(), named.ino());
    Ok(same.then_some(shared))
}
