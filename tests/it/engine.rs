//! The embedded engine on its own: every type, threads, refusals, importances and figures of a small real model.
#![allow(clippy::disallowed_methods, clippy::print_stderr, clippy::unwrap_used)]

use std::path::Path;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use forge::engine;
use forge::engine::Cancel;
use forge::engine::CollectOptions;
use forge::engine::EngineError;
use forge::engine::LoadedModel;
use forge::engine::ModelFiles;
use forge::engine::Options;
use forge::engine::QuantizeJob;
use forge::engine::Vocabulary;
use forge::figures;
use forge::figures::ReferenceBlock;
use forge::figures::ReferenceWriter;
use forge::figures::TokenBlock;
use forge::tensor_type::TensorType;

use crate::support::moe_model;

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples/quickstart")
        .join(name)
}

/// Returns the small dense model: `FORGE_TEST_MODEL`, or the example's.
pub(crate) fn tiny_model() -> PathBuf {
    std::env::var_os("FORGE_TEST_MODEL").map_or_else(|| example("tiny.gguf"), PathBuf::from)
}

fn text(name: &str) -> String {
    let beside = tiny_model().with_file_name(name);
    std::fs::read_to_string(if beside.is_file() { beside } else { example(name) }).unwrap()
}

pub(crate) fn calibration_text() -> String {
    text("calibration-prose.txt")
}

pub(crate) fn held_out_text() -> String {
    text("held-out.txt")
}

/// Returns the first chunks of a text.
pub(crate) fn chunks(model: &Path, text: &str, context: usize, count: usize) -> Vec<Vec<i32>> {
    let tokens = Vocabulary::open(&ModelFiles::open(model).unwrap())
        .unwrap()
        .tokenize(text, false)
        .unwrap();
    let chunks: Vec<Vec<i32>> = tokens.chunks_exact(context).take(count).map(<[i32]>::to_vec).collect();
    assert_eq!(chunks.len(), count, "the text is too short");
    chunks
}

/// Returns a reference's block of coded rows.
fn reference(model: &Path, chunks: &[Vec<i32>], vocabulary: usize, threads: usize) -> Vec<u8> {
    let context = chunks[0].len();
    let scored = figures::scored_positions(context).unwrap();
    let mut loaded = LoadedModel::open(ModelFiles::open(model).unwrap(), &Options { threads }, context as u32).unwrap();
    let (count, positions) = (chunks.len() as u32, scored.len() as u32);
    let mut writer = ReferenceWriter::new(Vec::new(), vocabulary as u32, 0, count, positions).unwrap();
    for chunk in chunks {
        let mut each = |start: usize, rows: &[&[f32]]| {
            for (position, logits) in (start..).zip(rows) {
                if scored.contains(&position) {
                    writer
                        .row(logits)
                        .map_err(|error| EngineError::Consumer(Box::new(error)))?;
                }
            }
            Ok(())
        };
        loaded.logits(chunk, scored.start, &Cancel::new(), &mut each).unwrap();
    }
    writer.finish().unwrap()
}

/// Returns the token figures of a candidate against a reference.
pub(crate) fn evaluate(
    model: &Path,
    candidate: &Path,
    chunks: &[Vec<i32>],
    vocabulary: usize,
    threads: usize,
) -> Vec<TokenBlock> {
    let context = chunks[0].len();
    let scored = figures::scored_positions(context).unwrap();
    let rows = reference(model, chunks, vocabulary, threads);
    let rows = ReferenceBlock::parse(&rows).unwrap();
    let mut loaded = LoadedModel::open(
        ModelFiles::open(candidate).unwrap(),
        &Options { threads },
        context as u32,
    )
    .unwrap();
    let mut blocks = Vec::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let mut found = Vec::new();
        let mut each = |start: usize, all: &[&[f32]]| {
            for (position, logits) in (start..).zip(all) {
                if scored.contains(&position) {
                    let row = rows.row(number as u32, (position - scored.start) as u32).unwrap();
                    found.push(figures::score(&row, logits, chunk[position + 1]).unwrap());
                }
            }
            Ok(())
        };
        loaded.logits(chunk, scored.start, &Cancel::new(), &mut each).unwrap();
        blocks.push(TokenBlock::new(number as u32, scored.len() as u32, found).unwrap());
    }
    blocks
}

