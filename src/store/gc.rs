//! Collecting: what may go, in which order, and why. First a plan that can be shown, then its execution, which looks at
//! everything again in the moment it removes it. `docs/design-notes.md`, "Garbage collection while builds run", says why neither a
//! live build nor a pinned manifest loses anything.

mod history;
mod run;
mod stays;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::action::ActionResult;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs::FileKind;
use crate::fs::FileLock;
use crate::store::Lease;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::record::LAST;
use crate::store::survey::FoundResult;
use crate::store::survey::Named;
use crate::store::survey::room;
use history::Piece;
pub use stays::Keeper;
use stays::Standing;

/// How long what was found damaged is kept for a look.
const QUARANTINE: Duration = Duration::from_hours(7 * 24);
/// How long the note of a removed result is kept.
const TOMBSTONES: Duration = Duration::from_hours(180 * 24);
/// How long the record of a run is kept.
const RUNS: Duration = Duration::from_hours(180 * 24);
/// How long the digest of a file is remembered that nobody asked for anew: a file that is still there is read once more.
const STAT: Duration = Duration::from_hours(365 * 24);
/// The kind of action that is large and the cheapest to make again: it goes before all others.
const FIRST: &str = "reference-block";

/// What is to be collected, besides what nothing needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    /// The most room that the store may take, in bytes.
    pub max_size: Option<u64>,
    /// Results that were not used for so long.
    pub older_than: Option<Duration>,
    /// Also what only the newest outputs of recipes would need.
    pub also_newest: bool,
}

/// Why something goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// No result names it: a build that was killed left it, or its result went before.
    Unreferenced,
    /// An output holds the same bytes.
    Lent,
    /// The result has lost a blob: it was no hit any more.
    Incomplete,
    /// Damaged files that were moved aside long ago.
    Quarantined,
    /// Notes that explain nothing any more: old tombstones, loans of files that are gone.
    Stale,
    /// It was not used for longer than asked for.
    Age,
    /// The store is to become smaller, and this explains earlier runs or spares readings: no build needs it.
    History,
    /// The store is to become smaller, and this is cheap to make again for its room.
    Room,
}

/// Things of a plan that go for the same cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Group {
    /// Results.
    pub results: u64,
    /// Blobs and other files.
    pub files: u64,
    /// The room that becomes free, in bytes.
    pub room: u64,
    /// What it would cost to make them again, as recorded, in milliseconds.
    pub cost_ms: u64,
}

/// What stays whatever is wished, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Results that pinned manifests need.
    pub pinned: u64,
    /// Results that the newest outputs of recipes need.
    pub newest: u64,
    /// Results used since the oldest build began that lives now.
    pub live: u64,
}

/// What would be collected.
#[derive(Debug)]
pub struct GcPlan {
    /// The room that the store takes, in bytes.
    pub before: u64,
    /// The room that it would take then.
    pub after: u64,
    /// The limit that was asked for.
    pub max_size: Option<u64>,
    /// What goes, by cause and by kind of action or file.
    pub groups: BTreeMap<(Cause, String), Group>,
    /// What stays.
    pub kept: Kept,
    /// The space that what stays takes, in bytes, by what it stays for. Together that is `after`.
    pub stays: BTreeMap<Keeper, u64>,
    horizon: i64,
    results: Vec<(FoundResult, Cause)>,
    blobs: Vec<Hash>,
    lent: Vec<Hash>,
    files: Vec<PathBuf>,
    pieces: Vec<Piece>,
    books: Vec<String>,
    idle_books: Vec<String>,
    /// The space that notes of removed results may take, in bytes, if there is a limit to hold.
    tombstones: Option<u64>,
    _gc: FileLock,
    _lease: Lease,
}

impl GcPlan {
    /// Returns whether nothing would go.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns whether the store would still be larger than was asked for.
    pub fn misses_limit(&self) -> bool {
        self.max_size.is_some_and(|limit| self.after > limit)
    }
}

/// What was collected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcDone {
    /// Results.
    pub results: u64,
    /// Blobs and other files.
    pub files: u64,
    /// The room that became free, in bytes.
    pub room: u64,
    /// What of the plan stayed, since somebody used it meanwhile.
    pub spared: u64,
}

/// Which results stay, whatever their size.
struct Roots {
    pinned: HashSet<Hash>,
    newest: HashSet<Hash>,
    /// What pins name.
    blobs: HashSet<Hash>,
}

fn since(ns: i64) -> SystemTime {
    u64::try_from(ns).map_or(UNIX_EPOCH, |ns| UNIX_EPOCH + Duration::from_nanos(ns))
}

