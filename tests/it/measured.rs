//! Policies by losses that are measured on the model itself.

use std::collections::BTreeSet;

use forge::gguf::Model;

use crate::one_layer_project::build;
use crate::one_layer_project::build_well;
use crate::one_layer_project::edited;
use crate::one_layer_project::manifest;
use crate::one_layer_project::output_of;
use crate::one_layer_project::planned;
use crate::one_layer_project::project;
use crate::support::Forge;
use crate::support::ran;

const RECIPE: &str = r#"schema = 1
name = "small"

[source.model]
path = "model.gguf"

[corpus.calibration]
files = ["prose.txt"]

[imatrix.general]
corpus = "calibration"
chunks = 4
context = 64
block = 2

[policy.p]
method = "measured"
imatrix = "general"
corpus = "calibration"
context = 64
chunks = 2
block = 1
types = ["Q2_K", "Q4_K", "Q8_0"]
budget = "7 bpw"

[promote.p]
policy = "p"
"#;

fn bits(forge: &Forge) -> f64 {
    let path = forge.path("out/small/p.gguf");
    let elements: u64 = Model::open(&path)
        .unwrap()
        .tensors()
        .iter()
        .map(|tensor| tensor.info.dims.iter().product::<u64>())
        .sum();
    std::fs::metadata(path).unwrap().len() as f64 * 8.0 / elements as f64
}

/// Returns the keys of the blocks that a build measured.
fn measured(events: &[serde_json::Value]) -> BTreeSet<String> {
    let blocks = events.iter().filter(|event| {
        event["reason"] == "action-finished" && event["kind"] == "eval-block" && event["outcome"] == "ran"
    });
    let keys: Vec<String> = blocks.map(|event| event["key"].as_str().unwrap().to_owned()).collect();
    let set: BTreeSet<String> = keys.iter().cloned().collect();
    assert_eq!(set.len(), keys.len(), "no block is measured twice");
    set
}

#[test]
fn a_plan_counts_probes_from_headers_and_then_from_stored_results() {
    let forge = project();
    forge.recipe(RECIPE);
    let before = planned(&forge, "policy.p");
    assert_eq!(before["status"], "unknown", "{before}");
    let (foreseen, writes) = (&before["expected"]["parts"], &before["expected"]["writes_bytes"]);
    let text = forge.run(&["plan"]).success().stdout;
    assert!(
        text.contains(&format!("(up to {foreseen} probes to begin with, reads ")),
        "{text}"
    );

    let _ = build_well(&forge, &["recipe.toml", "join.general"]);
    let known = planned(&forge, "policy.p");
    assert_eq!(known["status"], "miss", "{known}");
    assert_eq!([&known["parts"], &known["parts_missing"]], [foreseen; 2]);
    assert_eq!(known["writes_bytes"], *writes);
    // As many as that are made, each of one tensor here.
    let run = build_well(&forge, &[]);
    assert_eq!(ran(&run.events, "tensor") as u64, foreseen.as_u64().unwrap());
    assert_eq!(planned(&forge, "policy.p")["status"], "hit");

    // Another policy has nothing to quantize. Which probes were made before is not looked for.
    forge.recipe(&edited(RECIPE, "7 bpw", "8 bpw"));
    let second = planned(&forge, "policy.p");
    assert_eq!(
        (&second["parts"], &second["parts_missing"], &second["writes_bytes"]),
        (foreseen, foreseen, &0.into())
    );
    forge.recipe(&edited(RECIPE, "budget", "max_probes = 9\nbudget"));
    assert_eq!(planned(&forge, "policy.p")["parts"], 9);
}

#[test]
fn measurements_are_used_by_every_later_policy() {
    let forge = project();
    forge.recipe(RECIPE);
    let first = build_well(&forge, &[]);
    let probes = measured(&first.events);
    let tensors = ran(&first.events, "tensor");
    // Each type of each tensor on one of two chunks at the least, the model itself and a choice on the others.
    assert!(
        probes.len() >= tensors + 4,
        "{} probes of {tensors} tensors in some type",
        probes.len()
    );
    // The two chunks that types are measured on, and the seven others of the text, which choices are validated on.
    assert_eq!(ran(&first.events, "reference-block"), 2 + 7);
    assert_eq!(
        ran(&first.events, "tensor-error"),
        tensors,
        "each is compared with its source"
    );
    assert!(bits(&forge) <= 7.0, "{}", bits(&forge));
    let seven = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let _ = forge
        .run(&["policy", "check", "out/small/p.certificate.json"])
        .success();

    // Another budget asks only for what was not measured before, and the first one again for nothing.
    forge.recipe(&edited(RECIPE, "7 bpw", "8 bpw"));
    let second = build_well(&forge, &[]);
    let more = measured(&second.events);
    assert!(more.is_disjoint(&probes), "no probe is repeated");
    assert!(more.len() < probes.len() / 2, "{} after {}", more.len(), probes.len());
    for kind in ["reference-block", "imatrix-block", "tensor", "tensor-error"] {
        assert_eq!(ran(&second.events, kind), 0, "{kind}");
    }
    assert_ne!(std::fs::read(forge.path("out/small/p.gguf")).unwrap(), seven);
    forge.recipe(RECIPE);
    let again = build_well(&forge, &[]);
    assert_eq!(measured(&again.events).len(), 0);
    assert_eq!(std::fs::read(forge.path("out/small/p.gguf")).unwrap(), seven);
    let unchanged = build_well(&forge, &[]);
    assert_eq!(unchanged.events.last().unwrap()["ran"], 0);

    // A candidate that differs in one tensor is what one of the probes has measured.
    let one = edited(
        RECIPE,
        "method = \"measured\"\nimatrix = \"general\"\ncorpus = \"calibration\"\ncontext = 64\nchunks = 2\nblock = 1\n\
         types = [\"Q2_K\", \"Q4_K\", \"Q8_0\"]\nbudget = \"7 bpw\"\n",
        "method = \"manual\"\nimatrix = \"general\"\nrules = [{ match = 'blk\\.0\\.ffn_down', type = \"Q4_K\" }]\n\
         otherwise = \"keep\"\n",
    );
    forge.recipe(&format!(
        "{one}[eval.quality]\ncorpus = \"calibration\"\nallow_overlap = true\ncontext = 64\nblock = 1\n"
    ));
    let evaluated = build_well(&forge, &[]);
    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(forge.path("out/small/metrics.json")).unwrap()).unwrap();
    let chunks = metrics["rows"][0]["chunks"].as_u64().unwrap() as usize;
    let measured = measured(&evaluated.events).len();
    assert!(
        (chunks - 2..chunks).contains(&measured),
        "{measured} of {chunks} chunks were computed"
    );
}

