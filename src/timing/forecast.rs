//! The time that is left while a build runs.
//!
//! Wall time is divided equally among the steps that run, so the times of all steps add up to that of the build. What a step has done of a
//! phase, divided by the time that it took, corrects the estimate of the rest of that phase; the same phase of other steps and all other
//! work correct it less. The more of a phase is done, the more its own progress counts.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use super::phase::TimeRange;
use crate::observer::Phase;

/// The weight of the estimate before the build, if the machine or another model gave it.
const PRIOR: f64 = 2.0;
/// The weight of all work of the build so far.
const WHOLE: f64 = 0.5;
/// The weight of the same phase of other steps.
const SAME_PHASE: f64 = 12.0;
/// The weight of a phase's own progress when all of it is done.
const OWN: f64 = 100.0;
/// Progress of less than this time is mostly noise.
const SHORT_MS: f64 = 2000.0;
/// Shorter phases correct no later build.
const RECORDED_MS: f64 = 200.0;

/// A phase of a step, as it is estimated before the build.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// The phase.
    pub phase: Phase,
    /// How much of it there is ([`super::PhaseWork::total`]).
    pub total: f64,
    /// How long that takes by the speeds of the machine alone, in milliseconds.
    pub by_speeds_ms: f64,
    /// The correction by earlier builds: the estimate is `by_speeds_ms` times this.
    pub factor: f64,
    /// The factor within which the estimate is nine of ten times.
    pub spread: f64,
}

/// What a phase took.
#[derive(Debug, Clone, PartialEq)]
pub struct Took {
    /// The phase.
    pub phase: Phase,
    /// The model, as [`Forecast::expect_step`] was told.
    pub model: String,
    /// The duration, divided by the estimate by the speeds of the machine alone.
    pub ratio: f64,
}

#[derive(Debug)]
struct PhaseState {
    expected: Expected,
    /// How much there is, as far as it is known now.
    total: f64,
    done: f64,
    spent_ms: f64,
    is_over: bool,
}

impl PhaseState {
    /// Returns the estimated milliseconds of an amount of the work.
    fn estimate(&self, amount: f64) -> f64 {
        if self.expected.total > 0.0 {
            self.expected.by_speeds_ms * self.expected.factor * amount / self.expected.total
        } else {
            0.0
        }
    }

    fn left(&self) -> f64 {
        if self.is_over {
            0.0
        } else {
            (self.total - self.done).max(0.0)
        }
    }

    fn fraction(&self) -> f64 {
        if self.total > 0.0 {
            (self.done / self.total).min(1.0)
        } else {
            1.0
        }
    }
}

#[derive(Debug)]
struct StepState {
    model: String,
    phases: Vec<PhaseState>,
    current: Option<Phase>,
    is_over: bool,
}

#[derive(Debug)]
struct State {
    steps: BTreeMap<String, StepState>,
    running: Vec<String>,
    charged: Option<Instant>,
}

/// The time that is left of a build and of its steps.
#[derive(Debug)]
pub struct Forecast(Mutex<State>);

impl Default for Forecast {
    fn default() -> Self {
        Self(Mutex::new(State {
            steps: BTreeMap::new(),
            running: Vec::new(),
            charged: None,
        }))
    }
}

impl Forecast {
    fn state(&self) -> MutexGuard<'_, State> {
        // It only informs: numbers that a panic left half changed do no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Expects a step that has not ended. Replaces what was expected of it, but for the work that is done.
    pub fn expect_step(&self, step: &str, model: &str, phases: impl IntoIterator<Item = Expected>) {
        let mut state = self.state();
        let known = state.steps.entry(step.to_owned()).or_insert_with(|| StepState {
            model: String::new(),
            phases: Vec::new(),
            current: None,
            is_over: false,
        });
        model.clone_into(&mut known.model);
        if known.current.is_some() {
            return;
        }
        known.phases = phases
            .into_iter()
            .map(|expected| PhaseState {
                expected,
                total: expected.total,
                done: 0.0,
                spent_ms: 0.0,
                is_over: false,
            })
            .collect();
        known.phases.sort_by_key(|phase| phase.expected.phase);
    }

    /// A step begins.
    pub fn start(&self, step: &str, now: Instant) {
        let mut state = self.state();
        state.charge(now);
        if !state.running.iter().any(|running| running == step) {
            state.running.push(step.to_owned());
        }
    }

    /// A step ends, whatever its result.
    pub fn finish(&self, step: &str, now: Instant) {
        let mut state = self.state();
        state.charge(now);
        state.running.retain(|running| running != step);
        if let Some(step) = state.steps.get_mut(step) {
            step.is_over = true;
        }
    }

    /// A phase of a running step begins, or goes on with more work: phases before it are over. `total` is how much there is in all now;
    /// a smaller number than is expected counts only if it `is_final`.
    pub fn phase(&self, step: &str, phase: Phase, total: f64, is_final: bool, now: Instant) {
        let mut state = self.state();
        state.charge(now);
        let Some(known) = state.steps.get_mut(step) else { return };
        known.enter(phase);
        if let Some(state) = known.find(phase) {
            let total = total.max(state.done);
            state.total = if is_final { total } else { total.max(state.total) };
        }
    }

    /// Some more of a phase is done.
    pub fn advance(&self, step: &str, phase: Phase, by: f64, now: Instant) {
        let mut state = self.state();
        state.charge(now);
        let Some(known) = state.steps.get_mut(step) else { return };
        known.enter(phase);
        if let Some(state) = known.find(phase) {
            state.done += by;
            state.total = state.total.max(state.done);
        }
    }

