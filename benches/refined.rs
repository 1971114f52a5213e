//! What refined rounding is worth: for each type that is quantized with an imatrix, the divergence of a file whose linear tensors and
//! embedding all have this type, plain and refined, at equal bytes, on text that neither saw.
//!
//!     cargo bench --bench refined -- [--model FILE] [--types Q4_K,Q6_K] [--floors Q6_K] [--folder DIR] [--threads N]
//!     cargo bench --bench refined -- --texts Q4_K [--model FILE] [--folder DIR] [--threads N]
//!
//! The model is the example's unless another is named; the texts are the example's. All chunks of them are used.
//!
//! The floor is what the runtime adds by rounding activations to 8 bits, which no rounding of weights can remove. It is measured for types of
//! more than 5 bits, where it is a large part: the weights of the plain file are written as F32, and the predictions of this file are compared
//! with those of the plain file. The numbers of the weights are the same, so only the rounding of the activations differs. "Less the floor" is
//! (refined - floor) / (plain - floor).
//!
//! With `--texts` the second moments come from fewer chunks, and from prose or code alone; both files use the imatrix of the same chunks. There
//! the divergence is also measured on the first chunks of both calibration texts, which shows how far the codes fit a text instead of the model.
//!
//! Exit status 1: a target is missed (0.65 for K-quants and IQ4, 1.0 for the others).
#![allow(missing_docs, clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

use forge::rounding::why_not_refined;
use forge::syntax::names::TYPES;
use forge::tensor_type::TensorType;

/// Types whose floor is measured.
const FLOORS: &str = "Q6_K,Q5_K,Q5_1,Q5_0";
/// Chunks of each calibration text that `--texts` measures on.
const SEEN: u32 = 32;

struct Bench {
    folder: PathBuf,
    threads: Option<String>,
    model: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map(|at| arguments[at + 1].clone())
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let model = option("--model").map_or_else(|| example.join("tiny.gguf"), PathBuf::from);
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bench = Bench {
        folder: option("--folder").map_or_else(|| scratch.path().to_owned(), PathBuf::from),
        threads: option("--threads"),
        model: fs::canonicalize(model).unwrap(),
    };
    fs::create_dir_all(&bench.folder).unwrap();
    if let Some(ty) = option("--texts") {
        bench.texts(&ty);
        return ExitCode::SUCCESS;
    }
    let types = option("--types").map_or_else(
        || {
            let with_imatrix = TYPES.iter().filter(|ty| ty.uses_imatrix());
            let refined = with_imatrix.filter(|ty| why_not_refined(**ty).is_none());
            refined.map(|ty| ty.name().to_owned()).collect()
        },
        |types| types.split(',').map(str::to_owned).collect::<Vec<_>>(),
    );
    let floors = option("--floors").unwrap_or_else(|| FLOORS.to_owned());
    bench.types(&types, &floors)
}

