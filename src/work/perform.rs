//! Carrying out actions: each is looked up, waited for where another build runs it, run from its document, and committed.

use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::ActionOutputs;
use super::Context;
use super::RepeatDifference;
use super::SourceFile;
use super::StepError;
use super::repeat;
use super::repeat::RepeatCheck;
use super::table::work_of;
use crate::action::Action;
use crate::action::ActionResult;
use crate::action::Fact;
use crate::action::Output;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Isolation;
use crate::engine::Role;
use crate::engine::Transcript;
use crate::observer::ActionOutcome;
use crate::observer::Event;
use crate::store::Committed;
use crate::store::StoreEvent;

/// No action's document is longer.
const ACTION_CAP: u64 = 16 << 20;

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

impl Performed {
    /// Returns an output.
    ///
    /// # Errors
    ///
    /// [`StepError::Document`] if the result has no such output.
    pub fn output(&self, output: Output) -> Result<BlobDigest, StepError> {
        output_of(&self.result, output)
    }

    /// Returns a fact.
    ///
    /// # Errors
    ///
    /// [`StepError::Document`] if the result has no such fact.
    pub fn fact<T: FromStr>(&self, fact: Fact<T>) -> Result<T, StepError> {
        fact_of(&self.result, fact)
    }
}

/// Returns an output of a result.
///
/// # Errors
///
/// [`StepError::Document`] if it has no such output.
pub fn output_of(result: &ActionResult, output: Output) -> Result<BlobDigest, StepError> {
    result.output(output.as_str()).ok_or_else(|| StepError::Document {
        what: "action result",
        problem: format!("it has no output `{}`", output.as_str()),
    })
}

/// Returns a fact of a result.
///
/// # Errors
///
/// [`StepError::Document`] if it has no such fact.
pub fn fact_of<T: FromStr>(result: &ActionResult, fact: Fact<T>) -> Result<T, StepError> {
    let found = result.facts.get(fact.as_str()).and_then(|text| text.parse().ok());
    found.ok_or_else(|| StepError::Document {
        what: "action result",
        problem: format!("it has no fact `{}`", fact.as_str()),
    })
}

