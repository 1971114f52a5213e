//! Policies by squared errors, scaled by a few measurements.

use forge::engine;
use forge::engine::Cancel;
use forge::engine::MatrixError;
use forge::engine::QuantizeJob;
use forge::policy::Table;
use forge::tensor_type::TensorType;

use crate::one_layer_project::Gguf;
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
method = "error"
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

fn file(forge: &Forge) -> Vec<u8> {
    std::fs::read(forge.path("out/small/p.gguf")).unwrap()
}

fn table(forge: &Forge) -> Table {
    let made = manifest(&forge.path("out/small/p.gguf"));
    serde_json::from_slice(&output_of(forge, &made, "policy.p", "policy")).unwrap()
}

#[test]
fn errors_are_those_of_the_bytes_that_a_candidate_has() {
    let model = Gguf::small();
    let (spec, bytes) = model
        .tensors
        .iter()
        .find(|(spec, _)| spec.name == "blk.0.ffn_down.weight")
        .unwrap();
    let (columns, rows) = (spec.dims[0], spec.dims[1]);
    let weights: Vec<f32> = (0..2 * columns).map(|at| (at % 7) as f32 / 3.0).collect();
    let read = |offset: u64, buffer: &mut [u8]| {
        buffer.copy_from_slice(&bytes[offset as usize..][..buffer.len()]);
        Ok(())
    };
    for (matrices, weights) in [
        (1, None),
        (2, Some(weights.as_slice())),
        (2, Some(&weights[..columns as usize])),
    ] {
        let job = QuantizeJob {
            from: spec.ty,
            to: TensorType::Q4_K,
            columns,
            rows_per_matrix: rows / matrices,
            matrices,
            weights,
        };
        let mut quantized = Vec::new();
        engine::quantize(&job, &read, &mut quantized, &Cancel::new(), &|_| {}).unwrap();
        let compare = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| engine::compare(&job, &read, &quantized, &Cancel::new(), &|_| {}).unwrap())
        };
        let found = compare(1);
        assert_eq!(found, compare(3), "the same to the bit");
        let numbers = |ty, bytes: &[u8]| {
            let mut numbers = vec![0.0; (columns * rows) as usize];
            engine::dequantize_rows(ty, bytes, columns, &mut numbers).unwrap();
            numbers
        };
        let (before, after) = (numbers(spec.ty, bytes), numbers(TensorType::Q4_K, &quantized));
        assert_eq!(found.len() as u64, matrices);
        let size = before.len() / found.len();
        for (at, MatrixError { error, norm }) in found.into_iter().enumerate() {
            let of = |value: &dyn Fn(usize) -> f64| -> f64 {
                let inside = at * size..(at + 1) * size;
                let weight = |index: usize| match weights {
                    None => 1.0,
                    Some(weights) if weights.len() as u64 == columns => f64::from(weights[index % columns as usize]),
                    Some(weights) => f64::from(weights[at * columns as usize + index % columns as usize]),
                };
                inside.map(|index| weight(index) * value(index).powi(2)).sum()
            };
            let expected = of(&|index| f64::from(before[index]) - f64::from(after[index]));
            assert!(
                expected > 0.0 && (error / expected - 1.0).abs() < 1e-9,
                "{error} {expected}"
            );
            let expected = of(&|index| f64::from(before[index]));
            assert!((norm / expected - 1.0).abs() < 1e-9, "{norm} {expected}");
        }
        let short = engine::compare(&job, &read, &quantized[1..], &Cancel::new(), &|_| {});
        assert!(matches!(short, Err(engine::EngineError::Length { .. })));
    }
}

