//! `forge build` beside `llama-quantize`: the same large model to the same types, in turns, with time and peak memory.
//!
//!     FORGE_PEER_BIN=$(sh tests/peers/build-llama-cpp.sh) cargo bench --bench quantize -- [--mib 4096] [--rounds 3]
//!
//! The model is made up (a Llama of large matrices with numbers that are roughly normal, all F16) and is kept in
//! Cargo's folder for such things. Every round builds with a fresh store, so forge also hashes the source twice over (the
//! file and each tensor), stores each tensor, syncs, and writes the file with two hashes; `llama-quantize` only quantizes.
//! Both find the source in the page cache. The first round also compares the two files tensor by tensor.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::exit
)]

mod made_up;

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::gguf::Value;
use nix::sys::resource::UsageWho;
use nix::sys::resource::getrusage;

const EMBD: u64 = 4096;
const FF: u64 = 14_336;
const KV: u64 = 1024;
const VOCAB: u64 = 32_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "measure") {
        measure(&arguments[1..]);
        return;
    }
    let number = |name: &str, otherwise: u64| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| arguments[at + 1].parse().unwrap())
    };
    let Some(peer) = std::env::var_os("FORGE_PEER_BIN").map(PathBuf::from) else {
        println!("SKIPPED: FORGE_PEER_BIN names no folder of llama.cpp's tools (tests/peers/build-llama-cpp.sh)");
        return;
    };
    let (mib, rounds) = (number("--mib", 4096), number("--rounds", 3));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-quantize");
    fs::create_dir_all(&folder).unwrap();
    let model = folder.join(format!("model-{mib}.gguf"));
    make_model(&model, mib << 20);
    let size = fs::metadata(&model).unwrap().len();
    let threads = std::thread::available_parallelism().unwrap().to_string();
    println!("model of {:.2} GiB to Q4_K, {threads} threads", gib(size));

    let mut ratios = Vec::new();
    let mut peaks = Vec::new();
    for round in 0..rounds {
        // Whoever comes second may find a warmer machine: take turns.
        let mut run = [None, None];
        let (theirs, ours) = (folder.join("peer.gguf"), folder.join("out"));
        for turn in 0..2 {
            let which = usize::from((round + turn) % 2 == 1);
            warm(&model);
            run[which] = Some(if which == 0 {
                build(&folder, &model)
            } else {
                let arguments = ["--pure".as_ref(), model.as_os_str(), theirs.as_os_str()];
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.arg("measure").arg(peer.join("llama-quantize")).args(arguments);
                Usage::of(command.args(["Q4_K_M", &threads]))
            });
        }
        let [forge, peer] = run.map(Option::unwrap);
        if round == 0 {
            compare(&the_gguf_in(&ours), &theirs);
        }
        fs::remove_file(&theirs).unwrap();
        fs::remove_dir_all(&ours).unwrap();
        let ratio = forge.wall / peer.wall;
        for (name, usage) in [("forge build", &forge), ("llama-quantize", &peer)] {
            println!(
                "{name:>15}: {:6.1} s, of processors {:6.1} s and {:5.1} s of the system, at most {:5.0} MiB",
                usage.wall, usage.user, usage.system, usage.mib
            );
        }
        println!("{:>15}  {ratio:.3}", "ratio");
        ratios.push(ratio);
        peaks.push(forge.mib);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "median ratio {:.3} (target 1.1), forge at most {:.0} MiB (target 1024)",
        ratios[ratios.len() / 2],
        peaks.iter().fold(0.0_f64, |most, mib| most.max(*mib))
    );
}

/// Builds with a fresh store.
fn build(folder: &Path, model: &Path) -> Usage {
    let recipe = format!(
        "schema = 1\nname = \"bench\"\n[source.model]\npath = \"{}\"\n[policy.q4]\nmethod = \"mix\"\nmix = \"Q4_K_M\"\n\
         pure = true\n[promote.q4]\npolicy = \"q4\"\n",
        model.file_name().unwrap().to_str().unwrap()
    );
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
    let store = folder.join("store");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("measure").arg(env!("CARGO_BIN_EXE_forge"));
    command
        .args(["build", "--quiet", "-C"])
        .arg(folder)
        .arg("--cache-dir")
        .arg(&store);
    let usage = Usage::of(&mut command);
    fs::remove_dir_all(store).unwrap();
    usage
}

struct Usage {
    wall: f64,
    user: f64,
    system: f64,
    mib: f64,
}

