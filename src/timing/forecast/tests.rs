use std::time::Duration;

use super::*;

fn expected(phase: Phase, total: f64, ms: f64) -> Expected {
    Expected {
        phase,
        total,
        by_speeds_ms: ms,
        factor: 1.0,
        spread: 2.0,
    }
}

/// A clock that is set.
struct Clock(Instant);

impl Clock {
    fn at(&self, ms: u64) -> Instant {
        self.0 + Duration::from_millis(ms)
    }
}

fn clock() -> Clock {
    Clock(Instant::now())
}

fn is_near(found: f64, expected: f64, factor: f64) {
    assert!(
        found <= expected * factor && found >= expected / factor,
        "{found} is not {expected}, by a factor of {factor}"
    );
}

#[test]
fn before_anything_runs_the_estimate_is_left() {
    let (forecast, clock) = (Forecast::default(), clock());
    forecast.expect_step(
        "a",
        "m",
        [
            expected(Phase::Collect, 10.0, 5000.0),
            expected(Phase::Hash, 1.0, 1000.0),
        ],
    );
    forecast.expect_step("b", "m", [expected(Phase::Evaluate, 10.0, 4000.0)]);
    let left = forecast.left(clock.at(0));
    assert_eq!(
        (left.likely_ms, left.least_ms, left.most_ms),
        (10_000.0, 5000.0, 20_000.0)
    );
    assert_eq!(
        forecast.left_of("a", clock.at(0)).map(|left| left.likely_ms),
        Some(6000.0)
    );
    assert_eq!(forecast.left_of("c", clock.at(0)), None);
}

#[test]
fn a_tenth_of_the_work_corrects_an_estimate_that_is_wrong_by_four() {
    for (slower, real) in [(4.0, 400_000.0), (0.25, 25_000.0)] {
        let (forecast, clock) = (Forecast::default(), clock());
        forecast.expect_step("a", "m", [expected(Phase::Collect, 100.0, 100_000.0)]);
        forecast.start("a", clock.at(0));
        for chunk in 1..=10_u32 {
            let ms = f64::from(chunk) * 1000.0 * slower;
            forecast.advance("a", Phase::Collect, 1.0, clock.at(ms as u64));
        }
        let now = clock.at((10_000.0 * slower) as u64);
        is_near(forecast.left(now).likely_ms, 0.9 * real, 1.3);
        let range = forecast.left(now);
        assert!(range.most_ms / range.likely_ms < 1.2, "the range narrows: {range:?}");
    }
}

#[test]
fn steps_that_wait_are_corrected_by_the_same_phase_of_other_steps() {
    let (forecast, clock) = (Forecast::default(), clock());
    for step in ["a", "b", "c"] {
        forecast.expect_step(step, "m", [expected(Phase::Evaluate, 10.0, 10_000.0)]);
    }
    forecast.start("a", clock.at(0));
    forecast.advance("a", Phase::Evaluate, 10.0, clock.at(30_000));
    forecast.finish("a", clock.at(30_000));
    is_near(forecast.left(clock.at(30_000)).likely_ms, 60_000.0, 1.2);
}

#[test]
fn steps_that_run_at_once_share_the_time() {
    let (forecast, clock) = (Forecast::default(), clock());
    for step in ["a", "b"] {
        forecast.expect_step(step, "m", [expected(Phase::Quantize, 10.0, 10_000.0)]);
        forecast.start(step, clock.at(0));
    }
    forecast.advance("a", Phase::Quantize, 5.0, clock.at(10_000));
    forecast.advance("b", Phase::Quantize, 5.0, clock.at(10_000));
    // As fast as expected: ten seconds for a half of each.
    is_near(forecast.left(clock.at(10_000)).likely_ms, 10_000.0, 1.01);
    forecast.finish("a", clock.at(10_000));
    forecast.finish("b", clock.at(10_000));
    let took = forecast.took(clock.at(10_000));
    assert_eq!(took.len(), 2);
    for took in took {
        is_near(took.ratio, 1.0, 1.01);
    }
}

#[test]
fn a_phase_that_begins_ends_those_before_it() {
    let (forecast, clock) = (Forecast::default(), clock());
    let phases = [
        expected(Phase::Screen, 10.0, 1000.0),
        expected(Phase::Undecided, 10.0, 5000.0),
        expected(Phase::Choices, 10.0, 1000.0),
    ];
    forecast.expect_step("a", "m", phases);
    forecast.start("a", clock.at(0));
    forecast.advance("a", Phase::Screen, 10.0, clock.at(1000));
    is_near(forecast.left(clock.at(1000)).likely_ms, 6000.0, 1.01);
    // Nothing was undecided.
    forecast.phase("a", Phase::Choices, 10.0, false, clock.at(1000));
    is_near(forecast.left(clock.at(1000)).likely_ms, 1000.0, 1.01);
}

#[test]
fn a_search_that_needs_more_than_expected_has_more_left() {
    let (forecast, clock) = (Forecast::default(), clock());
    forecast.expect_step("a", "m", [expected(Phase::Refine, 10.0, 1000.0)]);
    forecast.start("a", clock.at(0));
    forecast.phase("a", Phase::Refine, 4.0, false, clock.at(0));
    is_near(forecast.left(clock.at(0)).likely_ms, 1000.0, 1.01);
    forecast.advance("a", Phase::Refine, 4.0, clock.at(400));
    forecast.phase("a", Phase::Refine, 24.0, false, clock.at(400));
    is_near(forecast.left(clock.at(400)).likely_ms, 2000.0, 1.01);
    forecast.finish("a", clock.at(1000));
    assert_eq!(forecast.left(clock.at(1000)).likely_ms, 0.0);
}

#[test]
fn results_that_were_there_are_neither_left_nor_recorded() {
    let (forecast, clock) = (Forecast::default(), clock());
    forecast.expect_step("a", "m", [expected(Phase::Collect, 100.0, 100_000.0)]);
    forecast.start("a", clock.at(0));
    forecast.skip("a", Phase::Collect, 90.0);
    is_near(forecast.left(clock.at(0)).likely_ms, 10_000.0, 1.01);
    forecast.advance("a", Phase::Collect, 10.0, clock.at(20_000));
    forecast.finish("a", clock.at(20_000));
    let took = forecast.took(clock.at(20_000));
    assert_eq!(took.len(), 1);
    is_near(took[0].ratio, 2.0, 1.01);
}

#[test]
fn a_step_that_runs_is_not_expected_anew() {
    let (forecast, clock) = (Forecast::default(), clock());
    forecast.expect_step("a", "m", [expected(Phase::Collect, 10.0, 1000.0)]);
    forecast.start("a", clock.at(0));
    forecast.advance("a", Phase::Collect, 5.0, clock.at(500));
    forecast.expect_step("a", "m", [expected(Phase::Collect, 10.0, 9000.0)]);
    is_near(forecast.left(clock.at(500)).likely_ms, 500.0, 1.01);
}