#[test]
fn a_few_probes_scale_errors_that_are_computed_once() {
    let forge = project();
    forge.recipe(RECIPE);
    let first = build_well(&forge, &[]);
    let errors = ran(&first.events, "tensor-error");
    assert!(errors > 0);
    assert_eq!(
        ran(&first.events, "tensor"),
        errors,
        "what is compared is what candidates are made of"
    );
    let groups = errors / 3;
    // One type of each, and the model itself.
    assert_eq!(ran(&first.events, "eval-block"), 2 * (groups + 1));
    let seven = file(&forge);
    let predicted: f64 = table(&forge).predicted_loss.unwrap().parse().unwrap();
    assert!(predicted > 0.0 && predicted < 1.0, "nats: {predicted}");
    let _ = forge
        .run(&["policy", "check", "out/small/p.certificate.json"])
        .success();

    // Another budget asks for nothing more, nor do more probes for any error.
    forge.recipe(&edited(RECIPE, "7 bpw", "6 bpw"));
    let second = build_well(&forge, &[]);
    for kind in ["tensor-error", "tensor", "eval-block"] {
        assert_eq!(ran(&second.events, kind), 0, "{kind}");
    }
    assert!(file(&forge).len() < seven.len());
    forge.recipe(&edited(RECIPE, "budget", "probes = 2\nbudget"));
    let more = build_well(&forge, &[]);
    assert_eq!(ran(&more.events, "tensor-error"), 0);
    assert!(ran(&more.events, "eval-block") > 0);
    // The two lie around the one of before, so that by now all are measured: `measured` finds them.
    forge.recipe(&edited(RECIPE, "\"error\"", "\"measured\"\nrefine = 0"));
    let measured = build_well(&forge, &[]);
    assert_eq!(
        ran(&measured.events, "tensor") + ran(&measured.events, "tensor-error"),
        0
    );
    // The model itself, and the complete choice, which is the same with all four loss estimates, on the seven chunks that choices are validated on.
    assert_eq!(ran(&measured.events, "reference-block"), 7);
    assert_eq!(ran(&measured.events, "eval-block"), 2 * 7);

    // The same for more threads, in another store.
    let other = project();
    other.recipe(RECIPE);
    let _ = other.run(&["build", "-j", "2"]).success();
    assert!(file(&other) == seven);
}

#[test]
fn without_probes_nothing_is_computed_and_nothing_predicted() {
    let forge = project();
    let alone = edited(
        RECIPE,
        "corpus = \"calibration\"\ncontext = 64\nchunks = 2\nblock = 1\n",
        "probes = 0\n",
    );
    forge.recipe(&alone);
    let built = build_well(&forge, &[]);
    assert_eq!(
        ran(&built.events, "eval-block") + ran(&built.events, "reference-block"),
        0
    );
    assert!(ran(&built.events, "tensor-error") > 0);
    assert_eq!(table(&forge).predicted_loss, None);
    // Nor is an imatrix needed.
    forge.recipe(&edited(&alone, "imatrix = \"general\"\n", ""));
    let plain = build_well(&forge, &[]);
    assert!(ran(&plain.events, "tensor-error") > 0);
    forge.recipe(&edited(&alone, "7 bpw", "1 bpw"));
    let output = build(&forge, &[]).diagnostics();
    assert!(
        output.contains("bytes is too small: the smallest file that this policy allows has "),
        "{output}"
    );
}

#[test]
fn a_plan_counts_probes_and_comparisons() {
    let forge = project();
    forge.recipe(RECIPE);
    let foreseen = planned(&forge, "policy.p")["expected"].clone();
    let _ = build_well(&forge, &["recipe.toml", "join.general"]);
    let known = planned(&forge, "policy.p");
    assert_eq!(known["status"], "miss", "{known}");
    assert_eq!(
        (&known["parts"], &known["writes_bytes"]),
        (&foreseen["parts"], &foreseen["writes_bytes"])
    );
    let run = build_well(&forge, &[]);
    let tensors = ran(&run.events, "tensor") as u64;
    assert_eq!(
        known["parts"].as_u64().unwrap() * 3,
        tensors,
        "one of three types of each tensor is measured"
    );

    forge.recipe(&edited(RECIPE, "7 bpw", "8 bpw"));
    let second = planned(&forge, "policy.p");
    assert_eq!(
        (&second["parts"], &second["writes_bytes"]),
        (&known["parts"], &0.into())
    );
    let without = edited(
        RECIPE,
        "corpus = \"calibration\"\ncontext = 64\nchunks = 2\nblock = 1\ntypes",
        "probes = 0\ntypes",
    );
    forge.recipe(&without);
    assert_eq!(planned(&forge, "policy.p")["parts"], 0);
}

#[test]
fn an_impossible_budget_fails_before_anything_is_compared() {
    let forge = project();
    forge.recipe(&edited(RECIPE, "7 bpw", "1 bpw"));
    let built = build(&forge, &[]);
    assert!(
        built
            .diagnostics()
            .contains("bytes is too small: the smallest file that this policy allows has ")
    );
    for kind in ["tensor", "tensor-error", "eval-block", "reference-block"] {
        assert_eq!(ran(&built.events, kind), 0, "{kind}");
    }
}
