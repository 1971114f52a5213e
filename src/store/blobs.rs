//! The blobs of the store, each under the BLAKE3 hash of its bytes.

use std::io;
use std::io::BufWriter;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use crate::digest::BlobDigest;
use crate::digest::DigestWriter;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::File;
use crate::fs::FileKind;
use crate::fs::PathError;
use crate::fs::Stamp;
use crate::fs::TempFile;
use crate::fs::map::Map;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::borrow::BorrowedReader;
use crate::store::layout;
use crate::store::quarantine;

const BLOCK: usize = 1 << 20;

/// How often a blob is searched, first in the store and then in the files that the store borrows from. A blob may move between
/// the two searches, but it is in its new place before it leaves the old one. So the second attempt finds it.
const ATTEMPTS: usize = 2;

/// An open blob: in the store, or borrowed.
enum Opened {
    Own(File, PathBuf),
    Borrowed(BorrowedReader),
}

impl Opened {
    fn path(&self) -> &Path {
        match self {
            Self::Own(_, path) => path,
            Self::Borrowed(borrowed) => borrowed.path(),
        }
    }
}

impl Read for Opened {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Own(file, _) => file.read(buffer),
            Self::Borrowed(borrowed) => borrowed.read(buffer),
        }
    }
}

/// A blob being written. [`BlobWriter::commit`] stores it. If the writer is dropped before, nothing is left.
#[derive(Debug)]
pub struct BlobWriter {
    store: Store,
    path: PathBuf,
    writer: BufWriter<DigestWriter<TempFile>>,
    failed: bool,
}

impl BlobWriter {
    /// Stores what was written as a blob: synced, read-only, under its digest. If the blob exists already, that one is kept.
    ///
    /// # Errors
    ///
    /// [`StoreError::WriteFailed`] if any write failed before, even if the caller continued; [`StoreError::Path`].
    pub fn commit(self) -> Result<BlobDigest, StoreError> {
        if self.failed {
            return Err(StoreError::WriteFailed { path: self.path });
        }
        let inner = self
            .writer
            .into_inner()
            .map_err(|error| PathError::new(&self.path, "write", error.into_error()))?;
        let (temp, digest) = inner.finish();
        self.store.adopt_temp(temp, &digest, true)?;
        Ok(digest)
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = self.writer.write(bytes);
        self.note(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.writer.flush();
        self.note(outcome)
    }
}

impl BlobWriter {
    /// Records a failed write, and adds the path to its error.
    fn note<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.map_err(|error| {
            if error.kind() == io::ErrorKind::Interrupted {
                return error;
            }
            self.failed = true;
            io::Error::new(error.kind(), PathError::new(&self.path, "write", error))
        })
    }
}

