//! What policies are worth: at the bytes of each of llama.cpp's mixes, the divergence of the mix, and those of the choices of a
//! method and of others, on text that none of them saw.
//!
//!     cargo bench --bench policies -- [--method measured] [--model FILE] [--mixes Q2_K,Q4_K_M] [--against ashq1,error] [--chunks 64]
//!         [--screen 8] [--refine 6] [--corrections 1] [--target 0.60] [--folder DIR] [--threads N]
//!
//! Methods are those of recipes, and `refined`: `fisher` with refined codes, under the second moments of all chunks of the calibration
//! texts. `--chunks`, `--screen` and `--refine` are those of `measured`; `fisher` has its defaults.
//!
//! The model is the example's unless another is named; the texts are the example's. With `--folder` the store and the
//! candidates stay there, and a second run goes on where the first one was. Intervals of ratios are those of the paired
//! difference (`forge diff`), over the mix's divergence. Exit status 1: a target is missed.
#![allow(
    missing_docs,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

const MIXES: &str = "Q2_K,IQ2_M,IQ3_XXS,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M,Q6_K";

struct Bench {
    folder: PathBuf,
    threads: Option<String>,
}

struct Figure {
    bytes: u64,
    kld: f64,
    holds: Option<bool>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map(|at| arguments[at + 1].clone())
    };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart");
    let model = option("--model").map_or_else(|| example.join("tiny.gguf"), PathBuf::from);
    let model = fs::canonicalize(model).unwrap();
    let list = |text: String| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mixes = list(option("--mixes").unwrap_or_else(|| MIXES.to_owned()));
    let method = option("--method").unwrap_or_else(|| "measured".to_owned());
    let against = option("--against").map(list).unwrap_or_default();
    let chunks = option("--chunks").unwrap_or_else(|| "64".to_owned());
    let screen = option("--screen").unwrap_or_else(|| "8".to_owned());
    let refine = option("--refine").unwrap_or_else(|| "6".to_owned());
    let corrections = option("--corrections").unwrap_or_else(|| "1".to_owned());
    let usual = if method == "refined" { 0.38 } else { 0.60 };
    let target: f64 = option("--target").map_or(usual, |target| target.parse().unwrap());
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let bench = Bench {
        folder: option("--folder").map_or_else(|| scratch.path().to_owned(), PathBuf::from),
        threads: option("--threads"),
    };
    fs::create_dir_all(&bench.folder).unwrap();

    let quoted = |items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
        items.join(", ")
    };
    let start = format!(
        "schema = 1\nname = \"policies\"\n[source.model]\npath = \"{}\"\n\
         [corpus.calibration]\nfiles = [\"{1}/calibration-*.txt\"]\n[corpus.held-out]\nfiles = [\"{1}/held-out.txt\"]\n\
         [imatrix.general]\ncorpus = \"calibration\"\nchunks = 64\n{3}\
         [policy.mix]\nmethod = \"mix\"\nimatrix = \"general\"\nmix = [{2}]\n[promote.mix]\npolicy = \"mix\"\n",
        model.display(),
        example.display(),
        quoted(&mixes),
        if std::iter::once(&method)
            .chain(&against)
            .any(|method| method == "refined")
        {
            "[moments.general]\ncorpus = \"calibration\"\n"
        } else {
            ""
        }
    );
    bench.build(&start, true);
    // As many chunks as `measured` has.
    let sensitivities = format!("corpus = \"calibration\"\nchunks = {chunks}\nblock = {screen}\n");
    let measured = format!(
        "corpus = \"calibration\"\nchunks = {chunks}\nscreen = {screen}\nblock = {screen}\nrefine = {refine}\n"
    );
    let predicted = format!("corpus = \"calibration\"\ncorrections = {corrections}\n");
    let refined = format!("{predicted}rounding = \"refined\"\nmoments = \"general\"\n");
    let mut sections = Vec::new();
    for mix in &mixes {
        let bytes = fs::metadata(bench.candidate(&format!("mix-{mix}"))).unwrap().len();
        let mut section = |method: &str, more: &str| {
            let name = format!("{method}-{mix}");
            let word = if method == "refined" { "fisher" } else { method };
            let text = format!(
                "[policy.{name}]\nmethod = \"{word}\"\nimatrix = \"general\"\n{more}budget = \"{bytes} B\"\n\
                 [promote.{name}]\npolicy = \"{name}\"\n"
            );
            sections.push((name, text));
        };
        for method in std::iter::once(&method).chain(&against) {
            let more = match method.as_str() {
                "measured" => &measured,
                "fisher" => &predicted,
                "refined" => &refined,
                "error" => &sensitivities,
                // Its own floors are above most of these sizes.
                "ashq1" => "floors = [{ match = \".\", type = \"Q3_K\" }]\n",
                _ => "",
            };
            section(method, more);
        }
    }
    // A policy that cannot keep to a budget makes no candidate, and would leave all others without a table.
    for (name, _) in &sections {
        let _ = fs::remove_file(bench.candidate(name));
    }
    let all: String = sections.iter().map(|(_, text)| text.as_str()).collect();
    bench.build(&format!("{start}{all}"), false);
    sections.retain(|(name, _)| bench.candidate(name).exists());
    let made: String = sections.iter().map(|(_, text)| text.as_str()).collect();
    // All of the text: figures of 32 chunks differ by 2 % and more between choices that are equally good.
    let eval = "[eval.quality]\ncorpus = \"held-out\"\n";
    bench.build(&format!("{start}{made}{eval}"), true);
    let figures = bench.figures();

    print!(
        "{:>10} {:>10} {:>10} {:>10} {:>8} {:>17} {:>9}",
        "mix", "bytes", "KLD", method, "ratio", "95 %", "predicted"
    );
    for method in &against {
        print!(" {method:>10}");
    }
    println!();
    let (mut logarithms, mut missed) = (Vec::new(), Vec::new());
    for mix in &mixes {
        let (theirs, ours) = (&figures[&format!("mix-{mix}")], &figures[&format!("{method}-{mix}")]);
        let ratio = ours.kld / theirs.kld;
        let [low, high] = bench.paired(&format!("mix-{mix}"), &format!("{method}-{mix}"));
        let others = against.iter().map(|method| {
            let other = figures.get(&format!("{method}-{mix}"));
            if other.is_some_and(|other| other.kld <= ours.kld) {
                missed.push(format!("{method} is as good at the bytes of {mix}"));
            }
            other.map_or_else(|| format!(" {:>10}", "-"), |other| format!(" {:>10.6}", other.kld))
        });
        let others: String = others.collect();
        println!(
            "{mix:>10} {:>10} {:>10.6} {:>10.6} {ratio:>8.3} {:>17} {:>9}{others}",
            theirs.bytes,
            theirs.kld,
            ours.kld,
            format!("{:.3} - {:.3}", 1.0 + low / theirs.kld, 1.0 + high / theirs.kld),
            match ours.holds {
                Some(true) => "holds",
                Some(false) => "does not",
                None => "-",
            },
        );
        logarithms.push(ratio.ln());
        if ours.bytes > theirs.bytes {
            missed.push(format!("{} bytes are more than those of {mix}", ours.bytes));
        }
        if high >= 0.0 {
            missed.push(format!("not surely better than {mix}"));
        }
    }
    let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
    println!("geometric mean of the ratios {mean:.3} (target: at most {target})");
    if mean > target {
        missed.push("the geometric mean".to_owned());
    }
    if missed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("missed: {}", missed.join("; "));
    ExitCode::FAILURE
}

