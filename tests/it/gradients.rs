//! Gradients of the log-likelihood at the outputs of weights, compared with what the loss does when the weights change.

use std::collections::BTreeMap;
use std::path::Path;

use forge::engine::Cancel;
use forge::engine::EngineError;
use forge::engine::GradientModel;
use forge::engine::GradientOptions;
use forge::engine::Inputs;
use forge::engine::Labels;
use forge::engine::Loss;
use forge::engine::ModelFiles;
use forge::engine::Options;
use forge::engine::WeightGradient;

use crate::engine::chunks;
use crate::random_model::ARCHITECTURES;
use crate::random_model::RandomModel;
use crate::support::moe_model;
use crate::support::quickstart;

const CONTEXT: u32 = 24;
const OPTIONS: Options = Options { threads: 1 };
const PLENTY: GradientOptions = GradientOptions { memory: 1 << 30 };

fn open(path: &Path, options: GradientOptions) -> Result<GradientModel, EngineError> {
    GradientModel::open(
        ModelFiles::open(path).unwrap(),
        &OPTIONS,
        CONTEXT,
        options,
        &Cancel::new(),
    )
}

fn chunk(path: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(quickstart().join("held-out.txt")).unwrap();
    chunks(path, &text, CONTEXT as usize, 1).remove(0)
}

/// The gradients of the loss by the numbers of a weight, as far as they were computed.
type ByWeight = BTreeMap<String, BTreeMap<usize, f64>>;

fn add(sums: &mut ByWeight, weight: &WeightGradient<'_>) {
    let sums = sums.entry(weight.tensor.to_owned()).or_default();
    for part in weight.parts {
        for (row, deltas) in part.deltas.chunks_exact(weight.outputs).enumerate() {
            match part.inputs {
                Inputs::Rows(inputs) => {
                    let inputs = &inputs[row * weight.columns..][..weight.columns];
                    for (output, delta) in deltas.iter().enumerate() {
                        let start = (part.matrix * weight.outputs + output) * weight.columns;
                        for (column, input) in inputs.iter().enumerate() {
                            *sums.entry(start + column).or_default() += f64::from(*delta) * f64::from(*input);
                        }
                    }
                }
                Inputs::Lookup(rows) => {
                    let start = usize::try_from(rows[row]).unwrap() * weight.columns;
                    for (column, delta) in deltas.iter().enumerate() {
                        *sums.entry(start + column).or_default() += f64::from(*delta);
                    }
                }
            }
        }
    }
}

fn compute(model: &mut GradientModel, chunk: &[i32], labels: Labels<'_>) -> (Loss, ByWeight) {
    let mut sums = ByWeight::new();
    let loss = model
        .gradients(chunk, 0, labels, &Cancel::new(), &mut |weight| {
            add(&mut sums, weight);
            Ok(())
        })
        .unwrap();
    (loss, sums)
}

/// Signs that look random and are the same each time.
fn sign(at: usize) -> f64 {
    let mixed = (at as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if (mixed ^ mixed >> 29) & 1 << 20 == 0 {
        1.0
    } else {
        -1.0
    }
}

/// Compares the loss of a model whose weights differ a little with what gradients say, weight by weight. Each weight moves along
/// a random vector of signs. Returns the names of the weights that were compared.
fn compare(architecture: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut model = RandomModel::new(architecture, &quickstart().join("tiny.gguf"));
    model.write(&path);
    let chunk = chunk(&path);
    let (base, sums) = compute(&mut open(&path, PLENTY).unwrap(), &chunk, Labels::Sampled { seed: 3 });
    let loss = |model: &RandomModel| {
        model.write(&path);
        let given = Labels::Given(&base.labels);
        open(&path, PLENTY)
            .unwrap()
            .gradients(&chunk, 0, given, &Cancel::new(), &mut |_| Ok(()))
            .unwrap()
            .sum
    };
    // ggml reads GELU from a table of F16, so a loss with it is a staircase, which only larger steps see the slope of. Other steps
    // are small enough for experts to stay the same and for the second derivative not to count, and large enough for F32.
    let (change, noise, tolerance) = match architecture {
        "gemma2" | "phi2" | "gpt2" => (0.08, 8e-3, 0.1),
        _ => (2e-3, 2e-5, 0.02),
    };
    let mut compared = Vec::new();
    for at in 0..model.tensors.len() {
        let (name, dims, values) = model.tensors[at].clone();
        // In the first layer, the weights that gradients reach last are enough.
        let is_passed =
            name.starts_with("blk.0.") && !name.starts_with("blk.0.attn_q") && !name.starts_with("blk.0.attn_kv");
        let is_weight = name.ends_with(".weight") && dims.len() > 1 && !is_passed;
        if !is_weight {
            continue;
        }
        let gradient = sums
            .get(&name)
            .unwrap_or_else(|| panic!("{architecture}: no gradient of {name}"));
        let expected: f64 = gradient.iter().map(|(at, gradient)| gradient * sign(*at)).sum();
        let step = (change / expected.abs()).min(change / 10.0);
        let mut moved = |factor: f64| {
            model.tensors[at].2 = values
                .iter()
                .enumerate()
                .map(|(at, value)| (f64::from(*value) + factor * step * sign(at)) as f32)
                .collect();
            loss(&model)
        };
        let found = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        model.tensors[at].2 = values;
        let noise = noise / step;
        assert!(
            (found - expected).abs() <= tolerance * expected.abs() + noise,
            "{architecture}: {name}: the loss changes by {found}, gradients say {expected}"
        );
        // The comparison can fail only where the noise is much less than what is compared.
        if noise < 0.3 * expected.abs() {
            compared.push(name);
        }
    }
    compared
}

#[test]
fn agree_with_the_change_of_the_loss_in_models_of_many_architectures() {
    for architecture in ARCHITECTURES {
        let compared = compare(architecture);
        eprintln!("{architecture}: {compared:?}");
        assert!(compared.len() >= 6, "{architecture}: only {compared:?}");
    }
}

/// The deltas of all weights, bit for bit, and the loss.
fn bits(path: &Path, options: GradientOptions, threads: usize) -> (Loss, Vec<(String, Vec<u32>)>, usize) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let mut model = GradientModel::open(
            ModelFiles::open(path).unwrap(),
            &Options { threads },
            CONTEXT,
            options,
            &Cancel::new(),
        )
        .unwrap();
        let mut all = Vec::new();
        let loss = model
            .gradients(
                &chunk(path),
                0,
                Labels::Sampled { seed: 0 },
                &Cancel::new(),
                &mut |weight| {
                    let deltas = weight.parts.iter().flat_map(|part| part.deltas);
                    all.push((weight.tensor.to_owned(), deltas.map(|delta| delta.to_bits()).collect()));
                    Ok(())
                },
            )
            .unwrap();
        (loss, all, model.parts())
    })
}

