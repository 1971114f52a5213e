//! Borrowed blobs: blobs that lie in a file outside the store, as the index of that file says. Their bytes are verified
//! whenever they are read.

use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::File;
use crate::fs::FileLock;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::borrow_index::BorrowIndex;
use crate::store::borrow_index::BorrowedBlob;
use crate::store::layout;

/// The lock that is held while an output is replaced. It keeps the name that the first version gave it: another version of
/// forge that uses the same store may hold it.
const REPLACE_LOCK: &str = "loans";

/// Reads a borrowed blob from the file that contains it.
#[derive(Debug)]
pub(super) struct BorrowedReader {
    file: File,
    at: u64,
    left: u64,
    index: Arc<BorrowIndex>,
}

impl BorrowedReader {
    /// Returns the path of the file that contains the blob.
    pub(super) fn path(&self) -> &Path {
        Path::new(&self.index.path)
    }
}

impl Read for BorrowedReader {
    /// If the file ends too early, the blob ends there, and its digest shows it.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = fs::read_at(&self.file, &mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The store has copied back what only the old output contained. While this is held, the output may be replaced.
#[derive(Debug)]
pub struct CopiedBack {
    _lock: FileLock,
}

impl Store {
    /// Returns whether the blob can be borrowed. Does not read its bytes.
    pub(super) fn is_borrowed(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        Ok(self.indexes_with(digest)?.iter().any(|(index, _)| index.is_valid()))
    }

    /// Returns a file outside the store that contains the blob, if there is one. Does not read its bytes.
    pub(super) fn borrowed_file(&self, digest: &BlobDigest) -> Result<Option<PathBuf>, StoreError> {
        let indexes = self.indexes_with(digest)?;
        let valid = indexes.iter().find(|(index, _)| index.is_valid());
        Ok(valid.map(|(index, _)| PathBuf::from(&index.path)))
    }

    /// Opens a borrowed blob, if a file outside the store contains it.
    pub(super) fn open_borrowed(&self, digest: &BlobDigest) -> Result<Option<BorrowedReader>, StoreError> {
        for (index, start) in self.indexes_with(digest)? {
            let Ok((file, stamp)) = fs::open_plain(Path::new(&index.path)) else {
                continue;
            };
            if index.has_stamp(&stamp) {
                return Ok(Some(BorrowedReader {
                    file,
                    at: start,
                    left: digest.len,
                    index,
                }));
            }
        }
        Ok(None)
    }

    /// Removes a borrowed blob with wrong bytes from the index of its file, and forgets the digest of that file, so that the
    /// next build reads it again. Then reads the blob in every other file that contains it according to an index, and removes
    /// it there too if it is wrong, so that the next reader gets no wrong bytes. Returns the error for the caller.
    pub(super) fn remove_borrowed(
        &self,
        borrowed: &BorrowedReader,
        digest: &BlobDigest,
    ) -> Result<StoreError, StoreError> {
        let path = borrowed.path().to_owned();
        let stamp = Stamp::of_file(&borrowed.file, &path)?;
        self.remove_from_index(&borrowed.index.name(), &[*digest], &stamp)?;
        for (index, start) in self.indexes_with(digest)? {
            let Ok((file, stamp)) = fs::open_plain(Path::new(&index.path)) else {
                continue;
            };
            let mut other = BorrowedReader {
                file,
                at: start,
                left: digest.len,
                index: Arc::clone(&index),
            };
            if index.has_stamp(&stamp) && BlobDigest::of_reader(&mut other).ok() != Some(*digest) {
                self.remove_from_index(&index.name(), &[*digest], &stamp)?;
            }
        }
        Ok(StoreError::BorrowedChanged { digest: *digest, path })
    }

    /// Removes blobs from an index, and forgets the digest of the file with this stamp.
    pub(super) fn remove_from_index(&self, name: &str, wrong: &[BlobDigest], stamp: &Stamp) -> Result<(), StoreError> {
        let _lock = self.replacing(&Hash::of(name.as_bytes()))?;
        if let Some((_, mut index)) = self.index(name)? {
            index.blobs.retain(|blob| !wrong.contains(&blob.bytes));
            self.write_index(&index)?;
        }
        // Notes of builds with nothing to do rely on the stamp, too.
        for note in self.plain_files(&format!("{}/fresh", layout::RUNS))? {
            self.discard(&note.path)?;
        }
        self.forget(stamp)
    }

    /// Copies the blobs that only the file at `path` contains into the store, except for `kept`, before the file is replaced.
    /// The caller holds the lock of the output ([`Store::lock_output`]) and replaces the file while it holds the returned
    /// value. Without it, two outputs that contain the same blob could both be replaced, each because the other contains it.
    /// If the disk is too full for a copy, the blob is not copied, and is made again when it is needed.
    pub fn copy_back(&self, path: &Path, kept: &[BorrowedBlob]) -> Result<CopiedBack, StoreError> {
        // Most of it without the lock: copying takes time.
        self.copy_back_once(path, kept)?;
        let lock = self.lock_replacing_outputs()?;
        self.copy_back_once(path, kept)?;
        Ok(lock)
    }

