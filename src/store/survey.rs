//! Lists what is in a store, for garbage collection, listings and checks. Reads only the store's own directories and follows
//! no link. Nothing is verified here.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::borrow_index::BorrowIndex;
use crate::store::layout;
use crate::store::sealed;

/// The unit in which space is counted: the block size of most file systems, in bytes.
const BLOCK: u64 = 4096;

/// The maximum size of a manifest or run record, in bytes.
pub(super) const RECORD_CAP: u64 = 256 << 20;

/// The directories without subdirectories named by the first two digits, except `tmp`.
const UNSHARDED: [&str; 5] = [
    layout::MANIFESTS,
    layout::RUNS,
    layout::EVENTS,
    layout::BORROWED,
    layout::QUARANTINE,
];

/// Returns the space that a file of this length takes, in whole blocks of 4 KiB, whatever the file system.
pub(super) fn space_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// A result that exists and is intact.
#[derive(Debug, Clone)]
pub(super) struct FoundResult {
    pub(super) key: ActionDigest,
    pub(super) result: ActionResult,
    /// The mtime of its file: when it was last used, to the day, in nanoseconds since 1970.
    pub(super) used: i64,
    /// When a build with nothing to do last relied on a note that names it, in nanoseconds since 1970.
    pub(super) noted: i64,
    pub(super) bytes: u64,
}

impl FoundResult {
    /// Returns when it was last used, in nanoseconds since 1970.
    pub(super) fn last_used(&self) -> i64 {
        self.used.max(self.noted)
    }
}

/// A file in the store.
#[derive(Debug, Clone)]
pub(super) struct FoundFile {
    pub(super) path: PathBuf,
    pub(super) kind: FileKind,
    pub(super) stamp: Stamp,
}

/// Files by the hash in their path, and other entries.
pub(super) type Sharded = (Vec<(Hash, FoundFile)>, Vec<PathBuf>);

/// An index of borrowed blobs, and whether its file still has the recorded stamp.
#[derive(Debug)]
pub(super) struct FoundIndex {
    pub(super) name: String,
    pub(super) stamp: Stamp,
    pub(super) index: BorrowIndex,
    pub(super) is_valid: bool,
}

/// What a text names: `HASH:LENGTH` is a blob, a hash alone is the key of an action.
#[derive(Debug, Default)]
pub(super) struct Named {
    pub(super) keys: HashSet<Hash>,
    pub(super) blobs: HashSet<Hash>,
}

impl Named {
    /// Adds every sequence of exactly 64 hexadecimal digits, whatever the format of the text.
    pub(super) fn add(&mut self, text: &[u8]) {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let mut at = 0;
        while at < text.len() {
            let len = text[at..].iter().take_while(|byte| is_digit(byte)).count();
            if len == 64
                && let Ok(digits) = std::str::from_utf8(&text[at..at + 64])
                && let Ok(hash) = digits.parse::<Hash>()
            {
                let is_blob = text.get(at + 64) == Some(&b':') && text.get(at + 65).is_some_and(u8::is_ascii_digit);
                if is_blob {
                    self.blobs.insert(hash);
                } else {
                    self.keys.insert(hash);
                }
            }
            at += len.max(1);
        }
    }
}

/// The kind in an action's document.
#[derive(Deserialize)]
pub(super) struct KindOf {
    pub(super) kind: String,
}

impl Store {
    /// Returns the files of a directory whose names are hashes, by hash, and the paths of other entries.
    pub(super) fn sharded(&self, directory: &str) -> Result<Sharded, StoreError> {
        let root = self.root().join(directory);
        let (mut files, mut foreign) = (Vec::new(), Vec::new());
        for shard in fs::list(&root)? {
            let path = root.join(&shard.name);
            let first = shard.name.to_string_lossy().into_owned();
            if !shard.is_dir || first.len() != 2 {
                foreign.push(path);
                continue;
            }
            for entry in list_if_there(&path)? {
                let path = path.join(&entry.name);
                let hash = format!("{first}{}", entry.name.to_string_lossy()).parse::<Hash>();
                match (hash, fs::facts(&path)?) {
                    (Ok(hash), Some(facts)) if facts.kind != FileKind::Directory => files.push((
                        hash,
                        FoundFile {
                            path,
                            kind: facts.kind,
                            stamp: facts.stamp,
                        },
                    )),
                    (_, None) => {}
                    _ => foreign.push(path),
                }
            }
        }
        Ok((files, foreign))
    }

    /// Returns every result that can be read. Leaves out damaged results.
    pub(super) fn all_results(&self) -> Result<Vec<FoundResult>, StoreError> {
        let (files, _) = self.sharded(layout::ACTIONS)?;
        let mut results = Vec::with_capacity(files.len());
        for (hash, file) in files {
            let key = ActionDigest::from_hash(hash);
            if let Ok(Some((result, used))) = self.peek(&key) {
                results.push(FoundResult {
                    key,
                    result,
                    used,
                    noted: i64::MIN,
                    bytes: file.stamp.size,
                });
            }
        }
        Ok(results)
    }

