//! Estimated times: of a plan, and of what is left while a build runs.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use forge::observer::Phase;
use forge::timing::Expected;
use forge::timing::Forecast;
use serde_json::Value as Json;

use crate::one_layer_project::project;
use crate::support::Forge;
use crate::support::Run;
use crate::support::project as repository;
use crate::support::quickstart;

/// The events of builds that `benches/estimates.rs --record` wrote.
fn recorded_runs() -> Vec<(PathBuf, Vec<Json>)> {
    let folder = repository().join("tests/fixtures/recorded-runs");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (
            path,
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        )
    };
    files.into_iter().map(read).collect()
}

fn phase_of(event: &Json) -> Option<Phase> {
    Phase::ALL
        .into_iter()
        .find(|phase| Some(phase.name()) == event["phase"].as_str())
}

/// Plays the events of a build to a forecast. Returns, for each event, the milliseconds since its start and how long the forecast says
/// that the build still takes.
fn replayed(events: &[Json]) -> Vec<(u64, f64)> {
    let (forecast, start) = (Forecast::default(), Instant::now());
    let mut totals = std::collections::BTreeMap::new();
    let mut found = Vec::new();
    for event in events {
        let at_ms = event["at_ms"].as_u64().unwrap();
        let now = start + Duration::from_millis(at_ms);
        let step = event["step"].as_str().unwrap_or_default();
        match event["reason"].as_str().unwrap() {
            "estimated" => {
                for known in event["steps"].as_array().unwrap() {
                    let step = known["step"].as_str().unwrap();
                    let phases = known["phases"].as_array().unwrap().iter().map(|phase| {
                        let time = |key: &str| phase["time"][key].as_f64().unwrap();
                        let total = phase["work"].as_f64().unwrap();
                        totals.insert((step.to_owned(), phase_of(phase).unwrap()), (total, 0.0));
                        Expected {
                            phase: phase_of(phase).unwrap(),
                            total,
                            by_speeds_ms: time("likely_ms"),
                            factor: 1.0,
                            spread: (time("most_ms") / time("likely_ms").max(1.0)).max(1.0),
                        }
                    });
                    forecast.expect_step(step, "", phases);
                }
            }
            "step-started" => forecast.start(step, now),
            "step-finished" => forecast.finish(step, now),
            "phase-started" => {
                let (phase, work) = (phase_of(event).unwrap(), event["work"].as_f64().unwrap());
                let total = totals.entry((step.to_owned(), phase)).or_insert((work, 0.0));
                let is_final = event["is_final"].as_bool().unwrap();
                total.0 = if is_final { work } else { work.max(total.0) };
                forecast.phase(step, phase, work, is_final, now);
            }
            "progress" => {
                if let (Some(phase), Some(fraction)) = (phase_of(event), event["fraction"].as_f64())
                    && let Some((total, done)) = totals.get_mut(&(step.to_owned(), phase))
                {
                    let by = fraction * *total - *done;
                    *done += by;
                    forecast.advance(step, phase, by, now);
                }
            }
            _ => {}
        }
        found.push((at_ms, forecast.left(now).likely_ms));
    }
    found
}

/// After a tenth of the time, the time that is left is known within a factor of two, until nine tenths; what is left then is little.
#[test]
fn the_time_that_is_left_is_known_after_a_tenth_of_recorded_runs() {
    let runs = recorded_runs();
    assert!(runs.len() >= 3, "{} recorded runs", runs.len());
    for (path, events) in runs {
        let end = events.last().unwrap();
        assert_eq!(end["reason"], "build-finished", "{}", path.display());
        let took = end["at_ms"].as_u64().unwrap();
        let mut checked = 0;
        for (at_ms, left) in replayed(&events) {
            if at_ms * 10 >= took && at_ms * 10 <= took * 9 {
                checked += 1;
                let total = at_ms as f64 + left;
                let ratio = total / took as f64;
                assert!(
                    (0.5..=2.0).contains(&ratio),
                    "{}: after {at_ms} of {took} ms, {left:.0} ms are left",
                    path.display()
                );
            }
        }
        assert!(checked > 10, "{}: {checked} events", path.display());
    }
}

/// The same by a factor of two in the time that is left itself, exactly after a tenth.
#[test]
fn a_tenth_of_a_recorded_run_gives_the_rest_within_two() {
    for (path, events) in recorded_runs() {
        let took = events.last().unwrap()["at_ms"].as_u64().unwrap();
        let after = replayed(&events)
            .into_iter()
            .find(|(at_ms, _)| at_ms * 10 >= took)
            .unwrap();
        let ratio = after.1 / (took - after.0) as f64;
        assert!((0.5..=2.0).contains(&ratio), "{}: {ratio:.2}", path.display());
    }
}

#[test]
fn a_plan_says_how_long_and_how_much() {
    let forge = project();
    let plan = forge.run(&["plan"]).success().stdout;
    let line = plan.lines().find(|line| line.starts_with("time: about ")).unwrap();
    assert!(line.contains("of memory") && line.contains("of disk"), "{line}");
    let _ = forge.run(&["build"]).success();
    let plan = forge.run(&["plan"]).success().stdout;
    assert!(!plan.contains("time:"), "nothing is to be done: {plan}");
}

/// By assumed speeds, the example takes longer than measuring is worth.
#[test]
fn the_speed_of_the_machine_is_measured_once() {
    let forge = Forge::with_example();
    forge.recipe(&fs::read_to_string(quickstart().join("recipe.toml")).unwrap());
    let measured = |run: &Run| run.json_lines().iter().any(|line| line["reason"] == "measuring-speeds");
    let plan = || forge.run(&["plan", "--message-format", "json"]).success();
    let first = plan();
    assert!(measured(&first));
    assert!(!measured(&plan()), "the store has it");
    let time = |run: &Run| run.json_lines().last().unwrap()["time"]["likely_ms"].as_u64().unwrap();
    assert!(time(&first) > 1000, "{}", time(&first));

    // A record that cannot be read is measured anew.
    let folder = forge.store().join("runs-v1/machines");
    let records: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(records.len(), 1);
    fs::write(&records[0], "damaged").unwrap();
    assert!(measured(&plan()));
}

/// The estimates of the example's plan name every step that takes a while.
#[test]
fn a_plan_has_the_time_of_each_step() {
    let forge = project();
    let plan = forge.run(&["plan", "--message-format", "json"]).success();
    let lines = plan.json_lines();
    let steps: Vec<&Json> = lines.iter().filter(|line| line["reason"] == "plan-step").collect();
    assert!(!steps.is_empty());
    for step in &steps {
        let time = |key: &str| step["time"][key].as_u64().unwrap_or_else(|| panic!("{step}"));
        assert!(
            time("least_ms") <= time("likely_ms") && time("likely_ms") <= time("most_ms"),
            "{step}"
        );
    }
    let _ = forge.run(&["build"]).success();
    let plan = forge.run(&["plan", "--message-format", "json"]).success();
    let lines = plan.json_lines();
    assert!(
        lines
            .iter()
            .all(|line| line["reason"] != "plan-step" || line.get("time").is_none())
    );
    let end = lines.last().unwrap();
    assert_eq!(
        (&end["time"]["likely_ms"], &end["disk_bytes"]),
        (&0.into(), &0.into()),
        "{end}"
    );
}
