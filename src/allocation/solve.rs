//! The solver of one problem under any number of limits.

use crate::allocation::answer::Answer;
use crate::allocation::answer::Multipliers;
use crate::allocation::answer::Status;
use crate::allocation::close::close;
use crate::allocation::effort::Effort;
use crate::allocation::greedy::greedy;
use crate::allocation::hull::Front;
use crate::allocation::problem::Group;
use crate::allocation::problem::Problem;
use crate::allocation::relax::Hulls;
use crate::allocation::several::Several;

/// Limits beyond this are no limits; the sums of a problem stay below.
const NO_LIMIT: u64 = 1 << 62;

/// Limits that are not one for each capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one limit for each of {expected} capacities, found {found}")]
pub struct LimitsError {
    /// How many were given.
    pub found: usize,
    /// How many capacities there are.
    pub expected: usize,
}

enum Shared {
    One(Hulls),
    Several(Several),
}

/// Solves a problem under any number of limits; what does not depend on them is worked out once.
pub struct Solver<'a> {
    problem: &'a Problem,
    shared: Shared,
}

impl<'a> Solver<'a> {
    /// Works out what all limits share.
    pub fn new(problem: &'a Problem) -> Self {
        let shared = if problem.capacities().len() == 1 {
            Shared::One(Hulls::of(problem))
        } else {
            Shared::Several(Several::of(problem))
        };
        Self { problem, shared }
    }

    /// Returns the best assignment within the limits, one for each capacity, as far as it can be found; below the minimum,
    /// the smallest assignment. Ties go to the assignment that uses less of the first capacity, between equal options to the
    /// first by name, and of groups that have the same options the first by name gets the larger one.
    ///
    /// # Errors
    /// [`LimitsError`] if there is not one limit for each capacity.
    pub fn solve(&self, limits: &[u64], effort: &Effort<'_>) -> Result<Answer, LimitsError> {
        if limits.len() != self.problem.capacities().len() {
            return Err(LimitsError {
                found: limits.len(),
                expected: self.problem.capacities().len(),
            });
        }
        let mut answer = match &self.shared {
            _ if self.below(limits) => self.smallest(limits, Status::BelowMinimum),
            Shared::One(hulls) => self.one(hulls, limits, effort),
            Shared::Several(several) => several
                .solve(self.problem, limits, effort)
                .unwrap_or_else(|states| Answer {
                    states,
                    ..self.smallest(limits, Status::NothingFound)
                }),
        };
        by_name(self.problem.groups(), &mut answer.choice);
        Ok(answer)
    }

    fn below(&self, limits: &[u64]) -> bool {
        let mut ranges = (0..limits.len()).map(|capacity| self.problem.range(capacity));
        limits
            .iter()
            .any(|limit| ranges.next().flatten().is_some_and(|(least, _)| least > *limit))
    }

    fn smallest(&self, limits: &[u64], status: Status) -> Answer {
        let least = |group: &Group| {
            let options = group.options.iter().enumerate();
            let least = options.min_by_key(|(at, option)| (option.uses[0], option.loss, *at));
            least.map_or(0, |(at, _)| at)
        };
        let choice: Vec<usize> = self.problem.groups().iter().map(least).collect();
        let (loss, uses) = self.problem.totals(&choice);
        let lowest = |group: &Group| group.options.iter().map(|option| option.loss).min().unwrap_or(0);
        Answer {
            limits: limits.to_vec(),
            choice,
            loss,
            uses,
            multipliers: Multipliers::zero(limits.len()),
            bound: self
                .problem
                .groups()
                .iter()
                .map(|group| i128::from(lowest(group)))
                .sum(),
            status,
            states: 0,
        }
    }

    fn one(&self, hulls: &Hulls, limits: &[u64], effort: &Effort<'_>) -> Answer {
        let limit = limits[0].min(NO_LIMIT).cast_signed();
        debug_assert!(hulls.least_bytes() <= limit);
        let relaxed = hulls.relax(limit);
        let first = greedy(hulls, &relaxed, limit);
        let closed = close(hulls, &relaxed, limit, first, effort);
        let option = |front: &Front, point: usize| front.points[point].option;
        let choice: Vec<usize> = hulls
            .fronts
            .iter()
            .zip(&closed.best.points)
            .map(|(front, point)| option(front, *point))
            .collect();
        let (loss, uses) = self.problem.totals(&choice);
        let slope = relaxed.slope;
        Answer {
            limits: limits.to_vec(),
            choice,
            loss,
            uses,
            multipliers: Multipliers::new(vec![slope.loss as u64], slope.bytes as u64),
            bound: relaxed.bound,
            status: if closed.proved { Status::Optimal } else { Status::Gap },
            states: closed.states,
        }
    }
}

/// Among groups that have the same options, gives the larger choices to the first by name.
fn by_name(groups: &[Group], choice: &mut [usize]) {
    let mut order: Vec<usize> = (0..groups.len()).collect();
    let options = |at: &usize| {
        let options = groups[*at].options.iter();
        options.map(|option| (option.loss, &option.uses, &option.name))
    };
    order.sort_by(|a, b| options(a).cmp(options(b)).then(a.cmp(b)));
    for same in order.chunk_by(|a, b| groups[*a].options == groups[*b].options) {
        let mut chosen: Vec<usize> = same.iter().map(|at| choice[*at]).collect();
        let of = &groups[same[0]].options;
        chosen.sort_by(|a, b| of[*b].uses.cmp(&of[*a].uses).then(a.cmp(b)));
        for (at, option) in same.iter().zip(chosen) {
            choice[*at] = option;
        }
    }
}
