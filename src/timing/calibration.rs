//! Measures the speeds of a machine: with a small model of random weights, on the engine that a build uses.
//!
//! Takes a few seconds. The model and what is made of it are in a temporary folder.

use std::convert::Infallible;
use std::io;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use rayon::prelude::*;

use super::Operation;
use super::Speeds;
use super::forward::Forward;
use super::forward::Purpose;
use super::speeds::quantized_in_a_second;
use super::speeds::seconds_of_tables;
use crate::engine::Cancel;
use crate::engine::CollectOptions;
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::ModelFiles;
use crate::engine::QuantizeJob;
use crate::figures;
use crate::fs;
use crate::gguf::DEFAULT_ALIGNMENT;
use crate::gguf::GgufError;
use crate::gguf::Layout;
use crate::gguf::Metadata;
use crate::gguf::TensorSpec;
use crate::gguf::Value;
use crate::moments::Accumulator;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::tensor_type::TensorType;

/// Tokens of a chunk.
const CONTEXT: u32 = 512;
/// Tokens of the vocabulary.
const VOCABULARY: u64 = 2048;
/// The shortest time that is measured.
const LEAST: Duration = Duration::from_millis(20);
/// Weights that are quantized at once: enough for all cores of a large machine.
const WEIGHTS: u64 = 1 << 18;

/// The dimensions of a model.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: u64,
    width: u64,
    inner: u64,
}

/// Its graph has little to multiply for its number of nodes.
const NARROW: Shape = Shape {
    layers: 4,
    width: 256,
    inner: 256,
};
/// Multiplying takes most of its time.
const WIDE: Shape = Shape {
    layers: 1,
    width: 1024,
    inner: 2816,
};

