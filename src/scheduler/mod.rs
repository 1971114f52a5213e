//! Runs what is stale. One thread owns all state: every node is in exactly one of the states below, and one function changes it.
//! Other threads only run nodes and send the results.
//!
//! ```text
//! Waiting -> Ready -> Running -> Done
//!    |          |        '-----> Failed
//!    |          '-> Done (a hit)
//!    '-> Skipped (something it needs failed, or the build was stopped)
//! ```
//!
//! A node that fails because a blob in the store is damaged or missing goes back to Waiting, and so does every node whose result
//! names that blob: the store has quarantined it, so they run again. A node gets one such retry for each blob.

mod reasons;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use crate::digest::BlobDigest;
use crate::graph::Graph;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::observer::BuildOutcome;
use crate::observer::Event;
use crate::observer::StepOutcome;
use crate::plan;
use crate::plan::Decision;
use crate::plan::Reason;
use crate::step;
use crate::step::Class;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::store::StepRecord;

pub use reasons::sentence;

use reasons::changes;

/// Options of a build.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Continue with steps that do not need a failed step.
    pub keep_going: bool,
    /// The maximum number of steps that hold a model in memory at once.
    pub models: usize,
    /// The maximum number of steps that mostly read and write files at once.
    pub disk: usize,
    /// Whether to record each step's action as the one that ran last. Off when only sources are examined, so that `why` can still
    /// compare them with the last build.
    pub note: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep_going: false,
            models: 1,
            disk: 2,
            note: true,
        }
    }
}

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Ready,
    Running,
    Done,
    Failed,
    Skipped,
}

/// A node that failed.
#[derive(Debug)]
pub struct Failure {
    /// The node.
    pub node: NodeId,
    /// The error.
    pub error: StepError,
}

/// The result of a build.
#[derive(Debug, Default)]
pub struct Report {
    /// The number of steps that ran.
    pub ran: usize,
    /// The number of steps that were cached.
    pub cached: usize,
    /// The number of steps that did not start because a step failed or the build was stopped.
    pub skipped: usize,
    /// The number of steps that failed.
    pub failures: Vec<Failure>,
    /// Whether the user stopped it.
    pub stopped: bool,
    /// The results of all nodes that are done.
    pub outcomes: BTreeMap<NodeId, Arc<Outcome>>,
    /// The number of manifests that were written.
    pub manifests: usize,
    /// The duration in milliseconds.
    pub elapsed_ms: u64,
    /// The scripts that repeat failed steps.
    pub kept: BTreeMap<NodeId, PathBuf>,
}

impl Report {
    /// Returns how the build ended.
    pub fn outcome(&self) -> BuildOutcome {
        let class = |wanted: Class| self.failures.iter().any(|failure| failure.error.class() == wanted);
        if self.stopped {
            BuildOutcome::Stopped
        } else if class(Class::Step) {
            BuildOutcome::Failed
        } else if self.failures.is_empty() {
            BuildOutcome::Done
        } else {
            BuildOutcome::Environment
        }
    }
}

/// The maximum number of light steps at once.
const LIGHT: usize = 8;

struct Ended {
    node: NodeId,
    result: Result<Outcome, StepError>,
    counts: (u64, u64),
    elapsed_ms: u64,
}

struct Scheduler<'a> {
    graph: &'a Graph,
    env: &'a Env<'a>,
    fits: &'a dyn Fn() -> bool,
    refused: bool,
    options: Options,
    states: BTreeMap<NodeId, State>,
    ready: VecDeque<NodeId>,
    running: BTreeMap<NodeId, Pool>,
    report: Report,
    /// The lost blobs for which each node was sent back.
    lost: BTreeSet<(NodeId, BlobDigest)>,
}

