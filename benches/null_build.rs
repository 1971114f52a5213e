//! How long `forge build` takes when there is nothing to do: the example, and a recipe with a thousand steps, in turns with
//! ninja on a thousand rules that each copy a file.
//!
//!     cargo bench --bench null_build -- [--runs 100] [--steps 1000]
//!
//! `FORGE_INCUMBENTS_BIN` names the folder that has ninja (`tests/peers/install-incumbents.sh`). Each recipe is built
//! first, unmeasured. Then every run is timed from its start to its end.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used
)]

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
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
    let (runs, steps) = (number("--runs", 100), number("--steps", 1000));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();

    let example = folder.path().join("example");
    fs::create_dir(&example).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), example.join(entry.file_name())).unwrap();
        }
    }
    prepare("examples/quickstart/recipe.toml", &example);
    let times = in_turns(runs, &mut [&mut || forge(&example, &[]).1]);
    println!("    {}", words(&times[0]));

    // A policy and a candidate each.
    let sweep = folder.path().join("sweep");
    fs::create_dir(&sweep).unwrap();
    write_sweep(&sweep, steps / 2);
    prepare(&format!("a recipe with {steps} steps"), &sweep);
    let mut ours = || forge(&sweep, &[]).1;
    let Some(bin) = std::env::var_os("FORGE_INCUMBENTS_BIN") else {
        eprintln!("SKIPPED: FORGE_INCUMBENTS_BIN is not set, so forge is not compared with ninja");
        println!("    {}", words(&in_turns(runs, &mut [&mut ours])[0]));
        return;
    };
    let rules = folder.path().join("rules");
    write_rules(&rules, steps);
    let ninja = ninja_program(Path::new(&bin));
    let mut theirs = || run(Command::new(&ninja).current_dir(&rules)).1;
    theirs();
    let (said, _) = run(Command::new(&ninja).current_dir(&rules));
    assert!(said.contains("no work to do"), "{said}");
    let times = in_turns(runs, &mut [&mut ours, &mut theirs]);
    println!("    forge: {}\n    ninja: {}", words(&times[0]), words(&times[1]));
    let ratio = |at: fn(&[f64]) -> f64| at(&times[0]) / at(&times[1]);
    println!(
        "    ratio of medians {:.2}, of the least {:.2} (target: at most 1)",
        ratio(|times| times[times.len() / 2]),
        ratio(|times| times[0])
    );
}

/// Returns ninja itself, not the script that pip puts before it.
fn ninja_program(bin: &Path) -> PathBuf {
    let code = "import ninja, os; print(os.path.join(ninja.BIN_DIR, 'ninja'))";
    let (said, _) = run(Command::new(bin.join("python")).args(["-c", code]));
    PathBuf::from(said.trim())
}

fn run(command: &mut Command) -> (String, f64) {
    let started = Instant::now();
    let output = command.output().unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (String::from_utf8(output.stdout).unwrap(), seconds)
}

fn forge(folder: &Path, arguments: &[&str]) -> (String, f64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
    command.arg("build").args(arguments).current_dir(folder);
    run(command.env("FORGE_CACHE_DIR", folder.join("store")))
}

fn prepare(what: &str, folder: &Path) {
    let (_, first) = forge(folder, &["--quiet"]);
    // A file that has just been written may be read once more; after that nothing may run.
    let path = folder.join(".clock");
    let file = fs::File::create(&path).unwrap();
    forge::fs::settle(&file, &path).unwrap();
    forge(folder, &["--quiet"]);
    let (events, _) = forge(folder, &["--message-format", "json"]);
    assert!(
        events.contains("\"ran\":0") && !events.contains("\"outcome\":\"ran\""),
        "{events}"
    );
    println!("{what}: first build {first:.1} s; builds with nothing to do:");
}

/// Runs each in turn, so often; returns the sorted times of each.
fn in_turns(runs: usize, work: &mut [&mut dyn FnMut() -> f64]) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::new(); work.len()];
    for _ in 0..runs {
        for (work, times) in work.iter_mut().zip(&mut times) {
            times.push(1e3 * work());
        }
    }
    for times in &mut times {
        times.sort_by(f64::total_cmp);
    }
    times
}

fn words(times: &[f64]) -> String {
    format!(
        "{} runs, median {:.1} ms, least {:.1}, most {:.1}",
        times.len(),
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    )
}

/// Writes files and a rule for each that copies it.
fn write_rules(folder: &Path, rules: usize) {
    fs::create_dir_all(folder.join("in")).unwrap();
    let mut text = "rule copy\n  command = cp $in $out\n".to_owned();
    for rule in 0..rules {
        fs::write(folder.join(format!("in/{rule}")), rule.to_string()).unwrap();
        writeln!(text, "build out/{rule}: copy in/{rule}").unwrap();
    }
    fs::write(folder.join("build.ninja"), text).unwrap();
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
