//! What the file system knows about a file without reading it.

use std::ffi::CStr;
use std::ffi::OsStr;
use std::fs;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::FileType;

use crate::fs::PathError;

/// Which file it is and when it last changed. Stamps are compared for equality only, never for order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Stamp {
    /// The device that holds the file.
    pub dev: u64,
    /// Its number there.
    pub ino: u64,
    /// Its length in bytes.
    pub size: u64,
    /// When its bytes last changed, in nanoseconds since 1970. Anybody may set this.
    pub mtime_ns: i64,
    /// When its bytes or its facts last changed, in nanoseconds since 1970. Only the kernel sets this.
    pub ctime_ns: i64,
}

impl Stamp {
    /// Looks at a path, following symbolic links.
    pub fn of(path: &Path) -> Result<Self, PathError> {
        fs::metadata(path)
            .map(|facts| Self::from(&facts))
            .map_err(PathError::on(path, "look at"))
    }

    /// Looks at an open file; `path` is only for the error.
    pub fn of_file(file: &File, path: &Path) -> Result<Self, PathError> {
        file.metadata()
            .map(|facts| Self::from(&facts))
            .map_err(PathError::on(path, "look at"))
    }

    /// Looks at a path; `None` if nothing is there or it is not a plain file.
    pub fn of_plain_file(path: &Path) -> Result<Option<Self>, PathError> {
        match fs::metadata(path) {
            Ok(facts) => Ok(facts.is_file().then(|| Self::from(&facts))),
            Err(error) => {
                let error = PathError::new(path, "look at", error);
                if error.is_not_found() { Ok(None) } else { Err(error) }
            }
        }
    }
}

impl From<&fs::Metadata> for Stamp {
    fn from(facts: &fs::Metadata) -> Self {
        Self {
            dev: facts.dev(),
            ino: facts.ino(),
            size: facts.size(),
            mtime_ns: nanos(facts.mtime(), facts.mtime_nsec()),
            ctime_ns: nanos(facts.ctime(), facts.ctime_nsec()),
        }
    }
}

/// A directory that is held open, for looking at many files in it: their paths need not be walked from the root each time.
#[derive(Debug)]
pub struct Folder {
    directory: File,
    path: PathBuf,
}

impl Folder {
    /// Opens a directory.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        Ok(Self {
            directory: File::open(path).map_err(PathError::on(path, "open"))?,
            path: path.to_owned(),
        })
    }

    /// Looks at a path in it; `None` if nothing is there or it is not a plain file.
    pub fn stamp(&self, name: &CStr) -> Result<Option<Stamp>, PathError> {
        self.look(name, FileType::RegularFile)
    }

    /// Looks at a folder in it; `None` if nothing is there or it is no folder. Its stamp changes whenever a name in it is
    /// made, removed or replaced.
    pub fn stamp_of_folder(&self, name: &CStr) -> Result<Option<Stamp>, PathError> {
        self.look(name, FileType::Directory)
    }

    fn look(&self, name: &CStr, wanted: FileType) -> Result<Option<Stamp>, PathError> {
        match rustix::fs::statat(&self.directory, name, rustix::fs::AtFlags::empty()) {
            Ok(facts) => {
                let found = FileType::from_raw_mode(facts.st_mode);
                Ok((found == wanted).then(|| Stamp::from(&facts)))
            }
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
            Err(error) => {
                let path = self.path.join(OsStr::from_bytes(name.to_bytes()));
                Err(PathError::new(&path, "look at", error.into()))
            }
        }
    }
}

// The widths of the fields differ between systems.
#[allow(clippy::cast_possible_wrap, clippy::unnecessary_cast)]
impl From<&rustix::fs::Stat> for Stamp {
    fn from(facts: &rustix::fs::Stat) -> Self {
        Self {
            dev: facts.st_dev as u64,
            ino: facts.st_ino as u64,
            size: facts.st_size as u64,
            mtime_ns: nanos(facts.st_mtime as i64, facts.st_mtime_nsec as i64),
            ctime_ns: nanos(facts.st_ctime as i64, facts.st_ctime_nsec as i64),
        }
    }
}

fn nanos(seconds: i64, nanos: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_folder_shows_the_stamps_that_paths_show() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), b"four").unwrap();
        std::os::unix::fs::symlink("sub/file", dir.path().join("link")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for name in [c"sub/file", c"link"] {
            let stamp = Stamp::of(&dir.path().join(name.to_str().unwrap())).unwrap();
            assert_eq!(folder.stamp(name).unwrap(), Some(stamp), "{name:?}");
            assert_eq!(stamp.size, 4);
        }
        for name in [c"sub", c"none", c"sub/none", c"sub/file/none"] {
            assert_eq!(folder.stamp(name).unwrap(), None, "{name:?}");
        }
        assert!(Folder::open(&dir.path().join("none")).is_err());
        let stamp = Stamp::of(&dir.path().join("sub")).unwrap();
        assert_eq!(folder.stamp_of_folder(c"sub").unwrap(), Some(stamp));
        for name in [c"sub/file", c"link", c"none", c"sub/file/none"] {
            assert_eq!(folder.stamp_of_folder(name).unwrap(), None, "{name:?}");
        }
    }

    #[test]
    fn the_stamp_of_a_folder_shows_names_that_come_go_or_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut before = folder.stamp_of_folder(c"sub").unwrap().unwrap();
        let mut is_shown = |change: &dyn Fn()| {
            // Until the clock that stamps come from has gone on.
            std::thread::sleep(std::time::Duration::from_millis(30));
            change();
            let now = folder.stamp_of_folder(c"sub").unwrap().unwrap();
            std::mem::replace(&mut before, now) != now
        };
        assert!(is_shown(&|| fs::write(sub.join("a"), b"1").unwrap()));
        assert!(is_shown(&|| fs::write(dir.path().join("b"), b"2")
            .and_then(|()| fs::rename(dir.path().join("b"), sub.join("a")))
            .unwrap()));
        assert!(is_shown(&|| fs::remove_file(sub.join("a")).unwrap()));
        assert!(!is_shown(&|| ()));
    }
}
