//! The errors of the store.

use std::path::PathBuf;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs::PathError;

/// An error of the store. None of them leaves anything in the store that is used although it is wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The bytes of a blob do not match its digest. It was quarantined, so the next writer makes it again.
    #[error("blob {digest} was damaged: found {found}; it was moved to `{}`", moved_to.display())]
    Damaged {
        /// The blob.
        digest: BlobDigest,
        /// The digest of its bytes.
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
    /// A blob is larger than the caller allows.
    #[error("blob {digest} has {} bytes, more than the {cap} allowed here", digest.len)]
    TooLarge {
        /// The blob.
        digest: BlobDigest,
        /// The maximum length, in bytes.
        cap: u64,
    },
    /// A newer version of forge wrote this file. It is left as it is.
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
    /// The directory contains other files.
    #[error("`{}` is not a cache: it contains `{found}`; name an empty or a new directory", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// A name or text in it that does not belong to a store.
        found: String,
    },
    /// The store contains a link in place of a directory.
    #[error("`{}` is a symbolic link, which no store has in it: it could lead out of the store", path.display())]
    LeadsOut {
        /// The link.
        path: PathBuf,
    },
    /// Another process does something that only one process may do at a time.
    #[error("another `forge cache` is at work on this store (`{}` is locked)", path.display())]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// Builds are running, and the operation needs exclusive use of the store.
    #[error("{builds} builds use this store now")]
    InUse {
        /// How many.
        builds: usize,
    },
    /// The file to pin is not a manifest, and there is none beside it.
    #[error("`{}` is no manifest of forge: {problem}", path.display())]
    NotAManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that the store borrowed a blob from does not contain it any more. The blob was removed from the index, so that it
    /// is made again.
    #[error("blob {digest} was kept in `{}`, which does not hold it any more", path.display())]
    BorrowedChanged {
        /// The blob.
        digest: BlobDigest,
        /// The file, outside the store.
        path: PathBuf,
    },
    /// A result that names missing blobs cannot be committed.
    #[error("the result of action {} names {} blobs that are not in the store, such as {}",
        key.short(), missing.len(), missing.first().map(ToString::to_string).unwrap_or_default())]
    Incomplete {
        /// The action.
        key: ActionDigest,
        /// The missing blobs, at least one.
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
    /// The caller stopped the reading of a file.
    #[error("stopped while reading `{}`", path.display())]
    Stopped {
        /// The file.
        path: PathBuf,
    },
    /// The wait for a lock was cancelled.
    #[error("cancelled while waiting for action {}", key.short())]
    Cancelled {
        /// The action of the lock.
        key: ActionDigest,
    },
    /// An earlier write to this blob failed, so it is incomplete.
    #[error("the blob being written at `{}` is incomplete: an earlier write to it failed", path.display())]
    WriteFailed {
        /// Where it was being written.
        path: PathBuf,
    },
}

/// The class of an error, for exit codes and hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The disk is full, or the user's quota is.
    DiskFull,
    /// No permission, or a read-only file system.
    Permission,
    /// Something in the store is damaged. The next build repairs it.
    Damaged,
    /// A blob or a file is missing.
    Missing,
    /// A newer version of forge wrote the file.
    Newer,
    /// A file changed while it was used or written.
    SourceChanged,
    /// The user cancelled the operation.
    Cancelled,
    /// Anything else.
    Other,
}

impl StoreError {
    /// Returns the blobs that are missing according to this error, so that they are made again.
    pub fn lost(&self) -> Vec<BlobDigest> {
        match self {
            Self::Damaged { digest, .. } | Self::Missing { digest, .. } | Self::BorrowedChanged { digest, .. } => {
                vec![*digest]
            }
            Self::Incomplete { missing, .. } => missing.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns the class of this error.
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
