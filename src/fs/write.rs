//! Writes files so that they are complete or absent.

use std::fs;
use std::fs::File;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::io::Seek;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::OFlags;

use crate::fs::PathError;
use crate::fs::Stamp;
use crate::fs::dir::list;
use crate::fs::dir::parent_of;
use crate::fs::dir::sync_dir;
use crate::fs::lock::still_there;

/// Whether a write must survive a power failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The bytes are synced, then the name.
    Synced,
    /// Nothing is synced: for files that are cheap to lose and whose damage is found when they are read.
    Fast,
}

/// A temporary file, which is removed unless it is persisted. It is locked while it is open, so that [`remove_stale_temps`] can
/// distinguish the files of killed processes from those of running ones.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl TempFile {
    /// Creates an empty file in `dir`, with the mode that the umask gives.
    pub fn new_in(dir: &Path) -> Result<Self, PathError> {
        Self::with_mode_in(dir, 0o666)
    }

    /// Creates an empty file in `dir` that only the user may write to, with any umask.
    pub fn own_in(dir: &Path) -> Result<Self, PathError> {
        Self::with_mode_in(dir, 0o644)
    }

    /// The umask takes from the mode.
    fn with_mode_in(dir: &Path, mode: u32) -> Result<Self, PathError> {
        loop {
            let path = dir.join(unique_name());
            match fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)
            {
                Ok(file) => {
                    if claim(&file, &path)? {
                        return Ok(Self {
                            file,
                            path,
                            kept: false,
                        });
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(PathError::new(&path, "create", error)),
            }
        }
    }

    /// Takes over an existing file, which is removed unless it is persisted.
    pub fn adopt(path: &Path) -> Result<Self, PathError> {
        let file = crate::fs::open(path)?;
        // A file system without locks: `remove_stale_temps` then removes nothing.
        file.try_lock().ok();
        Ok(Self {
            file,
            path: path.to_owned(),
            kept: false,
        })
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the bytes and the mode durable.
    pub fn sync(&self) -> Result<(), PathError> {
        self.file.sync_all().map_err(PathError::on(&self.path, "sync"))
    }

    /// Sets the mode, with any umask.
    pub fn set_mode(&self, mode: u32) -> Result<(), PathError> {
        let mode = fs::Permissions::from_mode(mode);
        self.file
            .set_permissions(mode)
            .map_err(PathError::on(&self.path, "set the mode of"))
    }

    /// Sets the modification time, in nanoseconds since 1970.
    pub fn set_modified(&self, mtime_ns: i64) -> Result<(), PathError> {
        crate::fs::set_modified_of(&self.file, &self.path, mtime_ns)
    }

    /// Renames the file to its final name, atomically replacing an existing file, and returns it still open. With
    /// [`Durability::Synced`] its bytes and mode are durable before the name is, and the name is durable on return.
    pub fn persist(mut self, to: &Path, durability: Durability) -> Result<NamedFile, PathError> {
        if durability == Durability::Synced {
            // Syncs the metadata too, because of the mode.
            self.sync()?;
        }
        let file = self.file.try_clone().map_err(PathError::on(to, "open"))?;
        fs::rename(&self.path, to).map_err(PathError::on(to, "rename to"))?;
        self.kept = true;
        if durability == Durability::Synced {
            sync_dir(parent_of(to))?;
        }
        Ok(NamedFile {
            file,
            path: to.to_owned(),
        })
    }
}

/// A file that this process wrote and named, still open. Other programs may have changed or replaced it since then.
#[derive(Debug)]
pub struct NamedFile {
    file: File,
    path: PathBuf,
}

impl NamedFile {
    /// Returns the path that the file got.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the open file, set to its start.
    pub fn rewound(&self) -> Result<&File, PathError> {
        (&self.file).rewind().map_err(PathError::on(&self.path, "read"))?;
        Ok(&self.file)
    }

    /// Returns the stamp of the open file, if its path still refers to it.
    pub fn stamp(&self) -> Result<Option<Stamp>, PathError> {
        let stamp = Stamp::of_file(&self.file, &self.path)?;
        Ok((Stamp::of_plain_file(&self.path)? == Some(stamp)).then_some(stamp))
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.kept {
            // If it cannot be removed now, `remove_stale_temps` removes it later. Nothing reads files of such names.
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Locks a file that was just created. Returns false if another process's [`remove_stale_temps`] has locked or removed it in the
/// meantime. Without locks in the file system, nothing is removed.
fn claim(file: &File, path: &Path) -> Result<bool, PathError> {
    match file.try_lock() {
        Ok(()) => still_there(file, path),
        Err(fs::TryLockError::WouldBlock) => Ok(false),
        Err(fs::TryLockError::Error(_)) => Ok(true),
    }
}

/// Removes the temporary files of ended processes from a directory: files with such a name that are not locked. Files that cannot be
/// opened or locked stay.
pub fn remove_stale_temps(dir: &Path) -> Result<(), PathError> {
    for entry in list(dir)? {
        let Some(owner) = entry.name.to_str().and_then(owner_of_temp) else {
            continue;
        };
        // A reflink is made under a second name beside the first, which is locked until the second is.
        let owner_lives = owner != entry.name && matches!(abandoned(&dir.join(owner)), Abandoned::No);
        if owner_lives {
            continue;
        }
        let path = dir.join(&entry.name);
        if let Abandoned::Yes(_lock) = abandoned(&path) {
            crate::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

enum Abandoned {
    /// It is locked now.
    Yes(File),
    No,
    Gone,
}

fn abandoned(path: &Path) -> Abandoned {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_file() => {}
        Ok(_) => return Abandoned::No,
        Err(_) => return Abandoned::Gone,
    }
    // Follows no link and does not wait: the name may refer to something else by now.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    match opened {
        Ok(file) if file.try_lock().is_ok() => Abandoned::Yes(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Abandoned::Gone,
        _ => Abandoned::No,
    }
}

/// Returns the name that [`unique_name`] gave if this is one, or that of a reflink beside it.
fn owner_of_temp(name: &str) -> Option<&str> {
    let owner = name.strip_suffix(".reflink").unwrap_or(name);
    let mut parts = owner.strip_prefix(".forge-")?.split('-');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_one = number(parts.next()?)
        && number(parts.next()?)
        && parts
            .next()
            .is_some_and(|part| part.len() == 16 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        && parts.next().is_none();
    is_one.then_some(owner)
}

/// Writes a small file atomically: readers see the old bytes or the new ones, also after a crash.
pub fn write_atomic(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), PathError> {
    let mut temp = TempFile::new_in(parent_of(path))?;
    temp.write_all(bytes).map_err(PathError::on(path, "write"))?;
    temp.persist(path, durability)?;
    Ok(())
}

/// Creates a small file with a mode, with any umask. The file never has a wider mode, not even for a moment.
///
/// # Errors
///
/// Of the kind `AlreadyExists` if something has the name, a broken symbolic link included.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(PathError::on(path, "create"))?;
    let written = file
        .set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| file.sync_all());
    if let Err(error) = written {
        // An incomplete file must not stay.
        fs::remove_file(path).ok();
        return Err(PathError::new(path, "write", error));
    }
    sync_dir(parent_of(path))
}

/// Takes all write permission from a file: mode 0444.
pub fn make_read_only(path: &Path) -> Result<(), PathError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).map_err(PathError::on(path, "set the mode of"))
}

/// Returns a unique name: the process ID, a count, and a random number, because process IDs of other machines and containers may
/// be equal.
pub fn unique_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let random = RandomState::new().hash_one(count);
    format!(".forge-{}-{count}-{random:016x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_file_whole_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one", Durability::Synced).unwrap();
        let first = fs::File::open(&path).unwrap();
        write_atomic(&path, b"two", Durability::Fast).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(
            io::read_to_string(first).unwrap(),
            "one",
            "a reader keeps what it opened"
        );
        assert_eq!(crate::fs::list(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_temporary_file_that_is_dropped_or_cannot_be_persisted_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        drop(TempFile::new_in(dir.path()).unwrap());
        let temp = TempFile::new_in(dir.path()).unwrap();
        let error = temp
            .persist(&dir.path().join("no/such/place"), Durability::Synced)
            .unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert_eq!(crate::fs::list(dir.path()).unwrap(), []);
    }

    #[test]
    fn only_files_of_dead_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let live = TempFile::new_in(dir.path()).unwrap();
        let reflink_of_live = live.path().with_added_extension("reflink");
        let name = |name: &str| dir.path().join(name);
        let [dead, dead_reflink] = [unique_name(), format!("{}.reflink", unique_name())].map(|it| name(&it));
        let kept = [
            ".forge-notes",
            ".forge-1-2-0123456789abcdeg",
            ".forge-1-2-0123456789abcdef-3",
            ".forge-1--0123456789abcdef",
            "model.gguf",
        ]
        .map(name);
        for path in kept.iter().chain([&dead, &dead_reflink, &reflink_of_live]) {
            fs::write(path, b"").unwrap();
        }
        std::os::unix::fs::symlink(&kept[4], name(&unique_name())).unwrap();
        let before = crate::fs::list(dir.path()).unwrap().len();
        remove_stale_temps(dir.path()).unwrap();
        assert!(!dead.exists() && !dead_reflink.exists());
        assert_eq!(crate::fs::list(dir.path()).unwrap().len(), before - 2);
        let left = live.path().to_owned();
        assert!(left.exists() && reflink_of_live.exists());
        live.persist(&name("model.gguf"), Durability::Fast).unwrap();
        assert!(!left.exists());
        remove_stale_temps(dir.path()).unwrap();
        assert!(!reflink_of_live.exists(), "its process let go of it");
    }

    #[test]
    fn an_error_names_the_path_and_the_operation() {
        let error = write_atomic(Path::new("/no/such/place/a"), b"", Durability::Fast).unwrap_err();
        assert_eq!(error.operation, "create");
        assert!(error.path.starts_with("/no/such/place"));
        assert!(
            error.to_string().starts_with("cannot create `/no/such/place/"),
            "{error}"
        );
    }
}