impl Store {
    /// Stores bytes as a blob.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobDigest, StoreError> {
        let digest = BlobDigest::of(bytes);
        let path = self.blob_path(&digest);
        if self.existing_blob(&path, &digest, true)? {
            return Ok(digest);
        }
        let mut temp = self.temp()?;
        let at = temp.path().to_owned();
        temp.write_all(bytes).map_err(PathError::on(&at, "write"))?;
        self.adopt_temp(temp, &digest, true)?;
        Ok(digest)
    }

    /// Starts a blob that is written in parts.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        let temp = self.temp()?;
        let path = temp.path().to_owned();
        let writer = BufWriter::with_capacity(BLOCK, DigestWriter::new(temp));
        Ok(BlobWriter {
            store: self.clone(),
            path,
            writer,
            failed: false,
        })
    }

    /// Moves a finished file from a [`super::Scratch`] into the store. A file with several hard links is copied, so that the file
    /// of another program does not become a blob. The program that wrote it must have ended: if the file is still open for
    /// writing, the blob could change.
    ///
    /// # Errors
    ///
    /// [`StoreError::SourceChanged`] if the file changes while it is hashed. The file is removed then, as after success.
    pub fn adopt(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<BlobDigest, StoreError> {
        if !fs::is_only_name(path)? {
            return self.adopt_by_copy(path, progress);
        }
        let temp = TempFile::adopt(path)?;
        let before = Stamp::of_file(temp.file(), path)?;
        let digest = super::stat::digest_open(temp.file(), path, progress)?;
        if Stamp::of_file(temp.file(), path)? != before || digest.len != before.size {
            return Err(StoreError::SourceChanged { path: path.to_owned() });
        }
        self.adopt_temp(temp, &digest, true)?;
        Ok(digest)
    }

    fn adopt_by_copy(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<BlobDigest, StoreError> {
        let file = fs::open(path)?;
        let before = Stamp::of_file(&file, path)?;
        let mut writer = self.writer()?;
        let mut block = vec![0; BLOCK];
        let mut len = 0_u64;
        // One byte more than its length shows that the file grows.
        let mut input = (&file).take(before.size.saturating_add(1));
        loop {
            let read = match input.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(PathError::new(path, "read", error).into()),
            };
            writer
                .write_all(&block[..read])
                .map_err(PathError::on(&writer.path.clone(), "write"))?;
            len += read as u64;
            progress(len);
        }
        if Stamp::of_file(&file, path)? != before || len != before.size {
            return Err(StoreError::SourceChanged { path: path.to_owned() });
        }
        let digest = writer.commit()?;
        fs::remove_file(path)?;
        Ok(digest)
    }

    /// Returns whether the blob exists with the right length. Does not read its bytes.
    pub fn has(&self, digest: &BlobDigest) -> bool {
        self.has_blob(digest).unwrap_or(false)
    }

    /// Returns whether the blob exists with the right length, or the error of examining it.
    pub(super) fn has_blob(&self, digest: &BlobDigest) -> Result<bool, StoreError> {
        for _ in 0..ATTEMPTS {
            if self.own_blob(digest)?.is_some() || self.is_borrowed(digest)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the stamp of a blob that lies in the store itself, with the right length.
    pub(super) fn own_blob(&self, digest: &BlobDigest) -> Result<Option<Stamp>, StoreError> {
        let found = fs::facts(&self.blob_path(digest))?;
        let whole = found.filter(|found| found.kind == FileKind::Plain && found.stamp.size == digest.len);
        Ok(whole.map(|found| found.stamp))
    }

    /// Reads a small blob and verifies it.
    ///
    /// # Errors
    ///
    /// [`StoreError::TooLarge`] if the blob is larger than `cap`, [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn read(&self, digest: &BlobDigest, cap: u64) -> Result<Vec<u8>, StoreError> {
        if digest.len > cap {
            return Err(StoreError::TooLarge { digest: *digest, cap });
        }
        let mut opened = self.open_any(digest)?;
        let path = opened.path().to_owned();
        let mut bytes = Vec::new();
        // One byte more than the expected length shows that the blob is longer.
        (&mut opened)
            .take(digest.len.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(PathError::on(&path, "read"))?;
        let found = BlobDigest::of(&bytes);
        self.verdict_of(digest, found, &opened)?;
        Ok(bytes)
    }

    /// Reads a small blob for an explanation, and verifies it. Returns `None` if it is missing or damaged. A damaged blob is not
    /// quarantined: a check finds and reports it.
    pub fn read_if_intact(&self, digest: &BlobDigest, cap: u64) -> Option<Vec<u8>> {
        if digest.len > cap {
            return None;
        }
        let opened = self.open_any(digest).ok()?;
        let mut bytes = Vec::new();
        opened.take(digest.len).read_to_end(&mut bytes).ok()?;
        (BlobDigest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Maps a blob into memory and verifies it. A borrowed blob is read into memory instead, because other programs may change
    /// its file while it is mapped.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn map(&self, digest: &BlobDigest) -> Result<Map, StoreError> {
        let mut opened = self.open_any(digest)?;
        let path = opened.path().to_owned();
        let map = match &mut opened {
            Opened::Own(file, _) => Map::of(file).map_err(PathError::on(&path, "map"))?,
            Opened::Borrowed(borrowed) => {
                let mut bytes = Vec::new();
                borrowed.read_to_end(&mut bytes).map_err(PathError::on(&path, "read"))?;
                Map::held(bytes)
            }
        };
        self.verdict_of(digest, BlobDigest::of_large(&map), &opened)?;
        Ok(map)
    }

    /// Copies a blob to a writer and verifies it. What was written may be used only after success.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`], [`StoreError::Damaged`]; an error of `out` is a [`StoreError::Path`] that names the blob.
    pub fn copy_to(&self, digest: &BlobDigest, out: &mut dyn Write) -> Result<(), StoreError> {
        let mut opened = self.open_any(digest)?;
        self.copy_opened(&mut opened, digest, out)
    }

    fn copy_opened(&self, opened: &mut Opened, digest: &BlobDigest, out: &mut dyn Write) -> Result<(), StoreError> {
        let path = opened.path().to_owned();
        let mut hasher = DigestWriter::new(io::sink());
        let mut block = vec![0; BLOCK];
        loop {
            let read = match opened.read(&mut block) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(PathError::new(&path, "read", error).into()),
            };
            hasher
                .write_all(&block[..read])
                .map_err(PathError::on(&path, "digest"))?;
            if hasher.len() > digest.len {
                break;
            }
            out.write_all(&block[..read])
                .map_err(PathError::on(&path, "copy out"))?;
        }
        self.verdict_of(digest, hasher.finish().1, opened)
    }

    /// Reads a blob and verifies it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`], [`StoreError::Damaged`].
    pub fn verify(&self, digest: &BlobDigest) -> Result<(), StoreError> {
        self.copy_to(digest, &mut io::sink())
    }

    /// Copies a borrowed blob into the store.
    pub(super) fn copy_into_store(&self, borrowed: BorrowedReader, digest: &BlobDigest) -> Result<(), StoreError> {
        let mut temp = self.temp()?;
        match self.copy_opened(&mut Opened::Borrowed(borrowed), digest, &mut temp) {
            Ok(()) => self.adopt_temp(temp, digest, false),
            // A blob that the file does not contain any more cannot be copied.
            Err(StoreError::BorrowedChanged { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a blob to `path` as a new file (a reflink or a copy, never a hard link). It is verified before it atomically replaces
    /// the file at `path`, and read once more under its name ([`Store::confirm`]). The directory must exist. Returns the stamp
    /// of the file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Missing`], [`StoreError::Damaged`]; the file at `path` is not changed then.
    /// [`StoreError::OutputChanged`] if another program changed the file after it got its name.
    pub fn materialize(&self, digest: &BlobDigest, path: &Path) -> Result<Stamp, StoreError> {
        let (file, blob) = match self.open_any(digest)? {
            Opened::Own(file, blob) => (file, blob),
            mut borrowed @ Opened::Borrowed(_) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let mut temp = TempFile::new_in(parent.unwrap_or(Path::new(".")))?;
                self.copy_opened(&mut borrowed, digest, &mut temp)?;
                return self.confirm(&temp.persist(path, Durability::Synced)?, digest, &|_| true);
            }
        };
        let mut hasher = blake3::Hasher::new();
        let mut len = 0_u64;
        let placed = fs::place(&file, &blob, path, &mut |bytes| {
            if let Some(bytes) = bytes {
                hasher.update_rayon(bytes);
                len += bytes.len() as u64;
                return Ok(());
            }
            let hash = Hash::from_bytes(*hasher.finalize().as_bytes());
            self.verdict(digest, BlobDigest { hash, len }, &file, &blob)
        });
        self.confirm(&placed?, digest, &|_| true)
    }

    /// Opens a blob in the store, or borrowed.
    fn open_any(&self, digest: &BlobDigest) -> Result<Opened, StoreError> {
        let mut missing = None;
        for _ in 0..ATTEMPTS {
            match self.open_blob(digest) {
                Err(error @ StoreError::Missing { .. }) => missing = Some(error),
                opened => return opened.map(|(file, path)| Opened::Own(file, path)),
            }
            if let Some(borrowed) = self.open_borrowed(digest)? {
                return Ok(Opened::Borrowed(borrowed));
            }
        }
        Err(missing.unwrap_or_else(|| StoreError::Missing {
            digest: *digest,
            path: self.blob_path(digest),
        }))
    }

    fn verdict_of(&self, digest: &BlobDigest, found: BlobDigest, opened: &Opened) -> Result<(), StoreError> {
        match opened {
            Opened::Own(file, path) => self.verdict(digest, found, file, path),
            Opened::Borrowed(_) if found == *digest => Ok(()),
            Opened::Borrowed(borrowed) => Err(self.remove_borrowed(borrowed, digest)?),
        }
    }

    /// Opens a blob in the store, with the right length.
    pub(super) fn open_blob(&self, digest: &BlobDigest) -> Result<(File, PathBuf), StoreError> {
        let path = self.blob_path(digest);
        let (file, stamp) = match quarantine::open_own(&path) {
            Ok(opened) => opened,
            Err(error) if error.is_not_found() || error.kind() == io::ErrorKind::InvalidInput => {
                return Err(StoreError::Missing { digest: *digest, path });
            }
            Err(error) => return Err(error.into()),
        };
        if stamp.size != digest.len {
            let found = super::stat::digest_open(&file, &path, &|_| {})?;
            self.verdict(digest, found, &file, &path)?;
        }
        Ok((file, path))
    }

    /// Returns the path of a blob in the store.
    pub(super) fn blob_path(&self, digest: &BlobDigest) -> PathBuf {
        self.shard(layout::CAS, &digest.hash)
    }

    fn verdict(&self, digest: &BlobDigest, found: BlobDigest, file: &File, path: &Path) -> Result<(), StoreError> {
        if found == *digest {
            return Ok(());
        }
        // A digest with the right hash and a wrong length names a blob that does not exist; the existing one may be intact.
        if found.hash == digest.hash {
            return Err(StoreError::Missing {
                digest: *digest,
                path: path.to_owned(),
            });
        }
        let stamp = Stamp::of_file(file, path)?;
        let moved_to = self.quarantine(&digest.hash, path, &stamp, "")?;
        Err(StoreError::Damaged {
            digest: *digest,
            found,
            moved_to,
        })
    }

    /// Stores a finished temporary file as a blob, unless the blob exists already (with `borrowed`: or can be borrowed).
    fn adopt_temp(&self, temp: TempFile, digest: &BlobDigest, borrowed: bool) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        if self.existing_blob(&path, digest, borrowed)? {
            return Ok(());
        }
        if let Some(start) = self.own_lease() {
            temp.set_modified(Self::mark_time(start))?;
        }
        temp.set_mode(0o444)?;
        self.publish(temp, &path, Durability::Synced)
    }

    /// Returns whether the blob exists and is synced (with `borrowed`: or can be borrowed), and marks it as used. A blob of a
    /// wrong length is quarantined.
    pub(super) fn existing_blob(&self, path: &Path, digest: &BlobDigest, borrowed: bool) -> Result<bool, StoreError> {
        let start = self.own_lease();
        let _using = start.map(|_| self.using()).transpose()?;
        match fs::facts(path)?.filter(|found| found.kind == FileKind::Plain) {
            None => {}
            Some(found) if found.stamp.size == digest.len => {
                let marked = match start.filter(|start| found.stamp.mtime_ns < *start) {
                    Some(start) => fs::set_modified(path, Self::mark_time(start))?,
                    None => true,
                };
                if marked {
                    // Its writer may not have synced the directory yet, and a result that names this blob must not be synced
                    // before the blob is.
                    if let Some(parent) = path.parent() {
                        fs::sync_dir(parent)?;
                    }
                    return Ok(true);
                }
            }
            Some(found) => {
                self.quarantine(&digest.hash, path, &found.stamp, "")?;
            }
        }
        if borrowed && self.is_borrowed(digest)? {
            self.sync_indexes()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Quarantines a damaged file if its path still leads to the file that was found damaged. Returns its path in the quarantine.
    pub(super) fn quarantine(
        &self,
        hash: &Hash,
        path: &Path,
        broken: &Stamp,
        suffix: &str,
    ) -> Result<PathBuf, StoreError> {
        let _lock = self.replacing(hash)?;
        self.quarantine_locked(hash, path, broken, suffix)
    }

    /// Does what [`Store::quarantine`] does. The caller holds the lock.
    pub(super) fn quarantine_locked(
        &self,
        hash: &Hash,
        path: &Path,
        broken: &Stamp,
        suffix: &str,
    ) -> Result<PathBuf, StoreError> {
        let to = self.free_quarantine_name(hash, suffix)?;
        match fs::facts(path)? {
            Some(now) if (now.stamp.dev, now.stamp.ino) == (broken.dev, broken.ino) => fs::rename(path, &to)?,
            // Another process has quarantined it already, and perhaps made it again.
            _ => {}
        }
        Ok(to)
    }

    /// Returns a free path in the quarantine.
    fn free_quarantine_name(&self, hash: &Hash, suffix: &str) -> Result<PathBuf, StoreError> {
        let directory = self.root().join(layout::QUARANTINE);
        fs::create_dir_all(&directory)?;
        quarantine::free_name(&directory, hash, suffix)
    }
}
