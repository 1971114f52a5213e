//! The linear relaxation: all hull segments of all groups, steepest first, until the limit.

use crate::allocation::hull::Front;
use crate::allocation::hull::Slope;
use crate::allocation::problem::Problem;

/// A step from one corner of a group's hull to the next.
#[derive(Debug, Clone, Copy)]
struct Segment {
    slope: Slope,
    group: usize,
    /// The corner it starts from.
    from: usize,
}

/// What all limits share: fronts and sorted segments of a problem with one capacity.
#[derive(Debug)]
pub(crate) struct Hulls {
    pub(crate) fronts: Vec<Front>,
    segments: Vec<Segment>,
    /// Bytes after so many segments, constant included; one more than there are segments.
    filled: Vec<i64>,
}

/// The relaxation for one limit.
#[derive(Debug, Clone)]
pub(crate) struct Relaxed {
    /// The multiplier, in lowest terms: the slope of the first segment that does not fit, zero if all fit.
    pub(crate) slope: Slope,
    /// For each group the corner of its hull that is best at the multiplier and within the limit.
    pub(crate) corners: Vec<usize>,
    /// Bytes of the corners.
    pub(crate) bytes: i64,
    /// Loss of the corners.
    pub(crate) loss: i64,
    /// The bound times the denominator of the slope.
    pub(crate) bound: i128,
}

impl Hulls {
    pub(crate) fn of(problem: &Problem) -> Self {
        let fronts: Vec<Front> = problem.groups().iter().map(Front::of).collect();
        let mut segments = Vec::new();
        for (group, front) in fronts.iter().enumerate() {
            for (from, pair) in front.hull.windows(2).enumerate() {
                segments.push(Segment {
                    slope: Slope::between(front.points[pair[0]], front.points[pair[1]]),
                    group,
                    from,
                });
            }
        }
        // Slopes of one group strictly fall, so its segments come in their order.
        segments.sort_by(|a, b| b.slope.cmp(&a.slope).then_with(|| a.group.cmp(&b.group)));
        let mut bytes = problem.capacities()[0].constant.cast_signed();
        bytes += fronts.iter().map(|front| front.points[0].bytes).sum::<i64>();
        let mut filled = vec![bytes];
        for segment in &segments {
            bytes += segment.slope.bytes;
            filled.push(bytes);
        }
        Self {
            fronts,
            segments,
            filled,
        }
    }

    /// Returns the bytes of the smallest assignment.
    pub(crate) fn least_bytes(&self) -> i64 {
        self.filled[0]
    }

    /// Returns the relaxation for a limit that is not below the smallest assignment.
    pub(crate) fn relax(&self, limit: i64) -> Relaxed {
        let taken = self.filled.partition_point(|bytes| *bytes <= limit).saturating_sub(1);
        let mut corners = vec![0; self.fronts.len()];
        for segment in &self.segments[..taken] {
            corners[segment.group] = segment.from + 1;
        }
        let loss = self
            .fronts
            .iter()
            .zip(&corners)
            .map(|(front, corner)| front.points[front.hull[*corner]].loss)
            .sum();
        let slope = self
            .segments
            .get(taken)
            .map_or(Slope::ZERO, |segment| segment.slope.reduced());
        let bytes = self.filled[taken];
        let bound = i128::from(slope.bytes) * i128::from(loss)
            - i128::from(slope.loss) * (i128::from(limit) - i128::from(bytes));
        Relaxed {
            slope,
            corners,
            bytes,
            loss,
            bound,
        }
    }
}