fn older(ns: i64, than: Duration) -> bool {
    SystemTime::now().duration_since(since(ns)).is_ok_and(|age| age > than)
}

/// The blobs of the store, and what refers to each.
struct Ledger {
    references: HashMap<Hash, u32>,
    /// The space that each takes, in bytes.
    rooms: HashMap<Hash, u64>,
    /// When each was last put, in nanoseconds since 1970.
    used: HashMap<Hash, i64>,
}

impl Ledger {
    fn refer(&mut self, hashes: impl IntoIterator<Item = Hash>) {
        for hash in hashes {
            *self.references.entry(hash).or_default() += 1;
        }
    }

    /// Returns the space that blobs take, their shares of what others name too.
    fn share<'h>(&self, hashes: impl IntoIterator<Item = &'h Hash>) -> u64 {
        let shares = hashes.into_iter().map(|hash| {
            let references = self.references.get(hash).copied().unwrap_or(1).max(1);
            self.rooms.get(hash).copied().unwrap_or(0) / u64::from(references)
        });
        shares.sum()
    }

    /// Takes one reference to each blob away and returns the blobs that nothing names any more.
    fn release(&mut self, hashes: impl IntoIterator<Item = Hash>) -> Vec<Hash> {
        let mut freed = Vec::new();
        for hash in hashes {
            if let Some(references) = self.references.get_mut(&hash) {
                *references = references.saturating_sub(1);
                if *references == 0 {
                    freed.push(hash);
                }
            }
        }
        freed
    }
}

fn distinct(result: &ActionResult) -> HashSet<Hash> {
    std::iter::once(&result.action)
        .chain(result.outputs.values())
        .map(|digest| digest.hash)
        .collect()
}

impl Store {
    /// Plans what to collect. Nothing is removed yet; while the plan lives no other collector runs.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] if another collector is at work; [`StoreError::Path`].
    pub fn gc_plan(&self, wish: &Wish) -> Result<GcPlan, StoreError> {
        let lock = self.root().join(layout::LOCKS).join("gc");
        let gc = FileLock::try_exclusive(&lock)?.ok_or(StoreError::Busy { path: lock })?;
        // Whatever is used from here on is marked with a time that is not before this.
        let lease = self.lease()?;
        let horizon = {
            // Alone: a build that writes into its lease changes the time of it for a moment.
            let _sweeping = self.sweeping()?;
            self.oldest_lease()?
        };
        let mut results = self.all_results()?;
        let noted = self.used_by_notes()?;
        for found in &mut results {
            found.noted = noted.get(found.key.hash()).copied().unwrap_or(i64::MIN);
        }
        let used_now = self.used_by_leases()?;
        let roots = self.roots(wish, &results)?;
        let records = self.naming_records()?;
        let (blobs, _) = self.sharded(layout::CAS)?;
        let rooms = self.rooms()?;
        let before = rooms.values().sum();
        let mut plan = GcPlan {
            before,
            after: before,
            max_size: wish.max_size,
            groups: BTreeMap::new(),
            kept: Kept::default(),
            stays: BTreeMap::new(),
            horizon,
            results: Vec::new(),
            blobs: Vec::new(),
            lent: Vec::new(),
            files: Vec::new(),
            pieces: Vec::new(),
            books: Vec::new(),
            idle_books: Vec::new(),
            tombstones: None,
            _gc: gc,
            _lease: lease,
        };
        let mut ledger = Ledger {
            references: HashMap::new(),
            rooms: blobs
                .iter()
                .map(|(hash, file)| (*hash, room(file.stamp.size)))
                .collect(),
            used: blobs.iter().map(|(hash, file)| (*hash, file.stamp.mtime_ns)).collect(),
        };
        ledger.refer(results.iter().flat_map(|found| distinct(&found.result)));
        ledger.refer(roots.blobs.iter().copied());
        ledger.refer(records.iter().flat_map(|record| record.blobs.iter().copied()));

        let there: HashSet<Hash> = results.iter().map(|found| *found.key.hash()).collect();
        let mut records = self.plan_notes(&mut plan, &mut ledger, wish, records, &there)?;
        for (hash, file) in &blobs {
            let references = ledger.references.get(hash).copied();
            if references.is_none() && file.stamp.mtime_ns < horizon {
                plan.add_blob(*hash, file.stamp.size, Cause::Unreferenced, "blobs");
            } else if references != Some(0)
                && file.kind == FileKind::Plain
                && file.stamp.mtime_ns < horizon
                && self.is_lent(&BlobDigest {
                    hash: *hash,
                    len: file.stamp.size,
                })?
            {
                plan.lent.push(*hash);
                plan.count(Cause::Lent, "tensor", 0, 1, room(file.stamp.size), 0);
                ledger.rooms.insert(*hash, 0);
            }
        }

        let mut standing: Vec<Standing> = Vec::new();
        let mut candidates = Vec::new();
        for found in results {
            let live = found.used >= horizon || used_now.contains(found.key.hash());
            plan.kept.live += u64::from(live);
            let key = found.key.hash();
            let (pinned, newest) = (roots.pinned.contains(key), roots.newest.contains(key));
            if live {
                standing.push(Standing::of(Keeper::Running, &found));
                continue;
            }
            if !self.missing(&found.result)?.is_empty() {
                self.plan_result(&mut plan, &mut ledger, found, Cause::Incomplete);
                continue;
            }
            plan.kept.pinned += u64::from(pinned);
            plan.kept.newest += u64::from(newest && !pinned);
            if pinned || newest {
                let keeper = if pinned { Keeper::Pinned } else { Keeper::Newest };
                standing.push(Standing::of(keeper, &found));
                continue;
            }
            if wish.older_than.is_some_and(|age| older(found.last_used(), age)) {
                self.plan_result(&mut plan, &mut ledger, found, Cause::Age);
                continue;
            }
            candidates.push(found);
        }
        if let Some(limit) = wish.max_size.filter(|limit| plan.after > *limit) {
            records = self.plan_history(&mut plan, &mut ledger, limit, records, &there)?;
            let mut ranked: Vec<(bool, u128, i64, FoundResult)> = candidates
                .into_iter()
                .map(|found| {
                    let last = self.kind_of(&found.result).as_deref() != Some(FIRST);
                    let size = room(found.bytes) + ledger.share(&distinct(&found.result));
                    // Milliseconds for each GiB, in whole numbers so that the order is the same everywhere.
                    let price = (u128::from(found.result.cost_ms) << 30) / u128::from(size.max(1));
                    (last, price, found.last_used(), found)
                })
                .collect();
            ranked.sort_by_key(|(last, price, used, found)| (*last, *price, *used, found.key));
            for (_, _, _, found) in ranked {
                if plan.after > limit {
                    self.plan_result(&mut plan, &mut ledger, found, Cause::Room);
                } else {
                    standing.push(Standing::of(Keeper::Results, &found));
                }
            }
            if plan.after > limit {
                records = plan.add_last(&mut ledger, limit, records, &there);
                self.plan_idle_books(&mut plan, &ledger, limit)?;
                records = plan.give_up_floor(&mut ledger, limit, records);
            }
        } else {
            let left = candidates.iter().map(|found| Standing::of(Keeper::Results, found));
            standing.extend(left);
        }
        plan.set_stays(&ledger, &roots.blobs, &standing, &records, &rooms);
        Ok(plan)
    }

