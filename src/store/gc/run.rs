//! Carrying a plan out: everything is looked at again in the moment it is removed.

use std::collections::HashSet;

use super::Cause;
use super::GcDone;
use super::GcPlan;
use super::distinct;
use super::history::tombstone_share;
use super::since;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::store::Loan;
use crate::store::Removal;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::aside;
use crate::store::layout;
use crate::store::survey::FoundResult;
use crate::store::survey::room;

/// How many things are removed between two looks of others.
const BATCH: usize = 128;

impl Store {
    /// Carries a plan out. `progress` is told how many things are done, and of how many.
    pub fn gc_run(&self, plan: GcPlan, progress: &dyn Fn(u64, u64)) -> Result<GcDone, StoreError> {
        let all = [
            plan.results.len(),
            plan.pieces.len(),
            plan.blobs.len(),
            plan.lent.len(),
            plan.files.len(),
            plan.books.len(),
            plan.idle_books.len(),
        ];
        let all = all.into_iter().sum::<usize>() as u64;
        let mut done = GcDone::default();
        let tell = |done: &GcDone| progress(done.results + done.files + done.spared, all);
        for batch in plan.results.chunks(BATCH) {
            self.collect_results(batch, plan.horizon, &mut done)?;
            tell(&done);
        }
        for piece in &plan.pieces {
            if self.remove_piece(piece, plan.horizon)? {
                done.files += piece.files;
                done.room += piece.room;
            } else {
                done.spared += 1;
            }
        }
        tell(&done);
        if plan.tombstones.is_some()
            && let Some(limit) = plan.max_size
        {
            let (files, room) = self.trim_tombstones(tombstone_share(limit))?;
            done.files += files;
            done.room += room;
        }
        // Looked at after the results and records went: a build may have committed a result since that names a blob of the plan.
        let named = self.named_now()?;
        let blobs: Vec<Hash> = plan.blobs.into_iter().filter(|hash| !named.contains(hash)).collect();
        for batch in blobs.chunks(BATCH) {
            self.collect_blobs(batch, plan.horizon, false, &mut done)?;
            tell(&done);
        }
        for batch in plan.lent.chunks(BATCH) {
            self.collect_blobs(batch, plan.horizon, true, &mut done)?;
            tell(&done);
        }
        for path in &plan.files {
            // A directory is one that was moved aside.
            if let Some(facts) = fs::facts(path)?
                && aside::remove(path)?
            {
                done.files += 1;
                done.room += room(facts.stamp.size);
            }
        }
        for name in &plan.books {
            let Some((_, book)) = self.book(name)?.filter(|(_, book)| !book.holds()) else {
                continue;
            };
            // A result that a running build uses stays although its blob is gone with the file. The book says how it was lost:
            // without it, `forge cache verify` would report damage.
            let lost =
                |loan: &Loan| Ok::<_, StoreError>(named.contains(&loan.bytes.hash) && !self.has_blob(&loan.bytes)?);
            let mut explains = false;
            for loan in &book.loans {
                explains = explains || lost(loan)?;
            }
            if explains {
                done.spared += 1;
            } else {
                self.remove_book(name)?;
                done.files += 1;
            }
        }
        self.collect_idle_books(&plan.idle_books, &mut done)?;
        tell(&done);
        Ok(done)
    }

    /// Returns the blobs that anything in the store names now.
    fn named_now(&self) -> Result<HashSet<Hash>, StoreError> {
        let mut named = self.named_by_pins()?.blobs;
        for found in self.all_results()? {
            named.extend(distinct(&found.result));
        }
        named.extend(self.naming_records()?.into_iter().flat_map(|record| record.blobs));
        Ok(named)
    }

    /// Removes lists of what outputs lend, if still nothing of it is named. A build that runs may have put a blob that only the
    /// output holds, and name it in a result later; so this waits until there is none.
    fn collect_idle_books(&self, names: &[String], done: &mut GcDone) -> Result<(), StoreError> {
        if names.is_empty() {
            return Ok(());
        }
        let _sweeping = self.sweeping()?;
        // The collector has a lease itself.
        if self.live_leases()? > 1 {
            done.spared += names.len() as u64;
            return Ok(());
        }
        let named = self.named_now()?;
        for name in names {
            let Some((stamp, book)) = self.book(name)? else {
                continue;
            };
            if book.loans.iter().any(|loan| named.contains(&loan.bytes.hash)) {
                done.spared += 1;
                continue;
            }
            self.remove_book(name)?;
            done.files += 1;
            done.room += room(stamp.size);
        }
        Ok(())
    }

    fn collect_results(
        &self,
        batch: &[(FoundResult, Cause)],
        horizon: i64,
        done: &mut GcDone,
    ) -> Result<(), StoreError> {
        let trash = self.scratch()?;
        let mut spared: Vec<ActionDigest> = Vec::new();
        for (found, cause) in batch {
            let why = match cause {
                Cause::Incomplete => Removal::Incomplete,
                Cause::Age => Removal::Age,
                _ => Removal::Room,
            };
            self.bury(&found.key, &found.result, since(found.last_used()), why)?;
        }
        {
            let _sweeping = self.sweeping()?;
            let used_now = self.used_by_leases()?;
            for (number, (found, _)) in batch.iter().enumerate() {
                let path = self.shard(layout::ACTIONS, found.key.hash());
                let now = fs::facts(&path)?;
                // Only the very result that was looked at, and only if nobody has used it since.
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
            self.unbury(&key)?;
            done.spared += 1;
        }
        Ok(())
    }

    /// Removes blobs that nobody has used since the horizon; with `lent`, only those that a file lends.
    fn collect_blobs(&self, batch: &[Hash], horizon: i64, lent: bool, done: &mut GcDone) -> Result<(), StoreError> {
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
            // What is being taken back from a file that is about to be replaced is marked, too.
            if facts.stamp.mtime_ns < horizon && (!lent || self.is_lent(&digest)?) {
                // A rename takes a moment however large it is; what it takes to free it is done when nobody waits.
                fs::rename(&path, &trash.path().join(hash.to_string()))?;
                done.files += 1;
                done.room += room(facts.stamp.size);
            } else {
                done.spared += 1;
            }
        }
        Ok(())
    }
}