impl Bench {
    fn forge(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        command
            .current_dir(&self.folder)
            .env("FORGE_CACHE_DIR", self.folder.join("store"));
        command
    }

    fn candidate(&self, name: &str) -> PathBuf {
        self.folder.join("out").join(format!("{name}.gguf"))
    }

    fn build(&self, recipe: &str, whole: bool) {
        fs::write(self.folder.join("recipe.toml"), recipe).unwrap();
        let mut command = self.forge();
        command.args(["build", "recipe.toml", "--keep-going", "--out", "out"]);
        if let Some(threads) = &self.threads {
            command.args(["-j", threads]);
        }
        let status = command.status().unwrap();
        assert!(status.success() || !whole, "{status}");
    }

    fn figures(&self) -> BTreeMap<String, Figure> {
        let metrics = fs::read(self.folder.join("out/metrics.json")).unwrap();
        let metrics: serde_json::Value = serde_json::from_slice(&metrics).unwrap();
        let rows = metrics["rows"].as_array().unwrap().iter();
        rows.map(|row| {
            let figure = Figure {
                bytes: row["bytes"].as_u64().unwrap(),
                kld: row["kld_mean"].as_f64().unwrap(),
                holds: row["prediction_holds"].as_bool(),
            };
            (row["candidate"].as_str().unwrap().to_owned(), figure)
        })
        .collect()
    }

    /// Returns the 95 % interval of how much less the second candidate diverges.
    fn paired(&self, a: &str, b: &str) -> [f64; 2] {
        let file = |name: &str| format!("out/{name}.gguf");
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
