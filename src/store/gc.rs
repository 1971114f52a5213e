//! Garbage collection: what is removed, in which order, and why. First it makes a plan that can be printed. When it executes
//! the plan, it checks everything again just before it removes it. `docs/design-notes.md`, "Garbage collection while builds run",
//! explains why neither a running build nor a pinned manifest loses anything.

mod history;
mod kept;
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
use crate::store::borrow_index::BORROWED_KIND;
use crate::store::layout;
use crate::store::record::LAST;
use crate::store::survey::FoundResult;
use crate::store::survey::Named;
use crate::store::survey::space_of;
use history::HistoryItem;
pub use kept::KeepReason;
use kept::KeptResult;

/// How long quarantined files are kept.
const QUARANTINE: Duration = Duration::from_hours(7 * 24);
/// How long the tombstone of a removed result is kept.
const TOMBSTONES: Duration = Duration::from_hours(180 * 24);
/// How long the record of a run is kept.
const RUNS: Duration = Duration::from_hours(180 * 24);
/// How long an unused digest of a file is kept. If the file still exists, it is read again.
const STAT: Duration = Duration::from_hours(365 * 24);
/// The kind of action that is removed before all others: its outputs are large and the cheapest to make again.
const FIRST: &str = "reference-block";

/// What to remove, besides what nothing needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// The maximum size of the store, in bytes.
    pub max_size: Option<u64>,
    /// Remove results that were not used for this long.
    pub older_than: Option<Duration>,
    /// Also remove what only the newest outputs of recipes need.
    pub also_newest: bool,
}

/// Why something is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GcReason {
    /// No result names it: a killed build left it, or its result was removed before.
    Unreferenced,
    /// An output contains the same bytes.
    Borrowed,
    /// The result has lost a blob, so it is no longer a hit.
    Incomplete,
    /// It was quarantined long ago.
    Quarantined,
    /// Notes that explain nothing any more: old tombstones, indexes of files that are gone.
    Stale,
    /// It was not used for longer than the given time.
    Age,
    /// The store is larger than its limit. This explains earlier runs or saves reading files; no build needs it.
    History,
    /// The store is larger than its limit, and this is cheap to make again for its size.
    Size,
}

/// What a plan removes for one cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcGroup {
    /// Results.
    pub results: u64,
    /// Blobs and other files.
    pub files: u64,
    /// The space that becomes free, in bytes.
    pub space: u64,
    /// The recorded time to make them again, in milliseconds.
    pub cost_ms: u64,
}

/// How many results are kept whatever the options are, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeptCounts {
    /// Results that pinned manifests need.
    pub pinned: u64,
    /// Results that the newest outputs of recipes need.
    pub newest: u64,
    /// Results used since the oldest running build began.
    pub live: u64,
}

/// What would be removed.
#[derive(Debug)]
pub struct GcPlan {
    /// The space that the store takes, in bytes.
    pub before: u64,
    /// The space that it takes after the plan is executed, in bytes.
    pub after: u64,
    /// The requested size limit, in bytes.
    pub max_size: Option<u64>,
    /// What is removed, by cause and by kind of action or file.
    pub groups: BTreeMap<(GcReason, String), GcGroup>,
    /// How many results are kept.
    pub kept: KeptCounts,
    /// The space that is kept, in bytes, by reason. The sum is `after`.
    pub kept_space: BTreeMap<KeepReason, u64>,
    horizon: i64,
    results: Vec<(FoundResult, GcReason)>,
    blobs: Vec<Hash>,
    borrowed: Vec<Hash>,
    files: Vec<PathBuf>,
    items: Vec<HistoryItem>,
    indexes: Vec<String>,
    idle_indexes: Vec<String>,
    /// The space that tombstones may take, in bytes, if the store has a size limit.
    tombstones: Option<u64>,
    _gc: FileLock,
    _lease: Lease,
}

