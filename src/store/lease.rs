//! Signs that builds live: `leases/<name>`, each locked by its process. Its time is when the build began; what a build puts
//! or commits has a time no earlier, and the results that it found stand in the file, one key a line. Nothing as young as the
//! oldest lease, and nothing that stands in one, is collected (`docs/design-notes.md`, "Garbage collection while builds run").

use std::collections::HashSet;
use std::time::SystemTime;

use crate::digest::ActionDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileLock;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::lock::Holder;

/// No lease is longer: millions of results.
const LEASE_CAP: u64 = 1 << 30;

/// What a store knows of its own leases: they share one file.
#[derive(Debug)]
pub(super) struct Live {
    count: usize,
    start: i64,
    lock: FileLock,
    /// The results that stand in the file.
    used: HashSet<Hash>,
}

/// A sign that a build lives. What the store finds or is given while one is held is not collected before it ends.
#[derive(Debug)]
pub struct Lease {
    store: Store,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut live = self.store.inner.live();
        if let Some(held) = &mut *live {
            held.count -= 1;
            if held.count == 0 {
                *live = None;
            }
        }
    }
}

impl Live {
    /// Appends results to the file, in one write. The caller keeps collectors off ([`Store::using`]).
    fn note(&mut self, keys: &[Hash]) -> Result<(), StoreError> {
        let mut lines = String::new();
        for key in keys {
            lines.push_str(&key.to_string());
            lines.push('\n');
        }
        self.lock.append(lines.as_bytes())?;
        // Writing changed the time, which is when the build began.
        self.lock.set_modified(self.start)?;
        self.used.extend(keys);
        Ok(())
    }
}

impl Store {
    /// Says that a build lives, until the lease is dropped. Any number of builds hold leases at once.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`].
    pub fn lease(&self) -> Result<Lease, StoreError> {
        let mut live = self.inner.live();
        match &mut *live {
            Some(held) => held.count += 1,
            None => *live = Some(self.begin_lease()?),
        }
        Ok(Lease { store: self.clone() })
    }

    fn begin_lease(&self) -> Result<Live, StoreError> {
        let directory = self.root().join(layout::LEASES);
        let mut lock = loop {
            // A collector may look at the file for a moment: then another name is tried.
            if let Some(lock) = FileLock::try_exclusive(&directory.join(fs::unique_name()))? {
                break lock;
            }
        };
        lock.remove_on_release();
        let mut note = serde_json::to_vec(&Holder::this_process()).unwrap_or_default();
        note.push(b'\n');
        lock.write_note(&note)?;
        // Not earlier than any that is there, whatever the clock did since: who collects now has looked at its own.
        let own = lock.stamp()?.mtime_ns;
        let newest = self.lease_times(false)?.into_iter().max().unwrap_or(own);
        if newest > own {
            lock.set_modified(newest)?;
        }
        Ok(Live {
            count: 1,
            // As the file system keeps it, and so as others read it.
            start: lock.stamp()?.mtime_ns,
            lock,
            used: HashSet::new(),
        })
    }

    /// Returns whether this store holds a lease: what it finds now is marked as used.
    pub fn is_leased(&self) -> bool {
        self.own_lease().is_some()
    }

    /// Returns how many builds (and collectors) live now, in this process and in others.
    pub fn live_leases(&self) -> Result<usize, StoreError> {
        Ok(self.lease_times(true)?.len())
    }

    /// Returns when the oldest build that lives now began, in nanoseconds since 1970. The caller holds a lease itself, and
    /// keeps users off ([`Store::sweeping`]).
    pub(super) fn oldest_lease(&self) -> Result<i64, StoreError> {
        Ok(self.lease_times(true)?.into_iter().min().unwrap_or(i64::MIN))
    }

    /// Writes into the own lease that a result is used, unless it stands there. The caller keeps collectors off
    /// ([`Store::using`]).
    pub(super) fn use_result(&self, key: &Hash) -> Result<(), StoreError> {
        if let Some(held) = &mut *self.inner.live()
            && !held.used.contains(key)
        {
            held.note(&[*key])?;
        }
        Ok(())
    }

    /// Writes into the own lease that results are used, so that no collector removes them before it ends; those that are gone
    /// already stay gone. Without a lease nothing is written.
    pub fn use_results(&self, keys: impl IntoIterator<Item = ActionDigest>) -> Result<(), StoreError> {
        if !self.is_leased() {
            return Ok(());
        }
        let _using = self.using()?;
        if let Some(held) = &mut *self.inner.live() {
            let keys = keys.into_iter().map(|key| *key.hash());
            let new: Vec<Hash> = keys.filter(|key| !held.used.contains(key)).collect();
            if !new.is_empty() {
                held.note(&new)?;
            }
        }
        Ok(())
    }

    /// Returns whether the own lease says that a result is used: then it cannot have been collected since.
    pub(super) fn is_used(&self, key: &Hash) -> bool {
        self.inner.live().as_ref().is_some_and(|held| held.used.contains(key))
    }

    /// Returns the results that stand in any lease. A lease whose process has died may be among them: no harm.
    pub(super) fn used_by_leases(&self) -> Result<HashSet<Hash>, StoreError> {
        let directory = self.root().join(layout::LEASES);
        let mut used = HashSet::new();
        for entry in fs::list(&directory)? {
            if let Ok((text, _)) = fs::read_plain(&directory.join(&entry.name), LEASE_CAP) {
                let lines = text.split(|byte| *byte == b'\n');
                let keys = lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse::<Hash>().ok());
                used.extend(keys);
            }
        }
        Ok(used)
    }

    /// Returns the times of leases: all, or those of the living only; the dead ones' files are removed then.
    fn lease_times(&self, living: bool) -> Result<Vec<i64>, StoreError> {
        let directory = self.root().join(layout::LEASES);
        let mut times = Vec::new();
        for entry in fs::list(&directory)? {
            let path = directory.join(&entry.name);
            // Looked at before the lock is tried: the file of one that ends in between is not made anew for long.
            let Some(facts) = fs::facts(&path)?.filter(|facts| facts.kind == fs::FileKind::Plain) else {
                continue;
            };
            if living && let Some(mut dead) = FileLock::try_exclusive(&path)? {
                dead.remove_on_release();
                continue;
            }
            times.push(facts.stamp.mtime_ns);
        }
        Ok(times)
    }

    /// Returns when this store's own lease began, in nanoseconds since 1970; nothing if none is held.
    pub(super) fn own_lease(&self) -> Option<i64> {
        self.inner.live().as_ref().map(|live| live.start)
    }

    /// Returns the time to mark what is used now with: never before the own lease, whatever the clock says.
    pub(super) fn mark_time(start: i64) -> i64 {
        i64::try_from(fs::nanos(SystemTime::now())).map_or(start, |now| now.max(start))
    }
}
