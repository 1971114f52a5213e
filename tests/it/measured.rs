//! Policies by losses that are measured on the model itself.

use forge::gguf::Model;

use crate::cut::build;
use crate::cut::build_well;
use crate::cut::edited;
use crate::cut::project;
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

#[test]
fn what_was_measured_once_serves_every_later_policy() {
    let forge = project();
    forge.recipe(RECIPE);
    let first = build_well(&forge, &[]);
    let probes = ran(&first.events, "eval-block");
    // Two chunks for each tensor in each type, and for the model itself.
    let tensors = ran(&first.events, "tensor");
    assert_eq!(probes, 2 * (tensors + 1), "{tensors} tensors in some type");
    assert_eq!(ran(&first.events, "reference-block"), 2);
    assert!(bits(&forge) <= 7.0, "{}", bits(&forge));
    let seven = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let _ = forge
        .run(&["policy", "check", "out/small/p.certificate.json"])
        .success();

    // Another budget, and the first one again.
    for (budget, larger) in [("8 bpw", true), ("7 bpw", false)] {
        forge.recipe(&edited(RECIPE, "7 bpw", budget));
        let again = build_well(&forge, &[]);
        for kind in ["eval-block", "reference-block", "imatrix-block"] {
            assert_eq!(ran(&again.events, kind), 0, "{kind} for {budget}");
        }
        let bytes = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
        assert_eq!(bytes == seven, !larger, "{budget}");
    }
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
        "{one}[eval.quality]\ncorpus = \"calibration\"\ncontext = 64\nchunks = 2\nblock = 1\n"
    ));
    let evaluated = build_well(&forge, &[]);
    assert_eq!(ran(&evaluated.events, "eval"), 1);
    assert_eq!(ran(&evaluated.events, "eval-block"), 0, "the probe has measured it");
}

#[test]
fn more_threads_and_a_stop_in_between_choose_the_same() {
    let forge = project();
    forge.recipe(RECIPE);
    let _ = build_well(&forge, &[]);
    let expected = std::fs::read(forge.path("out/small/p.gguf")).unwrap();
    let other = project();
    other.recipe(RECIPE);
    let mut child = other.command(&["build", "-j", "2"]).spawn().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while std::time::Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        if other.store().is_dir() && crate::small::committed(other.store()).len() > 30 {
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
fn a_budget_below_the_least_says_what_the_least_is() {
    let forge = project();
    forge.recipe(&edited(RECIPE, "7 bpw", "1 bpw"));
    let built = build(&forge, &[]);
    assert_eq!(built.run.status, Some(1));
    let told = built.diagnostics();
    assert!(
        told.contains("is below the least that this policy can make, "),
        "{told}"
    );
}
