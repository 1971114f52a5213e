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
//! A ready node is first compared with the store: a hit is done. Nodes that must run start in the order of `order.rs`, as their pools
//! allow.
//!
//! A node that fails because a blob in the store is damaged or missing goes back to Waiting, and so does every node whose result
//! names that blob: the store has quarantined it, so they run again. A node gets one such retry for each blob.

mod order;
mod reasons;
mod tables;

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
use crate::observer::StaleFile;
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
use crate::step::timing::NodeWork;
use crate::step::timing::WorkOfNodes;
use crate::store::StepRecord;
use crate::timing::TimeRange;
use crate::vocab::verdict::Counts;
use crate::vocab::verdict::StepOutcome;

pub use reasons::sentence;

use order::Order;
use order::Task;
use reasons::changes;
use tables::Tables;

/// Options of a build.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Continue with steps that do not need a failed step.
    pub keep_going: bool,
    /// The maximum number of steps that hold a model in memory at once.
    pub models: usize,
    /// The maximum number of steps that mostly read and write files at once.
    pub disk: usize,
    /// The maximum number of steps at once, whatever they need.
    pub steps: usize,
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
            steps: usize::MAX,
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
    /// The number of steps of which only files were written to the output folder.
    pub wrote: usize,
    /// The number of steps whose result was in the store.
    pub hit: usize,
    /// The number of steps that did not start because a step failed or the build was stopped.
    pub skipped: usize,
    /// The number of steps that failed.
    pub failures: Vec<Failure>,
    /// Whether the user stopped it.
    pub stopped: bool,
    /// The results of all nodes that are done.
    pub outcomes: BTreeMap<NodeId, Arc<Outcome>>,
    /// The duration in milliseconds.
    pub elapsed_ms: u64,
    /// The scripts that repeat failed steps.
    pub kept: BTreeMap<NodeId, PathBuf>,
    /// The files in the output folder that the recipe no longer makes.
    pub stale: Vec<StaleFile>,
}

impl Report {
    /// Counts the steps, and the sources that failed.
    pub fn counts(&self) -> Counts<StepOutcome> {
        let mut counts = Counts::default();
        counts.add(StepOutcome::Ran, self.ran);
        counts.add(StepOutcome::Wrote, self.wrote);
        counts.add(StepOutcome::Hit, self.hit);
        counts.add(StepOutcome::Failed, self.failures.len());
        counts.add(StepOutcome::Skipped, self.skipped);
        counts
    }

    /// Counts steps whose manifest was written after they had ended, and returns those of them that were hits: now they are steps of
    /// which only files were written, as a plan says of them.
    pub fn count_written<'s>(&mut self, steps: &'s BTreeSet<NodeId>) -> Vec<&'s NodeId> {
        let is_hit = |step: &&NodeId| {
            let outcome = self.outcomes.get(*step).filter(|_| step.is_step());
            outcome.is_some_and(|outcome| !outcome.ran && !outcome.wrote)
        };
        let hits: Vec<&NodeId> = steps.iter().filter(is_hit).collect();
        self.hit -= hits.len();
        self.wrote += hits.len();
        hits
    }

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
    may_run: &'a dyn Fn() -> bool,
    refused: bool,
    options: Options,
    /// The nodes, in the graph's order.
    nodes: Vec<&'a Node>,
    /// The place of each node in `nodes`.
    places: BTreeMap<&'a NodeId, usize>,
    /// The state of each node, by place.
    states: Vec<State>,
    /// Ready nodes that were not compared with the store yet.
    undecided: VecDeque<usize>,
    /// Why ready nodes must run.
    reasons: BTreeMap<usize, Reason>,
    /// Nodes of which only files are written.
    writes: BTreeSet<usize>,
    /// The number of nodes of each pool that run.
    running: BTreeMap<Pool, usize>,
    /// Computed when the first node is about to run: a build with nothing to do needs no order.
    order: Option<Order>,
    tables: Tables,
    work: WorkOfNodes<'a, 'a>,
    report: Report,
    /// The lost blobs for which each node was sent back.
    lost: BTreeSet<(NodeId, BlobDigest)>,
}