#[test]
fn are_the_same_bits_for_any_number_of_threads_and_any_memory() {
    for path in [quickstart().join("tiny.gguf"), moe_model()] {
        let (loss, expected, parts) = bits(&path, PLENTY, 1);
        assert_eq!(parts, 1);
        assert!(expected.len() > 40);
        for (memory, threads) in [(1 << 30, 3), (1 << 20, 2)] {
            let (other, found, parts) = bits(&path, GradientOptions { memory }, threads);
            assert_eq!(parts > 1, memory == 1 << 20);
            assert_eq!(other, loss);
            assert!(
                found == expected,
                "{}: {memory} bytes, {threads} threads",
                path.display()
            );
        }
    }
}

#[test]
fn labels_follow_the_distribution_the_seed_and_the_chunk() {
    let path = quickstart().join("tiny.gguf");
    let tokens = chunk(&path);
    let mut model = open(&path, PLENTY).unwrap();
    let mut sample = |seed| {
        model
            .gradients(&tokens, 0, Labels::Sampled { seed }, &Cancel::new(), &mut |_| Ok(()))
            .unwrap()
    };
    let first = sample(0);
    assert_eq!(first, sample(0));
    assert_ne!(first.labels, sample(1).labels);
    // The mean loss of sampled labels is the entropy of the distributions, which `logits` give.
    let mut entropy = 0.0;
    let mut scorer = forge::engine::LoadedModel::open(ModelFiles::open(&path).unwrap(), &OPTIONS, CONTEXT).unwrap();
    scorer
        .logits(&tokens, 0, &Cancel::new(), &mut |_, rows| {
            for row in rows {
                let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
                entropy += sum.ln()
                    - row
                        .iter()
                        .map(|logit| f64::from(*logit) * f64::from(*logit).exp())
                        .sum::<f64>()
                        / sum;
            }
            Ok(())
        })
        .unwrap();
    let seeds = 40;
    let losses: Vec<f64> = (0..seeds).map(|seed| sample(seed).sum).collect();
    let mean = losses.iter().sum::<f64>() / seeds as f64;
    let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / (seeds - 1) as f64;
    let error = (variance / seeds as f64).sqrt();
    assert!(
        (mean - entropy).abs() < 4.0 * error,
        "{mean} +- {error}, but the entropy is {entropy}"
    );
}

#[test]
fn say_what_is_wrong() {
    let path = quickstart().join("tiny.gguf");
    let refused = open(&path, GradientOptions { memory: 1000 }).unwrap_err();
    assert!(
        matches!(refused, EngineError::GradientMemory { limit: 1000, .. }),
        "{refused}"
    );
    let mut model = open(&path, PLENTY).unwrap();
    let tokens = chunk(&path);
    let mut run = |chunk: &[i32], labels: &[i32], cancel: &Cancel| {
        model
            .gradients(chunk, 0, Labels::Given(labels), cancel, &mut |_| Ok(()))
            .unwrap_err()
    };
    let beyond = vec![1 << 20; tokens.len()];
    assert!(matches!(
        run(&tokens, &beyond, &Cancel::new()),
        EngineError::Token { .. }
    ));
    assert!(matches!(
        run(&tokens, &tokens[1..], &Cancel::new()),
        EngineError::ChunkLength { .. }
    ));
    assert!(matches!(
        run(&tokens[1..], &tokens, &Cancel::new()),
        EngineError::ChunkLength { .. }
    ));
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(run(&tokens, &tokens, &cancel), EngineError::Cancelled));
    // An error of the caller ends the computation and comes back; the model still works.
    let stopped = model.gradients(&tokens, 0, Labels::Given(&tokens), &Cancel::new(), &mut |_| {
        Err(EngineError::NoFile)
    });
    assert!(matches!(stopped, Err(EngineError::NoFile)));
    let cancel = Cancel::new();
    let late = model.gradients(&tokens, 0, Labels::Given(&tokens), &cancel, &mut |_| {
        cancel.cancel();
        Ok(())
    });
    assert!(matches!(late, Err(EngineError::Cancelled)));
    assert!(
        model
            .gradients(&tokens, 0, Labels::Given(&tokens), &Cancel::new(), &mut |_| Ok(()))
            .is_ok()
    );
}
