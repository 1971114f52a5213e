//! The order of steps: what is cheap and wanted comes before a long search.

use serde_json::Value as Json;

use crate::one_layer_project::project;
use crate::support::Forge;

/// The search stands first, and needs nothing that the mixes do not need.
const RECIPE: &str = r#"schema = 1
name = "small"

[source.model]
path = "model.gguf"

[corpus.calibration]
files = ["prose.txt"]

[corpus.held-out]
files = ["held-out.txt"]

[policy.search]
method = "measured"
corpus = "calibration"
context = 64
chunks = 2
block = 1
types = ["Q2_K", "Q4_K", "Q8_0"]
budget = "7 bpw"
refine = 0

[policy.mix]
method = "mix"
mix = ["Q4_K_M", "Q5_K_M", "Q8_0"]

[promote.search]
policy = "search"

[promote.mix]
policy = "mix"

[eval.quality]
corpus = "held-out"
chunks = 2
context = 64
block = 1
"#;

/// Returns the place of the only event of a step with a reason.
fn at(events: &[Json], reason: &str, step: &str) -> usize {
    let found = events
        .iter()
        .position(|event| event["reason"] == reason && event["step"] == step);
    found.unwrap_or_else(|| panic!("no {reason} of {step}"))
}

fn built(forge: &Forge, jobs: &str) -> Vec<Json> {
    let (run, events) = forge.build_events(&["-j", jobs]);
    let _ = run.success();
    events
}

#[test]
fn mixes_and_their_table_come_before_a_search() {
    let mut tables = Vec::new();
    for jobs in ["1", "3"] {
        let forge = project();
        forge.recipe(RECIPE);
        let events = built(&forge, jobs);
        let (began, ended) = (
            at(&events, "step-started", "policy.search"),
            at(&events, "step-finished", "policy.search"),
        );
        let mixes = ["mix-Q4_K_M", "mix-Q5_K_M", "mix-Q8_0"];
        for mix in mixes {
            let evaluated = at(&events, "step-finished", &format!("eval.quality/{mix}"));
            assert!(evaluated < ended, "-j {jobs}: {mix}");
            assert!(evaluated < began, "-j {jobs}: the search waits for {mix}");
        }
        let partial: Vec<usize> = (0..events.len())
            .filter(|&event| events[event]["reason"] == "partial-table")
            .collect();
        assert_eq!(partial.len(), 1, "-j {jobs}");
        assert!(partial[0] < ended, "-j {jobs}");
        let partial = &events[partial[0]];
        assert_eq!((&partial["done"], &partial["total"]), (&3.into(), &4.into()));
        let rows = partial["table"]["rows"].as_array().unwrap();
        let names: Vec<&str> = rows.iter().map(|row| row["candidate"].as_str().unwrap()).collect();
        assert_eq!(names, mixes);
        // The complete table has the same rows, and one more.
        let complete = std::fs::read(forge.path("out/small/metrics.json")).unwrap();
        let complete: Json = serde_json::from_slice(&complete).unwrap();
        assert_eq!(complete["schema"], partial["table"]["schema"]);
        let later = complete["rows"].as_array().unwrap();
        assert_eq!(later.len(), 4);
        for row in rows {
            let later = later
                .iter()
                .find(|later| later["candidate"] == row["candidate"])
                .unwrap();
            assert_eq!(later["kld_mean"], row["kld_mean"]);
        }
        tables.push(complete);
        // The table is not printed for a build with nothing to do.
        assert!(
            built(&forge, jobs)
                .iter()
                .all(|event| event["reason"] != "partial-table")
        );
    }
    assert_eq!(tables[0], tables[1]);
}

#[test]
fn a_pipe_gets_the_partial_table_on_stderr_and_only_the_complete_one_on_stdout() {
    let forge = project();
    forge.recipe(RECIPE);
    let run = forge.run(&["build", "-j", "2"]).success();
    assert_eq!(run.stdout.matches("mix-Q8_0").count(), 1, "{}", run.stdout);
    assert!(!run.stdout.contains("so far"), "{}", run.stdout);
    let lines: Vec<&str> = run.stderr.lines().collect();
    let place = |start: &str| {
        let found = lines.iter().position(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("no line `{start}` in {}", run.stderr))
    };
    let table = place("so far: 3 of 4 candidates (metrics.");
    assert!(table < place("ran     policy.search"));
    assert!(lines[table..].iter().any(|line| line.contains("mix-Q5_K_M")));
}

/// What a build has used of the processors, in ticks of 10 ms, and how long it took.
#[cfg(target_os = "linux")]
fn processor_time(mut command: std::process::Command) -> (u64, std::time::Duration) {
    let since = std::time::Instant::now();
    let mut child = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let stat = loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let stat: Vec<String> = stat.rsplit(')').next().unwrap().split(' ').map(str::to_owned).collect();
        // A process that has ended and was not waited for still has its times.
        if stat[1] == "Z" {
            break stat;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    };
    let taken = since.elapsed();
    assert!(child.wait().unwrap().success());
    // `utime`, `stime`, and those of worker processes.
    let ticks = stat[12..16].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    (ticks, taken)
}

#[cfg(target_os = "linux")]
#[test]
fn one_job_is_one_busy_thread() {
    let forge = project();
    forge.recipe(RECIPE);
    let (ticks, taken) = processor_time(forge.command(&["build", "-j", "1"]));
    let (used, taken) = (ticks as f64 / 100.0, taken.as_secs_f64());
    assert!(used < 1.1 * taken + 0.1, "{used} s of processors in {taken} s");
}
