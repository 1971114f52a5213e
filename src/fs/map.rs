//! Read-only memory maps, and positioned reads of large files.
//!
//! A map is a borrow of the file's pages: fast, and it costs no memory that cannot be dropped. But its bytes may change
//! under the reader, and if the file shrinks, touching the lost pages raises SIGBUS, which ends the process. So forge maps
//! only files that no other program writes (the store's own), and model files while llama.cpp computes from them. A
//! [`LossGuard`] lives as long as each of these maps: lost pages then read as zeros, and the guard reports them.
//! For a user's other files there is [`PositionedFile`]: the same random access by reads, where a file cut short is an
//! error.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use crate::fs::facts::open_regular;

/// Pages of mapped files that were lost since the process began, and that read as zeros now.
static LOST_PAGES: AtomicU64 = AtomicU64::new(0);
/// The number of guards.
static GUARDS: AtomicUsize = AtomicUsize::new(0);
/// What SIGBUS did before the first guard.
static EARLIER_ACTION: OnceLock<libc::sigaction> = OnceLock::new();
/// Bytes of a page.
static PAGE: AtomicUsize = AtomicUsize::new(0);

/// Keeps the process running if pages of mapped files are lost because another program truncates a file. Lost pages read as zeros.
/// Code that computes from a map holds a guard, and checks it before it uses the result.
#[derive(Debug)]
pub struct LossGuard {
    before: u64,
}

impl LossGuard {
    /// Begins to guard all maps of the process.
    pub fn new() -> Self {
        static INSTALL: Once = Once::new();
        INSTALL.call_once(install_handler);
        GUARDS.fetch_add(1, Ordering::SeqCst);
        Self {
            before: LOST_PAGES.load(Ordering::SeqCst),
        }
    }

    /// Returns true if a page of any map was lost since this guard was made.
    pub fn has_lost_pages(&self) -> bool {
        LOST_PAGES.load(Ordering::SeqCst) != self.before
    }
}

impl Default for LossGuard {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for LossGuard {
    fn drop(&mut self) {
        GUARDS.fetch_sub(1, Ordering::SeqCst);
    }
}

fn install_handler() {
    // SAFETY: `sysconf` and `sigaction` have no preconditions beyond valid pointers. The handler has the signature that
    // `SA_SIGINFO` asks for, and calls only what a signal handler may.
    unsafe {
        let page = libc::sysconf(libc::_SC_PAGESIZE);
        PAGE.store(usize::try_from(page).unwrap_or(4096), Ordering::SeqCst);
        let mut earlier: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut earlier) != 0 {
            return;
        }
        // Set before the handler is, which reads it.
        EARLIER_ACTION.get_or_init(|| earlier);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}

/// Puts a page of zeros where a page of a mapped file was lost. Without a guard, or if that fails, the signal does what it
/// did before: the instruction that raised it runs again after the handler.
///
/// This is how libwayland survives clients that truncate a shared buffer (`wayland-shm.c`).
unsafe extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel hands over a valid `siginfo_t`. `mmap` replaces one page in which nothing could be read, so no
    // live value changes; it is a plain system call. `errno` changes only if it fails, and then the process ends.
    unsafe {
        let address = (*info).si_addr() as usize;
        let page = PAGE.load(Ordering::SeqCst);
        // Pages that failed in the hardware are not replaced: the error is not the file's.
        #[cfg(target_os = "linux")]
        let is_lost = (*info).si_code == libc::BUS_ADRERR;
        #[cfg(not(target_os = "linux"))]
        let is_lost = true;
        if is_lost && address != 0 && page.is_power_of_two() && GUARDS.load(Ordering::SeqCst) > 0 {
            let start = (address & !(page - 1)) as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANON;
            if libc::mmap(start, page, libc::PROT_READ, flags, -1, 0) == start {
                LOST_PAGES.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
        if let Some(earlier) = EARLIER_ACTION.get() {
            libc::sigaction(libc::SIGBUS, std::ptr::from_ref(earlier), std::ptr::null_mut());
        }
    }
}

/// A whole file, mapped for reading. If another program truncates the file, the lost pages read as zeros.
#[derive(Debug)]
pub struct Map {
    // Mapping nothing is an error on some systems, so an empty file has no map.
    map: Option<(memmap2::Mmap, LossGuard)>,
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
        // only files that they own, and the guard covers lost pages (see the module's text).
        let map = unsafe { memmap2::Mmap::map(file)? };
        Ok(Self {
            map: Some((map, LossGuard::new())),
            held: Vec::new(),
        })
    }

    /// Holds bytes in memory instead of a map, for files that other programs may change.
    pub fn held(bytes: Vec<u8>) -> Self {
        Self { map: None, held: bytes }
    }

    /// Opens and maps a file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::of(&open_regular(path, true)?.0)
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_ref().map_or(&self.held, |(map, _)| map)
    }
}

/// A file with positioned reads, for any number of threads.
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
        let (file, metadata) = open_regular(path, true)?;
        Ok(Self {
            path: path.to_owned(),
            len: metadata.len(),
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
            None => read_exact_at(&open_regular(&self.path, true)?.0, buf, offset),
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
    fn pages_lost_under_a_map_read_as_zeros_and_are_reported() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let map = Map::open(&path).unwrap();
        let guard = LossGuard::new();
        assert_eq!(map[1 << 19], 7);
        assert!(!guard.has_lost_pages());
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert_eq!(map[1 << 19], 0, "without the guard this ends the process");
        assert!(guard.has_lost_pages());
        assert!(!LossGuard::new().has_lost_pages(), "a new guard starts from now");
        // Other threads are covered as well.
        let seen = std::thread::scope(|scope| scope.spawn(|| map[(1 << 20) - 1]).join().unwrap());
        assert_eq!(seen, 0);
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