impl GcPlan {
    /// Returns whether nothing would be removed.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Returns whether the store would still be larger than its limit.
    pub fn misses_limit(&self) -> bool {
        self.max_size.is_some_and(|limit| self.after > limit)
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcDone {
    /// Results.
    pub results: u64,
    /// Blobs and other files.
    pub files: u64,
    /// The space that became free, in bytes.
    pub space: u64,
    /// What the plan contained but a build used meanwhile, so it was kept.
    pub spared: u64,
}

/// The results that are kept, whatever their size.
struct Roots {
    pinned: HashSet<Hash>,
    newest: HashSet<Hash>,
    /// The blobs that pinned manifests name.
    blobs: HashSet<Hash>,
}

fn since(ns: i64) -> SystemTime {
    u64::try_from(ns).map_or(UNIX_EPOCH, |ns| UNIX_EPOCH + Duration::from_nanos(ns))
}

fn older(ns: i64, than: Duration) -> bool {
    SystemTime::now().duration_since(since(ns)).is_ok_and(|age| age > than)
}

/// The blobs of the store, and how many references each has.
struct References {
    counts: HashMap<Hash, u32>,
    /// The space that each takes, in bytes.
    spaces: HashMap<Hash, u64>,
    /// When each was last written or used, in nanoseconds since 1970.
    used: HashMap<Hash, i64>,
}

impl References {
    fn add(&mut self, hashes: impl IntoIterator<Item = Hash>) {
        for hash in hashes {
            *self.counts.entry(hash).or_default() += 1;
        }
    }

    /// Returns the space of blobs, in bytes. A blob with several references counts in equal shares.
    fn share<'h>(&self, hashes: impl IntoIterator<Item = &'h Hash>) -> u64 {
        let shares = hashes.into_iter().map(|hash| {
            let count = self.counts.get(hash).copied().unwrap_or(1).max(1);
            self.spaces.get(hash).copied().unwrap_or(0) / u64::from(count)
        });
        shares.sum()
    }

    /// Removes one reference to each blob and returns the blobs without references.
    fn release(&mut self, hashes: impl IntoIterator<Item = Hash>) -> Vec<Hash> {
        let mut freed = Vec::new();
        for hash in hashes {
            if let Some(count) = self.counts.get_mut(&hash) {
                *count = count.saturating_sub(1);
                if *count == 0 {
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
    /// Plans what to remove. Nothing is removed yet. While the plan exists, no other garbage collection can run.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] if another garbage collection runs; [`StoreError::Path`].
    pub fn gc_plan(&self, options: &GcOptions) -> Result<GcPlan, StoreError> {
        let lock = self.root().join(layout::LOCKS).join("gc");
        let gc = FileLock::try_exclusive(&lock)?.ok_or(StoreError::Busy { path: lock })?;
        // From here on, everything that is used is marked with a time that is not earlier than this.
        let lease = self.lease()?;
        let horizon = {
            // Exclusive: a build that writes to its lease changes its mtime for a moment.
            let _sweeping = self.sweeping()?;
            self.oldest_lease()?
        };
        let mut results = self.all_results()?;
        let noted = self.used_by_notes()?;
        for found in &mut results {
            found.noted = noted.get(found.key.hash()).copied().unwrap_or(i64::MIN);
        }
        let used_now = self.used_by_leases()?;
        let roots = self.roots(options, &results)?;
        let records = self.records_with_blobs()?;
        let (blobs, _) = self.sharded(layout::CAS)?;
        let spaces = self.spaces()?;
        let before = spaces.values().sum();
        let mut plan = GcPlan {
            before,
            after: before,
            max_size: options.max_size,
            groups: BTreeMap::new(),
            kept: KeptCounts::default(),
            kept_space: BTreeMap::new(),
            horizon,
            results: Vec::new(),
            blobs: Vec::new(),
            borrowed: Vec::new(),
            files: Vec::new(),
            items: Vec::new(),
            indexes: Vec::new(),
            idle_indexes: Vec::new(),
            tombstones: None,
            _gc: gc,
            _lease: lease,
        };
        let mut references = References {
            counts: HashMap::new(),
            spaces: blobs
                .iter()
                .map(|(hash, file)| (*hash, space_of(file.stamp.size)))
                .collect(),
            used: blobs.iter().map(|(hash, file)| (*hash, file.stamp.mtime_ns)).collect(),
        };
        references.add(results.iter().flat_map(|found| distinct(&found.result)));
        references.add(roots.blobs.iter().copied());
        references.add(records.iter().flat_map(|record| record.blobs.iter().copied()));

        let there: HashSet<Hash> = results.iter().map(|found| *found.key.hash()).collect();
        let mut records = self.plan_notes(&mut plan, &mut references, options, records, &there)?;
        for (hash, file) in &blobs {
            let count = references.counts.get(hash).copied();
            if count.is_none() && file.stamp.mtime_ns < horizon {
                plan.add_blob(*hash, file.stamp.size, GcReason::Unreferenced, "blobs");
            } else if count != Some(0)
                && file.kind == FileKind::Plain
                && file.stamp.mtime_ns < horizon
                && self.is_borrowed(&BlobDigest {
                    hash: *hash,
                    len: file.stamp.size,
                })?
            {
                plan.borrowed.push(*hash);
                plan.count(GcReason::Borrowed, "tensor", 0, 1, space_of(file.stamp.size), 0);
                references.spaces.insert(*hash, 0);
            }
        }

        let mut kept_results: Vec<KeptResult> = Vec::new();
        let mut candidates = Vec::new();
        for found in results {
            let live = found.used >= horizon || used_now.contains(found.key.hash());
            plan.kept.live += u64::from(live);
            let key = found.key.hash();
            let (pinned, newest) = (roots.pinned.contains(key), roots.newest.contains(key));
            if live {
                kept_results.push(KeptResult::of(KeepReason::Running, &found));
                continue;
            }
            if !self.missing(&found.result)?.is_empty() {
                // What an index of a newer version lists cannot be known: its blobs only seem to be missing.
                if self.kind_of(&found.result).as_deref() == Some(BORROWED_KIND) && self.has_newer_index()? {
                    kept_results.push(KeptResult::of(KeepReason::Results, &found));
                    continue;
                }
                self.plan_result(&mut plan, &mut references, found, GcReason::Incomplete);
                continue;
            }
            plan.kept.pinned += u64::from(pinned);
            plan.kept.newest += u64::from(newest && !pinned);
            if pinned || newest {
                let reason = if pinned { KeepReason::Pinned } else { KeepReason::Newest };
                kept_results.push(KeptResult::of(reason, &found));
                continue;
            }
            if options.older_than.is_some_and(|age| older(found.last_used(), age)) {
                self.plan_result(&mut plan, &mut references, found, GcReason::Age);
                continue;
            }
            candidates.push(found);
        }
        if let Some(limit) = options.max_size.filter(|limit| plan.after > *limit) {
            records = self.plan_history(&mut plan, &mut references, limit, records, &there)?;
            let mut ranked: Vec<(bool, u128, i64, FoundResult)> = candidates
                .into_iter()
                .map(|found| {
                    let last = self.kind_of(&found.result).as_deref() != Some(FIRST);
                    let size = space_of(found.bytes) + references.share(&distinct(&found.result));
                    // Milliseconds for each GiB, in whole numbers so that the order is the same everywhere.
                    let price = (u128::from(found.result.cost_ms) << 30) / u128::from(size.max(1));
                    (last, price, found.last_used(), found)
                })
                .collect();
            ranked.sort_by_key(|(last, price, used, found)| (*last, *price, *used, found.key));
            for (_, _, _, found) in ranked {
                if plan.after > limit {
                    self.plan_result(&mut plan, &mut references, found, GcReason::Size);
                } else {
                    kept_results.push(KeptResult::of(KeepReason::Results, &found));
                }
            }
            if plan.after > limit {
                records = plan.add_last(&mut references, limit, records, &there);
                self.plan_idle_indexes(&mut plan, &references, limit)?;
                records = plan.add_minimum(&mut references, limit, records);
            }
        } else {
            let left = candidates
                .iter()
                .map(|found| KeptResult::of(KeepReason::Results, found));
            kept_results.extend(left);
        }
        plan.set_kept_space(&references, &roots.blobs, &kept_results, &records, &spaces);
        Ok(plan)
    }

    /// Adds a result to a plan, with the blobs that lose their last reference.
    fn plan_result(&self, plan: &mut GcPlan, references: &mut References, found: FoundResult, cause: GcReason) {
        let kind = self.kind_of(&found.result).unwrap_or_else(|| "unknown".to_owned());
        plan.count(cause, &kind, 1, 0, 0, found.result.cost_ms);
        // A tombstone replaces the result: it contains the action's document as JSON text and the fields of the result. If the
        // tombstones exceed their share, an older one is removed.
        let tombstone = space_of(found.result.action.len.saturating_mul(5) / 4 + found.bytes + 512);
        let left = plan.tombstones.unwrap_or(u64::MAX);
        let added = if tombstone <= left { tombstone } else { 0 };
        plan.tombstones = plan.tombstones.map(|left| left - added);
        plan.after = (plan.after + added).saturating_sub(space_of(found.bytes));
        plan.free(references, distinct(&found.result), cause, &kind);
        plan.results.push((found, cause));
    }

    /// Adds the oldest records and notes while the store is larger than the limit. Returns the records that are kept.
    fn plan_history(
        &self,
        plan: &mut GcPlan,
        references: &mut References,
        limit: u64,
        records: Vec<HistoryItem>,
        there: &HashSet<Hash>,
    ) -> Result<Vec<HistoryItem>, StoreError> {
        let horizon = plan.horizon;
        let is_idle = |item: &HistoryItem| item.unless.is_none_or(|key| !there.contains(&key));
        // The last record of a step is kept as long as its result.
        let (mut items, mut kept): (Vec<HistoryItem>, Vec<HistoryItem>) = records.into_iter().partition(is_idle);
        items.extend(self.fresh_notes()?);
        let planned: HashSet<&PathBuf> = plan.files.iter().collect();
        let others = self.other_notes()?.into_iter().filter(is_idle);
        items.extend(others.filter(|item| !planned.contains(&item.path)));
        let tombstones = items.iter().filter(|item| item.kind == history::TOMBSTONE);
        let mut tombstones: u64 = tombstones.map(|item| item.space).sum();
        let size = |item: &HistoryItem| item.space + references.share(&item.blobs);
        let (minimum, removable) = history::split_removable(items, limit, horizon, &size);
        kept.extend(minimum);
        for item in removable {
            if plan.after <= limit {
                kept.push(item);
                continue;
            }
            if item.kind == history::TOMBSTONE {
                tombstones = tombstones.saturating_sub(item.space);
            }
            plan.add_item(references, item, GcReason::History);
        }
        plan.tombstones = Some(history::tombstone_share(limit).saturating_sub(tombstones));
        Ok(kept)
    }

    /// Adds valid indexes of borrowed blobs of which no blob is named any more, while the store is larger than the limit.
    fn plan_idle_indexes(&self, plan: &mut GcPlan, references: &References, limit: u64) -> Result<(), StoreError> {
        for found in self.all_indexes()? {
            let named = |hash: &Hash| references.counts.get(hash).is_some_and(|count| *count > 0);
            let idle = !found.index.blobs.iter().any(|blob| named(&blob.bytes.hash));
            if plan.after > limit && idle && found.is_valid && found.stamp.mtime_ns < plan.horizon {
                plan.count(GcReason::History, "borrowed", 0, 1, space_of(found.stamp.size), 0);
                plan.idle_indexes.push(found.name);
            }
        }
        Ok(())
    }

    /// Adds notes that explain nothing any more. Returns the records that are kept.
    fn plan_notes(
        &self,
        plan: &mut GcPlan,
        references: &mut References,
        options: &GcOptions,
        records: Vec<HistoryItem>,
        there: &HashSet<Hash>,
    ) -> Result<Vec<HistoryItem>, StoreError> {
        // Without them, what they name (logs, manifests of replaced outputs) is of no use.
        let runs = options.older_than.map_or(RUNS, |age| age.min(RUNS));
        let mut kept = Vec::new();
        for item in records.into_iter().chain(self.fresh_notes()?) {
            let age = match item.kind {
                history::RUN => Some(runs),
                LAST | history::EARLIER | history::FRESH => Some(RUNS),
                _ => None,
            };
            let idle = item.unless.is_none_or(|key| !there.contains(&key));
            if idle && !item.is_live(plan.horizon) && age.is_some_and(|age| older(item.mtime_ns, age)) {
                plan.add_item(references, item, GcReason::Stale);
            } else if item.kind != history::FRESH {
                kept.push(item);
            }
        }
        // Kept for a week, unless the store is larger than its limit.
        let tight = options.max_size.is_some_and(|limit| plan.before > limit);
        for file in self.quarantined()? {
            if tight || older(file.stamp.mtime_ns.max(file.stamp.ctime_ns), QUARANTINE) {
                plan.add_file(file.path, file.stamp.size, GcReason::Quarantined, "quarantine");
            }
        }
        for (_, file) in self.sharded(layout::TOMBSTONES)?.0 {
            if older(file.stamp.mtime_ns, TOMBSTONES) {
                plan.add_file(file.path, file.stamp.size, GcReason::Stale, "tombstones");
            }
        }
        for (_, file) in self.sharded(layout::STAT)?.0 {
            if older(file.stamp.mtime_ns, STAT) {
                plan.add_file(file.path, file.stamp.size, GcReason::Stale, "stat");
            }
        }
        for found in self.all_indexes()? {
            // A younger one may belong to a running build that is about to name its output.
            if !found.is_valid && found.stamp.mtime_ns < plan.horizon {
                plan.count(GcReason::Stale, "borrowed", 0, 1, space_of(found.stamp.size), 0);
                plan.indexes.push(found.name);
            }
        }
        Ok(kept)
    }

    /// Returns what must be kept.
    fn roots(&self, options: &GcOptions, results: &[FoundResult]) -> Result<Roots, StoreError> {
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
            // A record whose result was removed keeps nothing, either.
            let lapsed = |age: Duration| used.get(last.action.hash()).is_none_or(|used| older(*used, age));
            if options.also_newest || options.older_than.is_some_and(lapsed) {
                continue;
            }
            roots.newest.insert(*last.action.hash());
            if let Some(manifest) = &last.manifest {
                roots.newest.extend(self.named_by_manifest(manifest).keys);
            }
        }
        Ok(roots)
    }

    /// Returns what pinned manifests name, and the manifests themselves.
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
    fn count(&mut self, cause: GcReason, kind: &str, results: u64, files: u64, space: u64, cost_ms: u64) {
        let group = self.groups.entry((cause, kind.to_owned())).or_default();
        group.results += results;
        group.files += files;
        group.space += space;
        group.cost_ms += cost_ms;
        self.after = self.after.saturating_sub(space);
    }

    /// Removes references to blobs, and adds the blobs without references to the plan.
    fn free(
        &mut self,
        references: &mut References,
        hashes: impl IntoIterator<Item = Hash>,
        cause: GcReason,
        kind: &str,
    ) {
        for hash in references.release(hashes) {
            if references.used.get(&hash).is_some_and(|used| *used < self.horizon) {
                self.blobs.push(hash);
                let space = references.spaces.get(&hash).copied().unwrap_or(0);
                self.count(cause, kind, 0, 1, space, 0);
            }
        }
    }

    fn add_item(&mut self, references: &mut References, item: HistoryItem, cause: GcReason) {
        self.count(cause, item.kind, 0, item.files, item.space, 0);
        self.free(references, item.blobs.iter().copied(), cause, item.kind);
        self.items.push(item);
    }

    /// Adds the records of steps whose result this plan removes, the oldest first, while the store is larger than the limit.
    /// Returns the records that are kept.
    fn add_last(
        &mut self,
        references: &mut References,
        limit: u64,
        records: Vec<HistoryItem>,
        there: &HashSet<Hash>,
    ) -> Vec<HistoryItem> {
        let removed: HashSet<Hash> = self.results.iter().map(|(found, _)| *found.key.hash()).collect();
        let is_kept = |item: &HistoryItem| {
            item.unless
                .is_none_or(|key| there.contains(&key) && !removed.contains(&key))
        };
        let (mut kept, idle): (Vec<HistoryItem>, Vec<HistoryItem>) = records.into_iter().partition(is_kept);
        let size = |item: &HistoryItem| item.space + references.share(&item.blobs);
        let (minimum, removable) = history::split_removable(idle, limit, self.horizon, &size);
        kept.extend(minimum);
        for item in removable {
            if self.after > limit {
                self.add_item(references, item, GcReason::History);
            } else {
                kept.push(item);
            }
        }
        kept
    }

    /// Adds the minimum of the history too, the oldest first, if that is enough to hold the limit: except for the last records
    /// of steps and the newest run. Returns the records that are kept.
    fn add_minimum(&mut self, references: &mut References, limit: u64, records: Vec<HistoryItem>) -> Vec<HistoryItem> {
        let runs = records.iter().filter(|item| item.kind == history::RUN);
        let newest = runs.map(|item| (item.mtime_ns, item.path.clone())).max();
        let may_go = |item: &HistoryItem| {
            item.unless.is_none()
                && newest.as_ref().is_none_or(|(_, path)| *path != item.path)
                && !item.is_live(self.horizon)
        };
        let (mut minimum, mut kept): (Vec<HistoryItem>, Vec<HistoryItem>) = records.into_iter().partition(may_go);
        let sizes = minimum.iter().map(|item| item.space + references.share(&item.blobs));
        if self.after.saturating_sub(sizes.sum()) > limit {
            kept.extend(minimum);
            return kept;
        }
        minimum.sort_by(|a, b| (a.mtime_ns, &a.path).cmp(&(b.mtime_ns, &b.path)));
        for item in minimum {
            if self.after > limit {
                self.add_item(references, item, GcReason::History);
            } else {
                kept.push(item);
            }
        }
        kept
    }

    fn add_blob(&mut self, hash: Hash, bytes: u64, cause: GcReason, kind: &str) {
        self.blobs.push(hash);
        self.count(cause, kind, 0, 1, space_of(bytes), 0);
    }

    fn add_file(&mut self, path: PathBuf, bytes: u64, cause: GcReason, kind: &str) {
        self.files.push(path);
        self.count(cause, kind, 0, 1, space_of(bytes), 0);
    }
}
