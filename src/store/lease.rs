//! Leases of running builds: `leases/<name>`, each locked by its process. The mtime of a lease is when the build began. What the
//! build writes has no earlier time, and the lease lists the results that the build found, one key per line. Garbage collection
//! removes nothing that is younger than the oldest lease, and nothing that a lease lists (`docs/design-notes.md`, "Garbage
//! collection while builds run").

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

/// The maximum size of a lease, in bytes: millions of results.
const LEASE_CAP: u64 = 1 << 30;

/// The leases of this process: they share one file.
#[derive(Debug)]
pub(super) struct Live {
    count: usize,
    start: i64,
    lock: FileLock,
    /// The results that the file lists.
    used: HashSet<Hash>,
}

/// The lease of a running build. What the build finds or writes while it holds a lease is not removed before the lease ends.
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
    /// Appends results to the file, in one write. The caller keeps garbage collection out ([`Store::using`]).
    fn note(&mut self, keys: &[Hash]) -> Result<(), StoreError> {
        let mut lines = String::new();
        for key in keys {
            lines.push_str(&key.to_string());
            lines.push('\n');
        }
        self.lock.append(lines.as_bytes())?;
        // Writing changed the mtime, which must be the time when the build began.
        self.lock.set_modified(self.start)?;
        self.used.extend(keys);
        Ok(())
    }
}

impl Store {
    /// Takes a lease, until it is dropped. Any number of builds can hold leases at once.
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
            // A garbage collection may hold the lock for a moment: then another name is tried.
            if let Some(lock) = FileLock::try_exclusive(&directory.join(fs::unique_name()))? {
                break lock;
            }
        };
        lock.remove_on_release();
        let mut note = serde_json::to_vec(&Holder::this_process()).unwrap_or_default();
        note.push(b'\n');
        lock.write_note(&note)?;
        // Not earlier than any existing lease, even if the clock went back: a running garbage collection has read its own
        // lease.
        let own = lock.stamp()?.mtime_ns;
        let newest = self.lease_times(false)?.into_iter().max().unwrap_or(own);
        if newest > own {
            lock.set_modified(newest)?;
        }
        Ok(Live {
            count: 1,
            // The time as the file system stores it, which other processes read.
            start: lock.stamp()?.mtime_ns,
            lock,
            used: HashSet::new(),
        })
    }

    /// Returns whether this store holds a lease. If so, what it finds is marked as used.
    pub fn is_leased(&self) -> bool {
        self.own_lease().is_some()
    }

    /// Returns the number of running builds and garbage collections, in this process and in others.
    pub fn live_leases(&self) -> Result<usize, StoreError> {
        Ok(self.lease_times(true)?.len())
    }

    /// Returns when the oldest running build began, in nanoseconds since 1970. The caller holds a lease itself and keeps users out
    /// ([`Store::sweeping`]).
    pub(super) fn oldest_lease(&self) -> Result<i64, StoreError> {
        Ok(self.lease_times(true)?.into_iter().min().unwrap_or(i64::MIN))
    }

    /// Adds a result to the own lease, unless the lease lists it. The caller keeps garbage collection out ([`Store::using`]).
    pub(super) fn use_result(&self, key: &Hash) -> Result<(), StoreError> {
        if let Some(held) = &mut *self.inner.live()
            && !held.used.contains(key)
        {
            held.note(&[*key])?;
        }
        Ok(())
    }

    /// Adds results to the own lease, so that no garbage collection removes them before it ends. Does nothing without a lease.
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

    /// Returns whether the own lease lists a result. Then it cannot have been removed since.
    pub(super) fn is_used(&self, key: &Hash) -> bool {
        self.inner.live().as_ref().is_some_and(|held| held.used.contains(key))
    }

    /// Returns the results that any lease lists, including leases of dead processes.
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

    /// Returns the times of all leases; with `living`, only of those of running processes, and removes the others.
    fn lease_times(&self, living: bool) -> Result<Vec<i64>, StoreError> {
        let directory = self.root().join(layout::LEASES);
        let mut times = Vec::new();
        for entry in fs::list(&directory)? {
            let path = directory.join(&entry.name);
            // Examined before the lock is tried, so that the lock does not create the file of a lease that just ended.
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

    /// Returns when this store's own lease began, in nanoseconds since 1970; `None` without a lease.
    pub(super) fn own_lease(&self) -> Option<i64> {
        self.inner.live().as_ref().map(|live| live.start)
    }

    /// Returns the time that marks something as used now. It is never before the own lease, even if the clock went back.
    pub(super) fn mark_time(start: i64) -> i64 {
        i64::try_from(fs::nanos(SystemTime::now())).map_or(start, |now| now.max(start))
    }
}
