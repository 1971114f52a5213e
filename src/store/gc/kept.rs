//! The space that is kept under a plan, and why.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use super::GcPlan;
use super::References;
use super::distinct;
use super::history::HistoryItem;
use crate::digest::Hash;
use crate::store::layout;
use crate::store::survey::FoundResult;
use crate::store::survey::space_of;

/// Why something in the store is kept. What several reasons keep counts for the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeepReason {
    /// A pinned manifest names it.
    Pinned,
    /// The newest outputs of a recipe need it.
    Newest,
    /// A running build uses it, or wrote it and no result names it yet.
    Running,
    /// It is a result that may be removed, but the limit does not require it.
    Results,
    /// It is a record of a run or a step, or a log or manifest that a record names.
    Records,
    /// It is a note: a digest of a file, a tombstone, an index of borrowed blobs.
    Notes,
}

/// A result that is kept.
pub(super) struct KeptResult {
    reason: KeepReason,
    space: u64,
    blobs: HashSet<Hash>,
}

impl KeptResult {
    pub(super) fn of(reason: KeepReason, found: &FoundResult) -> Self {
        Self {
            reason,
            space: space_of(found.bytes),
            blobs: distinct(&found.result),
        }
    }
}

impl GcPlan {
    /// Sums up the space that is kept, by reason. The sum is the size of the store after the plan is executed.
    pub(super) fn set_kept_space(
        &mut self,
        references: &References,
        pinned: &HashSet<Hash>,
        results: &[KeptResult],
        records: &[HistoryItem],
        spaces: &BTreeMap<&'static str, u64>,
    ) {
        let mut kept_space: BTreeMap<KeepReason, u64> = BTreeMap::new();
        let mut reasons: HashMap<Hash, KeepReason> = HashMap::new();
        let mut keep = |hash: &Hash, reason: KeepReason| {
            let known = reasons.entry(*hash).or_insert(reason);
            *known = reason.min(*known);
        };
        for hash in pinned {
            keep(hash, KeepReason::Pinned);
        }
        for result in results {
            *kept_space.entry(result.reason).or_default() += result.space;
            for hash in &result.blobs {
                keep(hash, result.reason);
            }
        }
        for hash in records.iter().flat_map(|record| &record.blobs) {
            keep(hash, KeepReason::Records);
        }
        let removed: HashSet<&Hash> = self.blobs.iter().collect();
        for (hash, space) in &references.spaces {
            if !removed.contains(hash) {
                let reason = reasons.get(hash).copied().unwrap_or(KeepReason::Running);
                *kept_space.entry(reason).or_default() += space;
            }
        }
        let removed = self.items.iter().filter(|item| item.is_record());
        let removed: u64 = removed.map(|item| item.space).sum();
        let of_runs = spaces.get(layout::RUNS).copied().unwrap_or(0);
        *kept_space.entry(KeepReason::Records).or_default() += of_runs.saturating_sub(removed);
        let others: u64 = kept_space.values().sum();
        kept_space.insert(KeepReason::Notes, self.after.saturating_sub(others));
        kept_space.retain(|_, space| *space > 0);
        self.kept_space = kept_space;
    }
}
