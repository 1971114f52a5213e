//! The record of what steps did last: `runs-v1/last/<hash of recipe and step>`. It answers "why does this run?" by what it
//! names, and is never asked whether something is done: only action results are. And notes of builds that found everything
//! done: `runs-v1/fresh/<hash of what was asked>`.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::sealed;

const KIND: &str = "last";
const VERSION: u64 = 1;
const CAP: u64 = 64 << 10;
const FRESH: &str = "fresh";
const FRESH_VERSION: u64 = 1;

/// What a step of a recipe did last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// The recipe's name.
    pub recipe: String,
    /// The step.
    pub step: String,
    /// Its action.
    pub action: ActionDigest,
    /// The action's document.
    pub document: BlobDigest,
    /// The manifest that was written beside its output.
    pub manifest: Option<BlobDigest>,
}

impl Store {
    /// Returns what a step did last; nothing where that cannot be read.
    pub fn last(&self, recipe: &str, step: &str) -> Option<Last> {
        let (name, path) = self.place_of(recipe, step);
        let bytes = fs::read_small(&path, CAP).ok()?;
        serde_json::from_str(sealed::unseal(KIND, VERSION, &name, &bytes).ok()?).ok()
    }

    /// Notes what a step did, unless that is noted already.
    pub fn note_last(&self, last: &Last) -> Result<(), StoreError> {
        if self.last(&last.recipe, &last.step).as_ref() == Some(last) {
            return Ok(());
        }
        let (name, path) = self.place_of(&last.recipe, &last.step);
        let text = serde_json::to_string(last).unwrap_or_default();
        fs::create_dir_all(&self.root().join(layout::RUNS).join(KIND))?;
        fs::write_atomic(&path, &sealed::seal(KIND, VERSION, &name, &text), Durability::Fast)?;
        Ok(())
    }

    /// Returns the note of a build that found everything done; nothing where that cannot be read.
    pub fn fresh(&self, name: &Hash) -> Option<String> {
        let name = name.to_string();
        let path = self.root().join(layout::RUNS).join(FRESH).join(&name);
        let bytes = fs::read_small(&path, sealed::CAP).ok()?;
        Some(sealed::unseal(FRESH, FRESH_VERSION, &name, &bytes).ok()?.to_owned())
    }

    /// Notes that a build found everything done, unless the same is noted already. `text` is one line.
    pub fn note_fresh(&self, name: &Hash, text: &str) -> Result<(), StoreError> {
        if self.fresh(name).as_deref() == Some(text) {
            return Ok(());
        }
        let folder = self.root().join(layout::RUNS).join(FRESH);
        fs::create_dir_all(&folder)?;
        let name = name.to_string();
        let sealed = sealed::seal(FRESH, FRESH_VERSION, &name, text);
        Ok(fs::write_atomic(&folder.join(&name), &sealed, Durability::Fast)?)
    }

    /// Returns the store's files that stand behind an action's result: the result, its document and its outputs.
    pub fn files_of(&self, key: &ActionDigest, result: &ActionResult) -> Vec<PathBuf> {
        let blobs = std::iter::once(&result.action).chain(result.outputs.values());
        std::iter::once(self.shard(layout::ACTIONS, key.hash()))
            .chain(blobs.map(|digest| self.blob_path(digest)))
            .collect()
    }

    /// Writes the record of a run, a JSON document a line, under a name of its own.
    pub fn write_run(&self, id: &str, lines: &[u8]) -> Result<(), StoreError> {
        let path = self.root().join(layout::RUNS).join(format!("{id}.jsonl"));
        Ok(fs::write_atomic(&path, lines, Durability::Fast)?)
    }

    fn place_of(&self, recipe: &str, step: &str) -> (String, PathBuf) {
        let name = Hash::of(format!("{recipe}\n{step}").as_bytes()).to_string();
        let path = self.root().join(layout::RUNS).join(KIND).join(&name);
        (name, path)
    }
}
