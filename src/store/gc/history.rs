//! Records and notes: what explains earlier runs and spares readings, and what no build needs. Under a size limit they go
//! before results do, the oldest first, except for a floor: the newest of each kind, within a share of the limit.

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
use crate::store::survey::room;
use crate::store::survey::walk;

pub(super) const RUN: &str = "runs";
pub(super) const FRESH: &str = "fresh";
pub(super) const EARLIER: &str = "earlier";
pub(super) const TOMBSTONE: &str = "tombstones";
const FAILED: &str = "failed";
const STAT: &str = "stat";

/// The least space that each share of the floor has, in bytes, however small the limit is.
const LEAST_SHARE: u64 = 128 << 10;
/// A file up to this size, in bytes, is read again in a moment, so the note of its digest may go. The note of a larger file
/// stays: reading a model of 500 GB again takes an hour.
const QUICK_TO_READ: u64 = 64 << 20;

/// One record or note, with what goes when it goes.
#[derive(Debug)]
pub(super) struct Piece {
    /// What it is: the name of its group in a plan.
    pub(super) kind: &'static str,
    /// The file, or the folder of a failed step.
    pub(super) path: PathBuf,
    /// When it was last written, in nanoseconds since 1970.
    pub(super) mtime_ns: i64,
    /// Files: one, except for a folder.
    pub(super) files: u64,
    /// The space that these take, in bytes.
    pub(super) room: u64,
    /// The blobs that it names: logs, manifests, action documents.
    pub(super) blobs: HashSet<Hash>,
    /// It stays while this action has a result.
    pub(super) unless: Option<Hash>,
}

impl Piece {
    fn new(kind: &'static str, file: FoundFile) -> Self {
        Self {
            kind,
            room: room(file.stamp.size),
            path: file.path,
            mtime_ns: file.stamp.mtime_ns,
            files: 1,
            blobs: HashSet::new(),
            unless: None,
        }
    }

    /// Returns whether a live build may still write to it. `horizon` is the time of the oldest lease.
    pub(super) fn is_live(&self, horizon: i64) -> bool {
        self.mtime_ns >= horizon || (self.kind == RUN && fs::is_held(&self.path))
    }

    /// Returns whether it lies in the folder of the runs.
    pub(super) fn is_record(&self) -> bool {
        !matches!(self.kind, STAT | TOMBSTONE | layout::EVENTS)
    }
}

