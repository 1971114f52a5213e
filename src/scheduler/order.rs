//! The order in which nodes start: the nodes of the cheapest wanted result first. Pure: from costs and states to the next node.
//!
//! Wanted results are candidates, evaluations, tables, gates, and everything that no other node needs. They are ranked once, when the
//! first node starts: the next result is the one with the least work left, where the work of the results before it no longer
//! counts. A node has the rank of the first result that needs it. Among nodes of the same rank, the one with the longest path of
//! work after it starts first, then the first in the graph.
//!
//! A node of [`Pool::Model`] may have to wait although its pool is free: if a better model node only waits for other pools and
//! would be delayed more by this node than this node by it ([`Order::is_held`]).

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::State;
use crate::step::Pool;

/// What the order depends on, of each node, in graph order.
#[derive(Debug, Clone)]
pub(super) struct Task {
    /// The pool.
    pub(super) pool: Pool,
    /// The estimated work in milliseconds. Only comparisons matter.
    pub(super) cost: u64,
    /// The nodes that it needs. All have smaller numbers.
    pub(super) inputs: Vec<usize>,
    /// Whether a user waits for its result.
    pub(super) is_wanted: bool,
}

/// The priority of a node: rank, path of work, place in the graph. Smaller starts first.
type Priority = (usize, Reverse<u64>, usize);

/// The order of all nodes.
#[derive(Debug)]
pub(super) struct Order {
    tasks: Vec<Task>,
    priorities: Vec<Priority>,
    /// All nodes, the first to start first.
    sorted: Vec<usize>,
}

impl Order {
    /// Computes the order. The work of nodes that are done counts as zero.
    pub(super) fn new(tasks: Vec<Task>, states: &[State]) -> Self {
        let cost: Vec<u64> = tasks
            .iter()
            .zip(states)
            .map(|(task, state)| if is_open(*state) { task.cost } else { 0 })
            .collect();
        let mut is_needed = vec![false; tasks.len()];
        for input in tasks.iter().flat_map(|task| &task.inputs) {
            is_needed[*input] = true;
        }
        let wanted: Vec<usize> = (0..tasks.len())
            .filter(|&node| tasks[node].is_wanted || !is_needed[node])
            .collect();
        let ranks = ranks(&tasks, &cost, &wanted);
        let mut path = cost.clone();
        for node in (0..tasks.len()).rev() {
            for &input in &tasks[node].inputs {
                path[input] = path[input].max(cost[input].saturating_add(path[node]));
            }
        }
        let priorities: Vec<Priority> = (0..tasks.len())
            .map(|node| (ranks[node], Reverse(path[node]), node))
            .collect();
        let mut sorted: Vec<usize> = (0..tasks.len()).collect();
        sorted.sort_unstable_by_key(|&node| priorities[node]);
        Self {
            tasks,
            priorities,
            sorted,
        }
    }

    /// Returns the estimated work of a node.
    pub(super) fn cost(&self, node: usize) -> u64 {
        self.tasks[node].cost
    }

    /// Returns the pool of a node.
    pub(super) fn pool(&self, node: usize) -> Pool {
        self.tasks[node].pool
    }

    /// Returns the node to start next; `None` if nothing can or should start before a running node ends. If a pool has space and
    /// nothing runs, it is never `None` while a node is ready. `free` is how many more nodes of a pool may start.
    pub(super) fn next(&self, states: &[State], free: impl Fn(Pool) -> usize) -> Option<usize> {
        let is_running = states.contains(&State::Running);
        self.sorted.iter().copied().find(|&node| {
            let pool = self.tasks[node].pool;
            states[node] == State::Ready
                && free(pool) > 0
                // An input may have been sent back after the node became ready.
                && self.tasks[node].inputs.iter().all(|&input| states[input] == State::Done)
                && !(pool == Pool::Model && is_running && self.is_held(node, states, free(pool)))
        })
    }

