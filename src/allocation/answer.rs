//! What the solver says.

/// How much is known of an assignment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// No assignment within the limits has a smaller loss. With one capacity, none of the same loss uses less of it either.
    Optimal,
    /// It is within the limits; between it and the bound there may be a better one.
    Gap,
    /// Some limit is below what the smallest options use. The assignment is the one that uses least of the first capacity,
    /// the one of least loss among these; the limits do not hold.
    BelowMinimum,
    /// Several capacities, and the search found nothing within all limits. The assignment is as for
    /// [`BelowMinimum`](Self::BelowMinimum).
    NothingFound,
}

/// One multiplier for each capacity: numerators over one denominator, in lowest terms. Units of loss per unit of use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multipliers {
    /// The numerators, at most `2^62` each.
    pub numerators: Vec<u64>,
    /// The denominator, 1 to `2^62`.
    pub denominator: u64,
}

impl Multipliers {
    pub(crate) fn new(mut numerators: Vec<u64>, mut denominator: u64) -> Self {
        let common = numerators.iter().fold(denominator, |a, b| gcd(a, *b));
        if common > 1 {
            for numerator in &mut numerators {
                *numerator /= common;
            }
            denominator /= common;
        }
        Self {
            numerators,
            denominator,
        }
    }

    /// Returns multipliers that are all zero.
    pub(crate) fn zero(capacities: usize) -> Self {
        Self {
            numerators: vec![0; capacities],
            denominator: 1,
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// An assignment and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What may be used of each capacity, constants included.
    pub limits: Vec<u64>,
    /// The index of the chosen option for each group of the problem.
    pub choice: Vec<usize>,
    /// The loss of the choice, in units.
    pub loss: i64,
    /// What the choice uses of each capacity, constants included.
    pub uses: Vec<u64>,
    /// The multipliers of the bound.
    pub multipliers: Multipliers,
    /// The lower bound times the denominator of the multipliers: the sum over groups of the least
    /// `denominator * loss + sum of numerator * use`, less `numerator * (limit - constant)` of each capacity. No assignment
    /// within the limits has a smaller loss than this over the denominator (weak duality).
    pub bound: i128,
    /// How much is known.
    pub status: Status,
    /// How many states the search made; the same on every machine.
    pub states: u64,
}

impl Answer {
    /// Returns the least loss that an assignment within the limits can have, as far as the bound tells.
    pub fn least(&self) -> i64 {
        let denominator = i128::from(self.multipliers.denominator);
        let floor = self.bound.div_euclid(denominator);
        let up = i128::from(self.bound.rem_euclid(denominator) != 0);
        i64::try_from(floor + up).unwrap_or(i64::MIN)
    }

    /// Returns by how much the loss can be above the least possible, in units: 0 if it was proved optimal.
    pub fn gap(&self) -> u64 {
        match self.status {
            Status::Optimal => 0,
            _ => self.loss.saturating_sub(self.least()).max(0) as u64,
        }
    }

    /// Returns the gap as a share of the loss; 0 for no gap, none where the loss is not positive.
    pub fn relative_gap(&self) -> Option<f64> {
        match self.gap() {
            0 => Some(0.0),
            gap => (self.loss > 0).then(|| gap as f64 / self.loss as f64),
        }
    }
}
