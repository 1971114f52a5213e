//! The refinement with ggml's kernels: codecs, adversarial input, threads, and figures of an independent implementation.

use std::sync::Arc;

use super::*;
use crate::gguf::Model;
use crate::rounding::DAMPING;

/// Roughly normal numbers: sums of 12 uniform ones from xorshift, exact in 32 bits.
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

/// Moments of `rows` made-up inputs: 24 common causes and noise, with columns of different sizes.
fn made_up_moments(n: usize, rows: usize, seed: u64) -> SecondMoments {
    let mut random = normal(seed);
    let mix = ndarray::Array2::from_shape_simple_fn((24, n), || random() * 0.5);
    let causes = ndarray::Array2::from_shape_simple_fn((rows, 24), &mut random);
    let mut x = causes.dot(&mix);
    for mut row in x.rows_mut() {
        for (column, x) in row.iter_mut().enumerate() {
            *x = (*x + random() * 2.0) * (1.0 + (column % 7) as f32 * 0.5);
        }
    }
    let products = x.t().dot(&x);
    let sums = (0..n)
        .flat_map(|i| (i..n).map(move |j| (i, j)))
        .map(|at| products[at])
        .collect();
    SecondMoments::new(n, rows as u64, sums).unwrap()
}

/// The types that are refined.
fn refined() -> impl Iterator<Item = TensorType> {
    let all = TensorType::ALL.iter().copied();
    all.filter(|ty| rounding::why_not_refined(*ty).is_none())
}

/// A tensor of one matrix with moments of its inputs.
struct Case {
    columns: usize,
    values: Vec<f32>,
    moments: SecondMoments,
    /// The values that ggml quantizes, if others than those that are refined: its searches for codebooks end the process for some values.
    quantized: Option<Vec<f32>>,
    factor: std::sync::OnceLock<Result<Arc<Factor>, String>>,
}

/// What refining made of a case.
struct Refined {
    before: Vec<u8>,
    after: Vec<u8>,
    refinement: MatrixRefinement,
}

