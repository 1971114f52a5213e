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
use crate::fs::open_plain;

/// Opens a file for reading. A directory is an error here, not at the first read.
pub fn open(path: &Path) -> Result<File, PathError> {
    Ok(open_sized(path)?.0)
}

fn open_sized(path: &Path) -> Result<(File, u64), PathError> {
    let file = File::open(path).map_err(PathError::on(path, "open"))?;
    let facts = file.metadata().map_err(PathError::on(path, "look at"))?;
    if facts.is_dir() {
        return Err(PathError::new(path, "open", io::ErrorKind::IsADirectory.into()));
    }
    Ok((file, facts.len()))
}

/// Opens a plain file for reading: no device, no pipe, no socket, which could be read without end, or wait for a writer
/// that never comes. Symbolic links are followed.
pub fn open_foreign(path: &Path) -> Result<File, PathError> {
    // Looked at before it is opened: opening a pipe waits.
    if Stamp::of(path).is_ok() && Stamp::of_plain_file(path)?.is_none() {
        let text = "it is no plain file";
        return Err(PathError::new(
            path,
            "open",
            io::Error::new(io::ErrorKind::InvalidInput, text),
        ));
    }
    open(path)
}

/// Reads a small plain file whole, as [`read_small`] does: for files that somebody else hands over.
pub fn read_foreign(path: &Path, cap: u64) -> Result<Vec<u8>, PathError> {
    open_foreign(path)?;
    read_small(path, cap)
}

/// Reads a small file whole. One of more than `cap` bytes is an error of the kind `FileTooLarge`, and no more than
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
    // Room for all of it at once where the length is true, and never for more than is allowed.
    let mut bytes = Vec::with_capacity(usize::try_from(len.saturating_add(1).min(over)).unwrap_or(0));
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

/// Reads what one call gives from `offset`: fewer bytes than the buffer has room for, none at the end of the file.
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
        // It claims no length and never ends.
        let endless = Path::new("/dev/zero");
        assert_eq!(
            read_small(endless, 1000).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(open(dir.path()).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert!(open(&dir.path().join("b")).unwrap_err().is_not_found());
        assert!(open(&path.join("b")).unwrap_err().is_not_found(), "a file on the way");
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
