//! Models whose metadata are not what they should be: a build ends with a clear failure or a right result, whatever llama.cpp
//! does with them, and what does not need the model is built.

use std::time::Duration;
use std::time::Instant;

use forge::gguf::Value;
use serde_json::Value as Json;

use crate::one_layer_project::Gguf;
use crate::one_layer_project::project;
use crate::support::Forge;

/// Files that `make test` tries. `FORGE_TEST_MUTATIONS` says how many else; CI tries 300.
const FILES: u64 = 40;

/// More memory than any process needs for these models, in bytes. A wrong count in the metadata would need more, if llama.cpp used it unchecked.
const MEMORY: i64 = 2 << 30;

/// Everything that a model goes through, and a candidate of another model.
const RECIPE: &str = r#"schema = 1
name = "mutated"

[source.model]
path = "model.gguf"

[source.good]
path = "good.gguf"

[corpus.calibration]
files = ["prose.txt"]

[imatrix.general]
model = "model"
corpus = "calibration"
chunks = 2
context = 32

[policy.mix]
model = "model"
imatrix = "general"
method = "mix"
mix = "Q4_K_M"

[policy.plain]
model = "model"
method = "mix"
mix = "Q8_0"

[policy.good]
model = "good"
method = "mix"
mix = "Q8_0"

[promote.mix]
policy = "mix"

[promote.plain]
policy = "plain"

[promote.good]
policy = "good"

[eval.quality]
reference = "model"
corpus = "calibration"
allow_overlap = true
candidates = ["mix", "plain"]
chunks = 2
context = 32
"#;

/// A small generator of numbers (SplitMix64, public domain algorithm by Sebastiano Vigna): the same seed gives the same files.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// Returns a value of any type, mostly one at the edge of what the type holds.
fn value(numbers: &mut Numbers) -> Value {
    let integers = [
        0,
        1,
        2,
        3,
        7,
        31,
        255,
        4096,
        1 << 20,
        u64::from(u32::MAX),
        1 << 40,
        u64::MAX,
    ];
    let floats = [0.0, -1.0, 1e-30, 1e30, f32::NAN, f32::INFINITY, 0.5];
    let integer = numbers.pick(&integers);
    match numbers.below(9) {
        0 => Value::U32(integer as u32),
        1 => Value::I32(-(integer as i32 & 0x7fff)),
        2 => Value::U64(integer),
        3 => Value::I64(-(integer.cast_signed() & 0x7fff_ffff)),
        4 => Value::F32(numbers.pick(&floats)),
        5 => Value::Bool(integer.is_multiple_of(2)),
        6 => Value::String(vec![b'x'; numbers.below(300)]),
        7 => Value::String(
            numbers
                .pick(&[&b"gpt2"[..], b"llama", b"bert", b"none", b"qwen3moe", b"\xff\xfe"])
                .to_vec(),
        ),
        _ => Value::U8(integer as u8),
    }
}

/// Returns a small model with some of its metadata changed: values and types through the writer, or lengths and types byte by
/// byte in what was written.
fn mutated(seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut model = Gguf::small();
    let keys: Vec<String> = model.metadata.iter().map(|entry| entry.key().to_owned()).collect();
    // The writer itself refuses a wrong alignment; byte changes reach it below.
    let keys: Vec<String> = keys.into_iter().filter(|key| key != "general.alignment").collect();
    // What decides on how the model computes and on its vocabulary is changed more often than its name.
    let deep: Vec<String> = keys
        .iter()
        .filter(|key| !key.starts_with("general."))
        .cloned()
        .collect();
    if seed % 3 < 2 {
        for _ in 0..=numbers.below(2) {
            let key = if numbers.below(4) > 0 {
                numbers.pick(&deep)
            } else {
                numbers.pick(&keys)
            };
            if numbers.below(6) == 0 {
                model.metadata.remove(&key);
            } else {
                model.set(&key, value(&mut numbers));
            }
        }
        return model.bytes();
    }
    let mut bytes = model.bytes();
    // The metadata end far before the tensors' names; 64 KiB hold all keys but for the vocabulary's words.
    let end = bytes.len().min(1 << 16);
    for _ in 0..=numbers.below(3) {
        let at = 24 + numbers.below(end - 24);
        bytes[at] = numbers.pick(&[0, 1, 4, 8, 9, 0x7f, 0x80, 0xff, bytes[at] ^ 1]);
    }
    bytes
}

/// What came of a file.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Verdict {
    Built,
    Refused,
    Failed,
}

fn try_one(seed: u64) -> Verdict {
    let forge: Forge = project();
    forge.write("model.gguf", mutated(seed));
    forge.write("good.gguf", Gguf::small().bytes());
    forge.recipe(RECIPE);
    let started = Instant::now();
    let plan = forge.run(&["plan"]);
    let shown = |text: &str| {
        assert!(
            !text.contains("panicked") && !text.contains("backtrace"),
            "{seed}: {text}"
        );
    };
    shown(&plan.stderr);
    assert!(
        matches!(plan.status, Some(0 | 1)),
        "{seed}: {:?} {}",
        plan.status,
        plan.stderr
    );
    let (run, events) = forge.build_events(&["-k", "-j", "1"]);
    shown(&run.stderr);
    shown(&run.stdout);
    assert!(
        started.elapsed() < Duration::from_mins(2),
        "{seed}: {:?}",
        started.elapsed()
    );
    let finished: Vec<&Json> = events
        .iter()
        .filter(|event| event["reason"] == "step-finished")
        .collect();
    match run.status {
        Some(0) => {
            assert_eq!(
                plan.status,
                Some(0),
                "{seed}: refused without a reason: {}",
                plan.stderr
            );
            Verdict::Built
        }
        Some(1) => {
            let failed: Vec<&&Json> = finished.iter().filter(|event| event["outcome"] == "failed").collect();
            assert!(!failed.is_empty(), "{seed}: {}", run.stdout);
            for step in failed {
                assert!(!step["summary"].as_str().unwrap().is_empty(), "{seed}: {step}");
            }
            assert!(
                forge.path("out/mutated/good.gguf").exists(),
                "{seed}: the rest was not built"
            );
            // With `-k` a build begins all the same.
            if plan.status == Some(1) {
                Verdict::Refused
            } else {
                Verdict::Failed
            }
        }
        other => panic!("{seed}: exit {other:?}\n{}\n{}", run.stdout, run.stderr),
    }
}

#[test]
fn mutated_metadata_fail_a_step_or_give_correct_results() {
    let number = |name: &str, default: u64| {
        let found = std::env::var(name).ok();
        found.map_or(default, |text| text.parse().unwrap())
    };
    let (files, first) = (number("FORGE_TEST_MUTATIONS", FILES), number("FORGE_TEST_SEED", 1));
    let mut counts = [0; 3];
    let seeds: Vec<u64> = (first..first + files).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&seed) = seeds.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let verdict = try_one(seed);
                    found.lock().unwrap().push(verdict);
                }
            });
        }
    });
    for verdict in found.into_inner().unwrap() {
        counts[verdict as usize] += 1;
    }
    // Builds and their worker processes: the largest of all that have ended.
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).unwrap();
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    let peak = usage.max_rss() * unit;
    assert!(peak < MEMORY, "a process had {peak} bytes in memory");
    let [built, refused, failed] = counts;
    eprintln!(
        "{files} files from seed {first}: {built} built, {refused} refused before the first step, {failed} failed in a step only"
    );
    assert_eq!(built + refused + failed, files);
    // The mutator must reach all of these, or it proves little.
    assert!(built > 0 && refused > 0 && failed > 0, "{counts:?}");
}