impl Case {
    fn job(&self, to: TensorType) -> QuantizeJob<'static> {
        QuantizeJob {
            from: TensorType::F32,
            to,
            columns: self.columns as u64,
            rows_per_matrix: (self.values.len() / self.columns) as u64,
            matrices: 1,
            weights: None,
        }
    }

    /// Returns nothing if ggml's quantizer refuses the tensor.
    fn refine(
        &self,
        to: TensorType,
        validation: Option<&SecondMoments>,
        cancel: &Cancel,
    ) -> Result<Refined, EngineError> {
        let bytes: Vec<u8> = self.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let read = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&bytes[offset as usize..][..out.len()]);
            Ok(())
        };
        let importances = vec![1.0; self.columns];
        let job = QuantizeJob {
            weights: Some(&importances),
            ..self.job(to)
        };
        let quantized = self.quantized.as_ref().filter(|_| to.name().starts_with("IQ"));
        let quantized: Vec<u8> = quantized
            .unwrap_or(&self.values)
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let read_quantized = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&quantized[offset as usize..][..out.len()]);
            Ok(())
        };
        let mut before = Vec::new();
        super::super::quantize::quantize(&job, &read_quantized, &mut before, &Cancel::new(), &|_| {})?;
        let quantized = |offset: u64, out: &mut [u8]| {
            out.copy_from_slice(&before[offset as usize..][..out.len()]);
            Ok(())
        };
        let mut moments = |_: u64| {
            let factor = self.factor.get_or_init(|| {
                let factor = Factor::new(&self.moments, DAMPING, &|| false);
                factor.map(Arc::new).map_err(|error| error.to_string())
            });
            Ok(match factor {
                Ok(factor) => MatrixMoments::Known {
                    factor: Arc::clone(factor),
                    validation: validation.cloned().map(Arc::new),
                },
                Err(reason) => MatrixMoments::Unusable(reason.clone()),
            })
        };
        let mut after = Vec::new();
        let refinement = refine(
            &self.job(to),
            &mut moments,
            &read,
            &quantized,
            &mut after,
            cancel,
            &|_| {},
        )?
        .remove(0);
        Ok(Refined {
            before,
            after,
            refinement,
        })
    }

    /// Returns eT A e of each row, by the definition.
    fn objectives(&self, ty: TensorType, bytes: &[u8]) -> Vec<f64> {
        let n = self.columns;
        let mut restored = vec![0.0; self.values.len()];
        dequantize_rows(ty, bytes, n as u64, &mut restored).unwrap();
        let mut full = ndarray::Array2::<f64>::zeros((n, n));
        let mut sums = self.moments.sums().iter();
        for i in 0..n {
            for j in i..n {
                full[[i, j]] = f64::from(*sums.next().unwrap()) / self.moments.rows() as f64;
                full[[j, i]] = full[[i, j]];
            }
        }
        let damping = DAMPING * full.diag().sum() / n as f64;
        full.diag_mut().mapv_inplace(|value| value + damping);
        let errors = self
            .values
            .iter()
            .zip(&restored)
            .map(|(w, v)| f64::from(*w) - f64::from(*v));
        let errors = ndarray::Array2::from_shape_vec((self.values.len() / n, n), errors.collect()).unwrap();
        (errors.dot(&full) * &errors).sum_axis(ndarray::Axis(1)).to_vec()
    }

    /// Checks that no row is worse, and that the result says so.
    fn check(&self, ty: TensorType, what: &str) -> Option<Refined> {
        let refined = match self.refine(ty, None, &Cancel::new()) {
            Ok(refined) => refined,
            // What ggml cannot hold is not refined either.
            Err(EngineError::NotRepresentable { .. } | EngineError::NonFinite { .. }) => return None,
            Err(error) => panic!("{what}, {ty}: {error}"),
        };
        let row = ty.row_bytes(self.columns as u64).unwrap() as usize;
        assert_eq!(refined.after.len(), refined.before.len());
        if refined.refinement.kept.is_some() {
            assert!(refined.after == refined.before, "{what}, {ty}");
            return Some(refined);
        }
        let before = self.objectives(ty, &refined.before);
        let after = self.objectives(ty, &refined.after);
        for (at, (before, after)) in before.iter().zip(&after).enumerate() {
            let bytes = at * row..(at + 1) * row;
            let same = refined.before[bytes.clone()] == refined.after[bytes];
            assert!(same || after < before, "{what}, {ty}, row {at}: {after} after {before}");
        }
        let outcome = refined.refinement.outcome.unwrap();
        for (found, expected) in [(outcome.before, before), (outcome.after, after)] {
            let expected: f64 = expected.iter().sum();
            let error = (found - expected).abs();
            assert!(
                error <= 1e-4 * expected.abs(),
                "{what}, {ty}: {found}, expected {expected}"
            );
        }
        Some(refined)
    }
}

fn random_case(columns: usize, rows: usize, seed: u64) -> Case {
    let mut random = normal(seed);
    Case {
        columns,
        values: (0..columns * rows).map(|_| random() * 0.03).collect(),
        moments: made_up_moments(columns, columns * 2, seed + 1),
        quantized: None,
        factor: std::sync::OnceLock::new(),
    }
}

#[test]
fn no_row_of_any_type_gets_worse_and_threads_change_nothing() {
    for ty in refined() {
        let case = random_case(
            if ty.block_elements() == 256 { 512 } else { 320 },
            40,
            u64::from(ty.id()) + 11,
        );
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.refine(ty, None, &Cancel::new()).unwrap().after)
        };
        let refined = case.check(ty, "random").unwrap();
        let outcome = refined.refinement.outcome.unwrap();
        assert!(outcome.after < 0.75 * outcome.before, "{ty}: {outcome:?}");
        for threads in [1, 2, 3, 7] {
            assert!(run(threads) == refined.after, "{ty} with {threads} threads");
        }
    }
}

/// Random bytes, and bytes of one value, decode as ggml decodes them.
#[test]
fn codecs_agree_with_the_dequantizer_of_ggml() {
    log::start_backend();
    let kernels = Ggml { cancel: &Cancel::new() };
    for ty in refined() {
        let rounding = Rounding::new(ty, &kernels).unwrap().unwrap();
        let (block, bytes) = (ty.block_elements() as usize, ty.block_bytes() as usize);
        let mut state = 88_172_645_463_325_252_u64;
        for case in 0..600 {
            let mut blocks: Vec<u8> = (0..bytes)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    if case < 256 { case as u8 } else { (state >> 32) as u8 }
                })
                .collect();
            if case % 2 == 1 {
                // The codes that are there, written by the codec, are the same values.
                rounding.rewrite_codes(&mut blocks);
            }
            let (mut expected, mut found) = (vec![0.0; block], vec![0.0; block]);
            dequantize_rows(ty, &blocks, block as u64, &mut expected).unwrap();
            rounding.values(&blocks, &mut found);
            for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let same = found == expected || (found.is_nan() && expected.is_nan());
                let near = (found - expected).abs() <= 1e-6 * expected.abs().max(1e-6 * found.abs());
                assert!(
                    same || near || !expected.is_finite(),
                    "{ty}, value {at}: {found}, expected {expected}"
                );
            }
        }
    }
}

