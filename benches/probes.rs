//! How many probes a second are made: types of single tensors tried in the loaded model, beside a file written by
//! `llama-quantize` and measured by `llama-perplexity` for each.
//!
//!     FORGE_PEER_BIN=$(sh tests/peers/build-llama-cpp.sh) cargo bench --bench probes -- [--model FILE] [--chunks 4]
//!         [--context 512] [--theirs 8] [--threads 2] [--layers N [--experts N]]
//!
//! The model is the example's unless another is named, or made up: with `--layers`, so many layers of the shape of Qwen3-0.6B,
//! or with `--experts`, with as many experts in each, of which 8 are used for a token; both read texts as the example does.
//!
//! Both measure the same number of chunks of as many tokens against the model's own log-probabilities, which were computed before;
//! both quantize with the same imatrix and find the model in the page cache. Forge's are all tensors in Q4_K, one at a time, by a
//! build of a policy that has them to measure: from the start of the process to its end, with hashing and recording each in the
//! store. That is done twice: from nothing, and again by another policy on another text, which finds the tensors quantized, as
//! any policy, error or candidate after the first does. A probe of theirs is one tensor in Q4_K and all others as they are,
//! for tensors spread over the model.
#![allow(missing_docs, clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

mod made_up;

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use forge::digest::ActionDigest;
use forge::gguf::Model;
use forge::gguf::Value as Metadatum;
use forge::store::Store;
use serde_json::Value;

const EMBD: u64 = 1024;
const FF: u64 = 3072;
const Q: u64 = 2048;
const KV: u64 = 1024;
const HEAD: u64 = 128;
/// Of an expert.
const EXPERT_FF: u64 = 256;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str, otherwise: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or_else(|| otherwise.to_owned(), |at| arguments[at + 1].clone())
    };
    let Some(peer) = std::env::var_os("FORGE_PEER_BIN").map(PathBuf::from) else {
        println!("SKIPPED: FORGE_PEER_BIN names no folder of llama.cpp's tools (tests/peers/build-llama-cpp.sh)");
        return;
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let model = option("--model", example.join("tiny.gguf").to_str().unwrap());
    let mut model = fs::canonicalize(model).unwrap();
    let (chunks, context, threads) = (
        option("--chunks", "4"),
        option("--context", "512"),
        option("--threads", "2"),
    );
    let theirs: usize = option("--theirs", "8").parse().unwrap();
    let (layers, experts) = (option("--layers", "0"), option("--experts", "0"));
    if layers != "0" {
        model = make_model(&model, layers.parse().unwrap(), experts.parse().unwrap());
        let size = fs::metadata(&model).unwrap().len() as f64 / f64::from(1 << 30);
        println!("{layers} layers, {experts} experts in each, {size:.2} GiB");
    }
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();

    // The texts, the imatrix and the reference's log-probabilities are there before anything is timed.
    let recipe = |text: &str, types: &str, more: &str| {
        format!(
            "schema = 1\nname = \"probes\"\n[source.model]\npath = \"{}\"\n[corpus.prose]\nfiles = [\"{1}/calibration-prose.txt\"]\n\
             [corpus.code]\nfiles = [\"{1}/calibration-code.txt\"]\n[imatrix.general]\ncorpus = \"prose\"\nchunks = 8\n\
             [policy.p]\nmethod = \"measured\"\nimatrix = \"general\"\ncorpus = \"{text}\"\nbudget = \"32 bpw\"\n\
             context = {context}\nchunks = {chunks}\nscreen = {chunks}\nblock = {chunks}\nrefine = 0\ntypes = [{types}]\n{more}",
            model.display(),
            example.display(),
        )
    };
    let build = |recipe: &str| -> (f64, Vec<Value>) {
        fs::write(folder.join("recipe.toml"), recipe).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        command
            .args(["build", "recipe.toml", "-j", &threads, "--message-format", "json"])
            .current_dir(folder)
            .env("FORGE_CACHE_DIR", folder.join("store"));
        let started = Instant::now();
        let output = command.output().unwrap();
        let seconds = started.elapsed().as_secs_f64();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let events = output
            .stdout
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        let events = events.map(|line| serde_json::from_slice(line).unwrap());
        (seconds, events.collect())
    };
    let mut imatrix: Option<ActionDigest> = None;
    // What there is of probes already is another type of the first layer.
    for text in ["prose", "code"] {
        let others = "keep = [\"^blk\\\\.[1-9]\", \"^token_embd\", \"^output\"]\n";
        let (_, events) = build(&recipe(text, "\"Q8_0\"", others));
        let collected = events
            .iter()
            .find(|event| event["kind"] == "imatrix-collect" && event["outcome"] == "ran");
        imatrix = imatrix.or(collected.map(|event| event["key"].as_str().unwrap().parse().unwrap()));
    }
    let mut ours = Vec::new();
    for (text, what) in [
        ("prose", "each tensor quantized, too"),
        ("code", "tensors quantized before"),
    ] {
        let (seconds, events) = build(&recipe(text, "\"Q4_K\"", ""));
        let ran = |kind| {
            let ran = events
                .iter()
                .filter(|event| event["kind"] == kind && event["outcome"] == "ran");
            ran.count()
        };
        let (probes, quantized) = (ran("eval-block"), ran("tensor"));
        assert_eq!(
            quantized > 0,
            ours.is_empty(),
            "{text}: {quantized} tensors were quantized"
        );
        let rate = probes as f64 / seconds;
        println!(
            "forge, {what}: {probes} probes of {chunks} chunks of {context} tokens in {seconds:.2} s, {rate:.2} a second"
        );
        ours.push(rate);
    }

    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(peer.join(program)).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
    };
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (base, candidate, rules, weights) = (
        path("base.kld"),
        path("candidate.gguf"),
        path("rules.txt"),
        path("imatrix.gguf"),
    );
    let store = Store::open(&folder.join("store")).unwrap();
    let result = store.lookup(&imatrix.unwrap()).unwrap().unwrap();
    store
        .materialize(&result.output("imatrix").unwrap(), Path::new(&weights))
        .unwrap();
    let text = example.join("calibration-prose.txt");
    let model_path = model.to_str().unwrap();
    let common = [
        "-c",
        &context,
        "-b",
        &context,
        "-t",
        &threads,
        "--chunks",
        &chunks,
        "--kl-divergence-base",
        &base,
    ];
    run(
        "llama-perplexity",
        &[&["-m", model_path, "-f", text.to_str().unwrap()], &common[..]].concat(),
    );
    let source = Model::open(&model).unwrap();
    let tensors: Vec<(String, String)> = source
        .tensors()
        .iter()
        .filter(|tensor| tensor.info.dims.len() > 1)
        .map(|tensor| (tensor.info.name.clone(), tensor.info.ty.name().to_lowercase()))
        .collect();
    let probed: Vec<&String> = tensors
        .iter()
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("blk.") && !name.contains("gate_inp"))
        .collect();
    let (mut seconds, mut written) = (0.0, 0.0);
    for nth in 0..theirs {
        // Multiples of the golden ratio: each kind of tensor comes as often as there are of it, in layers here and there.
        let at = ((nth as f64 + 0.5) * 0.618_034).fract() * probed.len() as f64;
        let chosen = probed[at as usize];
        let lines = tensors.iter().map(|(name, own)| {
            let ty = if name == chosen { "q4_k" } else { own };
            format!("^{}$={ty}\n", name.replace('.', "\\."))
        });
        fs::write(&rules, lines.collect::<String>()).unwrap();
        let started = Instant::now();
        let options = ["--imatrix", &weights, "--tensor-type-file", &rules];
        run(
            "llama-quantize",
            &[&options[..], &[model_path, &candidate, "Q8_0", &threads]].concat(),
        );
        written += started.elapsed().as_secs_f64();
        run(
            "llama-perplexity",
            &[&["-m", &candidate, "--kl-divergence"], &common[..]].concat(),
        );
        let took = started.elapsed().as_secs_f64();
        println!("  {chosen}: {took:.2} s");
        seconds += took;
    }
    let rate = theirs as f64 / seconds;
    println!(
        "llama.cpp's tools: {theirs} probes of as many in {seconds:.2} s, of which {written:.2} s write files: {rate:.3} a second"
    );
    println!(
        "ratios {:.1}, and {:.1} with tensors quantized before (target: at least 20)",
        ours[0] / rate,
        ours[1] / rate
    );
}

