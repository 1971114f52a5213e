//! What can go wrong in the store.

use std::path::PathBuf;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs::PathError;

/// Something went wrong in the store. Nothing broken is believed after any of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file system refused.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A blob's bytes are not those that its name promises. It was moved aside, so the next writer makes it again.
    #[error("blob {digest} was damaged: found {found}; it was moved to `{}`", moved_to.display())]
    Damaged {
        /// The blob.
        digest: BlobDigest,
        /// What its bytes digest to.
        found: BlobDigest,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A blob is not in the store.
    #[error("blob {digest} is not in the store (expected at `{}`)", path.display())]
    Missing {
        /// The blob.
        digest: BlobDigest,
        /// Where it would be.
        path: PathBuf,
    },
    /// A blob is larger than the reader is ready to hold.
    #[error("blob {digest} has {} bytes, more than the {cap} allowed here", digest.len)]
    TooLarge {
        /// The blob.
        digest: BlobDigest,
        /// What was allowed.
        cap: u64,
    },
    /// A newer program wrote this; it is left as it is.
    #[error(
        "`{}` has version {found}, and this program reads up to {supported}; use a newer program, or another cache directory",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest that this program knows.
        supported: u64,
    },
    /// The directory holds something else.
    #[error("`{}` is not a cache: it is_valid `{found}`; name an empty or a new directory", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// A name in it, or a text, that a store does not have.
        found: String,
    },
    /// A link is in the store in place of a directory.
    #[error("`{}` is a symbolic link, which no store has in it: it could lead out of the store", path.display())]
    LeadsOut {
        /// What it is.
        path: PathBuf,
    },
    /// Somebody else does what only one may do at a time.
    #[error("another `forge cache` is at work on this store (`{}` is locked)", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// Builds live, and what is to be done needs the store alone.
    #[error("{builds} builds use this store now")]
    InUse {
        /// How many.
        builds: usize,
    },
    /// What is to be pinned is no manifest, and none stands beside it.
    #[error("`{}` is no manifest of forge: {problem}", path.display())]
    NotAManifest {
        /// What was named.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that lent a blob does not hold it any more. The loan was struck out, so whoever made the blob makes it again.
    #[error("blob {digest} was kept in `{}`, which does not hold it any more", path.display())]
    BorrowedChanged {
        /// The blob.
        digest: BlobDigest,
        /// The file, outside the store.
        path: PathBuf,
    },
    /// A result that names blobs which are not there may not be committed.
    #[error("the result of action {} names {} blobs that are not in the store, such as {}",
        key.short(), missing.len(), missing.first().map(ToString::to_string).unwrap_or_default())]
    Incomplete {
        /// The action.
        key: ActionDigest,
        /// The blobs that are not there, at least one.
        missing: Vec<BlobDigest>,
    },
    /// A file changed while it was read.
    #[error("`{}` changed while it was being read; let the other program finish, then build again", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// Another program changed an output, or put another file in its place, while it was being written.
    #[error("another program changed `{}` while forge was writing it", path.display())]
    OutputChanged {
        /// The output.
        path: PathBuf,
    },
    /// The caller ended the reading of a file.
    #[error("stopped while reading `{}`", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
    /// The wait was called off.
    #[error("cancelled while waiting for action {}", key.short())]
    Cancelled {
        /// The action whose lock was waited for.
        key: ActionDigest,
    },
    /// An earlier write to this blob failed, so what is there is not all of it.
    #[error("the blob being written at `{}` is incomplete: an earlier write to it failed", path.display())]
    WriteFailed {
        /// Where it was being written.
        path: PathBuf,
    },
}

/// What kind of trouble an error is, for exit codes and ways out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// No room on the disk, or in the user's quota.
    DiskFull,
    /// No permission, or a read-only file system.
    Permission,
    /// Bytes in the store were not as promised; building again mends it.
    Damaged,
    /// A blob or a file is not there.
    Missing,
    /// A newer program wrote this.
    Newer,
    /// A file changed while it was used or written.
    SourceChanged,
    /// The user called it off.
    Cancelled,
    /// Anything else.
    Other,
}

impl StoreError {
    /// Returns the blobs that this error says are not there (any more): whoever made them makes them again.
    pub fn lost(&self) -> Vec<BlobDigest> {
        match self {
            Self::Damaged { digest, .. } | Self::Missing { digest, .. } | Self::BorrowedChanged { digest, .. } => {
                vec![*digest]
            }
            Self::Incomplete { missing, .. } => missing.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns what kind of trouble this is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Path(error) if error.is_disk_full() => ErrorClass::DiskFull,
            Self::Path(error) if error.is_permission() => ErrorClass::Permission,
            Self::Path(error) if error.is_not_found() => ErrorClass::Missing,
            Self::Path(_)
            | Self::TooLarge { .. }
            | Self::NotAStore { .. }
            | Self::LeadsOut { .. }
            | Self::Busy { .. }
            | Self::InUse { .. }
            | Self::NotAManifest { .. }
            | Self::WriteFailed { .. } => ErrorClass::Other,
            Self::Damaged { .. } | Self::BorrowedChanged { .. } => ErrorClass::Damaged,
            Self::Missing { .. } | Self::Incomplete { .. } => ErrorClass::Missing,
            Self::Newer { .. } => ErrorClass::Newer,
            Self::SourceChanged { .. } | Self::OutputChanged { .. } => ErrorClass::SourceChanged,
            Self::Cancelled { .. } | Self::Stopped { .. } => ErrorClass::Cancelled,
        }
    }
}
