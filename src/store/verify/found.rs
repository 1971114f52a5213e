//! What a check is asked, and what it finds.

use std::path::PathBuf;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::store::Amount;
use crate::store::quarantine::Moved;

/// How much is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Everything.
    All,
    /// So many millionths of the bytes, chosen anew each time.
    Millionths(u64),
    /// So many bytes, chosen anew each time.
    Bytes(u64),
}

/// What a blob is: an output of an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The action.
    pub key: ActionDigest,
    /// Its kind; nothing if its document cannot be read.
    pub kind: Option<String>,
    /// The output's name; nothing for the action's own document.
    pub output: Option<String>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flaw {
    /// A blob's bytes are not those of its name.
    Blob {
        /// Its name.
        hash: Hash,
        /// How long it is.
        bytes: u64,
        /// Where it is now.
        moved_to: PathBuf,
        /// What it was.
        owners: Vec<Owner>,
    },
    /// Something that is no file had the name of one, or a file that of a directory.
    NotAFile {
        /// Where it stood.
        path: PathBuf,
        /// Where it is now.
        moved_to: PathBuf,
        /// What it is, in words: `a named pipe`.
        what: &'static str,
    },
    /// A result's seal is broken.
    Result {
        /// The action.
        key: ActionDigest,
        /// Its kind, if its document was found.
        kind: Option<String>,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result names a blob that is not there, and nothing says why.
    Gone {
        /// The blob.
        digest: BlobDigest,
        /// What it was.
        owner: Owner,
    },
    /// A file that lends a blob holds other bytes, though its stamp is the same.
    BorrowedBlob {
        /// The blob.
        digest: BlobDigest,
        /// The file, outside the store.
        path: PathBuf,
        /// What the blob is.
        owners: Vec<Owner>,
    },
    /// A file that lends blobs has changed elsewhere, though its stamp is the same.
    BorrowedFile {
        /// The file, outside the store.
        path: PathBuf,
    },
    /// A note's seal is broken: what a step did last, a pin, an event, a tombstone, a book of loans.
    Note {
        /// What kind of note, as its directory is called.
        directory: &'static str,
        /// Its name.
        name: String,
        /// Where it is now.
        moved_to: PathBuf,
    },
}

impl From<Moved> for Flaw {
    fn from(moved: Moved) -> Self {
        Self::NotAFile {
            path: moved.path,
            moved_to: moved.to,
            what: moved.what,
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs that were read.
    pub blobs: Amount,
    /// Files outside the store that were read for what they lend.
    pub borrowed_files: Amount,
    /// Blobs and files in all, read or not.
    pub all: Amount,
    /// Results that were looked at.
    pub results: u64,
    /// Notes that were looked at.
    pub notes: u64,
    /// What is not as it should be.
    pub flaws: Vec<Flaw>,
    /// Results that were dropped since they had lost a blob: to an output that was deleted or changed, to an earlier
    /// damage, or to one of the flaws.
    pub dropped: u64,
    /// What has no place in a store; it was left as it is.
    pub foreign: Vec<PathBuf>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}
