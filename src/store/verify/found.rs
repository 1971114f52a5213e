//! The input and the result of a check.

use std::path::PathBuf;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::store::Amount;
use crate::store::quarantine::Quarantined;

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Everything.
    All,
    /// This many millionths of the bytes, chosen at random.
    Millionths(u64),
    /// This many bytes, chosen at random.
    Bytes(u64),
}

/// What a blob is: an output of an action, or its document.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The action.
    pub key: ActionDigest,
    /// Its kind; `None` if its document cannot be read.
    pub kind: Option<String>,
    /// The name of the output; `None` for the action's document.
    pub output: Option<String>,
}

/// Damage that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// The bytes of a blob do not match its name.
    Blob {
        /// Its name.
        hash: Hash,
        /// Its length.
        bytes: u64,
        /// Where it is now.
        moved_to: PathBuf,
        /// What it was.
        owners: Vec<Owner>,
    },
    /// Something that is not a file had the name of a file of the store, or a file had the name of a directory.
    NotAFile {
        /// Where it was.
        path: PathBuf,
        /// Where it is now.
        moved_to: PathBuf,
        /// What it is, such as `a named pipe`.
        what: &'static str,
    },
    /// The checksum of a result is wrong.
    Result {
        /// The action.
        key: ActionDigest,
        /// Its kind, if its document was found.
        kind: Option<String>,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result names a blob that is missing, and nothing explains why.
    Gone {
        /// The blob.
        digest: BlobDigest,
        /// What it was.
        owner: Owner,
    },
    /// A file does not contain the bytes of a borrowed blob, although its stamp is the same.
    BorrowedBlob {
        /// The blob.
        digest: BlobDigest,
        /// The file, outside the store.
        path: PathBuf,
        /// What the blob is.
        owners: Vec<Owner>,
    },
    /// A file that the store borrows from has changed, although its stamp is the same. The borrowed blobs are intact.
    BorrowedFile {
        /// The file, outside the store.
        path: PathBuf,
    },
    /// The checksum of a note is wrong: a record of a step, a pin, an event, a tombstone, an index of borrowed blobs.
    Note {
        /// The directory of the note, which says its kind.
        directory: &'static str,
        /// Its name.
        name: String,
        /// Where it is now.
        moved_to: PathBuf,
    },
}

impl From<Quarantined> for Damage {
    fn from(moved: Quarantined) -> Self {
        Self::NotAFile {
            path: moved.path,
            moved_to: moved.to,
            what: moved.what,
        }
    }
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Blobs that were read.
    pub blobs: Amount,
    /// Files outside the store that it borrows from and that were read.
    pub borrowed_files: Amount,
    /// All blobs and files, read or not.
    pub all: Amount,
    /// The number of results that were checked.
    pub results: u64,
    /// The number of notes that were checked.
    pub notes: u64,
    /// The damage that was found.
    pub damage: Vec<Damage>,
    /// The number of results that were removed because they had lost a blob: with an output that was deleted or changed, or by
    /// damage.
    pub dropped: u64,
    /// What does not belong to a store. It was left as it is.
    pub foreign: Vec<PathBuf>,
    /// Whether the check was stopped early.
    pub stopped: bool,
}
