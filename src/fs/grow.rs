//! Files that are appended to, so that what was written is kept if the process is killed.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::PathError;
use crate::fs::open_plain;

/// A file that only grows. Its writer holds a lock on it for as long as it lives, so that other processes can distinguish
/// a file that is being written from one whose writer was killed ([`is_held`]).
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Creates the file, or returns `None` if there is one of that name. Only the user may write to it, with any umask.
    pub fn create(path: &Path) -> Result<Option<Self>, PathError> {
        let opened = fs::OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o644)
            .open(path);
        match opened {
            Ok(file) => {
                // Where the file system has no locks, the file is taken for one whose writer is gone.
                file.try_lock().ok();
                Ok(Some(Self {
                    file,
                    path: path.to_owned(),
                }))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(PathError::new(path, "create", error)),
        }
    }

    /// Adds bytes at the end, in one write. Nothing is synced.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), PathError> {
        self.file
            .write_all(bytes)
            .map_err(PathError::on(&self.path, "append to"))
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // Explicitly: a child between fork and exec may still hold a copy of the descriptor.
        self.file.unlock().ok();
    }
}

/// Returns true if a file is locked by the writer of a [`Journal`].
pub fn is_held(path: &Path) -> bool {
    open_plain(path).is_ok_and(|(file, _)| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
}

/// A file with an end that stays at the end: every addition goes before it, in one write, so that the file is whole at
/// every moment, even when the process is killed.
#[derive(Debug)]
pub struct Ended {
    file: File,
    path: PathBuf,
    at: u64,
    end: &'static [u8],
}

impl Ended {
    /// Makes the file, in place of one that is there, with a start and its end.
    pub fn create(path: &Path, start: &[u8], end: &'static [u8]) -> Result<Self, PathError> {
        let file = File::create(path).map_err(PathError::on(path, "create"))?;
        let mut made = Self {
            file,
            path: path.to_owned(),
            at: 0,
            end,
        };
        made.add(start)?;
        Ok(made)
    }

    /// Adds bytes before the end.
    pub fn add(&mut self, bytes: &[u8]) -> Result<(), PathError> {
        let all = [bytes, self.end].concat();
        let written = self
            .file
            .seek(SeekFrom::Start(self.at))
            .and_then(|_| self.file.write_all(&all));
        written.map_err(PathError::on(&self.path, "write"))?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_held_while_its_writer_lives_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(!is_held(&path), "it is not there");
        let mut journal = Journal::create(&path).unwrap().unwrap();
        assert!(Journal::create(&path).unwrap().is_none(), "the name is taken");
        journal.append(b"one\n").unwrap();
        journal.append(b"two\n").unwrap();
        assert!(is_held(&path));
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        drop(journal);
        assert!(!is_held(&path));
    }

    #[test]
    fn an_ended_file_is_whole_after_every_addition() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(&path, b"what stood there, and was longer").unwrap();
        let mut file = Ended::create(&path, b"[", b"]").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"[]");
        file.add(b"1").unwrap();
        file.add(b",2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"[1,2]");
    }
}
