//! The records of runs: `forge log`, the logs of steps, what failed steps leave, traces.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::small_model;
use crate::small_model::RECIPE;
use crate::support;
use crate::support::Forge;

fn runs(forge: &Forge) -> Vec<Value> {
    forge.run(&["log", "--message-format", "json"]).success().json_lines()
}

fn shown(forge: &Forge, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["log", "show", "--message-format", "json"];
    all.extend(args);
    forge.run(&all).success().json_lines()
}

fn steps(record: &Value) -> &Vec<Value> {
    record["record"]["steps"].as_array().unwrap()
}

#[test]
fn a_build_has_a_record_of_its_steps_and_reasons_and_a_null_build_has_none() {
    let forge = small_model::project();
    let empty = forge.run(&["log"]).success();
    assert_eq!(
        (empty.stdout.as_str(), empty.stderr.as_str()),
        ("", "this store has no recorded runs\n")
    );
    let _ = small_model::build_of(&forge).success();
    let _ = small_model::build_of(&forge).success();
    let all = runs(&forge);
    assert_eq!(all.len(), 1, "the second build ran nothing");
    assert_eq!(all[0]["state"], "done");
    assert_eq!(all[0]["exit"], 0);
    assert_eq!((&all[0]["recipe"], &all[0]["ran"]), (&json!("small"), &json!(11)));

    let id = all[0]["run"].as_str().unwrap();
    // Names begin with the year.
    let record = shown(&forge, &[&id[..4]]).remove(0);
    assert_eq!(record["record"]["run"], id);
    let promote = steps(&record)
        .iter()
        .find(|step| step["step"] == "promote.small@Q4_0")
        .unwrap();
    assert_eq!(promote["why"], "it has not run for this recipe yet");
    assert!(
        promote["outputs"][0]
            .as_str()
            .unwrap()
            .ends_with("out/small/small-Q4_0.gguf")
    );
    assert!(promote["actions"].as_array().unwrap().len() > 3);
    let step = shown(&forge, &["last", "eval.quality/small-Q4_0"]).remove(0);
    let log = step["log"].as_str().unwrap();
    assert!(
        log.contains("llama_model_loader") || log.contains("print_info"),
        "{log}"
    );
    let text = forge.run(&["log", "show", "last", "imatrix.general"]).success().stdout;
    assert!(text.contains("the engine's log:\n    "), "{text}");
    let both = shown(&forge, &["last", "eval.quality"]);
    assert_eq!(both.len(), 2, "of both candidates");

    let people = forge.run(&["log"]).success().stdout;
    assert!(people.starts_with(&format!("{id}  small")), "{people}");
    assert!(people.trim_end().ends_with("done"), "{people}");
    let people = forge.run(&["log", "show"]).success().stdout;
    assert!(
        people.contains("because it has not run for this recipe yet"),
        "{people}"
    );
    for (args, code) in [
        (["log", "show", "nonsense"].as_slice(), 2),
        (&["log", "show", "last", "promote.smal"], 2),
        (&["log", "show", "last", "promote.small@Q4_0"], 0),
    ] {
        let _ = forge.run(args).status(code);
    }
}

/// Makes the text of the evaluation so short that the evaluation fails after its only chunk: one chunk gives no interval. Only
/// `--keep-going` begins such a build.
fn give_one_chunk(forge: &support::Forge) {
    let text = std::fs::read_to_string(forge.path("held-out.txt")).unwrap();
    forge.write("held-out.txt", text.chars().take(330).collect::<String>());
}

#[test]
fn a_changed_step_has_the_fields_that_changed_on_record() {
    let forge = small_model::project();
    let _ = small_model::build_of(&forge).success();
    forge.recipe(&format!("{RECIPE}\n[gate.none]\nrequire = [\"bytes < 1\"]\n"));
    let _ = forge.run(&["build", "-j", "1"]).status(1);
    forge.recipe(&RECIPE.replace("chunks = 2\nblock = 1", "chunks = 2\nblock = 1\nbootstrap = 300"));
    let _ = small_model::build_of(&forge).success();
    let step = shown(&forge, &["last", "eval.quality/small-Q4_0"]).remove(0);
    assert_eq!(
        step["step"]["changes"],
        json!([{ "field": "inputs.bootstrap", "before": "1000", "after": "300" }])
    );
    let states: Vec<(Value, Value)> = runs(&forge)
        .into_iter()
        .map(|run| (run["state"].clone(), run["exit"].clone()))
        .collect();
    assert_eq!(
        states,
        [
            (json!("done"), json!(0)),
            (json!("failed"), json!(1)),
            (json!("done"), json!(0))
        ]
    );
}

