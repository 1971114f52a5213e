//! The embedded engine against llama.cpp's own tools, built from the same sources at the same CPU level.
//!
//! `FORGE_PEER_BIN` names the folder of `llama-quantize`, `llama-imatrix` and `llama-perplexity`
//! (`tests/peers/build-llama-cpp.sh` builds and prints it). Without it these tests say `SKIPPED` and pass.
//! `FORGE_TEST_MODEL` and `FORGE_TEST_MOE` name models other than the small ones.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use forge::engine;
use forge::engine::Cancel;
use forge::engine::CollectOptions;
use forge::engine::LoadedModel;
use forge::engine::ModelFiles;
use forge::engine::Options;
use forge::engine::QuantizeJob;
use forge::engine::Vocabulary;
use forge::figures;
use forge::gguf::Model;
use forge::imatrix::Imatrix;
use forge::tensor_type::TensorType;

use crate::engine::calibration_text;
use crate::engine::chunks;
use crate::engine::held_out_text;
use crate::engine::tiny_model;
use crate::support::moe_model;

/// Returns the folder of the tools, or says loudly that there is none.
pub(crate) fn peer(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("FORGE_PEER_BIN")
        .map(PathBuf::from)
        .filter(|folder| !folder.as_os_str().is_empty());
    if folder.is_none() {
        eprintln!(
            "SKIPPED {test}: FORGE_PEER_BIN names no folder of llama.cpp's tools (tests/peers/build-llama-cpp.sh)"
        );
    }
    folder
}

