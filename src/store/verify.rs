//! Checks the store by reading it again: blobs against their names, results against their checksums, borrowed blobs against
//! the files that contain them. What is damaged is quarantined, so that it is made again.

mod found;
mod read;

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::store::RemovalReason;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::borrow_index;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::sealed;
use crate::store::survey::FoundIndex;
use crate::store::survey::KindOf;
use crate::store::survey::list_if_there;

use crate::store::borrow_index::BORROWED_KIND;
pub use found::CheckReport;
pub use found::Damage;
pub use found::Owner;
pub use found::Sample;
use read::Item;

/// The maximum size of an action's document, in bytes.
const DOCUMENT_CAP: u64 = 4 << 20;

/// The progress of a check, and how to stop it.
#[derive(Clone, Copy)]
pub struct CheckControl<'w> {
    /// Is called with the number of bytes read and the total.
    pub progress: &'w (dyn Fn(u64, u64) + Sync),
    /// Returns whether to stop.
    pub stop: &'w (dyn Fn() -> bool + Sync),
}

/// The results, and which of them name each blob.
struct Owners {
    results: Vec<(ActionDigest, ActionResult, i64)>,
    by_blob: HashMap<Hash, Vec<(usize, Option<String>)>>,
}

impl Store {
    /// Reads the store, or a sample of it, in `threads` threads. What is damaged is quarantined. A result that has lost a blob
    /// is removed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if something cannot be read or moved at all.
    pub fn check(&self, sample: Sample, threads: usize, control: CheckControl<'_>) -> Result<CheckReport, StoreError> {
        let mut report = CheckReport::default();
        // What was quarantined when the store was opened.
        report.damage.extend(self.inner.moved.iter().cloned().map(Damage::from));
        let (blobs, odd) = self.sharded(layout::CAS)?;
        let mut foreign = self.quarantine_odd_entries(&mut report, odd)?;
        let indexes = self.all_indexes()?;
        let borrowed = borrowed_in(&indexes);
        let borrowed_files = indexes
            .into_iter()
            .filter(|found| found.is_valid)
            .map(Item::BorrowedFile);
        let mut items: Vec<Item> = blobs.into_iter().map(|(hash, file)| Item::Blob(hash, file)).collect();
        items.extend(borrowed_files);
        for item in &items {
            report.all.add(item.bytes());
        }
        let items = chosen(items, sample, report.all.bytes);
        let seen = self.read_items(&items, threads, control)?;
        report.stopped = (control.stop)();
        report.blobs = seen.blobs;
        report.borrowed_files = seen.borrowed_files;
        report.damage.extend(seen.damage);
        self.check_notes(&mut report, &mut foreign)?;
        let index = self.check_results(&mut report, &mut foreign)?;
        report.foreign = foreign;
        for damage in &mut report.damage {
            match damage {
                Damage::Blob { hash, owners, .. } => *owners = self.owners(&index, hash),
                Damage::BorrowedBlob { digest, owners, .. } => *owners = self.owners(&index, &digest.hash),
                _ => {}
            }
        }
        self.drop_incomplete(&mut report, &index, borrowed)?;
        Ok(report)
    }

    /// Quarantines the entries that have the name of a file of the store and are not files. Returns the others, which do not
    /// belong to the store.
    fn quarantine_odd_entries(&self, report: &mut CheckReport, odd: Vec<PathBuf>) -> Result<Vec<PathBuf>, StoreError> {
        let mut foreign = Vec::new();
        for path in odd {
            if quarantine::is_hash_path(self.root(), &path) {
                report
                    .damage
                    .extend(self.quarantine_unless_file(&path)?.map(Damage::from));
            } else {
                foreign.push(path);
            }
        }
        Ok(foreign)
    }

