//! Second moments of inputs: collected in blocks, the same for any number of threads and any bound on memory, and their diagonal is an imatrix.

use std::collections::BTreeMap;
use std::path::Path;

use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::imatrix::Imatrix;
use forge::moments::MomentsFile;
use forge::store::Store;
use forge::work::MomentsIndex;
use serde_json::Value;

use crate::small_model;
use crate::support::Forge;
use crate::support::moe_model;
use crate::support::ran;

const RECIPE: &str = r#"
schema = 1
name = "moments"
[source.model]
path = "small.gguf"
[corpus.calibration]
files = ["prose.txt"]
[moments.general]
corpus = "calibration"
context = 64
chunks = 8
block = 3
held_out = 4
[imatrix.diagonal]
moments = "general"
[imatrix.collected]
corpus = "calibration"
context = 64
chunks = 8
"#;

/// The outputs of all actions of a kind, each with its name.
fn outputs(forge: &Forge, events: &[Value], kind: &str) -> Vec<BTreeMap<String, BlobDigest>> {
    let store = Store::open(forge.store()).unwrap();
    let finished = events
        .iter()
        .filter(|event| event["reason"] == "action-finished" && event["kind"] == kind);
    let keys = finished.map(|event| event["key"].as_str().unwrap().parse::<ActionDigest>().unwrap());
    keys.map(|key| store.lookup(&key).unwrap().unwrap().outputs).collect()
}

fn blob(forge: &Forge, digest: &BlobDigest) -> Vec<u8> {
    Store::open(forge.store()).unwrap().read(digest, 1 << 30).unwrap()
}

fn index(forge: &Forge, events: &[Value]) -> MomentsIndex {
    let outputs = outputs(forge, events, "moments");
    serde_json::from_slice(&blob(forge, &outputs[0]["index"])).unwrap()
}

fn project(recipe: &str, model: Option<&Path>) -> Forge {
    let forge = small_model::project();
    if let Some(model) = model {
        std::fs::copy(model, forge.path("small.gguf")).unwrap();
    }
    forge.recipe(recipe);
    forge
}

