//! The names of actions and blobs of a store for people: steps of recipes, tensors of candidates. They come from the notes of what
//! steps did last, and by their manifests; the store itself knows digests only.

use std::collections::HashMap;

use crate::digest::ActionDigest;
use crate::digest::Hash;
use crate::manifest::Manifest;
use crate::store::Store;
use crate::store::StoreError;

/// The maximum size of a manifest.
const MANIFEST_CAP: u64 = 256 << 20;

/// Names for actions and blobs. Not every one has one.
#[derive(Debug, Default)]
pub struct Names {
    actions: HashMap<ActionDigest, String>,
    blobs: HashMap<Hash, String>,
}

impl Names {
    /// Reads the store's notes and pinned manifests.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the notes cannot be listed; one that cannot be read is left out.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        let mut names = Self::default();
        let mut manifests = Vec::new();
        for last in store.all_last()? {
            names
                .actions
                .insert(last.action, format!("`{}` of recipe `{}`", last.step, last.recipe));
            if let Some(manifest) = last.manifest {
                names.blobs.insert(
                    manifest.hash,
                    format!("manifest of `{}` of recipe `{}`", last.step, last.recipe),
                );
                manifests.push(manifest);
            }
        }
        for pin in store.pins()? {
            names
                .blobs
                .entry(pin.manifest.hash)
                .or_insert_with(|| format!("pinned manifest of `{}`", pin.output));
            manifests.push(pin.manifest);
        }
        manifests.sort_unstable();
        manifests.dedup();
        for digest in manifests {
            let manifest = store.read_if_intact(&digest, MANIFEST_CAP);
            let manifest = manifest.and_then(|bytes| serde_json::from_slice::<Manifest>(&bytes).ok());
            if let Some(manifest) = manifest {
                names.add(&manifest);
            }
        }
        Ok(names)
    }

    fn add(&mut self, manifest: &Manifest) {
        let output = manifest.subject.first().map_or("", |subject| subject.name.as_str());
        let forge = &manifest.predicate.forge;
        for (key, record) in &forge.actions {
            if let (Ok(key), Some(step)) = (key.parse(), &record.step) {
                self.actions.entry(key).or_insert_with(|| format!("`{step}`"));
            }
        }
        for tensor in &forge.tensors {
            let key = tensor.action.as_ref().and_then(|key| key.parse().ok());
            if let Some(key) = key {
                let name = format!("tensor `{}` as {} of `{output}`", tensor.name, tensor.ty);
                self.actions.entry(key).or_insert(name);
            }
        }
    }

    /// Returns what an action is.
    pub fn action(&self, key: &ActionDigest) -> Option<&str> {
        self.actions.get(key).map(String::as_str)
    }

    /// Returns what a blob is that is no output of an action.
    pub fn blob(&self, hash: &Hash) -> Option<&str> {
        self.blobs.get(hash).map(String::as_str)
    }
}
