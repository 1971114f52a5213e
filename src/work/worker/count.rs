//! Counting the chunks of texts, in a worker process where the engine loads models there.

use super::client::Ended;
use super::client::Workers;
use super::protocol::Answer;
use super::protocol::Request;
use crate::engine::Cancel;
use crate::engine::Isolation;
use crate::engine::Role;
use crate::work::Counted;
use crate::work::Machine;
use crate::work::StepError;
use crate::work::TokenCount;
use crate::work::locked;

impl TokenCount {
    /// Counts: in a worker process if the engine loads models there, for reading a vocabulary may crash it.
    ///
    /// # Errors
    ///
    /// The files cannot be read, a text is not UTF-8, or the engine cannot read the model's vocabulary;
    /// [`StepError::WorkerEnded`].
    pub fn count(&self, machine: &Machine<'_>) -> Result<Counted, StepError> {
        let isolated = machine.engine(Role::Evaluator, &self.engine)?.isolation() == Isolation::Worker;
        match machine.workers {
            Some(workers) if isolated => count_in_worker(workers, self, &machine.cancel),
            _ => self.count_here(machine.engines),
        }
    }
}

fn count_in_worker(workers: &Workers, count: &TokenCount, cancel: &Cancel) -> Result<Counted, StepError> {
    let mut worker = workers.take()?;
    let asked = worker.send(&Request::Count(Box::new(count.clone())));
    let answer = match asked {
        Ok(()) => worker.receive(cancel),
        Err(_) => Err(Ended::ByItself),
    };
    match answer {
        Ok(answer) => {
            locked(&workers.idle).push(worker);
            match answer {
                Answer::Counted(counted) => Ok(counted),
                Answer::Failed(reported) => Err((*reported).into()),
                _ => Err(StepError::input(
                    "a worker process gave an answer that does not match the request",
                )),
            }
        }
        Err(Ended::Killed) => Err(StepError::Stopped),
        Err(Ended::ByItself) => {
            let (how, log) = worker.end();
            Err(StepError::WorkerEnded {
                how,
                what: "reading the vocabulary of a model".to_owned(),
                log,
            })
        }
    }
}
