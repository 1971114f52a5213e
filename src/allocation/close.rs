//! Closing the gap exactly, for one capacity: dynamic programming over a core of groups that grows around the multiplier.
//!
//! Pisinger's MCKNAP. A state says which options a set of groups (the core) has, while all others stand at their corner of
//! the relaxation; its bytes may be above the limit, since groups to come may shrink. Groups enter in the order of how
//! little it would cost to move them. For the groups outside, the corners are best for every multiplier between the steepest
//! way up that is left and the flattest way down; so each of the two gives a bound for every completion of a state, and
//! the bounds tighten as the core grows. A state whose bound is above the best loss known goes; so does one that uses no
//! fewer bytes than another and loses no less. States of which nothing better, but something equal can come, stay: in the
//! end the assignment is the one that uses the fewest bytes among those of the least loss.

use std::cmp::Reverse;

use crate::allocation::effort::Effort;
use crate::allocation::greedy::Assignment;
use crate::allocation::hull::Slope;
use crate::allocation::relax::Hulls;
use crate::allocation::relax::Relaxed;

/// What came of it.
pub(crate) struct Closed {
    pub(crate) best: Assignment,
    /// True if nothing better exists.
    pub(crate) proved: bool,
    /// How many states were made.
    pub(crate) states: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct State {
    bytes: i64,
    loss: i64,
    /// The state of the layer before.
    parent: u32,
    /// The point of the layer's group.
    point: u32,
}

/// A group that entered, and how its states came about.
struct Layer {
    group: usize,
    states: Vec<(u32, u32)>,
}

/// The ways on from the corners outside the core.
struct Outside {
    /// Ways up, steepest first.
    up: Vec<(Slope, usize)>,
    /// Ways down, flattest first.
    down: Vec<(Slope, usize)>,
    next_up: usize,
    next_down: usize,
    entered: Vec<bool>,
    take_up: bool,
}

impl Outside {
    fn new(hulls: &Hulls, relaxed: &Relaxed) -> Self {
        let (mut up, mut down) = (Vec::new(), Vec::new());
        for (group, (front, corner)) in hulls.fronts.iter().zip(&relaxed.corners).enumerate() {
            let at = |corner: usize| front.hull.get(corner).map(|point| front.points[*point]);
            let Some(here) = at(*corner) else { continue };
            if let Some(above) = at(corner + 1) {
                up.push((Slope::between(here, above), group));
            }
            if let Some(below) = corner.checked_sub(1).and_then(at) {
                down.push((Slope::between(below, here), group));
            }
        }
        up.sort_by_key(|(slope, group)| (Reverse(*slope), *group));
        down.sort_by_key(|(slope, group)| (*slope, *group));
        Self {
            up,
            down,
            next_up: 0,
            next_down: 0,
            entered: vec![false; hulls.fronts.len()],
            take_up: true,
        }
    }

    fn skip_entered(&mut self) {
        while self.up.get(self.next_up).is_some_and(|(_, group)| self.entered[*group]) {
            self.next_up += 1;
        }
        while self
            .down
            .get(self.next_down)
            .is_some_and(|(_, group)| self.entered[*group])
        {
            self.next_down += 1;
        }
    }

    /// Takes the next group into the core, from both sides by turns.
    fn enter(&mut self) -> Option<usize> {
        let (up, down) = (self.up.get(self.next_up), self.down.get(self.next_down));
        let first = if self.take_up { up.or(down) } else { down.or(up) };
        let group = first?.1;
        self.take_up = !self.take_up;
        self.entered[group] = true;
        self.skip_entered();
        Some(group)
    }

    /// The steepest way up that is left.
    fn steepest_up(&self) -> Slope {
        self.up.get(self.next_up).map_or(Slope::ZERO, |(slope, _)| *slope)
    }

    /// The flattest way down that is left.
    fn flattest_down(&self) -> Option<Slope> {
        self.down.get(self.next_down).map(|(slope, _)| *slope)
    }
}

/// Searches for what is better than `best`, which is within the limit.
pub(crate) fn close(hulls: &Hulls, relaxed: &Relaxed, limit: i64, best: Assignment, effort: &Effort<'_>) -> Closed {
    let corners: Vec<usize> = hulls
        .fronts
        .iter()
        .zip(&relaxed.corners)
        .map(|(front, corner)| front.hull[*corner])
        .collect();
    let mut outside = Outside::new(hulls, relaxed);
    let mut states = vec![State {
        bytes: relaxed.bytes,
        loss: relaxed.loss,
        parent: 0,
        point: 0,
    }];
    let mut layers: Vec<Layer> = Vec::new();
    let (mut least, mut least_bytes) = (best.loss, best.bytes);
    // The layer and the state that the best assignment was found in; none while it is the one given.
    let mut found: Option<(usize, usize)> = None;
    let mut made = 0_u64;
    let most = effort.states.min(u64::from(u32::MAX));
    let mut proved = true;

    while !states.is_empty() {
        let Some(group) = outside.enter() else { break };
        let (up, down) = (outside.steepest_up(), outside.flattest_down());
        let front = &hulls.fronts[group];
        let here = front.points[corners[group]];
        let mut next: Vec<State> = Vec::new();
        for (point, to) in front.points.iter().enumerate() {
            let (bytes, loss) = (to.bytes - here.bytes, to.loss - here.loss);
            // Reduced cost: with this option, no assignment has a smaller loss than the bound plus this.
            let reduced =
                i128::from(relaxed.slope.bytes) * i128::from(loss) + i128::from(relaxed.slope.loss) * i128::from(bytes);
            if relaxed.bound + reduced > i128::from(relaxed.slope.bytes) * i128::from(least) {
                continue;
            }
            made += states.len() as u64;
            let moved = states.iter().enumerate().map(|(parent, state)| State {
                bytes: state.bytes + bytes,
                loss: state.loss + loss,
                parent: parent as u32,
                point: point as u32,
            });
            next.extend(moved.filter(|state| {
                let worse = i128::from(state.loss) - i128::from(least);
                let left = i128::from(limit) - i128::from(state.bytes);
                if left >= 0 {
                    worse * i128::from(up.bytes) <= i128::from(up.loss) * left
                } else {
                    down.is_some_and(|down| worse * i128::from(down.bytes) <= i128::from(down.loss) * left)
                }
            }));
        }
        if made > most {
            proved = false;
            break;
        }
        if effort.stopped() {
            // When that is asked depends on the clock; what was found meanwhile must not.
            (proved, found) = (false, None);
            break;
        }
        next.sort();
        let mut lowest = i64::MAX;
        next.retain(|state| {
            let better = state.loss < lowest;
            lowest = lowest.min(state.loss);
            better
        });
        let within = next.partition_point(|state| state.bytes <= limit);
        if let Some(state) = within.checked_sub(1).map(|at| next[at])
            && (state.loss, state.bytes) < (least, least_bytes)
        {
            (least, least_bytes) = (state.loss, state.bytes);
            found = Some((layers.len(), within - 1));
        }
        layers.push(Layer {
            group,
            states: next.iter().map(|state| (state.parent, state.point)).collect(),
        });
        states = next;
    }

    let best = match found {
        None => best,
        Some((layer, mut state)) => {
            let mut points = corners;
            for layer in layers[..=layer].iter().rev() {
                let (parent, point) = layer.states[state];
                points[layer.group] = point as usize;
                state = parent as usize;
            }
            Assignment {
                points,
                bytes: least_bytes,
                loss: least,
            }
        }
    };
    Closed {
        best,
        proved,
        states: made,
    }
}
