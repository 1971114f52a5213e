//! The indexes of borrowed blobs. A finished output contains the bytes of its tensors, so the store does not keep a second
//! copy of them. One index for each output (`borrowed-v1/<name>`) lists the blobs in the file and where each begins. An index
//! is valid while the output has the stamp that the index records. `docs/design-notes.md`, "Nothing is stored twice",
//! explains why no order of events loses a blob or returns wrong bytes.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::PoisonError;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::sealed;
use crate::store::sealed::SealError;

/// The kind of action whose outputs can be borrowed.
pub(super) const BORROWED_KIND: &str = "tensor";

/// The kind in the first line of a sealed index. It keeps the name that version 1 gave it: other versions of forge that use
/// the same store then find an index of a newer version, not a damaged file.
pub(super) const KIND: &str = "loans";
const VERSION: u64 = 2;
const SCHEMA: u32 = 2;

/// A blob that lies in a file outside the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BorrowedBlob {
    /// The digest of the blob.
    pub bytes: BlobDigest,
    /// The offset of its first byte in the file.
    pub start: u64,
}

/// The index of one file outside the store: which blobs lie in it, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BorrowIndex {
    schema: u32,
    /// The file, as an absolute path.
    pub(super) path: String,
    /// The digest of the whole file.
    pub(super) file: BlobDigest,
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i64,
    /// `None` until the file has its final name: the rename changes the ctime.
    ctime_ns: Option<i64>,
    /// The blobs in the file.
    pub(super) blobs: Vec<BorrowedBlob>,
}

/// Version 1 of the index, which is still read.
#[derive(Deserialize)]
struct BorrowIndexV1 {
    schema: u32,
    path: String,
    file: BlobDigest,
    dev: u64,
    ino: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: Option<i64>,
    loans: Vec<BorrowedBlob>,
}

impl BorrowIndex {
    /// Makes the index of a file. Returns `None` if the path is not UTF-8: the index cannot contain it.
    pub(super) fn of(
        path: &Path,
        stamp: &Stamp,
        named: bool,
        file: &BlobDigest,
        blobs: &[BorrowedBlob],
    ) -> Option<Self> {
        let path = std::path::absolute(path).ok()?;
        let mut blobs = blobs.to_vec();
        // A file may contain the same bytes twice.
        blobs.sort_unstable();
        blobs.dedup_by_key(|blob| blob.bytes);
        Some(Self {
            schema: SCHEMA,
            path: path.to_str()?.to_owned(),
            file: *file,
            dev: stamp.dev,
            ino: stamp.ino,
            size: stamp.size,
            mtime_ns: stamp.mtime_ns,
            ctime_ns: named.then_some(stamp.ctime_ns),
            blobs,
        })
    }

    /// Reads the document of an index, of this version or an older one.
    fn parse(version: u64, document: &str) -> Option<Self> {
        if version != 1 {
            let index: Self = serde_json::from_str(document).ok()?;
            return (index.schema == SCHEMA).then_some(index);
        }
        let old: BorrowIndexV1 = serde_json::from_str(document).ok()?;
        (old.schema == 1).then_some(Self {
            schema: SCHEMA,
            path: old.path,
            file: old.file,
            dev: old.dev,
            ino: old.ino,
            size: old.size,
            mtime_ns: old.mtime_ns,
            ctime_ns: old.ctime_ns,
            blobs: old.loans,
        })
    }

    /// Returns the name of the index in the store. Each file at each path has another name, so an index that has this name
    /// is the index of this file.
    pub(super) fn name(&self) -> String {
        let ctime = self.ctime_ns.map_or_else(|| "-".to_owned(), |ctime| ctime.to_string());
        let (dev, ino, size, mtime) = (self.dev, self.ino, self.size, self.mtime_ns);
        let stamp = Hash::of(format!("{dev} {ino} {size} {mtime} {ctime} {}", self.file).as_bytes());
        format!("{}-{}", Self::prefix(&self.path), &stamp.to_string()[..32])
    }

    /// Returns how the names of all indexes of one path begin.
    pub(super) fn prefix(path: &str) -> String {
        Hash::of(path.as_bytes()).to_string()[..32].to_owned()
    }

    /// Returns whether the file still has the recorded stamp. Does not read the file.
    pub(super) fn is_valid(&self) -> bool {
        // A file that cannot be examined counts as changed.
        let found = fs::facts(Path::new(&self.path)).ok().flatten();
        found.is_some_and(|found| found.kind == FileKind::Plain && self.has_stamp(&found.stamp))
    }

