//! Two tables of figures (`metrics.json`): candidate by candidate, paired where the store has the figures of each chunk.

use std::collections::BTreeMap;

use super::Part;
use super::Row;
use super::delta;
use super::figures::Evaluation;
use super::known;
use crate::digest::BlobDigest;
use crate::prose;
use crate::report::metrics;
use crate::report::metrics::Metrics;
use crate::store::Store;

/// Figures were written and read as decimals: they may differ by that much.
const ROUNDING: f64 = 1e-9;

/// Compares sizes, and the figures as the tables have them.
pub(super) fn compare(a: &Metrics, b: &Metrics) -> Vec<Part> {
    let rows = |table: &Metrics| -> BTreeMap<String, metrics::Row> {
        let rows = table.rows.iter();
        rows.map(|row| (format!("{} of {}", row.eval, row.candidate), row.clone()))
            .collect()
    };
    let (of_a, of_b) = (rows(a), rows(b));
    let shown = |row: Option<&metrics::Row>| row.map(|row| format!("{}, {}", prose::bytes(row.bytes), loss(row)));
    let part = Part::of("candidates", &of_a, &of_b, |a, b| {
        if let (Some(a), Some(b)) = (a, b)
            && (&a.blake3, a.ground(), a.loss().to_bits()) == (&b.blake3, b.ground(), b.loss().to_bits())
        {
            return None;
        }
        let bytes = |row: Option<&metrics::Row>| row.map_or(0, |row| i128::from(row.bytes));
        let by = bytes(b) - bytes(a);
        let mut notes = Vec::new();
        if a.is_some() && b.is_some() && by != 0 {
            notes.push(delta(by));
        }
        if let (Some(a), Some(b)) = (a, b)
            && a.ground() != b.ground()
        {
            notes.push("historical: measured by another engine, or on other text or chunks".to_owned());
        }
        // A file can change without its size or loss, as these are shown.
        let row = Row::of(shown(a), shown(b)).or_else(|| {
            let after = shown(b).map(|after| format!("{after}, another file or evaluation"));
            Row::of(shown(a), after)
        })?;
        let row = row.effect(by as f64);
        Some(if notes.is_empty() {
            row
        } else {
            row.note(notes.join("; "))
        })
    });
    vec![part]
}

fn loss(row: &metrics::Row) -> String {
    match row.kld_mean {
        Some(kld) => format!("KLD {kld:.6}"),
        None => format!("PPL {:.4}", row.ppl),
    }
}

/// Returns the evaluations of a table, each with its figures of single chunks if the store has them.
pub(super) fn evaluations(table: &Metrics, store: Option<&Store>) -> Vec<Evaluation> {
    let rows = table.rows.iter().map(|row| {
        let file = format!("{}:{}", row.blake3, row.bytes).parse::<BlobDigest>().ok();
        let found = store
            .zip(file)
            .map_or_else(Vec::new, |(store, file)| known::evaluations(store, &file));
        let is_close = |a: f64, b: f64| (a - b).abs() <= ROUNDING * a.abs().max(b.abs());
        let measured = found.into_iter().find(|(eval, measured)| {
            *eval == row.eval
                && measured.action.engine.to_string() == row.fingerprint
                && measured.figures.context == row.context
                && measured.figures.chunks.len() as u64 == row.chunks
                && is_close(measured.figures.ppl.value, row.ppl)
        });
        Evaluation {
            eval: row.eval.clone(),
            candidate: row.candidate.clone(),
            measured: measured.map(|(_, measured)| measured),
        }
    });
    rows.collect()
}
