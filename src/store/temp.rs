//! Temporary files. Each process has a directory in `tmp/` and holds a lock beside it. A process that gets that lock knows that
//! the owner is dead (on any host, in any container), and removes both.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;

use crate::fs;
use crate::fs::FileLock;
use crate::fs::PathError;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::quarantine;

const LOCK: &str = "lock";

/// The temporary directory of this process. It is created when it is first needed, so a build with nothing to do creates none.
#[derive(Debug)]
pub(super) struct ProcessTemp {
    tmp: PathBuf,
    live: OnceLock<Live>,
    making: Mutex<()>,
}

#[derive(Debug)]
struct Live {
    dir: PathBuf,
    // Released, and its file removed, after the directory is gone.
    _lock: FileLock,
}

impl Drop for Live {
    fn drop(&mut self) {
        // The next process removes what is left.
        fs::remove_dir_all(&self.dir).ok();
    }
}

impl ProcessTemp {
    /// Prepares the directory of this process in `tmp`, without creating it.
    pub(super) fn new(tmp: PathBuf) -> Self {
        Self {
            tmp,
            live: OnceLock::new(),
            making: Mutex::new(()),
        }
    }

    /// Returns the directory.
    pub(super) fn dir(&self) -> Result<&Path, PathError> {
        if let Some(live) = self.live.get() {
            return Ok(&live.dir);
        }
        // The lock guards no data, so a panic elsewhere cannot have broken any.
        let _making = self.making.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(live) = self.live.get() {
            return Ok(&live.dir);
        }
        fs::create_dir_all(&self.tmp)?;
        let live = loop {
            let dir = self.tmp.join(fs::unique_name());
            // Locked before the directory exists, so that no process removes it. Another process may hold the lock for a
            // moment: then another name is tried.
            if let Some(mut lock) = FileLock::try_exclusive(&dir.with_added_extension(LOCK))? {
                lock.remove_on_release();
                fs::create_dir(&dir)?;
                break Live { dir, _lock: lock };
            }
        };
        Ok(&self.live.get_or_init(|| live).dir)
    }
}

impl Store {
    /// Returns how many bytes of unfinished blobs this process has written, as far as is known.
    pub fn unfinished(&self) -> u64 {
        let Some(live) = self.inner.temp.live.get() else {
            return 0;
        };
        let entries = fs::list(&live.dir).unwrap_or_default();
        let files = entries.iter().filter(|entry| !entry.is_dir);
        let facts = files.filter_map(|file| fs::facts(&live.dir.join(&file.name)).ok().flatten());
        facts.map(|facts| facts.allocated).sum()
    }
}

/// Removes the temporary files of dead processes.
pub(super) fn remove_dead(tmp: &Path) -> Result<(), StoreError> {
    for entry in fs::list(tmp)? {
        let path = tmp.join(&entry.name);
        let dir = if entry.is_dir {
            path
        } else if path.extension().is_some_and(|extension| extension == LOCK) {
            path.with_extension("")
        } else {
            continue;
        };
        if let Some(mut lock) = FileLock::try_exclusive(&dir.with_added_extension(LOCK))? {
            lock.remove_on_release();
            quarantine::remove(&dir)?;
        }
    }
    Ok(())
}

/// A temporary directory for an action, on the store's file system. It is removed with its contents when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    // Keeps the directory of the process alive.
    _store: Store,
}

impl Scratch {
    /// Returns the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is removed with the directory of the process.
        fs::remove_dir_all(&self.path).ok();
    }
}

impl Store {
    /// Creates an empty temporary directory for an action. Each attempt gets its own, so that files which child processes of a
    /// killed attempt still write are never mistaken for the output of a later attempt.
    pub fn scratch(&self) -> Result<Scratch, StoreError> {
        let path = self.inner.temp.dir()?.join(fs::unique_name());
        fs::create_dir(&path)?;
        Ok(Scratch {
            path,
            _store: self.clone(),
        })
    }
}