impl Bench {
    fn types(&self, types: &[String], floors: &str) -> ExitCode {
        let mut recipe = start(&self.model) + &moments("all", "calibration", None);
        for ty in types {
            recipe += &policy(
                ty,
                ty,
                "all",
                "rounding = [\"plain\", \"refined\"]\nmoments = \"all\"\n",
            );
        }
        recipe += "[eval.held-out]\ncorpus = \"held-out\"\n";
        let figures = self.build("types", &recipe);
        let mut missed = Vec::new();
        println!(
            "{:>8} {:>10} {:>10} {:>10} {:>8} {:>17} {:>10} {:>15}",
            "type", "bytes", "plain", "refined", "ratio", "95 %", "floor", "less the floor"
        );
        for ty in types {
            let [plain, refined] =
                ["plain", "refined"].map(|way| (format!("{ty}-{way}"), &figures[&format!("{ty}-{way}")]));
            assert_eq!(plain.1.bytes, refined.1.bytes);
            let [low, high] = self.paired("types", &plain.0, &refined.0);
            let floor = floors
                .split(',')
                .any(|floor| floor == ty)
                .then(|| self.floor(&plain.0, ty));
            let (plain, refined) = (plain.1.kld["held-out"], refined.1.kld["held-out"]);
            let ratio = refined / plain;
            let [floor, less] = floor.map_or(["-".to_owned(), "-".to_owned()], |floor| {
                [
                    format!("{floor:.6}"),
                    format!("{:.3}", (refined - floor) / (plain - floor)),
                ]
            });
            println!(
                "{ty:>8} {:>10} {plain:>10.6} {refined:>10.6} {ratio:>8.3} {:>17} {floor:>10} {less:>15}",
                figures[&format!("{ty}-plain")].bytes,
                format!("{:.3} - {:.3}", 1.0 + low / plain, 1.0 + high / plain),
            );
            let target = if ty.ends_with("_K") || ty.starts_with("IQ4") {
                0.65
            } else {
                1.0
            };
            if ratio > target {
                missed.push(format!("{ty} ({ratio:.3}, target {target})"));
            }
        }
        if missed.is_empty() {
            return ExitCode::SUCCESS;
        }
        println!("missed: {}", missed.join("; "));
        ExitCode::FAILURE
    }

    /// Returns the divergence that the rounding of activations makes in a plain file: that between the file and its own weights as F32.
    fn floor(&self, candidate: &str, ty: &str) -> f64 {
        let path = self.folder.join(format!("out-types/{candidate}.gguf"));
        let recipe = start(&path)
            + "[policy.f32]\nmethod = \"manual\"\nrules = [{ match = '.', type = \"F32\" }]\n\
               [promote.f32]\npolicy = \"f32\"\nallow_requantize = true\n\
               [eval.held-out]\ncorpus = \"held-out\"\n";
        let figures = self.build(&format!("floor-{ty}"), &recipe);
        let floor = figures["f32"].kld["held-out"];
        fs::remove_dir_all(self.folder.join(format!("out-floor-{ty}"))).unwrap();
        floor
    }

    /// Fewer chunks, and one kind of text alone.
    fn texts(&self, ty: &str) {
        let mut recipe = start(&self.model);
        let mut sections = Vec::new();
        for (corpus, chunks) in [
            ("calibration", Some(4)),
            ("calibration", Some(16)),
            ("calibration", Some(64)),
            ("calibration", None),
            ("prose", None),
            ("code", None),
        ] {
            let name = format!(
                "{corpus}-{}",
                chunks.map_or_else(|| "all".to_owned(), |chunks| chunks.to_string())
            );
            recipe += &moments(&name, corpus, chunks);
            let refined = format!("rounding = [\"plain\", \"refined\"]\nmoments = \"{name}\"\n");
            recipe += &policy(&name, ty, &name, &refined);
            sections.push(name);
        }
        recipe += "[eval.held-out]\ncorpus = \"held-out\"\n";
        let seen = ["prose", "code"]
            .map(|corpus| format!("[eval.{corpus}]\ncorpus = \"{corpus}\"\nchunks = {SEEN}\nallow_overlap = true\n"));
        recipe += &seen.concat();
        let figures = self.build("texts", &recipe);
        println!("{ty}, refined / plain, on the text of the column ({SEEN} chunks of prose and code)");
        println!("{:>16} {:>10} {:>10} {:>10}", "moments", "held-out", "prose", "code");
        for name in sections {
            let ratio = |text: &str| {
                let [plain, refined] = ["plain", "refined"].map(|way| figures[&format!("{name}-{way}")].kld[text]);
                refined / plain
            };
            let [held_out, prose, code] = ["held-out", "prose", "code"].map(ratio);
            println!("{name:>16} {held_out:>10.3} {prose:>10.3} {code:>10.3}");
        }
    }