/// Returns the number of pieces of a kind that the floor keeps at most, and which share of the limit they count towards.
fn floor_of(kind: &str) -> (usize, usize) {
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

/// Returns the space that each share of the floor may take under a limit, in bytes: runs, tombstones, other notes.
fn shares(limit: u64) -> [u64; 3] {
    [8, 16, 16].map(|part| (limit / part).max(LEAST_SHARE))
}

/// Returns the space that notes of removed results may take under a limit, in bytes.
pub(super) fn tombstone_share(limit: u64) -> u64 {
    shares(limit)[1]
}

/// Returns the pieces that may go under a limit, the oldest first: not those that a live build may still write to, nor
/// the floor. `size` returns the space that a piece takes with what it alone names.
pub(super) fn expendable(
    mut pieces: Vec<Piece>,
    limit: u64,
    horizon: i64,
    size: &dyn Fn(&Piece) -> u64,
) -> (Vec<Piece>, Vec<Piece>) {
    pieces.sort_by(|a, b| (b.mtime_ns, &b.path).cmp(&(a.mtime_ns, &a.path)));
    let mut left = shares(limit);
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let (mut kept, mut going) = (Vec::new(), Vec::new());
    for piece in pieces {
        let (most, share) = floor_of(piece.kind);
        let count = counts.entry(piece.kind).or_default();
        let size = size(&piece);
        // The newest run is kept whatever it takes.
        let newest_run = piece.kind == RUN && *count == 0;
        if piece.is_live(horizon) || newest_run || (*count < most && size <= left[share]) {
            *count = count.saturating_add(1);
            left[share] = left[share].saturating_sub(size);
            kept.push(piece);
        } else {
            // No gaps: nothing older of this kind is kept either.
            *count = usize::MAX;
            going.push(piece);
        }
    }
    going.reverse();
    (kept, going)
}

impl Store {
    /// Returns the records that name blobs: of runs, of engines, of what steps did before, and of what they did last.
    pub(super) fn naming_records(&self) -> Result<Vec<Piece>, StoreError> {
        let mut pieces = Vec::new();
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
                let mut piece = Piece::new(kind, file);
                piece.blobs = named.blobs;
                pieces.push(piece);
            }
        }
        for (file, last) in self.found_last()? {
            let mut piece = Piece::new(LAST, file);
            piece.blobs.insert(last.document.hash);
            piece.blobs.extend(last.manifest.map(|manifest| manifest.hash));
            piece.unless = Some(*last.action.hash());
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Returns the notes of builds with nothing to do.
    pub(super) fn fresh_notes(&self) -> Result<Vec<Piece>, StoreError> {
        let files = self.plain_files(&format!("{}/{FRESH}", layout::RUNS))?;
        Ok(files.into_iter().map(|file| Piece::new(FRESH, file)).collect())
    }

    /// Returns what else explains or spares readings, and names nothing that is kept for it: what failed steps left, digests of
    /// files that are read again in a moment, tombstones, events.
    pub(super) fn other_notes(&self) -> Result<Vec<Piece>, StoreError> {
        let mut pieces = Vec::new();
        let failed = self.root().join(layout::RUNS).join(FAILED);
        for entry in list_if_there(&failed)?.into_iter().filter(|entry| entry.is_dir) {
            let path = failed.join(&entry.name);
            let Some(facts) = fs::facts(&path)? else { continue };
            let (mut files, mut taken) = (0, 0);
            walk(&path, &mut |bytes| {
                files += 1;
                taken += room(bytes);
            })?;
            pieces.push(Piece {
                kind: FAILED,
                path,
                mtime_ns: facts.stamp.mtime_ns,
                files,
                room: taken,
                blobs: HashSet::new(),
                unless: None,
            });
        }
        for (name, file) in self.sharded(layout::STAT)?.0 {
            if self.noted_size(&name).is_none_or(|size| size <= QUICK_TO_READ) {
                pieces.push(Piece::new(STAT, file));
            }
        }
        for (_, file) in self.sharded(layout::TOMBSTONES)?.0 {
            pieces.push(Piece::new(TOMBSTONE, file));
        }
        for file in self.plain_files(layout::EVENTS)? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            // `<action>-<short hash of what it gave>`; manifests that a build may still write repeat it.
            let Some(key) = name.get(..64).and_then(|key| key.parse::<Hash>().ok()) else {
                continue;
            };
            let mut piece = Piece::new(layout::EVENTS, file);
            piece.unless = Some(key);
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Removes a record or note, unless it was written again since it was planned or what it stands beside has come back. Says
    /// whether it went.
    pub(super) fn remove_piece(&self, piece: &Piece, horizon: i64) -> Result<bool, StoreError> {
        let Some(now) = fs::facts(&piece.path)? else {
            return Ok(false);
        };
        if now.stamp.mtime_ns != piece.mtime_ns || piece.is_live(horizon) {
            return Ok(false);
        }
        if let Some(key) = &piece.unless
            && fs::facts(&self.shard(layout::ACTIONS, key))?.is_some()
        {
            return Ok(false);
        }
        if now.kind == FileKind::Directory {
            Ok(fs::remove_dir_all(&piece.path)?)
        } else {
            Ok(fs::remove_file(&piece.path)?)
        }
    }

    /// Removes the oldest tombstones beyond so much space, in bytes. Returns how many files went and the space that they
    /// took.
    pub(super) fn trim_tombstones(&self, share: u64) -> Result<(u64, u64), StoreError> {
        let (mut files, _) = self.sharded(layout::TOMBSTONES)?;
        files.sort_by_key(|(hash, file)| std::cmp::Reverse((file.stamp.mtime_ns, *hash)));
        let (mut kept, mut gone) = (0, (0, 0));
        for (_, file) in files {
            let taken = room(file.stamp.size);
            kept += taken;
            if kept > share && fs::remove_file(&file.path)? {
                gone = (gone.0 + 1, gone.1 + taken);
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(kind: &'static str, mtime_ns: i64, room: u64) -> Piece {
        Piece {
            kind,
            path: PathBuf::from(format!("/nowhere/{kind}-{mtime_ns}")),
            mtime_ns,
            files: 1,
            room,
            blobs: HashSet::new(),
            unless: None,
        }
    }

    fn times(pieces: &[Piece], kind: &str) -> Vec<i64> {
        let of_kind = pieces.iter().filter(|piece| piece.kind == kind);
        of_kind.map(|piece| piece.mtime_ns).collect()
    }

    #[test]
    fn the_newest_of_each_kind_stay_within_a_share_and_the_oldest_go_first() {
        let mut pieces: Vec<Piece> = (0..100).map(|time| piece(RUN, time, 4096)).collect();
        pieces.extend((0..100).map(|time| piece(EARLIER, time, 4096)));
        let (kept, going) = expendable(pieces, 1 << 40, 1000, &|piece| piece.room);
        assert_eq!(times(&kept, RUN), (80..100).rev().collect::<Vec<_>>());
        assert_eq!(times(&kept, EARLIER), (36..100).rev().collect::<Vec<_>>());
        assert_eq!(times(&going, RUN), (0..80).collect::<Vec<_>>());
        assert!(going.is_sorted_by_key(|piece| piece.mtime_ns));
    }

    #[test]
    fn large_records_have_a_share_of_the_limit_and_the_newest_run_stays() {
        let pieces = |room| (0..10).map(|time| piece(RUN, time, room)).collect();
        let size = |piece: &Piece| piece.room;
        // An eighth of 8 MiB has space for two and a half of them.
        let (kept, _) = expendable(pieces(400 << 10), 8 << 20, 1000, &size);
        assert_eq!(times(&kept, RUN), [9, 8]);
        let (kept, _) = expendable(pieces(16 << 20), 8 << 20, 1000, &size);
        assert_eq!(times(&kept, RUN), [9]);
        // What a live build may write to is no history.
        let (kept, _) = expendable(pieces(16 << 20), 8 << 20, 7, &size);
        assert_eq!(times(&kept, RUN), [9, 8, 7]);
    }
}
