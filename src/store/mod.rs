//! The content-addressed store: blobs by their digest, action results by the digest of their action, and the known digests
//! of files. `docs/design-notes.md` explains why it is safe; `cache-schema/README.md` describes the files.

mod actions;
mod blobs;
mod borrow;
mod borrow_index;
mod clean;
mod error;
mod gc;
mod last_copies;
mod layout;
mod lease;
mod lock;
mod pins;
mod prepare;
mod quarantine;
mod record;
mod runs;
mod sealed;
mod stat;
mod survey;
mod sweep;
mod temp;
mod tombstone;
mod verify;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use crate::digest::Hash;
use crate::fs;

pub use actions::Committed;
pub use actions::Lookup;
pub use actions::StoreEvent;
pub use blobs::BlobWriter;
pub use borrow::CopiedBack;
pub use borrow_index::BorrowedBlob;
pub use error::ErrorClass;
pub use error::StoreError;
pub use gc::GcDone;
pub use gc::GcGroup;
pub use gc::GcOptions;
pub use gc::GcPlan;
pub use gc::GcReason;
pub use gc::KeepReason;
pub use gc::KeptCounts;
pub use lease::Lease;
pub use lock::ActionLock;
pub use lock::Holder;
pub use lock::OutputLock;
pub use pins::Pin;
pub use pins::Pinned;
pub use record::ReadFile;
pub use record::StepRecord;
pub use runs::RunWriter;
pub use survey::Amount;
pub use survey::ListedResult;
pub use survey::Usage;
pub use temp::Scratch;
pub use tombstone::RemovalReason;
pub use tombstone::Tombstone;
pub use verify::CheckControl;
pub use verify::CheckReport;
pub use verify::Damage;
pub use verify::Owner;
pub use verify::Sample;

/// A store. Cheap to clone; clones share everything. Any number of threads and processes may use one directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    temp: temp::ProcessTemp,
    live: Mutex<Option<lease::Live>>,
    sweep: sweep::Sweep,
    indexes: RwLock<borrow_index::BorrowIndexes>,
    borrowing: AtomicBool,
    /// What was quarantined when the store was opened.
    moved: Vec<quarantine::Quarantined>,
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, Option<lease::Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the store at `root`, or creates it, and removes the temporary files of dead processes. Anything that has the name
    /// of a file or directory of the store and is not one is quarantined. A damaged `layout` file is written again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Newer`] if a newer version of forge created the store; [`StoreError::NotAStore`] if the directory contains
    /// other files (a `CACHEDIR.TAG` in it would make backup programs skip them); [`StoreError::Path`] otherwise.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(fs::PathError::on(root, "resolve"))?;
        let moved = prepare::prepare(&root)?;
        temp::remove_dead(&root.join(layout::TMP))?;
        // Where a killed process can have left temporary files outside of `tmp`.
        for directory in ["", layout::RUNS_ENGINES] {
            remove_temps_if_there(&root.join(directory))?;
        }
        Ok(Self::of(root, moved))
    }

    /// Opens the store at `root` to read notes only. Nothing is created, removed or checked.
    pub fn open_read_only(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(fs::PathError::on(root, "resolve"))?;
        Ok(Self::of(root, Vec::new()))
    }

    fn of(root: PathBuf, moved: Vec<quarantine::Quarantined>) -> Self {
        let temp = temp::ProcessTemp::new(root.join(layout::TMP));
        Self {
            inner: Arc::new(Inner {
                root,
                temp,
                live: Mutex::default(),
                sweep: sweep::Sweep::default(),
                indexes: RwLock::default(),
                borrowing: AtomicBool::new(true),
                moved,
            }),
        }
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Sets whether the store borrows tensors from outputs from now on (default: yes). Tensors that are borrowed already stay
    /// borrowed.
    pub fn set_borrowing(&self, borrowing: bool) {
        self.inner.borrowing.store(borrowing, Ordering::Relaxed);
    }

    fn is_borrowing(&self) -> bool {
        self.inner.borrowing.load(Ordering::Relaxed)
    }

    /// Returns the free space on the store's file system, in bytes.
    pub fn free_space(&self) -> Result<u64, StoreError> {
        Ok(fs::free_space(self.root())?)
    }

    /// Returns the path of a hash in one of the store's directories: `ab/cdef...`.
    fn shard(&self, directory: &str, hash: &Hash) -> PathBuf {
        let text = blake3::Hash::from_bytes(*hash.as_bytes()).to_hex();
        let (first, rest) = text.split_at(2);
        self.inner.root.join(directory).join(first).join(rest)
    }

    /// Returns the folder of temporary files of this process.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn temporary_folder(&self) -> Result<&Path, StoreError> {
        Ok(self.inner.temp.dir()?)
    }

    /// Makes a temporary file on the store's file system. If this process dies, another one removes it.
    fn temp(&self) -> Result<fs::TempFile, StoreError> {
        Ok(fs::TempFile::own_in(self.temporary_folder()?)?)
    }

    /// Gives a temporary file its name in the store. Creates the directory if it is missing, and quarantines anything that
    /// has the name and is not a file.
    fn publish(&self, temp: fs::TempFile, to: &Path, durability: fs::Durability) -> Result<(), StoreError> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        self.quarantine_unless_file(to)?;
        temp.persist(to, durability)?;
        Ok(())
    }
}

/// Removes the temporary files in a directory whose process has died, if the directory is there.
fn remove_temps_if_there(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_stale_temps(directory) {
        Err(error) if error.is_not_found() => Ok(()),
        swept => Ok(swept?),
    }
}