/// Numbers like weights, always the same: sums of four uniform ones.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..count)
        .map(|_| (uniform() + uniform() + uniform() + uniform()) * 0.05)
        .collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn job(to: TensorType, weights: Option<&[f32]>) -> QuantizeJob<'_> {
    QuantizeJob {
        from: TensorType::F32,
        to,
        columns: 512,
        rows_per_matrix: 37,
        matrices: 3,
        weights,
    }
}

fn run(job: &QuantizeJob<'_>, source: &[u8]) -> Result<Vec<u8>, EngineError> {
    let read = |offset: u64, buffer: &mut [u8]| {
        let start = offset as usize;
        buffer.copy_from_slice(&source[start..start + buffer.len()]);
        Ok(())
    };
    let mut out = Vec::new();
    let done = AtomicU64::new(0);
    let progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    engine::quantize(job, &read, &mut out, &Cancel::new(), &progress)?;
    assert_eq!(done.into_inner(), source.len() as u64, "progress covers the source");
    Ok(out)
}

fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .unwrap()
        .install(work)
}

const VALUES: usize = 512 * 37 * 3;

#[test]
fn every_type_that_can_be_a_target_is_written_and_read_back_close_to_the_source() {
    let values = weights(VALUES);
    let source = bytes_of(&values);
    let importances: Vec<f32> = (0..512 * 3).map(|i| 0.5 + (i % 29) as f32).collect();
    let power: f64 = values.iter().map(|v| f64::from(*v).powi(2)).sum();
    let mut count = 0;
    for to in TensorType::ALL.iter().copied().filter(|to| engine::can_quantize(*to)) {
        let job = job(to, Some(&importances));
        let bytes = with_threads(2, || run(&job, &source)).unwrap();
        assert_eq!(bytes.len() as u64, to.row_bytes(512).unwrap() * 37 * 3, "{to}");
        assert_eq!(
            bytes,
            with_threads(1, || run(&job, &source)).unwrap(),
            "{to} depends on threads"
        );
        assert_eq!(
            bytes,
            with_threads(3, || run(&job, &source)).unwrap(),
            "{to} depends on threads"
        );
        let mut back = vec![0.0; VALUES];
        engine::dequantize_rows(to, &bytes, 512, &mut back).unwrap();
        let error: f64 = values
            .iter()
            .zip(&back)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum::<f64>()
            / power;
        // Each bit quarters the squared error or better; the ternary and 1-bit types lose most of the signal.
        let bound = (6.0 * 0.25_f64.powf(to.bpw().min(10.0) - 0.6)).min(0.75);
        assert!(error < bound, "{to}: relative squared error {error}, bound {bound}");
        count += 1;
    }
    assert!(count >= 25, "{count} types");
}

#[test]
fn importances_change_bytes_where_a_type_uses_them_and_only_there() {
    let source = bytes_of(&weights(VALUES));
    let importances: Vec<f32> = (0..512).map(|i| if i % 3 == 0 { 90.0 } else { 0.2 }).collect();
    let repeated = importances.repeat(3);
    for to in TensorType::ALL.iter().copied().filter(|to| engine::can_quantize(*to)) {
        let with = run(&job(to, Some(&importances)), &source).unwrap();
        assert_eq!(
            with,
            run(&job(to, Some(&repeated)), &source).unwrap(),
            "{to}: shared importances"
        );
        match run(&job(to, None), &source) {
            Ok(without) => assert_eq!(with != without, to.uses_imatrix(), "{to}"),
            Err(EngineError::WeightsRequired { to: named }) => {
                assert!(named == to && to.needs_imatrix() && engine::requires_weights(to));
            }
            Err(other) => panic!("{to}: {other}"),
        }
        assert_eq!(to.needs_imatrix(), engine::requires_weights(to), "{to}");
    }
}

#[test]
fn bytes_do_not_depend_on_windows_pieces_and_matrices() {
    // Larger than a window, with rows that divide nothing evenly.
    let (columns, rows, matrices) = (768_usize, 1237_usize, 3_usize);
    let values = weights(columns * rows * matrices);
    let importances: Vec<f32> = (0..columns * matrices).map(|i| 0.5 + (i % 31) as f32).collect();
    let source = bytes_of(&values);
    for to in [TensorType::Q4_K, TensorType::Q5_1, TensorType::Q8_0, TensorType::F16] {
        let whole = QuantizeJob {
            from: TensorType::F32,
            to,
            columns: columns as u64,
            rows_per_matrix: rows as u64,
            matrices: matrices as u64,
            weights: Some(&importances),
        };
        let mut joined = Vec::new();
        for (number, matrix) in source.chunks(columns * rows * 4).enumerate() {
            let weights = Some(&importances[number * columns..(number + 1) * columns]);
            for part in matrix.chunks(columns * 4 * 100) {
                let rows_per_matrix = (part.len() / columns / 4) as u64;
                joined.extend(
                    run(
                        &QuantizeJob {
                            rows_per_matrix,
                            matrices: 1,
                            weights,
                            ..whole
                        },
                        part,
                    )
                    .unwrap(),
                );
            }
        }
        assert!(run(&whole, &source).unwrap() == joined, "{to}");
    }
}

