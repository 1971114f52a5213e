//! Models whose data is aligned to another number of bytes than 32 (`general.alignment`): they build as any other, and their
//! candidates keep the alignment.
//!
//! `FORGE_PEER_BIN` names the folder of `llama-quantize`; without it the comparison says `SKIPPED` and passes.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use forge::gguf;
use forge::gguf::ALIGNMENT_KEY;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::gguf::TensorSpec;
use forge::gguf::Value;

use crate::peer_engine::peer;
use crate::small_model;
use crate::small_model::InMemory;
use crate::support::Forge;

const ALIGNMENTS: [u32; 6] = [8, 16, 32, 64, 128, 4096];

const RECIPE: &str = r#"
schema = 1
name = "aligned"
[source.model]
path = "MODEL"
[policy.mix]
method = "mix"
mix = "Q4_K_M"
[promote.small]
policy = "mix"
"#;

type Tensors = BTreeMap<String, Vec<u8>>;

fn tensors_of(model: &Model) -> Tensors {
    let read = |tensor: &gguf::ModelTensor| {
        let mut bytes = vec![0; usize::try_from(tensor.info.len).unwrap()];
        model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
        (tensor.info.name.clone(), bytes)
    };
    model.tensors().iter().map(read).collect()
}

/// Writes tensors of a model as a file of their own.
fn write(path: &Path, model: &Model, metadata: &Metadata, tensors: &[gguf::ModelTensor]) {
    let specs: Vec<TensorSpec> = tensors.iter().map(|tensor| TensorSpec::from(&tensor.info)).collect();
    let layout = Layout::new(metadata, &specs, metadata.alignment().unwrap()).unwrap();
    let mut file = Vec::new();
    let mut fill = |index: usize, out: &mut dyn Write| {
        let mut bytes = vec![0; usize::try_from(tensors[index].info.len).unwrap()];
        model.read_tensor_at(&tensors[index], 0, &mut bytes)?;
        out.write_all(&bytes)
    };
    layout.write(&mut file, &mut fill).unwrap();
    std::fs::write(path, file).unwrap();
}

/// Returns the small model's metadata with an alignment. 32 is stated as well: no key is not the same as the default.
fn metadata_of(model: &Model, alignment: u32) -> Metadata {
    let mut metadata = model.metadata().clone();
    metadata.set(ALIGNMENT_KEY, &Value::U32(alignment)).unwrap();
    metadata
}

/// A project with the small model, aligned, in one file (`model.gguf`) and in two.
///
/// The parts are aligned as `llama-gguf-split` aligns them: the second has no metadata of the model, so its alignment is 32.
/// With `both`, it states the alignment of the first.
fn project(alignment: u32, both: bool) -> Forge {
    let forge = Forge::new();
    let plain = forge.path("plain.gguf");
    InMemory::small().write(&plain);
    let model = Model::open(&plain).unwrap();
    let metadata = metadata_of(&model, alignment);
    let tensors = model.tensors();
    write(&forge.path("model.gguf"), &model, &metadata, tensors);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    for (number, part) in [first, second].into_iter().enumerate() {
        let mut metadata = if number == 0 { metadata.clone() } else { Metadata::new() };
        if number == 1 && both {
            metadata.set(ALIGNMENT_KEY, &Value::U32(alignment)).unwrap();
        }
        metadata.set("split.no", &Value::U16(number as u16)).unwrap();
        metadata.set("split.count", &Value::U16(2)).unwrap();
        metadata
            .set(
                "split.tensors.count",
                &Value::I32(i32::try_from(tensors.len()).unwrap()),
            )
            .unwrap();
        let path = forge.path(&format!("split-{:05}-of-00002.gguf", number + 1));
        write(&path, &model, &metadata, part);
    }
    forge
}

/// Builds the candidate of a model and returns it.
fn candidate(forge: &Forge, model: &str) -> Model {
    forge.recipe(&RECIPE.replace("MODEL", model));
    let _ = forge.run(&["build"]).success();
    Model::open(&forge.path("out/aligned/small.gguf")).unwrap()
}

#[test]
fn models_of_any_alignment_give_the_same_tensors_and_keep_their_alignment() {
    let mut expected: Option<Tensors> = None;
    for alignment in ALIGNMENTS {
        for (name, both) in [
            ("model.gguf", false),
            ("split-00001-of-00002.gguf", false),
            ("split-00001-of-00002.gguf", true),
        ] {
            let what = format!("{name} aligned to {alignment}");
            let forge = project(alignment, both);
            let made = candidate(&forge, name);
            assert_eq!(made.alignment(), u64::from(alignment), "{what}");
            assert_eq!(made.metadata().get_u32(ALIGNMENT_KEY), Some(alignment), "{what}");
            let tensors = tensors_of(&made);
            assert_eq!(*expected.get_or_insert_with(|| tensors.clone()), tensors, "{what}");
            let output = "out/aligned/small.gguf";
            let _ = forge.run(&["verify", &format!("{output}.manifest.json")]).success();
            for shown in [name, output] {
                let _ = forge.run(&["policy", "show", shown]).success();
            }
            let again = forge.run(&["build"]).success();
            assert!(again.stderr.contains("nothing to do"), "{what}: {}", again.stderr);
        }
    }
}

