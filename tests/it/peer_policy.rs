//! Exported policies against `llama-quantize`: given the types of a candidate with `--tensor-type-file`, the same source and
//! the same imatrix, the tool writes exactly the tensors of the candidate, whatever mix it gets as well.
//!
//! `FORGE_PEER_BIN` names the folder of the tools (`tests/peers/build-llama-cpp.sh` builds and prints it), and
//! `FORGE_TEST_MOE` a small mixture of experts. Without the tools the tests say `SKIPPED` and pass.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use forge::gguf::Model;
use forge::tensor_type::TensorType;

use crate::peer_bytes::compare_tensors;
use crate::peer_bytes::imatrix_of;
use crate::peer_engine::peer;
use crate::support::Forge;
use crate::support::moe_model;

/// Mixes that the tool gets as well: none of them may decide the type of a tensor.
const MIXES: &[&str] = &["Q4_K_M", "Q2_K"];

fn recipe(model: &str, policies: &[(&str, &str)]) -> String {
    let policies: Vec<String> = policies
        .iter()
        .map(|(name, body)| {
            format!("[policy.{name}]\nimatrix = \"general\"\n{body}\n[promote.{name}]\npolicy = \"{name}\"\n")
        })
        .collect();
    format!(
        r#"schema = 1
name = "exported"

[source.model]
path = "{model}"

[corpus.calibration]
files = ["calibration-prose.txt"]

[imatrix.general]
corpus = "calibration"
context = 128
chunks = 8

{}"#,
        policies.join("\n")
    )
}

/// Builds candidates, exports the types of each in both forms, and compares what `llama-quantize` makes of them.
fn compare_all(forge: &Forge, bin: &Path, model: &str, policies: &[(&str, &str)], least_types: usize) {
    forge.recipe(&recipe(model, policies));
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    let imatrix = imatrix_of(forge, &events);
    for (name, _) in policies {
        let path = format!("out/exported/{name}.gguf");
        let ours = Model::open(&forge.path(&path)).unwrap();
        let types: BTreeSet<TensorType> = ours.tensors().iter().map(|tensor| tensor.info.ty).collect();
        assert!(
            types.len() >= least_types,
            "{name}: with so few types it shows nothing: {types:?}"
        );
        for (format, mix) in ["tensors", "rules"].iter().zip(MIXES) {
            let exported = forge
                .run(&["policy", "export", "--format", format, &path])
                .success()
                .stdout;
            let what = format!("{name} as {format} with {mix}:\n{exported}");
            forge.write("types.txt", &exported);
            let theirs = forge.path("theirs.gguf");
            let output = Command::new(bin.join("llama-quantize"))
                .arg("--imatrix")
                .arg(&imatrix)
                .arg("--tensor-type-file")
                .args([forge.path("types.txt"), forge.path(model), theirs.clone()])
                .args([mix, "2"])
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{what}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            compare_tensors(&ours, &Model::open(&theirs).unwrap(), &what);
            std::fs::remove_file(theirs).unwrap();
        }
    }
}

/// Rules with every kind of type: with importances and without, of blocks of 32 and of 256, floats, and the source's own.
const BY_HAND: &str = r#"method = "manual"
rules = [
  { match = '^token_embd\.', type = "Q6_K" },
  { match = '^output\.', type = "Q5_K" },
  { match = 'blk\.(0|3)\.attn_q', type = "keep" },
  { match = 'attn_q', type = "IQ4_XS" },
  { match = 'blk\.[01]\.attn_k', type = "BF16" },
  { match = 'attn_k', type = "Q5_0" },
  { match = 'attn_v', type = "Q8_0" },
  { match = 'blk\.2\.ffn_down', type = "IQ2_XS" },
  { match = 'ffn_down', type = "Q3_K" },
  { match = 'blk\.1\.ffn_(up|gate)', type = "IQ3_S" },
  { match = 'ffn_up', type = "Q2_K" },
]
otherwise = "Q4_K"
"#;

#[test]
fn exported_policies_make_the_same_tensors_in_llama_quantize() {
    let Some(bin) = peer("exported_policies_make_the_same_tensors_in_llama_quantize") else {
        return;
    };
    let forge = Forge::with_example();
    let policies = [
        ("manual", BY_HAND),
        (
            "ashq1",
            "method = \"ashq1\"\nbudget = \"5.4 bpw\"\nfloors = [{ match = \"ffn_up\", type = \"Q3_K\" }]\n",
        ),
    ];
    compare_all(&forge, &bin, "tiny.gguf", &policies, 4);
}

#[test]
fn exported_policies_with_experts_make_the_same_tensors_in_llama_quantize() {
    let test = "exported_policies_with_experts_make_the_same_tensors_in_llama_quantize";
    let Some(bin) = peer(test) else { return };
    let forge = Forge::with_example();
    std::os::unix::fs::symlink(std::path::absolute(moe_model()).unwrap(), forge.path("moe.gguf")).unwrap();
    let policies = [
        ("manual", BY_HAND),
        ("ashq1", "method = \"ashq1\"\nbudget = \"5.2 bpw\"\n"),
    ];
    compare_all(&forge, &bin, "moe.gguf", &policies, 4);
}

#[test]
fn what_was_measured_makes_the_same_tensors_in_llama_quantize() {
    let Some(bin) = peer("what_was_measured_makes_the_same_tensors_in_llama_quantize") else {
        return;
    };
    let forge = Forge::with_example();
    forge.write("one.gguf", crate::one_layer_project::Gguf::small().bytes());
    let measured = "method = \"measured\"\ncorpus = \"calibration\"\ncontext = 64\nchunks = 2\nblock = 1\n\
                    types = [\"IQ2_S\", \"Q3_K\", \"IQ4_XS\", \"Q6_K\"]\nbudget = \"4.6 bpw\"\n";
    compare_all(&forge, &bin, "one.gguf", &[("measured", measured)], 3);
}