#[test]
fn sources_of_every_type_are_read_and_the_same_type_is_copied() {
    let values = weights(VALUES);
    let source = bytes_of(&values);
    let importances = vec![1.0; 512];
    for from in TensorType::ALL.iter().copied().filter(|ty| engine::can_quantize(*ty)) {
        let bytes = run(&job(from, Some(&importances)), &source).unwrap();
        let mut numbers = vec![0.0; VALUES];
        engine::dequantize_rows(from, &bytes, 512, &mut numbers).unwrap();
        let to = if from == TensorType::Q4_0 {
            TensorType::Q8_0
        } else {
            TensorType::Q4_0
        };
        let direct = QuantizeJob { from, ..job(to, None) };
        assert!(
            run(&direct, &bytes).unwrap() == run(&job(to, None), &bytes_of(&numbers)).unwrap(),
            "{from}"
        );
        let copy = QuantizeJob {
            from,
            ..job(from, None)
        };
        assert!(run(&copy, &bytes).unwrap() == bytes, "{from}");
    }
}

#[test]
fn values_that_are_not_finite_are_rejected_with_their_position() {
    let mut values = weights(VALUES);
    values[512 * 37 + 512 * 5 + 300] = f32::NAN;
    let error = run(&job(TensorType::Q4_K, None), &bytes_of(&values)).unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::NonFinite {
                matrix: 1,
                row: 5,
                column: 300,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(
        error.to_string().contains("NaN in matrix 1, row 5, column 300"),
        "{error}"
    );
    values[512 * 37 + 512 * 5 + 300] = 70_000.0;
    for to in [TensorType::F16, TensorType::Q4_0] {
        let mut huge = values.clone();
        if to == TensorType::Q4_0 {
            huge[512 * 37 + 512 * 5 + 300] = 1e9;
        }
        let error = run(&job(to, None), &bytes_of(&huge)).unwrap_err();
        assert!(
            matches!(error, EngineError::NotRepresentable { matrix: 1, row: 0, .. }),
            "{to}: {error:?}"
        );
    }
    for to in [TensorType::BF16, TensorType::F32, TensorType::Q8_0] {
        run(&job(to, None), &bytes_of(&values)).unwrap();
    }
}

#[test]
fn invalid_jobs_are_rejected_before_anything_is_read() {
    let read = |_: u64, _: &mut [u8]| -> std::io::Result<()> { panic!("nothing is read") };
    let refuse =
        |job: QuantizeJob<'_>| engine::quantize(&job, &read, &mut Vec::new(), &Cancel::new(), &|_| ()).unwrap_err();
    let plain = job(TensorType::Q4_K, None);
    assert!(matches!(
        refuse(QuantizeJob { columns: 500, ..plain }),
        EngineError::RowLength { block: 256, .. }
    ));
    assert!(matches!(
        refuse(QuantizeJob { matrices: 0, ..plain }),
        EngineError::Shape { .. }
    ));
    assert!(matches!(
        refuse(QuantizeJob {
            matrices: u64::MAX,
            ..plain
        }),
        EngineError::Shape { .. }
    ));
    assert!(matches!(
        refuse(QuantizeJob {
            columns: 1 << 62,
            ..plain
        }),
        EngineError::Shape { .. }
    ));
    assert!(matches!(
        refuse(QuantizeJob {
            from: TensorType::I32,
            ..plain
        }),
        EngineError::NoDequantizer { .. }
    ));
    assert!(matches!(
        refuse(QuantizeJob {
            to: TensorType::Q8_K,
            ..plain
        }),
        EngineError::NoQuantizer { .. }
    ));
    let short = vec![1.0; 511];
    assert!(matches!(
        refuse(job(TensorType::Q4_K, Some(&short))),
        EngineError::WeightsLength { found: 511, .. }
    ));
    let mut bad = vec![1.0; 1536];
    bad[513] = f32::INFINITY;
    let error = refuse(job(TensorType::Q4_K, Some(&bad)));
    assert!(
        matches!(
            error,
            EngineError::WeightsValue {
                matrix: 1,
                column: 1,
                ..
            }
        ),
        "{error:?}"
    );
    let cancel = Cancel::new();
    cancel.clone().cancel();
    let error = engine::quantize(&plain, &read, &mut Vec::new(), &cancel, &|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::Cancelled));
}

