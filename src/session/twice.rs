//! Runs actions twice and compares (`forge check --twice`).

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

/// The outcome of running actions twice.
#[derive(Debug)]
pub struct Compared {
    /// The build in which they ran.
    pub report: Report,
    /// How many actions were run a second time, or once more where a result was there.
    pub repeated: u64,
    /// What differed.
    pub differences: Vec<RepeatDifference>,
}

impl Session {
    /// Runs the actions of `steps` (nothing for all) twice, or once more where the store has a result, and compares. The
    /// store's results stay, a difference is recorded there, and the user's outputs are not touched: what the steps write
    /// goes to a folder of the store that goes away.
    ///
    /// # Errors
    ///
    /// As [`Session::build`]; a step that fails is in the report.
    pub fn check_twice(
        &self,
        steps: &[String],
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<Compared, SessionError> {
        let chosen: BTreeSet<String> = find(&self.recipe, &self.graph, steps)?
            .iter()
            .map(ToString::to_string)
            .collect();
        let _lease = self.store.lease()?;
        // What is written here goes away again.
        self.store.set_borrowing(false);
        let scratch = self.store.scratch()?;
        let twice = Arc::new(RepeatCheck::of(chosen));
        let mut env = self.env(observer);
        scratch.path().clone_into(&mut env.out);
        env.machine.twice = Some(Arc::clone(&twice));
        self.check_sources(&env)?;
        observer.event(&self.started());
        // What the last build did stays on record.
        let options = scheduler::Options { note: false, ..options };
        let report = scheduler::build(&self.graph, &env, options, &|| true, &mut |_| Vec::new());
        observer.event(&super::finished(&report));
        Ok(Compared {
            repeated: twice.again(),
            differences: twice.differences(),
            report,
        })
    }
}
