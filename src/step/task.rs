//! A task carries out the actions of one step: looks each up, waits where another build runs it, runs it, commits it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::action::Action;
use crate::action::ActionResult;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::engine::Cancel;
use crate::graph::NodeId;
use crate::observer::ActionOutcome;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Unit;
use crate::step::StepError;
use crate::step::source_file::SourceFile;
use crate::step::twice;
use crate::step::twice::Twice;
use crate::step::twice::TwiceDifference;
use crate::store::Committed;
use crate::store::Store;
use crate::store::StoreEvent;

/// What the machine lends to every step. None of it is part of a key.
pub struct Env<'a> {
    /// The store.
    pub store: &'a Store,
    /// Who listens.
    pub observer: &'a dyn Observer,
    /// Set when the build is to stop.
    pub cancel: Cancel,
    /// How many threads a step may use.
    pub threads: usize,
    /// The identity of what quantizes.
    pub quantizer: crate::engine::Identity,
    /// The identity of what evaluates.
    pub evaluator: crate::engine::Identity,
    /// The recipe's name.
    pub recipe: String,
    /// Whether the recipe has one table of candidates.
    pub only_table: bool,
    /// The folder of the recipe: its paths start there.
    pub folder: PathBuf,
    /// Where outputs go.
    pub out: PathBuf,
    /// Files to use in place of those that the recipe names, by node and in order.
    pub placed: BTreeMap<NodeId, Vec<PathBuf>>,
    /// Whose actions run twice, to see whether they give the same.
    pub twice: Option<Arc<Twice>>,
}

/// The outputs of an action while it runs.
#[derive(Debug, Default)]
pub struct Made {
    /// Blobs by name.
    pub outputs: BTreeMap<String, BlobDigest>,
    /// Short facts about them.
    pub facts: BTreeMap<String, String>,
}

impl Made {
    /// Adds an output.
    pub fn output(&mut self, name: impl Into<String>, digest: BlobDigest) {
        self.outputs.insert(name.into(), digest);
    }

    /// Adds a fact.
    pub fn fact(&mut self, name: impl Into<String>, value: impl ToString) {
        self.facts.insert(name.into(), value.to_string());
    }
}

/// An action with its result.
#[derive(Debug, Clone)]
pub struct Performed {
    /// The key.
    pub key: ActionDigest,
    /// The result.
    pub result: ActionResult,
    /// How it came about.
    pub outcome: ActionOutcome,
}

/// Carries out the actions of one step.
pub struct Task<'a> {
    /// The step, as users read it.
    pub step: String,
    /// What the machine lends.
    pub env: &'a Env<'a>,
    ran: AtomicU64,
    cached: AtomicU64,
    progress: Mutex<BTreeMap<u8, (u64, Option<Instant>)>>,
}

impl<'a> Task<'a> {
    /// Starts the work of a step.
    pub fn new(step: impl Into<String>, env: &'a Env<'a>) -> Self {
        Self {
            step: step.into(),
            env,
            ran: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            progress: Mutex::new(BTreeMap::new()),
        }
    }

    /// Returns how many actions ran, and how many were there.
    pub fn counts(&self) -> (u64, u64) {
        (self.ran.load(Ordering::Relaxed), self.cached.load(Ordering::Relaxed))
    }

    /// Returns an action's complete result, if it is there, and tells the observer how it came about.
    fn found(
        &self,
        action: &Action,
        key: ActionDigest,
        outcome: ActionOutcome,
    ) -> Result<Option<Performed>, StepError> {
        let Some(result) = self.env.store.lookup(&key)? else {
            return Ok(None);
        };
        self.cached.fetch_add(1, Ordering::Relaxed);
        self.tell_action(action.kind(), key, outcome, 0, &result);
        Ok(Some(Performed { key, result, outcome }))
    }

    /// Returns the result of an action: from the store, from another build that is running it, or by running `work`. The
    /// files that it reads are looked at before and after; if one changed meanwhile, nothing is committed.
    pub fn perform(
        &self,
        action: &Action,
        reads: &[SourceFile],
        work: impl FnMut(&mut Made) -> Result<(), StepError>,
    ) -> Result<Performed, StepError> {
        self.perform_part("", action, reads, work)
    }

    /// Performs an action that is a part of the step, as a tensor of a candidate; `part` says which, for people.
    pub fn perform_part(
        &self,
        part: &str,
        action: &Action,
        reads: &[SourceFile],
        mut work: impl FnMut(&mut Made) -> Result<(), StepError>,
    ) -> Result<Performed, StepError> {
        let performed = self.perform_once(action, reads, &mut work)?;
        if let Some(twice) = &self.env.twice
            && twice.takes(&self.step, performed.key)
        {
            self.perform_again(twice, part, action, reads, &performed, &mut work)?;
        }
        Ok(performed)
    }

