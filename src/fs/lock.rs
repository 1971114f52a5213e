//! Locks on files. The kernel drops them when the process ends, however it ends.

use std::fs;
use std::io;
use std::io::Seek;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::OFlags;

use crate::fs::PathError;
use crate::fs::Stamp;
use crate::fs::facts::not_regular;
use crate::fs::facts::restore_mode;

const LOCK_MODE: u32 = 0o644;

/// A held lock on a file. Two opens of a file exclude each other, in two processes or in two threads of one process.
#[derive(Debug)]
pub struct FileLock {
    file: fs::File,
    path: PathBuf,
    remove: bool,
}

impl FileLock {
    /// Takes an exclusive lock; returns `None` if the file is locked. Creates the file if it is missing.
    pub fn try_exclusive(path: &Path) -> Result<Option<Self>, PathError> {
        Self::acquire(path, fs::File::try_lock)
    }

    /// Takes an exclusive lock, and waits for it without a limit: only for locks that are held for moments.
    pub fn exclusive(path: &Path) -> Result<Self, PathError> {
        loop {
            let file = open_lock(path)?;
            file.lock().map_err(PathError::on(path, "lock"))?;
            if still_there(&file, path)? {
                return Ok(Self {
                    file,
                    path: path.to_owned(),
                    remove: false,
                });
            }
        }
    }

    /// Takes a shared lock; returns `None` if there is an exclusive one.
    pub fn try_shared(path: &Path) -> Result<Option<Self>, PathError> {
        Self::acquire(path, fs::File::try_lock_shared)
    }

    /// Takes a lock without waiting, on the file that has the name at that time.
    fn acquire(
        path: &Path,
        take: impl Fn(&fs::File) -> Result<(), fs::TryLockError>,
    ) -> Result<Option<Self>, PathError> {
        loop {
            let file = open_lock(path)?;
            match take(&file) {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Ok(None),
                Err(fs::TryLockError::Error(error)) => return Err(PathError::new(path, "lock", error)),
            }
            if still_there(&file, path)? {
                return Ok(Some(Self {
                    file,
                    path: path.to_owned(),
                    remove: false,
                }));
            }
        }
    }

    /// Writes a note into the locked file, for processes that wait for it.
    pub fn write_note(&mut self, note: &[u8]) -> Result<(), PathError> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(io::SeekFrom::Start(0)))
            .and_then(|_| self.file.write_all(note))
            .map_err(PathError::on(&self.path, "write"))
    }

    /// Appends to the note.
    pub fn append(&mut self, more: &[u8]) -> Result<(), PathError> {
        self.file.write_all(more).map_err(PathError::on(&self.path, "write"))
    }

    /// Removes the file when the lock is released. Only for exclusive locks: the name is removed while the lock is held, and a process
    /// that then gets the lock of the unnamed file opens the name again.
    pub fn remove_on_release(&mut self) {
        self.remove = true;
    }

    /// Returns the stamp of the locked file.
    pub fn stamp(&self) -> Result<Stamp, PathError> {
        Stamp::of_file(&self.file, &self.path)
    }

    /// Sets the modification time of the locked file, in nanoseconds since 1970.
    pub fn set_modified(&self, mtime_ns: i64) -> Result<(), PathError> {
        crate::fs::set_modified_of(&self.file, &self.path, mtime_ns)
    }

    /// Returns the path of the locked file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        if self.remove {
            // A remaining file does no harm: the next holder uses it.
            fs::remove_file(&self.path).ok();
        }
        // Explicitly: a child between fork and exec may still hold a copy of the descriptor.
        self.file.unlock().ok();
    }
}

/// Opens a lock file, and creates it if it is missing. Anything but a regular file in its place is an error: a link could lead to
/// any file. If the mode of the user's own lock file was changed, it is restored, because a file that may be locked must not be
/// replaced.
pub fn open_lock(path: &Path) -> Result<fs::File, PathError> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = || {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
    };
    let opened = open().or_else(|error| {
        if error.kind() == io::ErrorKind::PermissionDenied && restore_mode(path, LOCK_MODE) {
            open()
        } else {
            Err(error)
        }
    });
    match opened {
        Ok(file) => {
            let found = file.metadata().map_err(PathError::on(path, "look at"))?;
            if found.is_file() {
                Ok(file)
            } else {
                Err(PathError::new(path, "open lock", not_regular(found.file_type())))
            }
        }
        Err(error) => Err(match fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => PathError::new(path, "open lock", not_regular(found.file_type())),
            _ => PathError::new(path, "open lock", error),
        }),
    }
}

/// Takes an exclusive lock on a directory, and waits for it. For short operations. The directory itself is locked, so nothing can
/// block the name of a lock file. If the file system has no such locks, this excludes nothing.
pub fn lock_directory(path: &Path) -> Result<fs::File, PathError> {
    let directory = fs::File::open(path).map_err(PathError::on(path, "open"))?;
    directory.lock().ok();
    Ok(directory)
}

/// Returns true if the name still refers to the file that was locked.
pub(super) fn still_there(file: &fs::File, path: &Path) -> Result<bool, PathError> {
    let held = file.metadata().map_err(PathError::on(path, "look at"))?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(PathError::new(path, "look at", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_opens_in_one_process_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(FileLock::try_shared(&path).unwrap().is_none());
        drop(held);
        let one = FileLock::try_shared(&path).unwrap().unwrap();
        let two = FileLock::try_shared(&path).unwrap().unwrap();
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        drop((one, two));
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
        assert!(path.exists(), "kept by default");
    }

    #[test]
    fn a_lock_on_a_file_that_lost_its_name_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let opened = open_lock(&path).unwrap();
        assert!(still_there(&opened, &path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!still_there(&opened, &path).unwrap(), "no file has the name");
        let next = FileLock::try_exclusive(&path).unwrap().unwrap();
        assert!(
            !still_there(&opened, &path).unwrap(),
            "another file has the name, and another process holds that"
        );
        assert!(still_there(&next.file, &path).unwrap());
    }

    #[test]
    fn a_removed_name_never_lets_two_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        let turns = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut lock = FileLock::exclusive(&path).unwrap();
                        lock.remove_on_release();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        turns.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(turns.into_inner(), 1600);
        assert!(!path.exists());
    }
}
