//! How good estimated times are: of `forge plan` before anything ran, and of what is left while a build runs.
//!
//!     cargo bench --bench estimates -- [--record FOLDER] [--threads 2] [RECIPE...]
//!
//! Each recipe is built into a new store, so the speed of the machine is measured for each. Without a recipe, these are the example's and
//! the same with a `measured` policy with its defaults. A line has the estimate of the plan with its range, the real time, and the ratios
//! to the real time of the plan's estimate and of the estimated total (the time so far and what is left) after a tenth, a quarter and
//! half of it.
//!
//! With `--record`, the events that the estimates follow from are written to `FOLDER/NAME.jsonl`: `tests/it/timing.rs` plays them again.
#![allow(missing_docs, clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use serde_json::Map;
use serde_json::Value;

/// What is recorded of each event.
const RECORDED: &[(&str, &[&str])] = &[
    ("estimated", &["steps", "time"]),
    ("step-started", &["step"]),
    ("phase-started", &["step", "phase", "work", "is_final"]),
    ("progress", &["step", "phase", "fraction"]),
    ("step-finished", &["step", "outcome"]),
    ("build-finished", &["outcome"]),
];

/// The shares of the real time after which the rest is estimated.
const AFTER: [f64; 3] = [0.1, 0.25, 0.5];

/// An event, and the milliseconds from the start of the process.
type Event = (u64, Value);

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut record, mut threads, mut recipes) = (None, "2".to_owned(), Vec::new());
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--record" => record = arguments.next().map(PathBuf::from),
            "--threads" => threads = arguments.next().unwrap(),
            // Cargo adds it.
            "--bench" => {}
            _ => recipes.push(fs::canonicalize(argument).unwrap()),
        }
    }
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if recipes.is_empty() {
        recipes = examples(scratch.path());
    }
    println!(
        "| recipe | estimate of the plan | took | ratio | after 10 % | 25 % | 50 % |\n|---|---|---|---|---|---|---|"
    );
    for (number, recipe) in recipes.iter().enumerate() {
        let folder = scratch.path().join(number.to_string());
        fs::create_dir(&folder).unwrap();
        let plan = run("plan", recipe, &folder, &threads);
        let estimate = &plan.last().unwrap().1["time"];
        let events = run("build", recipe, &folder, &threads);
        let (end, finished) = events
            .iter()
            .find(|(_, event)| event["reason"] == "build-finished")
            .unwrap();
        let took = finished["elapsed_ms"].as_u64().unwrap();
        let start = end.saturating_sub(took);
        let events: Vec<Event> = events
            .iter()
            .map(|(at, event)| (at.saturating_sub(start), event.clone()))
            .collect();
        let ms = |key: &str| estimate[key].as_u64().unwrap();
        let seconds = |ms: u64| format!("{:.0} s", ms as f64 / 1e3);
        let ratios: Vec<String> = AFTER.iter().map(|share| ratio(&events, took, *share)).collect();
        let name = recipe.file_stem().unwrap().to_string_lossy();
        println!(
            "| {name} | {} ({} to {}) | {} | {:.2} | {} |",
            seconds(ms("likely_ms")),
            seconds(ms("least_ms")),
            seconds(ms("most_ms")),
            seconds(took),
            ms("likely_ms") as f64 / took as f64,
            ratios.join(" | ")
        );
        if let Some(record) = &record {
            write(&record.join(format!("{name}.jsonl")), &events);
        }
    }
}

/// Returns the example's recipe, and one with a `measured` policy with its defaults, beside copies of its files.
fn examples(scratch: &Path) -> Vec<PathBuf> {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let folder = scratch.join("examples");
    fs::create_dir(&folder).unwrap();
    for entry in fs::read_dir(&example).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let text = fs::read_to_string(folder.join("recipe.toml")).unwrap();
    let (before, _) = text.split_once("[policy.mix]").unwrap();
    let measured = format!(
        "{before}[policy.best]\nmethod = \"measured\"\nimatrix = \"general\"\ncorpus = \"calibration\"\nbudget = \"4.5 bpw\"\n\n\
         [promote.best]\npolicy = \"best\"\n\n[eval.quality]\nreference = \"model\"\ncorpus = \"held-out\"\nchunks = 32\n"
    );
    fs::write(folder.join("measured.toml"), measured).unwrap();
    fs::rename(folder.join("recipe.toml"), folder.join("quickstart.toml")).unwrap();
    vec![folder.join("quickstart.toml"), folder.join("measured.toml")]
}

/// Runs a verb of forge on a recipe, and returns its events.
fn run(verb: &str, recipe: &Path, folder: &Path, threads: &str) -> Vec<Event> {
    let started = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
    command.args([verb, "--message-format", "json", "-f"]).arg(recipe);
    command.arg("--out").arg(folder.join("out"));
    if verb == "build" {
        command.args(["--jobs", threads]);
    }
    command
        .env("FORGE_CACHE_DIR", folder.join("store"))
        .stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let events = lines.map(|line| {
        let event = serde_json::from_str(&line.unwrap()).unwrap();
        (started.elapsed().as_millis() as u64, event)
    });
    let events = events.collect();
    assert!(child.wait().unwrap().success(), "forge {verb} {}", recipe.display());
    events
}

/// Returns the ratio of the estimated total to the real time, by the last progress before a share of the real time.
fn ratio(events: &[Event], took: u64, share: f64) -> String {
    let until = share * took as f64;
    let mut known = events.iter().rev().filter(|(at, _)| *at as f64 <= until);
    let total = known.find_map(|(at, event)| Some(at + event.get("build_left_ms")?.as_u64()?));
    total.map_or_else(|| "-".to_owned(), |total| format!("{:.2}", total as f64 / took as f64))
}

/// Writes what is recorded of events. Of the progress of a phase, the last event of every second is kept.
fn write(path: &Path, events: &[Event]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = fs::File::create(path).unwrap();
    let mut last: BTreeMap<(u64, String, String), Event> = BTreeMap::new();
    let mut put = |(at, event): &Event| {
        let reason = event["reason"].as_str().unwrap();
        let Some((_, keys)) = RECORDED.iter().find(|(known, _)| *known == reason) else {
            return;
        };
        let mut line = Map::new();
        line.insert("at_ms".to_owned(), (*at).into());
        line.insert("reason".to_owned(), reason.into());
        line.extend(
            keys.iter()
                .filter_map(|key| Some(((*key).to_owned(), event.get(*key)?.clone()))),
        );
        writeln!(file, "{}", Value::Object(line)).unwrap();
    };
    for (at, event) in events {
        if event["reason"] == "progress" {
            let name = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            last.insert((at / 1000, name("step"), name("phase")), (*at, event.clone()));
        } else if RECORDED.iter().any(|(reason, _)| event["reason"] == *reason) {
            let mut kept: Vec<Event> = std::mem::take(&mut last).into_values().collect();
            kept.sort_by_key(|(at, _)| *at);
            kept.iter().for_each(&mut put);
            put(&(*at, event.clone()));
        }
    }
}
