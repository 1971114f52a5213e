//! A good assignment to start from: the corners of the relaxation, and then whatever still fits.

use crate::allocation::hull::Front;
use crate::allocation::relax::Hulls;
use crate::allocation::relax::Relaxed;

/// An assignment of a problem with one capacity.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    /// For each group the index of a point of its front.
    pub(crate) points: Vec<usize>,
    pub(crate) bytes: i64,
    pub(crate) loss: i64,
}

impl Assignment {
    fn set(&mut self, group: usize, front: &Front, point: usize) {
        let (old, new) = (front.points[self.points[group]], front.points[point]);
        self.bytes += new.bytes - old.bytes;
        self.loss += new.loss - old.loss;
        self.points[group] = point;
    }
}

/// Rounds of a search that each go through all groups once.
const ROUNDS: usize = 64;

/// Fills what the relaxation leaves: as long as something fits, the change of one group that saves most loss.
pub(crate) fn greedy(hulls: &Hulls, relaxed: &Relaxed, limit: i64) -> Assignment {
    let points = hulls
        .fronts
        .iter()
        .zip(&relaxed.corners)
        .map(|(front, corner)| front.hull[*corner])
        .collect();
    let mut best = Assignment {
        points,
        bytes: relaxed.bytes,
        loss: relaxed.loss,
    };
    fill(hulls, &mut best, limit);
    best
}

fn fill(hulls: &Hulls, assignment: &mut Assignment, limit: i64) {
    for _ in 0..ROUNDS {
        let left = limit - assignment.bytes;
        let mut found: Option<(i64, i64, usize, usize)> = None;
        for (group, front) in hulls.fronts.iter().enumerate() {
            let now = front.points[assignment.points[group]];
            // The points are sorted: the last that fits saves most.
            let fitting = front.points.partition_point(|point| point.bytes - now.bytes <= left);
            let Some(at) = fitting.checked_sub(1).filter(|at| *at > assignment.points[group]) else {
                continue;
            };
            let to = front.points[at];
            let gain = now.loss - to.loss;
            let bytes = to.bytes - now.bytes;
            if found.is_none_or(|(most, least, ..)| (gain, -bytes) > (most, -least)) {
                found = Some((gain, bytes, group, at));
            }
        }
        match found {
            None => return,
            Some((_, _, group, point)) => assignment.set(group, &hulls.fronts[group], point),
        }
    }
}
