//! What takes the space that a plan leaves, and why it stays.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;

use super::GcPlan;
use super::Ledger;
use super::distinct;
use super::history::Piece;
use crate::digest::Hash;
use crate::store::layout;
use crate::store::survey::FoundResult;
use crate::store::survey::room;

/// What something in the store stays for. What several need counts for the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Keeper {
    /// Pinned manifests.
    Pinned,
    /// The newest outputs of recipes.
    Newest,
    /// Builds that run now, with blobs that they put and no result names yet.
    Running,
    /// Results that nothing holds: the limit does not ask for them.
    Results,
    /// Records of runs and of what steps did, with the logs and manifests that they name.
    Records,
    /// Notes: digests of files, removed results, what outputs lend.
    Notes,
}

/// A result that stays.
pub(super) struct Standing {
    keeper: Keeper,
    room: u64,
    blobs: HashSet<Hash>,
}

impl Standing {
    pub(super) fn of(keeper: Keeper, found: &FoundResult) -> Self {
        Self {
            keeper,
            room: room(found.bytes),
            blobs: distinct(&found.result),
        }
    }
}

impl GcPlan {
    /// Sums up what stays, so that all of it together is the space that the store takes then.
    pub(super) fn set_stays(
        &mut self,
        ledger: &Ledger,
        pinned: &HashSet<Hash>,
        results: &[Standing],
        records: &[Piece],
        rooms: &BTreeMap<&'static str, u64>,
    ) {
        let mut stays: BTreeMap<Keeper, u64> = BTreeMap::new();
        let mut keepers: HashMap<Hash, Keeper> = HashMap::new();
        let mut hold = |hash: &Hash, keeper: Keeper| {
            let known = keepers.entry(*hash).or_insert(keeper);
            *known = keeper.min(*known);
        };
        for hash in pinned {
            hold(hash, Keeper::Pinned);
        }
        for result in results {
            *stays.entry(result.keeper).or_default() += result.room;
            for hash in &result.blobs {
                hold(hash, result.keeper);
            }
        }
        for hash in records.iter().flat_map(|record| &record.blobs) {
            hold(hash, Keeper::Records);
        }
        let going: HashSet<&Hash> = self.blobs.iter().collect();
        for (hash, room) in &ledger.rooms {
            if !going.contains(hash) {
                let keeper = keepers.get(hash).copied().unwrap_or(Keeper::Running);
                *stays.entry(keeper).or_default() += room;
            }
        }
        let gone = self.pieces.iter().filter(|piece| piece.is_record());
        let gone: u64 = gone.map(|piece| piece.room).sum();
        let of_runs = rooms.get(layout::RUNS).copied().unwrap_or(0);
        *stays.entry(Keeper::Records).or_default() += of_runs.saturating_sub(gone);
        let others: u64 = stays.values().sum();
        stays.insert(Keeper::Notes, self.after.saturating_sub(others));
        stays.retain(|_, room| *room > 0);
        self.stays = stays;
    }
}
