//! Two candidates: size, metadata, types, tensors by digest, and figures where both were measured on the same chunks.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::Change;
use super::DiffError;
use super::Part;
use super::Row;
use super::delta;
use super::detect::Candidate;
use super::known;
use super::tensor::Tensor;
use crate::digest::Hash;
use crate::prose;
use crate::store::Store;

/// How much of a tensor is read at once.
const PIECE: u64 = 4 << 20;

pub(super) fn compare(
    a: &Candidate,
    b: &Candidate,
    store: Option<&Store>,
    notes: &mut Vec<String>,
) -> Result<Vec<Part>, DiffError> {
    let sizes = |candidate: &Candidate| candidate.model.file_lens().into_iter().sum::<u64>();
    let (size_a, size_b) = (sizes(a), sizes(b));
    let mut about = Part::new("file");
    match Row::of(Some(size_a.to_string()), Some(size_b.to_string())) {
        Some(row) => about.push(Row {
            what: "bytes".to_owned(),
            note: Some(delta(i128::from(size_b) - i128::from(size_a))),
            ..row
        }),
        None => about.same += 1,
    }
    let metadata = |candidate: &Candidate| -> BTreeMap<String, (Vec<u8>, String)> {
        let entries = candidate.model.metadata().iter();
        entries
            .map(|entry| {
                let exact = [&entry.value_type().id().to_le_bytes()[..], entry.raw()].concat();
                (entry.key().to_owned(), (exact, entry.shown()))
            })
            .collect()
    };
    let keys = Part::of("metadata", &metadata(a), &metadata(b), |a, b| {
        if a.map(|(exact, _)| exact) == b.map(|(exact, _)| exact) {
            return None;
        }
        let shown = |value: Option<&(Vec<u8>, String)>| value.map(|(_, shown)| shown.clone());
        // Arrays of one length look alike.
        Row::of(shown(a), shown(b)).or_else(|| {
            Some(Row {
                what: String::new(),
                change: Change::Changed,
                before: shown(a),
                after: shown(b),
                effect: None,
                note: Some("different elements".to_owned()),
                paired: None,
            })
        })
    });
    let known = [a, b].map(|candidate| store.and_then(|store| known::assembly(store, candidate)));
    let mut all = Vec::new();
    for (candidate, known) in [a, b].into_iter().zip(&known) {
        all.push(match known {
            Some(known) => known.tensors.clone(),
            None => hashed(candidate)?,
        });
    }
    let mut parts = vec![about, keys];
    parts.extend(tensors(&all[0], &all[1]));
    let differ = parts.iter().any(Part::differs);
    if let Some(store) = store
        && differ
    {
        let computes = [a, b]
            .into_iter()
            .zip(&known)
            .zip(&all)
            .map(|((candidate, known), tensors)| {
                known
                    .as_ref()
                    .map(|known| known.compute)
                    .or_else(|| known::compute(candidate, tensors))
            });
        if let [Some(of_a), Some(of_b)] = computes.collect::<Vec<_>>()[..] {
            parts.extend(known::figures(store, of_a, of_b, notes));
        }
    }
    Ok(parts)
}

/// Reads and hashes every tensor of a model, in pieces and side by side.
fn hashed(candidate: &Candidate) -> Result<BTreeMap<String, Tensor>, DiffError> {
    let model = &candidate.model;
    let hashed: Result<Vec<_>, std::io::Error> = model
        .tensors()
        .par_iter()
        .map(|tensor| {
            let mut hasher = blake3::Hasher::new();
            let mut piece = vec![0; usize::try_from(PIECE.min(tensor.info.len)).unwrap_or(0)];
            let mut at = 0;
            while at < tensor.info.len {
                let len = usize::try_from(PIECE.min(tensor.info.len - at)).unwrap_or(0);
                model.read_at(tensor, at, &mut piece[..len])?;
                hasher.update(&piece[..len]);
                at += len as u64;
            }
            let digest = Hash::from_bytes(*hasher.finalize().as_bytes());
            Ok((
                tensor.info.name.clone(),
                Tensor {
                    ty: tensor.info.ty.name().to_owned(),
                    dims: tensor.info.dims.clone(),
                    bytes: tensor.info.len,
                    digest: Some(digest),
                },
            ))
        })
        .collect();
    let hashed = hashed.map_err(|source| DiffError::Read {
        path: candidate.path.clone(),
        source,
    })?;
    Ok(hashed.into_iter().collect())
}

/// Compares tensors: how many went from which type to which, and each that differs.
pub(super) fn tensors(a: &BTreeMap<String, Tensor>, b: &BTreeMap<String, Tensor>) -> [Part; 2] {
    let by_type = |tensors: &BTreeMap<String, Tensor>| {
        let tensors = tensors.iter();
        tensors
            .map(|(name, tensor)| (name.clone(), (tensor.ty.clone(), tensor.bytes)))
            .collect()
    };
    let each = Part::of("tensors", a, b, |a, b| {
        let (Some(of_a), Some(of_b)) = (a, b) else {
            let one = a.or(b)?;
            return Row::of(a.map(shown), b.map(shown)).map(|row| row.effect(one.bytes as f64));
        };
        if of_a == of_b {
            return None;
        }
        let by = i128::from(of_b.bytes) - i128::from(of_a.bytes);
        let looks_alike = (&of_a.ty, &of_a.dims) == (&of_b.ty, &of_b.dims);
        if looks_alike {
            // By less than any other type would, but the larger the more.
            let row = Row::of(Some(with_digest(of_a)), Some(with_digest(of_b)))?;
            return Some(
                row.effect(of_b.bytes as f64 / (1_u64 << 53) as f64)
                    .note("different bytes"),
            );
        }
        let row = Row::of(Some(shown(of_a)), Some(shown(of_b)))?.effect(by as f64);
        Some(if by == 0 { row } else { row.note(delta(by)) })
    });
    [types(&by_type(a), &by_type(b)), each]
}

/// Counts tensors by the types that they went from and to.
pub(super) fn types(a: &BTreeMap<String, (String, u64)>, b: &BTreeMap<String, (String, u64)>) -> Part {
    let mut moves: BTreeMap<(String, String), (u64, i128)> = BTreeMap::new();
    let mut part = Part::new("types");
    for (name, (before, bytes)) in a {
        let Some((after, now)) = b.get(name) else { continue };
        if before == after {
            part.same += 1;
            continue;
        }
        let entry = moves.entry((before.clone(), after.clone())).or_default();
        entry.0 += 1;
        entry.1 += i128::from(*now) - i128::from(*bytes);
    }
    for ((before, after), (count, by)) in moves {
        if let Some(row) = Row::of(Some(before), Some(after)) {
            part.rows.push(Row {
                what: prose::count(count, "tensor"),
                ..row.effect(by as f64).note(delta(by))
            });
            part.changed += count;
        }
    }
    part.sort();
    part
}

fn shown(tensor: &Tensor) -> String {
    let dims: Vec<String> = tensor.dims.iter().map(u64::to_string).collect();
    format!("{} {} ({})", tensor.ty, dims.join("x"), prose::bytes(tensor.bytes))
}

fn with_digest(tensor: &Tensor) -> String {
    let digest = tensor.digest.map(|digest| digest.short()).unwrap_or_default();
    format!("{} {digest}", shown(tensor))
}
