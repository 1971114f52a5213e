//! What stands where a result was: `tombstones-v1/ab/cdef...`, by the action's digest. It explains ("this existed, and was
//! collected"), and is never asked whether something is done.

use std::collections::BTreeMap;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde::Deserialize;
use serde::Serialize;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs;
use crate::fs::Durability;
use crate::store::Store;
use crate::store::StoreError;
use crate::store::layout;
use crate::store::sealed;

const KIND: &str = "tombstone";
const VERSION: u64 = 1;
/// No action's document is larger than this.
const DOCUMENT_CAP: u64 = 4 << 20;

/// Why a result was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Removal {
    /// The store was to become smaller, and this was among the cheapest to make again for its bytes.
    Room,
    /// It had not been used for longer than was asked for.
    Age,
    /// A blob that it names was gone, so it was no hit any more.
    Incomplete,
}

/// What is left of a result that was removed on purpose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The version of this form.
    pub schema: u32,
    /// The kind of the action, as its document spells it (`tensor`, `reference-block`, ...); nothing if the document
    /// could not be read any more.
    pub kind: Option<String>,
    /// The action's canonical document, as text; nothing if it could not be read any more.
    pub document: Option<String>,
    /// What it made, each by digest and length. The blobs may be gone, or be kept for other results.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// What it had found out.
    pub facts: BTreeMap<String, String>,
    /// What it would cost to make again: the milliseconds that it took.
    pub cost_ms: u64,
    /// When the result was last used, in seconds since 1970.
    pub last_used: u64,
    /// When it was removed, in seconds since 1970.
    pub removed: u64,
    /// Why.
    pub why: Removal,
}

impl Tombstone {
    /// The version of the form.
    pub const SCHEMA: u32 = 1;
}

/// Returns a time as whole seconds since 1970: the form in which the store's documents have it.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Store {
    /// Returns what is left of the result of an action that was removed on purpose, or `None` if there is no such note. It
    /// may be there beside a result: one that came back while it was removed. A note that is torn, or cannot be read, is
    /// none.
    pub fn tombstone(&self, key: &ActionDigest) -> Option<Tombstone> {
        let path = self.shard(layout::TOMBSTONES, key.hash());
        let (bytes, _) = fs::read_plain(&path, sealed::CAP).ok()?;
        let document = sealed::unseal(KIND, VERSION, &key.to_string(), &bytes).ok()?;
        serde_json::from_str(document).ok()
    }

    /// Leaves a note in place of a result that is about to be removed. Not synced: a torn note is none.
    pub(super) fn bury(
        &self,
        key: &ActionDigest,
        result: &ActionResult,
        last_used: SystemTime,
        why: Removal,
    ) -> Result<(), StoreError> {
        let document = self.glance(&result.action, DOCUMENT_CAP);
        let document = document.and_then(|bytes| String::from_utf8(bytes).ok());
        let kind = document
            .as_deref()
            .and_then(|document| serde_json::from_str::<Kind>(document).ok());
        let tombstone = Tombstone {
            schema: Tombstone::SCHEMA,
            kind: kind.map(|kind| kind.kind),
            document,
            outputs: result.outputs.clone(),
            facts: result.facts.clone(),
            cost_ms: result.cost_ms,
            last_used: seconds(last_used),
            removed: seconds(SystemTime::now()),
            why,
        };
        let temp = self.sealed_temp(KIND, VERSION, &key.to_string(), &tombstone)?;
        self.publish(temp, &self.shard(layout::TOMBSTONES, key.hash()), Durability::Fast)
    }

    /// Removes the note of an action that has a result again.
    pub(super) fn unbury(&self, key: &ActionDigest) -> Result<(), StoreError> {
        self.discard(&self.shard(layout::TOMBSTONES, key.hash()))?;
        Ok(())
    }
}

/// The part of any action's document that says what it is.
#[derive(Deserialize)]
struct Kind {
    kind: String,
}