    /// Some of a phase need not be done: its result was there.
    pub fn skip(&self, step: &str, phase: Phase, by: f64) {
        let mut state = self.state();
        let known = state.steps.get_mut(step);
        if let Some(known) = known.and_then(|known| known.phases.iter_mut().find(|known| known.expected.phase == phase))
        {
            known.total = (known.total - by).max(known.done);
        }
    }

    /// Returns how much of a phase is done, of 1; `None` if the step has no such phase.
    pub fn fraction(&self, step: &str, phase: Phase) -> Option<f64> {
        let state = self.state();
        let phases = &state.steps.get(step)?.phases;
        let found = phases.iter().find(|known| known.expected.phase == phase)?;
        Some(found.fraction())
    }

    /// Returns the time that a step still needs; `None` if nothing is expected of it.
    pub fn left_of(&self, step: &str, now: Instant) -> Option<TimeRange> {
        let mut state = self.state();
        state.charge(now);
        let known = state.steps.get(step)?;
        (!known.phases.is_empty()).then(|| State::left(known, &state.pace()))
    }

    /// Returns the time that the build still needs.
    pub fn left(&self, now: Instant) -> TimeRange {
        let mut state = self.state();
        state.charge(now);
        let pace = state.pace();
        state.steps.values().map(|step| State::left(step, &pace)).sum()
    }

    /// Returns the time that was estimated for everything, before any of it was done.
    pub fn expected(&self) -> TimeRange {
        let state = self.state();
        let phases = state.steps.values().flat_map(|step| &step.phases);
        phases
            .map(|phase| TimeRange::within(phase.estimate(phase.expected.total), phase.expected.spread))
            .sum()
    }

    /// Returns what the phases took whose work is done, as far as it was long enough to be measured.
    pub fn took(&self, now: Instant) -> Vec<Took> {
        let mut state = self.state();
        state.charge(now);
        let mut took = Vec::new();
        for step in state.steps.values().filter(|step| step.is_over) {
            for phase in &step.phases {
                let by_speeds = phase.expected.by_speeds_ms * phase.done / phase.expected.total;
                if phase.spent_ms >= RECORDED_MS && by_speeds > 0.0 {
                    took.push(Took {
                        phase: phase.expected.phase,
                        model: step.model.clone(),
                        ratio: phase.spent_ms / by_speeds,
                    });
                }
            }
        }
        took
    }
}

/// Returns how much work counts that took a time and was estimated to take another, from 0 to 1. Work that takes long to begin, as loading
/// a model, has little progress at first: that says nothing of the rest.
fn sureness(spent_ms: f64, estimated_ms: f64) -> f64 {
    let sure = spent_ms.min(estimated_ms).max(0.0);
    sure / (sure + SHORT_MS)
}

/// How long work takes compared with its estimate, in the build so far: time spent and estimated, in milliseconds.
#[derive(Debug, Default)]
struct Pace {
    whole: (f64, f64),
    phases: BTreeMap<Phase, (f64, f64)>,
}

impl StepState {
    fn enter(&mut self, phase: Phase) {
        // Hashing and quantizing go on beside other phases.
        if self.current.is_none_or(|current| current < phase) {
            for known in self.phases.iter_mut().filter(|known| known.expected.phase < phase) {
                known.is_over = true;
            }
        }
        self.current = Some(phase);
    }

    fn find(&mut self, phase: Phase) -> Option<&mut PhaseState> {
        let found = self.phases.iter_mut().find(|known| known.expected.phase == phase)?;
        found.is_over = false;
        Some(found)
    }
}

impl State {
    /// Divides the time since the last call among the steps that run.
    fn charge(&mut self, now: Instant) {
        let last = self.charged.replace(now);
        let Some(last) = last.filter(|_| !self.running.is_empty()) else {
            return;
        };
        let each = now.saturating_duration_since(last).as_secs_f64() * 1e3 / self.running.len() as f64;
        for name in &self.running {
            let Some(step) = self.steps.get_mut(name) else { continue };
            let current = step
                .current
                .or_else(|| step.phases.first().map(|phase| phase.expected.phase));
            let phase = step
                .phases
                .iter_mut()
                .find(|phase| Some(phase.expected.phase) == current);
            if let Some(phase) = phase {
                phase.spent_ms += each;
            }
        }
    }

    fn pace(&self) -> Pace {
        let mut pace = Pace::default();
        for phase in self.steps.values().flat_map(|step| &step.phases) {
            let estimated = phase.estimate(phase.done);
            if estimated > 0.0 {
                let same = pace.phases.entry(phase.expected.phase).or_default();
                same.0 += phase.spent_ms;
                same.1 += estimated;
                pace.whole.0 += phase.spent_ms;
                pace.whole.1 += estimated;
            }
        }
        pace
    }

    fn left(step: &StepState, pace: &Pace) -> TimeRange {
        if step.is_over {
            return TimeRange::default();
        }
        let ranges = step.phases.iter().map(|phase| {
            let left = phase.estimate(phase.left());
            let (mut sum, mut weight) = (0.0, PRIOR);
            let mut add = |(spent, estimated): (f64, f64), most: f64| {
                if spent > 0.0 && estimated > 0.0 {
                    let counts = most * sureness(spent, estimated);
                    sum += counts * (spent / estimated).ln();
                    weight += counts;
                }
            };
            add(pace.whole, WHOLE);
            let same = pace.phases.get(&phase.expected.phase).copied().unwrap_or_default();
            add(same, SAME_PHASE);
            let own = OWN * phase.fraction();
            add((phase.spent_ms, phase.estimate(phase.done)), own);
            let known = own + SAME_PHASE * sureness(same.0, same.1);
            TimeRange::within(
                left * (sum / weight).exp(),
                phase.expected.spread.powf(1.0 / (1.0 + known)),
            )
        });
        ranges.sum()
    }
}

#[cfg(test)]
mod tests;
