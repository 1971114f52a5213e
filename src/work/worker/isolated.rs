//! Actions that are run, and chunks that are counted, in a worker process.

use std::sync::Arc;

use super::client::Ended;
use super::client::Worker;
use super::protocol::Answer;
use super::protocol::Request;
use crate::action::Action;
use crate::timing::Speeds;
use crate::work::ActionOutputs;
use crate::work::Context;
use crate::work::Counted;
use crate::work::Located;
use crate::work::Machine;
use crate::work::MeasureSpeeds;
use crate::work::StepError;
use crate::work::TokenCount;
use crate::work::locked;

impl Context<'_> {
    /// Runs an action in a worker process.
    pub(in crate::work) fn run_in_worker(&self, action: &Action) -> Result<ActionOutputs, StepError> {
        let what = format!("running an action of kind `{}`", action.kind());
        let request = Request::Run {
            action: document(action),
        };
        match self.ask(&request, &what)? {
            Answer::ActionOutputs(made) => Ok(made),
            _ => Err(mismatched()),
        }
    }

    /// Prepares a worker process for actions.
    pub(in crate::work) fn prepare_in_worker(&self, actions: &[Action]) -> Result<Vec<usize>, StepError> {
        let request = Request::Prepare {
            actions: actions.iter().map(document).collect(),
        };
        let count = actions.len();
        match self.ask(&request, "loading a model")? {
            Answer::Order { order } if order.len() == count && order.iter().all(|at| *at < count) => Ok(order),
            _ => Err(mismatched()),
        }
    }

    /// Counts chunks in a worker process.
    fn count_in_worker(&self, count: &TokenCount) -> Result<Counted, StepError> {
        let request = Request::Count(Box::new(count.clone()));
        match self.ask(&request, "reading the vocabulary of a model")? {
            Answer::Counted(counted) => Ok(counted),
            _ => Err(mismatched()),
        }
    }

    /// Gives the worker process back, so that other steps can use it.
    pub(in crate::work) fn give_worker_back(&self) {
        if let Some(mut worker) = locked(&self.worker).take()
            && let Some(workers) = self.machine.workers
            && worker.send(&Request::Release).is_ok()
        {
            locked(&workers.idle).push(worker);
        }
    }

    fn ask(&self, request: &Request, what: &str) -> Result<Answer, StepError> {
        let mut slot = locked(&self.worker);
        let mut worker = match slot.take() {
            Some(worker) => worker,
            None => self.fresh_worker()?,
        };
        let answer = self.ask_worker(&mut worker, request);
        match answer {
            Ok(answer) => {
                *slot = Some(worker);
                match answer {
                    Answer::Failed(reported) => Err((*reported).into()),
                    answer => Ok(answer),
                }
            }
            Err(Ended::Killed) => Err(StepError::Stopped),
            Err(Ended::ByItself) => {
                let (how, log) = worker.end();
                self.add_log(log.iter().cloned());
                self.check_cancel()?;
                Err(StepError::WorkerEnded {
                    how,
                    what: what.to_owned(),
                    log,
                })
            }
        }
    }

    fn fresh_worker(&self) -> Result<Worker, StepError> {
        let workers = self.machine.workers;
        workers
            .ok_or_else(|| StepError::input("there are no worker processes"))?
            .take()
    }

    fn ask_worker(&self, worker: &mut Worker, request: &Request) -> Result<Answer, Ended> {
        let located = self.located();
        let begun = worker.begun.as_ref();
        if begun.is_none_or(|(step, known)| *step != self.step || !Arc::ptr_eq(known, &located)) {
            let begin = Request::Begin {
                step: self.step.clone(),
                located: Box::new(Located::clone(&located)),
            };
            worker.send(&begin).map_err(|_| Ended::ByItself)?;
            worker.begun = Some((self.step.clone(), located));
        }
        worker.send(request).map_err(|_| Ended::ByItself)?;
        loop {
            match worker.receive(self.cancel())? {
                Answer::Progress { unit, by } => self.advance(unit, by),
                Answer::Note { message } => self.note(message),
                Answer::Warning { message } => self.warn(message),
                Answer::Log { lines } => self.add_log(lines),
                answer => return Ok(answer),
            }
        }
    }
}

impl TokenCount {
    /// Counts: in a worker process if the engine loads models there, for reading a vocabulary may crash it.
    ///
    /// # Errors
    ///
    /// The files cannot be read, or the engine cannot read the model's vocabulary; [`StepError::WorkerEnded`].
    pub fn count(&self, machine: &Machine<'_>) -> Result<Counted, StepError> {
        let context = Context::new("", machine, Located::default());
        if !context.is_isolated(&self.engine)? {
            return self.count_here(machine.engines);
        }
        let counted = context.count_in_worker(self);
        context.give_worker_back();
        counted
    }
}

impl MeasureSpeeds {
    /// Measures the speed of the machine: in a worker process if the engine loads models there.
    ///
    /// # Errors
    ///
    /// The engine cannot be used, files cannot be written; [`StepError::WorkerEnded`], [`StepError::Stopped`].
    pub fn measure(&self, machine: &Machine<'_>) -> Result<Speeds, StepError> {
        let context = Context::new("", machine, Located::default());
        if !context.is_isolated(&self.evaluator)? {
            return self.measure_here(machine.engines, machine.store.temporary_folder()?, &machine.cancel);
        }
        let measured = match context.ask(&Request::Measure(self.clone()), "measuring the speed of the machine")? {
            Answer::Measured(speeds) => {
                Speeds::of_document(&speeds, rayon::current_num_threads()).ok_or_else(mismatched)
            }
            _ => Err(mismatched()),
        };
        context.give_worker_back();
        measured
    }
}

fn mismatched() -> StepError {
    StepError::input("a worker process gave an answer that does not match the request")
}

fn document(action: &Action) -> String {
    String::from_utf8_lossy(&action.document()).into_owned()
}