    /// Returns whether the index records this stamp.
    pub(super) fn has_stamp(&self, stamp: &Stamp) -> bool {
        (stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns) == (self.dev, self.ino, self.size, self.mtime_ns)
            && self.ctime_ns.is_none_or(|ctime| ctime == stamp.ctime_ns)
    }

    /// Returns whether the index is consistent in itself. An index that came from elsewhere may contain anything.
    fn is_consistent(&self) -> bool {
        let within = |blob: &BorrowedBlob| {
            let end = blob.start.checked_add(blob.bytes.len);
            end.is_some_and(|end| end <= self.size)
        };
        Path::new(&self.path).is_absolute() && self.blobs.iter().all(within)
    }

    /// Returns whether two indexes are of the same file, before or after it got its final name.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.dev, self.ino, self.file) == (other.dev, other.ino, other.file)
    }
}

/// The indexes that this process has read.
#[derive(Debug, Default)]
pub(super) struct BorrowIndexes {
    /// The stamp of the directory when it was listed; `None` if a later change may have left it the same.
    seen: Option<Stamp>,
    by_name: BTreeMap<String, (Stamp, Arc<BorrowIndex>)>,
    /// The indexes that list a blob, and where the blob begins in each file.
    by_blob: HashMap<BlobDigest, Vec<(Arc<BorrowIndex>, u64)>>,
}

impl Store {
    fn indexes_dir(&self) -> PathBuf {
        self.root().join(layout::BORROWED)
    }

    /// Returns the indexes that list a blob, and where the blob begins in each file.
    pub(super) fn indexes_with(&self, digest: &BlobDigest) -> Result<Vec<(Arc<BorrowIndex>, u64)>, StoreError> {
        let directory = self.indexes_dir();
        let stamp = Stamp::of(&directory)?;
        {
            let known = self.inner.indexes.read().unwrap_or_else(PoisonError::into_inner);
            if known.seen == Some(stamp) {
                return Ok(known.by_blob.get(digest).cloned().unwrap_or_default());
            }
        }
        let mut known = self.inner.indexes.write().unwrap_or_else(PoisonError::into_inner);
        let started = fs::Moment::now();
        let mut by_name = BTreeMap::new();
        let mut changed = false;
        for name in self.index_names()? {
            let Some(facts) = fs::facts(&directory.join(&name))? else {
                continue;
            };
            let kept = known.by_name.remove(&name).filter(|(stamp, _)| *stamp == facts.stamp);
            let read = if kept.is_some() {
                kept
            } else {
                changed = true;
                self.index(&name)?.map(|(stamp, index)| (stamp, Arc::new(index)))
            };
            by_name.extend(read.map(|read| (name, read)));
        }
        changed |= !known.by_name.is_empty();
        known.by_name = by_name;
        if changed || known.seen.is_none() {
            let mut by_blob: HashMap<BlobDigest, Vec<(Arc<BorrowIndex>, u64)>> = HashMap::new();
            for (_, index) in known.by_name.values() {
                for blob in &index.blobs {
                    by_blob
                        .entry(blob.bytes)
                        .or_default()
                        .push((Arc::clone(index), blob.start));
                }
            }
            known.by_blob = by_blob;
        }
        // A directory that changed within the resolution of the clock may change again and keep its stamp.
        known.seen = stamp.is_settled(&started).then_some(stamp);
        Ok(known.by_blob.get(digest).cloned().unwrap_or_default())
    }

    /// Returns the names of all indexes.
    pub(super) fn index_names(&self) -> Result<Vec<String>, StoreError> {
        let names = fs::list(&self.indexes_dir())?.into_iter();
        Ok(names
            .filter(|entry| !entry.is_dir)
            .filter_map(|entry| entry.name.into_string().ok())
            .collect())
    }

