//! What the store knows of candidates: their tensors without reading them, and their figures.

use std::collections::BTreeMap;

use super::Part;
use super::detect::Candidate;
use super::figures::Measured;
use super::figures::Pair;
use super::tensor::Tensor;
use crate::action;
use crate::action::Action;
use crate::action::ActionResult;
use crate::action::Promote;
use crate::digest::BlobDigest;
use crate::store::StepRecord;
use crate::store::Store;
use crate::tensor_type::TensorType;
use crate::work::Assembly;
use crate::work::ComputeTensor;
use crate::work::DOCUMENT_CAP;
use crate::work::Figures;
use crate::work::compute_digest;

/// No action's document is longer.
const ACTION_CAP: u64 = 16 << 20;

/// A candidate that the store knows.
pub(super) struct Known {
    pub(super) tensors: BTreeMap<String, Tensor>,
    /// The document of the candidate as far as it computes.
    pub(super) compute: BlobDigest,
}

/// Returns what the store knows of a candidate that forge wrote and nobody changed since.
pub(super) fn assembly(store: &Store, candidate: &Candidate) -> Option<Known> {
    let file = store.known_digest(&candidate.path).ok()??;
    let result = promoted(store, &file)?;
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

/// Returns the result of the step that wrote a file, now or before.
fn promoted(store: &Store, file: &BlobDigest) -> Option<ActionResult> {
    let file = file.to_string();
    let promoted = records(store, "promote.");
    promoted.iter().find_map(|record| {
        let result = store.lookup_shallow(&record.action).ok()??;
        (result.facts.get(Promote::FILE.as_str()) == Some(&file)).then_some(result)
    })
}

/// Returns all evaluations of a candidate's file that the store has, each with the name of the evaluation.
pub(super) fn evaluations(store: &Store, file: &BlobDigest) -> Vec<(String, Measured)> {
    let compute = promoted(store, file).and_then(|result| result.output(Promote::COMPUTE.as_str()));
    let Some(compute) = compute else { return Vec::new() };
    let found = found(store, &records(store, "eval."), compute);
    found.into_iter().map(|found| (found.eval, found.measured)).collect()
}

/// Reads the figures of an evaluation.
pub fn read_figures(store: &Store, figures: &BlobDigest) -> Option<Figures> {
    serde_json::from_slice(&store.read(figures, DOCUMENT_CAP).ok()?).ok()
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

/// An evaluation of a candidate that a record names.
struct Found {
    recipe: String,
    eval: String,
    measured: Measured,
}

fn found(store: &Store, records: &[StepRecord], compute: BlobDigest) -> Vec<Found> {
    let found = records.iter().filter_map(|record| {
        let Ok(Action::Eval(action)) = Action::parse(&store.read(&record.document, ACTION_CAP).ok()?) else {
            return None;
        };
        if action.candidate != compute {
            return None;
        }
        let result = store.lookup_shallow(&record.action).ok()??;
        let figures = read_figures(store, &result.output(action::Eval::FIGURES.as_str())?)?;
        let step = record.step.split('/').next().unwrap_or_default();
        Some(Found {
            recipe: record.recipe.clone(),
            eval: step.trim_start_matches("eval.").to_owned(),
            measured: Measured { action, figures },
        })
    });
    found.collect()
}

/// Compares the figures of two candidates where both were measured with one engine on the same chunks: the difference of
/// each chunk is taken, and the chunks are drawn again and again (`figures::paired_difference`).
pub(super) fn figures(store: &Store, a: BlobDigest, b: BlobDigest, notes: &mut Vec<String>) -> Option<Part> {
    let records = records(store, "eval.");
    let (of_a, of_b) = (found(store, &records, a), found(store, &records, b));
    if of_a.is_empty() || of_b.is_empty() {
        notes.push("no figures: this store has no evaluation of both".to_owned());
        return None;
    }
    let mut part = Part::new("figures");
    let mut done: Vec<&action::Eval> = Vec::new();
    for first in &of_a {
        if done.contains(&&first.measured.action) {
            continue;
        }
        // The evaluation that differs in nothing but the candidate, if there is one.
        let is_twin = |other: &&Found| {
            let mut action = other.measured.action.clone();
            action.candidate = first.measured.action.candidate;
            action == first.measured.action
        };
        let Some(second) = of_b.iter().find(is_twin) else {
            continue;
        };
        let Ok(pair) = Pair::of(&first.measured, &second.measured) else {
            continue;
        };
        done.push(&first.measured.action);
        for row in pair.rows(&format!("eval.{} of {}", first.eval, first.recipe)) {
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