#[test]
fn a_budget_counts_the_padding_of_the_alignment() {
    for alignment in ALIGNMENTS {
        let forge = project(alignment, false);
        let source = std::fs::metadata(forge.path("model.gguf")).unwrap().len();
        let budget = source * 6 / 10;
        forge.recipe(
            &RECIPE
                .replace("MODEL", "model.gguf")
                .replace("mix = \"Q4_K_M\"", &format!("budget = \"{budget} B\""))
                .replace("\"mix\"\nbudget", "\"prior\"\nbudget"),
        );
        let _ = forge.run(&["build"]).success();
        let path = forge.path("out/aligned/small.gguf");
        assert_eq!(Model::open(&path).unwrap().alignment(), u64::from(alignment));
        let length = std::fs::metadata(&path).unwrap().len();
        assert!(length <= budget, "aligned to {alignment}: {length} of {budget} bytes");
    }
}

#[test]
fn the_engine_computes_with_models_of_any_alignment() {
    let metrics = |alignment: Option<u32>| {
        let forge = small_model::project();
        if let Some(alignment) = alignment {
            let path = forge.path("small.gguf");
            let model = Model::open(&path).unwrap();
            let metadata = metadata_of(&model, alignment);
            let tensors = model.tensors();
            write(&forge.path("aligned.gguf"), &model, &metadata, tensors);
            std::fs::rename(forge.path("aligned.gguf"), &path).unwrap();
        }
        let _ = small_model::build_of(&forge).success();
        let metrics = forge.path(small_model::OUT).join("metrics.json");
        let metrics: serde_json::Value = serde_json::from_slice(&std::fs::read(metrics).unwrap()).unwrap();
        figures(&metrics)
    };
    let expected = metrics(None);
    assert!(!expected.is_empty());
    // Less than ggml needs in memory, so that the file cannot be mapped; and more.
    for alignment in [8, 4096] {
        assert_eq!(metrics(Some(alignment)), expected, "aligned to {alignment}");
    }
}

/// Returns all KLDs and perplexities of a document.
fn figures(document: &serde_json::Value) -> Vec<String> {
    match document {
        serde_json::Value::Object(fields) => fields
            .iter()
            .flat_map(|(key, value)| match value {
                serde_json::Value::Number(number) if key.starts_with("kld") || key.starts_with("ppl") => {
                    vec![format!("{key} {number}")]
                }
                value => figures(value),
            })
            .collect(),
        serde_json::Value::Array(values) => values.iter().flat_map(figures).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn an_invalid_alignment_is_rejected_with_the_reason() {
    let forge = project(32, false);
    forge.recipe(&RECIPE.replace("MODEL", "model.gguf"));
    let sound = std::fs::read(forge.path("model.gguf")).unwrap();
    let key = ALIGNMENT_KEY.as_bytes();
    let at = sound.windows(key.len()).position(|window| window == key).unwrap() + key.len();
    for (ty, value, reason) in [
        (4u32, 0u32, "the alignment 0 is not a power of two"),
        (4, 3, "the alignment 3 is not a power of two"),
        (4, 48, "the alignment 48 is not a power of two"),
        (4, 1 << 31, "the alignment 2147483648 is larger than 16777216 bytes"),
        // A 64-bit number, as 2^40 needs, has another type: here of as many bytes, so that all else stays in place.
        (5, 32, "the value is of type i32, expected u32"),
        (6, 32, "the value is of type f32, expected u32"),
    ] {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&ty.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&value.to_le_bytes());
        forge.write("model.gguf", bytes);
        for args in [&["build"][..], &["policy", "show", "model.gguf"]] {
            let run = forge.run(args).status(1);
            let message = run.stderr.replace('\n', " ");
            assert!(message.contains("general.alignment"), "{value}: {}", run.stderr);
            assert!(message.contains(reason), "{value}: {}", run.stderr);
        }
    }
    let mut metadata = Metadata::new();
    metadata.set(ALIGNMENT_KEY, &Value::U64(1 << 40)).unwrap();
    let error = metadata.alignment().unwrap_err().to_string();
    assert_eq!(error, "key `general.alignment`: the value is of type u64, expected u32");
}

/// `llama-quantize` lays every output out for 32 bytes, whatever the metadata say, so its own output can be
/// read back only with the key set to 32.
#[test]
fn candidates_of_any_alignment_have_the_tensors_of_llama_quantize() {
    let Some(bin) = peer("candidates_of_any_alignment_have_the_tensors_of_llama_quantize") else {
        return;
    };
    let mut taken = Vec::new();
    for alignment in ALIGNMENTS {
        let forge = project(alignment, false);
        let ours = tensors_of(&candidate(&forge, "model.gguf"));
        let theirs = forge.path("theirs.gguf");
        let run = Command::new(bin.join("llama-quantize"))
            .env("GGML_NO_BACKTRACE", "1")
            .args([forge.path("model.gguf").as_path(), theirs.as_path()])
            .args(["Q4_K_M", "1"])
            .output()
            .unwrap();
        if !run.status.success() {
            // It maps its input, which takes 32 bytes at least.
            assert!(alignment < 32, "{alignment}: {}", String::from_utf8_lossy(&run.stderr));
            continue;
        }
        taken.push(alignment);
        let mut bytes = std::fs::read(&theirs).unwrap();
        let key = ALIGNMENT_KEY.as_bytes();
        let at = bytes.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
        assert_eq!(bytes[at..at + 4], alignment.to_le_bytes());
        bytes[at..at + 4].copy_from_slice(&32u32.to_le_bytes());
        std::fs::write(&theirs, bytes).unwrap();
        let theirs = tensors_of(&Model::open(&theirs).unwrap());
        assert!(ours == theirs, "aligned to {alignment}");
    }
    assert!(taken.ends_with(&[32, 64, 128, 4096]), "{taken:?}");
}
