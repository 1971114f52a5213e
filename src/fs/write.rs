//! Files that are whole or absent.

use std::fs;
use std::fs::File;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::fs::PathError;
use crate::fs::dir::parent_of;
use crate::fs::dir::sync_dir;

/// Whether a write must outlast a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Bytes, then name are synced.
    Synced,
    /// Nothing is synced: for what can be told broken when it is read, and is cheap to lose.
    Fast,
}

/// A file under a name of its own that goes away unless it is persisted.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// Makes an empty file in `dir`, with the mode that the umask gives.
    pub fn new_in(dir: &Path) -> Result<Self, PathError> {
        loop {
            let path = dir.join(unique_name());
            match fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
            {
                Ok(file) => {
                    return Ok(Self {
                        file,
                        path,
                        kept: false,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PathError::new(&path, "create", error)),
            }
        }
    }

    /// Takes over a file that is there already; it goes away unless it is persisted.
    pub fn adopt(path: &Path) -> Result<Self, PathError> {
        let file = crate::fs::open(path)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            kept: false,
        })
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns where the file is for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the bytes and the mode durable.
    pub fn sync(&self) -> Result<(), PathError> {
        self.file.sync_all().map_err(PathError::on(&self.path, "sync"))
    }

    /// Sets the mode, whatever the umask says.
    pub fn set_mode(&self, mode: u32) -> Result<(), PathError> {
        let mode = fs::Permissions::from_mode(mode);
        self.file
            .set_permissions(mode)
            .map_err(PathError::on(&self.path, "set the mode of"))
    }

    /// Gives the file its final name, in one step and in place of what stood there. With [`Durability::Synced`] its
    /// bytes and mode are durable before the name is, and the name is durable on return.
    pub fn persist(mut self, to: &Path, durability: Durability) -> Result<(), PathError> {
        if durability == Durability::Synced {
            // All, not only the data: the mode is part of what is promised.
            self.sync()?;
        }
        fs::rename(&self.path, to).map_err(PathError::on(to, "rename to"))?;
        self.kept = true;
        if durability == Durability::Synced {
            sync_dir(parent_of(to))?;
        }
        Ok(())
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is swept later: it has no name that anything reads.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Writes a small file whole: readers see the old bytes or the new ones, after a crash too.
pub fn write_atomic(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), PathError> {
    let mut temp = TempFile::new_in(parent_of(path))?;
    temp.write_all(bytes).map_err(PathError::on(path, "write"))?;
    temp.persist(path, durability)
}

/// Takes all write permission from a file: mode 0444.
pub fn make_read_only(path: &Path) -> Result<(), PathError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).map_err(PathError::on(path, "set the mode of"))
}

/// Returns a name that nobody else uses: the process, a count, and a random number against other machines and
/// containers, whose process ids say nothing here.
pub fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one(count);
    format!(".forge-{}-{count}-{random:016x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_file_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one", Durability::Synced).unwrap();
        let first = fs::File::open(&path).unwrap();
        write_atomic(&path, b"two", Durability::Fast).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            io::read_to_string(first).unwrap(),
            "one",
            "a reader keeps what it opened"
        );
        assert_eq!(crate::fs::list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_temporary_file_that_is_dropped_or_cannot_be_persisted_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        drop(TempFile::new_in(dir.path()).unwrap());
        let temp = TempFile::new_in(dir.path()).unwrap();
        let error = temp
            .persist(&dir.path().join("no/such/place"), Durability::Synced)
            .unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert_eq!(crate::fs::list(dir.path()).unwrap(), []);
    }

    #[test]
    fn an_error_names_the_path_and_the_operation() {
        let error = write_atomic(Path::new("/no/such/place/a"), b"", Durability::Fast).unwrap_err();
        assert_eq!(error.operation, "create");
        assert!(error.path.starts_with("/no/such/place"));
        assert!(
            error.to_string().starts_with("cannot create `/no/such/place/"),
            "{error}"
        );
    }
}
