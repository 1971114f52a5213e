//! Collecting: what may go, in which order, and why. First a plan that can be shown, then its execution, which looks at
//! everything again in the moment it removes it. `docs/design-notes.md`, "Collecting while builds live", says why neither a
//! live build nor a pinned manifest loses anything.

mod run;

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
use crate::store::survey::FoundResult;
use crate::store::survey::room;

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
    horizon: i64,
    results: Vec<(FoundResult, Cause)>,
    blobs: Vec<Hash>,
    lent: Vec<Hash>,
    files: Vec<PathBuf>,
    books: Vec<String>,
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
    blobs: HashSet<Hash>,
}

fn since(ns: i64) -> SystemTime {
    u64::try_from(ns).map_or(UNIX_EPOCH, |ns| UNIX_EPOCH + Duration::from_nanos(ns))
}

fn older(ns: i64, than: Duration) -> bool {
    SystemTime::now().duration_since(since(ns)).is_ok_and(|age| age > than)
}

/// What a result would free, and what refers to each blob.
struct Ledger {
    references: HashMap<Hash, u32>,
    rooms: HashMap<Hash, u64>,
}

impl Ledger {
    /// Returns the room that a result takes, its share of what others name too.
    fn share(&self, found: &FoundResult) -> u64 {
        let shares = distinct(&found.result).into_iter().map(|hash| {
            let references = self.references.get(&hash).copied().unwrap_or(1).max(1);
            self.rooms.get(&hash).copied().unwrap_or(0) / u64::from(references)
        });
        room(found.bytes) + shares.sum::<u64>()
    }

