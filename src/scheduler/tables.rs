//! Tables of candidates before they are complete. A table is reported when all its rows are there but those that wait for a long step,
//! and such a step runs.

use std::collections::BTreeMap;

use super::State;
use super::order::Order;
use super::order::is_open;
use crate::graph::Node;
use crate::step;
use crate::step::Pool;

/// The tables of a build.
#[derive(Debug, Default)]
pub(super) struct Tables(Vec<Table>);

#[derive(Debug)]
struct Table {
    node: usize,
    /// The evaluations, in the order of rows.
    rows: Vec<usize>,
    /// The number of rows that were reported last.
    reported: usize,
}

impl Tables {
    /// Finds the tables among the nodes of a graph.
    pub(super) fn new(nodes: &[&Node], places: &BTreeMap<&crate::graph::NodeId, usize>) -> Self {
        let tables = nodes.iter().enumerate().filter_map(|(node, step)| {
            let rows = step::kind_of(step).rows(step).iter();
            let rows: Vec<usize> = rows.filter_map(|row| places.get(&row.node()).copied()).collect();
            (!rows.is_empty()).then_some(Table {
                node,
                rows,
                reported: 0,
            })
        });
        Self(tables.collect())
    }

    /// Returns the tables to report now, as places of their nodes, and does not return them again before they have more rows.
    pub(super) fn due(&mut self, order: &Order, states: &[State]) -> Vec<usize> {
        let due = self.0.iter_mut().filter_map(|table| {
            let done = table.done(states);
            if done <= table.reported || !table.waits_for_long_steps(order, states) {
                return None;
            }
            table.reported = done;
            Some(table.node)
        });
        due.collect()
    }
}

impl Table {
    fn done(&self, states: &[State]) -> usize {
        self.rows.iter().filter(|&&row| states[row] == State::Done).count()
    }

    /// Returns whether a long step runs, and every row that is not there waits for a long step. A step is long if it holds a model
    /// for longer than the evaluation of any row.
    fn waits_for_long_steps(&self, order: &Order, states: &[State]) -> bool {
        let longest = self.rows.iter().map(|&row| order.cost(row)).max().unwrap_or_default();
        let is_long = |node: usize| order.pool(node) == Pool::Model && order.cost(node) > longest;
        let runs = |node: usize| states[node] == State::Running && is_long(node);
        let mut open = self.rows.iter().filter(|&&row| is_open(states[row])).peekable();
        // Most calls end here.
        if open.peek().is_none() || !(0..states.len()).any(runs) {
            return false;
        }
        let mut is_any_running = false;
        for &row in open {
            if !order.any_open_before(row, states, &is_long) {
                return false;
            }
            is_any_running |= order.any_open_before(row, states, &runs);
        }
        is_any_running
    }
}