#[test]
fn errors_of_reader_and_writer_are_returned() {
    let fail = |_: u64, _: &mut [u8]| Err(std::io::Error::other("gone"));
    let error = engine::quantize(
        &job(TensorType::Q4_K, None),
        &fail,
        &mut Vec::new(),
        &Cancel::new(),
        &|_| (),
    )
    .unwrap_err();
    assert!(
        matches!(error, EngineError::Read { .. }) && error.to_string().contains("gone"),
        "{error}"
    );
    let zeros = |_: u64, buffer: &mut [u8]| {
        buffer.fill(0);
        Ok(())
    };
    let mut full: &mut [u8] = &mut [0; 100];
    let error = engine::quantize(&job(TensorType::Q4_K, None), &zeros, &mut full, &Cancel::new(), &|_| ()).unwrap_err();
    assert!(matches!(error, EngineError::Write { .. }), "{error}");
}

#[test]
fn a_vocabulary_tokenizes_and_says_what_begins_a_text() {
    let vocabulary = Vocabulary::open(&ModelFiles::open(&tiny_model()).unwrap()).unwrap();
    assert_eq!(vocabulary.size(), 4096);
    let tokens = vocabulary.tokenize("It was the best of times.", false).unwrap();
    assert!(tokens.len() > 3 && tokens.len() < 26, "{tokens:?}");
    assert_eq!(vocabulary.add_bos(), tokens[0] == vocabulary.bos());
    assert!(vocabulary.tokenize_bare("", false).unwrap().is_empty());
    let missing = ModelFiles::open(Path::new("no such file.gguf")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        format!(
            "cannot open `no such file.gguf`: No such file or directory (os error 2); looked for `{}`",
            std::path::absolute("no such file.gguf").unwrap().display()
        )
    );
}

#[test]
fn importances_and_logits_depend_on_no_thread_and_on_no_other_chunk() {
    let model = tiny_model();
    let chunks = chunks(&model, &calibration_text(), 96, 3);
    let open = |threads| LoadedModel::open(ModelFiles::open(&model).unwrap(), &Options { threads }, 96).unwrap();
    let collect = |threads, chunks: &[Vec<i32>]| {
        open(threads)
            .collect(chunks, CollectOptions::default(), &Cancel::new(), &|_| ())
            .unwrap()
    };
    let one = collect(1, &chunks);
    assert_eq!(one, collect(2, &chunks));
    assert_eq!(one, collect(3, &chunks));
    assert_eq!((one.chunk_count, one.chunk_size), (3, 96));
    assert!(
        one.entries.values().all(|entry| entry.counts == [288.0]),
        "every row of every chunk counts"
    );
    assert!(one.entries.contains_key("blk.0.attn_q.weight") && !one.entries.contains_key("output.weight"));
    let parts: Vec<_> = chunks
        .iter()
        .map(|chunk| collect(2, std::slice::from_ref(chunk)))
        .collect();
    for (name, entry) in &one.entries {
        for (column, sum) in entry.sums.iter().enumerate() {
            let parts: f64 = parts
                .iter()
                .map(|part| f64::from(part.entries[name].sums[column]))
                .sum();
            assert!(
                (f64::from(*sum) - parts).abs() <= 1e-6 * parts,
                "{name}[{column}]: {sum} {parts}"
            );
        }
    }
    let logits = |threads, chunk: &[i32]| {
        let mut all = Vec::new();
        let mut positions = Vec::new();
        let mut each = |start: usize, rows: &[&[f32]]| {
            positions.extend((start..).zip(rows).map(|(position, _)| position));
            all.extend(rows.concat().iter().map(|logit| logit.to_bits()));
            Ok(())
        };
        open(threads).logits(chunk, 40, &Cancel::new(), &mut each).unwrap();
        assert_eq!(positions, (40..96).collect::<Vec<_>>());
        all
    };
    let one = logits(1, &chunks[0]);
    assert_eq!(one.len(), 56 * 4096);
    assert!(
        one == logits(2, &chunks[0]) && one == logits(3, &chunks[0]),
        "logits depend on threads"
    );
    assert!(one != logits(2, &chunks[1]));
}

