//! The record of what steps did last: `runs-v1/last/<hash of recipe and step>`. It answers "why does this run?" by what it
//! names, and is never asked whether something is done: only action results are. And notes of builds that found everything
//! done: `runs-v1/fresh/<hash of what was asked>`.

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
const FRESH_VERSION: u64 = 3;
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// A table of a thousand candidates needs two thousand nodes.
const CAP: u64 = 16 << 20;
/// How many records of a step are kept besides the last one.
const KEPT: usize = 8;

/// A file that a step read, by the name that the recipe has for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Its path, relative to the recipe's folder where it lies below.
    pub path: String,
    /// What it held.
    pub digest: BlobDigest,
}

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
    /// Whether that manifest was found to be complete and free of contradictions when it was written or later.
    #[serde(default)]
    pub manifest_checked: bool,
    /// The actions of the nodes that it needed, by node: where its inputs came from.
    #[serde(default)]
    pub inputs: BTreeMap<String, ActionDigest>,
    /// The user's files that it read.
    #[serde(default)]
    pub files: Vec<ReadFile>,
}

/// What a step did before what it did last, the latest first.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Earlier {
    records: Vec<Last>,
}

impl Store {
    /// Returns what a step did last; nothing where that cannot be read.
    pub fn last(&self, recipe: &str, step: &str) -> Option<Last> {
        let (name, path) = self.place_of(LAST, recipe, step);
        let bytes = fs::read_plain(&path, CAP).ok()?.0;
        serde_json::from_str(sealed::unseal(LAST, VERSION, &name, &bytes).ok()?).ok()
    }

    /// Returns what a step did before what it did last, the latest first: a few at most, and only what differs.
    pub fn earlier(&self, recipe: &str, step: &str) -> Vec<Last> {
        let (name, path) = self.place_of(EARLIER, recipe, step);
        let read = || -> Option<Earlier> {
            let bytes = fs::read_plain(&path, CAP).ok()?.0;
            serde_json::from_str(sealed::unseal(EARLIER, VERSION, &name, &bytes).ok()?).ok()
        };
        read().unwrap_or_default().records
    }

    /// Returns what every step of every recipe did last, the latest first. Those that cannot be read are left out.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if the records cannot be listed.
    pub fn all_last(&self) -> Result<Vec<Last>, StoreError> {
        let mut found = self.found_last()?;
        found.sort_by(|(a_file, a), (b_file, b)| {
            let (a_time, b_time) = (a_file.stamp.mtime_ns, b_file.stamp.mtime_ns);
            (b_time, &a.recipe, &a.step).cmp(&(a_time, &b.recipe, &b.step))
        });
        Ok(found.into_iter().map(|(_, last)| last).collect())
    }

    /// Returns what every step of every recipe did last, each with the file that says so. Those that cannot be read are left
    /// out.
    pub(super) fn found_last(&self) -> Result<Vec<(FoundFile, Last)>, StoreError> {
        let mut found = Vec::new();
        for mut file in self.plain_files(&format!("{}/{LAST}", layout::RUNS))? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok((bytes, stamp)) = fs::read_plain(&file.path, CAP) else {
                continue;
            };
            if let Ok(document) = sealed::unseal(LAST, VERSION, &name, &bytes)
                && let Ok(last) = serde_json::from_str::<Last>(document)
            {
                file.stamp = stamp;
                found.push((file, last));
            }
        }
        Ok(found)
    }

    /// Notes what a step did, unless that is noted already. A record without a manifest keeps that of the same action. The
    /// record that it replaces goes to the earlier ones, if it was of another action.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if it cannot be written. No build needs to fail for that: the record explains only.
    pub fn note_last(&self, last: &Last) -> Result<(), StoreError> {
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

    fn note_earlier(&self, mut before: Last) -> Result<(), StoreError> {
        // What a record names, the store keeps; nobody asks for the manifest of an earlier action.
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

    /// Reads the note of a build that found everything done; nothing where that cannot be read.
    pub fn fresh<T>(&self, name: &Hash, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let name = name.to_string();
        let path = self.root().join(layout::RUNS).join(FRESH).join(&name);
        let (bytes, _) = fs::read_plain(&path, sealed::CAP).ok()?;
        read(sealed::unseal(FRESH, FRESH_VERSION, &name, &bytes).ok()?)
    }

    /// Notes that a build found everything done, unless the same is noted already. `text` is one line.
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

    /// Says that a build rested on a note just now, to the day: so do the results that it names count as used.
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

    /// Forgets all notes of builds that found everything done. One that stays spares a build its look at what is new.
    pub(super) fn forget_fresh(&self) {
        let folder = self.root().join(layout::RUNS).join(FRESH);
        for entry in fs::list(&folder).unwrap_or_default() {
            fs::remove_file(&folder.join(&entry.name)).ok();
        }
    }

    /// Returns the store's files that stand behind an action's result: the result, its document and its outputs.
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