/// Runs the script of a failed step, from another folder and without this environment.
fn repeat(script: &Path) -> support::Run {
    let mut command = std::process::Command::new("sh");
    support::Run::of(command.arg(script).current_dir("/").env_clear().output().unwrap())
}

/// Returns the script that a build names for a step that failed.
fn script_of(run: &support::Run, step: &str) -> PathBuf {
    let file = format!("{step}/repeat.sh");
    let line = run.stderr.lines().find(|line| line.contains(&file));
    let line = line.unwrap_or_else(|| panic!("{}", run.stderr));
    PathBuf::from(line.split("sh ").nth(1).unwrap().trim())
}

#[test]
fn the_script_of_a_failed_step_runs_its_action_and_then_the_rest_of_the_step() {
    let forge = small_model::project();
    forge.recipe(RECIPE);
    let words = ["build", "-j", "1", "recipe.toml", "promote.small@Q8_0"];
    let _ = forge.run(&["build", "recipe.toml", "policy.mix"]).success();
    // No file may be longer than 64 KiB: the first tensor that is longer cannot be stored.
    let build = forge.command(&words);
    let mut limited = std::process::Command::new("sh");
    limited
        .args(["-c", "ulimit -f 128; exec \"$0\" \"$@\""])
        .arg(build.get_program())
        .args(build.get_args())
        .current_dir(build.get_current_dir().unwrap());
    for (name, value) in build.get_envs() {
        limited.env(name, value.unwrap());
    }
    let run = support::Run::of(limited.output().unwrap());
    assert_ne!(run.status, Some(0), "{}", run.stderr);
    let script = script_of(&run, "small-Q8_0");
    let folder = script.parent().unwrap();
    let action = std::fs::read(folder.join("action.json")).unwrap();
    let action = forge::action::Action::parse(&action).unwrap();
    assert_eq!(action.kind(), "tensor", "{}", run.stderr);
    let store = forge::store::Store::open(forge.store()).unwrap();
    assert!(store.lookup(&action.digest()).unwrap().is_none());
    let repeated = repeat(&script).success();
    assert!(repeated.stdout.contains("tensor "), "{}", repeated.stdout);
    assert!(repeated.stderr.contains("promote.small@Q8_0"), "{}", repeated.stderr);
    assert!(store.lookup(&action.digest()).unwrap().is_some());
    assert!(forge.path("out/small/small-Q8_0.gguf").exists());
    assert!(!forge.path("out/small/small-Q4_0.gguf").exists(), "only that step");
    // The result is there now: the action does not run again.
    let repeated = repeat(&script).success();
    assert!(repeated.stdout.contains("not run"), "{}", repeated.stdout);
}

#[test]
fn a_failed_step_leaves_its_error_its_action_and_a_script() {
    let forge = small_model::project();
    give_one_chunk(&forge);
    let run = forge
        .run(&["build", "-j", "1", "--keep-going", "--out", "elsewhere"])
        .status(1);
    let script = &script_of(&run, "small-Q4_0");
    assert!(
        script.starts_with(forge.store().join("runs-v1/failed")),
        "{}",
        script.display()
    );
    let folder = script.parent().unwrap();
    let error = std::fs::read_to_string(folder.join("error.txt")).unwrap();
    assert!(error.starts_with("step `eval.quality/small-Q4_0` failed: "), "{error}");
    assert!(error.contains("at least 2 chunks"), "{error}");
    assert!(folder.join("log.txt").exists());
    let action = std::fs::read(folder.join("action.json")).unwrap();
    let action = forge::action::Action::parse(&action).unwrap();
    assert_eq!(action.kind(), "eval");
    // The action itself fails again, so the rest of the step does not begin.
    let repeated = repeat(script).status(1);
    assert!(repeated.stderr.contains("at least 2 chunks"), "{}", repeated.stderr);
    assert!(!forge.path("elsewhere/metrics.md").exists());

    // However many fail, only so many are kept.
    let failed = forge.store().join("runs-v1/failed");
    for number in 0..40 {
        std::fs::create_dir_all(failed.join(format!("20000101T0000{number:02}Z-1-x"))).unwrap();
    }
    let _ = forge.run(&["build", "-j", "1", "--keep-going"]).status(1);
    let kept = small_model::names(&failed);
    assert_eq!(kept.len(), 20);
    assert!(
        kept.iter().any(|name| name.ends_with("eval.quality-small-Q4_0")),
        "{kept:?}"
    );
}