    /// Returns every index of borrowed blobs that can be read.
    pub(super) fn all_indexes(&self) -> Result<Vec<FoundIndex>, StoreError> {
        let mut indexes = Vec::new();
        for name in self.index_names()? {
            if let Some((stamp, index)) = self.index(&name)? {
                let is_valid = index.is_valid();
                indexes.push(FoundIndex {
                    name,
                    stamp,
                    index,
                    is_valid,
                });
            }
        }
        Ok(indexes)
    }

    /// Returns the kind of an action, as its document spells it. The document is not verified: the kind is only for messages and
    /// for the order of removal.
    pub(super) fn kind_of(&self, result: &ActionResult) -> Option<String> {
        let (bytes, _) = fs::read_plain(&self.blob_path(&result.action), sealed::CAP).ok()?;
        Some(serde_json::from_slice::<KindOf>(&bytes).ok()?.kind)
    }

    /// Returns the entries of the quarantine; the size of a directory is that of all files below it, in bytes.
    pub(super) fn quarantined(&self) -> Result<Vec<FoundFile>, StoreError> {
        let root = self.root().join(layout::QUARANTINE);
        let mut all = Vec::new();
        for entry in list_if_there(&root)? {
            let path = root.join(&entry.name);
            let Some(facts) = fs::facts(&path)? else { continue };
            let mut stamp = facts.stamp;
            if facts.kind == FileKind::Directory {
                stamp.size = 0;
                walk(&path, &mut |bytes| stamp.size = stamp.size.saturating_add(bytes))?;
            }
            all.push(FoundFile {
                path,
                kind: facts.kind,
                stamp,
            });
        }
        Ok(all)
    }

    /// Returns the plain files of one of the store's directories, with their stamps.
    pub(super) fn plain_files(&self, directory: &str) -> Result<Vec<FoundFile>, StoreError> {
        let root = self.root().join(directory);
        let mut files = Vec::new();
        for entry in list_if_there(&root)? {
            let path = root.join(&entry.name);
            if let Some(facts) = fs::facts(&path)?.filter(|facts| facts.kind != FileKind::Directory) {
                files.push(FoundFile {
                    path,
                    kind: facts.kind,
                    stamp: facts.stamp,
                });
            }
        }
        Ok(files)
    }

    /// Returns the space that each part of the store takes, in bytes, by the name of its directory. This is what counts towards
    /// a size limit; what running builds are writing (`tmp`) does not.
    pub(super) fn spaces(&self) -> Result<BTreeMap<&'static str, u64>, StoreError> {
        let mut spaces = BTreeMap::new();
        for directory in layout::SHARDED.into_iter().chain(UNSHARDED) {
            let taken = spaces.entry(directory).or_default();
            walk(&self.root().join(directory), &mut |bytes| *taken += space_of(bytes))?;
        }
        Ok(spaces)
    }

    /// Returns the space that the store takes, in bytes, as it counts towards a size limit.
    pub fn space(&self) -> Result<u64, StoreError> {
        Ok(self.spaces()?.into_values().sum())
    }

    /// Returns the results that notes of builds with nothing to do name, and when such a build last ran, in nanoseconds since
    /// 1970. These builds open no result, but rely on all of them.
    pub(super) fn used_by_notes(&self) -> Result<HashMap<Hash, i64>, StoreError> {
        let mut used: HashMap<Hash, i64> = HashMap::new();
        for file in self.plain_files(&format!("{}/fresh", layout::RUNS))? {
            let Ok((bytes, stamp)) = fs::read_plain(&file.path, sealed::CAP) else {
                continue;
            };
            let text = String::from_utf8_lossy(&bytes);
            for place in text.split(&format!("{}/", layout::ACTIONS)).skip(1) {
                let digits: String = place.chars().take(65).filter(|c| *c != '/').collect();
                if let Ok(key) = digits.parse::<Hash>() {
                    let known = used.entry(key).or_insert(stamp.mtime_ns);
                    *known = stamp.mtime_ns.max(*known);
                }
            }
        }
        Ok(used)
    }

    /// Returns what a manifest in the store names; nothing if it cannot be read.
    pub(super) fn named_by_manifest(&self, manifest: &BlobDigest) -> Named {
        let mut named = Named::default();
        if let Some(bytes) = self.read_if_intact(manifest, RECORD_CAP) {
            named.add(&bytes);
        }
        named
    }

    /// Returns every result, for listings.
    pub fn list(&self) -> Result<Vec<ListedResult>, StoreError> {
        let mut listed = Vec::new();
        let noted = self.used_by_notes()?;
        for mut found in self.all_results()? {
            found.noted = noted.get(found.key.hash()).copied().unwrap_or(i64::MIN);
            let used = found.last_used();
            let result = &found.result;
            let mut entry = ListedResult {
                key: found.key,
                kind: self.kind_of(result).unwrap_or_else(|| "unknown".to_owned()),
                used: u64::try_from(used / 1_000_000_000).unwrap_or(0),
                cost_ms: result.cost_ms,
                bytes: 0,
                borrowed: 0,
                whole: true,
            };
            let distinct: HashSet<&BlobDigest> = result.outputs.values().collect();
            for digest in distinct {
                entry.bytes += digest.len;
                if self.own_blob(digest)?.is_none() {
                    if self.is_borrowed(digest)? {
                        entry.borrowed += digest.len;
                    } else {
                        entry.whole = false;
                    }
                }
            }
            listed.push(entry);
        }
        Ok(listed)
    }

    /// Returns how the store uses its space: the parts by name, and the blobs by the kind of action that made them.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        let (blobs, _) = self.sharded(layout::CAS)?;
        let results = self.all_results()?;
        let mut kinds: HashMap<Hash, String> = HashMap::new();
        for found in &results {
            let kind = self.kind_of(&found.result).unwrap_or_else(|| "unknown".to_owned());
            kinds.insert(found.result.action.hash, "documents of actions".to_owned());
            for digest in found.result.outputs.values() {
                // A blob of several kinds (the tokenizer of a model and its candidates) counts for the first kind by name.
                let known = kinds.entry(digest.hash).or_insert_with(|| kind.clone());
                if kind < *known {
                    known.clone_from(&kind);
                }
            }
        }
        for (hash, file) in &blobs {
            let kind = kinds.get(hash).map_or("manifests, logs, leftovers", String::as_str);
            usage.blobs.entry(kind.to_owned()).or_default().add(file.stamp.size);
        }
        for index in self.all_indexes()? {
            if index.is_valid {
                for blob in &index.index.blobs {
                    usage.borrowed.add(blob.bytes.len);
                }
            }
        }
        for directory in [layout::ACTIONS, layout::TOMBSTONES, layout::STAT] {
            let part = usage.parts.entry(directory.to_owned()).or_default();
            for (_, file) in self.sharded(directory)?.0 {
                part.add(file.stamp.size);
            }
        }
        for directory in UNSHARDED.into_iter().chain([layout::TMP]) {
            let part = usage.parts.entry(directory.to_owned()).or_default();
            walk(&self.root().join(directory), &mut |bytes| part.add(bytes))?;
        }
        Ok(usage)
    }
}