/// Why a machine was not measured.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Files.
    #[error(transparent)]
    File(#[from] io::Error),
    /// The model of random weights.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The log-probabilities.
    #[error(transparent)]
    Figures(#[from] figures::FigureError),
}

/// Measures how fast an engine quantizes to types and compares, in this process.
///
/// # Errors
///
/// Errors of the engine.
pub fn measure_quantizer(
    engine: &dyn Engine,
    types: &[TensorType],
    speeds: &mut Speeds,
    cancel: &Cancel,
) -> Result<(), CalibrationError> {
    let quantizer = engine.quantizer()?;
    let columns = 1024;
    let row: Vec<u8> = noise(columns * 16).flat_map(f32::to_le_bytes).collect();
    let bytes = row.repeat((WEIGHTS / columns / 16) as usize);
    let weights: Vec<f32> = noise(columns).map(|value| value * value + 0.1).collect();
    let read = |offset: u64, buffer: &mut [u8]| copy(&bytes, offset, buffer);
    let measure = |ty: TensorType, speeds: &mut Speeds| {
        let job = QuantizeJob {
            from: TensorType::F32,
            to: ty,
            columns,
            rows_per_matrix: WEIGHTS / columns,
            matrices: 1,
            weights: Some(&weights).filter(|_| ty.uses_imatrix()).map(Vec::as_slice),
        };
        let mut quantized = Vec::new();
        let seconds = least_of(2, || {
            quantized.clear();
            quantizer.quantize(&job, &read, &mut quantized, cancel, &|_| {})
        })?;
        speeds.set(Operation::Quantize(ty), seconds / WEIGHTS as f64);
        let seconds = least_of(1, || {
            quantizer.compare(&job, &read, &quantized, cancel, &|_| {}).map(drop)
        })?;
        speeds.set(Operation::Compare(ty), seconds / WEIGHTS as f64);
        Ok::<(), EngineError>(())
    };
    let has_tables = |ty: TensorType| seconds_of_tables(ty) > 0.0;
    let types = || types.iter().copied().filter(|ty| ty.quantizable_target());
    for ty in types().filter(|ty| columns.is_multiple_of(ty.block_elements()) && !has_tables(*ty)) {
        measure(ty, speeds)?;
    }
    if types().any(has_tables) {
        let like = TensorType::Q4_K;
        measure(like, speeds)?;
        for ty in types().filter(|ty| has_tables(*ty)) {
            let slower = quantized_in_a_second(like) / quantized_in_a_second(ty);
            speeds.set(
                Operation::Quantize(ty),
                slower * speeds.seconds(Operation::Quantize(like)),
            );
            speeds.set(Operation::Compare(ty), speeds.seconds(Operation::Compare(like)));
        }
    }
    Ok(())
}

/// Measures how fast matrices are multiplied outside of the engine.
pub fn measure_products(speeds: &mut Speeds) {
    let (columns, rows) = (1024, 512);
    let vectors: Vec<f32> = noise(columns * rows).collect();
    let mut sums = Accumulator::new(columns as usize, 1);
    let seconds = least_of(3, || {
        sums.add(&[(0, &vectors)]);
        Ok::<(), Infallible>(())
    });
    let Ok(seconds) = seconds;
    speeds.set(
        Operation::Product,
        seconds / Accumulator::multiply_adds(columns, rows as f64),
    );
}

/// Measures how fast files are written and hashed in a folder.
///
/// # Errors
///
/// Errors of the file system.
pub fn measure_files(folder: &Path, speeds: &mut Speeds) -> Result<(), CalibrationError> {
    let block: Vec<u8> = noise(1 << 14).flat_map(f32::to_le_bytes).collect();
    let bytes = block.repeat(256);
    let seconds = least_of(2, || {
        crate::digest::BlobDigest::of(&bytes);
        Ok::<(), EngineError>(())
    })?;
    speeds.set(Operation::Hash, seconds / bytes.len() as f64);
    let started = Instant::now();
    let mut file = fs::TempFile::own_in(folder).map_err(io::Error::other)?;
    file.write_all(&bytes)?;
    drop(file);
    let written = started.elapsed().as_secs_f64() / bytes.len() as f64;
    // A candidate is written, hashed by two algorithms at once, of which SHA-256 is the slower one, and read again.
    speeds.set(Operation::Write, written.max(SHA256) + seconds / bytes.len() as f64);
    Ok(())
}

/// Seconds in which a core hashes a byte with SHA-256, with the processor's own instructions for it.
const SHA256: f64 = 1.0 / 1.2e9;

/// Measures how fast an engine computes models, and how fast their logits are compared. The engine loads the models in this process.
///
/// # Errors
///
/// Errors of the engine, and of files in the folder.
pub fn measure_evaluator(
    engine: &dyn Engine,
    folder: &Path,
    types: &[TensorType],
    speeds: &mut Speeds,
    cancel: &Cancel,
) -> Result<(), CalibrationError> {
    let chunk: Vec<i32> = (0..CONTEXT)
        .map(|at| (at * 37 % VOCABULARY as u32).cast_signed())
        .collect();
    let first = figures::scored_positions(CONTEXT as usize)?.start;
    let narrow = Model::write(folder, NARROW)?;
    let wide = Model::write(folder, WIDE)?;
    let narrow_seconds = {
        let mut model = engine.model(ModelFiles::open(narrow.file.path())?, CONTEXT)?;
        least_of(4, || model.logits(&chunk, first, cancel, &mut |_, _| Ok(())))?
    };
    let mut model = engine.model(ModelFiles::open(wide.file.path())?, CONTEXT)?;
    let wide_seconds = least_of(4, || model.logits(&chunk, first, cancel, &mut |_, _| Ok(())))?;
    // Two equations: the nodes and the multiply-adds of both models.
    let ((n1, p1), (n2, p2)) = (narrow.work(Purpose::Score), wide.work(Purpose::Score));
    let product = (wide_seconds * n1 - narrow_seconds * n2) / (p2 * n1 - p1 * n2);
    // Both times are noisy.
    let product = product.clamp(0.5 * wide_seconds / p2, wide_seconds / p2);
    let node = ((narrow_seconds - product * p1) / n1).max(0.0);
    speeds.set(Operation::Node, node);
    for &ty in TensorType::ALL.iter().filter(|ty| ty.is_float()) {
        speeds.set(Operation::Multiply(ty), product);
    }
    let mut collect = |chunks: usize| {
        let chunks = vec![chunk.clone(); chunks];
        let options = CollectOptions::default();
        least_of(2, || model.collect(&chunks, options, cancel, &|_| {}).map(drop))
    };
    // Beginning takes its own time.
    let collecting = (collect(3)? - collect(1)?) / 2.0;
    let (nodes, products) = wide.work(Purpose::Collect);
    let sums: f64 = wide.amounts(Purpose::Collect, |operation| operation == Operation::Collect);
    speeds.set(
        Operation::Collect,
        (collecting - node * nodes - product * products).max(0.0) / sums,
    );
    drop(model);
    measure_types(engine, &wide, types, (node, first), &chunk, speeds, cancel)?;
    measure_logits(speeds)
}

/// Measures the model with all its matrices in each type.
fn measure_types(
    engine: &dyn Engine,
    model: &Model,
    types: &[TensorType],
    (node, first): (f64, usize),
    chunk: &[i32],
    speeds: &mut Speeds,
    cancel: &Cancel,
) -> Result<(), CalibrationError> {
    let mut prober = engine.prober(ModelFiles::open(model.file.path())?, CONTEXT, cancel)?;
    let (nodes, products) = model.work(Purpose::Score);
    for &ty in types.iter().filter(|ty| ty.is_quantized() && ty.quantizable_target()) {
        for tensor in model.facts.tensors.iter().filter(|tensor| tensor.ty == TensorType::F16) {
            // What the numbers are makes no difference to the time.
            let bytes = ty.tensor_bytes(&tensor.dims).unwrap_or_default();
            prober.replace(&tensor.name, ty, Box::new(vec![0_u8; bytes as usize]))?;
        }
        let seconds = least_of(1, || prober.logits(chunk, first, cancel, &mut |_, _| Ok(())))?;
        speeds.set(
            Operation::Multiply(ty),
            ((seconds - node * nodes) / products).max(0.1 * seconds / products),
        );
    }
    Ok(())
}

/// Measures how fast log-probabilities are stored, and compared with logits.
fn measure_logits(speeds: &mut Speeds) -> Result<(), CalibrationError> {
    let rows: Vec<Vec<f32>> = (0..ROWS).map(|_| noise(VOCABULARY).collect()).collect();
    let logits = (ROWS * VOCABULARY) as f64;
    let mut encoded: Vec<Vec<u8>> = Vec::new();
    let seconds = least_of(2, || {
        let rows = rows.iter().map(|row| {
            let mut bytes = Vec::new();
            figures::ReferenceRow::encode(row, &mut bytes).map(|()| bytes)
        });
        encoded = rows.collect::<Result<_, _>>()?;
        Ok::<(), figures::FigureError>(())
    })?;
    speeds.set(Operation::Encode, seconds / logits);
    let seconds = least_of(2, || {
        let scored = rows
            .par_iter()
            .zip(&encoded)
            .map(|(row, bytes)| figures::score(&figures::ReferenceRow::decode(bytes)?, row, 0).map(drop));
        scored.collect::<Result<(), figures::FigureError>>()
    })?;
    speeds.set(Operation::Score, seconds / logits);
    Ok(())
}

/// Rows of logits that are measured.
const ROWS: u64 = 256;

/// A model of random weights in a file.
struct Model {
    file: fs::TempFile,
    facts: ModelFacts,
    forward: Forward,
}

impl Model {
    fn write(folder: &Path, shape: Shape) -> Result<Self, CalibrationError> {
        let Shape { layers, width, inner } = shape;
        let mut metadata = Metadata::new();
        let mut set = |key: &str, value: Value| metadata.set(key, &value);
        set("general.architecture", Value::String(b"llama".to_vec()))?;
        for (key, value) in [
            ("context_length", u64::from(CONTEXT)),
            ("embedding_length", width),
            ("block_count", layers),
            ("feed_forward_length", inner),
            ("attention.head_count", width / 64),
            ("vocab_size", VOCABULARY),
        ] {
            set(&format!("llama.{key}"), Value::U32(value as u32))?;
        }
        set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))?;
        set("tokenizer.ggml.model", Value::String(b"no_vocab".to_vec()))?;
        let mut specs = vec![spec("token_embd.weight", &[width, VOCABULARY])];
        for layer in 0..layers {
            for (part, dims) in [
                ("attn_norm", vec![width]),
                ("attn_q", vec![width, width]),
                ("attn_k", vec![width, width]),
                ("attn_v", vec![width, width]),
                ("attn_output", vec![width, width]),
                ("ffn_norm", vec![width]),
                ("ffn_gate", vec![width, inner]),
                ("ffn_up", vec![width, inner]),
                ("ffn_down", vec![inner, width]),
            ] {
                specs.push(spec(&format!("blk.{layer}.{part}.weight"), &dims));
            }
        }
        specs.push(spec("output_norm.weight", &[width]));
        specs.push(spec("output.weight", &[width, VOCABULARY]));
        let layout = Layout::new(&metadata, &specs, DEFAULT_ALIGNMENT)?;
        let mut file = fs::TempFile::own_in(folder).map_err(io::Error::other)?;
        layout.write(&mut io::BufWriter::new(&mut file), &mut |at, out| {
            let spec = &specs[at];
            let (columns, rows) = (spec.dims[0], spec.dims.get(1).copied().unwrap_or(1));
            // Small numbers, so that the sums of many layers stay finite. Rows may be the same: that makes no difference to the time.
            let row: Vec<u8> = match spec.ty {
                TensorType::F16 => noise(columns)
                    .flat_map(|value| half::f16::from_f32(0.05 * value).to_le_bytes())
                    .collect(),
                _ => 1.0_f32.to_le_bytes().repeat(columns as usize),
            };
            (0..rows).try_for_each(|_| out.write_all(&row))
        })?;
        let tensors = specs.iter().map(|spec| TensorFacts {
            name: spec.name.clone(),
            ty: spec.ty,
            dims: spec.dims.clone(),
        });
        let facts = ModelFacts::from_metadata(&metadata, tensors.collect()).map_err(io::Error::other)?;
        let forward = Forward::new(&facts, &metadata);
        Ok(Self { file, facts, forward })
    }

    /// Returns the amount of some operations in a chunk.
    fn amounts(&self, purpose: Purpose, of: impl Fn(Operation) -> bool) -> f64 {
        let amounts = self.forward.chunk(None, CONTEXT, purpose);
        amounts
            .iter()
            .filter(|(operation, _)| of(*operation))
            .map(|(_, amount)| amount)
            .sum()
    }

    /// Returns the nodes and the multiply-adds of a chunk.
    fn work(&self, purpose: Purpose) -> (f64, f64) {
        (
            self.amounts(purpose, |operation| operation == Operation::Node),
            self.amounts(purpose, |operation| matches!(operation, Operation::Multiply(_))),
        )
    }
}

fn spec(name: &str, dims: &[u64]) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        ty: if dims.len() > 1 {
            TensorType::F16
        } else {
            TensorType::F32
        },
        dims: dims.to_vec(),
    }
}

/// Returns numbers between -1 and 1 that look random, always the same ones.
fn noise(count: u64) -> impl Iterator<Item = f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn copy(bytes: &[u8], offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let part = bytes
        .get(start..start + buffer.len())
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    buffer.copy_from_slice(part);
    Ok(())
}

/// Returns the least of several times in seconds, each at least [`LEAST`] long.
fn least_of<E>(times: usize, mut work: impl FnMut() -> Result<(), E>) -> Result<f64, E> {
    let mut least = f64::INFINITY;
    for _ in 0..times {
        let (started, mut count) = (Instant::now(), 0_u32);
        while count == 0 || started.elapsed() < LEAST {
            work()?;
            count += 1;
        }
        least = least.min(started.elapsed().as_secs_f64() / f64::from(count));
    }
    Ok(least)
}
