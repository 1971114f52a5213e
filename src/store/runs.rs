//! The records of runs, of the engines that ran, and what failed steps left: `runs-v1`. All of it explains; nothing rests
//! on it, and all of it may be deleted.

use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use crate::digest::Fingerprint;
use crate::fs;
use crate::fs::Durability;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::sealed;

const EXTENSION: &str = "jsonl";
const ENGINE: &str = "engine";
const ENGINES: &str = "engines";
const VERSION: u64 = 1;
const FAILED: &str = "failed";
/// Records of runs that are kept.
const MOST_RUNS: usize = 500;
/// Folders of failed steps that are kept.
const MOST_FAILED: usize = 20;
/// No record of a run is longer: some 200 bytes for each of a million actions.
const RUN_CAP: u64 = 256 << 20;
const ENGINE_CAP: u64 = 1 << 20;

/// The record of a run while the run goes on.
#[derive(Debug)]
pub struct RunWriter {
    id: String,
    journal: fs::Journal,
}

impl RunWriter {
    /// Returns the run's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Adds lines. They are there when the process is killed after that; a power cut may take them.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        Ok(self.journal.append(lines)?)
    }
}

impl Store {
    /// Begins the record of a run, under the given name or one that starts with it. The oldest records beyond
    /// a fixed number are removed.
    pub fn start_run(&self, wish: &str) -> Result<RunWriter, StoreError> {
        let folder = self.root().join(layout::RUNS);
        fs::create_dir_all(&folder)?;
        let mut id = wish.to_owned();
        let mut number = 1_u32;
        loop {
            if let Some(journal) = fs::Journal::create(&folder.join(format!("{id}.{EXTENSION}")))? {
                let runs = self.runs()?;
                for old in runs.iter().take(runs.len().saturating_sub(MOST_RUNS)) {
                    self.discard(&self.path_of_run(old)).ok();
                }
                return Ok(RunWriter { id, journal });
            }
            number += 1;
            id = format!("{wish}-{number}");
        }
    }

    /// Returns the names of all runs, the oldest first.
    pub fn runs(&self) -> Result<Vec<String>, StoreError> {
        let folder = self.root().join(layout::RUNS);
        let entries = fs::list(&folder)?.into_iter().filter(|entry| entry.is_file);
        let names = entries.filter_map(|entry| {
            let name = entry.name.into_string().ok()?;
            Some(name.strip_suffix(EXTENSION)?.strip_suffix('.')?.to_owned())
        });
        Ok(names.collect())
    }

    /// Returns the record of a run: a JSON document a line. The last line of a run that was killed may be torn.
    pub fn read_run(&self, id: &str) -> Result<Vec<u8>, StoreError> {
        Ok(fs::read_plain(&self.path_of_run(id), RUN_CAP)?.0)
    }

    /// Returns whether the run goes on.
    pub fn run_goes_on(&self, id: &str) -> bool {
        fs::is_held(&self.path_of_run(id))
    }

    fn path_of_run(&self, id: &str) -> PathBuf {
        self.root().join(layout::RUNS).join(format!("{id}.{EXTENSION}"))
    }

    /// Keeps the identity of an engine, so that its fingerprint can be explained later.
    pub fn note_engine(&self, fingerprint: &Fingerprint, document: &[u8]) -> Result<(), StoreError> {
        if self.engine(fingerprint).is_some() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(document);
        let sealed = sealed::seal(ENGINE, VERSION, &fingerprint.to_string(), &text);
        self.write_note(&self.path_of_engine(fingerprint), &sealed)
    }

    /// Returns the identity document of an engine; nothing where none was kept, or another than the fingerprint's.
    pub fn engine(&self, fingerprint: &Fingerprint) -> Option<Vec<u8>> {
        let (bytes, _) = fs::read_plain(&self.path_of_engine(fingerprint), ENGINE_CAP).ok()?;
        let document = sealed::unseal(ENGINE, VERSION, &fingerprint.to_string(), &bytes).ok()?;
        (Fingerprint::of(document.as_bytes()) == *fingerprint).then(|| document.as_bytes().to_vec())
    }

    fn path_of_engine(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.root()
            .join(layout::RUNS)
            .join(ENGINES)
            .join(fingerprint.to_string())
    }

    /// Makes a folder for what a failed step left behind, and returns it. The oldest beyond a fixed number are removed.
    pub fn failed_folder(&self, run: &str, step: &str) -> Result<PathBuf, StoreError> {
        let all = self.root().join(layout::RUNS).join(FAILED);
        fs::create_dir_all(&all)?;
        let plain = |c: char| {
            if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') {
                c
            } else {
                '-'
            }
        };
        let folder = all.join(format!("{run}-{}", step.chars().map(plain).collect::<String>()));
        quarantine::quarantine_unless_directory(self.root(), &folder)?;
        fs::create_dir_all(&folder)?;
        // Names begin with the time.
        let kept = fs::list(&all)?;
        for old in kept.iter().take(kept.len().saturating_sub(MOST_FAILED)) {
            quarantine::remove(&all.join(&old.name)).ok();
        }
        Ok(folder)
    }

    /// Writes a file into a folder of [`Store::failed_folder`].
    pub fn leave(&self, folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_note(&folder.join(name), bytes)
    }

    /// Writes a small file of the store by way of `tmp/`, so that what a killed process leaves of it is swept. Not synced.
    fn write_note(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp()?;
        temp.write_all(bytes).map_err(fs::PathError::on(path, "write"))?;
        self.publish(temp, path, Durability::Fast)
    }
}