    /// Adds a result to a plan, with the blobs that nothing names then.
    fn plan_result(&self, plan: &mut GcPlan, ledger: &mut Ledger, found: FoundResult, cause: Cause) {
        let kind = self.kind_of(&found.result).unwrap_or_else(|| "unknown".to_owned());
        plan.count(cause, &kind, 1, 0, 0, found.result.cost_ms);
        // A tombstone takes the result's place: it has the action's document as JSON text, and what the result says. Beyond
        // their share an older one goes for it.
        let tombstone = room(found.result.action.len.saturating_mul(5) / 4 + found.bytes + 512);
        let left = plan.tombstones.unwrap_or(u64::MAX);
        let added = if tombstone <= left { tombstone } else { 0 };
        plan.tombstones = plan.tombstones.map(|left| left - added);
        plan.after = (plan.after + added).saturating_sub(room(found.bytes));
        plan.free(ledger, distinct(&found.result), cause, &kind);
        plan.results.push((found, cause));
    }

    /// Adds the oldest records and notes, as long as the store is larger than the limit. Returns the records that stay.
    fn plan_history(
        &self,
        plan: &mut GcPlan,
        ledger: &mut Ledger,
        limit: u64,
        records: Vec<Piece>,
        there: &HashSet<Hash>,
    ) -> Result<Vec<Piece>, StoreError> {
        let horizon = plan.horizon;
        let is_idle = |piece: &Piece| piece.unless.is_none_or(|key| !there.contains(&key));
        // What a step did last stays as long as its result.
        let (mut pieces, mut kept): (Vec<Piece>, Vec<Piece>) = records.into_iter().partition(is_idle);
        pieces.extend(self.fresh_notes()?);
        let planned: HashSet<&PathBuf> = plan.files.iter().collect();
        let others = self.other_notes()?.into_iter().filter(is_idle);
        pieces.extend(others.filter(|piece| !planned.contains(&piece.path)));
        let tombstones = pieces.iter().filter(|piece| piece.kind == history::TOMBSTONE);
        let mut tombstones: u64 = tombstones.map(|piece| piece.room).sum();
        let size = |piece: &Piece| piece.room + ledger.share(&piece.blobs);
        let (floor, going) = history::expendable(pieces, limit, horizon, &size);
        kept.extend(floor);
        for piece in going {
            if plan.after <= limit {
                kept.push(piece);
                continue;
            }
            if piece.kind == history::TOMBSTONE {
                tombstones = tombstones.saturating_sub(piece.room);
            }
            plan.add_piece(ledger, piece, Cause::History);
        }
        plan.tombstones = Some(history::tombstone_share(limit).saturating_sub(tombstones));
        Ok(kept)
    }

