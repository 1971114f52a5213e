//! Bounded and positioned reads.

use std::fs::File;
use std::io;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use crate::fs::PathError;
use crate::fs::Stamp;
use crate::fs::facts::open_regular;
use crate::fs::open_plain;

/// Opens a regular file for reading. Symbolic links are followed.
///
/// # Errors
///
/// Of the kind `InvalidInput` for a directory, a device, a pipe, a socket: they could be read without end, or wait for a
/// writer that never comes. Opening never waits.
pub fn open(path: &Path) -> Result<File, PathError> {
    Ok(open_sized(path)?.0)
}

fn open_sized(path: &Path) -> Result<(File, u64), PathError> {
    let (file, facts) = open_regular(path, true).map_err(PathError::on(path, "open"))?;
    Ok((file, facts.len()))
}

/// Reads a small regular file whole. One of more than `cap` bytes is an error of the kind `FileTooLarge`, and no more than
/// `cap` bytes are ever held, whatever length the file system claims.
pub fn read_small(path: &Path, cap: u64) -> Result<Vec<u8>, PathError> {
    let (file, len) = open_sized(path)?;
    take(&file, path, len, cap)
}

/// Does what [`read_small`] does with a file that is open; `path` is only for the error.
pub fn read_open(file: &File, path: &Path, cap: u64) -> Result<Vec<u8>, PathError> {
    let facts = file.metadata().map_err(PathError::on(path, "look at"))?;
    take(file, path, facts.len(), cap)
}

fn take(file: &File, path: &Path, len: u64, cap: u64) -> Result<Vec<u8>, PathError> {
    let over = cap.saturating_add(1);
    // Reserves memory for the whole file if the length is right, and never more than is allowed.
    let wanted = len.saturating_add(1).min(over);
    let mut bytes = Vec::new();
    if bytes
        .try_reserve_exact(usize::try_from(wanted).unwrap_or(usize::MAX))
        .is_err()
    {
        let text = format!("not enough memory for its {len} bytes");
        return Err(PathError::new(
            path,
            "read",
            io::Error::new(io::ErrorKind::OutOfMemory, text),
        ));
    }
    file.take(over)
        .read_to_end(&mut bytes)
        .map_err(PathError::on(path, "read"))?;
    if bytes.len() as u64 > cap {
        let text = format!("it has more than the {cap} bytes allowed here");
        return Err(PathError::new(
            path,
            "read",
            io::Error::new(io::ErrorKind::FileTooLarge, text),
        ));
    }
    Ok(bytes)
}

/// Does what [`read_small`] does with a plain file only, following no link, and returns the stamp that it had.
pub fn read_plain(path: &Path, cap: u64) -> Result<(Vec<u8>, Stamp), PathError> {
    let (file, stamp) = open_plain(path)?;
    Ok((take(&file, path, stamp.size, cap)?, stamp))
}

/// Reads what one call gives from `offset`: fewer bytes than the length of the buffer, none at the end of the file.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    file.read_at(buffer, offset)
}

/// Returns a path that leads to an open file itself, whatever became of its name; `None` where the system has none. Who
/// opens it gets a position of its own in the file.
pub fn descriptor_path(file: &File) -> Option<PathBuf> {
    // Elsewhere `/dev/fd` shares the position, and a container may have no `/proc`.
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    (cfg!(target_os = "linux") && path.exists()).then_some(path)
}

/// Fills `buffer` from `offset`; the file's own position does not move, so threads may share it.
///
/// # Errors
///
/// `UnexpectedEof` if the file ends before the buffer is full.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(buffer, offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_larger_than_allowed_is_refused_even_if_it_claims_no_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_small(&path, 5).unwrap(), b"12345");
        assert_eq!(read_small(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // It claims no length, and has one.
        if cfg!(target_os = "linux") {
            let status = Path::new("/proc/self/status");
            assert_eq!(read_small(status, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            assert!(read_small(status, 1 << 20).unwrap().len() > 10);
        }
        assert!(open(&dir.path().join("b")).unwrap_err().is_not_found());
        assert!(open(&path.join("b")).unwrap_err().is_not_found(), "a file on the way");
    }

    #[test]
    fn only_regular_files_are_opened_and_nothing_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [file, pipe, socket, link] = ["file", "pipe", "socket", "link"].map(|name| dir.path().join(name));
        std::fs::write(&file, b"12345").unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, words) in [
            (pipe.as_path(), "a named pipe"),
            (&socket, "a socket"),
            (dir.path(), "a directory"),
            (Path::new("/dev/zero"), "a device"),
        ] {
            std::fs::remove_file(&link).ok();
            std::os::unix::fs::symlink(path, &link).unwrap();
            for path in [path, &link] {
                let text = format!("cannot open `{}`: it is {words}, not a regular file", path.display());
                assert_eq!(open(path).unwrap_err().to_string(), text);
                assert_eq!(read_small(path, 10).unwrap_err().to_string(), text);
                assert!(crate::fs::map::PositionedFile::open(path).is_err());
                assert!(crate::fs::map::Map::open(path).is_err());
                assert!(!crate::fs::is_held(path));
            }
        }
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(read_small(&link, 10).unwrap(), b"12345", "links to files are followed");
    }

    #[test]
    fn a_file_that_memory_does_not_hold_is_refused_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // A hole of more bytes than there are addresses.
        std::fs::File::create(&path).unwrap().set_len(1 << 43).unwrap();
        let file = open(&path).unwrap();
        let error = take(&file, &path, u64::MAX - 1, u64::MAX).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(error.to_string().contains("not enough memory for its "), "{error}");
    }

    #[test]
    fn positioned_reads_fill_the_buffer_or_say_that_the_file_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"0123456789").unwrap();
        let file = open(&path).unwrap();
        let mut buffer = [0; 4];
        read_exact_at(&file, &mut buffer, 6).unwrap();
        assert_eq!(&buffer, b"6789");
        assert_eq!(
            read_exact_at(&file, &mut buffer, 7).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
