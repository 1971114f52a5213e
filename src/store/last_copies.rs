//! Blobs that only certain files outside the store contain: what is lost if those files are removed.

use std::collections::BTreeSet;
use std::io;

use crate::digest::BlobDigest;
use crate::fs::PathError;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::borrow::CopiedBack;

impl Store {
    /// Returns the blobs that the store borrows from the files with these stamps, and that neither the store nor another file
    /// contains.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the indexes of borrowed blobs cannot be read.
    pub fn only_in(&self, files: &[Stamp]) -> Result<Vec<BlobDigest>, StoreError> {
        let (mut inside, mut elsewhere) = (BTreeSet::new(), BTreeSet::new());
        for name in self.index_names()? {
            let Some((_, index)) = self.index(&name)?.filter(|(_, index)| index.is_valid()) else {
                continue;
            };
            // By the stamp: the same file may be known by another path.
            let of = if files.iter().any(|stamp| index.has_stamp(stamp)) {
                &mut inside
            } else {
                &mut elsewhere
            };
            of.extend(index.blobs.iter().map(|blob| blob.bytes));
        }
        let mut only = Vec::new();
        for digest in inside.difference(&elsewhere) {
            if self.own_blob(digest)?.is_none() {
                only.push(*digest);
            }
        }
        Ok(only)
    }

    /// Copies the blobs that only the file with this stamp contains into the store. While the returned value is held, no other
    /// process replaces an output that contains them, too, so the file may be removed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the disk is too full or cannot be written. Nothing may be removed then.
    pub fn copy_only_in(&self, file: &Stamp) -> Result<CopiedBack, StoreError> {
        let lock = self.lock_replacing_outputs()?;
        for digest in self.only_in(std::slice::from_ref(file))? {
            if self.free_space()? < digest.len {
                return Err(PathError::new(self.root(), "write to", io::ErrorKind::StorageFull.into()).into());
            }
            if let Some(borrowed) = self.open_borrowed(&digest)? {
                self.copy_into_store(borrowed, &digest)?;
            }
        }
        Ok(lock)
    }
}
