//! Who may do what now: one builder per action, one per output.

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

/// Who holds a lock. For prose only: the kernel, not this, says whether a lock is held. What is not known is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    pub pid: Option<u32>,
    /// The machine.
    pub host: Option<String>,
    /// Since when, in seconds since 1970.
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

/// The name of this machine, where the system shows it as a file.
fn host() -> Option<String> {
    let name = fs::read_small("/proc/sys/kernel/hostname".as_ref(), 1024).ok()?;
    let name = String::from_utf8(name).ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}

/// The right to run one action. It ends when this is dropped, or when the process ends, however it ends.
#[derive(Debug)]
pub struct ActionLock {
    _lock: FileLock,
}

/// The right to bring a file to one place outside the store. It ends as an [`ActionLock`] does.
#[derive(Debug)]
pub struct OutputLock {
    _lock: FileLock,
}

/// How long to sleep before asking for a lock again: short at first, never so long that Ctrl-C is kept waiting.
struct Backoff(Duration);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);

    fn sleep(&mut self) {
        std::thread::sleep(self.0);
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// Takes a lock that is held for as long as work takes, and that goes away with its file. `on_wait` is told once who
/// holds it. Returns `None` once `cancelled` returns true.
fn wait_for(
    path: &Path,
    on_wait: &mut dyn FnMut(&Holder),
    cancelled: &dyn Fn() -> bool,
) -> Result<Option<FileLock>, StoreError> {
    // How often to look for the holder's note, which is written just after the lock is taken, before going without.
    const LOOKS: u32 = 6;
    let mut backoff = Backoff(Backoff::FIRST);
    let mut looks = 0;
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
        if looks <= LOOKS {
            let note = fs::read_plain(path, 4096)
                .ok()
                .and_then(|(note, _)| serde_json::from_slice(&note).ok());
            if note.is_some() || looks == LOOKS {
                on_wait(&note.unwrap_or_default());
                looks = LOOKS;
            }
            looks += 1;
        }
        backoff.sleep();
    }
}

impl Store {
    /// Waits for the right to run an action. Only one holder exists at a time, among threads too. If somebody else
    /// holds it, `on_wait` is told once who; `cancelled` is asked again and again meanwhile.
    ///
    /// After a wait the action has most likely run: look the result up again.
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

    /// Waits as [`Store::lock_action`] does for the right to look at an output and to put another in its place, so that
    /// builds of one store never replace a file that another one has just found right, nor take note of a file as their
    /// own that is another's. The directory of `path` must be there; under whatever name, it is the same directory.
    /// Returns `None` once `cancelled` returns true.
    ///
    /// Whoever needs an action's lock too takes this one first.
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

    /// Holds the lock under which names in the store are replaced (never merely added). Held for a check and a rename;
    /// one of 256 by hash, so that builds do not meet on it.
    pub(super) fn replacing(&self, hash: &crate::digest::Hash) -> Result<FileLock, StoreError> {
        let name = format!("replace-{}", &hash.to_string()[..2]);
        Ok(FileLock::exclusive(&self.inner.root.join(layout::LOCKS).join(name))?)
    }
}
