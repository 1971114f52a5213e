//! How long the steps of a plan would take, and what they would need of the machine.

use super::Session;
use crate::plan::Plan;
use crate::plan::Status;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::timing::NodeWork;
use crate::step::timing::WorkOfNodes;
use crate::timing::TimeRange;

impl Session {
    /// Adds to a plan how long its steps would take. Measures the speed of the machine first, if it is not known and the work is worth
    /// it. `known` are the results of the nodes that would not run.
    pub(super) fn add_times(&self, plan: &mut Plan, known: &Inputs, env: &Env<'_>) {
        let mut nodes = WorkOfNodes::new(env, &self.graph);
        let mut work: Vec<Option<NodeWork>> = Vec::with_capacity(plan.entries.len());
        for (node, entry) in self.graph.nodes().zip(&plan.entries) {
            work.push(match &entry.status {
                Status::Hit { .. } | Status::Failed { .. } => None,
                Status::Write { .. } => Some(nodes.of(node, known, true)),
                Status::Miss { reason, .. } => Some(nodes.of(node, known, reason.has_result())),
                Status::Unknown { .. } => Some(nodes.of(node, known, false)),
            });
        }
        let all: Vec<NodeWork> = work.iter().flatten().cloned().collect();
        env.measure_speeds_for(all.iter());
        let timing = env.timing();
        for (entry, work) in plan.entries.iter_mut().zip(&work) {
            entry.time = work.as_ref().map(|work| work.duration(&timing).into());
        }
        let time: TimeRange = all.iter().map(|work| work.duration(&timing)).sum();
        plan.time = time.into();
        plan.memory = all.iter().map(|work| work.memory).max().unwrap_or_default();
        let stays: u64 = all.iter().map(|work| work.stays).sum();
        let temporary = all.iter().map(|work| work.temporary);
        // What goes again when an output is finished is there for one output at a time. If nothing is borrowed, the store keeps it.
        plan.disk = stays
            + if self.settings.borrow {
                temporary.max().unwrap_or_default()
            } else {
                temporary.sum()
            };
    }
}
