//! One GGUF file on disk.

use std::io;
use std::path::{Path, PathBuf};

use super::cursor::Stop;
use super::error::{GgufError, Place, Problem};
use super::header::{Header, MAX_HEADER, parse_window};
use crate::fs::map::PositionedFile;

/// How much of a file is read before its header is first tried. Most headers fit.
const FIRST_WINDOW: u64 = 1 << 20;

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The system refused.
    #[error("cannot read {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {source}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The fault and its place.
        source: Box<GgufError>,
    },
    /// A shard whose name does not tell the others' names.
    #[error(
        "{} is one of {count} shards, but its name does not end in `-{:05}-of-{count:05}.gguf`, so the others cannot be \
         found; give the shards the names they were made with", .path.display(), .number + 1
    )]
    ShardName {
        /// The file.
        path: PathBuf,
        /// Its `split.no`, from 0.
        number: u64,
        /// Its `split.count`.
        count: u64,
    },
    /// Shards that are not there.
    #[error("the set of {} lacks {} of its shards: {}", .path.display(), .missing.len(), some(.missing))]
    MissingShards {
        /// The shard that was opened.
        path: PathBuf,
        /// The file names of those that are not beside it.
        missing: Vec<String>,
    },
}

fn some(names: &[String]) -> String {
    let mut text = names.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 5 {
        text.push_str(", …");
    }
    text
}

impl OpenError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(super) fn format(path: &Path, source: GgufError) -> Self {
        Self::Format {
            path: path.to_owned(),
            source: Box::new(source),
        }
    }
}

/// An open GGUF file: its header in memory, its data on disk.
///
/// The data is read by position and not mapped, so that a file that is cut while it is read gives an error, and that
/// reading 500 GB through it leaves nothing behind in this process.
#[derive(Debug)]
pub struct File {
    header: Header,
    file: PositionedFile,
}

impl File {
    /// Opens a file and reads its header.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let file = PositionedFile::open(path).map_err(|source| OpenError::io(path, source))?;
        let header = read_header(&file)?;
        Ok(Self { header, file })
    }

    /// Returns the header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns the file's length when it was opened.
    pub fn file_len(&self) -> u64 {
        self.file.len()
    }

    /// Fills `buf` with the bytes from `offset` (from the start of the file) on.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }

    /// Keeps no handle between reads.
    pub(super) fn close_between_reads(&mut self) {
        self.file.close_between_reads();
    }

    pub(super) fn into_header(self) -> (Header, PositionedFile) {
        (self.header, self.file)
    }
}

/// Reads as much of a file's start as its header takes, at most twice.
fn read_header(file: &PositionedFile) -> Result<Header, OpenError> {
    let total = file.len();
    let mut window = Vec::new();
    let mut want = FIRST_WINDOW;
    loop {
        let have = window.len();
        // Bounded by `MAX_HEADER` below, so it fits.
        window.resize(want.min(total) as usize, 0);
        file.read_at(have as u64, &mut window[have..])
            .map_err(|source| OpenError::io(file.path(), source))?;
        let needed = match parse_window(&window, total) {
            Ok(header) => return Ok(header),
            Err(Stop::Wrong(error)) => return Err(OpenError::format(file.path(), *error)),
            Err(Stop::More(needed)) => needed,
        };
        if needed > MAX_HEADER {
            let problem = Problem::HeaderTooLong { limit: MAX_HEADER };
            let error = GgufError {
                offset: Some(window.len() as u64),
                place: Place::File,
                problem,
            };
            return Err(OpenError::format(file.path(), error));
        }
        // At least twice as much each time: no file makes this slow.
        want = needed.max(window.len() as u64 * 2).min(MAX_HEADER);
    }
}
