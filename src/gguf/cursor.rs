//! Reading little-endian numbers and strings off bounded bytes.

use super::error::{GgufError, Place, Problem};

/// Why reading stopped.
pub(super) enum Stop {
    /// The file is wrong.
    Wrong(Box<GgufError>),
    /// The file has the bytes, the window does not: come back with this many from the start.
    More(u64),
}

impl From<GgufError> for Stop {
    fn from(error: GgufError) -> Self {
        Self::Wrong(Box::new(error))
    }
}

/// A place in the first bytes of a file.
///
/// `window` is what is in memory, `total` how long the whole file is: claims are checked against the second, so that a
/// lie is found before anything is read for it.
pub(super) struct Cursor<'a> {
    window: &'a [u8],
    total: u64,
    at: usize,
    /// What is being read, for errors.
    pub(super) place: Place,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(window: &'a [u8], total: u64) -> Self {
        Self {
            window,
            total: total.max(window.len() as u64),
            at: 0,
            place: Place::File,
        }
    }

    /// Bytes from the start of the file.
    pub(super) fn at(&self) -> u64 {
        self.at as u64
    }

    /// Bytes of the file not yet read.
    pub(super) fn left(&self) -> u64 {
        self.total - self.at()
    }

    pub(super) fn wrong(&self, problem: Problem) -> GgufError {
        GgufError {
            offset: Some(self.at()),
            place: self.place.clone(),
            problem,
        }
    }

    /// Takes `count` bytes.
    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], Stop> {
        let left = self.left();
        if count > left {
            return Err(self
                .wrong(Problem::Truncated {
                    what,
                    needed: count,
                    left,
                })
                .into());
        }
        let end = self.at() + count;
        let bytes = usize::try_from(end)
            .ok()
            .and_then(|end| self.window.get(self.at..end))
            .ok_or(Stop::More(end))?;
        self.at += bytes.len();
        Ok(bytes)
    }

    /// Takes `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Stop> {
        let bytes = self.take(N as u64, what)?;
        // `take` returns exactly N bytes.
        Ok(*bytes.first_chunk().ok_or(Stop::More(self.total))?)
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, Stop> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, Stop> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Takes a string: its length, then its bytes.
    pub(super) fn string(&mut self, what: &'static str) -> Result<&'a [u8], Stop> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// Takes a name: not empty, UTF-8, without zero bytes.
    pub(super) fn name(&mut self, what: &'static str) -> Result<&'a str, Stop> {
        let bytes = self.string(what)?;
        let problem = match std::str::from_utf8(bytes) {
            Ok("") => Problem::NameEmpty,
            Ok(name) if name.contains('\0') => Problem::NameZero,
            Ok(name) => return Ok(name),
            Err(_) => Problem::NameEncoding,
        };
        Err(self.wrong(problem).into())
    }

    /// Returns the bytes read since `start`.
    pub(super) fn since(&self, start: u64) -> &'a [u8] {
        &self.window[start as usize..self.at]
    }
}
