//! Parts of tensors: reading them in the order of their dimensions, and adding to them.

use std::borrow::Cow;
use std::collections::HashMap;

use rayon::prelude::*;

use super::graph::Operand;

/// Numbers of a piece of work.
const PIECE: usize = 16 * 1024;

/// What a tensor held when it was captured.
#[derive(Debug)]
pub(in crate::engine) enum Value {
    /// Floats, of whatever type in the graph.
    Real(Vec<f32>),
    /// Whole numbers: positions, indices of rows.
    Whole(Vec<i64>),
}

/// Values by their storage and version.
pub(in crate::engine) type Values = HashMap<(usize, usize), Value>;

/// Calls `each` with the start of each row of an operand in its storage.
fn each_row(operand: &Operand, mut each: impl FnMut(usize)) {
    let [_, n1, n2, n3] = operand.counts;
    let [_, s1, s2, s3] = operand.strides;
    for i3 in 0..n3 {
        for i2 in 0..n2 {
            for i1 in 0..n1 {
                each(operand.offset + i1 * s1 + i2 * s2 + i3 * s3);
            }
        }
    }
}

/// Returns an operand's numbers in the order of its dimensions. `from` is its whole storage.
pub(super) fn gather<'v>(from: &'v [f32], operand: &Operand) -> Cow<'v, [f32]> {
    if operand.is_dense() {
        return Cow::Borrowed(&from[operand.offset..operand.offset + operand.len()]);
    }
    let (columns, step) = (operand.counts[0], operand.strides[0]);
    let mut out = Vec::with_capacity(operand.len());
    each_row(operand, |start| {
        if step == 1 {
            out.extend_from_slice(&from[start..start + columns]);
        } else {
            out.extend((0..columns).map(|at| from[start + at * step]));
        }
    });
    Cow::Owned(out)
}

/// Adds numbers in the order of an operand's dimensions to its storage.
pub(super) fn add(to: &mut [f32], operand: &Operand, values: &[f32]) {
    if operand.is_dense() {
        add_slices(&mut to[operand.offset..operand.offset + operand.len()], values);
        return;
    }
    let (columns, step) = (operand.counts[0].max(1), operand.strides[0]);
    let mut rows = values.chunks_exact(columns);
    each_row(operand, |start| {
        let row = rows.next().unwrap_or_default();
        if step == 1 {
            for (to, value) in to[start..start + row.len()].iter_mut().zip(row) {
                *to += value;
            }
        } else {
            for (at, value) in row.iter().enumerate() {
                to[start + at * step] += value;
            }
        }
    });
}

/// Adds slices of equal length.
pub(super) fn add_slices(to: &mut [f32], values: &[f32]) {
    to.par_chunks_mut(PIECE)
        .zip(values.par_chunks(PIECE))
        .for_each(|(to, values)| {
            for (to, value) in to.iter_mut().zip(values) {
                *to += value;
            }
        });
}

/// Takes an operand's numbers out of its storage and leaves zeros.
pub(super) fn take(from: &mut [f32], operand: &Operand) -> Vec<f32> {
    let (columns, step) = (operand.counts[0], operand.strides[0]);
    let mut out = Vec::with_capacity(operand.len());
    each_row(operand, |start| {
        for at in 0..columns {
            out.push(std::mem::take(&mut from[start + at * step]));
        }
    });
    out
}

/// Says where in a smaller operand, which is repeated, the row of a larger one lies: the first number of that row in dense order.
pub(super) fn repeated_row(large: [usize; 4], small: [usize; 4], row: usize) -> usize {
    let i1 = row % large[1];
    let i2 = row / large[1] % large[2];
    let i3 = row / (large[1] * large[2]);
    small[0] * (i1 % small[1] + small[1] * (i2 % small[2] + small[2] * (i3 % small[3])))
}

/// Computes rows of `columns` numbers in parallel: `each` is called with the number of a row, and the row, which begins as zeros.
pub(super) fn map_rows(rows: usize, columns: usize, each: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut out = vec![0.0; rows * columns];
    let together = (PIECE / columns.max(1)).max(1);
    out.par_chunks_mut((together * columns).max(1))
        .enumerate()
        .for_each(|(piece, rows)| {
            for (at, row) in rows.chunks_exact_mut(columns).enumerate() {
                each(piece * together + at, row);
            }
        });
    out
}

/// Computes numbers in parallel from their places.
pub(super) fn map(len: usize, each: impl Fn(usize) -> f32 + Sync) -> Vec<f32> {
    let mut out = vec![0.0; len];
    out.par_chunks_mut(PIECE).enumerate().for_each(|(piece, out)| {
        for (at, out) in (piece * PIECE..).zip(out) {
            *out = each(at);
        }
    });
    out
}

/// Adds up what belongs to the same number of a smaller operand that was repeated to a larger one. `term` returns the numbers of a
/// row of the larger one.
pub(super) fn reduce(large: [usize; 4], small: [usize; 4], term: impl Fn(usize, usize) -> f32 + Sync) -> Vec<f32> {
    let columns = large[0];
    let rows: usize = large[1..].iter().product();
    if large == small {
        return map_rows(rows, columns, |row, out| {
            for (at, out) in out.iter_mut().enumerate() {
                *out = term(row, at);
            }
        });
    }
    // Sums of a row that is repeated over the columns of each row, in parallel; the rows are then added in their order.
    if small[0] == 1 {
        let sums = map_rows(rows, 1, |row, out| {
            out[0] = (0..columns).map(|at| f64::from(term(row, at))).sum::<f64>() as f32;
        });
        let mut out = vec![0.0_f64; small.iter().product()];
        for (row, sum) in sums.iter().enumerate() {
            out[repeated_row(large, small, row)] += f64::from(*sum);
        }
        return out.iter().map(|sum| *sum as f32).collect();
    }
    let mut out = vec![0.0_f64; small.iter().product()];
    for row in 0..rows {
        let start = repeated_row(large, small, row);
        for at in 0..columns {
            out[start + at % small[0]] += f64::from(term(row, at));
        }
    }
    out.iter().map(|sum| *sum as f32).collect()
}
