//! Pins: `manifests-v1/<BLAKE3 of a manifest>`. While a manifest is pinned, garbage collection keeps every action and every
//! blob that it names. A pin copies nothing, because a copy of the borrowed tensors would double the space of a candidate. So
//! it reports how many bytes are borrowed, and from which files.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::store::Lookup;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::sealed;
use crate::store::tombstone::seconds;

const KIND: &str = "pin";
const VERSION: u64 = 1;
/// The maximum size of a manifest, in bytes.
const MANIFEST_CAP: u64 = 256 << 20;

/// A pinned manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The version of this document.
    pub schema: u32,
    /// The digest of the manifest, which is a blob.
    pub manifest: BlobDigest,
    /// The name of the output in the manifest.
    pub output: String,
    /// When it was pinned, in seconds since 1970.
    pub pinned: u64,
}

impl Pin {
    /// The version of this document.
    pub const SCHEMA: u32 = 1;
}

/// What a new pin keeps, and what was lost before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The pin.
    pub pin: Pin,
    /// Whether it was pinned before.
    pub again: bool,
    /// The number of actions of the manifest whose result exists and is kept from now on.
    pub kept: usize,
    /// The number of actions of the manifest whose result is missing or has lost a blob.
    pub gone: usize,
    /// How many bytes of what is kept are borrowed, by file. A pin does not protect those files.
    pub borrowed: BTreeMap<PathBuf, u64>,
}

/// The output in a manifest.
#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
}

impl Store {
    /// Returns every pin that can be read, sorted by output.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        let mut pins: Vec<Pin> = Vec::new();
        for file in self.plain_files(layout::MANIFESTS)? {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let read = fs::read_plain(&file.path, sealed::CAP).ok();
            let pin = read.and_then(|(bytes, _)| {
                let document = sealed::unseal(KIND, VERSION, &name, &bytes).ok()?;
                serde_json::from_str(document).ok()
            });
            pins.extend(pin);
        }
        pins.sort_by(|a, b| (&a.output, a.manifest).cmp(&(&b.output, b.manifest)));
        Ok(pins)
    }

    /// Pins a manifest. `path` is only for errors.
    ///
    /// # Errors
    ///
    /// [`StoreError::NotAManifest`] if the bytes are not a manifest.
    pub fn pin(&self, path: &Path, manifest: &[u8]) -> Result<Pinned, StoreError> {
        let statement: Statement = serde_json::from_slice(manifest).map_err(|error| StoreError::NotAManifest {
            path: path.to_owned(),
            problem: error.to_string(),
        })?;
        let output = statement.subject.into_iter().next().map(|subject| subject.name);
        let output = output.ok_or_else(|| StoreError::NotAManifest {
            path: path.to_owned(),
            problem: "it names no output".to_owned(),
        })?;
        // Under a lease, a running garbage collection keeps what is looked up here.
        let _lease = self.lease()?;
        let start = self.own_lease().unwrap_or(i64::MIN);
        let digest = self.put(manifest)?;
        let pin = Pin {
            schema: Pin::SCHEMA,
            manifest: digest,
            output,
            pinned: seconds(SystemTime::now()),
        };
        let name = digest.hash.to_string();
        let place = self.root().join(layout::MANIFESTS).join(&name);
        let again = fs::facts(&place)?.is_some();
        let temp = self.sealed_temp(KIND, VERSION, &name, &pin)?;
        self.publish(temp, &place, Durability::Synced)?;
        let mut pinned = Pinned {
            pin,
            again,
            kept: 0,
            gone: 0,
            borrowed: BTreeMap::new(),
        };
        let mut seen = HashSet::new();
        for key in actions_of(manifest) {
            match self.find(&key)? {
                Lookup::Hit(result) => {
                    for digest in result.outputs.values().filter(|digest| seen.insert(**digest)) {
                        if self.own_blob(digest)?.is_none()
                            && let Some(file) = self.borrowed_file(digest)?
                        {
                            *pinned.borrowed.entry(file).or_default() += digest.len;
                        }
                    }
                    // A garbage collection that made its plan before the pin existed may end after this lease does.
                    fs::set_modified(&self.shard(layout::ACTIONS, key.hash()), Self::mark_time(start))?;
                    pinned.kept += 1;
                }
                _ => pinned.gone += 1,
            }
        }
        Ok(pinned)
    }

    /// Removes a pin. Returns whether it existed.
    pub fn unpin(&self, manifest: &Hash) -> Result<bool, StoreError> {
        let path = self.root().join(layout::MANIFESTS).join(manifest.to_string());
        self.discard(&path)
    }

    /// Returns the manifests that a run wrote, from its record in the store; none if there is no such run.
    pub fn manifests_of_run(&self, run: &str) -> Result<Vec<Vec<u8>>, StoreError> {
        #[derive(Deserialize)]
        struct Line {
            path: Option<String>,
            digest: Option<BlobDigest>,
        }
        // The name of a run has no separators.
        let name = run.strip_suffix(".jsonl").unwrap_or(run);
        if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
            return Ok(Vec::new());
        }
        let path = self.root().join(layout::RUNS).join(format!("{name}.jsonl"));
        let Ok((record, _)) = fs::read_plain(&path, MANIFEST_CAP) else {
            return Ok(Vec::new());
        };
        let lines = record.split(|byte| *byte == b'\n');
        let lines = lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        let mut manifests = Vec::new();
        for line in lines {
            if let (Some(path), Some(digest)) = (line.path, line.digest)
                && path.ends_with(".manifest.json")
            {
                manifests.push(self.read(&digest, MANIFEST_CAP)?);
            }
        }
        Ok(manifests)
    }

    /// Reads a manifest to pin: the file at `path`, or the manifest beside an output at `path`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Path`] if it cannot be read.
    pub fn read_manifest(path: &Path) -> Result<Vec<u8>, StoreError> {
        let beside = path.with_added_extension("manifest.json");
        let is_manifest = path.extension().is_some_and(|extension| extension == "json");
        let path = if is_manifest { path } else { &beside };
        Ok(fs::read_plain(path, MANIFEST_CAP)?.0)
    }
}

/// Returns the keys of a manifest's actions.
fn actions_of(manifest: &[u8]) -> Vec<ActionDigest> {
    #[derive(Deserialize)]
    struct Manifest {
        predicate: Predicate,
    }
    #[derive(Deserialize)]
    struct Predicate {
        forge: Forge,
    }
    #[derive(Deserialize)]
    struct Forge {
        actions: serde_json::Map<String, serde_json::Value>,
    }
    let manifest: Option<Manifest> = serde_json::from_slice(manifest).ok();
    let actions = manifest.map(|manifest| manifest.predicate.forge.actions);
    let keys = actions.iter().flat_map(serde_json::Map::keys);
    keys.filter_map(|key| key.parse().ok()).collect()
}
