//! Several capacities: a Lagrangian bound, repair, reduced-cost fixing, and branch and bound.
//!
//! Floats only guide the search: which multipliers to try, and how to repair an assignment. The bound is computed in integers,
//! from multipliers rounded to fractions. Any non-negative multipliers give a valid bound.

use crate::allocation::answer::Answer;
use crate::allocation::answer::Multipliers;
use crate::allocation::answer::Status;
use crate::allocation::effort::Effort;
use crate::allocation::problem::Group;
use crate::allocation::problem::Problem;

/// Rounds of maximizing the bound along each multiplier in turn.
const ROUNDS: usize = 8;
/// Halvings of the range of one multiplier.
const HALVINGS: usize = 50;
/// Steps along subgradients after that.
const STEPS: usize = 300;
/// Steps without progress after which they become half as long.
const PATIENCE: usize = 15;
/// An assignment is repaired after so many steps.
const REPAIR_EVERY: usize = 20;
/// Multipliers are fractions over at most two to the power of this.
const PRECISION: i32 = 40;
/// Numerators of multipliers stay below two to the power of this, so that sums of products fit into 128 bits.
const NUMERATOR_BITS: i32 = 60;

/// For each group the options that no other dominates in everything.
pub(crate) struct Several {
    fronts: Vec<Vec<usize>>,
}

impl Several {
    pub(crate) fn of(problem: &Problem) -> Self {
        Self {
            fronts: problem.groups().iter().map(front).collect(),
        }
    }

    /// Solves for limits that are each at or above what the smallest options use; otherwise returns the number of states
    /// that it searched without finding a choice.
    pub(crate) fn solve(&self, problem: &Problem, limits: &[u64], effort: &Effort<'_>) -> Result<Answer, u64> {
        let budgets: Vec<i64> = limits
            .iter()
            .zip(problem.capacities())
            .map(|(limit, capacity)| (*limit.min(&(1 << 62)) - capacity.constant).cast_signed())
            .collect();
        let mut task = Task {
            problem,
            fronts: &self.fronts,
            budgets,
            best: None,
        };
        let multipliers = task.multipliers(limits);
        let bound = task.bound(&multipliers);
        let (states, proved) = task.branch(&multipliers, bound, effort);
        let (_, choice) = task.best.ok_or(states)?;
        let (loss, uses) = problem.totals(&choice);
        Ok(Answer {
            limits: limits.to_vec(),
            choice,
            loss,
            uses,
            multipliers,
            bound,
            status: if proved { Status::Optimal } else { Status::Gap },
            states,
        })
    }
}

fn front(group: &Group) -> Vec<usize> {
    let mut order: Vec<usize> = (0..group.options.len()).collect();
    order.sort_by_key(|at| {
        let option = &group.options[*at];
        (option.loss, &option.uses, *at)
    });
    let mut kept: Vec<usize> = Vec::new();
    for at in order {
        let uses = &group.options[at].uses;
        let dominates = |other: &usize| group.options[*other].uses.iter().zip(uses).all(|(a, b)| a <= b);
        if !kept.iter().any(dominates) {
            kept.push(at);
        }
    }
    kept
}

struct Task<'a> {
    problem: &'a Problem,
    fronts: &'a [Vec<usize>],
    /// The limits less the constants.
    budgets: Vec<i64>,
    /// The best assignment within all limits, with what it is compared by: loss, then uses of the first capacity.
    best: Option<((i64, u64), Vec<usize>)>,
}

/// The assignment that is best at some multipliers.
struct Relaxed {
    choice: Vec<usize>,
    bound: f64,
    /// By how much each budget is exceeded.
    excess: Vec<f64>,
}

