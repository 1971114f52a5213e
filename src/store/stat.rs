//! What is known of files without reading them: the stat cache. `docs/design-notes.md` says when a stamp proves
//! anything.

use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::File;
use crate::fs::PathError;
use crate::fs::Stamp;
use crate::store::GRAIN;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::publish;
use crate::store::sealed;

const KIND: &str = "stat";
const VERSION: u64 = 1;
/// No entry is longer: five numbers, a digest, a head and a seal.
const ENTRY_CAP: u64 = 1024;

impl Store {
    /// Returns the digest of a file if it is known for the very stamp that the file has now. Reads no byte of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the file cannot be looked at. An entry that cannot be read is no entry.
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

    /// Remembers the digest of a file that was read through after `started`, between the two stamps. Says whether it
    /// was: not if the stamps differ, nor if they are so young that a later change could leave them as they are.
    pub fn remember(
        &self,
        before: &Stamp,
        after: &Stamp,
        started: SystemTime,
        digest: &BlobDigest,
    ) -> Result<bool, StoreError> {
        let proves = before == after && digest.len == after.size && is_settled(after, started);
        if !proves {
            return Ok(false);
        }
        let (name, path) = self.entry(after);
        let text = format!("{}{digest}", facts(after));
        let mut temp = self.temp()?;
        let at = temp.path().to_owned();
        io::Write::write_all(&mut temp, &sealed::seal(KIND, VERSION, &name, &text))
            .map_err(PathError::on(&at, "write"))?;
        // Not synced: a torn entry shows by its seal, and a lost one costs a reading.
        publish(temp, &path, Durability::Fast)?;
        Ok(true)
    }

    /// Remembers the digest of a file that this process has just written under a name that nobody knew, and then given
    /// its name. What may be missed is another program's edit of the named file within the very tick of the clock in
    /// which it got the name: `forge cache verify` reads outputs again, a build does not.
    pub fn remember_written(&self, path: &Path, digest: &BlobDigest) -> Result<Stamp, StoreError> {
        let stamp = plain(path)?;
        let long_ago = SystemTime::now() + 2 * GRAIN;
        self.remember(&stamp, &stamp, long_ago, digest)?;
        Ok(stamp)
    }

    /// Returns the digest of a file and the stamp it has. A file whose stamp is known is not read; any other is read
    /// through, and remembered if its stamp proves anything. `progress` is told how many bytes were read so far.
    ///
    /// # Errors
    ///
    /// [`StoreError::SourceChanged`] if the file changes, or another takes its place, while it is read;
    /// [`StoreError::Path`] if it cannot be read or is not a plain file.
    pub fn digest_file(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<(BlobDigest, Stamp), StoreError> {
        self.digest_noticing(path, progress, &|| {})
    }

    /// Does what [`Store::digest_file`] does, and first waits (two seconds at most) until the stamp of a file that has
    /// just been written is old enough to be remembered: then the next build need not read it again.
    pub fn digest_settled(&self, path: &Path, progress: &dyn Fn(u64)) -> Result<(BlobDigest, Stamp), StoreError> {
        let stamp = plain(path)?;
        if let Some(digest) = self.known(&stamp) {
            return Ok((digest, stamp));
        }
        self.settle(path)?;
        self.digest_file(path, progress)
    }

    /// Waits (two seconds at most) until the stamp of a file that has just been written is old enough to be remembered.
    pub fn settle(&self, path: &Path) -> Result<(), StoreError> {
        let wait = until_settled(&plain(path)?, SystemTime::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        Ok(())
    }

    /// Returns true if any change of a file at or after `now` must change this stamp of it.
    pub fn is_settled(&self, stamp: &Stamp, now: SystemTime) -> bool {
        is_settled(stamp, now)
    }

    /// Checks that a file still has the stamp that it had when it was digested.
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

    /// `after_reading` is where tests change the file.
    fn digest_noticing(
        &self,
        path: &Path,
        progress: &dyn Fn(u64),
        after_reading: &dyn Fn(),
    ) -> Result<(BlobDigest, Stamp), StoreError> {
        // Looked at before it is opened: opening a pipe would wait for somebody to write to it.
        let stamp = plain(path)?;
        if let Some(digest) = self.known(&stamp) {
            return Ok((digest, stamp));
        }
        let file = fs::open(path)?;
        let started = SystemTime::now();
        let before = Stamp::of_file(&file, path)?;
        let digest = digest_open(&file, path, progress)?;
        after_reading();
        let after = Stamp::of_file(&file, path)?;
        // The name, too, must still stand for the file that was read.
        if before != after || digest.len != after.size || Stamp::of_plain_file(path)? != Some(after) {
            return Err(StoreError::SourceChanged { path: path.to_owned() });
        }
        self.remember(&before, &after, started, &digest)?;
        Ok((digest, after))
    }

    /// Forgets what is known of the file with this stamp, so that it is read again before it is believed.
    pub(super) fn forget(&self, stamp: &Stamp) -> Result<(), StoreError> {
        fs::remove_file(&self.entry(stamp).1)?;
        Ok(())
    }

    /// Returns the name and the place of the entry for a file: one per device and number, so that a file that changes
    /// often has one entry, not many.
    fn entry(&self, stamp: &Stamp) -> (String, PathBuf) {
        let name = Hash::of(format!("{} {}", stamp.dev, stamp.ino).as_bytes());
        (name.to_string(), self.shard(layout::STAT, &name))
    }
}

fn plain(path: &Path) -> Result<Stamp, StoreError> {
    if let Some(stamp) = Stamp::of_plain_file(path)? {
        return Ok(stamp);
    }
    // Either nothing is there, which this says, or it is no plain file.
    Stamp::of(path)?;
    let error = io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain file");
    Err(PathError::new(path, "digest", error).into())
}

fn facts(stamp: &Stamp) -> String {
    format!(
        "{} {} {} {} {} ",
        stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns, stamp.ctime_ns
    )
}

pub(super) fn nanos(time: SystemTime) -> i128 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_nanos().cast_signed(),
        Err(error) => -(error.duration().as_nanos().cast_signed()),
    }
}

