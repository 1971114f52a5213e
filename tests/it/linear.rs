//! Inputs with very many parts: time grows with their number, not with its square, a signal is acted on, and messages stay few.
//!
//! Times are compared within one run: eight times as many parts would take 64 times as long if time were quadratic.

use std::fmt::Write as _;
use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::TensorSpec;
use forge::gguf::Value;
use forge::tensor_type::TensorType;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::support::Forge;
use crate::support::Run;

const RECIPE: &str = "schema = 1\nname = \"many\"\n[source.m]\npath = \"m.gguf\"\n[policy.p]\nmethod = \"mix\"\n\
                      mix = \"Q4_K_M\"\n[promote.p]\npolicy = \"p\"\n";

/// Asserts that `run`, given eight times as much, takes far less than 64 times as long. What takes less than a tenth of a
/// second counts as a tenth: starting a process takes a part of it.
fn assert_linear(what: &str, few: usize, mut run: impl FnMut(usize)) {
    let mut time = |count: usize| {
        let started = Instant::now();
        run(count);
        started.elapsed().max(Duration::from_millis(100)).as_secs_f64()
    };
    let (small, large) = (time(few), time(few * 8));
    assert!(
        large < small * 32.0,
        "{what}: {few} take {small:.2} s, {} take {large:.2} s",
        few * 8
    );
}

