//! What the store knows of candidates: their tensors without reading them, and their figures.

use std::collections::BTreeMap;

use super::Paired;
use super::Part;
use super::Row;
use super::detect::Candidate;
use super::tensor::Tensor;
use crate::action;
use crate::action::Action;
use crate::action::Promote;
use crate::digest::BlobDigest;
use crate::figures;
use crate::figures::Resampling;
use crate::store::StepRecord;
use crate::store::Store;
use crate::tensor_type::TensorType;
use crate::work::Assembly;
use crate::work::Chunk;
use crate::work::ComputeTensor;
use crate::work::DOCUMENT_CAP;
use crate::work::Figures;
use crate::work::compute_digest;

/// No action's document is longer.
const ACTION_CAP: u64 = 16 << 20;
/// The confidence of the intervals.
const CONFIDENCE: f64 = 0.95;

/// A candidate that the store knows.
pub(super) struct Known {
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// The document of the candidate as far as it computes.
    pub(super) compute: BlobDigest,
}

/// Returns what the store knows of a candidate that forge wrote and nobody changed since.
pub(super) fn assembly(store: &Store, candidate: &Candidate) -> Option<Known> {
    let file = store.known_digest(&candidate.path).ok()??.to_string();
    let promoted = records(store, "promote.");
    let result = promoted.iter().find_map(|record| {
        let result = store.lookup_shallow(&record.action).ok()??;
        (result.facts.get(Promote::FILE.as_str()) == Some(&file)).then_some(result)
    })?;
    let bytes = store
        .read(&result.output(Promote::ASSEMBLY.as_str())?, DOCUMENT_CAP)
        .ok()?;
    let assembly: Assembly = serde_json::from_slice(&bytes).ok()?;
    let tensors = assembly.tensors.into_iter().map(|tensor| {
        (
            tensor.name,
            Tensor {
                ty: tensor.ty.name().to_owned(),
                dims: tensor.dims,
                bytes: tensor.bytes.len,
                digest: Some(tensor.bytes.hash),
            },
        )
    });
    Some(Known {
        tensors: tensors.collect(),
        compute: result.output(Promote::COMPUTE.as_str())?,
    })
}

/// Returns the digest of the document of a candidate as far as it computes, by which evaluations name it.
pub(super) fn compute(candidate: &Candidate, tensors: &BTreeMap<String, Tensor>) -> Option<BlobDigest> {
    let tensors = tensors.iter().map(|(name, tensor)| {
        Some(ComputeTensor {
            name: name.clone(),
            ty: TensorType::from_name(&tensor.ty)?,
            dims: tensor.dims.clone(),
            bytes: BlobDigest {
                hash: tensor.digest?,
                len: tensor.bytes,
            },
        })
    });
    compute_digest(candidate.model.metadata(), tensors.collect::<Option<Vec<_>>>()?).ok()
}

/// Returns what steps of a kind did, now and before, in all recipes.
fn records(store: &Store, prefix: &str) -> Vec<StepRecord> {
    let mut records: Vec<StepRecord> = store
        .all_last()
        .unwrap_or_default()
        .into_iter()
        .filter(|last| last.step.starts_with(prefix))
        .collect();
    let earlier: Vec<StepRecord> = records
        .iter()
        .flat_map(|last| store.earlier(&last.recipe, &last.step))
        .collect();
    records.extend(earlier);
    records
}

/// An evaluation of a candidate.
struct Measured {
    name: String,
    action: action::Eval,
    figures: Figures,
}

fn measured(store: &Store, records: &[StepRecord], compute: BlobDigest) -> Vec<Measured> {
    let found = records.iter().filter_map(|record| {
        let Ok(Action::Eval(action)) = Action::parse(&store.read(&record.document, ACTION_CAP).ok()?) else {
            return None;
        };
        if action.candidate != compute {
            return None;
        }
        let result = store.lookup_shallow(&record.action).ok()??;
        let bytes = store
            .read(&result.output(action::Eval::FIGURES.as_str())?, DOCUMENT_CAP)
            .ok()?;
        let step = record.step.split('/').next().unwrap_or_default();
        Some(Measured {
            name: format!("{step} of {}", record.recipe),
            action,
            figures: serde_json::from_slice(&bytes).ok()?,
        })
    });
    found.collect()
}

/// Compares the figures of two candidates where both were measured with one engine on the same chunks: the difference of
/// each chunk is taken, and the chunks are drawn again and again (`figures::paired_difference`).
pub(super) fn figures(store: &Store, a: BlobDigest, b: BlobDigest, notes: &mut Vec<String>) -> Option<Part> {
    let records = records(store, "eval.");
    let (of_a, of_b) = (measured(store, &records, a), measured(store, &records, b));
    if of_a.is_empty() || of_b.is_empty() {
        notes.push("no figures: this store has no evaluation of both".to_owned());
        return None;
    }
    let mut part = Part::new("figures");
    let mut done: Vec<&action::Eval> = Vec::new();
    for first in &of_a {
        let twin = |other: &&Measured| {
            let mut action = other.action.clone();
            action.candidate = first.action.candidate;
            action == first.action
        };
        let Some(second) = of_b.iter().find(twin) else { continue };
        if done.contains(&&first.action) {
            continue;
        }
        done.push(&first.action);
        for row in rows(first, second) {
            part.push(row);
        }
    }
    if part.rows.is_empty() {
        notes.push(
            "no figures: both were measured, but not with one engine on the same chunks; such figures are historical"
                .to_owned(),
        );
        return None;
    }
    Some(part)
}

fn rows(a: &Measured, b: &Measured) -> Vec<Row> {
    let resampling = Resampling {
        resamples: a.action.bootstrap,
        seed: a.action.seed,
        confidence: CONFIDENCE,
    };
    let paired = |of: fn(&Chunk) -> f64| {
        let list = |measured: &Measured| measured.figures.chunks.iter().map(of).collect::<Vec<f64>>();
        let found = figures::paired_difference(&list(b), &list(a), &resampling).ok()?;
        Some(Paired {
            value: found.value,
            ci95: [found.low, found.high],
        })
    };
    let divergence = |measured: &Measured| measured.figures.divergence.clone();
    let mut rows = Vec::new();
    let mut add = |what: &str, before: Option<f64>, after: Option<f64>, paired: Option<Paired>, lower: bool| {
        let text = |value: Option<f64>| value.map(|value| format!("{value:.6}"));
        let Some(row) = Row::of(text(before), text(after)) else {
            return;
        };
        let note = paired.map(|paired| match paired.ci95 {
            [low, high] if low <= 0.0 && high >= 0.0 => "no significant difference",
            [low, _] if (low > 0.0) == lower => "worse",
            _ => "better",
        });
        rows.push(Row {
            what: format!("{what}, {}", a.name),
            note: note.map(str::to_owned),
            paired,
            ..row
        });
    };
    let (of_a, of_b) = (divergence(a), divergence(b));
    let both = of_a.as_ref().zip(of_b.as_ref());
    add(
        "mean KLD",
        both.map(|(a, _)| a.kld_mean.value),
        both.map(|(_, b)| b.kld_mean.value),
        both.and_then(|_| paired(|chunk| chunk.kld)),
        true,
    );
    add(
        "ln PPL",
        Some(a.figures.ppl.value.ln()),
        Some(b.figures.ppl.value.ln()),
        paired(|chunk| chunk.nll),
        true,
    );
    add(
        "top-1 agreement",
        both.map(|(a, _)| a.top1_agreement.value),
        both.map(|(_, b)| b.top1_agreement.value),
        both.and_then(|_| paired(|chunk| chunk.top1)),
        false,
    );
    rows
}