    fn check_notes(&self, report: &mut CheckReport, foreign: &mut Vec<PathBuf>) -> Result<(), StoreError> {
        let of_runs = |name: &str| format!("{}/{name}", layout::RUNS);
        let (last, earlier) = (of_runs("last"), of_runs("earlier"));
        let (fresh, engines) = (of_runs("fresh"), of_runs("engines"));
        for (directory, called, kind) in [
            (last.as_str(), layout::RUNS, "last"),
            (earlier.as_str(), layout::RUNS, "earlier"),
            (fresh.as_str(), layout::RUNS, "fresh"),
            (engines.as_str(), layout::RUNS, "engine"),
            (layout::MANIFESTS, layout::MANIFESTS, "pin"),
            (layout::EVENTS, layout::EVENTS, "event"),
            (layout::BORROWED, layout::BORROWED, borrow_index::KIND),
        ] {
            let folder = self.root().join(directory);
            for entry in list_if_there(&folder)? {
                let path = folder.join(&entry.name);
                let name = entry.name.to_string_lossy().into_owned();
                if entry.is_file {
                    self.check_note(report, &path, called, kind, &name)?;
                } else {
                    report
                        .damage
                        .extend(self.quarantine_unless_file(&path)?.map(Damage::from));
                }
            }
        }
        let (tombstones, odd) = self.sharded(layout::TOMBSTONES)?;
        for (hash, file) in tombstones {
            self.check_note(report, &file.path, layout::TOMBSTONES, "tombstone", &hash.to_string())?;
        }
        foreign.extend(self.quarantine_odd_entries(report, odd)?);
        let (entries, odd) = self.sharded(layout::STAT)?;
        // A damaged entry counts as missing, and is replaced when its file is read next.
        for (_, file) in entries.iter().filter(|(_, file)| file.kind != FileKind::Plain) {
            report
                .damage
                .extend(self.quarantine_unless_file(&file.path)?.map(Damage::from));
        }
        foreign.extend(self.quarantine_odd_entries(report, odd)?);
        let runs = self.root().join(layout::RUNS);
        for entry in list_if_there(&runs)? {
            if !entry.is_file && !layout::RUN_FOLDERS.iter().any(|folder| entry.name == **folder) {
                report
                    .damage
                    .extend(self.quarantine_unless_file(&runs.join(&entry.name))?.map(Damage::from));
            }
        }
        Ok(())
    }

    fn check_note(
        &self,
        report: &mut CheckReport,
        path: &Path,
        directory: &'static str,
        kind: &str,
        name: &str,
    ) -> Result<(), StoreError> {
        report.notes += 1;
        if damaged_note(path, kind, name)?.is_none() {
            return Ok(());
        }
        let hash = Hash::of(name.as_bytes());
        let _lock = self.replacing(&hash)?;
        // Checked again: another process may have replaced or removed it.
        let Some(stamp) = damaged_note(path, kind, name)? else {
            return Ok(());
        };
        let moved_to = self.quarantine_locked(&hash, path, &stamp, &format!(".{kind}"))?;
        report.damage.push(Damage::Note {
            directory,
            name: name.to_owned(),
            moved_to,
        });
        Ok(())
    }

    fn check_results(&self, report: &mut CheckReport, foreign: &mut Vec<PathBuf>) -> Result<Owners, StoreError> {
        let (files, odd) = self.sharded(layout::ACTIONS)?;
        foreign.extend(self.quarantine_odd_entries(report, odd)?);
        let mut index = Owners {
            results: Vec::new(),
            by_blob: HashMap::new(),
        };
        let mut damaged = Vec::new();
        for (hash, file) in files {
            let key = ActionDigest::from_hash(hash);
            report.results += 1;
            if file.kind != FileKind::Plain {
                report
                    .damage
                    .extend(self.quarantine_unless_file(&file.path)?.map(Damage::from));
                continue;
            }
            let found = match self.peek(&key) {
                // A newer version of forge wrote it.
                Err(StoreError::Newer { .. }) => continue,
                found => found?,
            };
            let Some((result, used)) = found else {
                // It was removed or replaced meanwhile, or it is damaged.
                if let Some(moved_to) = self.quarantine_damaged_result(&key)? {
                    damaged.push((key, moved_to));
                }
                continue;
            };
            let number = index.results.len();
            let documents = std::iter::once((None, result.action.hash));
            let outputs = result
                .outputs
                .iter()
                .map(|(name, digest)| (Some(name.clone()), digest.hash));
            for (name, hash) in documents.chain(outputs) {
                index.by_blob.entry(hash).or_default().push((number, name));
            }
            index.results.push((key, result, used));
        }
        let kinds = if damaged.is_empty() {
            HashMap::new()
        } else {
            self.kinds_of_documents()?
        };
        for (key, moved_to) in damaged {
            report.damage.push(Damage::Result {
                kind: kinds.get(&key).cloned(),
                key,
                moved_to,
            });
        }
        Ok(index)
    }

    /// Returns the kind of every action whose document is in the store, by key.
    fn kinds_of_documents(&self) -> Result<HashMap<ActionDigest, String>, StoreError> {
        let mut kinds = HashMap::new();
        for (_, file) in self.sharded(layout::CAS)?.0 {
            if file.stamp.size < DOCUMENT_CAP
                && let Ok((bytes, _)) = fs::read_plain(&file.path, DOCUMENT_CAP)
                && bytes.starts_with(b"{\"schema\":")
                && let Ok(document) = serde_json::from_slice::<KindOf>(&bytes)
            {
                kinds.insert(ActionDigest::of(&bytes), document.kind);
            }
        }
        Ok(kinds)
    }

    fn owners(&self, index: &Owners, hash: &Hash) -> Vec<Owner> {
        let named = index.by_blob.get(hash).into_iter().flatten();
        let mut owners: Vec<Owner> = named
            .map(|(number, output)| {
                let (key, result, _) = &index.results[*number];
                Owner {
                    key: *key,
                    kind: self.kind_of(result),
                    output: output.clone(),
                }
            })
            .collect();
        owners.sort();
        owners.dedup();
        owners
    }

