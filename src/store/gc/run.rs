//! Executes a plan. Everything is checked again just before it is removed.

use std::collections::HashSet;

use super::GcDone;
use super::GcPlan;
use super::GcReason;
use super::distinct;
use super::history::tombstone_share;
use super::since;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::store::BorrowedBlob;
use crate::store::RemovalReason;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::survey::FoundResult;
use crate::store::survey::space_of;

/// How many files are removed before other processes get the lock.
const BATCH: usize = 128;

impl Store {
    /// Executes a plan. Calls `progress` with the number of entries that are done and the total number.
    pub fn gc_run(&self, plan: GcPlan, progress: &dyn Fn(u64, u64)) -> Result<GcDone, StoreError> {
        let all = [
            plan.results.len(),
            plan.items.len(),
            plan.blobs.len(),
            plan.borrowed.len(),
            plan.files.len(),
            plan.indexes.len(),
            plan.idle_indexes.len(),
        ];
        let all = all.into_iter().sum::<usize>() as u64;
        let mut done = GcDone::default();
        let report = |done: &GcDone| progress(done.results + done.files + done.spared, all);
        for batch in plan.results.chunks(BATCH) {
            self.collect_results(batch, plan.horizon, &mut done)?;
            report(&done);
        }
        for item in &plan.items {
            if self.remove_item(item, plan.horizon)? {
                done.files += item.files;
                done.space += item.space;
            } else {
                done.spared += 1;
            }
        }
        report(&done);
        if plan.tombstones.is_some()
            && let Some(limit) = plan.max_size
        {
            let (files, space) = self.trim_tombstones(tombstone_share(limit))?;
            done.files += files;
            done.space += space;
        }
        // Read after the results and records were removed: a build may have committed a result that names a blob of the plan.
        let named = self.named_now()?;
        let blobs: Vec<Hash> = plan.blobs.into_iter().filter(|hash| !named.contains(hash)).collect();
        for batch in blobs.chunks(BATCH) {
            self.collect_blobs(batch, plan.horizon, false, &mut done)?;
            report(&done);
        }
        for batch in plan.borrowed.chunks(BATCH) {
            self.collect_blobs(batch, plan.horizon, true, &mut done)?;
            report(&done);
        }
        for path in &plan.files {
            // Only the quarantine contains directories.
            if let Some(facts) = fs::facts(path)?
                && quarantine::remove(path)?
            {
                done.files += 1;
                done.space += space_of(facts.stamp.size);
            }
        }
        for name in &plan.indexes {
            let Some((_, index)) = self.index(name)?.filter(|(_, index)| !index.is_valid()) else {
                continue;
            };
            // A result that a running build uses is kept, although its blob was lost with the file. The index explains the loss:
            // without it, `forge cache verify` would report damage.
            let lost = |blob: &BorrowedBlob| {
                Ok::<_, StoreError>(named.contains(&blob.bytes.hash) && !self.has_blob(&blob.bytes)?)
            };
            let mut explains = false;
            for blob in &index.blobs {
                explains = explains || lost(blob)?;
            }
            if explains {
                done.spared += 1;
            } else {
                self.remove_index(name)?;
                done.files += 1;
            }
        }
        self.collect_idle_indexes(&plan.idle_indexes, &mut done)?;
        report(&done);
        Ok(done)
    }

    /// Returns the blobs that anything in the store names.
    fn named_now(&self) -> Result<HashSet<Hash>, StoreError> {
        let mut named = self.named_by_pins()?.blobs;
        for found in self.all_results()? {
            named.extend(distinct(&found.result));
        }
        named.extend(self.records_with_blobs()?.into_iter().flat_map(|record| record.blobs));
        Ok(named)
    }

    /// Removes indexes of which no blob is named. A running build may have written a blob that only the output contains, and
    /// name it in a result later. So this does nothing while a build runs.
    fn collect_idle_indexes(&self, names: &[String], done: &mut GcDone) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let _sweeping = self.sweeping()?;
        // One of the leases is our own.
        if self.live_leases()? > 1 {
            done.spared += names.len() as u64;
            return Ok(());
        }
        let named = self.named_now()?;
        for name in names {
            let Some((stamp, index)) = self.index(name)? else {
                continue;
            };
            if index.blobs.iter().any(|blob| named.contains(&blob.bytes.hash)) {
                done.spared += 1;
                continue;
            }
            self.remove_index(name)?;
            done.files += 1;
            done.space += space_of(stamp.size);
        }
        Ok(())
    }

    fn collect_results(
        &self,
        batch: &[(FoundResult, GcReason)],
        horizon: i64,
        done: &mut GcDone,
    ) -> Result<(), StoreError> {
        let trash = self.scratch()?;
        let mut spared: Vec<ActionDigest> = Vec::new();
        for (found, cause) in batch {
            let why = match cause {
                GcReason::Incomplete => RemovalReason::Incomplete,
                GcReason::Age => RemovalReason::Age,
                _ => RemovalReason::Size,
            };
            self.write_tombstone(&found.key, &found.result, since(found.last_used()), why)?;
        }
        {
            let _sweeping = self.sweeping()?;
            let used_now = self.used_by_leases()?;
            for (number, (found, _)) in batch.iter().enumerate() {
                let path = self.shard(layout::ACTIONS, found.key.hash());
                let now = fs::facts(&path)?;
                // Only if it is the result that was planned, and no build has used it since.
                let idle = now.is_some_and(|now| now.stamp.mtime_ns == found.used && found.used < horizon);
                let idle = idle && !used_now.contains(found.key.hash());
                if idle {
                    fs::rename(&path, &trash.path().join(number.to_string()))?;
                    done.results += 1;
                } else {
                    spared.push(found.key);
                }
            }
        }
        for key in spared {
            self.remove_tombstone(&key)?;
            done.spared += 1;
        }
        Ok(())
    }

    /// Removes blobs that no build has used since the horizon; with `borrowed`, only those that can be borrowed.
    fn collect_blobs(&self, batch: &[Hash], horizon: i64, borrowed: bool, done: &mut GcDone) -> Result<(), StoreError> {
        let trash = self.scratch()?;
        let _sweeping = self.sweeping()?;
        for hash in batch {
            let path = self.shard(layout::CAS, hash);
            let Some(facts) = fs::facts(&path)?.filter(|facts| facts.kind != FileKind::Directory) else {
                continue;
            };
            let digest = BlobDigest {
                hash: *hash,
                len: facts.stamp.size,
            };
            // A blob that was copied back from an output is marked as used, too.
            if facts.stamp.mtime_ns < horizon && (!borrowed || self.is_borrowed(&digest)?) {
                // A rename is quick, whatever the size of the file. The space is freed after the lock is released.
                fs::rename(&path, &trash.path().join(hash.to_string()))?;
                done.files += 1;
                done.space += space_of(facts.stamp.size);
            } else {
                done.spared += 1;
            }
        }
        Ok(())
    }
}
