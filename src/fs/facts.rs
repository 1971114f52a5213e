//! Inspects names without following links, for folders that other users may have written to.

use std::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::OFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_OMIT;

use crate::fs::PathError;
use crate::fs::Stamp;

/// What kind of file a name refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A plain file.
    Plain,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Other,
}

/// What is known of a name without following it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// The kind of file.
    pub kind: FileKind,
    /// Which file it is and when it last changed.
    pub stamp: Stamp,
    /// The bytes that it takes on disk, according to the file system.
    pub allocated: u64,
}

/// Looks at a name, following no link at its end; `None` if nothing is there.
pub fn facts(path: &Path) -> Result<Option<Facts>, PathError> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some(Facts {
            kind: if found.is_file() {
                FileKind::Plain
            } else if found.is_dir() {
                FileKind::Directory
            } else if found.is_symlink() {
                FileKind::Link
            } else {
                FileKind::Other
            },
            stamp: Stamp::from(&found),
            allocated: found.blocks().saturating_mul(512),
        })),
        Err(error) => {
            let error = PathError::new(path, "look at", error);
            if error.is_not_found() { Ok(None) } else { Err(error) }
        }
    }
}

/// Returns the permission bits of a file that this user owns and that group or others may read, write or execute; nothing for
/// a file of another owner, or one that only its owner can use. Links are followed. It is the check that `ssh` makes of keys.
pub fn exposed_mode(path: &Path) -> Result<Option<u32>, PathError> {
    let found = fs::metadata(path).map_err(PathError::on(path, "look at"))?;
    let is_own = found.uid() == rustix::process::getuid().as_raw();
    Ok((is_own && found.mode() & 0o077 != 0).then_some(found.mode() & 0o7777))
}

/// Opens a regular file for reading. Never waits (as for the writer of a pipe), and follows no link at the end of the path.
///
/// # Errors
///
/// Of the kind `InvalidInput` if something other than a regular file has the name.
pub fn open_plain(path: &Path) -> Result<(File, Stamp), PathError> {
    let (file, found) = open_regular(path, false).map_err(PathError::on(path, "open"))?;
    Ok((file, Stamp::from(&found)))
}

/// Opens a regular file for reading, without waiting; `follow` says whether a symbolic link at the end of the
/// path is followed.
///
/// # Errors
///
/// Of the kind `InvalidInput`, with a text that names what was found, if it is not a regular file.
pub(super) fn open_regular(path: &Path, follow: bool) -> io::Result<(File, fs::Metadata)> {
    let mut flags = OFlags::NONBLOCK;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    match opened {
        Ok(file) => {
            // On the open file: the name may refer to another one by now.
            let found = file.metadata()?;
            if found.is_file() {
                Ok((file, found))
            } else {
                Err(not_regular(found.file_type()))
            }
        }
        Err(error) => {
            let found = if follow {
                fs::metadata(path)
            } else {
                fs::symlink_metadata(path)
            };
            match found {
                // A socket or a link cannot be opened at all, and the system's reason would not say why.
                Ok(found) if !found.is_file() => Err(not_regular(found.file_type())),
                _ => Err(error),
            }
        }
    }
}

/// Returns the error for something that has the name of a file and is none.
pub(super) fn not_regular(found: fs::FileType) -> io::Error {
    let text = format!("it is {}, not a regular file", in_words(found));
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

fn in_words(found: fs::FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_symlink() {
        "a symbolic link"
    } else if found.is_fifo() {
        "a named pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Describes what has a name (`a named pipe`), without following a link; `None` if that is not known.
pub fn what_is(path: &Path) -> Option<&'static str> {
    let found = fs::symlink_metadata(path).ok()?.file_type();
    Some(if found.is_file() { "a file" } else { in_words(found) })
}

/// Gives the user's own file a mode that lets the user read it (and write it, where `mode` says so), if it is a regular
/// file; says whether that was done.
pub fn restore_mode(path: &Path, mode: u32) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
        && fs::set_permissions(path, fs::Permissions::from_mode(mode)).is_ok()
}

/// Sets the time at which a file is said to have changed, in nanoseconds since 1970; says whether the file was there. A
/// link is not followed.
pub fn set_modified(path: &Path, mtime_ns: i64) -> Result<bool, PathError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: timespec(mtime_ns),
    };
    match rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(error) => {
            let error = PathError::new(path, "set the time of", error.into());
            if error.is_not_found() { Ok(false) } else { Err(error) }
        }
    }
}

/// Does what [`set_modified`] does for an open file; `path` is only for the error.
pub fn set_modified_of(file: &File, path: &Path, mtime_ns: i64) -> Result<(), PathError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: timespec(mtime_ns),
    };
    rustix::fs::futimens(file, &times).map_err(|error| PathError::new(path, "set the time of", error.into()))
}

fn timespec(ns: i64) -> Timespec {
    Timespec {
        tv_sec: ns.div_euclid(1_000_000_000),
        tv_nsec: ns.rem_euclid(1_000_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_pipes_are_listed_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link, pipe] = ["file", "link", "pipe"].map(|name| dir.path().join(name));
        fs::write(&file, b"12345").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        rustix::fs::mkfifoat(CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let kind = |path: &Path| facts(path).unwrap().map(|found| found.kind);
        assert_eq!(kind(&file), Some(FileKind::Plain));
        assert_eq!(kind(dir.path()), Some(FileKind::Directory));
        assert_eq!(kind(&link), Some(FileKind::Link));
        assert_eq!(kind(&pipe), Some(FileKind::Other));
        assert_eq!(kind(&dir.path().join("none")), None);
        assert_eq!(open_plain(&file).unwrap().1, Stamp::of(&file).unwrap());
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let all = [
            (&link, "a symbolic link"),
            (&pipe, "a named pipe"),
            (&socket, "a socket"),
            (&dir.path().to_owned(), "a directory"),
        ];
        for (odd, words) in all {
            let error = open_plain(odd).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let text = format!("cannot open `{}`: it is {words}, not a regular file", odd.display());
            assert_eq!(error.to_string(), text);
            assert_eq!(what_is(odd), Some(words));
        }
        assert!(open_plain(&dir.path().join("none")).unwrap_err().is_not_found());
    }

    #[test]
    fn times_are_set_to_the_nanosecond_where_the_file_system_has_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(!set_modified(&path, 7).unwrap());
        fs::write(&path, b"").unwrap();
        for ns in [1_700_000_000_123_456_789, 0, 1] {
            assert!(set_modified(&path, ns).unwrap());
            assert_eq!(Stamp::of(&path).unwrap().mtime_ns, ns);
        }
        set_modified_of(&File::open(&path).unwrap(), &path, 42).unwrap();
        assert_eq!(Stamp::of(&path).unwrap().mtime_ns, 42);
    }
}
