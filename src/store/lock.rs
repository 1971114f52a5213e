//! Locks: one process at a time runs an action or writes an output.

use std::fmt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileLock;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;

/// Who holds a lock, for messages only: the kernel decides whether a lock is held. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process ID.
    pub pid: Option<u32>,
    /// The machine.
    pub host: Option<String>,
    /// When the lock was taken, in seconds since 1970.
    pub since: Option<u64>,
}

impl Holder {
    pub(super) fn this_process() -> Self {
        Self {
            pid: Some(std::process::id()),
            host: host(),
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .ok()
                .map(|since| since.as_secs()),
        }
    }

    /// Returns whether the holder is another thread of this process.
    pub fn is_this_process(&self) -> bool {
        self.pid == Some(std::process::id()) && self.host == host()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "process {pid}")?,
            None => write!(f, "another process")?,
        }
        self.host.as_ref().map_or(Ok(()), |host| write!(f, " on {host}"))
    }
}

/// The name of this machine, if the system provides it as a file.
fn host() -> Option<String> {
    let name = fs::read_small("/proc/sys/kernel/hostname".as_ref(), 1024).ok()?;
    let name = String::from_utf8(name).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The lock of one action. It is released when this is dropped or the process ends.
#[derive(Debug)]
pub struct ActionLock {
    _lock: FileLock,
}

/// The lock of one output. It is released as an [`ActionLock`] is.
#[derive(Debug)]
pub struct OutputLock {
    _lock: FileLock,
}

/// How long to sleep before trying to take a lock again: short at first, and never so long that Ctrl-C is delayed.
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    fn sleep(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// Waits for a lock. Its file is removed when the lock is released. Calls `on_wait` once with the holder if another process holds
/// it. Returns `None` once `cancelled` returns true.
fn wait_for(
    path: &Path,
    on_wait: &mut dyn FnMut(&Holder),
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<FileLock>, StoreError> {
    // How often to read the holder's note, which is written just after the lock is taken, before continuing without it.
    const ATTEMPTS: u32 = 6;
    let mut backoff = Backoff(Backoff::FIRST);
    let mut attempts = 0;
    loop {
        if let Some(mut lock) = FileLock::try_exclusive(path)? {
            lock.remove_on_release();
            let note = serde_json::to_vec(&Holder::this_process()).unwrap_or_default();
            lock.write_note(&note)?;
            return Ok(Some(lock));
        }
        if cancelled() {
            return Ok(None);
        }
        if attempts <= ATTEMPTS {
            let note = fs::read_plain(path, 4096)
                .ok()
                .and_then(|(note, _)| serde_json::from_slice(&note).ok());
            if note.is_some() || attempts == ATTEMPTS {
                on_wait(&note.unwrap_or_default());
                attempts = ATTEMPTS;
            }
            attempts += 1;
        }
        backoff.sleep();
    }
}

impl Store {
    /// Waits for the lock of an action. Only one thread of one process holds it at a time. If another one holds it, calls
    /// `on_wait` once with the holder, and `cancelled` repeatedly while it waits.
    ///
    /// After a wait the action has probably run, so the caller looks up the result again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Cancelled`] once `cancelled` returns true.
    pub fn lock_action(
        &self,
        key: &ActionDigest,
        on_wait: &mut dyn FnMut(&Holder),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<ActionLock, StoreError> {
        match wait_for(&self.action_lock_path(key), on_wait, cancelled)? {
            Some(lock) => Ok(ActionLock { _lock: lock }),
            None => Err(StoreError::Cancelled { key: *key }),
        }
    }

    /// Waits for the lock of an output as [`Store::lock_action`] does. The holder may check and replace the output, so that builds
    /// with one store never replace a file that another build has just found correct, nor record the file of another build as
    /// their own. The directory of `path` must exist. The lock is the same under every path of the directory. Returns `None`
    /// once `cancelled` returns true.
    ///
    /// A caller that also needs the lock of an action takes this one first.
    pub fn lock_output(
        &self,
        path: &Path,
        on_wait: &mut dyn FnMut(&Holder),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<OutputLock>, StoreError> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let stamp = fs::Stamp::of(directory)?;
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let place = [format!("{} {} ", stamp.dev, stamp.ino).as_bytes(), name].concat();
        let name = format!("output-{}", Hash::of(&place));
        let lock = wait_for(&self.inner.root.join(layout::LOCKS).join(name), on_wait, cancelled)?;
        Ok(lock.map(|lock| OutputLock { _lock: lock }))
    }

    fn action_lock_path(&self, key: &ActionDigest) -> PathBuf {
        self.inner.root.join(layout::LOCKS).join(format!("action-{key}"))
    }

    /// Takes the lock under which files in the store are replaced (not those that are only added). It is held for a check and a
    /// rename. There are 256 of these locks, by hash, so that builds rarely wait for each other.
    pub(super) fn replacing(&self, hash: &crate::digest::Hash) -> Result<FileLock, StoreError> {
        let name = format!("replace-{}", &hash.to_string()[..2]);
        Ok(FileLock::exclusive(&self.inner.root.join(layout::LOCKS).join(name))?)
    }
}
