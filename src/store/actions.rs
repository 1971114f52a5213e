//! The action cache: the result of each action, by the digest of the action.

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
use crate::store::sealed::SealError;

const RESULT: &str = "result";
const RESULT_VERSION: u64 = 1;
const EVENT: &str = "event";
const EVENT_VERSION: u64 = 1;
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// What a lookup in the action cache found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// Nothing.
    Absent,
    /// A result that names blobs which are missing or have the wrong length: not a hit.
    Incomplete {
        /// The result.
        result: ActionResult,
        /// The missing blobs, at least one.
        missing: Vec<BlobDigest>,
    },
    /// A damaged result. It was quarantined.
    Damaged {
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// A result with all its blobs.
    Hit(ActionResult),
}

/// The outcome of committing a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The result was stored.
    New,
    /// The action had a result with the same outputs and facts, which is kept.
    Same,
    /// The action had a different result, which is kept: the action is not deterministic.
    Differs(Box<StoreEvent>),
}

/// A problem that the store recorded for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StoreEvent {
    /// An action produced two different results.
    Nondeterminism {
        /// The action.
        key: ActionDigest,
        /// The result that is kept.
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
    /// Returns the result of an action if it is a hit: intact, and every blob that it names exists with the right length.
    ///
    /// # Errors
    ///
    /// [`StoreError::Newer`] if a newer version of forge wrote the result; [`StoreError::Path`] if the store cannot be read.
    pub fn lookup(&self, key: &ActionDigest) -> Result<Option<ActionResult>, StoreError> {
        Ok(match self.find(key)? {
            Lookup::Hit(result) => Some(result),
            _ => None,
        })
    }

    /// Looks up an action as [`Store::lookup`] does, and returns why it is not a hit.
    pub fn find(&self, key: &ActionDigest) -> Result<Lookup, StoreError> {
        match self.stored_result(key)? {
            Stored::Absent => Ok(Lookup::Absent),
            Stored::Damaged(stamp) => {
                let path = self.shard(layout::ACTIONS, key.hash());
                let moved_to = self.quarantine(key.hash(), &path, &stamp, ".result")?;
                Ok(Lookup::Damaged { moved_to })
            }
            Stored::There(result, used) => {
                // A result that this build made or found before is kept, with its blobs. Any other is written to the lease now,
                // before a garbage collection can read the leases again.
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
                    // The time of the last use is kept to the day, so that a build with nothing to do writes nothing and
                    // changes no stamps that others have recorded.
                    if now.saturating_sub(used) > DAY_NS {
                        fs::set_modified(&path, now)?;
                    }
                }
                Ok(Lookup::Hit(result))
            }
        }
    }

    /// Returns the result of an action even if its blobs are missing: for explanations, never for a hit.
    pub fn lookup_shallow(&self, key: &ActionDigest) -> Result<Option<ActionResult>, StoreError> {
        Ok(match self.stored_result(key)? {
            Stored::There(result, _) => Some(result),
            Stored::Absent | Stored::Damaged(_) => None,
        })
    }

    /// Returns an intact result and when it was last used, in nanoseconds since 1970, without marking it as used.
    pub(super) fn peek(&self, key: &ActionDigest) -> Result<Option<(ActionResult, i64)>, StoreError> {
        Ok(match self.stored_result(key)? {
            Stored::There(result, used) => Some((result, used)),
            Stored::Absent | Stored::Damaged(_) => None,
        })
    }

    /// Commits a result, after all blobs that it names. The first result of an action is kept: a later one with other outputs
    /// or facts is recorded as an event (the cost may differ). A first result that has lost blobs or is damaged is replaced.
    ///
    /// # Errors
    ///
    /// [`StoreError::Incomplete`] if a blob that it names is missing: nothing is committed then.
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
        // Synced before the lock is taken, so that the lock is held only briefly.
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
                    // Its writer may not have synced the directory yet.
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
        // A tombstone beside a result does no harm, so a failure is ignored.
        self.remove_tombstone(key).ok();
        Ok(Committed::New)
    }

    /// Returns every recorded event, in a stable order. Leaves out damaged records.
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

    /// Records an event. The same event is recorded only once.
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
        // Manifests contain events, so the next build must check them again.
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
            // What is not a file counts as missing. A committed result replaces it.
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
            Err(SealError::Newer(found)) => {
                return Err(StoreError::Newer {
                    path,
                    found,
                    supported: RESULT_VERSION,
                });
            }
            Err(SealError::Damaged) => {}
        }
        // The stamp of the file that was read: another file may have the name by now.
        Ok(Stored::Damaged(stamp))
    }

    /// Quarantines the result of an action if it is damaged, and returns where it is now. No other process can replace it
    /// meanwhile.
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

    /// Returns the blobs that a result names and that are missing or have the wrong length, each once.
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

/// Writes a document on one line. The store's documents contain only strings, integers and maps with string keys, so this
/// cannot fail. If it did, the empty text would count as damaged when read.
fn to_json(document: &impl Serialize) -> String {
    serde_json::to_string(document).unwrap_or_default()
}
