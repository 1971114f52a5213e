//! Records of the last run of each step: `runs-v1/last/<hash of recipe and step>`. They explain why a step runs; only action
//! results decide whether it is done. And notes of builds with nothing to do: `runs-v1/fresh/<hash of the request>`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

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
use crate::store::survey::FoundFile;

pub(super) const LAST: &str = "last";
const EARLIER: &str = "earlier";
const VERSION: u64 = 1;
const FRESH: &str = "fresh";
const FRESH_VERSION: u64 = 5;
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// The maximum size of a record, in bytes. A table of a thousand candidates needs two thousand nodes.
const CAP: u64 = 16 << 20;
/// How many earlier records of a step are kept.
const KEPT: usize = 8;

/// A file that a step read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Its path, relative to the recipe's folder if it is in that folder.
    pub path: String,
    /// The digest of its content.
    pub digest: BlobDigest,
}

/// The record of the last run of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The recipe's name.
    pub recipe: String,
    /// The step.
    pub step: String,
    /// The action of the step.
    pub action: ActionDigest,
    /// The document of the action.
    pub document: BlobDigest,
    /// The manifest that was written beside its output.
    pub manifest: Option<BlobDigest>,
    /// Whether a check found that manifest complete and consistent.
    #[serde(default)]
    pub manifest_checked: bool,
    /// The actions of the nodes that it needed, by node.
    #[serde(default)]
    pub inputs: BTreeMap<String, ActionDigest>,
    /// The user's files that the step read.
    #[serde(default)]
    pub files: Vec<ReadFile>,
}

/// The earlier records of a step, the newest first.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Earlier {
    records: Vec<StepRecord>,
}

impl Store {
    /// Returns the last record of a step; `None` if it is missing or cannot be read.
    pub fn last(&self, recipe: &str, step: &str) -> Option<StepRecord> {
        let (name, path) = self.place_of(LAST, recipe, step);
        let bytes = fs::read_plain(&path, CAP).ok()?.0;
        serde_json::from_str(sealed::unseal(LAST, VERSION, &name, &bytes).ok()?).ok()
    }

    /// Returns the earlier records of a step, the newest first: a few at most, all different.
    pub fn earlier(&self, recipe: &str, step: &str) -> Vec<StepRecord> {
        let (name, path) = self.place_of(EARLIER, recipe, step);
        let read = || -> Option<Earlier> {
            let bytes = fs::read_plain(&path, CAP).ok()?.0;
            serde_json::from_str(sealed::unseal(EARLIER, VERSION, &name, &bytes).ok()?).ok()
        };
        read().unwrap_or_default().records
    }

    /// Returns the last record of every step of every recipe, the newest first. Leaves out records that cannot be read.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the records cannot be listed.
    pub fn all_last(&self) -> Result<Vec<StepRecord>, StoreError> {
        let mut found = self.found_last()?;
        found.sort_by(|(a_file, a), (b_file, b)| {
            let (a_time, b_time) = (a_file.stamp.mtime_ns, b_file.stamp.mtime_ns);
            (b_time, &a.recipe, &a.step).cmp(&(a_time, &b.recipe, &b.step))
        });
        Ok(found.into_iter().map(|(_, last)| last).collect())
    }