/// Builds all nodes of a graph. `may_run` is called before a node runs; once it returns false, no further node starts. `after` is called
/// when all nodes have ended; if it returns a failure for a lost blob, the node is sent back, and `after` is called again.
pub fn build(
    graph: &Graph,
    env: &Env<'_>,
    options: Options,
    may_run: &dyn Fn() -> bool,
    after: &mut dyn FnMut(&Report) -> Vec<Failure>,
) -> Report {
    let started = Instant::now();
    let mut scheduler = Scheduler {
        graph,
        env,
        may_run,
        refused: false,
        options,
        nodes: graph.nodes().collect(),
        places: graph.nodes().map(|node| &node.id).zip(0..).collect(),
        states: vec![State::Waiting; graph.len()],
        undecided: VecDeque::new(),
        reasons: BTreeMap::new(),
        writes: BTreeSet::new(),
        running: BTreeMap::new(),
        order: None,
        tables: Tables::default(),
        work: WorkOfNodes::new(env, graph),
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

impl<'a> Scheduler<'a> {
    fn run(&mut self) {
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel::<Ended>();
            loop {
                self.decide();
                while let Some((node, reason)) = self.next() {
                    let pool = step::kind_of(node).pool(node);
                    if !(self.may_run)() {
                        self.refused = true;
                        self.set(&node.id, State::Waiting);
                        break;
                    }
                    self.set(&node.id, State::Running);
                    *self.running.entry(pool).or_default() += 1;
                    self.report_tables();
                    let (env, sender, inputs) = (self.env, sender.clone(), self.inputs(node));
                    self.expect(node, &inputs, reason.has_result());
                    scope.spawn(move || {
                        // The receiver waits for every node that runs.
                        let _ = sender.send(carry_out(node, &inputs, env, &reason));
                    });
                }
                if self.running.values().sum::<usize>() == 0 {
                    break;
                }
                match receiver.recv() {
                    Ok(ended) => {
                        self.ended(ended);
                        self.decide();
                        self.report_tables();
                    }
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

    /// Returns whether no further node may start.
    fn is_halted(&self) -> bool {
        // Nothing needs a gate: one that fails does not keep the others, or the table, from being made.
        let failed = |failure: &Failure| !matches!(failure.error, StepError::Gate { .. });
        self.refused
            || self.env.machine.cancel.is_cancelled()
            || (self.report.failures.iter().any(failed) && !self.options.keep_going)
    }

    /// Compares all ready nodes with the store. Hits are done at once, and so nodes that need them become ready.
    fn decide(&mut self) {
        while !self.is_halted()
            && let Some(place) = self.undecided.pop_front()
        {
            let node = self.nodes[place];
            // An input may have been sent back after the node became ready.
            if !self.has_inputs(&node.id) {
                self.set(&node.id, State::Waiting);
                continue;
            }
            match plan::decide(node, &self.inputs(node), self.env) {
                Ok(Decision::Hit(outcome)) => self.hit(node, outcome),
                Ok(Decision::Write(reason)) => {
                    self.writes.insert(place);
                    self.reasons.insert(place, reason);
                }
                Ok(Decision::Miss(reason)) => {
                    self.reasons.insert(place, reason);
                }
                // It would fail now: the report of a refused build has what else is wrong, too.
                Err(_) if !(self.may_run)() => {
                    self.refused = true;
                    self.set(&node.id, State::Waiting);
                }
                Err(error) => self.failed(node, error, 0),
            }
        }
    }

    /// Returns the maximum number of nodes of a pool that run at once.
    fn depth(&self, pool: Pool) -> usize {
        match pool {
            Pool::Model => self.options.models.max(1),
            Pool::Disk => self.options.disk.max(1),
            Pool::Light => LIGHT,
        }
    }

    /// Returns the next node that may start, and why it must run.
    fn next(&mut self) -> Option<(&'a Node, Reason)> {
        if self.is_halted() || self.reasons.is_empty() {
            return None;
        }
        if self.order.is_none() {
            if !(self.may_run)() {
                self.refused = true;
                return None;
            }
            self.tables = Tables::new(&self.nodes, &self.places);
            self.order = Some(Order::new(self.tasks(), &self.states));
        }
        let running: usize = self.running.values().sum();
        let left = self.options.steps.max(1).saturating_sub(running);
        let free = |pool: Pool| {
            let running = self.running.get(&pool).copied().unwrap_or_default();
            self.depth(pool).saturating_sub(running).min(left)
        };
        if left == 0 {
            return None;
        }
        let place = self.order.as_ref()?.next(&self.states, free)?;
        let reason = self.reasons.remove(&place)?;
        Some((self.nodes[place], reason))
    }

    /// Returns what the order depends on, and tells the forecast how long all nodes that may run are expected to take.
    fn tasks(&mut self) -> Vec<Task> {
        let mut work: Vec<Option<NodeWork>> = Vec::with_capacity(self.nodes.len());
        for (place, node) in self.nodes.iter().enumerate() {
            // Nothing depends on the cost of a node that is done.
            let is_open = order::is_open(self.states[place]);
            let has_result = self.writes.contains(&place) || self.reasons.get(&place).is_some_and(Reason::has_result);
            let inputs = self.inputs(node);
            work.push(if is_open {
                Some(self.work.of(node, &inputs, has_result))
            } else {
                None
            });
        }
        self.env.measure_speeds_for(work.iter().flatten());
        let timing = self.env.timing();
        let mut estimated = Vec::new();
        let mut tasks = Vec::with_capacity(self.nodes.len());
        for (place, (node, work)) in self.nodes.iter().zip(&work).enumerate() {
            let kind = step::kind_of(node);
            let inputs = self.graph.inputs(&node.id).into_iter();
            let step = node.id.to_string();
            if let (Some(forecast), Some(work)) = (self.env.machine.forecast, work) {
                forecast.expect_step(&step, &work.model, work.expected(&timing));
            }
            let duration = work.as_ref().map(|work| work.duration(&timing));
            tasks.push(Task {
                pool: kind.pool(node),
                // Writing files takes no time.
                cost: duration
                    .filter(|_| !self.writes.contains(&place))
                    .map_or(0, |duration| (duration.likely_ms as u64).max(1)),
                inputs: inputs.filter_map(|input| self.places.get(input).copied()).collect(),
                is_wanted: kind.is_wanted(),
            });
            estimated.extend(work.as_ref().map(|work| work.step_time(step, &timing)));
        }
        let time = work.iter().flatten().map(|work| work.duration(&timing));
        self.env.machine.observer.event(&Event::Estimated {
            steps: estimated,
            time: time.sum::<TimeRange>().into(),
        });
        tasks
    }

    /// Expects a node that starts with what is known of its inputs now.
    fn expect(&mut self, node: &'a Node, inputs: &Inputs, has_result: bool) {
        let Some(forecast) = self.env.machine.forecast else {
            return;
        };
        if step::kind_of(node).pool(node) != Pool::Light {
            self.work.forget();
            let work = self.work.of(node, inputs, has_result);
            forecast.expect_step(&node.id.to_string(), &work.model, work.expected(&self.env.timing()));
        }
    }

    /// Reports tables that are complete but for rows that wait for a long step.
    fn report_tables(&mut self) {
        let Some(order) = &self.order else { return };
        for place in self.tables.due(order, &self.states) {
            let node = self.nodes[place];
            let kind = step::kind_of(node);
            // It only informs: the table itself reports what is wrong with a row.
            let Ok(table) = kind.table_so_far(node, &self.inputs(node), self.env) else {
                continue;
            };
            if let Ok(document) = serde_json::to_value(&table) {
                self.env.machine.observer.event(&Event::PartialTable {
                    step: node.id.to_string(),
                    done: table.rows.len(),
                    total: kind.rows(node).len(),
                    table: document,
                });
            }
        }
    }

    fn has_inputs(&self, id: &NodeId) -> bool {
        let inputs = self.graph.inputs(id);
        inputs.iter().all(|input| self.state(input) == Some(State::Done))
    }

    fn state(&self, id: &NodeId) -> Option<State> {
        self.places.get(id).map(|&place| self.states[place])
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
        let Some(&place) = self.places.get(id) else { return };
        self.states[place] = state;
        match state {
            State::Ready => self.undecided.push_back(place),
            State::Skipped => {
                self.report.skipped += usize::from(id.is_step());
                self.tell_finished(id, StepOutcome::Skipped, (0, 0), 0, String::new());
            }
            State::Done => {
                let dependents: Vec<NodeId> = self.graph.dependents(id).into_iter().cloned().collect();
                for dependent in dependents {
                    if self.state(&dependent) == Some(State::Waiting) && self.has_inputs(&dependent) {
                        self.set(&dependent, State::Ready);
                    }
                }
            }
            State::Waiting | State::Running | State::Failed => {}
        }
    }

    fn in_state(&self, wanted: impl Fn(State) -> bool) -> Vec<NodeId> {
        let nodes = self.nodes.iter().zip(&self.states);
        let found = nodes.filter(|(_, state)| wanted(**state));
        found.map(|(node, _)| node.id.clone()).collect()
    }

    fn hit(&mut self, node: &Node, outcome: Outcome) {
        self.report.hit += usize::from(node.id.is_step());
        let summary = step::kind_of(node).summary(&outcome);
        self.tell_finished(&node.id, StepOutcome::Hit, (0, 1), 0, summary);
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
            *self.count_of(outcome).1 -= usize::from(id.is_step());
            self.set(id, State::Waiting);
        }
        self.set(&node.id, State::Waiting);
        for id in back.keys().chain([&node.id]) {
            if self.state(id) == Some(State::Waiting) && self.has_inputs(id) {
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
        let Some(node) = self.graph.node(&ended.node) else {
            return;
        };
        if let Some(running) = self.running.get_mut(&step::kind_of(node).pool(node)) {
            *running -= 1;
        }
        match ended.result {
            Ok(outcome) => {
                let (how, count) = self.count_of(&outcome);
                *count += usize::from(node.id.is_step());
                let summary = step::kind_of(node).summary(&outcome);
                self.tell_finished(&node.id, how, ended.counts, ended.elapsed_ms, summary);
                self.done(node, outcome);
            }
            Err(error) if error.class() == Class::Stopped => self.set(&node.id, State::Skipped),
            Err(error) => self.failed(node, error, ended.elapsed_ms),
        }
    }

    /// Returns how a node ended that has a result, and the number of steps that ended so.
    fn count_of(&mut self, outcome: &Outcome) -> (StepOutcome, &mut usize) {
        let report = &mut self.report;
        if outcome.ran {
            (StepOutcome::Ran, &mut report.ran)
        } else if outcome.wrote {
            (StepOutcome::Wrote, &mut report.wrote)
        } else {
            (StepOutcome::Hit, &mut report.hit)
        }
    }

    fn tell_finished(
        &self,
        id: &NodeId,
        outcome: StepOutcome,
        (ran, hit): (u64, u64),
        elapsed_ms: u64,
        summary: String,
    ) {
        self.env.machine.observer.event(&Event::StepFinished {
            step: id.to_string(),
            outcome,
            ran,
            hit,
            elapsed_ms,
            summary,
        });
    }
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
    if let Some(forecast) = env.machine.forecast {
        forecast.start(&step, started);
    }
    let result = step::carry_out(node, inputs, env, &work);
    if let Some(forecast) = env.machine.forecast {
        forecast.finish(&step, Instant::now());
    }
    Ended {
        node: node.id.clone(),
        result,
        counts: work.counts(),
        elapsed_ms: milliseconds(started),
    }
}