    /// Makes a result once more and compares. The store keeps the one that it has.
    fn perform_again(
        &self,
        twice: &Twice,
        part: &str,
        action: &Action,
        reads: &[SourceFile],
        performed: &Performed,
        work: &mut dyn FnMut(&mut Made) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        for file in reads {
            file.check_unchanged()?;
        }
        let mut made = Made::default();
        let worked = work(&mut made);
        self.check_cancel()?;
        for file in reads {
            file.check_unchanged()?;
        }
        worked?;
        twice.count();
        let again = ActionResult {
            outputs: made.outputs,
            facts: made.facts,
            ..performed.result.clone()
        };
        if let Committed::Differs(event) = self.env.store.commit(&performed.key, &again)? {
            let StoreEvent::Nondeterminism { kept, differing, .. } = *event;
            let found = twice::compare(self.env.store, &kept, &differing)?;
            let found = found.into_iter().map(|(output, at, kept, differing)| TwiceDifference {
                step: self.step.clone(),
                kind: action.kind(),
                key: performed.key,
                part: part.to_owned(),
                output,
                at,
                kept,
                differing,
            });
            let found: Vec<TwiceDifference> = found.collect();
            for difference in &found {
                self.tell(Event::Nondeterminism {
                    step: difference.step.clone(),
                    kind: difference.kind,
                    key: difference.key,
                    part: difference.part.clone(),
                    output: difference.output.clone(),
                    at: difference.at,
                    kept: difference.kept.clone(),
                    differing: difference.differing.clone(),
                });
            }
            twice.note(&found);
        }
        Ok(())
    }

    fn perform_once(
        &self,
        action: &Action,
        reads: &[SourceFile],
        work: &mut dyn FnMut(&mut Made) -> Result<(), StepError>,
    ) -> Result<Performed, StepError> {
        let document = action.document();
        let key = ActionDigest::of(&document);
        if let Some(found) = self.found(action, key, ActionOutcome::Hit)? {
            return Ok(found);
        }
        let store = self.env.store;
        let mut outcome = ActionOutcome::Hit;
        let lock = store.lock_action(
            &key,
            &mut |holder| {
                // Two steps of one build may need the same action; only another build is news.
                if holder.is_this_process() {
                    return;
                }
                outcome = ActionOutcome::Waited;
                self.tell(Event::Waiting {
                    step: self.step.clone(),
                    key,
                    holder: holder.to_string(),
                });
            },
            &|| self.env.cancel.is_cancelled(),
        )?;
        self.check_cancel()?;
        if let Some(found) = self.found(action, key, outcome)? {
            return Ok(found);
        }
        for file in reads {
            file.check_unchanged()?;
        }
        let started = Instant::now();
        let mut made = Made::default();
        let worked = work(&mut made);
        self.check_cancel()?;
        // Before the work's own failure, which may come of such a change.
        for file in reads {
            file.check_unchanged()?;
        }
        worked?;
        let cost_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let document = store.put(&document)?;
        let result = ActionResult {
            schema: ActionResult::SCHEMA,
            action: document,
            outputs: made.outputs,
            cost_ms,
            facts: made.facts,
        };
        store.commit(&key, &result)?;
        drop(lock);
        self.ran.fetch_add(1, Ordering::Relaxed);
        self.tell_action(action.kind(), key, ActionOutcome::Ran, cost_ms, &result);
        Ok(Performed {
            key,
            result,
            outcome: ActionOutcome::Ran,
        })
    }

    /// Counts work that is not an action of its own, as a file that is written again.
    pub fn count_ran(&self) {
        self.ran.fetch_add(1, Ordering::Relaxed);
    }

    /// Fails if the build was stopped.
    pub fn check_cancel(&self) -> Result<(), StepError> {
        if self.env.cancel.is_cancelled() {
            Err(StepError::Stopped)
        } else {
            Ok(())
        }
    }

    /// Tells the observer.
    pub fn tell(&self, event: Event) {
        self.env.observer.event(&event);
    }

    /// Tells the observer something that a user should know.
    pub fn warn(&self, message: impl Into<String>) {
        self.tell(Event::Warning {
            step: self.step.clone(),
            message: message.into(),
        });
    }

    /// Adds to a progress, and tells the observer at most ten times a second.
    pub fn advance(&self, unit: Unit, by: u64, total: u64) {
        let now = Instant::now();
        // Sources are hashed once: it is actions that run twice.
        let times = u64::from(unit != Unit::BytesHashed && self.env.is_twice(&self.step)) + 1;
        let total = total.saturating_mul(times);
        let done = {
            let mut progress = self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (done, told) = progress.entry(unit as u8).or_insert((0, None));
            *done += by;
            let due = told.is_none_or(|told| now.duration_since(told).as_millis() >= 100) || *done >= total;
            if due {
                *told = Some(now);
            }
            due.then_some(*done)
        };
        if let Some(done) = done {
            self.tell(Event::Progress {
                step: self.step.clone(),
                unit,
                done,
                total,
            });
        }
    }

    fn tell_action(
        &self,
        kind: &'static str,
        key: ActionDigest,
        outcome: ActionOutcome,
        cost_ms: u64,
        result: &ActionResult,
    ) {
        self.tell(Event::ActionFinished {
            step: self.step.clone(),
            kind,
            key,
            outcome,
            cost_ms,
            bytes: result.outputs.values().map(|output| output.len).sum(),
        });
    }
}
