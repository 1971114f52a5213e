//! Refined rounding, from recipe to file: the same size, errors that fall, and the same bytes whatever happens meanwhile.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Stdio;

use forge::digest::ActionDigest;
use forge::store::Store;
use forge::work::RefinementReport;
use serde_json::Value;

use crate::small_model;
use crate::support::Forge;
use crate::support::moe_model;
use crate::support::ran;

const RECIPE: &str = r#"
schema = 1
name = "refined"
[source.model]
path = "small.gguf"
[corpus.calibration]
files = ["prose.txt", "code.txt"]
[moments.general]
corpus = "calibration"
context = 64
[imatrix.general]
moments = "general"
[policy.mix]
method = "mix"
imatrix = "general"
mix = "Q4_K_M"
rounding = ["plain", "refined"]
moments = "general"
[promote.mix]
policy = "mix"
"#;

fn project() -> Forge {
    let forge = small_model::project();
    forge.recipe(RECIPE);
    forge
}

/// What refining did to each tensor, by the keys of their actions.
fn reports(forge: &Forge, events: &[Value]) -> BTreeMap<String, RefinementReport> {
    let store = Store::open(forge.store()).unwrap();
    let finished = events
        .iter()
        .filter(|event| event["reason"] == "action-finished" && event["kind"] == "refined-tensor");
    let report = |event: &Value| {
        let key = event["key"].as_str().unwrap();
        let result = store.lookup(&key.parse::<ActionDigest>().unwrap()).unwrap().unwrap();
        let bytes = store.read(&result.outputs["report"], 1 << 20).unwrap();
        (key.to_owned(), serde_json::from_slice(&bytes).unwrap())
    };
    finished.map(report).collect()
}

fn candidate(forge: &Forge, name: &str) -> Vec<u8> {
    std::fs::read(forge.path(&format!("out/refined/mix-{name}.gguf"))).unwrap()
}

#[test]
fn refined_tensors_have_smaller_errors_and_the_same_size() {
    let forge = project();
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    let (plain, refined) = (candidate(&forge, "plain"), candidate(&forge, "refined"));
    assert_eq!(plain.len(), refined.len());
    let differing = plain.iter().zip(&refined).filter(|(a, b)| a != b).count();
    assert!(differing > plain.len() / 20, "{differing} of {} bytes", plain.len());
    let reports = reports(&forge, &events);
    assert_eq!(
        reports.len(),
        8,
        "each matrix of the layer, and the embedding, which is the output"
    );
    let mut improved = 0;
    for (key, report) in &reports {
        let [matrix] = report.matrices.as_slice() else {
            panic!("{key}: {report:?}");
        };
        let error = matrix.error.unwrap();
        assert!(error.after < error.before, "{key}: {matrix:?}");
        let validation = matrix.validation.unwrap();
        assert_eq!(
            matrix.kept.is_none(),
            validation.after < validation.before,
            "{key}: {matrix:?}"
        );
        improved += usize::from(matrix.kept.is_none());
    }
    assert!(improved >= 6, "{reports:?}");
    // Both candidates share what the quantizer makes.
    assert_eq!(ran(&events, "tensor"), 8);
    let _ = forge.run(&["verify"]).success();
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    assert_eq!(
        ran(&events, "refined-tensor") + ran(&events, "tensor") + ran(&events, "promote"),
        0
    );
}

#[test]
fn refined_bytes_do_not_depend_on_threads_or_on_being_killed() {
    let one = project();
    let _ = one.run(&["build", "promote.mix@refined", "-j", "1"]).success();
    let expected = candidate(&one, "refined");
    let three = project();
    // It is killed once some of the tensors are there.
    let mut child = three
        .command(&["build", "promote.mix@refined", "-j", "3", "--message-format", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut refined = 0;
    for line in lines {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        refined += usize::from(event["reason"] == "action-finished" && event["kind"] == "refined-tensor");
        if refined == 2 {
            child.kill().unwrap();
            break;
        }
    }
    let _ = child.wait().unwrap();
    let (run, events) = three.build_events(&["promote.mix@refined", "-j", "3"]);
    let _ = run.success();
    assert_eq!(candidate(&three, "refined"), expected);
    assert!(
        (1..8).contains(&ran(&events, "refined-tensor")),
        "{}",
        ran(&events, "refined-tensor")
    );
}

#[test]
fn a_refined_candidate_is_made_again_from_its_manifest() {
    let forge = project();
    let _ = forge.run(&["build"]).success();
    let expected = candidate(&forge, "refined");
    let manifest = "out/refined/mix-refined.gguf.manifest.json";
    let other = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let again = forge.sibling().with_store(&other.path().join("store"));
    for file in ["small.gguf", "prose.txt", "code.txt"] {
        std::fs::copy(forge.path(file), again.path(file)).unwrap();
    }
    again.write("candidate.manifest.json", std::fs::read(forge.path(manifest)).unwrap());
    let _ = again
        .run(&["reproduce", "candidate.manifest.json", "--out", "again"])
        .success();
    let made = std::fs::read(again.path("again/mix-refined.gguf")).unwrap();
    assert!(made == expected);
    // And `why` names what a change of the second moments reaches.
    forge.recipe(&RECIPE.replace("context = 64\n", "context = 64\nheld_out = 5\n"));
    let run = forge.run(&["why", "promote.mix@refined"]);
    assert!(run.stdout.contains("held_out"), "{}{}", run.stdout, run.stderr);
    let run = forge.run(&["plan", "--message-format", "json"]);
    let planned: Vec<Value> = run.json_lines();
    let status = |step: &str| {
        let found = planned.iter().find(|line| line["step"] == step);
        found.map(|line| line["status"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(status("moments.general").as_deref(), Some("miss"), "{planned:?}");
}

#[test]
fn experts_are_refined_each() {
    let forge = project();
    std::fs::copy(moe_model(), forge.path("small.gguf")).unwrap();
    forge.recipe(
        &RECIPE
            .replace("\"Q4_K_M\"", "\"Q2_K\"")
            .replace("[\"plain\", \"refined\"]", "\"refined\""),
    );
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    let reports = reports(&forge, &events);
    let experts: Vec<&RefinementReport> = reports.values().filter(|report| report.matrices.len() > 1).collect();
    assert!(!experts.is_empty());
    for report in experts {
        for matrix in report.matrices.iter().filter(|matrix| matrix.error.is_some()) {
            let error = matrix.error.unwrap();
            assert!(error.after <= error.before, "{matrix:?}");
        }
    }
    let _ = forge.run(&["verify"]).success();
}

#[test]
fn refining_keeps_to_the_memory_that_it_may_use() {
    let forge = project();
    let _ = forge.run(&["build", "moments.general"]).success();
    forge.write("forge.toml", "[pools]\nmemory = \"900 KB\"\n");
    let run = forge.run(&["build", "promote.mix@refined", "-j", "1"]).status(1);
    assert!(
        run.stderr.contains("refining a tensor of 256 columns takes"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("raise `memory` in `[pools]` of forge.toml"),
        "{}",
        run.stderr
    );
}
