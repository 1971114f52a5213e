//! Policies by losses that gradients predict: what they compute, that predictions hold, and what they do without gradients.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::random_model::RandomModel;
use crate::small_model;
use crate::support::Forge;
use crate::support::moe_model;
use crate::support::quickstart;
use crate::support::ran;

const RECIPE: &str = r#"
schema = 1
name = "predicted"
[source.model]
path = "small.gguf"
[corpus.calibration]
files = ["prose.txt", "code.txt"]
[moments.general]
corpus = "calibration"
context = 64
[imatrix.general]
moments = "general"
[policy.best]
method = "fisher"
imatrix = "general"
corpus = "calibration"
context = 64
chunks = 4
corrections = 0
types = ["Q3_K", "IQ4_XS", "Q4_K", "Q6_K", "IQ1_S"]
budget = "5 bpw"
rounding = "refined"
moments = "general"
[promote.best]
policy = "best"
[eval.quality]
candidates = ["best"]
reference = "model"
corpus = "calibration"
context = 64
allow_overlap = true
"#;

fn project() -> Forge {
    let forge = small_model::project();
    forge.recipe(RECIPE);
    forge
}

fn certificate(forge: &Forge, name: &str) -> Value {
    let path = forge.path(&format!("out/predicted/{name}.certificate.json"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The losses of all options of a certificate, in nats per token: by group and type.
fn losses(certificate: &Value) -> BTreeMap<(String, String), f64> {
    let problem = &certificate["problem"];
    let unit = (-problem["unit_exponent"].as_f64().unwrap()).exp2();
    let text = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let mut found = BTreeMap::new();
    for group in problem["groups"].as_array().unwrap() {
        for option in group["options"].as_array().unwrap() {
            let loss = option["loss"].as_f64().unwrap() * unit;
            found.insert((text(group), text(option)), loss);
        }
    }
    found
}

fn metrics(forge: &Forge) -> Value {
    let path = forge.path("out/predicted/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_dense_model_is_priced_without_a_measurement() {
    let forge = project();
    let (run, events) = forge.build_events(&["policy.best"]);
    let _ = run.success();
    assert_eq!(ran(&events, "eval-block"), 0);
    assert_eq!(ran(&events, "gradients-block"), 1);
    // 8 groups in 5 types with the quantizer's own bytes, but for the embedding in IQ1_S, which needs an imatrix; and those that are
    // refined once more.
    let refined = ran(&events, "refined-tensor");
    assert!((8..32).contains(&refined), "{refined}");
    assert_eq!(ran(&events, "tensor-loss"), 39 + refined);
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    assert_eq!(
        (
            ran(&events, "tensor"),
            ran(&events, "refined-tensor"),
            ran(&events, "tensor-loss")
        ),
        (0, 0, 0),
        "the candidate has the very tensors that were priced"
    );
    // The certificate has prices of refined options, and of the type that is never refined.
    let known = losses(&certificate(&forge, "best"));
    assert!(known.len() < 39 + 8, "{}", known.len());
    assert_eq!(known.keys().filter(|(_, ty)| ty == "IQ1_S").count(), 7);
    let _ = forge.run(&["verify"]).success();
    // What is predicted is what is measured.
    let predicted = forge
        .run(&["policy", "show", "policy.best", "--message-format", "json"])
        .json_lines();
    let predicted: f64 = predicted[0]["predicted_loss"].as_str().unwrap().parse().unwrap();
    let measured = metrics(&forge)["rows"][0]["kld_mean"].as_f64().unwrap();
    let ratio = predicted / measured;
    assert!(
        (0.6..1.5).contains(&ratio),
        "{predicted} was predicted, {measured} measured"
    );
}

#[test]
fn the_choice_does_not_depend_on_threads_or_memory() {
    let one = project();
    let _ = one.run(&["build", "policy.best", "-j", "1"]).success();
    let three = project();
    three.write("forge.toml", "[pools]\nmemory = \"40 MB\"\n");
    let _ = three.run(&["build", "policy.best", "-j", "3"]).success();
    assert_eq!(certificate(&one, "best"), certificate(&three, "best"));
}

#[test]
fn plain_codes_need_no_second_moments() {
    let forge = project();
    let recipe = RECIPE
        .replace("rounding = \"refined\"\nmoments = \"general\"\n[promote", "[promote")
        .replace("[moments.general]\ncorpus = \"calibration\"\ncontext = 64\n", "")
        .replace("moments = \"general\"", "corpus = \"calibration\"\ncontext = 64");
    forge.recipe(&recipe);
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    assert_eq!((ran(&events, "refined-tensor"), ran(&events, "tensor-loss")), (0, 39));
    let known = losses(&certificate(&forge, "best"));
    assert_eq!(known.len(), 39 + 8, "all types, and that of the source");
    // More bits lose less; and the output matrix, which is the embedding, loses most.
    let of = |group: &str, ty: &str| known[&(group.to_owned(), ty.to_owned())];
    for group in ["blk.0.attn_q.weight", "blk.0.ffn_down.weight", "token_embd.weight"] {
        let found = ["Q3_K", "Q4_K", "Q6_K", "F16"].map(|ty| of(group, ty));
        assert!(found.is_sorted_by(|a, b| a > b), "{group}: {found:?}");
        assert_eq!(found[3], 0.0);
    }
}

#[test]
fn corrections_measure_the_whole_choice() {
    let forge = project();
    forge.recipe(&RECIPE.replace("corrections = 0", "corrections = 2"));
    let (run, events) = forge.build_events(&["policy.best"]);
    let _ = run.success();
    assert!(ran(&events, "eval-block") > 10, "{}", ran(&events, "eval-block"));
    let whole = events.iter().filter(|event| {
        let message = event["message"].as_str().unwrap_or_default();
        event["reason"] == "note" && message.contains("the complete choice, and without each of 8 kinds of tensors")
    });
    assert!((1..=2).contains(&whole.count()), "{events:?}");
    let (run, events) = forge.build_events(&["policy.best"]);
    let _ = run.success();
    assert_eq!(ran(&events, "eval-block"), 0);
}

#[test]
fn a_mixture_is_measured_for_its_routers() {
    let forge = project();
    std::fs::copy(moe_model(), forge.path("small.gguf")).unwrap();
    let recipe = RECIPE
        .replace("corrections = 0", "corrections = 0\nprobes = 3")
        .replace("chunks = 4", "chunks = 2");
    forge.recipe(&recipe);
    let (run, events) = forge.build_events(&["policy.best"]);
    let _ = run.success();
    // Three groups and the model itself, on one block.
    assert_eq!(ran(&events, "eval-block"), 4);
    let of_experts = losses(&certificate(&forge, "best"));
    assert!(of_experts.values().all(|loss| loss.is_finite() && *loss >= 0.0));
}

#[test]
fn a_model_without_gradients_has_one_measurement_of_each_group() {
    let forge = project();
    RandomModel::new("mamba", &quickstart().join("tiny.gguf")).write(&forge.path("small.gguf"));
    let recipe = RECIPE
        .replace("rounding = \"refined\"\nmoments = \"general\"\n[promote", "[promote")
        .replace(
            "[\"Q3_K\", \"IQ4_XS\", \"Q4_K\", \"Q6_K\", \"IQ1_S\"]",
            "[\"Q4_0\", \"Q5_0\", \"Q8_0\"]",
        )
        .replace("5 bpw", "9 bpw")
        .replace("[moments.general]\ncorpus = \"calibration\"\ncontext = 64\n", "")
        .replace("moments = \"general\"", "corpus = \"calibration\"\ncontext = 64");
    forge.recipe(&recipe);
    let (run, events) = forge.build_events(&["policy.best"]);
    let run = run.success();
    let warned = events.iter().any(|event| {
        event["reason"] == "warning"
            && event["message"]
                .as_str()
                .unwrap_or_default()
                .contains("no gradients of this model")
    });
    assert!(warned, "{}", run.stderr);
    assert!(ran(&events, "eval-block") > 0 && ran(&events, "tensor-loss") == 0);
}