/// A budget so small that tensors lose much, and beside each other more.
#[test]
fn a_choice_is_replaced_only_by_one_with_a_smaller_measured_loss() {
    let lost = |refine: u32, forge: &Forge| -> f64 {
        forge.recipe(&edited(
            RECIPE,
            "budget = \"7 bpw\"",
            &format!("budget = \"5.2 bpw\"\nrefine = {refine}"),
        ));
        let built = build_well(forge, &[]);
        assert!(bits(forge) <= 5.2, "{}", bits(forge));
        let _ = forge
            .run(&["policy", "check", "out/small/p.certificate.json"])
            .success();
        // A refined choice is proved by differences to a choice that was measured as a whole.
        let certificate = std::fs::read(forge.path("out/small/p.certificate.json")).unwrap();
        let certificate: serde_json::Value = serde_json::from_slice(&certificate).unwrap();
        let is_refined = refine > 0;
        let losses = if is_refined { "difference" } else { "absolute" };
        assert_eq!(certificate["problem"]["losses"], losses);
        assert_eq!(certificate["problem"]["base"].is_null(), !is_refined);
        if is_refined {
            let manifest = manifest(&forge.path("out/small/p.gguf"));
            let table = output_of(forge, &manifest, "policy.p", "policy");
            let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
            assert_eq!(certificate["answers"][0]["predicted"], table["predicted_loss"]);
        }
        let said = |what: &str| -> Vec<f64> {
            let mut messages = built.events.iter().filter_map(|event| event["message"].as_str());
            let said = messages.find_map(|message| message.split(what).nth(1));
            let said = said.unwrap_or_else(|| panic!("no word of `{what}`"));
            said.split([' ', ',']).filter_map(|word| word.parse().ok()).collect()
        };
        let losses = said("measured losses of four choices: ");
        assert_eq!(losses.len(), 4, "{losses:?}");
        let validated = |message: &str| message.contains(", on chunks that were not used to choose types");
        let mut messages = built.events.iter().filter_map(|event| event["message"].as_str());
        assert!(messages.any(validated), "the text has enough of them");
        let lost = said("measured loss of the complete choice: ")[0];
        let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(
            if refine == 0 { lost == least } else { lost <= least },
            "{lost} after {losses:?}"
        );
        lost
    };
    let forge = project();
    let (plain, refined) = (lost(0, &forge), lost(20, &forge));
    assert!(refined <= plain, "{refined} after {plain}");
}

#[test]
fn max_probes_limits_the_probes_and_the_budget_is_still_met() {
    let forge = project();
    forge.recipe(&edited(
        RECIPE,
        "block = 1\ntypes",
        "block = 1\nmax_probes = 12\nrefine = 0\ntypes",
    ));
    let built = build_well(&forge, &[]);
    assert_eq!(ran(&built.events, "tensor"), 12, "one tensor in each group");
    // The model itself on all chunks and four choices on those that they are validated on are no probes of a type.
    let probes = measured(&built.events).len();
    assert!((12..=2 * 12 + (2 + 7) + 4 * 7).contains(&probes), "{probes}");
    assert!(bits(&forge) <= 7.0, "{}", bits(&forge));

    forge.recipe(&edited(RECIPE, "block = 1\ntypes", "block = 1\nmax_probes = 2\ntypes"));
    let refused = build(&forge, &[]);
    assert_eq!(refused.run.status, Some(1));
    let output = refused.diagnostics();
    assert!(
        output.contains("`max_probes` is 2, but a choice within the budget needs at least"),
        "{output}"
    );
}

#[test]
fn threads_and_interruptions_do_not_change_the_choice() {
    let forge = project();
    forge.recipe(RECIPE);
    let _ = build_well(&forge, &[]);
    let expected = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let other = project();
    other.recipe(RECIPE);
    let mut child = other.command(&["build", "-j", "2"]).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        if other.store().is_dir() && crate::small_model::committed(other.store()).len() > 30 {
            child.kill().unwrap();
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.wait().unwrap();
    let _ = other.run(&["build", "-j", "2"]).success();
    assert_eq!(std::fs::read(other.path("out/small/p.gguf")).unwrap(), expected);
}

#[test]
fn a_budget_that_is_too_small_is_an_error_with_the_minimum() {
    let forge = project();
    forge.recipe(&edited(RECIPE, "7 bpw", "1 bpw"));
    let built = build(&forge, &[]);
    assert_eq!(built.run.status, Some(1));
    let output = built.diagnostics();
    assert!(
        output.contains("bytes is too small: the smallest file that this policy allows has "),
        "{output}"
    );
}