    /// Takes a result away and returns the blobs that nothing names any more.
    fn remove(&mut self, found: &FoundResult) -> Vec<Hash> {
        let mut freed = Vec::new();
        for hash in distinct(&found.result) {
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
        let before = self.usage_room()?;
        let mut plan = GcPlan {
            before,
            after: before,
            max_size: wish.max_size,
            groups: BTreeMap::new(),
            kept: Kept::default(),
            horizon,
            results: Vec::new(),
            blobs: Vec::new(),
            lent: Vec::new(),
            files: Vec::new(),
            books: Vec::new(),
            _gc: gc,
            _lease: lease,
        };
        let mut results = self.all_results()?;
        let noted = self.used_by_notes()?;
        for found in &mut results {
            found.noted = noted.get(found.key.hash()).copied().unwrap_or(i64::MIN);
        }
        let used_now = self.used_by_leases()?;
        let roots = self.roots(wish, &results)?;
        let (blobs, _) = self.sharded(layout::CAS)?;
        let mut ledger = Ledger {
            references: HashMap::new(),
            rooms: blobs
                .iter()
                .map(|(hash, file)| (*hash, room(file.stamp.size)))
                .collect(),
        };
        for hash in results.iter().flat_map(|found| distinct(&found.result)) {
            *ledger.references.entry(hash).or_default() += 1;
        }
        for hash in &roots.blobs {
            *ledger.references.entry(*hash).or_default() += 1;
        }
        let used: HashMap<Hash, i64> = blobs.iter().map(|(hash, file)| (*hash, file.stamp.mtime_ns)).collect();

        self.plan_notes(&mut plan, wish)?;
        for (hash, file) in &blobs {
            if !ledger.references.contains_key(hash) && file.stamp.mtime_ns < horizon {
                plan.add_blob(*hash, file.stamp.size, Cause::Unreferenced, "blobs");
            } else if file.kind == FileKind::Plain
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

        let mut candidates = Vec::new();
        for found in results {
            let live = found.used >= horizon || used_now.contains(found.key.hash());
            plan.kept.live += u64::from(live);
            let key = found.key.hash();
            let (pinned, newest) = (roots.pinned.contains(key), roots.newest.contains(key));
            if live {
                continue;
            }
            if !self.missing(&found.result)?.is_empty() {
                self.plan_result(&mut plan, &mut ledger, &used, found, Cause::Incomplete);
                continue;
            }
            plan.kept.pinned += u64::from(pinned);
            plan.kept.newest += u64::from(newest && !pinned);
            if pinned || newest {
                continue;
            }
            if wish.older_than.is_some_and(|age| older(found.last_used(), age)) {
                self.plan_result(&mut plan, &mut ledger, &used, found, Cause::Age);
                continue;
            }
            candidates.push(found);
        }
        if let Some(limit) = wish.max_size.filter(|limit| plan.after > *limit) {
            let mut ranked: Vec<(bool, u128, i64, FoundResult)> = candidates
                .into_iter()
                .map(|found| {
                    let last = self.kind_of(&found.result).as_deref() != Some(FIRST);
                    // Milliseconds for each GiB, in whole numbers so that the order is the same everywhere.
                    let price = (u128::from(found.result.cost_ms) << 30) / u128::from(ledger.share(&found).max(1));
                    (last, price, found.last_used(), found)
                })
                .collect();
            ranked.sort_by_key(|(last, price, used, found)| (*last, *price, *used, found.key));
            for (_, _, _, found) in ranked {
                if plan.after <= limit {
                    break;
                }
                self.plan_result(&mut plan, &mut ledger, &used, found, Cause::Room);
            }
        }
        Ok(plan)
    }

    /// Adds a result to a plan, with the blobs that nothing names then.
    fn plan_result(
        &self,
        plan: &mut GcPlan,
        ledger: &mut Ledger,
        used: &HashMap<Hash, i64>,
        found: FoundResult,
        cause: Cause,
    ) {
        let kind = self.kind_of(&found.result).unwrap_or_else(|| "unknown".to_owned());
        // A tombstone takes the result's place.
        plan.count(cause, &kind, 1, 0, 0, found.result.cost_ms);
        for hash in ledger.remove(&found) {
            if used.get(&hash).is_some_and(|used| *used < plan.horizon) {
                plan.blobs.push(hash);
                let room = ledger.rooms.get(&hash).copied().unwrap_or(0);
                plan.count(cause, &kind, 0, 1, room, 0);
            }
        }
        plan.results.push((found, cause));
    }

    /// Adds what explains nothing any more.
    fn plan_notes(&self, plan: &mut GcPlan, wish: &Wish) -> Result<(), StoreError> {
        // What they name (logs, manifests of outputs that are long replaced) is of no use without them.
        let runs = wish.older_than.map_or(RUNS, |age| age.min(RUNS));
        for file in self.plain_files(layout::RUNS)? {
            let is_record = file.path.extension().is_some_and(|extension| extension == "jsonl");
            if is_record && older(file.stamp.mtime_ns, runs) {
                plan.add_file(file.path, file.stamp.size, Cause::Stale, "runs");
            }
        }
        // Kept for a look, but not where room is wanting.
        let tight = wish.max_size.is_some_and(|limit| plan.before > limit);
        for file in self.plain_files(layout::QUARANTINE)? {
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
        Ok(())
    }

    /// Returns what must stay.
    fn roots(&self, wish: &Wish, results: &[FoundResult]) -> Result<Roots, StoreError> {
        let used: HashMap<&Hash, i64> = results
            .iter()
            .map(|found| (found.key.hash(), found.last_used()))
            .collect();
        let mut roots = Roots {
            pinned: HashSet::new(),
            newest: HashSet::new(),
            blobs: self.named_by_runs()?,
        };
        for pin in self.pins()? {
            let named = self.named_by_manifest(&pin.manifest);
            roots.pinned.extend(named.keys);
            roots.blobs.extend(named.blobs);
            roots.blobs.insert(pin.manifest.hash);
        }
        for last in self.all_last()? {
            roots.blobs.insert(last.document.hash);
            roots.blobs.extend(last.manifest.map(|manifest| manifest.hash));
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

    /// Returns the room that the whole store takes.
    fn usage_room(&self) -> Result<u64, StoreError> {
        let mut total = 0;
        for directory in layout::SHARDED {
            let (files, _) = self.sharded(directory)?;
            total += files.iter().map(|(_, file)| room(file.stamp.size)).sum::<u64>();
        }
        for directory in [
            layout::MANIFESTS,
            layout::RUNS,
            layout::EVENTS,
            layout::BORROWED,
            layout::QUARANTINE,
        ] {
            let files = self.plain_files(directory)?;
            total += files.iter().map(|file| room(file.stamp.size)).sum::<u64>();
        }
        for directory in layout::RUN_FOLDERS {
            let files = self.plain_files(&format!("{}/{directory}", layout::RUNS))?;
            total += files.iter().map(|file| room(file.stamp.size)).sum::<u64>();
        }
        Ok(total)
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

    fn add_blob(&mut self, hash: Hash, bytes: u64, cause: Cause, kind: &str) {
        self.blobs.push(hash);
        self.count(cause, kind, 0, 1, room(bytes), 0);
    }

    fn add_file(&mut self, path: PathBuf, bytes: u64, cause: Cause, kind: &str) {
        self.files.push(path);
        self.count(cause, kind, 0, 1, room(bytes), 0);
    }
}
