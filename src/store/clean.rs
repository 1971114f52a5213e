//! Removes leftovers, or a whole store.

use crate::fs;
use crate::fs::FileLock;
use crate::store::Amount;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::temp;

impl Store {
    /// Removes the temporary files of dead processes and the quarantine. Removes nothing that a build could use.
    pub fn clean(&self) -> Result<Amount, StoreError> {
        temp::remove_dead(&self.root().join(layout::TMP))?;
        // This removes the leases of dead processes.
        self.live_leases()?;
        let mut removed = Amount::default();
        for file in self.quarantined()? {
            if quarantine::remove(&file.path)? {
                removed.add(file.stamp.size);
            }
        }
        Ok(removed)
    }

    /// Removes everything that belongs to the store, and nothing else. Other files in the directory are kept, and then so is the
    /// directory. Returns the names of these files. Follows no link.
    ///
    /// # Errors
    ///
    /// [`StoreError::InUse`] if a build runs; [`StoreError::Busy`] if a garbage collection runs.
    pub fn clean_all(self) -> Result<Vec<String>, StoreError> {
        let lock = self.root().join(layout::LOCKS).join("gc");
        let gc = FileLock::try_exclusive(&lock)?.ok_or(StoreError::Busy { path: lock })?;
        let builds = self.live_leases()?;
        if builds > 0 {
            return Err(StoreError::InUse { builds });
        }
        let sweeping = self.sweeping()?;
        let root = self.root().to_owned();
        // The `layout` file is removed last, so that a partly removed store is still recognized.
        for directory in layout::DIRECTORIES {
            quarantine::remove(&root.join(directory))?;
        }
        drop((sweeping, gc, self));
        // Dropping them may have created these again.
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
