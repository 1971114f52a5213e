//! Tombstones of removed results: `tombstones-v1/ab/cdef...`, by the digest of the action. A tombstone explains that a result
//! existed and was removed. It never makes an action count as done.

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
const VERSION: u64 = 2;
/// The maximum size of an action's document, in bytes.
const DOCUMENT_CAP: u64 = 4 << 20;

/// Why a result was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RemovalReason {
    /// The store was larger than its limit, and this was among the cheapest to make again for its size.
    Size,
    /// It had not been used for longer than the given time.
    Age,
    /// A blob that it names was missing, so it was no longer a hit.
    Incomplete,
}

/// The tombstone of a removed result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The version of this document.
    pub schema: u32,
    /// The kind of the action, as its document spells it (`tensor`, `reference-block`, ...); `None` if the document could not be
    /// read.
    pub kind: Option<String>,
    /// The action's canonical document, as text; `None` if it could not be read.
    pub document: Option<String>,
    /// The outputs of the action. The blobs may have been removed, or kept for other results.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// The facts of the result.
    pub facts: BTreeMap<String, String>,
    /// The time that the action took, in milliseconds.
    pub cost_ms: u64,
    /// When the result was last used, in seconds since 1970.
    pub last_used: u64,
    /// When it was removed, in seconds since 1970.
    pub removed: u64,
    /// Why it was removed.
    pub why: RemovalReason,
}

impl Tombstone {
    /// The version of this document.
    pub const SCHEMA: u32 = 2;

    /// Reads the document of a tombstone, of this version or an older one.
    fn parse(version: u64, document: &str) -> Option<Self> {
        if version != 1 {
            let tombstone: Self = serde_json::from_str(document).ok()?;
            return (tombstone.schema == Self::SCHEMA).then_some(tombstone);
        }
        let old: TombstoneV1 = serde_json::from_str(document).ok()?;
        (old.schema == 1).then_some(Self {
            schema: Self::SCHEMA,
            kind: old.kind,
            document: old.document,
            outputs: old.outputs,
            facts: old.facts,
            cost_ms: old.cost_ms,
            last_used: old.last_used,
            removed: old.removed,
            why: match old.why {
                RemovalReasonV1::Room => RemovalReason::Size,
                RemovalReasonV1::Age => RemovalReason::Age,
                RemovalReasonV1::Incomplete => RemovalReason::Incomplete,
            },
        })
    }
}

/// Version 1 of a tombstone, which is still read.
#[derive(Deserialize)]
struct TombstoneV1 {
    schema: u32,
    kind: Option<String>,
    document: Option<String>,
    outputs: BTreeMap<String, BlobDigest>,
    facts: BTreeMap<String, String>,
    cost_ms: u64,
    last_used: u64,
    removed: u64,
    why: RemovalReasonV1,
}

/// The reasons of version 1.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RemovalReasonV1 {
    Room,
    Age,
    Incomplete,
}

/// Returns a time in whole seconds since 1970, as in the store's documents.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Store {
    /// Returns the tombstone of an action's result; `None` if it is missing or cannot be read. A tombstone may exist beside a
    /// result that was made again while it was removed.
    pub fn tombstone(&self, key: &ActionDigest) -> Option<Tombstone> {
        let path = self.shard(layout::TOMBSTONES, key.hash());
        let (bytes, _) = fs::read_plain(&path, sealed::CAP).ok()?;
        let (version, document) = sealed::unseal_up_to(KIND, VERSION, &key.to_string(), &bytes).ok()?;
        Tombstone::parse(version, document)
    }

    /// Writes the tombstone of a result that is about to be removed. It is not synced: a damaged tombstone counts as missing.
    pub(super) fn write_tombstone(
        &self,
        key: &ActionDigest,
        result: &ActionResult,
        last_used: SystemTime,
        why: RemovalReason,
    ) -> Result<(), StoreError> {
        let document = self.read_if_intact(&result.action, DOCUMENT_CAP);
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

    /// Removes the tombstone of an action that has a result again.
    pub(super) fn remove_tombstone(&self, key: &ActionDigest) -> Result<(), StoreError> {
        self.discard(&self.shard(layout::TOMBSTONES, key.hash()))?;
        Ok(())
    }
}

/// The kind in an action's document.
#[derive(Deserialize)]
struct Kind {
    kind: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "92f0d7f35ed7e399a8b2a1b6022c8b00612f584313cf6a1c345ce192dec284c6";
    const V1: &str = r#"{"schema":1,"kind":"tensor","document":"{}","outputs":{"tensor":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3"},"facts":{"a":"b"},"cost_ms":7,"last_used":8,"removed":9,"why":"room"}"#;

    #[test]
    fn a_tombstone_of_version_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let key: ActionDigest = KEY.parse().unwrap();
        let read = |version: u64, document: &str| {
            let place = store.shard(layout::TOMBSTONES, key.hash());
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(&place, sealed::seal("tombstone", version, KEY, document)).unwrap();
            store.tombstone(&key)
        };
        let digest = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3";
        let expected = Tombstone {
            schema: 2,
            kind: Some("tensor".to_owned()),
            document: Some("{}".to_owned()),
            outputs: BTreeMap::from([("tensor".to_owned(), digest.parse().unwrap())]),
            facts: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            cost_ms: 7,
            last_used: 8,
            removed: 9,
            why: RemovalReason::Size,
        };
        assert_eq!(read(1, V1), Some(expected.clone()));
        for (word, why) in [("age", RemovalReason::Age), ("incomplete", RemovalReason::Incomplete)] {
            let other = Tombstone {
                why,
                ..expected.clone()
            };
            assert_eq!(read(1, &V1.replace("room", word)), Some(other));
        }
        let v2 = V1.replace(r#""schema":1"#, r#""schema":2"#).replace("room", "size");
        assert_eq!(serde_json::to_string(&expected).unwrap(), v2);
        assert_eq!(read(2, &v2), Some(expected));
        assert_eq!(read(2, V1), None);
        assert_eq!(read(1, &v2), None);
    }
}
