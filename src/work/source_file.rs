//! A file that the user owns, as it was when its digest was taken.

use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use super::StepError;
use crate::digest::BlobDigest;
use crate::fs;
use crate::fs::Stamp;
use crate::store::Store;

/// A file that the user owns, as it was when its digest was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Where it is.
    #[serde(with = "os_path")]
    pub path: PathBuf,
    /// What it held.
    pub digest: BlobDigest,
    /// Which file it was, and when it had last changed.
    pub stamp: Stamp,
}

impl SourceFile {
    /// Fails if the file is not the one whose digest was taken.
    pub fn check_unchanged(&self) -> Result<(), StepError> {
        if Stamp::of(&self.path)? == self.stamp {
            Ok(())
        } else {
            Err(self.changed())
        }
    }

    /// Opens the file, if it is the one whose digest was taken. Whoever checks with [`SourceFile::check_unchanged`] after
    /// reading knows that what was read has that digest.
    pub fn open(&self) -> Result<fs::File, StepError> {
        let file = fs::open(&self.path)?;
        if Stamp::of_file(&file, &self.path)? == self.stamp {
            Ok(file)
        } else {
            Err(self.changed())
        }
    }

    fn changed(&self) -> StepError {
        StepError::SourceChanged {
            path: self.path.clone(),
        }
    }

    /// Returns the digest of a file from the stat cache, without reading the file; `None` if it must be read.
    pub fn known(store: &Store, path: &Path) -> Result<Option<Self>, StepError> {
        let stamp = Stamp::of(path)?;
        Ok(store.known(&stamp).map(|digest| Self {
            path: path.to_owned(),
            digest,
            stamp,
        }))
    }

    /// Returns the digest of a file by reading it, without a store.
    pub fn hash(path: &Path) -> Result<Self, StepError> {
        let mut file = fs::open(path)?;
        let stamp = Stamp::of_file(&file, path)?;
        let digest = BlobDigest::of_reader(&mut file).map_err(fs::PathError::on(path, "read"))?;
        let path = path.to_owned();
        Ok(Self { path, digest, stamp })
    }

    /// Returns the digest of a file, reading it if the stat cache does not know it.
    pub fn read(store: &Store, path: &Path, progress: &dyn Fn(u64)) -> Result<Self, StepError> {
        let (digest, stamp) = store.digest_settled(path, progress)?;
        Ok(Self {
            path: path.to_owned(),
            digest,
            stamp,
        })
    }
}

/// Paths that need not be UTF-8.
mod os_path {
    use std::ffi::OsString;
    use std::path::Path;
    use std::path::PathBuf;

    use serde::Deserialize as _;
    use serde::Deserializer;
    use serde::Serialize as _;
    use serde::Serializer;

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        OsString::deserialize(deserializer).map(PathBuf::from)
    }
}
