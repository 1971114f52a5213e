//! Removing without asking what is needed: leftovers, or a whole store.

use crate::fs;
use crate::fs::FileLock;
use crate::store::Amount;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::session;

impl Store {
    /// Removes what dead processes left half-written and what was found damaged and moved aside. Nothing that a build could
    /// use is touched.
    pub fn clean(&self) -> Result<Amount, StoreError> {
        session::sweep(&self.root().join(layout::TMP))?;
        // Counting the living removes the signs of the dead.
        self.live_leases()?;
        let mut removed = Amount::default();
        for file in self.quarantined()? {
            if quarantine::remove(&file.path)? {
                removed.add(file.stamp.size);
            }
        }
        Ok(removed)
    }

    /// Removes everything that a store has, and nothing else: what stands beside it in the directory stays, and so does the
    /// directory then. Returns the names that stayed. No link is followed.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if a build lives; [`StoreError::Busy`] if a collector is at work.
    pub fn clean_all(self) -> Result<Vec<String>, StoreError> {
        let lock = self.root().join(layout::LOCKS).join("gc");
        let gc = FileLock::try_exclusive(&lock)?.ok_or(StoreError::Busy { path: lock })?;
        let builds = self.live_leases()?;
        if builds > 0 {
            return Err(StoreError::InUse { builds });
        }
        let sweeping = self.sweeping()?;
        let root = self.root().to_owned();
        // The version goes last: what is left of a store whose removal was stopped is still known as one.
        for directory in layout::DIRECTORIES {
            quarantine::remove(&root.join(directory))?;
        }
        drop((sweeping, gc, self));
        // What letting go of them may have made anew.
        for directory in [layout::LOCKS, layout::TMP] {
            quarantine::remove(&root.join(directory))?;
        }
        quarantine::remove(&root.join(layout::TAG_FILE))?;
        quarantine::remove(&root.join(layout::LAYOUT_FILE))?;
        let left: Vec<String> = fs::list(&root)?
            .into_iter()
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect();
        if left.is_empty() {
            fs::remove_dir_all(&root)?;
        }
        Ok(left)
    }
}