    /// Removes the results that have lost a blob. The loss is reported as damage only if nothing explains it. `explained` are the blobs
    /// that were borrowed when the check began: such a blob may have been lost with its file.
    fn drop_incomplete(
        &self,
        report: &mut CheckReport,
        index: &Owners,
        mut explained: HashSet<Hash>,
    ) -> Result<(), StoreError> {
        // Those that were borrowed since, too.
        explained.extend(borrowed_in(&self.all_indexes()?));
        for damage in &report.damage {
            match damage {
                Damage::Blob { hash, .. } => explained.extend([*hash]),
                Damage::BorrowedBlob { digest, .. } => explained.extend([digest.hash]),
                _ => {}
            }
        }
        // If an index was damaged, the next build that finds the output writes it again. Until then, a result whose blobs it may
        // have listed is kept; so is one whose blobs an index of a newer version may list.
        let mut index_lost = self.has_newer_index()?;
        for file in self.plain_files(layout::QUARANTINE)? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            explained.extend(name.get(..64).and_then(|digits| digits.parse::<Hash>().ok()));
            index_lost |= file
                .path
                .extension()
                .is_some_and(|extension| extension == borrow_index::KIND);
        }
        for (key, result, used) in &index.results {
            if self.missing(result)?.is_empty() {
                continue;
            }
            let _sweeping = self.sweeping()?;
            // It may have been removed or made again meanwhile.
            let Some((result, _)) = self.peek(key)?.filter(|(now, _)| now == result) else {
                continue;
            };
            let missing = self.missing(&result)?;
            if missing.is_empty() {
                continue;
            }
            if index_lost && self.kind_of(&result).as_deref() == Some(BORROWED_KIND) {
                continue;
            }
            let unexplained = missing.iter().find(|digest| !explained.contains(&digest.hash));
            if let Some(digest) = unexplained {
                let output = result.outputs.iter().find(|(_, output)| *output == digest);
                report.damage.push(Damage::Gone {
                    digest: *digest,
                    owner: Owner {
                        key: *key,
                        kind: self.kind_of(&result),
                        output: output.map(|(name, _)| name.clone()),
                    },
                });
            }
            let used = u64::try_from(*used).map_or(UNIX_EPOCH, |used| UNIX_EPOCH + Duration::from_nanos(used));
            self.write_tombstone(key, &result, used, RemovalReason::Incomplete)?;
            fs::remove_file(&self.shard(layout::ACTIONS, key.hash()))?;
            report.dropped += 1;
        }
        Ok(())
    }
}

/// Returns the stamp of a damaged note; `None` if the note is intact, missing, or not a file.
fn damaged_note(path: &Path, kind: &str, name: &str) -> Result<Option<Stamp>, StoreError> {
    match quarantine::read_own(path, sealed::CAP) {
        Ok((bytes, stamp)) => {
            let is_damaged = sealed::unseal_up_to(kind, u64::MAX, name, &bytes).is_err();
            Ok(is_damaged.then_some(stamp))
        }
        Err(error) if error.is_not_found() => Ok(None),
        Err(_) => {
            let found = fs::facts(path)?.filter(|found| found.kind == FileKind::Plain);
            Ok(found.map(|found| found.stamp))
        }
    }
}

/// Returns the blobs that the indexes list, including those of files that have changed.
fn borrowed_in(indexes: &[FoundIndex]) -> HashSet<Hash> {
    let blobs = indexes.iter().flat_map(|found| &found.index.blobs);
    blobs.map(|blob| blob.bytes.hash).collect()
}

/// Returns the items to read, the largest first, so that all threads finish at about the same time.
fn chosen(mut items: Vec<Item>, sample: Sample, all: u64) -> Vec<Item> {
    let budget = match sample {
        Sample::All => None,
        Sample::Bytes(bytes) => Some(bytes),
        Sample::Millionths(millionths) => {
            let bytes = u128::from(all) * u128::from(millionths.min(1_000_000)) / 1_000_000;
            Some(u64::try_from(bytes).unwrap_or(all))
        }
    };
    if let Some(budget) = budget {
        // The random state differs in each process, so each sample is different.
        let random = RandomState::new();
        items.sort_by_cached_key(|item| match item {
            Item::Blob(hash, _) => random.hash_one(hash),
            Item::BorrowedFile(found) => random.hash_one(&found.name),
        });
        let mut taken = 0_u64;
        items.retain(|item| {
            let fits = taken < budget;
            taken = taken.saturating_add(if fits { item.bytes() } else { 0 });
            fits
        });
    }
    items.sort_by_key(|item| std::cmp::Reverse(item.bytes()));
    items
}