    /// Waits for the lock that is held while outputs are replaced or removed.
    pub(super) fn lock_replacing_outputs(&self) -> Result<CopiedBack, StoreError> {
        let lock = FileLock::exclusive(&self.root().join(layout::LOCKS).join(REPLACE_LOCK))?;
        Ok(CopiedBack { _lock: lock })
    }

    fn copy_back_once(&self, path: &Path, kept: &[BorrowedBlob]) -> Result<(), StoreError> {
        let Some((prefix, path)) = prefix_and_path(path) else {
            return Ok(());
        };
        let mut kept: Vec<BlobDigest> = kept.iter().map(|blob| blob.bytes).collect();
        kept.sort_unstable();
        for name in self.index_names()?.iter().filter(|name| name.starts_with(&prefix)) {
            let Some((_, index)) = self.index(name)?.filter(|(_, index)| index.is_valid()) else {
                continue;
            };
            for blob in &index.blobs {
                let digest = &blob.bytes;
                if kept.binary_search(digest).is_ok() || self.mark_own_blob(digest)? {
                    continue;
                }
                let elsewhere = self.indexes_with(digest)?;
                if elsewhere
                    .iter()
                    .any(|(other, _)| other.path != path && other.is_valid())
                {
                    continue;
                }
                if self.free_space()? < digest.len {
                    return Ok(());
                }
                if let Some(borrowed) = self.open_borrowed(digest)? {
                    self.copy_into_store(borrowed, digest)?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the blob lies in the store itself, and marks it as used, so that no collector removes it as a copy of
    /// a borrowed blob.
    fn mark_own_blob(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        let start = self.own_lease();
        let _using = start.map(|_| self.using()).transpose()?;
        match (self.own_blob(digest)?, start) {
            (Some(stamp), Some(start)) if stamp.mtime_ns < start => {
                Ok(fs::set_modified(&self.blob_path(digest), Self::mark_time(start))?)
            }
            (found, _) => Ok(found.is_some()),
        }
    }

    /// Writes the index of a file that is complete but does not have its final name `path` yet. The index is synced, so
    /// nothing is lost if the process is killed between the rename and [`Store::borrow`].
    pub fn prepare_borrow(
        &self,
        path: &Path,
        unnamed: &Stamp,
        file: &BlobDigest,
        blobs: &[BorrowedBlob],
    ) -> Result<(), StoreError> {
        match BorrowIndex::of(path, unnamed, false, file, blobs).filter(|_| self.is_borrowing() && !blobs.is_empty()) {
            Some(index) => self.write_index(&index),
            None => Ok(()),
        }
    }

    /// Borrows blobs from a finished file: writes its index, synced, and then removes those blobs from the store. The caller
    /// holds the lock of the output ([`Store::lock_output`]) and has checked that the file with this stamp has this digest.
    /// Returns how many bytes were removed from the store.
    pub fn borrow(
        &self,
        path: &Path,
        stamp: &Stamp,
        file: &BlobDigest,
        blobs: &[BorrowedBlob],
    ) -> Result<u64, StoreError> {
        let index =
            BorrowIndex::of(path, stamp, true, file, blobs).filter(|index| self.is_borrowing() && index.is_valid());
        let Some(index) = index.filter(|index| !index.blobs.is_empty()) else {
            return Ok(0);
        };
        self.write_index(&index)?;
        let mut freed = 0;
        // Checked again: another program may have changed the file while the index was written.
        if index.is_valid() {
            for blob in &index.blobs {
                if self.own_blob(&blob.bytes)?.is_some() && fs::remove_file(&self.blob_path(&blob.bytes))? {
                    freed += blob.bytes.len;
                }
            }
        }
        self.remove_older_indexes(&index)?;
        Ok(freed)
    }

    /// Removes the indexes of files that had the path before, if no blob depends on them any more. Others are left for
    /// garbage collection, which can tell what was lost with them.
    fn remove_older_indexes(&self, newest: &BorrowIndex) -> Result<(), StoreError> {
        let prefix = BorrowIndex::prefix(&newest.path);
        let newest_name = newest.name();
        for name in self.index_names()? {
            if !name.starts_with(&prefix) || name == newest_name {
                continue;
            }
            let Some((_, index)) = self.index(&name)? else {
                continue;
            };
            let mut idle = index.is_same_file(newest);
            if !idle && !index.is_valid() {
                idle = true;
                for blob in &index.blobs {
                    idle = idle && self.has_blob(&blob.bytes)?;
                }
            }
            if idle {
                self.remove_index(&name)?;
            }
        }
        Ok(())
    }
}

/// Returns how the names of a path's indexes begin, and the path as they contain it.
fn prefix_and_path(path: &Path) -> Option<(String, String)> {
    let path = std::path::absolute(path).ok()?;
    let text = path.to_str()?;
    Some((BorrowIndex::prefix(text), text.to_owned()))
}