#[test]
fn a_build_that_is_killed_leaves_a_record_and_a_trace_that_can_be_read() {
    let forge = small_model::project();
    let trace = forge.path("trace.json");
    let mut going = small_model::Going::start(small_model::build(&forge, &["--trace", "trace.json"]));
    let started = Instant::now();
    let record = loop {
        assert!(started.elapsed() < Duration::from_mins(2), "nothing is written");
        let all = runs(&forge);
        if let Some(run) = all.first()
            && run["ran"].as_u64() > Some(1)
        {
            break run.clone();
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(record["state"], "running");
    going.child.kill().unwrap();
    going.child.wait().unwrap();
    let after = runs(&forge).remove(0);
    assert_eq!((&after["state"], &after["exit"]), (&json!("killed"), &Value::Null));
    assert!(forge.run(&["log"]).success().stdout.trim_end().ends_with("killed"));
    let whole: Value = serde_json::from_slice(&std::fs::read(&trace).unwrap()).unwrap();
    assert!(whole["traceEvents"].as_array().unwrap().len() > 8);
    drop(going);
    // The next build goes on from there, and says so.
    let _ = small_model::build_of(&forge).success();
    assert_eq!(runs(&forge)[0]["state"], "done");
}

#[test]
fn a_stopped_build_reports_it_and_its_trace_is_complete() {
    let forge = small_model::project();
    let going = small_model::Going::start(small_model::build(&forge, &["--trace", "trace.json"]));
    let started = Instant::now();
    while runs(&forge).is_empty() {
        assert!(started.elapsed() < Duration::from_mins(2), "nothing is written");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = going.child.id().to_string();
    let sent = std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap();
    assert!(sent.success());
    let _ = going.end().status(130);
    let run = runs(&forge).remove(0);
    assert_eq!((&run["state"], &run["exit"]), (&json!("stopped"), &Value::Null));
    let trace: Value = serde_json::from_slice(&std::fs::read(forge.path("trace.json")).unwrap()).unwrap();
    let of = |ph: &str| -> usize {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        events.filter(|event| event["ph"] == ph).count()
    };
    assert_eq!(of("B"), of("E"), "what was stopped has ended");
}

#[test]
fn a_trace_has_a_span_for_every_step_and_action() {
    let forge = small_model::project();
    let (_, events) = forge.build_events(&["-j", "1", "--trace", "trace.json"]);
    let trace: Value = serde_json::from_slice(&std::fs::read(forge.path("trace.json")).unwrap()).unwrap();
    let trace = trace["traceEvents"].as_array().unwrap();
    let of = |ph: &str| -> Vec<&Value> { trace.iter().filter(|event| event["ph"] == ph).collect() };
    let actions = events
        .iter()
        .filter(|event| event["reason"] == "action-finished")
        .count();
    let started = events.iter().filter(|event| event["reason"] == "step-started").count();
    assert_eq!(
        (of("X").len(), of("B").len(), of("E").len()),
        (actions, started, started)
    );
    for action in of("X") {
        assert!(action["ts"].is_u64() && action["dur"].is_u64());
        assert_eq!(action["args"]["key"].as_str().unwrap().len(), 64);
        assert!(action["args"]["bytes"].is_u64() && action["args"]["outcome"].is_string());
    }
    // Spans of one lane follow each other: every beginning has its end before the next begins.
    let mut open = std::collections::BTreeMap::new();
    for event in trace.iter().filter(|event| event["ph"] == "B" || event["ph"] == "E") {
        let lane = (event["pid"].as_u64(), event["tid"].as_u64());
        let name = event["name"].as_str().unwrap();
        if event["ph"] == "B" {
            assert_eq!(open.insert(lane, name), None, "{event}");
        } else {
            assert_eq!(open.remove(&lane), Some(name), "{event}");
        }
    }
    assert!(open.is_empty());
    // A build that fails, too.
    give_one_chunk(&forge);
    let _ = forge
        .run(&["build", "-j", "1", "--keep-going", "--trace", "trace.json"])
        .status(1);
    let trace: Value = serde_json::from_slice(&std::fs::read(forge.path("trace.json")).unwrap()).unwrap();
    let last = trace["traceEvents"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(last["args"]["outcome"], "failed");
    let _ = forge
        .run(&["build", "-j", "1", "--trace", "no/such/folder/trace.json"])
        .status(3);
}

#[test]
fn old_records_are_removed() {
    let forge = small_model::project();
    let _ = forge
        .run(&["build", "-j", "1", "recipe.toml", "corpus.held-out"])
        .success();
    let folder = forge.store().join("runs-v1");
    for number in 0..600 {
        std::fs::write(folder.join(format!("20000101T000000Z-{number:04}.jsonl")), "").unwrap();
    }
    let _ = forge
        .run(&["build", "-j", "1", "recipe.toml", "corpus.calibration"])
        .success();
    let kept = small_model::names(&folder);
    let records: Vec<&String> = kept.iter().filter(|name| name.contains(".jsonl")).collect();
    assert_eq!(records.len(), 500);
    assert_eq!(records.iter().filter(|name| !name.starts_with("2000")).count(), 2);
}
