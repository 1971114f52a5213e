//! The repeatability check: runs actions twice and compares their results (`forge check --twice`).

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Session;
use super::SessionError;
use super::find;
use crate::observer::Observer;
use crate::scheduler;
use crate::scheduler::Report;
use crate::step::RepeatCheck;
use crate::step::RepeatDifference;

/// The outcome of a repeatability check.
#[derive(Debug)]
pub struct RepeatReport {
    /// The build in which they ran.
    pub report: Report,
    /// How many actions were repeated.
    pub repeated: u64,
    /// The differences between results.
    pub differences: Vec<RepeatDifference>,
}

impl Session {
    /// Runs the actions of `steps` (of all steps if it is empty) twice, or once if the store has a result, and compares the
    /// results. The store keeps its results and records the differences. The user's outputs are not touched: the steps write to
    /// a folder of the store that is removed afterwards.
    ///
    /// # Errors
    ///
    /// As [`Session::build`]; a step that fails is in the report.
    pub fn check_repeatability(
        &self,
        steps: &[String],
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<RepeatReport, SessionError> {
        let chosen: BTreeSet<String> = find(&self.recipe, &self.graph, steps)?
            .iter()
            .map(ToString::to_string)
            .collect();
        let _lease = self.store.lease()?;
        // These outputs are removed afterwards, so the store must not borrow from them.
        self.store.set_borrowing(false);
        let scratch = self.store.scratch()?;
        let check = Arc::new(RepeatCheck::new(chosen));
        let mut env = self.env(observer);
        scratch.path().clone_into(&mut env.out);
        env.machine.repeat = Some(Arc::clone(&check));
        self.check_files(&env)?;
        observer.event(&self.started());
        // The record of the last build stays.
        let options = scheduler::Options { note: false, ..options };
        let report = scheduler::build(&self.graph, &env, options, &|| true, &mut |_| Vec::new());
        observer.event(&super::finished(&report));
        Ok(RepeatReport {
            repeated: check.repeated(),
            differences: check.differences(),
            report,
        })
    }
}