/// Returns true if any change at or after `started` must change the stamp. The ctime, which only the kernel sets, must be
/// older than the grain. So must be the mtime, for file systems that have no true ctime; but one that lies further in
/// the future than the grain proves as much, since a change would bring it back to the present.
pub(super) fn is_settled(stamp: &Stamp, started: SystemTime) -> bool {
    let started = nanos(started);
    let grain = GRAIN.as_nanos().cast_signed();
    let (mtime, ctime) = (i128::from(stamp.mtime_ns), i128::from(stamp.ctime_ns));
    ctime < started - grain && !(started - grain..=started + grain).contains(&mtime)
}

/// Returns how long to wait until [`is_settled`] can hold: never more than the grain and a moment. A stamp from the
/// future is not waited for.
fn until_settled(stamp: &Stamp, now: SystemTime) -> Duration {
    const MOMENT: i128 = 1_000_000;
    let now = nanos(now);
    let grain = GRAIN.as_nanos().cast_signed();
    let wait = [stamp.mtime_ns, stamp.ctime_ns]
        .into_iter()
        .map(|time| i128::from(time) + grain + MOMENT - now)
        .filter(|wait| (1..=grain + MOMENT).contains(wait))
        .max();
    wait.and_then(|wait| u64::try_from(wait).ok())
        .map_or(Duration::ZERO, Duration::from_nanos)
}

/// Digests an open file from where it stands, reading ahead in a thread of its own while rayon's threads hash.
pub(super) fn digest_open(file: &File, path: &Path, progress: &dyn Fn(u64)) -> Result<BlobDigest, StoreError> {
    // Large enough for all threads to have work, small enough for three of them to be nothing beside a model.
    const BLOCK: usize = 8 << 20;
    const BLOCKS: usize = 3;
    let mut hasher = blake3::Hasher::new();
    let mut len = 0_u64;
    let size = Stamp::of_file(file, path)?.size;
    // One byte more than a small file has, so that its end shows in the first reading.
    let mut first = vec![0; usize::try_from(size.saturating_add(1)).unwrap_or(BLOCK).min(BLOCK)];
    let read = fill(file, &mut first).map_err(PathError::on(path, "read"))?;
    let mut take = |bytes: &[u8]| {
        hasher.update_rayon(bytes);
        len += bytes.len() as u64;
        progress(len);
        len
    };
    take(&first[..read]);
    if read == first.len() {
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
                if take(&block) > size {
                    // It grows: no use in running after its end, the length shows the change.
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
    Ok(BlobDigest { hash, len })
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
    use std::time::Instant;

    use super::*;

    fn at(mtime: i64, ctime: i64) -> Stamp {
        Stamp {
            dev: 1,
            ino: 2,
            size: 3,
            mtime_ns: mtime * 1_000_000_000,
            ctime_ns: ctime * 1_000_000_000,
        }
    }

    fn second(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_stamp_proves_something_only_when_it_was_older_than_the_grain() {
        assert!(is_settled(&at(100, 100), second(103)));
        assert!(
            !is_settled(&at(100, 100), second(102)),
            "as old as the grain is not older"
        );
        assert!(!is_settled(&at(100, 100), second(100)));
        assert!(!is_settled(&at(50, 100), second(101)), "mtime put back, ctime young");
        assert!(!is_settled(&at(100, 50), second(101)), "no true ctime, mtime young");
        assert!(!is_settled(&at(100, 100), second(90)), "the clock was set back");
        assert!(
            is_settled(&at(9_000_000, 100), second(103)),
            "an mtime far in the future cannot come by itself"
        );
    }

    #[test]
    fn the_wait_is_never_longer_than_the_grain_and_a_moment() {
        assert_eq!(until_settled(&at(100, 100), second(103)), Duration::ZERO);
        let wait = until_settled(&at(100, 101), second(102));
        assert_eq!(wait, Duration::from_millis(1001));
        assert!(is_settled(&at(100, 101), second(102) + wait));
        assert_eq!(until_settled(&at(9_000_000, 9_000_000), second(103)), Duration::ZERO);
    }

    #[test]
    fn a_change_between_the_two_looks_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let path = dir.path().join("source");
        std::fs::write(&path, b"aaaa").unwrap();
        let is_noticed = |change: &dyn Fn()| {
            let before = std::fs::metadata(&path).unwrap();
            let outcome = store.digest_noticing(&path, &|_| {}, &|| {
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
