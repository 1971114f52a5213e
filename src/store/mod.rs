//! The content-addressed store: blobs by their digest, action results by the digest of their action, and what is
//! known of files without reading them. `docs/design-notes.md` says why it is safe, `cache-schema/README.md` what lies
//! where.

mod actions;
mod aside;
mod blobs;
mod clean;
mod error;
mod gc;
mod layout;
mod lease;
mod loans;
mod lock;
mod pins;
mod prepare;
mod record;
mod runs;
mod sealed;
mod session;
mod stat;
mod survey;
mod sweep;
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
pub use error::ErrorClass;
pub use error::StoreError;
pub use gc::Cause;
pub use gc::GcDone;
pub use gc::GcPlan;
pub use gc::Group;
pub use gc::Keeper;
pub use gc::Kept;
pub use gc::Wish;
pub use lease::Lease;
pub use loans::Loan;
pub use loans::Reclaimed;
pub use lock::ActionLock;
pub use lock::Holder;
pub use lock::OutputLock;
pub use pins::Pin;
pub use pins::Pinned;
pub use record::Last;
pub use record::ReadFile;
pub use runs::RunWriter;
pub use session::Scratch;
pub use survey::Amount;
pub use survey::Listed;
pub use survey::Usage;
pub use tombstone::Removal;
pub use tombstone::Tombstone;
pub use verify::Flaw;
pub use verify::Owner;
pub use verify::Sample;
pub use verify::Verified;
pub use verify::Watch;

/// A store. Cheap to clone; clones share everything. Any number of threads and processes may use one directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    session: session::Session,
    live: Mutex<Option<lease::Live>>,
    sweep: sweep::Sweep,
    loans: RwLock<loans::Known>,
    lending: AtomicBool,
    /// What was moved aside when the store was opened.
    moved: Vec<aside::Moved>,
}

impl Inner {
    fn live(&self) -> MutexGuard<'_, Option<lease::Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and sweeps what dead processes left half-written. What
    /// stands in the way of one of its files or directories is moved to its quarantine, and a damaged `layout` is written
    /// anew.
    ///
    /// # Errors
    ///
    /// [`StoreError::Newer`] if a newer program made it, [`StoreError::NotAStore`] if the directory holds other things
    /// (so that no backup ever skips a home directory for the tag that a cache carries), [`StoreError::Path`] otherwise.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(fs::PathError::on(root, "resolve"))?;
        let moved = prepare::prepare(&root)?;
        session::sweep(&root.join(layout::TMP))?;
        // Where a killed process can have left temporary files outside of `tmp`.
        for directory in ["", layout::RUNS_ENGINES] {
            sweep_if_there(&root.join(directory))?;
        }
        Ok(Self::of(root, moved))
    }

    /// Returns the store at `root` as it is, for looking at notes only: nothing is made, swept or checked.
    pub fn look(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(fs::PathError::on(root, "resolve"))?;
        Ok(Self::of(root, Vec::new()))
    }

    fn of(root: PathBuf, moved: Vec<aside::Moved>) -> Self {
        let session = session::Session::new(root.join(layout::TMP));
        Self {
            inner: Arc::new(Inner {
                root,
                session,
                live: Mutex::default(),
                sweep: sweep::Sweep::default(),
                loans: RwLock::default(),
                lending: AtomicBool::new(true),
                moved,
            }),
        }
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// Says whether outputs lend their tensors to the store from now on; they do unless this is called. What they lend
    /// already stays as it is.
    pub fn set_lending(&self, lending: bool) {
        self.inner.lending.store(lending, Ordering::Relaxed);
    }

    fn is_lending(&self) -> bool {
        self.inner.lending.load(Ordering::Relaxed)
    }

    /// Returns how many bytes may still be written to the store's file system.
    pub fn free_space(&self) -> Result<u64, StoreError> {
        Ok(fs::free_space(self.root())?)
    }

    /// Returns where something of that hash lies in one of the store's directories: `ab/cdef...`.
    fn shard(&self, directory: &str, hash: &Hash) -> PathBuf {
        let text = blake3::Hash::from_bytes(*hash.as_bytes()).to_hex();
        let (first, rest) = text.split_at(2);
        self.inner.root.join(directory).join(first).join(rest)
    }

    /// Makes a temporary file on the store's file system, swept if this process dies.
    fn temp(&self) -> Result<fs::TempFile, StoreError> {
        Ok(fs::TempFile::own_in(self.inner.session.dir()?)?)
    }

    /// Gives a temporary file its name in the store, making the directory anew if somebody removed it, and moving aside what
    /// has the name and is no file.
    fn publish(&self, temp: fs::TempFile, to: &Path, durability: fs::Durability) -> Result<(), StoreError> {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        self.set_aside(to)?;
        temp.persist(to, durability)?;
        Ok(())
    }
}

/// Removes the temporary files in a directory whose process has died, if the directory is there.
fn sweep_if_there(directory: &Path) -> Result<(), StoreError> {
    match fs::sweep_temps(directory) {
        Err(error) if error.is_not_found() => Ok(()),
        swept => Ok(swept?),
    }
}
