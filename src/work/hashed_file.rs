//! A large file that is written and hashed at once: the producer, the disk and each hash have a thread of their own, so
//! that all take as long as the slowest (SHA-256), not as long as their sum. If forge may use one thread only, one does it all.

use std::io;
use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::SyncSender;
use std::thread;
use std::thread::ScopedJoinHandle;

use sha2::Digest as _;
use sha2::Sha256;

use crate::digest::BlobDigest;
use crate::digest::DigestWriter;
use crate::digest::Hash;

/// How much is handed on at once.
const BLOCK: usize = 1 << 20;
/// How many blocks may wait for one thread.
const AHEAD: usize = 4;

/// Writes what `fill` produces to `file`, and returns its digest and its SHA-256 in hexadecimal digits.
///
/// # Errors
///
/// Those of `file` first (`fill` sees no more of them than that writing fails), then those of `fill`.
pub(super) fn write_hashed(
    file: &mut (dyn Write + Send),
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(BlobDigest, String)> {
    if rayon::current_num_threads() == 1 {
        return write_hashed_here(file, fill);
    }
    thread::scope(|scope| {
        let (to_file, blocks) = mpsc::sync_channel::<Arc<Vec<u8>>>(AHEAD);
        let writing = scope.spawn(move || {
            for block in blocks {
                file.write_all(&block)?;
            }
            file.flush()
        });
        let (to_blake3, blocks) = mpsc::sync_channel::<Arc<Vec<u8>>>(AHEAD);
        let blake3 = scope.spawn(move || {
            let mut hasher = DigestWriter::new(io::sink());
            for block in blocks {
                hasher.write_all(&block)?;
            }
            Ok::<_, io::Error>(hasher.finish().1)
        });
        let (to_sha256, blocks) = mpsc::sync_channel::<Arc<Vec<u8>>>(AHEAD);
        let sha256 = scope.spawn(move || {
            let mut hasher = Sha256::new();
            for block in blocks {
                hasher.update(&*block);
            }
            hasher.finalize()
        });
        let mut blocks = Blocks {
            block: Vec::with_capacity(BLOCK),
            to: [to_file, to_blake3, to_sha256],
        };
        let filled = fill(&mut blocks).and_then(|()| blocks.hand_on());
        // Nothing more comes: the threads end.
        drop(blocks);
        let (written, digest, sha256) = (join(writing), join(blake3), join(sha256));
        written?;
        filled?;
        Ok((digest?, Hash::from_bytes(sha256.into()).to_string()))
    })
}

/// Does what [`write_hashed`] does, on the calling thread.
fn write_hashed_here(
    file: &mut (dyn Write + Send),
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(BlobDigest, String)> {
    struct Here<'f> {
        file: DigestWriter<&'f mut (dyn Write + Send)>,
        sha256: Sha256,
        failed: Option<io::Error>,
    }
    impl Write for Here<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Err(error) = self.file.write_all(bytes) {
                self.failed.get_or_insert(error);
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            self.sha256.update(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut here = Here {
        file: DigestWriter::new(file),
        sha256: Sha256::new(),
        failed: None,
    };
    let filled = {
        let mut buffered = io::BufWriter::with_capacity(BLOCK, &mut here);
        let filled = fill(&mut buffered).and_then(|()| buffered.flush());
        // What is left after an error is not written.
        let _ = buffered.into_parts();
        filled
    };
    if let Some(failed) = here.failed {
        return Err(failed);
    }
    filled?;
    let (file, digest) = here.file.finish();
    file.flush()?;
    Ok((digest, Hash::from_bytes(here.sha256.finalize().into()).to_string()))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Collects bytes to blocks, and hands each to all threads.
struct Blocks {
    block: Vec<u8>,
    to: [SyncSender<Arc<Vec<u8>>>; 3],
}

impl Blocks {
    fn hand_on(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = Arc::new(std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK)));
        for to in &self.to {
            to.send(Arc::clone(&block))
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
        Ok(())
    }
}

impl Write for Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        if self.block.len() == BLOCK {
            self.hand_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_in_order_and_both_hashes_are_theirs() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK + 12_345] {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7) as u8).collect();
            let mut file = Vec::new();
            let fill = |out: &mut dyn Write| bytes.chunks(300_001).try_for_each(|piece| out.write_all(piece));
            let (digest, sha256) = write_hashed(&mut file, fill).unwrap();
            assert!(file == bytes, "{size}");
            assert_eq!(digest, BlobDigest::of(&bytes));
            let expected: String = Hash::from_bytes(Sha256::digest(&bytes).into()).to_string();
            assert_eq!(sha256, expected);
            let mut here = Vec::new();
            assert_eq!(write_hashed_here(&mut here, fill).unwrap(), (digest, sha256));
            assert!(here == bytes, "{size}, on one thread");
        }
        // `printf abc | sha256sum`
        let (_, sha256) = write_hashed(&mut Vec::new(), |out| out.write_all(b"abc")).unwrap();
        assert_eq!(
            sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    /// A disk with so many bytes free.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_error_names_a_full_disk_wherever_a_write_fails() {
        for free in [0, 3 * BLOCK, 99 * BLOCK] {
            let fill = |out: &mut dyn Write| (0..100).try_for_each(|_| out.write_all(&vec![7; BLOCK]));
            let error = write_hashed(&mut Full(free), fill).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{free}");
        }
    }

    #[test]
    fn an_error_of_the_producer_is_returned() {
        let error = write_hashed(&mut Vec::new(), |out| {
            out.write_all(b"begun")?;
            Err(io::ErrorKind::UnexpectedEof.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