impl Context<'_> {
    /// Returns how many actions ran, and how many had a result in the store.
    pub fn counts(&self) -> (u64, u64) {
        (self.ran.load(Ordering::Relaxed), self.hit.load(Ordering::Relaxed))
    }

    /// Returns an action's complete result, if it is there, and tells the observer how it came about.
    fn found(
        &self,
        action: &Action,
        key: ActionDigest,
        outcome: ActionOutcome,
    ) -> Result<Option<Performed>, StepError> {
        let Some(result) = self.machine.store.lookup(&key)? else {
            return Ok(None);
        };
        self.hit.fetch_add(1, Ordering::Relaxed);
        self.report_action(action.kind(), key, outcome, 0, &result);
        Ok(Some(Performed { key, result, outcome }))
    }

    /// Says whether performing an action would run it: its result is not there, or a repeatability check repeats it.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn may_run(&self, action: &Action) -> Result<bool, StepError> {
        let check = self.machine.repeat.as_ref();
        Ok(check.is_some_and(|check| check.includes(&self.step))
            || self.machine.store.lookup(&action.digest())?.is_none())
    }

    /// Returns the result of an action that another one names by its key, running it again if its result was collected.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the action never ran; errors of running it.
    pub fn result_of(&self, key: &ActionDigest) -> Result<ActionResult, StepError> {
        if let Some(result) = self.machine.store.lookup(key)? {
            return Ok(result);
        }
        Ok(self.perform(&self.action(key)?)?.result)
    }

    /// Returns the document of an action that has run once.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if it never ran.
    pub fn action(&self, key: &ActionDigest) -> Result<Action, StepError> {
        let store = self.machine.store;
        let recorded = store.lookup_shallow(key)?;
        let document = recorded.and_then(|result| store.read(&result.action, ACTION_CAP).ok());
        let document = document.or_else(|| Some(store.tombstone(key)?.document?.into_bytes()));
        let document = document.ok_or_else(|| {
            StepError::input_hint(
                format!("the store has no document of the action {key}"),
                "run the step that needs it with `forge build`",
            )
        })?;
        Action::parse(&document).map_err(|error| StepError::Document {
            what: "action",
            problem: error.to_string(),
        })
    }

    /// Returns the result of an action: from the store, from another build that is running it, or by running it. The files
    /// that it reads are compared with their digests before and after; if one changed meanwhile, nothing is committed.
    ///
    /// # Errors
    ///
    /// Why the work failed, [`StepError::SourceChanged`], and errors of the store.
    pub fn perform(&self, action: &Action) -> Result<Performed, StepError> {
        self.perform_part("", action)
    }

    /// Performs an action that is a part of the step, as a tensor of a candidate; `part` says which, for people.
    ///
    /// # Errors
    ///
    /// As [`Context::perform`].
    pub fn perform_part(&self, part: &str, action: &Action) -> Result<Performed, StepError> {
        let performed = self.perform_once(action)?;
        if let Some(check) = &self.machine.repeat
            && check.starts(&self.step, performed.key)
        {
            self.perform_again(check, part, action, &performed)?;
        }
        Ok(performed)
    }

    /// Runs an action without looking for its result and without committing it: in a worker process if its engine loads
    /// models there.
    ///
    /// # Errors
    ///
    /// Why the work failed; [`StepError::SourceChanged`].
    pub fn run(&self, action: &Action) -> Result<ActionOutputs, StepError> {
        let work = work_of(action);
        let reads = work.reads(self)?;
        let check = || reads.iter().try_for_each(SourceFile::check_unchanged);
        check()?;
        let made = match work.evaluator() {
            Some(fingerprint) if self.is_isolated(&fingerprint)? => self.run_in_worker(action),
            _ => {
                let transcript = Transcript::begin();
                let made = work.run(self);
                self.add_log(transcript.lines());
                made
            }
        };
        self.check_cancel()?;
        // Before the work's own failure, which such a change may have caused.
        check()?;
        made
    }

    pub(super) fn is_isolated(&self, evaluator: &Fingerprint) -> Result<bool, StepError> {
        let engine = self.machine.engine(Role::Evaluator, evaluator)?;
        Ok(engine.isolation() == Isolation::Worker && self.machine.workers.is_some())
    }

    /// Runs an action again and compares the results. The store keeps the first one.
    fn perform_again(
        &self,
        check: &RepeatCheck,
        part: &str,
        action: &Action,
        performed: &Performed,
    ) -> Result<(), StepError> {
        let made = self.run(action)?;
        check.count();
        let again = ActionResult {
            outputs: made.outputs,
            facts: made.facts,
            ..performed.result.clone()
        };
        if let Committed::Differs(event) = self.machine.store.commit(&performed.key, &again)? {
            let StoreEvent::Nondeterminism { kept, differing, .. } = *event;
            let found = repeat::compare(self.machine.store, &kept, &differing)?;
            let found = found.into_iter().map(|(output, at, kept, differing)| RepeatDifference {
                step: self.step.clone(),
                kind: action.kind(),
                key: performed.key,
                part: part.to_owned(),
                output,
                at,
                kept,
                differing,
            });
            let found: Vec<RepeatDifference> = found.collect();
            for difference in &found {
                self.report(Event::Nondeterminism {
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
            check.add_differences(&found);
        }
        Ok(())
    }

    fn note_failed(&self, action: &Action, error: &StepError) {
        if let Some(failed) = self.machine.failed
            && !matches!(error, StepError::Stopped)
        {
            failed.add(&self.step, action, &self.located());
        }
    }

    fn perform_once(&self, action: &Action) -> Result<Performed, StepError> {
        let document = action.document();
        let key = ActionDigest::of(&document);
        if let Some(found) = self.found(action, key, ActionOutcome::Hit)? {
            return Ok(found);
        }
        let store = self.machine.store;
        let mut outcome = ActionOutcome::Hit;
        let lock = store.lock_action(
            &key,
            &mut |holder| {
                // Two steps of one build may need the same action; only another build is news.
                if holder.is_this_process() {
                    return;
                }
                outcome = ActionOutcome::Waited;
                self.report(Event::Waiting {
                    step: self.step.clone(),
                    key,
                    holder: holder.to_string(),
                });
            },
            &|| self.machine.cancel.is_cancelled(),
        )?;
        self.check_cancel()?;
        if let Some(found) = self.found(action, key, outcome)? {
            return Ok(found);
        }
        let started = Instant::now();
        let made = self.run(action).inspect_err(|error| self.note_failed(action, error))?;
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
        self.report_action(action.kind(), key, ActionOutcome::Ran, cost_ms, &result);
        Ok(Performed {
            key,
            result,
            outcome: ActionOutcome::Ran,
        })
    }

    /// Ends the work of a step: gives the worker process to other steps, and frees models that only this step needed.
    pub fn release(&self) {
        self.give_worker_back();
        self.machine.models.release();
    }

    /// Notes that a file was written to the output folder.
    pub fn note_written(&self) {
        self.wrote.store(true, Ordering::Relaxed);
    }

    /// Returns whether a file was written to the output folder.
    pub fn has_written(&self) -> bool {
        self.wrote.load(Ordering::Relaxed)
    }

    fn report_action(
        &self,
        kind: &'static str,
        key: ActionDigest,
        outcome: ActionOutcome,
        cost_ms: u64,
        result: &ActionResult,
    ) {
        self.report(Event::ActionFinished {
            step: self.step.clone(),
            kind,
            key,
            outcome,
            cost_ms,
            bytes: result.outputs.values().map(|output| output.len).sum(),
        });
    }
}
