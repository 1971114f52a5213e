//! Whole candidates against `llama-quantize`: the same model, imatrix and mix give the same file, tensor by tensor.
//!
//! `FORGE_PEER_BIN` names the folder of the tools (`tests/peers/build-llama-cpp.sh` builds and prints it), and
//! `FORGE_TEST_MOE` a small mixture of experts. Without them the tests say `SKIPPED` and pass.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used)]

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::store::Store;

use crate::peer_engine::peer;
use crate::support::Forge;
use crate::support::moe_model;

/// Mixes that between them use every kind of type: with and without importances, of blocks of 32 and of 256.
const MIXES: &[&str] = &[
    "Q2_K", "Q3_K_M", "IQ3_XXS", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "IQ2_M", "Q4_0", "Q5_K_S", "IQ1_M",
];

fn recipe(model: &str, mixes: &[&str]) -> String {
    format!(
        r#"
schema = 1
name = "bytes"

[source.model]
path = "{model}"

[corpus.calibration]
files = ["calibration-prose.txt"]

[imatrix.general]
corpus = "calibration"
context = 128
chunks = 8

[policy.mix]
method = "mix"
imatrix = "general"
mix = {mixes:?}

[promote.tiny]
policy = "mix"
"#
    )
}

/// Builds, and returns the written candidates by mix, and the imatrix that they were made with.
fn build(forge: &Forge, mixes: &[&str]) -> (Vec<PathBuf>, PathBuf) {
    let (run, events) = forge.build_events(&[]);
    let run = run.success();
    let reason = |wanted: &'static str| events.iter().filter(move |event| event["reason"] == wanted);
    let candidates = mixes
        .iter()
        .map(|mix| {
            let end = format!("tiny-{mix}.gguf");
            let mut paths = reason("output-written").filter_map(|event| event["path"].as_str());
            let path = paths.find(|path| Path::new(path).ends_with(&end));
            forge.path(path.unwrap_or_else(|| panic!("no {end} in {}", run.stdout)))
        })
        .collect();
    (candidates, imatrix_of(forge, &events))
}

/// Writes the imatrix that a build collected, which lives in its store, beside the recipe.
pub(crate) fn imatrix_of(forge: &Forge, events: &[serde_json::Value]) -> PathBuf {
    let store = Store::open(forge.store()).unwrap();
    let collected: Vec<_> = events
        .iter()
        .filter(|event| event["reason"] == "action-finished" && event["kind"] == "imatrix-collect")
        .collect();
    assert_eq!(collected.len(), 1, "{events:#?}");
    let key = collected[0]["key"].as_str().unwrap().parse().unwrap();
    let result = store.lookup(&key).unwrap().unwrap();
    let imatrix = forge.path("imatrix.gguf");
    store.materialize(&result.output("imatrix").unwrap(), &imatrix).unwrap();
    imatrix
}

/// Returns the metadata that both programs must agree on, in order, and what either says of the imatrix apart.
fn metadata(metadata: &Metadata) -> (Vec<(String, String)>, [Option<u64>; 2]) {
    let said = ["quantize.imatrix.entries_count", "quantize.imatrix.chunks_count"].map(|key| metadata.get_u64(key));
    let others = metadata.iter().filter(|entry| !entry.key().starts_with("quantize."));
    let mut others: Vec<_> = others
        .map(|entry| (entry.key().to_owned(), format!("{:?}", entry.value())))
        .collect();
    others.sort();
    (others, said)
}

/// Asserts that two files hold the same tensors.
pub(crate) fn compare_tensors(ours: &Model, theirs: &Model, what: &str) {
    let names = |model: &Model| {
        let mut names: Vec<String> = model.tensors().iter().map(|tensor| tensor.info.name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(names(ours), names(theirs), "{what}");
    let mut differing = Vec::new();
    for tensor in ours.tensors() {
        let other = theirs.tensor(&tensor.info.name).unwrap();
        let shape = |tensor: &forge::gguf::ModelTensor| (tensor.info.ty, tensor.info.dims.clone(), tensor.info.len);
        if shape(tensor) != shape(other) {
            differing.push(format!(
                "{}: {:?}, not {:?}",
                tensor.info.name,
                shape(tensor),
                shape(other)
            ));
            continue;
        }
        let mut bytes = [vec![0; tensor.info.len as usize], vec![0; tensor.info.len as usize]];
        ours.read_tensor_at(tensor, 0, &mut bytes[0]).unwrap();
        theirs.read_tensor_at(other, 0, &mut bytes[1]).unwrap();
        if bytes[0] != bytes[1] {
            let count = bytes[0].iter().zip(&bytes[1]).filter(|(a, b)| a != b).count();
            differing.push(format!("{} ({}): {count} bytes", tensor.info.name, tensor.info.ty));
        }
    }
    assert!(differing.is_empty(), "{what}:\n{}", differing.join("\n"));
}

/// Asserts that two files hold the same tensors and say the same of them.
fn compare(ours: &Path, theirs: &Path, mix: &str) {
    let (ours, theirs) = (Model::open(ours).unwrap(), Model::open(theirs).unwrap());
    compare_tensors(&ours, &theirs, mix);
    let file_type = ours.metadata().get_u32("general.file_type");
    assert!(file_type.is_some(), "{mix}");
    assert_eq!(file_type, theirs.metadata().get_u32("general.file_type"), "{mix}");
    assert_eq!(metadata(ours.metadata()), metadata(theirs.metadata()), "{mix}");
}

fn compare_all(forge: &Forge, bin: &Path, model: &Path, mixes: &[&str]) {
    let (candidates, imatrix) = build(forge, mixes);
    for (mix, ours) in mixes.iter().zip(&candidates) {
        let theirs = forge.path("theirs.gguf");
        let output = Command::new(bin.join("llama-quantize"))
            .arg("--imatrix")
            .args([&imatrix, model, &theirs])
            .args([mix, "2"])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{mix}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        compare(ours, &theirs, mix);
        std::fs::remove_file(theirs).unwrap();
    }
}

#[test]
fn candidates_are_the_files_of_llama_quantize() {
    let Some(bin) = peer("candidates_are_the_files_of_llama_quantize") else {
        return;
    };
    let forge = Forge::with_example();
    forge.recipe(&recipe("tiny.gguf", MIXES));
    compare_all(&forge, &bin, &forge.path("tiny.gguf"), MIXES);
}

#[test]
fn candidates_with_experts_are_the_files_of_llama_quantize() {
    let test = "candidates_with_experts_are_the_files_of_llama_quantize";
    let Some(bin) = peer(test) else { return };
    let moe = moe_model();
    let mixes = ["IQ2_XS", "Q3_K_M", "IQ4_XS", "Q4_K_M"];
    let forge = Forge::with_example();
    std::os::unix::fs::symlink(std::path::absolute(&moe).unwrap(), forge.path("moe.gguf")).unwrap();
    forge.recipe(&recipe("moe.gguf", &mixes));
    compare_all(&forge, &bin, &moe, &mixes);
}
