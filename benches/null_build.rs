//! How long `forge build` takes when there is nothing to do: the example, and a recipe with a thousand candidates.
//!
//!     cargo bench --bench null_build -- [--runs 100] [--candidates 1000]
//!
//! Each recipe is built once, unmeasured. Then every run is timed from its start to its end.
#![allow(missing_docs, clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use forge::gguf::DEFAULT_ALIGNMENT;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::TensorSpec;
use forge::gguf::Value;
use forge::tensor_type::TensorType;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |name: &str, otherwise: usize| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or(otherwise, |at| arguments[at + 1].parse().unwrap())
    };
    let (runs, candidates) = (number("--runs", 100), number("--candidates", 1000));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();

    let example = folder.path().join("example");
    fs::create_dir(&example).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), example.join(entry.file_name())).unwrap();
        }
    }
    time("examples/quickstart/recipe.toml", &example, runs);

    let sweep = folder.path().join("sweep");
    fs::create_dir(&sweep).unwrap();
    write_sweep(&sweep, candidates);
    time(
        &format!("a recipe with {candidates} candidates"),
        &sweep,
        runs.div_ceil(5),
    );
}

fn forge(folder: &Path, arguments: &[&str]) -> (String, f64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
    command
        .arg("build")
        .args(arguments)
        .current_dir(folder)
        .env("FORGE_CACHE_DIR", folder.join("store"));
    let started = Instant::now();
    let output = command.output().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), seconds)
}

fn time(what: &str, folder: &Path, runs: usize) {
    let (_, first) = forge(folder, &["--quiet"]);
    // A file that has just been written may be read once more; after that nothing may run.
    forge(folder, &["--quiet"]);
    let (events, _) = forge(folder, &["--message-format", "json"]);
    assert!(
        events.contains("\"ran\":0") && !events.contains("\"outcome\":\"ran\""),
        "{events}"
    );
    let mut times: Vec<f64> = (0..runs).map(|_| 1e3 * forge(folder, &[]).1).collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{what}: first build {first:.1} s; {runs} builds with nothing to do: median {:.1} ms, least {:.1}, most {:.1}",
        times[runs / 2],
        times[0],
        times[runs - 1]
    );
}

/// Writes a very small model and a recipe that makes so many candidates of it.
fn write_sweep(folder: &Path, candidates: usize) {
    let mut metadata = Metadata::new();
    let mut set = |key: &str, value: Value| metadata.set(key, &value).unwrap();
    set("general.architecture", Value::String("llama".into()));
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", 256),
        ("block_count", 1),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
    ] {
        set(&format!("llama.{key}"), Value::U32(value));
    }
    let names = [
        "token_embd",
        "blk.0.attn_q",
        "blk.0.attn_v",
        "blk.0.ffn_down",
        "blk.0.ffn_up",
        "output",
    ];
    let specs: Vec<TensorSpec> = names
        .iter()
        .map(|name| TensorSpec {
            name: format!("{name}.weight"),
            ty: TensorType::F32,
            dims: vec![256, 4],
        })
        .collect();
    let layout = Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT).unwrap();
    let mut bytes = Vec::new();
    let mut fill = |index: usize, out: &mut dyn Write| -> io::Result<()> {
        (0..1024).try_for_each(|at| out.write_all(&((at * 31 + index * 7) as f32 % 97.0 - 48.0).to_le_bytes()))
    };
    layout.write(&mut bytes, &mut fill).unwrap();
    fs::write(folder.join("small.gguf"), bytes).unwrap();

    let types = [
        "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    ];
    let mixes = [
        "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1",
    ];
    let third = candidates.div_ceil(100).min(types.len());
    let recipe = format!(
        "schema = 1\nname = \"sweep\"\n[source.model]\npath = \"small.gguf\"\n[policy.mix]\nmethod = \"mix\"\nmix = {:?}\n\
         output_type = {types:?}\nembedding_type = {types:?}\n[promote.small]\npolicy = \"mix\"\n",
        &mixes[..third]
    );
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
}
