//! The content-addressed store: blobs by their digest, action results by the digest of their action, and what is
//! known of files without reading them. `docs/design-notes.md` says why it is safe, `cache-schema/README.md` what lies
//! where.

mod actions;
mod blobs;
mod error;
mod layout;
mod lock;
mod record;
mod runs;
mod sealed;
mod session;
mod stat;
mod tombstone;

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Hash;
use crate::fs;

pub use actions::Committed;
pub use actions::Lookup;
pub use actions::StoreEvent;
pub use blobs::BlobWriter;
pub use error::ErrorClass;
pub use error::StoreError;
pub use lock::ActionLock;
pub use lock::Holder;
pub use lock::Lease;
pub use lock::OutputLock;
pub use record::Last;
pub use record::ReadFile;
pub use runs::RunWriter;
pub use session::Scratch;
pub use tombstone::Removal;
pub use tombstone::Tombstone;

/// A stamp younger than this when hashing starts proves nothing: the coarsest clock of a common file system (FAT's).
pub const GRAIN: Duration = Duration::from_secs(2);

/// A store. Cheap to clone; clones share everything. Any number of threads and processes may use one directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    session: session::Session,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and sweeps what dead processes left half-written.
    ///
    /// # Errors
    ///
    /// [`StoreError::Newer`] if a newer program made it, [`StoreError::NotAStore`] if the directory holds other things
    /// (so that no backup ever skips a home directory for the tag that a cache carries), [`StoreError::Path`] otherwise.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let root = std::path::absolute(root).map_err(fs::PathError::on(root, "resolve"))?;
        layout::prepare(&root)?;
        session::sweep(&root.join(layout::TMP))?;
        let session = session::Session::new(root.join(layout::TMP));
        Ok(Self {
            inner: Arc::new(Inner { root, session }),
        })
    }

    /// Returns the store's directory.
    pub fn root(&self) -> &Path {
        &self.inner.root
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
        Ok(fs::TempFile::new_in(self.inner.session.dir()?)?)
    }
}

/// Gives a temporary file its name in the store, making the directory anew if somebody removed it.
fn publish(temp: fs::TempFile, to: &Path, durability: fs::Durability) -> Result<(), StoreError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    Ok(temp.persist(to, durability)?)
}