    /// Returns whether a model node should wait for a better one. That one is on its way: what it still needs is in other pools, so
    /// it becomes ready while the model pool is idle. Waiting for it delays this node by the way (and the way may be
    /// longer than estimated, so it counts twice) and by the other node's own work; not waiting delays the other node until a model
    /// slot is free again. The smaller delay wins.
    fn is_held(&self, node: usize, states: &[State], free: usize) -> bool {
        if free > 1 {
            return false;
        }
        let running =
            (0..states.len()).filter(|&other| states[other] == State::Running && self.tasks[other].pool == Pool::Model);
        let until_free = running
            .chain([node])
            .map(|other| self.tasks[other].cost)
            .min()
            .unwrap_or(0);
        let rank = self.priorities[node].0;
        let mut ways: Vec<Option<u64>> = vec![None; states.len()];
        for (other, task) in self.tasks.iter().enumerate() {
            // The longest path of work that is left before this node; `None` if a part of it needs the model pool.
            let mut way = Some(0_u64);
            let mut is_near = true;
            for &input in &task.inputs {
                if is_open(states[input]) {
                    let is_elsewhere = self.tasks[input].pool != Pool::Model;
                    way = way.zip(ways[input].filter(|_| is_elsewhere)).map(|(a, b)| a.max(b));
                    is_near = false;
                } else if states[input] != State::Done {
                    // It failed: the node never becomes ready.
                    way = None;
                }
            }
            if let Some(way) = way
                && !is_near
                && task.pool == Pool::Model
                && states[other] == State::Waiting
                && self.priorities[other].0 < rank
                && until_free > way.saturating_mul(2).saturating_add(task.cost)
            {
                return true;
            }
            ways[other] = way.map(|way| way.saturating_add(task.cost));
        }
        false
    }

    /// Returns whether a node, or a node that it needs directly or not, is open and meets a condition.
    pub(super) fn any_open_before(&self, node: usize, states: &[State], meets: &dyn Fn(usize) -> bool) -> bool {
        let mut seen = vec![false; node + 1];
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if std::mem::replace(&mut seen[node], true) || !is_open(states[node]) {
                continue;
            }
            if meets(node) {
                return true;
            }
            left.extend(&self.tasks[node].inputs);
        }
        false
    }
}

/// Returns whether a node may still run or is running.
pub(super) fn is_open(state: State) -> bool {
    matches!(state, State::Waiting | State::Ready | State::Running)
}

/// Returns, for each node, which of the wanted results needs it first, by place in the order of results.
fn ranks(tasks: &[Task], cost: &[u64], wanted: &[usize]) -> Vec<usize> {
    // For each wanted result, what it needs with itself; for each node, the results that need it.
    let mut needs: Vec<Vec<usize>> = Vec::with_capacity(wanted.len());
    let mut results: Vec<Vec<usize>> = vec![Vec::new(); tasks.len()];
    let mut seen = vec![usize::MAX; tasks.len()];
    for (result, &node) in wanted.iter().enumerate() {
        let mut found = Vec::new();
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if std::mem::replace(&mut seen[node], result) != result {
                found.push(node);
                results[node].push(result);
                left.extend(&tasks[node].inputs);
            }
        }
        needs.push(found);
    }
    let mut work: Vec<u64> = needs
        .iter()
        .map(|needs| needs.iter().fold(0_u64, |sum, &node| sum.saturating_add(cost[node])))
        .collect();
    let mut left: BTreeSet<(u64, usize)> = work.iter().copied().zip(0..).collect();
    let mut ranks = vec![usize::MAX; tasks.len()];
    let mut rank = 0;
    while let Some((_, result)) = left.pop_first() {
        for &node in &needs[result] {
            if ranks[node] != usize::MAX {
                continue;
            }
            ranks[node] = rank;
            if cost[node] == 0 {
                continue;
            }
            for &other in &results[node] {
                if left.remove(&(work[other], other)) {
                    work[other] = work[other].saturating_sub(cost[node]);
                    left.insert((work[other], other));
                }
            }
        }
        rank += 1;
    }
    ranks
}

#[cfg(test)]
mod tests;