#[test]
fn experts_are_counted_one_by_one() {
    let model = moe_model();
    let chunks = chunks(&model, &calibration_text(), 128, 2);
    let collect = |threads| {
        let mut loaded = LoadedModel::open(ModelFiles::open(&model).unwrap(), &Options { threads }, 128).unwrap();
        loaded
            .collect(&chunks, CollectOptions::default(), &Cancel::new(), &|_| ())
            .unwrap()
    };
    let found = collect(2);
    assert_eq!(found, collect(1));
    let entry = &found.entries["blk.0.ffn_down_exps.weight"];
    assert!(entry.counts.len() > 1);
    // Two of the experts per token.
    assert_eq!(entry.counts.iter().sum::<f32>(), 2.0 * 256.0, "{:?}", entry.counts);
}

#[test]
fn a_model_against_itself_diverges_by_exactly_nothing() {
    let model = tiny_model();
    let chunks = chunks(&model, &held_out_text(), 64, 2);
    let vocabulary = Vocabulary::open(&ModelFiles::open(&model).unwrap()).unwrap().size();
    assert_eq!(
        reference(&model, &chunks, vocabulary, 1),
        reference(&model, &chunks, vocabulary, 2)
    );
    let blocks = evaluate(&model, &model, &chunks, vocabulary, 2);
    assert!(blocks.iter().all(|block| {
        block
            .figures()
            .iter()
            .all(|figures| figures.kld == 0.0 && figures.top1_same)
    }));
    let expected = figures::Expected {
        chunks: 2,
        positions: 31,
        same_file: false,
    };
    let resampling = figures::Resampling::default();
    assert_eq!(
        figures::summarize(&blocks, &expected, &resampling),
        Err(figures::FigureError::Identical)
    );
    let same = figures::Expected {
        same_file: true,
        ..expected
    };
    let found = figures::summarize(&blocks, &same, &resampling).unwrap();
    assert_eq!((found.kld_mean.value, found.ln_ppl_ratio.value), (0.0, 0.0));
    assert!(found.ppl.value > 2.0 && found.ppl.value < 500.0, "{found:?}");
}

#[test]
fn invalid_models_contexts_and_chunks_are_rejected() {
    let model = tiny_model();
    let open = |context| LoadedModel::open(ModelFiles::open(&model).unwrap(), &Options { threads: 1 }, context);
    assert!(matches!(open(3).unwrap_err(), EngineError::ContextTooShort { .. }));
    let error = open(100_000).unwrap_err();
    assert!(
        matches!(error, EngineError::ContextTooLong { context: 100_000, .. }),
        "{error}"
    );
    let mut loaded = open(32).unwrap();
    let ignore = &mut |_: usize, _: &[&[f32]]| Ok(());
    let error = loaded.logits(&[1; 31], 0, &Cancel::new(), ignore).unwrap_err();
    assert!(
        matches!(
            error,
            EngineError::ChunkLength {
                found: 31,
                expected: 32,
                ..
            }
        ),
        "{error}"
    );
    for token in [-1, 4096] {
        let mut chunk = vec![1; 32];
        chunk[7] = token;
        let error = loaded.logits(&chunk, 0, &Cancel::new(), ignore).unwrap_err();
        assert!(
            matches!(error, EngineError::Token { token: named, .. } if named == token),
            "{error}"
        );
    }
    let cancel = Cancel::new();
    let mut calls = 0;
    let stop = &mut |_: usize, _: &[&[f32]]| {
        calls += 1;
        cancel.cancel();
        Err(EngineError::Consumer("full".into()))
    };
    assert!(matches!(
        loaded.logits(&[1; 32], 0, &cancel, stop).unwrap_err(),
        EngineError::Consumer(_)
    ));
    assert_eq!(calls, 1);
    let error = loaded
        .collect(&[vec![1; 32]], CollectOptions::default(), &cancel, &|_| ())
        .unwrap_err();
    assert!(matches!(error, EngineError::Cancelled), "{error}");
    loaded.logits(&[1; 32], 31, &Cancel::new(), ignore).unwrap();
    let no_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let error = LoadedModel::open(ModelFiles::open(&no_model).unwrap(), &Options::default(), 32).unwrap_err();
    assert!(
        matches!(&error, EngineError::Load { log, .. } if !log.is_empty()),
        "{error}"
    );
}
