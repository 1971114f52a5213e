//! Chunks that are counted in a worker process.

use super::client::Ended;
use super::client::Workers;
use super::protocol::Answer;
use super::protocol::Request;
use crate::engine::Cancel;
use crate::work::Counted;
use crate::work::StepError;
use crate::work::TokenCount;
use crate::work::locked;

/// Counts in a worker process: reading a vocabulary may crash the engine.
///
/// # Errors
///
/// As [`TokenCount::count`]; [`StepError::WorkerEnded`].
pub(in crate::work) fn count_in_worker(
    workers: &Workers,
    count: &TokenCount,
    cancel: &Cancel,
) -> Result<Counted, StepError> {
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
