//! Refining the codes of quantized tensors: speed beside this machine's matrix products and beside ggml's quantizer, and what it gains.
//!
//!     cargo bench --bench rounding -- [--rows 2048] [--columns 1024,4096] [--types Q4_K,Q6_K]
//!
//! One thread, made-up weights and inputs (24 common causes and noise), the best of three runs. The rate of matrix products is that of `ndarray` on
//! two matrices of 1024 x 1024 in 32 bits. A matrix of fewer than 2048 rows is refined in smaller panels, so that many threads get some, and each panel
//! reads all second moments: there refinement is slower.
//!
//! - "of products": the multiplications and additions that refinement needs, by the second, as a share of that rate (wanted: 25 %).
//! - "without search": the same, less the time of ggml's search for scales, which refinement calls once more (not for codebooks).
//! - "x ggml": the time of refinement over that of ggml's quantizer for the same rows and importances (wanted: at most 10).
//! - "objective": what is left of eT A e of ggml's bytes.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use forge::engine;
use forge::engine::Cancel;
use forge::engine::MatrixMoments;
use forge::engine::QuantizeJob;
use forge::moments::SecondMoments;
use forge::rounding::DAMPING;
use forge::rounding::Factor;
use forge::rounding::Rounding;
use forge::tensor_type::TensorType;
use ndarray::Array2;

const TYPES: &[TensorType] = &[
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
    TensorType::IQ4_XS,
    TensorType::IQ4_NL,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::IQ2_XXS,
    TensorType::IQ2_S,
    TensorType::IQ3_XXS,
    TensorType::IQ3_S,
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let option = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.map(|at| arguments[at + 1].clone())
    };
    let rows: usize = option("--rows").map_or(2048, |rows| rows.parse().unwrap());
    let columns = option("--columns").unwrap_or_else(|| "1024,4096".to_owned());
    let types: Vec<TensorType> = option("--types").map_or_else(
        || TYPES.to_vec(),
        |types| types.split(',').map(|ty| ty.parse().unwrap()).collect(),
    );
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let rate = rate_of_products();
        println!("matrix products: {:.1} GFLOP/s on one thread", rate / 1e9);
        for columns in columns.split(',') {
            measure(columns.parse().unwrap(), rows, &types, rate);
        }
    });
}

/// Returns the operations a second of matrix products in 32 bits, the best of several.
fn rate_of_products() -> f64 {
    let (a, b) = (Array2::<f32>::ones((1024, 1024)), Array2::<f32>::ones((1024, 1024)));
    let once = || {
        let start = Instant::now();
        std::hint::black_box(a.dot(&b));
        2.0 * 1024.0_f64.powi(3) / start.elapsed().as_secs_f64()
    };
    (0..10).map(|_| once()).fold(0.0, f64::max)
}

fn measure(columns: usize, rows: usize, types: &[TensorType], rate: f64) {
    let moments = made_up_moments(columns);
    let start = Instant::now();
    let factor = Arc::new(Factor::new(&moments, DAMPING, &|| false).unwrap());
    let seconds = start.elapsed().as_secs_f64();
    let factor_rate = Factor::operations(columns as u64) / seconds;
    println!(
        "{columns} columns: factorized in {seconds:.2} s, {:.0} % of products (64 bits)",
        100.0 * factor_rate / rate
    );
    let mut random = normal(3);
    let values: Vec<u8> = (0..columns * rows)
        .flat_map(|_| (random() * 0.02).to_le_bytes())
        .collect();
    for ty in types {
        let job = QuantizeJob {
            from: TensorType::F32,
            to: *ty,
            columns: columns as u64,
            rows_per_matrix: rows as u64,
            matrices: 1,
            weights: Some(factor.importances()),
        };
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&values[offset as usize..][..out.len()]);
            Ok(())
        };
        let (mut quantized, mut quantizing) = (Vec::new(), f64::INFINITY);
        for _ in 0..3 {
            quantized.clear();
            let start = Instant::now();
            engine::quantize(&job, &read, &mut quantized, &Cancel::new(), &|_| {}).unwrap();
            quantizing = quantizing.min(start.elapsed().as_secs_f64());
        }
        let bytes = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&quantized[offset as usize..][..out.len()]);
            Ok(())
        };
        let mut given = |_: u64| {
            Ok(MatrixMoments::Known {
                factor: Arc::clone(&factor),
                validation: None,
            })
        };
        let mut seconds = f64::INFINITY;
        let mut outcome = None;
        for _ in 0..3 {
            let start = Instant::now();
            let (sink, cancel) = (&mut std::io::sink(), Cancel::new());
            let refined = engine::refine(&job, &mut given, &read, &bytes, sink, &cancel, &|_| {});
            seconds = seconds.min(start.elapsed().as_secs_f64());
            outcome = refined.unwrap()[0].outcome;
        }
        let outcome = outcome.unwrap();
        let work = Rounding::operations(*ty, columns as u64, rows as u64, false);
        let of_products = |seconds: f64| 100.0 * work / seconds / rate;
        let is_codebook = ty.name().starts_with("IQ2") || ty.name().starts_with("IQ3");
        let search = if is_codebook { 0.0 } else { quantizing };
        println!(
            "  {:8} {:6.3} s, {:3.0} % of products, {:3.0} % without search, {:6.1} x ggml, objective {:.3}",
            ty.name(),
            seconds,
            of_products(seconds),
            of_products(seconds - search),
            seconds / quantizing,
            outcome.after / outcome.before
        );
    }
}

/// Roughly normal numbers.
fn normal(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed;
    move || {
        let mut sum = 0.0;
        for _ in 0..12 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (state >> 44) as f32 / (1_u64 << 20) as f32;
        }
        sum - 6.0
    }
}

fn made_up_moments(n: usize) -> SecondMoments {
    let mut random = normal(7);
    let rows = 2 * n;
    let mix = Array2::from_shape_simple_fn((24, n), || random() * 0.5);
    let mut x = Array2::from_shape_simple_fn((rows, 24), &mut random).dot(&mix);
    for mut row in x.rows_mut() {
        for (column, x) in row.iter_mut().enumerate() {
            *x = (*x + random() * 2.0) * (1.0 + (column % 7) as f32 * 0.5);
        }
    }
    let products = x.t().dot(&x);
    let pairs = (0..n).flat_map(|i| (i..n).map(move |j| (i, j)));
    SecondMoments::new(n, rows as u64, pairs.map(|at| products[at]).collect()).unwrap()
}
