//! The history: records and notes that explain earlier runs or save reading files again. No build needs them. Under a size
//! limit they are removed before results, the oldest first, except for a minimum: the newest of each kind, within a share of
//! the limit.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;

use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::record::LAST;
use crate::store::survey::FoundFile;
use crate::store::survey::Named;
use crate::store::survey::RECORD_CAP;
use crate::store::survey::list_if_there;
use crate::store::survey::space_of;
use crate::store::survey::walk;

pub(super) const RUN: &str = "runs";
pub(super) const FRESH: &str = "fresh";
pub(super) const EARLIER: &str = "earlier";
pub(super) const TOMBSTONE: &str = "tombstones";
const FAILED: &str = "failed";
const STAT: &str = "stat";

/// The smallest size of a share, in bytes, however small the limit is.
const LEAST_SHARE: u64 = 128 << 10;
/// A file up to this size, in bytes, is quick to read again, so its digest may be removed. The digest of a larger file is
/// kept: reading a model of 500 GB again takes an hour.
const QUICK_TO_READ: u64 = 64 << 20;

/// One record or note, with the blobs that it names.
#[derive(Debug)]
pub(super) struct HistoryItem {
    /// The name of its group in a plan.
    pub(super) kind: &'static str,
    /// The file, or the folder of a failed step.
    pub(super) path: PathBuf,
    /// When it was last written, in nanoseconds since 1970.
    pub(super) mtime_ns: i64,
    /// The number of files: one, except for a folder.
    pub(super) files: u64,
    /// The space that these take, in bytes.
    pub(super) space: u64,
    /// The blobs that it names: logs, manifests, action documents.
    pub(super) blobs: HashSet<Hash>,
    /// It is kept while this action has a result.
    pub(super) unless: Option<Hash>,
}

impl HistoryItem {
    fn new(kind: &'static str, file: FoundFile) -> Self {
        Self {
            kind,
            space: space_of(file.stamp.size),
            path: file.path,
            mtime_ns: file.stamp.mtime_ns,
            files: 1,
            blobs: HashSet::new(),
            unless: None,
        }
    }

    /// Returns whether a running build may still write to it. `horizon` is the time of the oldest lease.
    pub(super) fn is_live(&self, horizon: i64) -> bool {
        self.mtime_ns >= horizon || (self.kind == RUN && fs::is_held(&self.path))
    }

    /// Returns whether it lies in the folder of the runs.
    pub(super) fn is_record(&self) -> bool {
        !matches!(self.kind, STAT | TOMBSTONE | layout::EVENTS)
    }
}

/// Returns the maximum number of items of a kind in the minimum, and the share of the limit that they count towards.
fn minimum_of(kind: &str) -> (usize, usize) {
    match kind {
        RUN => (20, 0),
        FAILED => (3, 0),
        TOMBSTONE => (usize::MAX, 1),
        STAT => (256, 2),
        LAST | EARLIER => (64, 2),
        layout::EVENTS => (0, 2),
        _ => (16, 2),
    }
}

/// Returns the shares of a limit, in bytes: runs, tombstones, other notes.
fn shares(limit: u64) -> [u64; 3] {
    [8, 16, 16].map(|part| (limit / part).max(LEAST_SHARE))
}

/// Returns the space that tombstones may take under a limit, in bytes.
pub(super) fn tombstone_share(limit: u64) -> u64 {
    shares(limit)[1]
}

/// Splits the items into those that are kept and those that may be removed under a limit, the oldest first. Kept are the
/// minimum, and the items that a running build may still write to. `size` returns the space of an item with the blobs that
/// only it names.
pub(super) fn split_removable(
    mut items: Vec<HistoryItem>,
    limit: u64,
    horizon: i64,
    size: &dyn Fn(&HistoryItem) -> u64,
) -> (Vec<HistoryItem>, Vec<HistoryItem>) {
    items.sort_by(|a, b| (b.mtime_ns, &b.path).cmp(&(a.mtime_ns, &a.path)));
    let mut left = shares(limit);
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let (mut kept, mut removable) = (Vec::new(), Vec::new());
    for item in items {
        let (most, share) = minimum_of(item.kind);
        let count = counts.entry(item.kind).or_default();
        let size = size(&item);
        // The newest run is kept whatever its size.
        let newest_run = item.kind == RUN && *count == 0;
        if item.is_live(horizon) || newest_run || (*count < most && size <= left[share]) {
            *count = count.saturating_add(1);
            left[share] = left[share].saturating_sub(size);
            kept.push(item);
        } else {
            // No gaps: nothing older of this kind is kept either.
            *count = usize::MAX;
            removable.push(item);
        }
    }
    removable.reverse();
    (kept, removable)
}

impl Store {
    /// Returns the records that name blobs: of runs, of engines, and the last and earlier records of steps.
    pub(super) fn records_with_blobs(&self) -> Result<Vec<HistoryItem>, StoreError> {
        let mut items = Vec::new();
        for (folder, kind) in [
            (layout::RUNS.to_owned(), RUN),
            (format!("{}/{EARLIER}", layout::RUNS), EARLIER),
            (format!("{}/engines", layout::RUNS), "engines"),
        ] {
            for file in self.plain_files(&folder)? {
                let Ok((bytes, _)) = fs::read_plain(&file.path, RECORD_CAP) else {
                    continue;
                };
                let mut named = Named::default();
                named.add(&bytes);
                let mut item = HistoryItem::new(kind, file);
                item.blobs = named.blobs;
                items.push(item);
            }
        }
        for (file, last) in self.found_last()? {
            let mut item = HistoryItem::new(LAST, file);
            item.blobs.insert(last.document.hash);
            item.blobs.extend(last.manifest.map(|manifest| manifest.hash));
            item.unless = Some(*last.action.hash());
            items.push(item);
        }
        Ok(items)
    }

