//! `forge exec`: every kind of action, run from its document in a fresh process, with the same result as in the build.

use std::collections::BTreeMap;

use forge::action::Action;
use forge::action::KINDS;
use forge::store::Store;
use serde_json::Value as Json;

use crate::one_layer_project::build_well;
use crate::one_layer_project::collected_imatrix;
use crate::one_layer_project::project;
use crate::support::Forge;

/// Policies of every sort that needs a model or an imatrix, a merged imatrix and an imported one, tables and a gate.
const RECIPE: &str = r#"schema = 1
name = "all"

[source.model]
path = "model.gguf"

[corpus.prose]
files = ["prose.txt"]

[corpus.held-out]
files = ["held-out.txt"]

[imatrix.one]
corpus = "prose"
chunks = 4
context = 64
block = 2

[imatrix.two]
corpus = "held-out"
chunks = 2
context = 64
block = 2

[imatrix.merged]
merge = ["one", "two"]

[source.foreign]
path = "foreign.imatrix"

[imatrix.foreign]
source = "foreign"

[moments.general]
corpus = "prose"
chunks = 6
context = 64
block = 2
held_out = 3

[imatrix.diagonal]
moments = "general"

[policy.refined]
imatrix = "diagonal"
method = "mix"
mix = "Q4_K_M"
rounding = "refined"
moments = "general"

[promote.refined]
policy = "refined"

[policy.mix]
imatrix = "merged"
method = "mix"
mix = "Q4_K_M"

[policy.measured]
method = "measured"
imatrix = "one"
corpus = "prose"
context = 64
chunks = 2
block = 1
types = ["Q2_K", "Q8_0"]
budget = "7 bpw"
refine = 1

[policy.error]
method = "error"
imatrix = "foreign"
corpus = "prose"
context = 64
chunks = 2
block = 1
types = ["Q2_K", "Q8_0"]
budget = "7 bpw"

[policy.predicted]
method = "fisher"
imatrix = "diagonal"
corpus = "prose"
context = 64
chunks = 2
block = 1
types = ["Q4_K", "Q8_0"]
budget = "7 bpw"
rounding = "refined"
moments = "general"

[promote.mix]
policy = "mix"

[promote.measured]
policy = "measured"

[promote.error]
policy = "error"

[promote.predicted]
policy = "predicted"

[eval.quality]
corpus = "held-out"
allow_overlap = true
chunks = 2
context = 64
block = 1

[gate.sane]
require = ["kld_mean < 10"]
"#;

/// A project with that recipe, built, and an imatrix of another run in it.
fn built() -> Forge {
    let forge = project();
    forge.write("foreign.imatrix", collected_imatrix(&forge));
    forge.recipe(RECIPE);
    build_well(&forge, &[]);
    forge
}

/// Returns the actions of a store, by kind.
fn actions(forge: &Forge) -> BTreeMap<&'static str, Vec<String>> {
    let store = Store::open(forge.store()).unwrap();
    let mut found: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for listed in store.list().unwrap() {
        let Some(result) = store.lookup(&listed.key).unwrap() else {
            continue;
        };
        let document = store.read(&result.action, 1 << 24).unwrap();
        let action = Action::parse(&document).unwrap();
        assert_eq!(action.digest(), listed.key);
        found.entry(action.kind()).or_default().push(listed.key.to_string());
    }
    found
}

const SOURCES: [&str; 18] = [
    "--source",
    "model.gguf",
    "--source",
    "prose.txt",
    "--source",
    "held-out.txt",
    "--source",
    "foreign.imatrix",
    "--source",
    "out/all/mix.gguf",
    "--source",
    "out/all/measured.gguf",
    "--source",
    "out/all/error.gguf",
    "--source",
    "out/all/refined.gguf",
    "--source",
    "out/all/predicted.gguf",
];

#[test]
fn every_kind_of_action_gives_the_same_result_in_a_fresh_process() {
    let forge = built();
    let found = actions(&forge);
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let mut table = Vec::new();
    for kind in kinds {
        let keys = found
            .get(kind)
            .unwrap_or_else(|| panic!("no action of kind `{kind}` ran"));
        // All of a kind in one process, and one in a process of its own.
        for keys in [keys.as_slice(), &keys[..1]] {
            let mut words = vec!["exec", "--message-format", "json"];
            words.extend(SOURCES);
            words.extend(keys.iter().map(String::as_str));
            let run = forge.run(&words).success();
            let lines = run.json_lines();
            let results: Vec<&Json> = lines.iter().filter(|line| line["reason"] == "executed").collect();
            assert_eq!(results.len(), keys.len(), "{kind}: {}", run.stderr);
            for result in &results {
                assert_eq!(
                    (&result["kind"], &result["result"]),
                    (&kind.into(), &"same".into()),
                    "{result}"
                );
            }
        }
        table.push(format!("{kind}: {}", keys.len()));
    }
    assert_eq!(table.len(), KINDS.len(), "{table:#?}");
}

#[test]
fn an_action_without_a_named_source_is_an_error() {
    let forge = built();
    let found = actions(&forge);
    let run = forge.run(&["exec", &found["imatrix-block"][0]]).status(1);
    assert!(run.stderr.contains("no model"), "{}", run.stderr);
    assert!(run.stderr.contains("--source FILE"), "{}", run.stderr);
    // A gate needs no file.
    let _ = forge.run(&["exec", &found["gate"][0]]).success();
}

#[test]
fn a_document_in_a_file_is_run_and_its_result_is_kept_on_request() {
    let forge = project();
    forge.recipe("schema = 1\nname = \"bare\"\n[source.model]\npath = \"model.gguf\"\n[policy.p]\nmethod = \"mix\"\nmix = \"Q4_K_M\"\n[promote.p]\npolicy = \"p\"\n");
    build_well(&forge, &[]);
    let found = actions(&forge);
    let key = &found["tensor"][0];
    let store = Store::open(forge.store()).unwrap();
    let result = store.lookup(&key.parse().unwrap()).unwrap().unwrap();
    forge.write("action.json", store.read(&result.action, 1 << 20).unwrap());
    let other = Forge::new();
    std::fs::copy(forge.path("model.gguf"), other.path("model.gguf")).unwrap();
    std::fs::copy(forge.path("action.json"), other.path("action.json")).unwrap();
    let run = other
        .run(&["exec", "action.json", "--source", "model.gguf", "--commit"])
        .success();
    assert!(run.stdout.contains("not in the store"), "{}", run.stdout);
    let made = Store::open(other.store())
        .unwrap()
        .lookup(&key.parse().unwrap())
        .unwrap();
    assert_eq!(made.unwrap().outputs, result.outputs);
    let run = other.run(&["exec", "action.json", "--source", "model.gguf"]).success();
    assert!(run.stdout.contains("the same as in the store"), "{}", run.stdout);
}
