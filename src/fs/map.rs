//! Read-only memory maps, and positioned reads of large files.
//!
//! A map is a borrow of the file's pages: fast, and it costs no memory that cannot be dropped. But if the file shrinks
//! while it is mapped, touching the lost pages kills the process (SIGBUS), and its bytes may change under the reader. So
//! maps are for files that nobody else writes (the store's own). For a user's files there is [`PositionedFile`]: the same
//! random access by reads, where a file cut short is an error.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

/// A whole file, mapped for reading.
#[derive(Debug)]
pub struct Map {
    // Mapping nothing is an error on some systems, so an empty file has no map.
    map: Option<memmap2::Mmap>,
    held: Vec<u8>,
}

impl Map {
    /// Maps an open file.
    pub fn of(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::held(Vec::new()));
        }
        // SAFETY: the map is read-only, and its bytes are only ever looked at as `u8`, for which all values are valid.
        // What remains of mmap's danger is a file that another process changes or cuts while it is mapped; callers map
        // only files that they own (see the module's text).
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self {
            map: Some(map),
            held: Vec::new(),
        })
    }

    /// Stands for a map where the file is somebody else's: the bytes are held in memory.
    pub fn held(bytes: Vec<u8>) -> Self {
        Self { map: None, held: bytes }
    }

    /// Opens and maps a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(&File::open(path)?)
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&self.held)
    }
}

/// A file that is read at any place, by any number of threads, without a shared position.
#[derive(Debug)]
pub struct PositionedFile {
    path: PathBuf,
    len: u64,
    // None: opened for each read, for sets of more files than a process may have open.
    file: Option<File>,
}

impl PositionedFile {
    /// Opens a regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Asked before opening: opening a pipe would wait for its writer.
        let metadata = std::fs::metadata(path)?;
        if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        Ok(Self {
            path: path.to_owned(),
            len: file.metadata()?.len(),
            file: Some(file),
        })
    }

    /// Gives the handle back to the system; every later read opens the file again.
    pub fn close_between_reads(&mut self) {
        self.file = None;
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the length at the time of opening.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if the file was empty when opened.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `buf` from `offset` on.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before (it may have been cut since), and those of the system.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.file {
            Some(file) => read_exact_at(file, buf, offset),
            None => read_exact_at(&File::open(&self.path)?, buf, offset),
        }
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buf.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_the_file_and_an_empty_file_maps() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"").unwrap();
        assert_eq!(&*Map::open(&path).unwrap(), b"");
        std::fs::write(&path, b"hello").unwrap();
        assert_eq!(&*Map::open(&path).unwrap(), b"hello");
        assert_eq!(
            Map::open(&dir.path().join("b")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_cut_after_opening_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"hello").unwrap();
        let mut file = PositionedFile::open(&path).unwrap();
        for _ in 0..2 {
            std::fs::write(&path, b"hello").unwrap();
            let mut buf = [0; 3];
            file.read_at(2, &mut buf).unwrap();
            assert_eq!(&buf, b"llo");
            assert_eq!(
                file.read_at(3, &mut buf).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
            std::fs::write(&path, b"hel").unwrap();
            assert_eq!(
                file.read_at(2, &mut buf).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
            assert_eq!(file.len(), 5);
            file.close_between_reads();
        }
        assert!(PositionedFile::open(dir.path()).is_err());
    }
}