impl Usage {
    fn of(command: &mut Command) -> Self {
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers: Vec<f64> = text.split_whitespace().map(|number| number.parse().unwrap()).collect();
        let [wall, user, system, mib] = numbers[..] else {
            panic!("{text}")
        };
        Self {
            wall,
            user,
            system,
            mib,
        }
    }
}

/// Runs one program and prints what it used. A process of its own, because the system keeps only the sum and the peak of
/// all children.
fn measure(command: &[String]) {
    let started = Instant::now();
    let output = Command::new(&command[0]).args(&command[1..]).output().unwrap();
    let wall = started.elapsed().as_secs_f64();
    if !output.status.success() {
        io::stderr()
            .write_all(&[output.stdout, output.stderr].concat())
            .unwrap();
        std::process::exit(1);
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let unit = if cfg!(target_os = "macos") { 1.0 } else { 1024.0 };
    let mib = usage.max_rss() as f64 * unit / f64::from(1 << 20);
    println!(
        "{wall} {} {} {mib}",
        seconds(usage.user_time()),
        seconds(usage.system_time())
    );
}

/// Leaves the disk without work and the model in the page cache.
fn warm(model: &Path) {
    assert!(Command::new("sync").status().unwrap().success());
    io::copy(&mut fs::File::open(model).unwrap(), &mut io::sink()).unwrap();
}

/// Asserts that two files hold the same tensors.
fn compare(ours: &Path, theirs: &Path) {
    let (ours, theirs) = (Model::open(ours).unwrap(), Model::open(theirs).unwrap());
    assert_eq!(ours.tensors().len(), theirs.tensors().len());
    let mut buffers = [vec![0; 1 << 22], vec![0; 1 << 22]];
    for tensor in ours.tensors() {
        let other = theirs.tensor(&tensor.info.name).unwrap();
        assert_eq!(
            (&tensor.info.dims, tensor.info.ty, tensor.info.len),
            (&other.info.dims, other.info.ty, other.info.len)
        );
        let [a, b] = &mut buffers;
        let mut at = 0;
        while at < tensor.info.len {
            let count = (tensor.info.len - at).min(a.len() as u64) as usize;
            ours.read_tensor_at(tensor, at, &mut a[..count]).unwrap();
            theirs.read_tensor_at(other, at, &mut b[..count]).unwrap();
            assert!(
                a[..count] == b[..count],
                "{} differs from llama-quantize's",
                tensor.info.name
            );
            at += count as u64;
        }
    }
    println!("{} tensors are the same in both files", ours.tensors().len());
}

fn the_gguf_in(folder: &Path) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "gguf") {
                return path;
            }
        }
    }
    panic!("no candidate was built");
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Writes a model of about `size` bytes, if it is not there.
fn make_model(path: &Path, size: u64) {
    let layer = 2 * EMBD * EMBD + 2 * EMBD * KV + 3 * EMBD * FF;
    let layers = ((size / 2).saturating_sub(2 * EMBD * VOCAB) / layer).max(1);
    // The vocabulary takes what the layers leave.
    let vocab = ((size / 2).saturating_sub(layers * layer) / (2 * EMBD)).max(64);
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value: Value| metadata.set(key, &value).unwrap();
    set("general.architecture", Value::String("llama".into()));
    set("general.file_type", Value::U32(1));
    for (key, value) in [
        ("context_length", 4096),
        ("embedding_length", EMBD),
        ("block_count", layers),
        ("feed_forward_length", FF),
        ("attention.head_count", 32),
        ("attention.head_count_kv", 8),
        ("vocab_size", vocab),
    ] {
        set(&format!("llama.{key}"), Value::U32(value as u32));
    }
    set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    let mut tensors = made_up::Tensors::default();
    tensors.matrix("token_embd", &[EMBD, vocab]);
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        tensors.norm(&name("attn_norm"), EMBD);
        tensors.matrix(&name("attn_q"), &[EMBD, EMBD]);
        tensors.matrix(&name("attn_k"), &[EMBD, KV]);
        tensors.matrix(&name("attn_v"), &[EMBD, KV]);
        tensors.matrix(&name("attn_output"), &[EMBD, EMBD]);
        tensors.norm(&name("ffn_norm"), EMBD);
        tensors.matrix(&name("ffn_gate"), &[EMBD, FF]);
        tensors.matrix(&name("ffn_up"), &[EMBD, FF]);
        tensors.matrix(&name("ffn_down"), &[FF, EMBD]);
    }
    tensors.norm("output_norm", EMBD);
    tensors.matrix("output", &[EMBD, vocab]);
    tensors.write(path, &metadata);
}