#[test]
fn adversarial_matrices_keep_their_bytes_or_get_better() {
    let base = || random_case(256, 6, 3);
    let with_sums = |change: &dyn Fn(usize, usize, f32) -> f32| {
        let mut case = base();
        let n = case.columns;
        let mut at = 0;
        let mut sums = case.moments.sums().to_vec();
        for i in 0..n {
            for j in i..n {
                sums[at] = change(i, j, sums[at]);
                at += 1;
            }
        }
        case.moments = SecondMoments::new(n, case.moments.rows(), sums).unwrap();
        case
    };
    let with_values = |change: &dyn Fn(usize, f32) -> f32| {
        let mut case = base();
        case.quantized = Some(case.values.clone());
        for (at, value) in case.values.iter_mut().enumerate() {
            *value = change(at, *value);
        }
        case
    };
    let mut cases: Vec<(String, Case)> = Vec::new();
    for dead in [1, 2, 255, 256] {
        let zero = with_sums(&|i, j, sum| if i < dead || j < dead { 0.0 } else { sum });
        cases.push((format!("{dead} dead columns"), zero));
    }
    for scale in [1e-30_f32, 1e-20, 1e-10, 1e10, 1e20, 1e30] {
        cases.push((format!("moments times {scale:e}"), with_sums(&|_, _, sum| sum * scale)));
        cases.push((
            format!("values times {scale:e}"),
            with_values(&|_, value| value * scale),
        ));
        let huge = |i: usize| if i == 7 { scale.sqrt() } else { 1.0 };
        cases.push((
            format!("a column times {scale:e}"),
            with_sums(&|i, j, sum| sum * huge(i) * huge(j)),
        ));
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0] {
        let place = |i: usize, j: usize| i == 3 && j == 3;
        cases.push((
            format!("{bad} on the diagonal"),
            with_sums(&|i, j, sum| if place(i, j) { bad } else { sum }),
        ));
        let beside = |i: usize, j: usize| i == 3 && j == 9;
        cases.push((
            format!("{bad} beside it"),
            with_sums(&|i, j, sum| if beside(i, j) { bad } else { sum }),
        ));
    }
    cases.push(("rank one".to_owned(), with_sums(&|_, _, _| 100.0)));
    cases.push((
        "a product above the squares".to_owned(),
        with_sums(&|i, j, s| if i == j { s } else { 1e6 }),
    ));
    cases.push((
        "a diagonal".to_owned(),
        with_sums(&|i, j, sum| if i == j { sum } else { 0.0 }),
    ));
    cases.push(("no zero anywhere".to_owned(), with_values(&|_, _| 0.0)));
    cases.push((
        "constant rows".to_owned(),
        with_values(&|at, _| (at / 256) as f32 * 0.1),
    ));
    cases.push(("denormal values".to_owned(), with_values(&|_, value| value * 1e-39)));
    cases.push((
        "one value".to_owned(),
        with_values(&|at, _| if at == 100 { 1.0 } else { 0.0 }),
    ));
    cases.push((
        "an outlier".to_owned(),
        with_values(&|at, value| if at % 256 == 9 { 500.0 } else { value }),
    ));
    cases.push((
        "alternating signs".to_owned(),
        with_values(&|at, _| if at % 2 == 0 { 1.0 } else { -1.0 }),
    ));
    let mut none = base();
    none.moments = SecondMoments::new(256, 0, none.moments.sums().to_vec()).unwrap();
    cases.push(("no inputs".to_owned(), none));
    assert!(cases.len() >= 40, "{}", cases.len());
    for (what, case) in &cases {
        for ty in refined() {
            case.check(ty, what);
        }
    }
}