impl Task<'_> {
    fn uses(&self, group: usize, option: usize) -> &[u64] {
        &self.problem.groups()[group].options[option].uses
    }

    fn loss(&self, group: usize, option: usize) -> i64 {
        self.problem.groups()[group].options[option].loss
    }

    fn relax(&self, lambda: &[f64]) -> Relaxed {
        let mut bound = 0.0;
        let mut used = vec![0_u64; lambda.len()];
        let mut choice = Vec::with_capacity(self.fronts.len());
        for (group, front) in self.fronts.iter().enumerate() {
            let mut least = (f64::INFINITY, front[0]);
            for option in front {
                let priced = lambda.iter().zip(self.uses(group, *option));
                let cost =
                    self.loss(group, *option) as f64 + priced.map(|(price, use_)| price * *use_ as f64).sum::<f64>();
                if cost < least.0 {
                    least = (cost, *option);
                }
            }
            bound += least.0;
            for (sum, use_) in used.iter_mut().zip(self.uses(group, least.1)) {
                *sum += use_;
            }
            choice.push(least.1);
        }
        let excess: Vec<f64> = used
            .iter()
            .zip(&self.budgets)
            .map(|(used, budget)| (used.cast_signed() - budget) as f64)
            .collect();
        bound -= lambda
            .iter()
            .zip(&self.budgets)
            .map(|(price, budget)| price * *budget as f64)
            .sum::<f64>();
        Relaxed { choice, bound, excess }
    }

    /// Searches for good multipliers, and repairs some of the assignments on the way.
    fn multipliers(&mut self, limits: &[u64]) -> Multipliers {
        let count = self.budgets.len();
        let mut ranges = (0..count).map(|capacity| self.problem.range(capacity));
        let binding: Vec<bool> = limits
            .iter()
            .map(|limit| ranges.next().flatten().is_some_and(|(_, most)| most > *limit))
            .collect();
        let losses = self.fronts.iter().enumerate().map(|(group, front)| {
            let all = front.iter().map(|option| self.loss(group, *option));
            (all.clone().max().unwrap_or(0) - all.min().unwrap_or(0)) as f64
        });
        // Where one more unit of use costs as much as everything, nothing is bought.
        let max_price = losses.sum::<f64>() + 1.0;
        let mut lambda = vec![0.0; count];
        let mut best = (self.relax(&lambda).bound, lambda.clone());
        for _ in 0..ROUNDS {
            for at in 0..count {
                if !binding[at] {
                    continue;
                }
                let (mut low, mut high) = (0.0, max_price);
                for _ in 0..HALVINGS {
                    // Prices differ by orders of magnitude: halve their exponents while the range is wide.
                    let middle = if low == 0.0 {
                        high / 1024.0
                    } else if high > 4.0 * low {
                        (low * high).sqrt()
                    } else {
                        f64::midpoint(low, high)
                    };
                    lambda[at] = middle;
                    if self.relax(&lambda).excess[at] > 0.0 {
                        low = middle;
                    } else {
                        high = middle;
                    }
                }
                lambda[at] = high;
            }
            let relaxed = self.relax(&lambda);
            if relaxed.bound > best.0 {
                best = (relaxed.bound, lambda.clone());
            }
            self.repair(relaxed.choice, &lambda);
        }
        lambda.clone_from(&best.1);
        let (mut length, mut waited) = (1.0, 0);
        for step in 0..STEPS {
            let relaxed = self.relax(&lambda);
            if step % REPAIR_EVERY == 0 {
                self.repair(relaxed.choice.clone(), &lambda);
            }
            if relaxed.bound > best.0 {
                best = (relaxed.bound, lambda.clone());
                waited = 0;
            } else {
                waited += 1;
                if waited == PATIENCE {
                    (length, waited) = (length / 2.0, 0);
                    lambda.clone_from(&best.1);
                    continue;
                }
            }
            // Relative to the budgets, so that the unit of a capacity does not matter.
            let share = |at: usize| relaxed.excess[at] / (self.budgets[at].max(1)) as f64;
            let norm: f64 = (0..count)
                .filter(|at| binding[*at])
                .map(|at| share(at) * share(at))
                .sum();
            let target = self
                .best
                .as_ref()
                .map_or(best.0 + best.0.abs() * 0.01 + 1.0, |((loss, _), _)| *loss as f64);
            let ahead = (target - relaxed.bound).max(0.0);
            if norm == 0.0 || ahead == 0.0 {
                break;
            }
            for at in (0..count).filter(|at| binding[*at]) {
                let moved = lambda[at] + length * ahead / norm * share(at) / (self.budgets[at].max(1)) as f64;
                lambda[at] = moved.clamp(0.0, max_price);
            }
        }
        self.repair(self.relax(&best.1).choice, &best.1);
        fractions(&best.1)
    }

    /// Returns the exact bound times the denominator.
    fn bound(&self, multipliers: &Multipliers) -> i128 {
        let groups = self.fronts.iter().enumerate();
        let sum: i128 = groups
            .map(|(group, front)| {
                let costs = front.iter().map(|option| self.priced(multipliers, group, *option));
                costs.min().unwrap_or(0)
            })
            .sum();
        let pairs = multipliers.numerators.iter().zip(&self.budgets);
        sum - pairs
            .map(|(price, budget)| i128::from(*price) * i128::from(*budget))
            .sum::<i128>()
    }

    fn priced(&self, multipliers: &Multipliers, group: usize, option: usize) -> i128 {
        let priced = multipliers.numerators.iter().zip(self.uses(group, option));
        i128::from(multipliers.denominator) * i128::from(self.loss(group, option))
            + priced
                .map(|(price, use_)| i128::from(*price) * i128::from(*use_))
                .sum::<i128>()
    }

    /// Makes an assignment fit, fills what is left, and keeps it if it is the best so far.
    fn repair(&mut self, mut choice: Vec<usize>, lambda: &[f64]) {
        let mut remaining: Vec<i64> = self.budgets.clone();
        for (group, option) in choice.iter().enumerate() {
            for (remaining, use_) in remaining.iter_mut().zip(self.uses(group, *option)) {
                *remaining -= use_.cast_signed();
            }
        }
        let over = |remaining: i64, at: usize| (-remaining).max(0) as f64 / self.budgets[at].max(1) as f64;
        loop {
            let violation: f64 = remaining
                .iter()
                .enumerate()
                .map(|(at, remaining)| over(*remaining, at))
                .sum();
            if violation == 0.0 {
                break;
            }
            let mut found: Option<(f64, usize, usize)> = None;
            for (group, front) in self.fronts.iter().enumerate() {
                let now = choice[group];
                for option in front {
                    let (mut left, mut cost) = (0.0, (self.loss(group, *option) - self.loss(group, now)) as f64);
                    let pairs = self.uses(group, now).iter().zip(self.uses(group, *option));
                    for (at, (old, new)) in pairs.enumerate() {
                        left += over(remaining[at] + old.cast_signed() - new.cast_signed(), at);
                        cost += lambda[at] * (*new as f64 - *old as f64);
                    }
                    let score = cost.max(0.0) / (violation - left);
                    if left < violation && found.is_none_or(|(least, ..)| score < least) {
                        found = Some((score, group, *option));
                    }
                }
            }
            let Some((_, group, option)) = found else { return };
            self.change(&mut choice, &mut remaining, group, option);
        }
        loop {
            let mut found: Option<(i64, usize, usize)> = None;
            for (group, front) in self.fronts.iter().enumerate() {
                let now = choice[group];
                for option in front {
                    let gain = self.loss(group, now) - self.loss(group, *option);
                    let mut pairs = self
                        .uses(group, now)
                        .iter()
                        .zip(self.uses(group, *option))
                        .zip(&remaining);
                    let fits = pairs.all(|((old, new), remaining)| new.cast_signed() - old.cast_signed() <= *remaining);
                    if gain > 0 && fits && found.is_none_or(|(most, ..)| gain > most) {
                        found = Some((gain, group, *option));
                    }
                }
            }
            let Some((_, group, option)) = found else { break };
            self.change(&mut choice, &mut remaining, group, option);
        }
        self.offer(choice);
    }

    fn change(&self, choice: &mut [usize], remaining: &mut [i64], group: usize, option: usize) {
        let pairs = self.uses(group, choice[group]).iter().zip(self.uses(group, option));
        for (remaining, (old, new)) in remaining.iter_mut().zip(pairs) {
            *remaining += old.cast_signed() - new.cast_signed();
        }
        choice[group] = option;
    }

    fn offer(&mut self, choice: Vec<usize>) {
        let (loss, uses) = self.problem.totals(&choice);
        let rank = (loss, uses[0]);
        if self.best.as_ref().is_none_or(|(best, _)| rank < *best) {
            self.best = Some((rank, choice));
        }
    }

    /// Looks for less loss than the best assignment has, depth first; returns the number of states and whether all were
    /// looked at.
    fn branch(&mut self, multipliers: &Multipliers, bound: i128, effort: &Effort<'_>) -> (u64, bool) {
        let before = self.best.clone();
        let denominator = i128::from(multipliers.denominator);
        // What the reduced costs of an assignment may add up to at most, if it is to have less loss than the best one.
        let slack = |best: &Option<((i64, u64), Vec<usize>)>| {
            best.as_ref().map_or(i128::MAX, |((loss, _), _)| {
                denominator * (i128::from(*loss) - 1) - bound
            })
        };
        let mut most = slack(&self.best);
        let mut levels: Vec<(usize, Vec<(i128, usize)>)> = Vec::new();
        for (group, front) in self.fronts.iter().enumerate() {
            let mut costs: Vec<(i128, usize)> = front
                .iter()
                .map(|option| (self.priced(multipliers, group, *option), *option))
                .collect();
            costs.sort_unstable();
            let least = costs[0].0;
            for (cost, _) in &mut costs {
                *cost -= least;
            }
            costs.retain(|(cost, _)| *cost <= most);
            if costs.is_empty() {
                return (0, true);
            }
            levels.push((group, costs));
        }
        // Where a second choice costs most, there is least to try: these first.
        levels.sort_by(|(a, left), (b, right)| {
            let second = |costs: &[(i128, usize)]| costs.get(1).map_or(i128::MAX, |(cost, _)| *cost);
            second(right).cmp(&second(left)).then(a.cmp(b))
        });
        let count = self.budgets.len();
        let mut least_ahead = vec![vec![0_i64; count]; levels.len() + 1];
        for (at, (group, costs)) in levels.iter().enumerate().rev() {
            let least = |capacity: usize| {
                let uses = costs.iter().map(|(_, option)| self.uses(*group, *option)[capacity]);
                uses.min().unwrap_or(0).cast_signed()
            };
            let behind = least_ahead[at + 1].iter().enumerate();
            least_ahead[at] = behind.map(|(capacity, sum)| sum + least(capacity)).collect();
        }

        let mut states = 0_u64;
        let mut tried = vec![0_usize; levels.len()];
        let mut spent = vec![0_i128; levels.len() + 1];
        let mut remaining = vec![self.budgets.clone(); levels.len() + 1];
        let mut choice = vec![0_usize; levels.len()];
        let mut depth = 0;
        loop {
            if depth == levels.len() {
                self.offer(choice.clone());
                most = slack(&self.best);
                let Some(up) = depth.checked_sub(1) else {
                    return (states, true);
                };
                depth = up;
                continue;
            }
            let (group, costs) = &levels[depth];
            let next = costs
                .get(tried[depth])
                .filter(|(cost, _)| spent[depth].saturating_add(*cost) <= most);
            let Some((cost, option)) = next.copied() else {
                tried[depth] = 0;
                let Some(up) = depth.checked_sub(1) else {
                    return (states, true);
                };
                depth = up;
                continue;
            };
            tried[depth] += 1;
            states += 1;
            if states > effort.states {
                return (states, false);
            }
            if states.is_multiple_of(1 << 16) && effort.stopped() {
                self.best = before;
                return (states, false);
            }
            let uses = &self.problem.groups()[*group].options[option].uses;
            let mut fits = true;
            for capacity in 0..count {
                let left = remaining[depth][capacity] - uses[capacity].cast_signed();
                remaining[depth + 1][capacity] = left;
                fits &= left >= least_ahead[depth + 1][capacity];
            }
            if fits {
                choice[*group] = option;
                spent[depth + 1] = spent[depth] + cost;
                depth += 1;
            }
        }
    }
}

/// Rounds multipliers to fractions over one power of two.
fn fractions(lambda: &[f64]) -> Multipliers {
    let largest = lambda.iter().fold(0.0_f64, |a, b| a.max(*b));
    let mut precision = PRECISION;
    while precision > 0 && largest * power(precision) >= power(NUMERATOR_BITS) {
        precision -= 1;
    }
    let most = 1_u64 << NUMERATOR_BITS;
    let numerators = lambda
        .iter()
        .map(|price| ((price * power(precision)).round() as u64).min(most))
        .collect();
    Multipliers::new(numerators, 1 << precision)
}

fn power(exponent: i32) -> f64 {
    (1_u64 << exponent) as f64
}
