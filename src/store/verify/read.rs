//! Reads and verifies the blobs of the store and the files that it borrows from.

use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::CheckControl;
use super::Damage;
use crate::digest::Hash;
use crate::fs;
use crate::store::Amount;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::quarantine;
use crate::store::stat;
use crate::store::survey::FoundFile;
use crate::store::survey::FoundIndex;

/// Something to read.
pub(super) enum Item {
    Blob(Hash, FoundFile),
    BorrowedFile(FoundIndex),
}

impl Item {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Blob(_, file) => file.stamp.size,
            Self::BorrowedFile(found) => found.index.file.len,
        }
    }
}

/// What reading an item found.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) blobs: Amount,
    pub(super) borrowed_files: Amount,
    pub(super) damage: Vec<Damage>,
}

impl Store {
    pub(super) fn read_items(
        &self,
        items: &[Item],
        threads: usize,
        control: CheckControl<'_>,
    ) -> Result<Seen, StoreError> {
        let total = items.iter().map(Item::bytes).sum();
        let (next, read) = (AtomicUsize::new(0), AtomicU64::new(0));
        let seen = Mutex::new(Seen::default());
        let failure: Mutex<Option<StoreError>> = Mutex::new(None);
        let work = || {
            while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                if (control.stop)() {
                    return;
                }
                let before = AtomicU64::new(0);
                let progress = |now: u64| {
                    let more = now.saturating_sub(before.swap(now, Ordering::Relaxed));
                    (control.progress)(read.fetch_add(more, Ordering::Relaxed) + more, total);
                };
                let outcome = match item {
                    Item::Blob(hash, file) => self.read_blob(hash, file, &progress),
                    Item::BorrowedFile(found) => self.read_borrowed_file(found, &progress),
                };
                match outcome {
                    Ok(found) => {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.damage.extend(found.damage);
                        seen.blobs.join(found.blobs);
                        seen.borrowed_files.join(found.borrowed_files);
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
        let (file, stamp) = match quarantine::open_own(&found.path) {
            Ok(opened) => opened,
            // It was removed or replaced by a borrowed blob meanwhile.
            Err(error) if error.is_not_found() => return Ok(seen),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                seen.damage
                    .extend(self.quarantine_unless_file(&found.path)?.map(Damage::from));
                return Ok(seen);
            }
            Err(error) => return Err(error.into()),
        };
        let digest = match stat::digest_open(&file, &found.path, progress) {
            Ok(digest) => Some(digest),
            // A read error of the disk is damage, too.
            Err(StoreError::Path(error)) if error.operation == "read" => None,
            Err(error) => return Err(error),
        };
        seen.blobs.add(stamp.size);
        if digest.is_none_or(|digest| digest.hash != *hash) {
            seen.damage.push(Damage::Blob {
                hash: *hash,
                bytes: stamp.size,
                moved_to: self.quarantine(hash, &found.path, &stamp, "")?,
                owners: Vec::new(),
            });
        }
        Ok(seen)
    }

    /// Reads a file that the store borrows from once, and checks the digest of the file and of each blob in it.
    fn read_borrowed_file(&self, found: &FoundIndex, progress: &dyn Fn(u64)) -> Result<Seen, StoreError> {
        let mut seen = Seen::default();
        let path = Path::new(&found.index.path);
        let Ok((file, stamp)) = fs::open_plain(path) else {
            return Ok(seen);
        };
        if !found.index.has_stamp(&stamp) {
            return Ok(seen);
        }
        let mut blobs = found.index.blobs.clone();
        blobs.sort_by_key(|blob| blob.start);
        let mut whole = blake3::Hasher::new();
        let mut block = vec![0; 1 << 20];
        let mut at = 0_u64;
        // Reads up to an offset, and adds the bytes to the digest of the file and to that of the part.
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
            for blob in &blobs {
                if blob.start < end {
                    // Blobs do not overlap in a file that forge wrote.
                    wrong.push(blob.bytes);
                    continue;
                }
                read_to(blob.start)?;
                end = blob.start.saturating_add(blob.bytes.len);
                if read_to(end)? != blob.bytes.hash {
                    wrong.push(blob.bytes);
                }
            }
            read_to(stamp.size)?;
            Ok(())
        };
        let unreadable = read_all().is_err();
        seen.borrowed_files.add(stamp.size);
        let is_whole = Hash::from_bytes(*whole.finalize().as_bytes()) == found.index.file.hash;
        if is_whole && wrong.is_empty() && !unreadable {
            return Ok(seen);
        }
        let now = fs::Stamp::of_file(&file, path)?;
        if now != stamp || !found.index.is_valid() {
            // It was changed meanwhile, so nothing is borrowed from it any more.
            return Ok(seen);
        }
        if unreadable {
            wrong = blobs.iter().map(|blob| blob.bytes).collect();
        }
        self.remove_from_index(&found.name, &wrong, &stamp)?;
        if wrong.is_empty() {
            seen.damage.push(Damage::BorrowedFile { path: path.to_owned() });
        }
        seen.damage.extend(wrong.into_iter().map(|digest| Damage::BorrowedBlob {
            digest,
            path: path.to_owned(),
            owners: Vec::new(),
        }));
        Ok(seen)
    }
}
