//! Two imatrices: entry by entry, how far their sums lie apart and how alike they are.

use std::collections::BTreeMap;

use super::Part;
use super::Row;
use crate::imatrix::Entry;
use crate::imatrix::Imatrix;

pub(super) fn compare(a: &Imatrix, b: &Imatrix) -> Vec<Part> {
    let about = |imatrix: &Imatrix| -> BTreeMap<String, String> {
        BTreeMap::from([
            ("chunks".to_owned(), imatrix.chunk_count.to_string()),
            ("tokens per chunk".to_owned(), imatrix.chunk_size.to_string()),
            ("texts".to_owned(), imatrix.datasets.join(", ")),
        ])
    };
    let of_all = Part::of("imatrix", &about(a), &about(b), |a, b| Row::of(a.cloned(), b.cloned()));
    vec![of_all, Part::of("entries", &a.entries, &b.entries, entry)]
}

fn entry(a: Option<&Entry>, b: Option<&Entry>) -> Option<Row> {
    match (a, b) {
        (Some(a), Some(b)) if a == b => None,
        (Some(a), Some(b)) if a.sums.len() != b.sums.len() => {
            Row::of(Some(shown(a)), Some(shown(b))).map(|row| row.effect(f64::MAX).note("of a different shape"))
        }
        (Some(of_a), Some(of_b)) => {
            let apart = relative_difference(&of_a.sums, &of_b.sums);
            let alike = match correlation(&of_a.sums, &of_b.sums) {
                Some(correlation) => format!("correlation {correlation:.6}"),
                None => "no correlation: the sums of one do not vary".to_owned(),
            };
            let note = format!("sums differ by {:.4} %, {alike}", apart * 100.0);
            let row = Row::of(Some(shown(of_a)), Some(shown(of_b)));
            // Shapes and counts may be the same, and the sums still differ.
            let row = row.or_else(|| {
                Row::of(Some(String::new()), Some(shown(of_b))).map(|row| Row {
                    before: Some(shown(of_a)),
                    ..row
                })
            });
            row.map(|row| row.effect(apart).note(note))
        }
        (a, b) => Row::of(a.map(shown), b.map(shown)).map(|row| row.effect(f64::MAX)),
    }
}

fn shown(entry: &Entry) -> String {
    let rows: f64 = entry.counts.iter().map(|&count| f64::from(count)).sum();
    let experts = match entry.matrices() {
        1 => String::new(),
        matrices => format!(" of {matrices} matrices"),
    };
    format!("{} sums{experts}, {rows} rows", entry.sums.len())
}

/// Returns how far two lists of sums lie apart: the sum of the differences over the sum of the first, in size.
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let apart: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs())
        .sum();
    let all: f64 = a.iter().map(|a| f64::from(a.abs())).sum();
    match (apart, all) {
        (0.0, _) => 0.0,
        (_, 0.0) => f64::INFINITY,
        _ => apart / all,
    }
}

/// Returns Pearson's correlation; nothing where one of the lists does not vary.
fn correlation(a: &[f32], b: &[f32]) -> Option<f64> {
    let count = a.len() as f64;
    let mean = |list: &[f32]| list.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a) - mean_a, f64::from(*b) - mean_b);
        both += a * b;
        of_a += a * a;
        of_b += b * b;
    }
    let scale = (of_a * of_b).sqrt();
    (scale > 0.0).then(|| both / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_that_are_twice_as_large_are_apart_by_all_and_fully_alike() {
        let (a, b) = ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]);
        assert!((relative_difference(&a, &b) - 1.0).abs() < 1e-12);
        assert!((correlation(&a, &b).unwrap() - 1.0).abs() < 1e-12);
        assert!((correlation(&a, &[3.0, 2.0, 1.0]).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&a, &[5.0; 3]), None);
        assert_eq!(relative_difference(&a, &a), 0.0);
        assert_eq!(relative_difference(&[0.0], &[1.0]), f64::INFINITY);
    }

    #[test]
    fn entries_with_the_same_counts_and_other_sums_differ() {
        let entry_of = |sums: Vec<f32>| Entry::new(sums, vec![10.0]).unwrap();
        let (a, b) = (entry_of(vec![1.0, 2.0]), entry_of(vec![1.0, 2.5]));
        let row = entry(Some(&a), Some(&b)).unwrap();
        assert_eq!(
            (row.before.as_deref(), row.change),
            (Some("2 sums, 10 rows"), super::super::Change::Changed)
        );
        assert!(row.note.unwrap().starts_with("sums differ by 16.6667 %"));
        assert_eq!(entry(Some(&a), Some(&a)), None);
    }
}