/// Writes a model with the vocabulary of another one, if it is not there.
fn make_model(like: &Path, layers: u64, experts: u64) -> PathBuf {
    let example = Model::open(like).unwrap();
    let vocab = example.metadata().get_array_len("tokenizer.ggml.tokens").unwrap();
    let mut metadata = example.metadata().clone();
    let arch = if experts > 0 { "qwen3moe" } else { "qwen3" };
    metadata
        .set("general.architecture", &Metadatum::String(arch.into()))
        .unwrap();
    for (key, value) in [
        ("context_length", 4096),
        ("embedding_length", EMBD),
        ("block_count", layers),
        ("feed_forward_length", FF),
        ("attention.head_count", Q / HEAD),
        ("attention.head_count_kv", KV / HEAD),
        ("attention.key_length", HEAD),
        ("attention.value_length", HEAD),
        ("vocab_size", vocab),
        ("expert_count", experts),
        ("expert_used_count", experts.min(8)),
        ("expert_feed_forward_length", EXPERT_FF),
    ] {
        if experts > 0 || !key.starts_with("expert") {
            metadata
                .set(&format!("{arch}.{key}"), &Metadatum::U32(value as u32))
                .unwrap();
        }
    }
    for (key, value) in [("attention.layer_norm_rms_epsilon", 1e-6), ("rope.freq_base", 10_000.0)] {
        metadata.set(&format!("{arch}.{key}"), &Metadatum::F32(value)).unwrap();
    }
    let mut tensors = made_up::Tensors::default();
    tensors.matrix("token_embd", &[EMBD, vocab]);
    tensors.norm("output_norm", EMBD);
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        tensors.norm(&name("attn_norm"), EMBD);
        tensors.matrix(&name("attn_q"), &[EMBD, Q]);
        tensors.matrix(&name("attn_k"), &[EMBD, KV]);
        tensors.matrix(&name("attn_v"), &[EMBD, KV]);
        tensors.matrix(&name("attn_output"), &[Q, EMBD]);
        tensors.norm(&name("attn_q_norm"), HEAD);
        tensors.norm(&name("attn_k_norm"), HEAD);
        tensors.norm(&name("ffn_norm"), EMBD);
        if experts > 0 {
            tensors.matrix(&name("ffn_gate_inp"), &[EMBD, experts]);
            tensors.matrix(&name("ffn_gate_exps"), &[EMBD, EXPERT_FF, experts]);
            tensors.matrix(&name("ffn_up_exps"), &[EMBD, EXPERT_FF, experts]);
            tensors.matrix(&name("ffn_down_exps"), &[EXPERT_FF, EMBD, experts]);
        } else {
            tensors.matrix(&name("ffn_gate"), &[EMBD, FF]);
            tensors.matrix(&name("ffn_up"), &[EMBD, FF]);
            tensors.matrix(&name("ffn_down"), &[FF, EMBD]);
        }
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("probes-{layers}-{experts}.gguf"));
    tensors.write(&path, &metadata);
    path
}