    /// Adds lists of what outputs lend that hold, but of which nothing is named any more, as long as the store is larger than
    /// the limit.
    fn plan_idle_books(&self, plan: &mut GcPlan, ledger: &Ledger, limit: u64) -> Result<(), StoreError> {
        for found in self.all_books()? {
            let named = |hash: &Hash| ledger.references.get(hash).is_some_and(|references| *references > 0);
            let idle = !found.book.loans.iter().any(|loan| named(&loan.bytes.hash));
            if plan.after > limit && idle && found.holds && found.stamp.mtime_ns < plan.horizon {
                plan.count(Cause::History, "loans", 0, 1, room(found.stamp.size), 0);
                plan.idle_books.push(found.name);
            }
        }
        Ok(())
    }

    /// Adds what explains nothing any more. Returns the records that stay.
    fn plan_notes(
        &self,
        plan: &mut GcPlan,
        ledger: &mut Ledger,
        wish: &Wish,
        records: Vec<Piece>,
        there: &HashSet<Hash>,
    ) -> Result<Vec<Piece>, StoreError> {
        // What they name (logs, manifests of outputs that are long replaced) is of no use without them.
        let runs = wish.older_than.map_or(RUNS, |age| age.min(RUNS));
        let mut kept = Vec::new();
        for piece in records.into_iter().chain(self.fresh_notes()?) {
            let age = match piece.kind {
                history::RUN => Some(runs),
                LAST | history::EARLIER | history::FRESH => Some(RUNS),
                _ => None,
            };
            let idle = piece.unless.is_none_or(|key| !there.contains(&key));
            if idle && !piece.is_live(plan.horizon) && age.is_some_and(|age| older(piece.mtime_ns, age)) {
                plan.add_piece(ledger, piece, Cause::Stale);
            } else if piece.kind != history::FRESH {
                kept.push(piece);
            }
        }
        // Kept for a look, but not where room is wanting.
        let tight = wish.max_size.is_some_and(|limit| plan.before > limit);
        for file in self.quarantined()? {
            if tight || older(file.stamp.mtime_ns.max(file.stamp.ctime_ns), QUARANTINE) {
                plan.add_file(file.path, file.stamp.size, Cause::Quarantined, "quarantine");
            }
        }
        for (_, file) in self.sharded(layout::TOMBSTONES)?.0 {
            if older(file.stamp.mtime_ns, TOMBSTONES) {
                plan.add_file(file.path, file.stamp.size, Cause::Stale, "tombstones");
            }
        }
        for (_, file) in self.sharded(layout::STAT)?.0 {
            if older(file.stamp.mtime_ns, STAT) {
                plan.add_file(file.path, file.stamp.size, Cause::Stale, "stat");
            }
        }
        for found in self.all_books()? {
            // One that is about to become true belongs to a build that lives.
            if !found.holds && found.stamp.mtime_ns < plan.horizon {
                plan.count(Cause::Stale, "loans", 0, 1, room(found.stamp.size), 0);
                plan.books.push(found.name);
            }
        }
        Ok(kept)
    }

    /// Returns what must stay.
    fn roots(&self, wish: &Wish, results: &[FoundResult]) -> Result<Roots, StoreError> {
        let used: HashMap<&Hash, i64> = results
            .iter()
            .map(|found| (found.key.hash(), found.last_used()))
            .collect();
        let pins = self.named_by_pins()?;
        let mut roots = Roots {
            pinned: pins.keys,
            newest: HashSet::new(),
            blobs: pins.blobs,
        };
        for last in self.all_last()? {
            // One whose result went before keeps nothing, either.
            let lapsed = |age: Duration| used.get(last.action.hash()).is_none_or(|used| older(*used, age));
            if wish.also_newest || wish.older_than.is_some_and(lapsed) {
                continue;
            }
            roots.newest.insert(*last.action.hash());
            if let Some(manifest) = &last.manifest {
                roots.newest.extend(self.named_by_manifest(manifest).keys);
            }
        }
        Ok(roots)
    }

