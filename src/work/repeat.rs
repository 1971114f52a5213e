//! The repeatability check: actions run a second time, and their results are compared (`forge check --twice`).

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::store::Store;
use crate::store::StoreError;
use crate::work::mutex::locked;

/// Which steps' actions are repeated, and how their results differ. An action runs once if its result is in the store, and twice
/// if not. The store keeps the first result either way.
#[derive(Debug, Default)]
pub struct RepeatCheck {
    /// The steps; `None` means all.
    steps: Option<BTreeSet<String>>,
    done: Mutex<BTreeSet<ActionDigest>>,
    differences: Mutex<Vec<RepeatDifference>>,
    repeated: AtomicU64,
}

/// A difference between two results of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepeatDifference {
    /// The step that it belongs to.
    pub step: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its key.
    pub key: ActionDigest,
    /// Which part of the step it is, as a tensor's name; empty for the step itself.
    pub part: String,
    /// The output that differs, or the fact.
    pub output: String,
    /// The first byte that differs; nothing where one of the two has no such output, or a fact differs.
    pub at: Option<u64>,
    /// The output that stays; a fact's text.
    pub kept: Option<String>,
    /// The other one.
    pub differing: Option<String>,
}

impl RepeatCheck {
    /// Checks the actions of some steps, by the names of their nodes; of all steps if there are none.
    pub fn new(steps: BTreeSet<String>) -> Self {
        Self {
            steps: (!steps.is_empty()).then_some(steps),
            ..Self::default()
        }
    }

    /// Returns true if a step's actions are repeated.
    pub fn includes(&self, step: &str) -> bool {
        self.steps.as_ref().is_none_or(|steps| steps.contains(step))
    }

    /// Returns true if an action must be repeated now: once, even if several steps need it.
    pub(super) fn starts(&self, step: &str, key: ActionDigest) -> bool {
        self.includes(step) && locked(&self.done).insert(key)
    }

    /// Counts a repeated action.
    pub(super) fn count(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_differences(&self, differences: &[RepeatDifference]) {
        locked(&self.differences).extend_from_slice(differences);
    }

    /// Returns how many actions were repeated.
    pub fn repeated(&self) -> u64 {
        self.repeated.load(Ordering::Relaxed)
    }

    /// Returns the differences, ordered by step, part and output.
    pub fn differences(&self) -> Vec<RepeatDifference> {
        let mut found = locked(&self.differences).clone();
        found.sort_by(|a, b| (&a.step, &a.part, a.key, &a.output).cmp(&(&b.step, &b.part, b.key, &b.output)));
        found
    }
}

/// An output or a fact that differs: its name, the first byte that differs, and what each result has.
pub(super) type Found = (String, Option<u64>, Option<String>, Option<String>);

/// Returns where two results of an action differ.
pub(super) fn compare(store: &Store, kept: &ActionResult, differing: &ActionResult) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    let names: BTreeSet<&String> = kept.outputs.keys().chain(differing.outputs.keys()).collect();
    for name in names {
        let (a, b) = (kept.output(name), differing.output(name));
        if a != b {
            let at = match (a, b) {
                (Some(a), Some(b)) => first_difference(store, &a, &b)?,
                _ => None,
            };
            let text = |digest: Option<BlobDigest>| digest.map(|digest| digest.to_string());
            found.push((name.clone(), at, text(a), text(b)));
        }
    }
    let names: BTreeSet<&String> = kept.facts.keys().chain(differing.facts.keys()).collect();
    for name in names {
        let (a, b) = (kept.facts.get(name), differing.facts.get(name));
        if a != b {
            found.push((name.clone(), None, a.cloned(), b.cloned()));
        }
    }
    Ok(found)
}

/// Returns the first byte in which two blobs differ: of the shorter's length, if it is the longer's start.
fn first_difference(store: &Store, a: &BlobDigest, b: &BlobDigest) -> Result<Option<u64>, StoreError> {
    // Mapped, not read: a tensor may be larger than memory.
    let (first, second) = (store.map(a)?, store.map(b)?);
    let (first, second): (&[u8], &[u8]) = (&first, &second);
    const BLOCK: usize = 1 << 16;
    let common = first.len().min(second.len());
    let mut at = 0;
    while at < common {
        let end = common.min(at + BLOCK);
        if first[at..end] != second[at..end] {
            let within = first[at..end].iter().zip(&second[at..end]).position(|(a, b)| a != b);
            return Ok(within.map(|within| (at + within) as u64));
        }
        at = end;
    }
    Ok((first.len() != second.len()).then_some(common as u64))
}
