//! Refined rounding, from recipe to file: the same size, errors that fall, and the same bytes whatever happens meanwhile.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Stdio;

use forge::digest::ActionDigest;
use forge::gguf::Model;
use forge::rounding;
use forge::store::Store;
use forge::tensor_type::TensorType;
use forge::work::RefinementReport;
use serde_json::Value;

use crate::peer_engine;
use crate::small_model;
use crate::support::Forge;
use crate::support::moe_model;
use crate::support::quickstart;
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

/// Files that have every type that is refined on some tensor. The types of codebooks, which take the most time, are on the smallest.
const EVERY_TYPE: &[(&str, &[(&str, TensorType)])] = &[
    (
        "halves",
        &[
            ("token_embd", TensorType::Q4_0),
            ("attn_q", TensorType::Q4_1),
            ("attn_k", TensorType::IQ2_XXS),
            ("attn_v", TensorType::IQ2_S),
            ("attn_output", TensorType::Q5_0),
            ("ffn_gate", TensorType::Q5_1),
            ("ffn_up", TensorType::Q8_0),
            ("ffn_down", TensorType::Q2_K),
        ],
    ),
    (
        "whole",
        &[
            ("token_embd", TensorType::Q6_K),
            ("attn_q", TensorType::Q3_K),
            ("attn_k", TensorType::IQ2_XS),
            ("attn_v", TensorType::IQ3_XXS),
            ("attn_output", TensorType::Q4_K),
            ("ffn_gate", TensorType::Q5_K),
            ("ffn_up", TensorType::TQ2_0),
            ("ffn_down", TensorType::Q3_K),
        ],
    ),
    (
        "tables",
        &[
            ("token_embd", TensorType::IQ4_XS),
            ("attn_q", TensorType::IQ4_NL),
            ("attn_k", TensorType::IQ3_S),
            ("attn_v", TensorType::MXFP4),
            ("attn_output", TensorType::IQ4_XS),
            ("ffn_gate", TensorType::MXFP4),
            ("ffn_up", TensorType::IQ4_NL),
            ("ffn_down", TensorType::IQ4_XS),
        ],
    ),
];

#[test]
fn llama_perplexity_reads_refined_files_of_every_type_and_finds_the_same_divergence() {
    let Some(bin) =
        peer_engine::peer("llama_perplexity_reads_refined_files_of_every_type_and_finds_the_same_divergence")
    else {
        return;
    };
    let forge = small_model::project();
    for (from, to) in [
        ("calibration-prose.txt", "prose.txt"),
        ("calibration-code.txt", "code.txt"),
    ] {
        let text = std::fs::read_to_string(quickstart().join(from)).unwrap();
        forge.write(to, text.chars().take(20_000).collect::<String>());
    }
    let (start, _) = RECIPE.split_once("[policy.mix]").unwrap();
    let policies = EVERY_TYPE.iter().map(|(name, tensors)| {
        let rules: Vec<String> = tensors
            .iter()
            .map(|(tensor, ty)| format!("{{ match = '{tensor}', type = \"{ty}\" }}"))
            .collect();
        format!(
            "[policy.{name}]\nmethod = \"manual\"\nimatrix = \"general\"\nmoments = \"general\"\n\
             rounding = [\"plain\", \"refined\"]\nrules = [{}]\n[promote.{name}]\npolicy = \"{name}\"\n",
            rules.join(", ")
        )
    });
    let recipe = start.to_owned() + &policies.collect::<String>();
    forge.recipe(&recipe);
    let _ = forge.run(&["build"]).success();

    let text = std::fs::read_to_string(quickstart().join("held-out.txt")).unwrap();
    let perplexity = peer_engine::Perplexity::new(&bin, &forge.path("small.gguf"), &text, 512, 4);
    let mut differing: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (name, tensors) in EVERY_TYPE {
        let file = |rounding: &str| forge.path(&format!("out/refined/{name}-{rounding}.gguf"));
        let [plain, refined] = ["plain", "refined"].map(|rounding| Model::open(&file(rounding)).unwrap());
        for (tensor, ty) in *tensors {
            let bytes = |model: &Model| {
                let tensor = model.tensors().iter().find(|found| found.info.name.contains(tensor));
                let tensor = tensor.unwrap();
                assert_eq!(tensor.info.ty, *ty);
                let mut bytes = vec![0; tensor.info.len as usize];
                model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
                bytes
            };
            let (plain, refined) = (bytes(&plain), bytes(&refined));
            assert_eq!(plain.len(), refined.len());
            let (sum, all) = differing.entry(ty.name()).or_default();
            *sum += plain.iter().zip(&refined).filter(|(a, b)| a != b).count();
            *all += plain.len();
        }
        let (theirs, ours) = perplexity.compare(&file("refined"));
        let kld = peer_engine::figure(&theirs, "Mean    KLD:");
        peer_engine::compare(&format!("{name}: mean KLD"), ours.kld_mean.value, kld);
    }
    // Nothing above holds for bytes that were kept, so those of every type must be others.
    let refined = forge::syntax::names::TYPES
        .iter()
        .filter(|ty| rounding::why_not_refined(**ty).is_none());
    let missing: Vec<&str> = refined
        .map(|ty| ty.name())
        .filter(|ty| differing.get(ty).is_none_or(|(differing, all)| *differing < all / 100))
        .collect();
    assert!(missing.is_empty(), "not refined: {missing:?} of {differing:?}");
}