/// Builds all nodes of a graph. `fits` is called before a node runs; once it returns false, no further node starts. `after` is called
/// when all nodes have ended; if it returns a failure for a lost blob, the node is sent back, and `after` is called again.
pub fn build(
    graph: &Graph,
    env: &Env<'_>,
    options: Options,
    fits: &dyn Fn() -> bool,
    after: &mut dyn FnMut(&Report) -> Vec<Failure>,
) -> Report {
    let started = Instant::now();
    let mut scheduler = Scheduler {
        graph,
        env,
        fits,
        refused: false,
        options,
        states: graph.nodes().map(|node| (node.id.clone(), State::Waiting)).collect(),
        ready: VecDeque::new(),
        running: BTreeMap::new(),
        report: Report::default(),
        lost: BTreeSet::new(),
    };
    for node in graph.nodes().filter(|node| graph.inputs(&node.id).is_empty()) {
        scheduler.set(&node.id, State::Ready);
    }
    loop {
        scheduler.run();
        let mut left = Vec::new();
        let mut again = false;
        for failure in after(&scheduler.report) {
            match graph.node(&failure.node) {
                Some(node) if scheduler.mends(node, &failure.error) => again = true,
                _ => left.push(failure),
            }
        }
        if !again {
            scheduler.report.failures.extend(left);
            break;
        }
    }
    let mut report = scheduler.report;
    report.elapsed_ms = milliseconds(started);
    report
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Scheduler<'_> {
    fn run(&mut self) {
        let graph = self.graph;
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel::<Ended>();
            loop {
                while let Some(id) = self.next() {
                    let Some(node) = graph.node(&id) else { continue };
                    let inputs = self.inputs(node);
                    match plan::decide(node, &inputs, self.env) {
                        Ok(Decision::Hit(outcome)) => self.hit(node, outcome),
                        // A node whose state is an error would fail now: then the report has what else is wrong, too.
                        Ok(Decision::Miss(_)) | Err(_) if !(self.fits)() => {
                            self.refused = true;
                            self.set(&id, State::Waiting);
                        }
                        Ok(Decision::Miss(reason)) => {
                            self.set(&id, State::Running);
                            self.running.insert(id, step::kind_of(node).pool(node));
                            let (env, sender) = (self.env, sender.clone());
                            scope.spawn(move || {
                                // The receiver waits for every node that runs.
                                let _ = sender.send(carry_out(node, &inputs, env, &reason));
                            });
                        }
                        Err(error) => self.failed(node, error, 0),
                    }
                }
                if self.running.is_empty() {
                    break;
                }
                match receiver.recv() {
                    Ok(ended) => self.ended(ended),
                    Err(_) => break,
                }
            }
        });
        let left: Vec<NodeId> = self.in_state(|state| matches!(state, State::Waiting | State::Ready));
        for id in left {
            self.set(&id, State::Skipped);
        }
        self.report.stopped |= self.env.machine.cancel.is_cancelled();
    }

    /// Returns the maximum number of nodes of a pool that run at once.
    fn depth(&self, pool: Pool) -> usize {
        match pool {
            Pool::Model => self.options.models.max(1),
            Pool::Disk => self.options.disk.max(1),
            Pool::Light => LIGHT,
        }
    }

    /// Returns the next node that may start, in graph order, if its pool is not full.
    fn next(&mut self) -> Option<NodeId> {
        // Nothing needs a gate: one that fails does not keep the others, or the table, from being made.
        let failed = |failure: &Failure| !matches!(failure.error, StepError::Gate { .. });
        let halted = self.refused
            || self.env.machine.cancel.is_cancelled()
            || (self.report.failures.iter().any(failed) && !self.options.keep_going);
        if halted {
            return None;
        }
        let is_free = |pool: Pool| self.running.values().filter(|&&running| running == pool).count() < self.depth(pool);
        let at = self.ready.iter().position(|id| {
            let node = self.graph.node(id);
            // An input may have been sent back after the node became ready.
            self.has_inputs(id) && node.is_some_and(|node| is_free(step::kind_of(node).pool(node)))
        })?;
        self.ready.remove(at)
    }

    fn has_inputs(&self, id: &NodeId) -> bool {
        let inputs = self.graph.inputs(id);
        inputs.iter().all(|input| self.states.get(input) == Some(&State::Done))
    }

    fn inputs(&self, node: &Node) -> Inputs {
        let mut inputs = Inputs::default();
        for id in self.graph.inputs(&node.id) {
            if let Some(outcome) = self.report.outcomes.get(id) {
                inputs.insert(id.clone(), Arc::clone(outcome));
            }
        }
        inputs
    }

    /// Changes the state of a node. Nothing else does.
    fn set(&mut self, id: &NodeId, state: State) {
        self.states.insert(id.clone(), state);
        match state {
            State::Ready => self.ready.push_back(id.clone()),
            State::Skipped => {
                self.report.skipped += usize::from(counts(id));
                self.tell_finished(id, StepOutcome::Skipped, (0, 0), 0, String::new());
            }
            State::Done => {
                let dependents: Vec<NodeId> = self.graph.dependents(id).into_iter().cloned().collect();
                for dependent in dependents {
                    if self.states.get(&dependent) == Some(&State::Waiting) && self.has_inputs(&dependent) {
                        self.set(&dependent, State::Ready);
                    }
                }
            }
            State::Waiting | State::Running | State::Failed => {}
        }
    }

    fn in_state(&self, wanted: impl Fn(State) -> bool) -> Vec<NodeId> {
        self.states
            .iter()
            .filter(|(_, state)| wanted(**state))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn hit(&mut self, node: &Node, outcome: Outcome) {
        self.report.cached += usize::from(counts(&node.id));
        let summary = step::kind_of(node).summary(&outcome);
        self.tell_finished(&node.id, StepOutcome::Cached, (0, 1), 0, summary);
        self.done(node, outcome);
    }

    fn done(&mut self, node: &Node, outcome: Outcome) {
        if self.options.note {
            self.note_last(node, &outcome);
        }
        self.report.outcomes.insert(node.id.clone(), Arc::new(outcome));
        self.set(&node.id, State::Done);
    }

    fn note_last(&self, node: &Node, outcome: &Outcome) {
        let last = StepRecord {
            recipe: self.env.recipe.clone(),
            step: node.id.to_string(),
            action: outcome.key,
            document: outcome.result.action,
            manifest: None,
            manifest_checked: false,
            inputs: self.inputs(node).keys(),
            files: if step::reads_files(node) {
                self.env.named(&outcome.files)
            } else {
                Vec::new()
            },
        };
        // The record only explains: a record that cannot be written does not fail the step.
        let _ = self.env.store.note_last(&last);
    }

    /// Sends a node that failed because of a lost blob back to Waiting, with all nodes whose results name that blob. Returns
    /// whether it did.
    fn mends(&mut self, node: &Node, error: &StepError) -> bool {
        let lost = error.lost();
        let first_time = !lost.is_empty() && lost.iter().all(|blob| self.lost.insert((node.id.clone(), *blob)));
        if !first_time || self.env.machine.cancel.is_cancelled() {
            return false;
        }
        self.env.machine.observer.event(&Event::Warning {
            step: node.id.to_string(),
            message: format!("{error}; forge makes it again"),
        });
        let names = |outcome: &Outcome| {
            let mut named = std::iter::once(&outcome.result.action).chain(outcome.result.outputs.values());
            named.any(|blob| lost.contains(blob))
        };
        let outcomes = std::mem::take(&mut self.report.outcomes);
        let (back, kept): (BTreeMap<_, _>, BTreeMap<_, _>) = outcomes
            .into_iter()
            .partition(|(id, outcome)| *id == node.id || names(outcome));
        self.report.outcomes = kept;
        for (id, outcome) in &back {
            let count = if outcome.ran {
                &mut self.report.ran
            } else {
                &mut self.report.cached
            };
            *count -= usize::from(counts(id));
            self.set(id, State::Waiting);
        }
        self.set(&node.id, State::Waiting);
        for id in back.keys().chain([&node.id]) {
            if self.states.get(id) == Some(&State::Waiting) && self.has_inputs(id) {
                self.set(id, State::Ready);
            }
        }
        true
    }

    fn failed(&mut self, node: &Node, error: StepError, elapsed_ms: u64) {
        if self.mends(node, &error) {
            return;
        }
        self.tell_finished(&node.id, StepOutcome::Failed, (0, 0), elapsed_ms, error.to_string());
        self.report.failures.push(Failure {
            node: node.id.clone(),
            error,
        });
        self.set(&node.id, State::Failed);
    }

    fn ended(&mut self, ended: Ended) {
        self.running.remove(&ended.node);
        let graph = self.graph;
        let Some(node) = graph.node(&ended.node) else { return };
        match ended.result {
            Ok(outcome) => {
                let ran = outcome.ran;
                let (how, count) = if ran {
                    (StepOutcome::Ran, &mut self.report.ran)
                } else {
                    (StepOutcome::Cached, &mut self.report.cached)
                };
                *count += usize::from(counts(&node.id));
                let summary = step::kind_of(node).summary(&outcome);
                self.tell_finished(&node.id, how, ended.counts, ended.elapsed_ms, summary);
                self.done(node, outcome);
            }
            Err(error) if error.class() == Class::Stopped => self.set(&node.id, State::Skipped),
            Err(error) => self.failed(node, error, ended.elapsed_ms),
        }
    }

    fn tell_finished(
        &self,
        id: &NodeId,
        outcome: StepOutcome,
        (ran, cached): (u64, u64),
        elapsed_ms: u64,
        summary: String,
    ) {
        self.env.machine.observer.event(&Event::StepFinished {
            step: id.to_string(),
            outcome,
            ran,
            cached,
            elapsed_ms,
            summary,
        });
    }
}

/// Only steps are counted: every build examines the sources.
fn counts(id: &NodeId) -> bool {
    !matches!(id, NodeId::Source(_))
}

fn carry_out(node: &Node, inputs: &Inputs, env: &Env<'_>, reason: &Reason) -> Ended {
    let started = Instant::now();
    let step = node.id.to_string();
    env.machine.observer.event(&Event::StepStarted {
        step: step.clone(),
        why: sentence(reason),
        changes: changes(reason),
    });
    let work = env.context(&node.id, inputs);
    let result = step::carry_out(node, inputs, env, &work);
    Ended {
        node: node.id.clone(),
        result,
        counts: work.counts(),
        elapsed_ms: milliseconds(started),
    }
}
