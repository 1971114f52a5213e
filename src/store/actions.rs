//! The action cache: what each action gave, by the action's digest.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::action::result::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::fs;
use crate::fs::Durability;
use crate::fs::FileKind;
use crate::fs::Stamp;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::quarantine;
use crate::store::sealed;
use crate::store::sealed::Broken;

const RESULT: &str = "result";
const RESULT_VERSION: u64 = 1;
const EVENT: &str = "event";
const EVENT_VERSION: u64 = 1;
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// What the action cache has for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing.
    Absent,
    /// A result, but some of the blobs it names are not there, or not of the right length: no hit.
    Incomplete {
        /// The result.
        result: ActionResult,
        /// The blobs that are not there, at least one.
        missing: Vec<BlobDigest>,
    },
    /// A file that is no valid result. It was moved aside.
    Damaged {
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result with all that it names.
    Hit(ActionResult),
}

/// What became of a result that was to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// It is the action's result now.
    New,
    /// The action had the same outputs and facts already; the first result stays.
    Same,
    /// The action had a different result already, which stays: the action is not deterministic.
    Differs(Box<StoreEvent>),
}

/// Something that happened to the store and that somebody should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StoreEvent {
    /// An action gave two different results.
    Nondeterminism {
        /// The action.
        key: ActionDigest,
        /// The result that stays.
        kept: ActionResult,
        /// The later one.
        differing: ActionResult,
    },
}

enum Stored {
    Absent,
    Damaged(Stamp),
    /// The result, and when it was last used, in nanoseconds since 1970.
    There(ActionResult, i64),
}

impl Store {
    /// Returns the result of an action if it is a hit: whole, with every blob it names there and of the right length.
    ///
    /// # Errors
    ///
    /// [`StoreError::Newer`] if a newer program wrote the result; [`StoreError::Path`] if the store cannot be read.
    pub fn lookup(&self, key: &ActionDigest) -> Result<Option<ActionResult>, StoreError> {
        Ok(match self.find(key)? {
            Lookup::Hit(result) => Some(result),
            _ => None,
        })
    }

    /// Looks an action up as [`Store::lookup`] does, and says why there is no hit.
    pub fn find(&self, key: &ActionDigest) -> Result<Lookup, StoreError> {
        match self.stored_result(key)? {
            Stored::Absent => Ok(Lookup::Absent),
            Stored::Damaged(stamp) => {
                let path = self.shard(layout::ACTIONS, key.hash());
                let moved_to = self.quarantine(key.hash(), &path, &stamp, ".result")?;
                Ok(Lookup::Damaged { moved_to })
            }
            Stored::There(result, used) => {
                // What this build made or found before is kept, with all that it names; else it is written into the lease
                // now, before a collector can look again.
                let unknown = self
                    .own_lease()
                    .filter(|start| used < *start && !self.is_used(key.hash()));
                let _using = unknown.map(|_| self.using()).transpose()?;
                let missing = self.missing(&result)?;
                if !missing.is_empty() {
                    return Ok(Lookup::Incomplete { result, missing });
                }
                if let Some(start) = unknown {
                    let path = self.shard(layout::ACTIONS, key.hash());
                    if fs::facts(&path)?.is_none() {
                        return Ok(Lookup::Absent);
                    }
                    self.use_result(key.hash())?;
                    let now = Self::mark_time(start);
                    // How long it was not used is told to the day: a build with nothing to do writes nothing, nor does it
                    // change what others remember of the file's times.
                    if now.saturating_sub(used) > DAY_NS {
                        fs::set_modified(&path, now)?;
                    }
                }
                Ok(Lookup::Hit(result))
            }
        }
    }

    /// Returns the result of an action whether or not its blobs are there: for explanations, never for a hit.
    pub fn lookup_shallow(&self, key: &ActionDigest) -> Result<Option<ActionResult>, StoreError> {
        Ok(match self.stored_result(key)? {
            Stored::There(result, _) => Some(result),
            Stored::Absent | Stored::Damaged(_) => None,
        })
    }

    /// Returns a result that is there and whole, and when it was last used, in nanoseconds since 1970. Marks nothing.
    pub(super) fn peek(&self, key: &ActionDigest) -> Result<Option<(ActionResult, i64)>, StoreError> {
        Ok(match self.stored_result(key)? {
            Stored::There(result, used) => Some((result, used)),
            Stored::Absent | Stored::Damaged(_) => None,
        })
    }

    /// Commits a result, after everything it names. The first result of an action stays: a later one that differs in
    /// outputs or facts (what it cost always differs) is recorded as an event. A first result that has lost blobs, or is
    /// damaged, gives way.
    ///
    /// # Errors
    ///
    /// [`StoreError::Incomplete`] if a blob it names is not there: nothing is committed then.
    pub fn commit(&self, key: &ActionDigest, result: &ActionResult) -> Result<Committed, StoreError> {
        let missing = self.missing(result)?;
        if !missing.is_empty() {
            return Err(StoreError::Incomplete { key: *key, missing });
        }
        let path = self.shard(layout::ACTIONS, key.hash());
        let temp = self.sealed_temp(RESULT, RESULT_VERSION, &key.to_string(), result)?;
        temp.set_mode(0o444)?;
        let start = self.own_lease();
        if let Some(start) = start {
            temp.set_modified(Self::mark_time(start))?;
        }
        // Synced before the lock is taken: what is done under it takes moments.
        temp.sync()?;
        let _using = self.using()?;
        let _lock = self.replacing(key.hash())?;
        match self.stored_result(key)? {
            Stored::Absent => {}
            Stored::Damaged(stamp) => {
                self.quarantine_locked(key.hash(), &path, &stamp, ".result")?;
            }
            Stored::There(kept, _) if !self.missing(&kept)?.is_empty() => {}
            Stored::There(kept, _) if kept.outputs == result.outputs && kept.facts == result.facts => {
                self.use_result(key.hash())?;
                if let Some(parent) = path.parent() {
                    // Its writer may be between the rename and the sync.
                    fs::sync_dir(parent)?;
                }
                return Ok(Committed::Same);
            }
            Stored::There(kept, _) => {
                let event = StoreEvent::Nondeterminism {
                    key: *key,
                    kept,
                    differing: result.clone(),
                };
                // It explains only: that it cannot be written down must not fail the action.
                self.record(key, &event).ok();
                return Ok(Committed::Differs(Box::new(event)));
            }
        }
        self.publish(temp, &path, Durability::Synced)?;
        // It explains only, and may stand beside a result.
        self.remove_tombstone(key).ok();
        Ok(Committed::New)
    }

