//! The stat cache: digests of files by their stamps. `docs/design-notes.md` explains when a stamp proves that a file is
//! unchanged.

use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;

use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::File;
use crate::fs::Moment;
use crate::fs::NamedFile;
use crate::fs::PathError;
use crate::fs::Stamp;
use crate::store::ErrorClass;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::sealed;

const KIND: &str = "stat";
const VERSION: u64 = 1;
/// The maximum size of an entry, in bytes: five numbers, a digest, a first line and a checksum.
const ENTRY_CAP: u64 = 1024;

impl Store {
    /// Returns the digest of a file if it is known for the file's current stamp. Does not read the file.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the file's stamp cannot be read. An entry that cannot be read counts as missing.
    pub fn known_digest(&self, path: &Path) -> Result<Option<BlobDigest>, StoreError> {
        Ok(self.known(&Stamp::of(path)?))
    }

    /// Returns the digest of the file that has this stamp, if it is known.
    pub fn known(&self, stamp: &Stamp) -> Option<BlobDigest> {
        let (name, path) = self.entry(stamp);
        let bytes = fs::read_plain(&path, ENTRY_CAP).ok()?.0;
        let text = sealed::unseal(KIND, VERSION, &name, &bytes).ok()?;
        let digest = text.strip_prefix(&facts(stamp))?.parse::<BlobDigest>().ok()?;
        (digest.len == stamp.size).then_some(digest)
    }

    /// Returns the length in bytes of the file that an entry describes; `None` if the entry cannot be read.
    pub(super) fn noted_size(&self, name: &Hash) -> Option<u64> {
        let bytes = fs::read_plain(&self.shard(layout::STAT, name), ENTRY_CAP).ok()?.0;
        let text = sealed::unseal(KIND, VERSION, &name.to_string(), &bytes).ok()?;
        text.split(' ').nth(2)?.parse().ok()
    }

