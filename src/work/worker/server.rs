//! The worker process.

use std::io::BufRead;
use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::protocol::Answer;
use super::protocol::Request;
use crate::action::Action;
use crate::engine::Cancel;
use crate::engine::Engines;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Unit;
use crate::store::Store;
use crate::work::Context;
use crate::work::Located;
use crate::work::Machine;
use crate::work::Models;
use crate::work::Reported;
use crate::work::StepError;
use crate::work::locked;

/// Writes answers.
struct Answers<W>(Mutex<W>);

impl<W: Write> Answers<W> {
    fn send(&self, answer: &Answer) {
        // The build may be gone: then the input ends, too.
        if let Ok(mut line) = serde_json::to_vec(answer) {
            line.push(b'\n');
            let mut out = locked(&self.0);
            let _ = out.write_all(&line).and_then(|()| out.flush());
        }
    }
}

impl<W: Write + Send> Observer for Answers<W> {
    fn event(&self, event: &Event) {
        match event {
            Event::Note { message, .. } => self.send(&Answer::Note {
                message: message.clone(),
            }),
            Event::Warning { message, .. } => self.send(&Answer::Warning {
                message: message.clone(),
            }),
            // Progress is passed on piece by piece; the rest is for the build to report.
            _ => {}
        }
    }
}

/// How long an action may take to stop after the input has ended. It is longer than the build waits for its worker.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a build until its input ends: reads requests, runs actions, writes answers. An action that is running then is stopped.
/// `memory` is what one computation may take beside its model, in bytes. One that does not stop within 10 seconds is not waited for: `give_up` is called, which must end the process.
///
/// # Errors
///
/// [`StepError::Store`] if the store cannot be used.
pub fn serve(
    input: impl BufRead + Send,
    output: impl Write + Send,
    store: &Store,
    engines: &Engines,
    memory: Option<u64>,
    give_up: impl Fn() + Send,
) -> Result<(), StepError> {
    let answers = Answers(Mutex::new(output));
    let cancel = Cancel::new();
    let models = Models::default();
    // What is put while this lives is not collected.
    let _lease = store.lease()?;
    let machine = Machine {
        store,
        observer: &answers,
        cancel: cancel.clone(),
        engines,
        workers: None,
        models: &models,
        repeat: None,
        failed: None,
        forecast: None,
        memory,
    };
    let (sender, requests) = mpsc::channel();
    // Closed when the last action is done.
    let (working, done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn({
            let cancel = cancel.clone();
            move || {
                read(input, &cancel, &sender);
                cancel.cancel();
                drop(sender);
                if done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    give_up();
                }
            }
        });
        let advance = |unit: Unit, by: u64| answers.send(&Answer::Progress { unit, by });
        let mut context = Context::new("", &machine, Located::default());
        for request in requests {
            match request {
                Request::Begin { step, located } => {
                    context = Context::new(step, &machine, *located);
                    context.pass_progress_on(&advance);
                }
                Request::Run { action } => {
                    let made = parse(&action).and_then(|action| context.run(&action));
                    answers.send(&Answer::Log {
                        lines: context.take_log(),
                    });
                    answers.send(&made.map_or_else(|error| failed(&error), Answer::ActionOutputs));
                }
                Request::Prepare { actions } => {
                    let actions = actions
                        .iter()
                        .map(|action| parse(action))
                        .collect::<Result<Vec<_>, _>>();
                    let order = actions.and_then(|actions| context.prepare(&actions));
                    let order = order.map(|order| Answer::Order { order });
                    answers.send(&order.unwrap_or_else(|error| failed(&error)));
                }
                Request::Count(count) => {
                    let counted = count.count_here(engines).map(Answer::Counted);
                    answers.send(&counted.unwrap_or_else(|error| failed(&error)));
                }
                Request::Measure(measure) => {
                    let folder = store.temporary_folder().map_err(StepError::from);
                    let measured = folder.and_then(|folder| measure.measure_here(engines, folder, &cancel));
                    let answer = measured.map(|speeds| Answer::Measured(speeds.document()));
                    answers.send(&answer.unwrap_or_else(|error| failed(&error)));
                }
                Request::Release => models.release(),
                // Read before it came here.
                Request::Cancel => {}
            }
        }
        drop(working);
    });
    Ok(())
}

/// Passes requests on until the input ends.
fn read(input: impl BufRead, cancel: &Cancel, requests: &mpsc::Sender<Request>) {
    for line in input.lines() {
        let Some(request) = line.ok().and_then(|line| serde_json::from_str(&line).ok()) else {
            return;
        };
        if matches!(request, Request::Cancel) {
            cancel.cancel();
        }
        if requests.send(request).is_err() {
            return;
        }
    }
}

fn failed(error: &StepError) -> Answer {
    Answer::Failed(Box::new(Reported::from(error)))
}

fn parse(document: &str) -> Result<Action, StepError> {
    Action::parse(document.as_bytes()).map_err(|error| StepError::Document {
        what: "action",
        problem: error.to_string(),
    })
}