    /// Returns the notes of builds with nothing to do.
    pub(super) fn fresh_notes(&self) -> Result<Vec<HistoryItem>, StoreError> {
        let files = self.plain_files(&format!("{}/{FRESH}", layout::RUNS))?;
        Ok(files.into_iter().map(|file| HistoryItem::new(FRESH, file)).collect())
    }

    /// Returns the notes that keep no blobs: folders of failed steps, digests of files that are quick to read again, tombstones,
    /// events.
    pub(super) fn other_notes(&self) -> Result<Vec<HistoryItem>, StoreError> {
        let mut items = Vec::new();
        let failed = self.root().join(layout::RUNS).join(FAILED);
        for entry in list_if_there(&failed)?.into_iter().filter(|entry| entry.is_dir) {
            let path = failed.join(&entry.name);
            let Some(facts) = fs::facts(&path)? else { continue };
            let (mut files, mut taken) = (0, 0);
            walk(&path, &mut |bytes| {
                files += 1;
                taken += space_of(bytes);
            })?;
            items.push(HistoryItem {
                kind: FAILED,
                path,
                mtime_ns: facts.stamp.mtime_ns,
                files,
                space: taken,
                blobs: HashSet::new(),
                unless: None,
            });
        }
        for (name, file) in self.sharded(layout::STAT)?.0 {
            if self.noted_size(&name).is_none_or(|size| size <= QUICK_TO_READ) {
                items.push(HistoryItem::new(STAT, file));
            }
        }
        for (_, file) in self.sharded(layout::TOMBSTONES)?.0 {
            items.push(HistoryItem::new(TOMBSTONE, file));
        }
        for file in self.plain_files(layout::EVENTS)? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // `<action>-<short hash of the result>`. Manifests that a build may still write contain the event.
            let Some(key) = name.get(..64).and_then(|key| key.parse::<Hash>().ok()) else {
                continue;
            };
            let mut item = HistoryItem::new(layout::EVENTS, file);
            item.unless = Some(key);
            items.push(item);
        }
        Ok(items)
    }

    /// Removes a record or note, unless it was written again after it was planned, or the result of its action exists again.
    /// Returns whether it was removed.
    pub(super) fn remove_item(&self, item: &HistoryItem, horizon: i64) -> Result<bool, StoreError> {
        let Some(now) = fs::facts(&item.path)? else {
            return Ok(false);
        };
        if now.stamp.mtime_ns != item.mtime_ns || item.is_live(horizon) {
            return Ok(false);
        }
        if let Some(key) = &item.unless
            && fs::facts(&self.shard(layout::ACTIONS, key))?.is_some()
        {
            return Ok(false);
        }
        if now.kind == FileKind::Directory {
            Ok(fs::remove_dir_all(&item.path)?)
        } else {
            Ok(fs::remove_file(&item.path)?)
        }
    }

    /// Removes the oldest tombstones until the rest takes at most `share` bytes. Returns the number and the space of the removed
    /// files.
    pub(super) fn trim_tombstones(&self, share: u64) -> Result<(u64, u64), StoreError> {
        let (mut files, _) = self.sharded(layout::TOMBSTONES)?;
        files.sort_by_key(|(hash, file)| std::cmp::Reverse((file.stamp.mtime_ns, *hash)));
        let (mut kept, mut removed) = (0, (0, 0));
        for (_, file) in files {
            let taken = space_of(file.stamp.size);
            kept += taken;
            if kept > share && fs::remove_file(&file.path)? {
                removed = (removed.0 + 1, removed.1 + taken);
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: &'static str, mtime_ns: i64, space: u64) -> HistoryItem {
        HistoryItem {
            kind,
            path: PathBuf::from(format!("/nowhere/{kind}-{mtime_ns}")),
            mtime_ns,
            files: 1,
            space,
            blobs: HashSet::new(),
            unless: None,
        }
    }

    fn times(items: &[HistoryItem], kind: &str) -> Vec<i64> {
        let of_kind = items.iter().filter(|item| item.kind == kind);
        of_kind.map(|item| item.mtime_ns).collect()
    }

    #[test]
    fn the_newest_of_each_kind_are_kept_within_a_share_and_the_oldest_are_removed_first() {
        let mut items: Vec<HistoryItem> = (0..100).map(|time| item(RUN, time, 4096)).collect();
        items.extend((0..100).map(|time| item(EARLIER, time, 4096)));
        let (kept, removable) = split_removable(items, 1 << 40, 1000, &|item| item.space);
        assert_eq!(times(&kept, RUN), (80..100).rev().collect::<Vec<_>>());
        assert_eq!(times(&kept, EARLIER), (36..100).rev().collect::<Vec<_>>());
        assert_eq!(times(&removable, RUN), (0..80).collect::<Vec<_>>());
        assert!(removable.is_sorted_by_key(|item| item.mtime_ns));
    }

    #[test]
    fn large_records_have_a_share_of_the_limit_and_the_newest_run_is_kept() {
        let items = |space| (0..10).map(|time| item(RUN, time, space)).collect();
        let size = |item: &HistoryItem| item.space;
        // An eighth of 8 MiB has space for two and a half of them.
        let (kept, _) = split_removable(items(400 << 10), 8 << 20, 1000, &size);
        assert_eq!(times(&kept, RUN), [9, 8]);
        let (kept, _) = split_removable(items(16 << 20), 8 << 20, 1000, &size);
        assert_eq!(times(&kept, RUN), [9]);
        // Items that a running build may write to are kept.
        let (kept, _) = split_removable(items(16 << 20), 8 << 20, 7, &size);
        assert_eq!(times(&kept, RUN), [9, 8, 7]);
    }
}
