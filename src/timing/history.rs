//! What builds really took, as corrections of estimates: by phase, and by phase and model.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::Speeds;
use crate::observer::Phase;

/// So many builds count; older ones fade.
const WINDOW: f64 = 8.0;

/// Standard deviations of an interval that has nine of ten values.
const NINE_OF_TEN: f64 = 1.645;

/// Nothing is known better than within this factor: the next build may share the machine with other programs.
const LEAST_SPREAD: f64 = 1.2;

/// What is known of another model only is not better than within this factor.
const OTHER_MODEL: f64 = 1.6;

/// The ratio of measured to estimated durations: mean and variance of its logarithm.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Correction {
    /// How many builds count.
    count: f64,
    /// The mean of the logarithms.
    mean: f64,
    /// Their variance.
    variance: f64,
}

impl Correction {
    fn add(&mut self, ratio: f64) {
        let value = ratio.ln();
        self.count = (self.count + 1.0).min(WINDOW);
        let away = value - self.mean;
        self.mean += away / self.count;
        self.variance = (1.0 - 1.0 / self.count) * (self.variance + away * away / self.count);
    }

    fn factor(&self) -> f64 {
        self.mean.exp()
    }

    fn spread(&self) -> f64 {
        (NINE_OF_TEN * (self.variance + self.variance / self.count.max(1.0)).sqrt()).exp()
    }
}

/// Corrections of estimated durations.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History(BTreeMap<String, Correction>);

impl History {
    /// Adds what a phase took: the ratio of its duration and the estimate by [`Speeds`] alone. `model` identifies the model.
    pub fn add(&mut self, phase: Phase, model: &str, ratio: f64) {
        if !ratio.is_finite() || ratio <= 0.0 {
            return;
        }
        for name in [phase.name().to_owned(), name_of(phase, model)] {
            self.0.entry(name).or_default().add(ratio);
        }
    }

    /// Returns the factor by which estimates of a phase are to be multiplied, and the factor within which the result is nine of ten
    /// times.
    pub fn correction(&self, phase: Phase, model: &str, speeds: &Speeds) -> (f64, f64) {
        if let Some(own) = self.0.get(&name_of(phase, model)) {
            return (own.factor(), own.spread().max(LEAST_SPREAD));
        }
        match self.0.get(phase.name()) {
            Some(other) => (other.factor(), other.spread().max(OTHER_MODEL)),
            None => (1.0, speeds.spread()),
        }
    }
}

fn name_of(phase: Phase, model: &str) -> String {
    format!("{phase} {model}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_duration_corrects_the_next_estimate() {
        let (mut history, speeds) = (History::default(), Speeds::assumed(2));
        assert_eq!(history.correction(Phase::Collect, "a", &speeds), (1.0, speeds.spread()));
        history.add(Phase::Collect, "a", 4.0);
        let (factor, spread) = history.correction(Phase::Collect, "a", &speeds);
        assert!((factor - 4.0).abs() < 1e-9);
        assert_eq!(spread, LEAST_SPREAD);
        let (factor, spread) = history.correction(Phase::Collect, "b", &speeds);
        assert!((factor - 4.0).abs() < 1e-9);
        assert_eq!(spread, OTHER_MODEL);
        assert_eq!(history.correction(Phase::Write, "a", &speeds).0, 1.0);
    }

    #[test]
    fn durations_that_differ_much_give_a_wide_range() {
        let (mut history, speeds) = (History::default(), Speeds::assumed(2));
        for ratio in [1.0, 4.0, 1.0, 4.0] {
            history.add(Phase::Collect, "a", ratio);
        }
        let (factor, spread) = history.correction(Phase::Collect, "a", &speeds);
        assert!((factor - 2.0).abs() < 0.01, "{factor}");
        assert!(spread > 2.0, "{spread}");
    }

    #[test]
    fn durations_that_are_no_numbers_are_ignored() {
        let mut history = History::default();
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            history.add(Phase::Collect, "a", ratio);
        }
        assert_eq!(history, History::default());
    }
}