/// Writes a model of `layers` layers with `each` small tensors, all alike, and further metadata keys.
fn write_model(path: &Path, layers: usize, each: usize, keys: usize) {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", &"llama".into()).unwrap();
    for (key, value) in [
        ("block_count", layers as u32),
        ("context_length", 128),
        ("embedding_length", 256),
        ("feed_forward_length", 256),
        ("attention.head_count", 4),
    ] {
        metadata.set(&format!("llama.{key}"), &Value::U32(value)).unwrap();
    }
    for key in 0..keys {
        metadata
            .set(&format!("user.key.{key}"), &Value::U32(key as u32))
            .unwrap();
    }
    let spec = |name: String| TensorSpec {
        name,
        ty: TensorType::F16,
        dims: vec![256, 2],
    };
    let inner = (0..layers).flat_map(|layer| (0..each).map(move |at| format!("blk.{layer}.extra{at}.weight")));
    let names = ["token_embd.weight", "output.weight"].map(str::to_owned);
    let specs: Vec<TensorSpec> = names.into_iter().chain(inner).map(spec).collect();
    let layout = Layout::new(&metadata, &specs, 32).unwrap();
    let mut bytes = Vec::new();
    layout
        .write(&mut bytes, &mut |_, out| out.write_all(&[0x11; 1024]))
        .unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn unknown_keys(count: usize) -> String {
    let mut text = RECIPE.to_owned();
    for key in 0..count {
        writeln!(text, "unknown_{key} = {key}").unwrap();
    }
    text
}

#[test]
fn the_first_of_very_many_errors_are_shown_and_the_rest_is_counted() {
    let forge = Forge::new();
    forge.recipe(&unknown_keys(16_000));
    for verb in ["check", "plan"] {
        let run = forge.run(&[verb, "recipe.toml"]).status(1);
        assert!(run.stderr.contains("`unknown_0`"), "{}", run.stderr);
        assert_eq!(
            run.stderr.matches("error[recipe::unknown-key]").count(),
            20,
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("and 15,980 more errors\n"), "{}", run.stderr);
        assert!(run.stderr.contains("16,000 errors in "), "{}", run.stderr);
    }
    let run = forge
        .run(&["check", "recipe.toml", "--message-format", "json"])
        .status(1);
    let lines = [run.stdout.as_str(), run.stderr.as_str()].concat();
    let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(lines.lines().count(), 21);
    assert_eq!(
        (last["code"].as_str(), last["level"].as_str()),
        (Some("recipe::more"), Some("error"))
    );
}

#[test]
fn of_very_many_warnings_the_first_are_shown() {
    let forge = Forge::new();
    let mut text = RECIPE.to_owned();
    for policy in 0..100 {
        writeln!(text, "[policy.unused{policy}]\nmethod = \"mix\"\nmix = \"Q8_0\"").unwrap();
    }
    forge.recipe(&text);
    let run = forge.run(&["check", "--no-files", "recipe.toml"]).success();
    assert_eq!(
        run.stderr.matches("warning[recipe::unused]").count(),
        20,
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("and 80 more warnings\n"), "{}", run.stderr);
}

#[test]
fn errors_of_a_recipe_take_linear_time() {
    let forge = Forge::new();
    assert_linear("unknown keys in a section", 8_000, |count| {
        forge.recipe(&unknown_keys(count));
        let _ = forge.run(&["check", "recipe.toml"]).status(1);
    });
    assert_linear("unknown keys at the top", 8_000, |count| {
        let mut text = "schema = 1\nname = \"many\"\n".to_owned();
        for key in 0..count {
            writeln!(text, "unknown_{key} = {key}").unwrap();
        }
        forge.recipe(&text);
        let _ = forge.run(&["check", "recipe.toml"]).status(1);
    });
    assert_linear("references to nothing", 500, |count| {
        let mut text = RECIPE.to_owned();
        for at in 0..count {
            writeln!(text, "[policy.a{at}]\nmethod = \"mix\"\nmix = \"Q8_0\"").unwrap();
            writeln!(text, "[promote.b{at}]\npolicy = \"nothing-{at}\"").unwrap();
        }
        forge.recipe(&text);
        let run = forge.run(&["check", "recipe.toml"]).status(1);
        assert!(run.stderr.contains(" more errors\n"), "{}", run.stderr);
    });
}

#[test]
fn metadata_keys_take_linear_time() {
    let forge = Forge::new();
    forge.recipe(RECIPE);
    assert_linear("metadata keys", 12_500, |count| {
        write_model(&forge.path("m.gguf"), 1, 1, count);
        let _ = forge.run(&["build"]).success();
    });
    let manifest = "out/many/p.gguf.manifest.json";
    let _ = forge.run(&["verify", manifest]).success();
}

#[test]
fn tensors_take_linear_time() {
    let forge = Forge::new();
    forge.recipe(RECIPE);
    let out = "out/many/p.gguf";
    assert_linear("tensors that are built", 500, |count| {
        write_model(&forge.path("m.gguf"), 250, count / 250, 0);
        let _ = forge.run(&["build"]).success();
        let _ = forge.run(&["verify", &format!("{out}.manifest.json")]).success();
    });
    assert_linear("tensors that are shown", 2_000, |count| {
        write_model(&forge.path("m.gguf"), 500, count / 500, 0);
        let _ = forge.run(&["policy", "show", "m.gguf", "--by", "layer"]).success();
        let _ = forge.run(&["policy", "show", "m.gguf"]).success();
        let _ = forge.run(&["policy", "groups", "m.gguf"]).success();
    });
}

#[test]
fn a_signal_stops_a_build_of_a_model_with_very_many_parts() {
    let forge = Forge::new();
    forge.recipe(RECIPE);
    write_model(&forge.path("m.gguf"), 500, 20, 100_000);
    // At the start, where the header is read, and later, while tensors are quantized.
    for lines in [1, 40] {
        let mut command = forge.command(&["build", "--message-format", "json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut printed = String::new();
        for _ in 0..lines {
            out.read_line(&mut printed).unwrap();
        }
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
        let started = Instant::now();
        // The rest of the output must be read, or the child blocks on the full pipe.
        std::io::copy(&mut out, &mut std::io::sink()).unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        let waited = started.elapsed();
        assert!(
            matches!(run.status, Some(130 | 143)),
            "after {lines} lines: {:?} {}",
            run.status,
            run.stderr
        );
        assert!(waited < Duration::from_secs(10), "after {lines} lines: {waited:?}");
    }
}