    /// Reads an index. Returns `None` if it is missing, damaged, of a newer version, or not a file.
    pub(super) fn index(&self, name: &str) -> Result<Option<(Stamp, BorrowIndex)>, StoreError> {
        let path = self.indexes_dir().join(name);
        let (bytes, stamp) = match quarantine::read_own(&path, sealed::CAP) {
            Ok(read) => read,
            Err(error) if error.is_not_found() || error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge || error.is_permission() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let document = sealed::unseal_up_to(KIND, VERSION, name, &bytes).ok();
        let index = document.and_then(|(version, document)| BorrowIndex::parse(version, document));
        Ok(index
            .filter(|index| index.name() == name && index.is_consistent())
            .map(|index| (stamp, index)))
    }

    /// Writes an index, synced to disk.
    pub(super) fn write_index(&self, index: &BorrowIndex) -> Result<(), StoreError> {
        let name = index.name();
        let temp = self.sealed_temp(KIND, VERSION, &name, index)?;
        if let Some(start) = self.own_lease() {
            temp.set_modified(Self::mark_time(start))?;
        }
        self.publish(temp, &self.indexes_dir().join(&name), Durability::Synced)
    }

    /// Removes an index.
    pub(super) fn remove_index(&self, name: &str) -> Result<(), StoreError> {
        self.discard(&self.indexes_dir().join(name))?;
        Ok(())
    }

    /// Syncs the directory of the indexes to disk.
    pub(super) fn sync_indexes(&self) -> Result<(), StoreError> {
        Ok(fs::sync_dir(&self.indexes_dir())?)
    }

    /// Returns whether the store has an index of this file, with this stamp and digest.
    pub fn has_index(&self, path: &Path, stamp: &Stamp, file: &BlobDigest) -> Result<bool, StoreError> {
        // An index cannot contain the path, so no index will ever exist.
        let Some(index) = BorrowIndex::of(path, stamp, true, file, &[]) else {
            return Ok(true);
        };
        // One of a newer version is left as it is.
        Ok(self.index_version(&index.name()).is_some())
    }

    /// Returns whether a newer version of forge wrote an index. This version cannot know which blobs it lists.
    pub(super) fn has_newer_index(&self) -> Result<bool, StoreError> {
        let mut names = self.index_names()?.into_iter();
        Ok(names.any(|name| self.index_version(&name).is_some_and(|version| version > VERSION)))
    }

    /// Returns the version of an index; `None` if it is missing or damaged.
    fn index_version(&self, name: &str) -> Option<u64> {
        let (bytes, _) = fs::read_plain(&self.indexes_dir().join(name), sealed::CAP).ok()?;
        match sealed::unseal_up_to(KIND, VERSION, name, &bytes) {
            Ok((version, _)) | Err(SealError::Newer(version)) => Some(version),
            Err(SealError::Damaged) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3";
    /// The name that version 1 gave the index below.
    const NAME: &str = "db43c363a8d02b8dd26520f3a8a8a79b-eb41be2d6d442927d2aa52a0033bb51e";
    const V1: &str = r#"{"schema":1,"path":"/models/out.gguf","file":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3","dev":1,"ino":2,"size":3,"mtime_ns":4,"ctime_ns":5,"loans":[{"bytes":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3","start":0}]}"#;

    #[test]
    fn an_index_of_version_1_is_read_and_written_as_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let place = store.indexes_dir().join(NAME);
        std::fs::write(&place, sealed::seal("loans", 1, NAME, V1)).unwrap();

        let (_, index) = store.index(NAME).unwrap().unwrap();
        let file: BlobDigest = FILE.parse().unwrap();
        assert_eq!((index.path.as_str(), index.file), ("/models/out.gguf", file));
        assert_eq!(index.blobs, [BorrowedBlob { bytes: file, start: 0 }]);
        let stamp = Stamp {
            dev: 1,
            ino: 2,
            size: 3,
            mtime_ns: 4,
            ctime_ns: 5,
        };
        assert!(index.has_stamp(&stamp));
        assert!(store.has_index(Path::new("/models/out.gguf"), &stamp, &file).unwrap());
        assert_eq!(store.indexes_with(&file).unwrap().len(), 1);

        // The name stays, so the new version takes the place of the old one.
        store.write_index(&index).unwrap();
        let v2 = V1.replace(r#""schema":1"#, r#""schema":2"#).replace("loans", "blobs");
        assert_eq!(std::fs::read(&place).unwrap(), sealed::seal("loans", 2, NAME, &v2));
        assert_eq!(store.index(NAME).unwrap().unwrap().1, index);
    }

    #[test]
    fn an_index_whose_fields_are_of_another_version_is_not_read() {
        assert!(BorrowIndex::parse(1, V1).is_some());
        assert!(BorrowIndex::parse(2, V1).is_none());
        assert!(BorrowIndex::parse(1, &V1.replace(r#""schema":1"#, r#""schema":2"#)).is_none());
        assert!(BorrowIndex::parse(2, &V1.replace("loans", "blobs")).is_none());
    }

    #[test]
    fn an_index_of_a_newer_version_is_kept_and_counts() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let place = store.indexes_dir().join(NAME);
        assert!(!store.has_newer_index().unwrap());
        std::fs::write(&place, sealed::seal("loans", VERSION, NAME, V1)).unwrap();
        assert!(!store.has_newer_index().unwrap());
        std::fs::write(&place, sealed::seal("loans", VERSION + 1, NAME, "{}")).unwrap();
        assert!(store.index(NAME).unwrap().is_none());
        assert!(store.has_newer_index().unwrap());
    }
}