#[test]
fn the_diagonal_of_second_moments_is_the_imatrix() {
    for model in [None, Some(moe_model())] {
        let forge = project(RECIPE, model.as_deref());
        let (run, events) = forge.build_events(&[]);
        let _ = run.success();
        let read = |kind: &str| Imatrix::parse(&blob(&forge, &outputs(&forge, &events, kind)[0]["imatrix"])).unwrap();
        let (diagonal, collected) = (read("imatrix-moments"), read("imatrix-collect"));
        assert_eq!(diagonal.chunk_count, 8);
        // The router cannot be quantized, so nothing is collected for it.
        let wanted = collected
            .entries
            .iter()
            .filter(|(name, _)| !name.contains("ffn_gate_inp"));
        let wanted: BTreeMap<_, _> = wanted.collect();
        assert!(wanted.keys().eq(&diagonal.entries.keys().collect::<Vec<_>>()));
        for (name, expected) in wanted {
            let found = &diagonal.entries[name];
            assert_eq!(found.counts, expected.counts, "{name}");
            for (found, expected) in found.sums.iter().zip(&expected.sums) {
                assert!(
                    (found - expected).abs() <= 1e-5 * expected,
                    "{name}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn weights_with_the_same_input_share_second_moments() {
    let forge = project(RECIPE, None);
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    let index = index(&forge, &events);
    let shared: Vec<Vec<&str>> = index
        .inputs
        .iter()
        .map(|input| input.input.weights.iter().map(String::as_str).collect())
        .collect();
    assert_eq!(
        shared,
        [
            vec!["blk.0.attn_q.weight", "blk.0.attn_v.weight", "blk.0.attn_k.weight"],
            vec!["blk.0.attn_output.weight"],
            vec!["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"],
            vec!["blk.0.ffn_down.weight"],
            vec!["token_embd.weight"],
        ]
    );
    assert_eq!((index.chunks, index.held_out), (6, 2));
    for input in &index.inputs {
        for (digest, chunks) in [(input.moments, 6), (input.validation.unwrap(), 2)] {
            let bytes = blob(&forge, &digest);
            let file = MomentsFile::parse(&bytes).unwrap();
            assert_eq!(file.rows(), [chunks * 64], "{}", input.input.name());
            // By Cauchy and Schwarz, as for any sums of products.
            let moments = file.matrix(0).unwrap();
            let diagonal: Vec<f64> = moments.diagonal().map(f64::from).collect();
            let mut sums = moments.sums().iter();
            for (i, own) in diagonal.iter().enumerate() {
                for other in &diagonal[i..] {
                    let sum = f64::from(*sums.next().unwrap());
                    assert!(sum * sum <= own * other * 1.0001 + 1e-9, "{}", input.input.name());
                }
            }
        }
    }
}

#[test]
fn second_moments_do_not_depend_on_threads_or_memory() {
    let moe = moe_model();
    for model in [None, Some(moe.as_path())] {
        let collected = |args: &[&str], settings: &str| {
            let forge = project(RECIPE, model);
            forge.write("forge.toml", settings);
            let (run, events) = forge.build_events(args);
            let _ = run.success();
            outputs(&forge, &events, "moments")
        };
        let expected = collected(&["-j", "1"], "");
        assert!(expected[0].len() > 10, "{expected:?}");
        assert_eq!(collected(&["-j", "3"], ""), expected);
        // The largest input alone, or nearly all together.
        assert_eq!(collected(&[], "[pools]\nmemory = \"9500 KB\"\n"), expected);
        assert_eq!(collected(&[], "[engine.embedded]\nworker = false\n"), expected);
    }
}

#[test]
fn what_does_not_fit_into_memory_is_an_error_with_the_way_out() {
    let forge = project(RECIPE, None);
    forge.write("forge.toml", "[pools]\nmemory = \"10 KB\"\n");
    let run = forge.run(&["build"]).status(1);
    for words in [
        "the second moments of the input of `blk.0.attn_q.weight` take 256.0 KiB of memory",
        "raise `memory` in `[pools]` of forge.toml",
    ] {
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
}

#[test]
fn more_text_adds_its_own_blocks_only() {
    let recipe = RECIPE.replace("chunks = 8\n", "");
    let forge = project(&recipe, None);
    let (run, events) = forge.build_events(&["moments.general"]);
    let _ = run.success();
    let (before, inputs) = (ran(&events, "moments-block"), 5);
    assert!(before >= 3 * inputs && before.is_multiple_of(inputs), "{before}");
    forge.recipe(&recipe.replace("[\"prose.txt\"]", "[\"prose.txt\", \"code.txt\"]"));
    let (run, events) = forge.build_events(&["moments.general"]);
    let _ = run.success();
    let after = ran(&events, "moments-block");
    assert!(after >= 2 * inputs && after.is_multiple_of(inputs), "{after}");
    assert_eq!(ran(&events, "weight-inputs"), 0);
    assert_eq!(ran(&events, "tokens"), 1);
    // The first text's blocks are there.
    let known = events
        .iter()
        .filter(|event| event["kind"] == "moments-block" && event["outcome"] == "hit");
    assert_eq!(known.count(), before);
    let (run, events) = forge.build_events(&["moments.general"]);
    let _ = run.success();
    assert_eq!(ran(&events, "moments-block") + ran(&events, "moments"), 0);
}

#[test]
fn a_text_of_second_moments_is_a_text_of_calibration() {
    let rest = r#"
[policy.refined]
method = "mix"
mix = "Q4_0"
rounding = "refined"
moments = "general"
[promote.refined]
policy = "refined"
[eval.quality]
reference = "model"
corpus = "calibration"
context = 64
chunks = 2
"#;
    let forge = project(&format!("{RECIPE}{rest}"), None);
    let run = forge.run(&["build"]).status(1);
    assert!(
        run.stderr.contains("the moments of `refined` use `calibration`"),
        "{}",
        run.stderr
    );
}

#[test]
fn mistakes_in_a_recipe_are_named() {
    let policy = "[policy.a]\nmethod = \"mix\"\nmix = \"Q4_0\"\n";
    for (text, words) in [
        ("[moments.a]\n", vec!["`corpus`"]),
        (
            "[moments.a]\ncorpus = \"calibration\"\nheld_out = -1\n",
            vec!["`held_out`"],
        ),
        (
            "[moments.a]\ncorpus = \"calibration\"\nprocess_output = true\n",
            vec!["`process_output`"],
        ),
        ("[imatrix.a]\nmoments = \"genera\"\n", vec!["genera", "general"]),
        (
            "[imatrix.a]\nmoments = \"general\"\ncorpus = \"calibration\"\n",
            vec!["`moments`", "`corpus`"],
        ),
        ("[imatrix.a]\nmoments = \"general\"\nblock = 3\n", vec!["`block`"]),
        (&format!("{policy}rounding = \"refined\"\n"), vec!["`moments`"]),
        (
            &format!("{policy}moments = \"general\"\n"),
            vec!["rounding = \"refined\""],
        ),
        (&format!("{policy}rounding = \"refind\"\n"), vec!["refined"]),
    ] {
        let forge = project(&format!("{RECIPE}{text}"), None);
        let run = forge.run(&["check"]).status(1);
        for word in words {
            assert!(run.stderr.contains(word), "{text}{}", run.stderr);
        }
    }
}