    /// Returns every recorded event, in a stable order. Damaged records are left out.
    pub fn events(&self) -> Result<Vec<StoreEvent>, StoreError> {
        let directory = self.root().join(layout::EVENTS);
        let mut events = Vec::new();
        for entry in fs::list(&directory)? {
            let Ok((bytes, _)) = fs::read_plain(&directory.join(&entry.name), sealed::CAP) else {
                continue;
            };
            let name = entry.name.to_string_lossy();
            if let Ok(document) = sealed::unseal(EVENT, EVENT_VERSION, &name, &bytes)
                && let Ok(event) = serde_json::from_str(document)
            {
                events.push(event);
            }
        }
        Ok(events)
    }

    /// Records an event once, however often the same thing happens.
    fn record(&self, key: &ActionDigest, event: &StoreEvent) -> Result<(), StoreError> {
        let StoreEvent::Nondeterminism { differing, .. } = event;
        let mut what = differing.clone();
        what.cost_ms = 0;
        let what = Hash::of(to_json(&what).as_bytes());
        let name = format!("{key}-{}", what.short());
        let path = self.root().join(layout::EVENTS).join(&name);
        if fs::facts(&path)?.is_some_and(|found| found.kind == FileKind::Plain) {
            return Ok(());
        }
        let temp = self.sealed_temp(EVENT, EVENT_VERSION, &name, event)?;
        self.publish(temp, &path, Durability::Synced)?;
        // Manifests tell of events: the next build must look at them again.
        self.forget_fresh();
        Ok(())
    }

    pub(super) fn sealed_temp(
        &self,
        kind: &str,
        version: u64,
        name: &str,
        document: &impl Serialize,
    ) -> Result<fs::TempFile, StoreError> {
        use std::io::Write as _;
        let mut temp = self.temp()?;
        let at = temp.path().to_owned();
        let bytes = sealed::seal(kind, version, name, &to_json(document));
        temp.write_all(&bytes).map_err(fs::PathError::on(&at, "write"))?;
        Ok(temp)
    }

    fn stored_result(&self, key: &ActionDigest) -> Result<Stored, StoreError> {
        let path = self.shard(layout::ACTIONS, key.hash());
        let (bytes, stamp) = match quarantine::read_own(&path, sealed::CAP) {
            Ok(read) => read,
            // What is no file is no result; one that is committed takes its place.
            Err(error) if error.is_not_found() || error.kind() == std::io::ErrorKind::InvalidInput => {
                return Ok(Stored::Absent);
            }
            Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
                let found = fs::facts(&path)?.filter(|found| found.kind == FileKind::Plain);
                return Ok(found.map_or(Stored::Absent, |found| Stored::Damaged(found.stamp)));
            }
            Err(error) => return Err(error.into()),
        };
        match sealed::unseal(RESULT, RESULT_VERSION, &key.to_string(), &bytes) {
            Ok(document) => {
                if let Ok(result) = serde_json::from_str(document) {
                    return Ok(Stored::There(result, stamp.mtime_ns));
                }
            }
            Err(Broken::Newer(found)) => {
                return Err(StoreError::Newer {
                    path,
                    found,
                    supported: RESULT_VERSION,
                });
            }
            Err(Broken::Damaged) => {}
        }
        // Of the file that was read: by now another one may have the name, and that one may be whole.
        Ok(Stored::Damaged(stamp))
    }

    /// Moves the result of an action aside if it is damaged, and says where to. Nobody replaces it meanwhile.
    pub(super) fn quarantine_damaged_result(&self, key: &ActionDigest) -> Result<Option<PathBuf>, StoreError> {
        let _lock = self.replacing(key.hash())?;
        match self.stored_result(key)? {
            Stored::Damaged(stamp) => {
                let path = self.shard(layout::ACTIONS, key.hash());
                Ok(Some(self.quarantine_locked(key.hash(), &path, &stamp, ".result")?))
            }
            Stored::Absent | Stored::There(..) => Ok(None),
        }
    }

    /// Returns the blobs that a result names and that are not there with the right length, each once.
    pub(super) fn missing(&self, result: &ActionResult) -> Result<Vec<BlobDigest>, StoreError> {
        let mut missing = Vec::new();
        for digest in std::iter::once(&result.action).chain(result.outputs.values()) {
            if !missing.contains(digest) && !self.has_blob(digest)? {
                missing.push(*digest);
            }
        }
        Ok(missing)
    }
}

/// Writes a document on one line. The store's own documents are strings, integers and maps with string keys, which
/// always can be written; should one ever fail, the empty text that comes out is never believed when read.
fn to_json(document: &impl Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}
