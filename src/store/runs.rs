//! Records of runs, identities of engines, and folders of failed steps: `runs-v1`. They only explain. No build depends on them,
//! and all of them may be deleted.

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
const MACHINE: &str = "machine";
const MACHINES: &str = "machines";
const VERSION: u64 = 1;
const FAILED: &str = "failed";
/// How many records of runs are kept.
const MOST_RUNS: usize = 500;
/// How many folders of failed steps are kept.
const MOST_FAILED: usize = 20;
/// The maximum size of the record of a run, in bytes: about 200 bytes for each of a million actions.
const RUN_CAP: u64 = 256 << 20;
const ENGINE_CAP: u64 = 1 << 20;

/// The record of a running build.
#[derive(Debug)]
pub struct RunWriter {
    id: String,
    journal: fs::Journal,
}

impl RunWriter {
    /// Returns the name of the run.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Appends lines. They are kept if the process is killed later, but may be lost if the power fails.
    pub fn append(&mut self, lines: &[u8]) -> Result<(), StoreError> {
        Ok(self.journal.append(lines)?)
    }
}

impl Store {
    /// Starts the record of a run, under the given name or one that begins with it. Removes the oldest records beyond a fixed
    /// number.
    pub fn start_run(&self, name: &str) -> Result<RunWriter, StoreError> {
        let folder = self.root().join(layout::RUNS);
        fs::create_dir_all(&folder)?;
        let mut id = name.to_owned();
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
            id = format!("{name}-{number}");
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

    /// Returns the record of a run, one JSON document per line. The last line of a killed run may be incomplete.
    pub fn read_run(&self, id: &str) -> Result<Vec<u8>, StoreError> {
        Ok(fs::read_plain(&self.path_of_run(id), RUN_CAP)?.0)
    }

    /// Returns whether the build still runs.
    pub fn is_run_active(&self, id: &str) -> bool {
        fs::is_held(&self.path_of_run(id))
    }

    fn path_of_run(&self, id: &str) -> PathBuf {
        self.root().join(layout::RUNS).join(format!("{id}.{EXTENSION}"))
    }

    /// Stores the identity of an engine, so that its fingerprint can be explained later.
    pub fn note_engine(&self, fingerprint: &Fingerprint, document: &[u8]) -> Result<(), StoreError> {
        if self.engine(fingerprint).is_some() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(document);
        let sealed = sealed::seal(ENGINE, VERSION, &fingerprint.to_string(), &text);
        self.write_note(&self.path_of_engine(fingerprint), &sealed)
    }

    /// Returns the identity document of an engine; `None` if it is missing or does not match the fingerprint.
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

    /// Stores what is known of the speed of a machine, under the digest of what identifies it.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn note_machine(&self, machine: &Fingerprint, document: &[u8]) -> Result<(), StoreError> {
        let text = String::from_utf8_lossy(document);
        let sealed = sealed::seal(MACHINE, VERSION, &machine.to_string(), &text);
        self.write_note(&self.path_of_machine(machine), &sealed)
    }

    /// Returns what is known of the speed of a machine; `None` if nothing is.
    pub fn machine(&self, machine: &Fingerprint) -> Option<Vec<u8>> {
        let (bytes, _) = fs::read_plain(&self.path_of_machine(machine), ENGINE_CAP).ok()?;
        let document = sealed::unseal(MACHINE, VERSION, &machine.to_string(), &bytes).ok()?;
        Some(document.as_bytes().to_vec())
    }

    fn path_of_machine(&self, machine: &Fingerprint) -> PathBuf {
        let folder = self.root().join(layout::RUNS).join(MACHINES);
        folder.join(machine.to_string())
    }

    /// Creates a folder for the files of a failed step, and returns it. Removes the oldest folders beyond a fixed number.
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
        // Names begin with the time, so the oldest are first.
        let kept = fs::list(&all)?;
        for old in kept.iter().take(kept.len().saturating_sub(MOST_FAILED)) {
            quarantine::remove(&all.join(&old.name)).ok();
        }
        Ok(folder)
    }

    /// Writes a file into a folder of [`Store::failed_folder`].
    pub fn write_failed_file(&self, folder: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_note(&folder.join(name), bytes)
    }

    /// Writes a small file of the store through `tmp/`, so that a killed process leaves no part of it. Not synced.
    fn write_note(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let mut temp = self.temp()?;
        temp.write_all(bytes).map_err(fs::PathError::on(path, "write"))?;
        self.publish(temp, path, Durability::Fast)
    }
}