    /// Builds a recipe and returns the figures of its candidates.
    fn build(&self, name: &str, recipe: &str) -> BTreeMap<String, Figures> {
        let file = format!("{name}.toml");
        let out = format!("out-{name}");
        fs::write(self.folder.join(&file), recipe).unwrap();
        let mut command = self.forge();
        command.args(["build", &file, "--out", &out]);
        if let Some(threads) = &self.threads {
            command.args(["-j", threads]);
        }
        // Tables go to the output, which is for those of this program.
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let metrics = fs::read(self.folder.join(&out).join("metrics.json")).unwrap();
        let metrics: serde_json::Value = serde_json::from_slice(&metrics).unwrap();
        let mut figures: BTreeMap<String, Figures> = BTreeMap::new();
        for row in metrics["rows"].as_array().unwrap() {
            let figures = figures
                .entry(row["candidate"].as_str().unwrap().to_owned())
                .or_default();
            figures.bytes = row["bytes"].as_u64().unwrap();
            let text = row["eval"].as_str().unwrap().to_owned();
            figures.kld.insert(text, row["kld_mean"].as_f64().unwrap());
        }
        figures
    }

    fn forge(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        command
            .current_dir(&self.folder)
            .env("FORGE_CACHE_DIR", self.folder.join("store"));
        command
    }

    /// Returns the 95 % interval of how much less the second candidate diverges.
    fn paired(&self, name: &str, a: &str, b: &str) -> [f64; 2] {
        let file = |candidate: &str| format!("out-{name}/{candidate}.gguf");
        let output = self
            .forge()
            .args(["diff", "--format", "json", &file(a), &file(b)])
            .output()
            .unwrap();
        let diff: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = diff["parts"].as_array().unwrap().iter();
        let rows = rows.flat_map(|part| part["rows"].as_array().unwrap());
        let row = rows
            .into_iter()
            .find(|row| row["what"].as_str().unwrap().starts_with("mean KLD"))
            .unwrap();
        [0, 1].map(|end| row["paired"]["ci95"][end].as_f64().unwrap())
    }
}

/// A candidate's size, and its divergence on each text.
#[derive(Default)]
struct Figures {
    bytes: u64,
    kld: BTreeMap<String, f64>,
}

/// The beginning of a recipe: a model, and the texts.
fn start(model: &Path) -> String {
    let texts = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let texts = texts.display();
    format!(
        "schema = 1\nname = \"refined\"\n[source.model]\npath = \"{}\"\n\
         [corpus.calibration]\nfiles = [\"{texts}/calibration-*.txt\"]\n\
         [corpus.prose]\nfiles = [\"{texts}/calibration-prose.txt\"]\n\
         [corpus.code]\nfiles = [\"{texts}/calibration-code.txt\"]\n\
         [corpus.held-out]\nfiles = [\"{texts}/held-out.txt\"]\n",
        model.display()
    )
}

fn moments(name: &str, corpus: &str, chunks: Option<u32>) -> String {
    let chunks = chunks.map(|chunks| format!("chunks = {chunks}\n")).unwrap_or_default();
    format!("[moments.{name}]\ncorpus = \"{corpus}\"\n{chunks}[imatrix.{name}]\nmoments = \"{name}\"\n")
}

/// A policy that gives one type to all tensors that can have it, and its candidates.
///
/// Some types cannot be made without importances, which the embedding has none of. There it gets Q2_K, as in llama.cpp's mixes.
fn policy(name: &str, ty: &str, imatrix: &str, more: &str) -> String {
    let needy = ty.parse().is_ok_and(TensorType::needs_imatrix);
    let embedding = if needy {
        "{ match = 'token_embd', type = \"Q2_K\" }, "
    } else {
        ""
    };
    format!(
        "[policy.{name}]\nmethod = \"manual\"\nimatrix = \"{imatrix}\"\nrules = [{embedding}{{ match = '.', type = \"{ty}\" }}]\n{more}\
         [promote.{name}]\npolicy = \"{name}\"\n"
    )
}