    /// Returns the last record of every step of every recipe, each with its file. Leaves out records that cannot be read.
    pub(super) fn found_last(&self) -> Result<Vec<(FoundFile, StepRecord)>, StoreError> {
        let mut found = Vec::new();
        for mut file in self.plain_files(&format!("{}/{LAST}", layout::RUNS))? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok((bytes, stamp)) = fs::read_plain(&file.path, CAP) else {
                continue;
            };
            if let Ok(document) = sealed::unseal(LAST, VERSION, &name, &bytes)
                && let Ok(last) = serde_json::from_str::<StepRecord>(document)
            {
                file.stamp = stamp;
                found.push((file, last));
            }
        }
        Ok(found)
    }

    /// Writes the last record of a step, unless the same record exists. A record without a manifest keeps the manifest of the
    /// same action. A replaced record of another action is added to the earlier records.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if it cannot be written. A build need not fail for that: the record only explains.
    pub fn note_last(&self, last: &StepRecord) -> Result<(), StoreError> {
        let before = self.last(&last.recipe, &last.step);
        let mut last = last.clone();
        if last.manifest.is_none() {
            let same = before.as_ref().filter(|before| before.action == last.action);
            last.manifest = same.and_then(|before| before.manifest);
            last.manifest_checked = same.is_some_and(|before| before.manifest_checked);
        }
        if before.as_ref() == Some(&last) {
            return Ok(());
        }
        if let Some(before) = before.filter(|before| before.action != last.action || before.inputs != last.inputs) {
            self.note_earlier(before)?;
        }
        self.write_record(LAST, &last.recipe, &last.step, &last)
    }

    fn note_earlier(&self, mut before: StepRecord) -> Result<(), StoreError> {
        // The store keeps what a record names, and nothing needs the manifest of an earlier action.
        before.manifest = None;
        before.manifest_checked = false;
        let (recipe, step) = (before.recipe.clone(), before.step.clone());
        let mut records = self.earlier(&recipe, &step);
        records.retain(|record| (record.action, &record.inputs) != (before.action, &before.inputs));
        records.insert(0, before);
        records.truncate(KEPT);
        self.write_record(EARLIER, &recipe, &step, &Earlier { records })
    }

    fn write_record(
        &self,
        kind: &'static str,
        recipe: &str,
        step: &str,
        document: &impl Serialize,
    ) -> Result<(), StoreError> {
        let (name, path) = self.place_of(kind, recipe, step);
        let temp = self.sealed_temp(kind, VERSION, &name, document)?;
        self.publish(temp, &path, Durability::Fast)
    }

    /// Reads the note of a build with nothing to do; `None` if it is missing or cannot be read.
    pub fn fresh<T>(&self, name: &Hash, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let name = name.to_string();
        let path = self.root().join(layout::RUNS).join(FRESH).join(&name);
        let (bytes, _) = fs::read_plain(&path, sealed::CAP).ok()?;
        read(sealed::unseal(FRESH, FRESH_VERSION, &name, &bytes).ok()?)
    }

    /// Writes the note of a build with nothing to do, unless the same note exists. `text` is one line.
    pub fn note_fresh(&self, name: &Hash, text: &str) -> Result<(), StoreError> {
        if self.fresh(name, |noted| Some(noted == text)) == Some(true) {
            return Ok(());
        }
        let name = name.to_string();
        let mut temp = self.temp()?;
        let at = temp.path().to_owned();
        temp.write_all(&sealed::seal(FRESH, FRESH_VERSION, &name, text))
            .map_err(fs::PathError::on(&at, "write"))?;
        self.publish(
            temp,
            &self.root().join(layout::RUNS).join(FRESH).join(&name),
            Durability::Fast,
        )
    }

    /// Records, to the day, that a build relied on a note now. The results that the note names then count as used.
    pub fn touch_fresh(&self, name: &Hash) -> Result<(), StoreError> {
        let path = self.root().join(layout::RUNS).join(FRESH).join(name.to_string());
        let now = i64::try_from(fs::nanos(SystemTime::now())).unwrap_or(i64::MAX);
        if let Some(facts) = fs::facts(&path)?
            && now.saturating_sub(facts.stamp.mtime_ns) > DAY_NS
        {
            fs::set_modified(&path, now)?;
        }
        Ok(())
    }

    /// Removes all notes of builds with nothing to do, so that the next build checks everything.
    pub(super) fn forget_fresh(&self) {
        let folder = self.root().join(layout::RUNS).join(FRESH);
        for entry in fs::list(&folder).unwrap_or_default() {
            fs::remove_file(&folder.join(&entry.name)).ok();
        }
    }

    /// Returns the store's files of a result: the result, the action's document and the outputs.
    pub fn files_of(&self, key: &ActionDigest, result: &ActionResult) -> Vec<PathBuf> {
        let blobs = std::iter::once(&result.action).chain(result.outputs.values());
        std::iter::once(self.shard(layout::ACTIONS, key.hash()))
            .chain(blobs.map(|digest| self.blob_path(digest)))
            .collect()
    }

    fn place_of(&self, kind: &str, recipe: &str, step: &str) -> (String, PathBuf) {
        let name = Hash::of(format!("{recipe}\n{step}").as_bytes()).to_string();
        let path = self.root().join(layout::RUNS).join(kind).join(&name);
        (name, path)
    }
}
