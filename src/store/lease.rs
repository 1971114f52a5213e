//! Signs that builds live: `leases/<name>`, each locked by its process. Its time is when the build began; whatever a build
//! uses is marked with a time no earlier, and nothing marked since the oldest of them began is collected
//! (`docs/design-notes.md`, "Collecting while builds live").

use std::time::SystemTime;

use crate::fs;
use crate::fs::FileLock;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::lock::Holder;
use crate::store::stat;

/// What a store knows of its own leases: they share one file.
#[derive(Debug)]
pub(super) struct Live {
    count: usize,
    start: i64,
    _lock: FileLock,
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
        let note = serde_json::to_vec(&Holder::this_process()).unwrap_or_default();
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
            _lock: lock,
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

    /// Returns when the oldest build that lives now began, in nanoseconds since 1970; the caller holds a lease itself.
    pub(super) fn oldest_lease(&self) -> Result<i64, StoreError> {
        Ok(self.lease_times(true)?.into_iter().min().unwrap_or(i64::MIN))
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
        i64::try_from(stat::nanos(SystemTime::now())).map_or(start, |now| now.max(start))
    }
}