#[test]
fn validation_refuses_what_only_fits_its_own_inputs() {
    let case = random_case(256, 40, 9);
    let refine = |moments: &SecondMoments| case.refine(TensorType::Q3_K, Some(moments), &Cancel::new()).unwrap();
    let good = refine(&case.moments);
    let outcome = good.refinement.outcome.unwrap();
    assert_eq!(good.refinement.kept, None);
    assert!(outcome.validation_after < 0.7 * outcome.validation_before);
    // Independent inputs: the error of plain rounding is the best for them.
    let mut sums = vec![0.0; 256 * 257 / 2];
    let mut at = 0;
    for i in 0..256 {
        sums[at] = 1.0;
        at += 256 - i;
    }
    let other = refine(&SecondMoments::new(256, 1, sums).unwrap());
    assert_eq!(other.refinement.kept, Some(KeptBytes::Validation));
    assert!(other.after == other.before);
    let outcome = other.refinement.outcome.unwrap();
    assert!(outcome.validation_after >= outcome.validation_before);
}

#[test]
fn cancelling_and_types_that_are_not_refined() {
    let case = random_case(256, 40, 9);
    let cancel = Cancel::new();
    cancel.cancel();
    let error = case.refine(TensorType::Q4_K, None, &cancel).err().unwrap();
    assert!(matches!(error, EngineError::Cancelled), "{error}");
    for ty in [
        TensorType::IQ1_S,
        TensorType::IQ1_M,
        TensorType::TQ1_0,
        TensorType::NVFP4,
        TensorType::Q1_0,
    ] {
        let refined = case.refine(ty, None, &Cancel::new()).unwrap();
        assert!(refined.after == refined.before);
        assert!(matches!(refined.refinement.kept, Some(KeptBytes::Type { .. })), "{ty}");
    }
}

/// The objectives of 64 rows of a real tensor, relative to ggml's bytes, as a separate implementation in numpy computed them from the same rows,
/// moments and bytes of ggml: feedback (by the inverse of A) and 3 passes of descent; for codebooks 3 passes of descent. That implementation
/// searches scales with a port of ggml's search of its own, so it may be above forge's.
#[test]
fn the_objective_is_that_of_a_separate_implementation() {
    const EXPECTED: &[(TensorType, f64)] = &[
        (TensorType::Q2_K, 0.3871),
        (TensorType::Q3_K, 0.3730),
        (TensorType::Q4_K, 0.3669),
        (TensorType::Q5_K, 0.3764),
        (TensorType::Q6_K, 0.3648),
        (TensorType::IQ4_XS, 0.3674),
        (TensorType::IQ3_XXS, 0.4559),
        (TensorType::IQ3_S, 0.4545),
        (TensorType::IQ2_S, 0.4808),
    ];
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart/tiny.gguf");
    let model = Model::open(&path).unwrap();
    let tensor = model.tensor("blk.0.ffn_down.weight").unwrap();
    let mut bytes = vec![0; 64 * 768 * 2];
    model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
    let mut values = vec![0.0; 64 * 768];
    dequantize_rows(TensorType::F16, &bytes, 768, &mut values).unwrap();
    let moments = made_up_moments(768, 1536, 5);
    let factor = Factor::new(&moments, DAMPING, &|| false).unwrap();
    log::start_backend();
    let kernels = Ggml { cancel: &Cancel::new() };
    for (ty, expected) in EXPECTED {
        let mut quantized = vec![0; ty.row_bytes(768).unwrap() as usize * 64];
        kernels
            .quantize(*ty, &values, 768, factor.importances(), &mut quantized)
            .unwrap();
        let panel = Panel {
            factor: &factor,
            validation: None,
            values: &values,
            quantized: &quantized,
        };
        let rounding = Rounding::new(*ty, &kernels).unwrap().unwrap();
        let mut out = vec![0; quantized.len()];
        let mut workspace = Workspace::default();
        let outcome = rounding.refine(&kernels, &panel, &mut workspace, &mut out).unwrap();
        let found = outcome.after / outcome.before;
        assert!(found < expected * 1.01, "{ty}: {found}, expected {expected}");
        // A port of a search finds at most slightly worse scales; far below means that something else is computed.
        assert!(found > expected * 0.95, "{ty}: {found}, expected {expected}");
        let (held, bound) = (workspace.held(), Workspace::bytes(*ty, 768));
        assert!(held <= bound && held * 4 > bound, "{ty}: {held} bytes, bound {bound}");
    }
}
