//! The work of phases, and how long it takes.

use std::ops::Add;

use serde::Serialize;

use super::Amounts;
use crate::observer::Phase;
use crate::observer::Time;

/// The work of a phase.
#[derive(Debug, Clone, PartialEq)]
pub struct PhaseWork {
    /// The phase.
    pub phase: Phase,
    /// How much of it there is, in the unit of its progress: bytes, or chunks times the share of the model that is computed.
    pub total: f64,
    /// The expected amounts.
    pub amounts: Amounts,
    /// By which factor there may be more or less of it, as far as that depends on results that are not known yet; at least 1.
    pub spread: f64,
}

impl PhaseWork {
    /// Returns a phase whose amount of work is known.
    pub fn new(phase: Phase, total: f64, amounts: Amounts) -> Self {
        Self {
            phase,
            total,
            amounts,
            spread: 1.0,
        }
    }

    /// Sets by which factor there may be more or less of it.
    #[must_use]
    pub fn spread(self, spread: f64) -> Self {
        Self { spread, ..self }
    }

    /// Multiplies the work.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            total: self.total * factor,
            amounts: self.amounts.times(factor),
            ..self
        }
    }
}

/// A duration in milliseconds, and between what it probably is: nine of ten times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct TimeRange {
    /// The most likely duration.
    pub likely_ms: f64,
    /// It is probably not shorter.
    pub least_ms: f64,
    /// It is probably not longer.
    pub most_ms: f64,
}

impl TimeRange {
    /// Returns a duration that is known.
    pub fn exact(ms: f64) -> Self {
        Self {
            likely_ms: ms,
            least_ms: ms,
            most_ms: ms,
        }
    }

    /// Returns a duration that may be longer or shorter by a factor.
    pub fn within(ms: f64, factor: f64) -> Self {
        Self {
            likely_ms: ms,
            least_ms: ms / factor,
            most_ms: ms * factor,
        }
    }
}

impl From<TimeRange> for Time {
    fn from(range: TimeRange) -> Self {
        let whole = |ms: f64| ms.clamp(0.0, 1e15) as u64;
        Self {
            likely_ms: whole(range.likely_ms),
            least_ms: whole(range.least_ms),
            most_ms: whole(range.most_ms),
        }
    }
}

/// What makes one duration longer than expected makes the others longer, too.
impl Add for TimeRange {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            likely_ms: self.likely_ms + other.likely_ms,
            least_ms: self.least_ms + other.least_ms,
            most_ms: self.most_ms + other.most_ms,
        }
    }
}

impl std::iter::Sum for TimeRange {
    fn sum<I: Iterator<Item = Self>>(ranges: I) -> Self {
        ranges.fold(Self::default(), Add::add)
    }
}