    /// Stores the digest of a file that was read after `started`, between the two stamps. Returns whether it was stored: not if
    /// the stamps differ, if they are so young that a later change could leave them the same, or if the entry cannot be written.
    /// A missing entry costs only another reading, so it must not fail a step.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the disk is full: the next write would fail, too.
    pub fn remember(
        &self,
        before: &Stamp,
        after: &Stamp,
        started: &Moment,
        digest: &BlobDigest,
    ) -> Result<bool, StoreError> {
        let proves = before == after && digest.len == after.size && after.is_settled(started);
        if !proves {
            return Ok(false);
        }
        let (name, path) = self.entry(after);
        let text = format!("{}{digest}", facts(after));
        let mut temp = self.temp()?;
        let at = temp.path().to_owned();
        io::Write::write_all(&mut temp, &sealed::seal(KIND, VERSION, &name, &text))
            .map_err(PathError::on(&at, "write"))?;
        // Not synced: a damaged entry is detected by its checksum, and a missing one costs another reading.
        match self.publish(temp, &path, Durability::Fast) {
            Ok(()) => Ok(true),
            Err(error) if error.class() == ErrorClass::DiskFull => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Reads a file once more that this process has just written and named, and checks that it contains what was written. Returns
    /// its stamp, and stores its digest if the stamp is old enough. After a file gets its name, another program can change it
    /// and reset its times before the stamp is read, so the stamp alone does not prove which bytes it belongs to. Only reading
    /// the file after the clock has advanced does: see [`fs::settle`]. `go_on` gets the number of bytes read so far; if it
    /// returns false, the reading stops.
    ///
    /// # Errors
    ///
    /// [`StoreError::OutputChanged`] if the bytes differ or change, or another file has the path now; [`StoreError::Stopped`] if
    /// `go_on` stopped it.
    pub fn confirm(
        &self,
        written: &NamedFile,
        digest: &BlobDigest,
        go_on: &dyn Fn(u64) -> bool,
    ) -> Result<Stamp, StoreError> {
        let path = written.path();
        let changed = || StoreError::OutputChanged { path: path.to_owned() };
        let started = Moment::now();
        let before = written.stamp()?.ok_or_else(changed)?;
        let found = digest_while(written.rewound()?, path, go_on)?;
        let found = found.ok_or_else(|| StoreError::Stopped { path: path.to_owned() })?;
        let after = written.stamp()?.ok_or_else(changed)?;
        if before != after || found != *digest {
            return Err(changed());
        }
        self.remember(&before, &after, &started, digest)?;
        Ok(after)
    }

    /// Returns the digest and the stamp of a file. A file whose stamp is known is not read. Any other file is read, and its digest
    /// is stored if its stamp is old enough. Calls `progress` with the number of bytes read so far.
    ///
    /// # Errors
    ///
    /// [`StoreError::SourceChanged`] if the file changes or is replaced while it is read; [`StoreError::Path`] if it cannot be read
    /// or is not a regular file.
    pub fn digest_file(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<(BlobDigest, Stamp), StoreError> {
        self.digest_noticing(path, progress, false, &|| {})
    }

    /// Does what [`Store::digest_file`] does, and first waits ([`fs::settle`]) until the stamp of a new file is old enough, so that
    /// the next build need not read the file again.
    pub fn digest_settled(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<(BlobDigest, Stamp), StoreError> {
        self.digest_noticing(path, progress, true, &|| {})
    }

    /// Checks that a file still has the stamp that it had when it was hashed.
    ///
    /// # Errors
    ///
    /// [`StoreError::SourceChanged`] if not.
    pub fn check_unchanged(&self, path: &Path, stamp: &Stamp) -> Result<(), StoreError> {
        if Stamp::of_plain_file(path)? == Some(*stamp) {
            return Ok(());
        }
        Err(StoreError::SourceChanged { path: path.to_owned() })
    }

    /// With `settles`, waits until the stamp is old enough. Tests change the file in `after_reading`.
    fn digest_noticing(
        &self,
        path: &Path,
        progress: &dyn Fn(u64),
        settles: bool,
        after_reading: &dyn Fn(),
    ) -> Result<(BlobDigest, Stamp), StoreError> {
        // Examined before it is opened: opening a pipe would wait for a writer.
        let stamp = plain(path)?;
        if let Some(digest) = self.known(&stamp) {
            return Ok((digest, stamp));
        }
        let file = fs::open(path)?;
        let (before, started) = if settles {
            fs::settle(&file, path)?
        } else {
            let started = Moment::now();
            (Stamp::of_file(&file, path)?, started)
        };
        let digest = digest_open(&file, path, progress)?;
        after_reading();
        let after = Stamp::of_file(&file, path)?;
        // The path must still lead to the file that was read.
        if before != after || digest.len != after.size || Stamp::of_plain_file(path)? != Some(after) {
            return Err(StoreError::SourceChanged { path: path.to_owned() });
        }
        self.remember(&before, &after, &started, &digest)?;
        Ok((digest, after))
    }

    /// Removes the entry of the file with this stamp, so that the file is read again.
    pub(super) fn forget(&self, stamp: &Stamp) -> Result<(), StoreError> {
        self.discard(&self.entry(stamp).1)?;
        Ok(())
    }

    /// Returns the name and the path of a file's entry. There is one per device and inode number, so a file that changes often
    /// has only one entry.
    fn entry(&self, stamp: &Stamp) -> (String, PathBuf) {
        let name = Hash::of(format!("{} {}", stamp.dev, stamp.ino).as_bytes());
        (name.to_string(), self.shard(layout::STAT, &name))
    }
}

fn plain(path: &Path) -> Result<Stamp, StoreError> {
    if let Some(stamp) = Stamp::of_plain_file(path)? {
        return Ok(stamp);
    }
    // Opening it returns the right error.
    fs::open(path)?;
    Err(PathError::new(path, "open", io::ErrorKind::InvalidInput.into()).into())
}

fn facts(stamp: &Stamp) -> String {
    format!(
        "{} {} {} {} {} ",
        stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns, stamp.ctime_ns
    )
}

/// Returns the digest of an open file from its current position. Another thread reads ahead while rayon's threads hash, unless
/// rayon has one thread only.
pub(super) fn digest_open(file: &File, path: &Path, progress: &dyn Fn(u64)) -> Result<BlobDigest, StoreError> {
    let go_on = |len| {
        progress(len);
        true
    };
    // `go_on` never stops it.
    let digest = digest_while(file, path, &go_on)?;
    digest.ok_or_else(|| StoreError::Stopped { path: path.to_owned() })
}

/// Does what [`digest_open`] does for as long as `go_on` returns true; `None` if it did not.
fn digest_while(file: &File, path: &Path, go_on: &dyn Fn(u64) -> bool) -> Result<Option<BlobDigest>, StoreError> {
    // Large enough to occupy all threads, and small compared with a model.
    const BLOCK: usize = 8 << 20;
    const BLOCKS: usize = 3;
    let mut hasher = blake3::Hasher::new();
    let mut len = 0_u64;
    let size = Stamp::of_file(file, path)?.size;
    // One byte more than a small file has, so that the first read finds its end.
    let mut first = vec![0; usize::try_from(size.saturating_add(1)).unwrap_or(BLOCK).min(BLOCK)];
    let read = fill(file, &mut first).map_err(PathError::on(path, "read"))?;
    let mut stopped = false;
    let mut take = |bytes: &[u8]| {
        hasher.update_rayon(bytes);
        len += bytes.len() as u64;
        stopped |= !go_on(len);
        // If the file grows, the length shows the change, so the rest is not read.
        !stopped && len <= size
    };
    if !take(&first[..read]) || read < first.len() {
        // A small file, or it was stopped.
    } else if rayon::current_num_threads() == 1 {
        let mut block = vec![0; BLOCK];
        loop {
            let read = fill(file, &mut block).map_err(PathError::on(path, "read"))?;
            if read == 0 || !take(&block[..read]) {
                break;
            }
        }
    } else {
        let outcome = std::thread::scope(|scope| {
            let (full, filled) = mpsc::sync_channel::<io::Result<Vec<u8>>>(BLOCKS);
            let (empty, emptied) = mpsc::channel::<Vec<u8>>();
            for _ in 0..BLOCKS {
                empty.send(vec![0; BLOCK]).ok();
            }
            scope.spawn(move || {
                while let Ok(mut block) = emptied.recv() {
                    let outcome = fill(file, &mut block).map(|read| block.truncate(read));
                    let last = outcome.is_err() || block.is_empty();
                    if full.send(outcome.map(|()| block)).is_err() || last {
                        break;
                    }
                }
            });
            while let Ok(block) = filled.recv() {
                let mut block = block?;
                if block.is_empty() {
                    break;
                }
                if !take(&block) {
                    break;
                }
                block.resize(BLOCK, 0);
                empty.send(block).ok();
            }
            Ok(())
        });
        outcome.map_err(PathError::on(path, "read"))?;
    }
    let hash = Hash::from_bytes(*hasher.finalize().as_bytes());
    Ok((!stopped).then_some(BlobDigest { hash, len }))
}

/// Reads until the block is full or the file ends.
fn fill(mut file: &File, block: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while at < block.len() {
        match file.read(&mut block[at..]) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_change_between_the_two_checks_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let path = dir.path().join("source");
        std::fs::write(&path, b"aaaa").unwrap();
        let is_noticed = |change: &dyn Fn()| {
            let before = std::fs::metadata(&path).unwrap();
            let outcome = store.digest_noticing(&path, &|_| {}, false, &|| {
                // As many ticks of the kernel's clock as it takes until a change shows.
                let start = Instant::now();
                loop {
                    change();
                    let now = std::fs::metadata(&path).ok().map(|facts| Stamp::from(&facts));
                    if now != Some(Stamp::from(&before)) || start.elapsed() > Duration::from_secs(5) {
                        break;
                    }
                }
            });
            matches!(outcome, Err(StoreError::SourceChanged { path: named }) if named == path)
        };
        assert!(is_noticed(&|| {
            let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(b"more").unwrap();
        }));
        assert!(
            is_noticed(&|| std::fs::write(&path, b"bbbbbbbb").unwrap()),
            "in place, same size"
        );
        assert!(is_noticed(&|| {
            std::fs::write(dir.path().join("other"), b"cccccccc").unwrap();
            std::fs::rename(dir.path().join("other"), &path).unwrap();
        }));
        assert!(
            is_noticed(&|| std::fs::remove_file(&path).unwrap_or_default()),
            "removed"
        );
    }

    #[test]
    fn large_files_digest_as_b3sum_does_and_progress_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        for size in [0, 1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 33 << 20] {
            let bytes: Vec<u8> = (0..size as usize).map(|at| (at / 7) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            let seen = std::cell::RefCell::new(vec![]);
            let digest = digest_open(&fs::open(&path).unwrap(), &path, &|len| seen.borrow_mut().push(len)).unwrap();
            assert_eq!(digest, BlobDigest::of(&bytes), "{size}");
            assert!(seen.borrow().is_sorted());
            assert_eq!(seen.borrow().last(), Some(&size), "{size}");
        }
    }
}
