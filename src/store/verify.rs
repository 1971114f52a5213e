//! Reading everything again: blobs against their names, results against their seals, loans against the files that hold
//! them. What is damaged is moved aside, so that it is made again; nothing is believed on the way.

use std::collections::HashMap;
use std::collections::HashSet;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::FileKind;
use crate::store::Amount;
use crate::store::Removal;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::sealed;
use crate::store::sealed::Broken;
use crate::store::stat;
use crate::store::survey::FoundBook;
use crate::store::survey::FoundFile;
use crate::store::survey::KindOf;

/// No document of an action that is looked for by its key is larger.
const DOCUMENT_CAP: u64 = 4 << 20;

/// The kind of action whose output may lie in a file outside the store.
const LENT: &str = "tensor";

/// How much is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Everything.
    All,
    /// So many millionths of the bytes, chosen anew each time.
    Millionths(u64),
    /// So many bytes, chosen anew each time.
    Bytes(u64),
}

/// What a blob is: an output of an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The action.
    pub key: ActionDigest,
    /// Its kind; nothing if its document cannot be read.
    pub kind: Option<String>,
    /// The output's name; nothing for the action's own document.
    pub output: Option<String>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// A blob's bytes are not those of its name.
    Blob {
        /// Its name.
        hash: Hash,
        /// How long it is.
        bytes: u64,
        /// Where it is now.
        moved_to: PathBuf,
        /// What it was.
        owners: Vec<Owner>,
    },
    /// Something that is no file stands where a blob or a result has its place.
    NotAFile {
        /// Where it stood.
        path: PathBuf,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result's seal is broken.
    Result {
        /// The action.
        key: ActionDigest,
        /// Its kind, if its document was found.
        kind: Option<String>,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result names a blob that is not there, and nothing says why.
    Gone {
        /// The blob.
        digest: BlobDigest,
        /// What it was.
        owner: Owner,
    },
    /// A file that lends a blob holds other bytes, though its stamp is the same.
    Loan {
        /// The blob.
        digest: BlobDigest,
        /// The file, outside the store.
        path: PathBuf,
        /// What the blob is.
        owners: Vec<Owner>,
    },
    /// A file that lends blobs has changed elsewhere, though its stamp is the same.
    Lender {
        /// The file, outside the store.
        path: PathBuf,
    },
    /// A note's seal is broken: what a step did last, a pin, an event, a tombstone, a book of loans.
    Note {
        /// What kind of note, as its directory is called.
        directory: &'static str,
        /// Its name.
        name: String,
        /// Where it is now.
        moved_to: PathBuf,
    },
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs that were read.
    pub blobs: Amount,
    /// Files outside the store that were read for what they lend.
    pub lenders: Amount,
    /// Blobs and files in all, read or not.
    pub all: Amount,
    /// Results that were looked at.
    pub results: u64,
    /// Notes that were looked at.
    pub notes: u64,
    /// What is not as it should be.
    pub flaws: Vec<Flaw>,
    /// Results that were dropped since they had lost a blob: to an output that was deleted or changed, to an earlier
    /// damage, or to one of the flaws.
    pub dropped: u64,
    /// What has no place in a store; it was left as it is.
    pub foreign: Vec<PathBuf>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

/// What goes on while a check runs.
#[derive(Clone, Copy)]
pub struct Watch<'w> {
    /// Is told how many bytes were read, and of how many.
    pub progress: &'w (dyn Fn(u64, u64) + Sync),
    /// Is asked whether to stop.
    pub stop: &'w (dyn Fn() -> bool + Sync),
}

/// Something that is read through.
enum Item {
    Blob(Hash, FoundFile),
    Lender(FoundBook),
}

impl Item {
    fn bytes(&self) -> u64 {
        match self {
            Self::Blob(_, file) => file.stamp.size,
            Self::Lender(found) => found.book.file.len,
        }
    }
}

/// What reading an item showed.
#[derive(Default)]
struct Seen {
    blobs: Amount,
    lenders: Amount,
    flaws: Vec<Flaw>,
}

/// What names what.
struct Index {
    results: Vec<(ActionDigest, ActionResult, i64)>,
    owners: HashMap<Hash, Vec<(usize, Option<String>)>>,
}

impl Store {
    /// Reads the store again, or a part of it, in as many threads as given. What is damaged is moved aside; a result that
    /// has lost a blob is dropped.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if something cannot be read or moved at all.
    pub fn check(&self, sample: Sample, threads: usize, watch: Watch<'_>) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        let (blobs, mut foreign) = self.sharded(layout::CAS)?;
        let books = self.all_books()?;
        let stale: HashSet<Hash> = books
            .iter()
            .filter(|found| !found.holds)
            .flat_map(|found| found.book.loans.iter().map(|loan| loan.bytes.hash))
            .collect();
        let lenders = books.into_iter().filter(|found| found.holds).map(Item::Lender);
        let mut items: Vec<Item> = blobs.into_iter().map(|(hash, file)| Item::Blob(hash, file)).collect();
        items.extend(lenders);
        for item in &items {
            verified.all.add(item.bytes());
        }
        let items = chosen(items, sample, verified.all.bytes);
        let seen = self.read_items(&items, threads, watch)?;
        verified.stopped = (watch.stop)();
        verified.blobs = seen.blobs;
        verified.lenders = seen.lenders;
        verified.flaws = seen.flaws;
        self.check_notes(&mut verified)?;
        let index = self.check_results(&mut verified, &mut foreign)?;
        verified.foreign = foreign;
        for flaw in &mut verified.flaws {
            match flaw {
                Flaw::Blob { hash, owners, .. } => *owners = self.owners(&index, hash),
                Flaw::Loan { digest, owners, .. } => *owners = self.owners(&index, &digest.hash),
                _ => {}
            }
        }
        self.drop_incomplete(&mut verified, &index, &stale)?;
        Ok(verified)
    }

    fn read_items(&self, items: &[Item], threads: usize, watch: Watch<'_>) -> Result<Seen, StoreError> {
        let total = items.iter().map(Item::bytes).sum();
        let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
        let seen = Mutex::new(Seen::default());
        let failure: Mutex<Option<StoreError>> = Mutex::new(None);
        let work = || {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if (watch.stop)() {
                    return;
                }
                let before = AtomicU64::new(0);
                let progress = |now: u64| {
                    let more = now.saturating_sub(before.swap(now, Ordering::Relaxed));
                    (watch.progress)(read.fetch_add(more, Ordering::Relaxed) + more, total);
                };
                let outcome = match item {
                    Item::Blob(hash, file) => self.read_blob(hash, file, &progress),
                    Item::Lender(found) => self.read_lender(found, &progress),
                };
                match outcome {
                    Ok(found) => {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.flaws.extend(found.flaws);
                        seen.blobs.join(found.blobs);
                        seen.lenders.join(found.lenders);
                    }
                    Err(error) => {
                        next.store(usize::MAX / 2, Ordering::Relaxed);
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.max(1) {
                scope.spawn(work);
            }
            work();
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(seen.into_inner().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn read_blob(&self, hash: &Hash, found: &FoundFile, progress: &dyn Fn(u64)) -> Result<Seen, StoreError> {
        let mut seen = Seen::default();
        let (file, stamp) = match fs::open_plain(&found.path) {
            Ok(opened) => opened,
            // Collected, or lent, meanwhile.
            Err(error) if error.is_not_found() => return Ok(seen),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                seen.flaws.push(self.move_odd_aside(hash, &found.path)?);
                return Ok(seen);
            }
            Err(error) => return Err(error.into()),
        };
        let digest = match stat::digest_open(&file, &found.path, progress) {
            Ok(digest) => Some(digest),
            // The disk cannot give it back: that is damage, too.
            Err(StoreError::Path(error)) if error.operation == "read" => None,
            Err(error) => return Err(error),
        };
        seen.blobs.add(stamp.size);
        if digest.is_none_or(|digest| digest.hash != *hash) {
            seen.flaws.push(Flaw::Blob {
                hash: *hash,
                bytes: stamp.size,
                moved_to: self.quarantine(hash, &found.path, &stamp, "")?,
                owners: Vec::new(),
            });
        }
        Ok(seen)
    }

    fn move_odd_aside(&self, hash: &Hash, path: &Path) -> Result<Flaw, StoreError> {
        let _lock = self.replacing(hash)?;
        let moved_to = self.free_quarantine_name(hash, ".odd")?;
        // The thing itself is renamed, never what it leads to.
        if fs::facts(path)?.is_some_and(|facts| facts.kind == FileKind::Other) {
            fs::rename(path, &moved_to)?;
        }
        Ok(Flaw::NotAFile {
            path: path.to_owned(),
            moved_to,
        })
    }

    /// Reads a file that lends blobs, once, and digests it whole and each blob in it.
    fn read_lender(&self, found: &FoundBook, progress: &dyn Fn(u64)) -> Result<Seen, StoreError> {
        let mut seen = Seen::default();
        let path = Path::new(&found.book.path);
        let Ok((file, stamp)) = fs::open_plain(path) else {
            return Ok(seen);
        };
        if !found.book.is_of(&stamp) {
            return Ok(seen);
        }
        let mut loans = found.book.loans.clone();
        loans.sort_by_key(|loan| loan.start);
        let mut whole = blake3::Hasher::new();
        let mut block = vec![0; 1 << 20];
        let mut at = 0_u64;
        // Reads up to a place and digests what it reads, whole and as a part.
        let mut read_to = |end: u64| -> io::Result<Hash> {
            let mut part = blake3::Hasher::new();
            while at < end {
                let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(block.len());
                match fs::read_at(&file, &mut block[..most], at)? {
                    0 => break,
                    read => {
                        whole.update(&block[..read]);
                        part.update(&block[..read]);
                        at += read as u64;
                        progress(at);
                    }
                }
            }
            Ok(Hash::from_bytes(*part.finalize().as_bytes()))
        };
        let mut wrong = Vec::new();
        let mut read_all = || -> io::Result<()> {
            let mut end = 0;
            for loan in &loans {
                if loan.start < end {
                    // Blobs do not overlap in a file that forge wrote.
                    wrong.push(loan.bytes);
                    continue;
                }
                read_to(loan.start)?;
                end = loan.start.saturating_add(loan.bytes.len);
                if read_to(end)? != loan.bytes.hash {
                    wrong.push(loan.bytes);
                }
            }
            read_to(stamp.size)?;
            Ok(())
        };
        let unreadable = read_all().is_err();
        seen.lenders.add(stamp.size);
        let is_whole = Hash::from_bytes(*whole.finalize().as_bytes()) == found.book.file.hash;
        if is_whole && wrong.is_empty() && !unreadable {
            return Ok(seen);
        }
        let now = fs::Stamp::of_file(&file, path)?;
        if now != stamp || !found.book.holds() {
            // Somebody changed it meanwhile: it lends nothing any more.
            return Ok(seen);
        }
        if unreadable {
            wrong = loans.iter().map(|loan| loan.bytes).collect();
        }
        self.strike_out(&found.name, &wrong, &stamp)?;
        if wrong.is_empty() {
            seen.flaws.push(Flaw::Lender { path: path.to_owned() });
        }
        seen.flaws.extend(wrong.into_iter().map(|digest| Flaw::Loan {
            digest,
            path: path.to_owned(),
            owners: Vec::new(),
        }));
        Ok(seen)
    }

    fn check_notes(&self, verified: &mut Verified) -> Result<(), StoreError> {
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
            (layout::BORROWED, layout::BORROWED, "loans"),
        ] {
            for file in self.plain_files(directory)? {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.check_note(verified, &file, called, kind, &name)?;
            }
        }
        for (hash, file) in self.sharded(layout::TOMBSTONES)?.0 {
            self.check_note(verified, &file, layout::TOMBSTONES, "tombstone", &hash.to_string())?;
        }
        Ok(())
    }

    fn check_note(
        &self,
        verified: &mut Verified,
        file: &FoundFile,
        directory: &'static str,
        kind: &str,
        name: &str,
    ) -> Result<(), StoreError> {
        verified.notes += 1;
        let read = fs::read_plain(&file.path, sealed::CAP);
        let whole = match &read {
            Ok((bytes, _)) => !matches!(sealed::unseal(kind, 1, name, bytes), Err(Broken::Damaged)),
            Err(error) if error.is_not_found() => true,
            Err(_) => false,
        };
        if !whole {
            let hash = Hash::of(name.as_bytes());
            let moved_to = if file.kind == FileKind::Plain {
                self.quarantine(&hash, &file.path, &file.stamp, &format!(".{kind}"))?
            } else {
                match self.move_odd_aside(&hash, &file.path)? {
                    Flaw::NotAFile { moved_to, .. } => moved_to,
                    _ => file.path.clone(),
                }
            };
            verified.flaws.push(Flaw::Note {
                directory,
                name: name.to_owned(),
                moved_to,
            });
        }
        Ok(())
    }

    fn check_results(&self, verified: &mut Verified, foreign: &mut Vec<PathBuf>) -> Result<Index, StoreError> {
        let (files, odd) = self.sharded(layout::ACTIONS)?;
        foreign.extend(odd);
        let mut index = Index {
            results: Vec::new(),
            owners: HashMap::new(),
        };
        let mut damaged = Vec::new();
        for (hash, file) in files {
            let key = ActionDigest::from_hash(hash);
            verified.results += 1;
            if file.kind != FileKind::Plain {
                verified.flaws.push(self.move_odd_aside(&hash, &file.path)?);
                continue;
            }
            let found = match self.peek(&key) {
                // A newer program wrote it.
                Err(StoreError::Newer { .. }) => continue,
                found => found?,
            };
            let Some((result, used)) = found else {
                // Either it went meanwhile, or it cannot be believed.
                if let Some(facts) = fs::facts(&file.path)? {
                    damaged.push((key, self.quarantine(&hash, &file.path, &facts.stamp, ".result")?));
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
                index.owners.entry(hash).or_default().push((number, name));
            }
            index.results.push((key, result, used));
        }
        let kinds = if damaged.is_empty() {
            HashMap::new()
        } else {
            self.kinds_of_documents()?
        };
        for (key, moved_to) in damaged {
            verified.flaws.push(Flaw::Result {
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

    fn owners(&self, index: &Index, hash: &Hash) -> Vec<Owner> {
        let named = index.owners.get(hash).into_iter().flatten();
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

    /// Drops the results that have lost a blob. That is a flaw only if nothing says how it was lost.
    fn drop_incomplete(&self, verified: &mut Verified, index: &Index, stale: &HashSet<Hash>) -> Result<(), StoreError> {
        let mut explained: HashSet<Hash> = stale.clone();
        for flaw in &verified.flaws {
            match flaw {
                Flaw::Blob { hash, .. } => explained.extend([*hash]),
                Flaw::Loan { digest, .. } => explained.extend([digest.hash]),
                _ => {}
            }
        }
        // What a damaged book said is told again by the next build that finds its output: nothing that may be in one is
        // dropped before.
        let mut book_lost = false;
        for file in self.plain_files(layout::QUARANTINE)? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            explained.extend(name.get(..64).and_then(|digits| digits.parse::<Hash>().ok()));
            book_lost |= file.path.extension().is_some_and(|extension| extension == "loans");
        }
        for (key, result, used) in &index.results {
            if self.missing(result)?.is_empty() {
                continue;
            }
            let _sweeping = self.sweeping()?;
            // It may have been collected meanwhile, or made again.
            let Some((result, _)) = self.peek(key)?.filter(|(now, _)| now == result) else {
                continue;
            };
            let missing = self.missing(&result)?;
            if missing.is_empty() {
                continue;
            }
            if book_lost && self.kind_of(&result).as_deref() == Some(LENT) {
                continue;
            }
            let unexplained = missing.iter().find(|digest| !explained.contains(&digest.hash));
            if let Some(digest) = unexplained {
                let output = result.outputs.iter().find(|(_, output)| *output == digest);
                verified.flaws.push(Flaw::Gone {
                    digest: *digest,
                    owner: Owner {
                        key: *key,
                        kind: self.kind_of(&result),
                        output: output.map(|(name, _)| name.clone()),
                    },
                });
            }
            let used = u64::try_from(*used).map_or(UNIX_EPOCH, |used| UNIX_EPOCH + Duration::from_nanos(used));
            self.bury(key, &result, used, Removal::Incomplete)?;
            fs::remove_file(&self.shard(layout::ACTIONS, key.hash()))?;
            verified.dropped += 1;
        }
        Ok(())
    }
}

/// Returns what is to be read, the largest first so that the last ones to finish are small.
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
        // Every process has a state of its own: each sample is another one.
        let random = RandomState::new();
        items.sort_by_cached_key(|item| match item {
            Item::Blob(hash, _) => random.hash_one(hash),
            Item::Lender(found) => random.hash_one(&found.name),
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