    /// Returns what pinned manifests name, and these.
    fn named_by_pins(&self) -> Result<Named, StoreError> {
        let mut all = Named::default();
        for pin in self.pins()? {
            let named = self.named_by_manifest(&pin.manifest);
            all.keys.extend(named.keys);
            all.blobs.extend(named.blobs);
            all.blobs.insert(pin.manifest.hash);
        }
        Ok(all)
    }
}

impl GcPlan {
    fn count(&mut self, cause: Cause, kind: &str, results: u64, files: u64, room: u64, cost_ms: u64) {
        let group = self.groups.entry((cause, kind.to_owned())).or_default();
        group.results += results;
        group.files += files;
        group.room += room;
        group.cost_ms += cost_ms;
        self.after = self.after.saturating_sub(room);
    }

    /// Takes references to blobs away; those that nothing names any more go.
    fn free(&mut self, ledger: &mut Ledger, hashes: impl IntoIterator<Item = Hash>, cause: Cause, kind: &str) {
        for hash in ledger.release(hashes) {
            if ledger.used.get(&hash).is_some_and(|used| *used < self.horizon) {
                self.blobs.push(hash);
                let room = ledger.rooms.get(&hash).copied().unwrap_or(0);
                self.count(cause, kind, 0, 1, room, 0);
            }
        }
    }

    fn add_piece(&mut self, ledger: &mut Ledger, piece: Piece, cause: Cause) {
        self.count(cause, piece.kind, 0, piece.files, piece.room, 0);
        self.free(ledger, piece.blobs.iter().copied(), cause, piece.kind);
        self.pieces.push(piece);
    }

    /// Adds what is noted of steps whose result goes with this plan: the oldest, as long as the store is larger than the
    /// limit. Returns the records that stay.
    fn add_last(&mut self, ledger: &mut Ledger, limit: u64, records: Vec<Piece>, there: &HashSet<Hash>) -> Vec<Piece> {
        let going: HashSet<Hash> = self.results.iter().map(|(found, _)| *found.key.hash()).collect();
        let stays = |piece: &Piece| {
            piece
                .unless
                .is_none_or(|key| there.contains(&key) && !going.contains(&key))
        };
        let (mut kept, idle): (Vec<Piece>, Vec<Piece>) = records.into_iter().partition(stays);
        let size = |piece: &Piece| piece.room + ledger.share(&piece.blobs);
        let (floor, going) = history::expendable(idle, limit, self.horizon, &size);
        kept.extend(floor);
        for piece in going {
            if self.after > limit {
                self.add_piece(ledger, piece, Cause::History);
            } else {
                kept.push(piece);
            }
        }
        kept
    }

    /// Adds the floor of the history too, the oldest first, if the limit can be held that way: not what steps did last, and
    /// not the newest run. Returns the records that stay.
    fn give_up_floor(&mut self, ledger: &mut Ledger, limit: u64, records: Vec<Piece>) -> Vec<Piece> {
        let runs = records.iter().filter(|piece| piece.kind == history::RUN);
        let newest = runs.map(|piece| (piece.mtime_ns, piece.path.clone())).max();
        let may_go = |piece: &Piece| {
            piece.unless.is_none()
                && newest.as_ref().is_none_or(|(_, path)| *path != piece.path)
                && !piece.is_live(self.horizon)
        };
        let (mut floor, mut kept): (Vec<Piece>, Vec<Piece>) = records.into_iter().partition(may_go);
        let sizes = floor.iter().map(|piece| piece.room + ledger.share(&piece.blobs));
        if self.after.saturating_sub(sizes.sum()) > limit {
            kept.extend(floor);
            return kept;
        }
        floor.sort_by(|a, b| (a.mtime_ns, &a.path).cmp(&(b.mtime_ns, &b.path)));
        for piece in floor {
            if self.after > limit {
                self.add_piece(ledger, piece, Cause::History);
            } else {
                kept.push(piece);
            }
        }
        kept
    }

    fn add_blob(&mut self, hash: Hash, bytes: u64, cause: Cause, kind: &str) {
        self.blobs.push(hash);
        self.count(cause, kind, 0, 1, room(bytes), 0);
    }

    fn add_file(&mut self, path: PathBuf, bytes: u64, cause: Cause, kind: &str) {
        self.files.push(path);
        self.count(cause, kind, 0, 1, room(bytes), 0);
    }
}