/// Calls `visit` with the length of every file below a folder, in bytes. Follows no link.
pub(super) fn walk(folder: &Path, visit: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in list_if_there(&folder)? {
            let path = folder.join(&entry.name);
            match fs::facts(&path)? {
                Some(facts) if facts.kind == FileKind::Directory => folders.push(path),
                Some(facts) => visit(facts.stamp.size),
                None => {}
            }
        }
    }
    Ok(())
}

/// Lists a directory; empty if it does not exist.
pub(super) fn list_if_there(path: &Path) -> Result<Vec<fs::Entry>, StoreError> {
    match fs::list(path) {
        Ok(entries) => Ok(entries),
        Err(error) if error.is_not_found() && error.kind() != io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// A result in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedResult {
    /// The action.
    pub key: ActionDigest,
    /// Its kind; `unknown` if its document cannot be read.
    pub kind: String,
    /// When it was last used, in seconds since 1970.
    pub used: u64,
    /// The time that it took to make, in milliseconds.
    pub cost_ms: u64,
    /// The size of its outputs, in bytes.
    pub bytes: u64,
    /// How many of these bytes are borrowed.
    pub borrowed: u64,
    /// Whether all outputs exist.
    pub whole: bool,
}

/// A number of files and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// The number of files.
    pub files: u64,
    /// The sum of their lengths, in bytes.
    pub bytes: u64,
    /// The space that they take, in bytes, in whole blocks of 4 KiB.
    pub space: u64,
}

impl Amount {
    pub(super) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
        self.space += space_of(bytes);
    }

    pub(super) fn join(&mut self, other: Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.space += other.space;
    }
}

/// How a store uses its space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blobs, by the kind of action that made them.
    pub blobs: BTreeMap<String, Amount>,
    /// Everything else, by the name of its directory.
    pub parts: BTreeMap<String, Amount>,
    /// Borrowed blobs: they lie in outputs and take no space in the store.
    pub borrowed: Amount,
}

impl Usage {
    /// Returns the whole store, without borrowed blobs.
    pub fn total(&self) -> Amount {
        self.blobs
            .values()
            .chain(self.parts.values())
            .fold(Amount::default(), |mut total, part| {
                total.join(*part);
                total
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_text() {
        let hash = Hash::of(b"a");
        let other = Hash::of(b"b");
        let text = format!("{{\"x\":\"{hash}:17\",\"{other}\":[\"{hash}0\",\"a{other}:\"]}}");
        let mut named = Named::default();
        named.add(text.as_bytes());
        assert_eq!(named.blobs, HashSet::from([hash]));
        assert_eq!(named.keys, HashSet::from([other]));
        assert_eq!(
            (space_of(0), space_of(1), space_of(4096), space_of(4097)),
            (0, 4096, 4096, 8192)
        );
    }
}