/// Runs a tool and returns its output; panics with the output if it fails.
fn run(program: &Path, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{} {arguments:?}: {}\n{}\n{}",
        program.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Returns the engine's bytes of one tensor of a model.
fn quantized(model: &Model, name: &str, to: TensorType, weights: Option<&[f32]>) -> Vec<u8> {
    let tensor = model.tensor(name).unwrap();
    let dims = &tensor.info.dims;
    let dim = |index: usize| dims.get(index).copied().unwrap_or(1);
    let job = QuantizeJob {
        from: tensor.info.ty,
        to,
        columns: dim(0),
        rows_per_matrix: dim(1),
        matrices: dim(2) * dim(3),
        weights,
    };
    let mut bytes = Vec::new();
    let read = |offset: u64, buffer: &mut [u8]| model.read_tensor_at(tensor, offset, buffer);
    engine::quantize(&job, &read, &mut bytes, &Cancel::new(), &|_| ()).unwrap();
    bytes
}

fn read_whole(model: &Model, name: &str) -> (TensorType, Vec<u8>) {
    let tensor = model.tensor(name).unwrap();
    let mut bytes = vec![0; tensor.info.len as usize];
    model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
    (tensor.info.ty, bytes)
}

/// Compares every tensor that `llama-quantize` changed, type by type; returns how many were compared per type.
fn compare_quantized(bin: &Path, model_path: &Path, types: &[&str], imatrix: bool) -> BTreeMap<String, usize> {
    let folder = tempfile::tempdir().unwrap();
    let source = Model::open(model_path).unwrap();
    let matrix = imatrix.then(|| synthetic_imatrix(&source));
    let matrix_path = folder.path().join("imatrix.gguf");
    if let Some(matrix) = &matrix {
        std::fs::write(&matrix_path, matrix.to_gguf().unwrap()).unwrap();
    }
    let mut compared = BTreeMap::new();
    let mut wrong = Vec::new();
    for name in types {
        let out = folder.path().join(format!("{name}.gguf"));
        let mut arguments = vec!["--pure"];
        if imatrix {
            arguments.extend(["--imatrix", matrix_path.to_str().unwrap()]);
        }
        arguments.extend([
            "--token-embedding-type",
            "q8_0",
            model_path.to_str().unwrap(),
            out.to_str().unwrap(),
            name,
            "2",
        ]);
        run(&bin.join("llama-quantize"), &arguments);
        let theirs = Model::open(&out).unwrap();
        for tensor in theirs.tensors() {
            let (to, expected) = read_whole(&theirs, &tensor.info.name);
            if source.tensor(&tensor.info.name).unwrap().info.ty == to {
                continue;
            }
            let entry = matrix.as_ref().and_then(|matrix| matrix.entries.get(&tensor.info.name));
            let weights = entry.map(forge::imatrix::Entry::weights);
            let found = quantized(&source, &tensor.info.name, to, weights.as_deref());
            *compared.entry(to.name().to_owned()).or_insert(0) += 1;
            if found != expected {
                let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
                wrong.push(format!(
                    "{} {to}: {differ} of {} bytes",
                    tensor.info.name,
                    expected.len()
                ));
            }
        }
        std::fs::remove_file(out).unwrap();
    }
    assert!(
        wrong.is_empty(),
        "{} tensors differ from llama-quantize's:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    compared
}

/// Importances that no rounding can agree on by luck: every column its own, one expert that was never used.
fn synthetic_imatrix(model: &Model) -> Imatrix {
    let mut matrix = Imatrix {
        datasets: vec!["synthetic".to_owned()],
        chunk_count: 7,
        chunk_size: 512,
        ..Imatrix::default()
    };
    for tensor in model.tensors() {
        let dims = &tensor.info.dims;
        if !tensor.info.name.starts_with("blk.") || dims.len() < 2 {
            continue;
        }
        let matrices = dims.get(2).copied().unwrap_or(1);
        let sums = (0..dims[0] * matrices)
            .map(|i| 1.0 + ((i * 7919) % 1013) as f32 * 0.37)
            .collect();
        let counts = (0..matrices)
            .map(|i| if i == 1 { 0.0 } else { 3584.0 - i as f32 })
            .collect();
        matrix.entries.insert(
            tensor.info.name.clone(),
            forge::imatrix::Entry::new(sums, counts).unwrap(),
        );
    }
    matrix
}

const TYPES: &[&str] = &[
    "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "iq3_s",
    "tq1_0", "tq2_0", "bf16", "f32",
];
const WITH_IMATRIX: &[&str] = &["iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_m", "iq1_s", "iq1_m"];

#[test]
fn quantized_bytes_are_llama_quantizes() {
    let Some(bin) = peer("quantized_bytes_are_llama_quantizes") else {
        return;
    };
    let compared = compare_quantized(&bin, &tiny_model(), TYPES, false);
    assert!(compared.len() >= 15, "{compared:?}");
    let all = [TYPES, WITH_IMATRIX].concat();
    let compared = compare_quantized(&bin, &tiny_model(), &all, true);
    assert!(compared.len() >= 20, "{compared:?}");
    eprintln!("compared with llama-quantize, tensors per type: {compared:?}");
}

#[test]
fn quantized_experts_are_llama_quantizes() {
    let Some(bin) = peer("quantized_experts_are_llama_quantizes") else {
        return;
    };
    let moe = moe_model();
    let compared = compare_quantized(&bin, &moe, &["q4_k_m", "iq2_xs", "q5_0"], true);
    assert!(compared.len() >= 3, "{compared:?}");
}

fn compare_imatrix(bin: &Path, model: &Path, count: usize) {
    let folder = tempfile::tempdir().unwrap();
    let text_path = folder.path().join("text.txt");
    let text = calibration_text();
    std::fs::write(&text_path, &text).unwrap();
    let out = folder.path().join("imatrix.gguf");
    let number = count.to_string();
    let arguments = [
        "-m",
        model.to_str().unwrap(),
        "-f",
        text_path.to_str().unwrap(),
        "-o",
        out.to_str().unwrap(),
    ];
    let arguments = [
        &arguments[..],
        &["--chunks", &number, "-c", "512", "--no-ppl", "--no-repack", "-t", "2"],
    ]
    .concat();
    run(&bin.join("llama-imatrix"), &arguments);
    let theirs = Imatrix::parse(&std::fs::read(&out).unwrap()).unwrap();
    let chunks = chunks(model, &text, 512, count);
    let mut loaded = LoadedModel::open(ModelFiles::open(model).unwrap(), &Options { threads: 2 }, 512).unwrap();
    let ours = loaded
        .collect(&chunks, CollectOptions::default(), &Cancel::new(), &|_| ())
        .unwrap();
    assert_eq!(
        (ours.chunk_count, ours.chunk_size),
        (theirs.chunk_count, theirs.chunk_size)
    );
    assert!(
        ours.entries.keys().eq(theirs.entries.keys()),
        "{:?}\n{:?}",
        ours.entries.keys(),
        theirs.entries.keys()
    );
    let mut worst: (f64, String) = (0.0, String::new());
    for (name, theirs) in &theirs.entries {
        let ours = &ours.entries[name];
        assert_eq!(ours.counts, theirs.counts, "{name}: counts");
        for (matrix, (ours, theirs)) in ours
            .sums
            .chunks(ours.columns)
            .zip(theirs.sums.chunks(theirs.columns))
            .enumerate()
        {
            let mean = theirs.iter().map(|sum| f64::from(*sum)).sum::<f64>() / theirs.len() as f64;
            for (ours, theirs) in ours.iter().zip(theirs) {
                let (ours, theirs) = (f64::from(*ours), f64::from(*theirs));
                // Relative to the sum, or to the mean of the matrix where a column is next to nothing.
                let error = (ours - theirs).abs() / theirs.abs().max(1e-3 * mean);
                if error > worst.0 {
                    worst = (error, format!("{name}[{matrix}]: {ours} {theirs}"));
                }
            }
        }
    }
    eprintln!(
        "{} entries; worst relative difference of a sum {:e} ({})",
        theirs.entries.len(),
        worst.0,
        worst.1
    );
    assert!(worst.0 < 1e-3, "{worst:?}");
}

#[test]
fn importances_are_llama_imatrixs() {
    let Some(bin) = peer("importances_are_llama_imatrixs") else {
        return;
    };
    compare_imatrix(&bin, &tiny_model(), 10);
}

#[test]
fn importances_of_experts_are_llama_imatrixs() {
    let Some(bin) = peer("importances_of_experts_are_llama_imatrixs") else {
        return;
    };
    let moe = moe_model();
    compare_imatrix(&bin, &moe, 10);
}

/// Finds `label: value ± error` in a tool's output, whatever line it stands on.
pub(crate) fn figure(output: &Output, label: &str) -> (f64, f64) {
    let text = [
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    ]
    .concat();
    let at = text.find(label).unwrap_or_else(|| panic!("no `{label}` in:\n{text}"));
    let mut numbers = text[at + label.len()..]
        .split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '-'))
        .filter_map(|number| number.parse::<f64>().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// `llama-perplexity` with the distributions that a model predicts for some chunks of a text.
pub(crate) struct Perplexity {
    program: PathBuf,
    base: String,
    /// The output of the run that made the distributions.
    reference: Output,
    chunks: Vec<Vec<i32>>,
    model: PathBuf,
    _folder: tempfile::TempDir,
}

impl Perplexity {
    /// Makes the distributions of the first `count` chunks of `context` tokens.
    pub(crate) fn new(bin: &Path, model: &Path, text: &str, context: usize, count: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (text_path, base) = (file("text.txt"), file("base.bin"));
        std::fs::write(&text_path, text).unwrap();
        let program = bin.join("llama-perplexity");
        let (context_text, count_text) = (context.to_string(), count.to_string());
        let arguments = [
            "-m",
            model.to_str().unwrap(),
            "-f",
            &text_path,
            "-c",
            &context_text,
            "--chunks",
            &count_text,
            "--kl-divergence-base",
            &base,
        ];
        let reference = Self::complete(&program, &arguments, "Final estimate: PPL = ");
        Self {
            program,
            base,
            reference,
            chunks: chunks(model, text, context, count),
            model: model.to_owned(),
            _folder: folder,
        }
    }

    /// Runs the program until its output has a line. It now and then ends before its last lines are printed, with status 0.
    fn complete(program: &Path, arguments: &[&str], last: &str) -> Output {
        let contains = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains(last);
        (0..32)
            .map(|_| run(program, &[arguments, &["--no-repack", "-t", "2"]].concat()))
            .find(|output| contains(&output.stdout) || contains(&output.stderr))
            .unwrap_or_else(|| panic!("llama-perplexity printed no `{last}` in so many runs"))
    }

    /// Compares a candidate with the distributions: the tool's output, and the engine's figures for the same chunks.
    pub(crate) fn compare(&self, candidate: &Path) -> (Output, figures::Figures) {
        let context = self.chunks[0].len();
        let context_text = context.to_string();
        let arguments = [
            "-m",
            candidate.to_str().unwrap(),
            "-c",
            &context_text,
            "--kl-divergence-base",
            &self.base,
            "--kl-divergence",
        ];
        let theirs = Self::complete(&self.program, &arguments, "Same top p:");
        let files = ModelFiles::open(&self.model).unwrap();
        let vocabulary = Vocabulary::open(&files).unwrap().size();
        let blocks = crate::engine::evaluate(&self.model, candidate, &self.chunks, vocabulary, 2);
        let expected = figures::Expected {
            chunks: self.chunks.len() as u32,
            positions: figures::scored_positions(context).unwrap().len() as u32,
            same_file: false,
        };
        let ours = figures::summarize(&blocks, &expected, &figures::Resampling::default()).unwrap();
        (theirs, ours)
    }
}

/// Compares a figure with the tool's: it is within a tenth of the tool's standard error.
pub(crate) fn compare(what: &str, ours: f64, (theirs, error): (f64, f64)) {
    eprintln!("{what}: {ours:.6}, llama-perplexity {theirs} ± {error}");
    assert!(
        (ours - theirs).abs() <= error / 10.0,
        "{what}: {ours}, llama-perplexity {theirs} ± {error}"
    );
}

#[test]
fn figures_are_llama_perplexitys() {
    let Some(bin) = peer("figures_are_llama_perplexitys") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let candidate = folder.path().join("q4.gguf");
    let model = tiny_model();
    run(
        &bin.join("llama-quantize"),
        &[model.to_str().unwrap(), candidate.to_str().unwrap(), "q4_k_m"],
    );
    let perplexity = Perplexity::new(&bin, &model, &held_out_text(), 512, 16);
    let (theirs, ours) = perplexity.compare(&candidate);
    let reference = &perplexity.reference;
    compare(
        "PPL of the reference",
        ours.ppl_ref.value,
        figure(reference, "Final estimate: PPL = "),
    );
    compare(
        "PPL",
        ours.ppl.value,
        figure(&theirs, "Mean PPL(Q)                   :"),
    );
    compare(
        "PPL of the base",
        ours.ppl_ref.value,
        figure(&theirs, "Mean PPL(base)                :"),
    );
    compare(
        "ln ratio",
        ours.ln_ppl_ratio.value,
        figure(&theirs, "Mean ln(PPL(Q)/PPL(base))     :"),
    );
    compare("mean KLD", ours.kld_mean.value, figure(&theirs, "Mean    KLD:"));
    compare("RMS", 100.0 * ours.rms_dp.value, figure(&theirs, "RMS Δp    :"));
    compare(
        "same top",
        100.0 * ours.top1_agreement.value,
        figure(&theirs, "Same top p:"),
    );
    let (median, _) = figure(&theirs, "Median  KLD:");
    assert!(
        (ours.kld_median - median).abs() < 0.02 * median + 1e-6,
        "{} {median}",
        ours.kld_median
    );
}
