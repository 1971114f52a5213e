//! Matrix products, by tiles of fixed sizes on all threads.

use ndarray::ArrayView2;
use ndarray::ArrayViewMut2;
use ndarray::Axis;
use ndarray::ShapeBuilder as _;
use ndarray::linalg::general_mat_mul;
use rayon::prelude::*;

use super::graph::Operand;
use crate::engine::Cancel;
use crate::engine::EngineError;

/// Numbers of a panel of a weight that is converted to floats at once: 8 MiB.
const PANEL: usize = 2 * 1024 * 1024;
/// Numbers that one thread converts at once.
const PIECE: usize = 32 * 1024;
/// Rows and columns of the tiles of a result.
const TILE_ROWS: usize = 256;
const TILE_COLUMNS: usize = 256;

/// Reads rows of the model's weights.
pub(in crate::engine) trait Weights: Sync {
    /// Converts rows of a weight's matrix, from `first` on, to floats. `out` holds whole rows.
    ///
    /// # Errors
    ///
    /// A type that cannot be converted.
    fn rows(&self, storage: usize, matrix: usize, first: usize, out: &mut [f32]) -> Result<(), EngineError>;
}

/// Cuts a matrix into tiles: the first row, the first column, and the tile.
fn tiles(matrix: ArrayViewMut2<'_, f32>) -> Vec<(usize, usize, ArrayViewMut2<'_, f32>)> {
    let mut tiles = Vec::new();
    let mut below = matrix;
    let mut row = 0;
    while below.nrows() > 0 {
        let height = TILE_ROWS.min(below.nrows());
        let (band, rest) = below.split_at(Axis(0), height);
        below = rest;
        let mut right = band;
        let mut column = 0;
        while right.ncols() > 0 {
            let width = TILE_COLUMNS.min(right.ncols());
            let (tile, rest) = right.split_at(Axis(1), width);
            tiles.push((row, column, tile));
            right = rest;
            column += width;
        }
        row += height;
    }
    tiles
}

/// Returns a view of a matrix whose rows follow each other; `None` if the lengths do not agree.
fn matrix(values: &[f32], rows: usize, columns: usize) -> Option<ArrayView2<'_, f32>> {
    ArrayView2::from_shape((rows, columns), values).ok()
}

/// Multiplies rows of `outputs` numbers with a matrix of a weight, which has `outputs` rows of `columns` numbers: what comes out are
/// as many rows of `columns` numbers.
///
/// # Errors
///
/// What reading the weight ends with; [`EngineError::Cancelled`].
pub(super) fn by_weight(
    weights: &dyn Weights,
    (storage, number): (usize, usize),
    deltas: &[f32],
    outputs: usize,
    columns: usize,
    cancel: &Cancel,
) -> Result<Vec<f32>, EngineError> {
    let rows = deltas.len() / outputs.max(1);
    let mut out = vec![0.0; rows * columns];
    let together = (PANEL / columns.max(1)).clamp(1, outputs.max(1));
    let mut panel = vec![0.0; together * columns];
    for first in (0..outputs).step_by(together) {
        cancel.check()?;
        let count = together.min(outputs - first);
        let panel = &mut panel[..count * columns];
        let piece_rows = (PIECE / columns.max(1)).max(1);
        panel
            .par_chunks_mut(piece_rows * columns)
            .enumerate()
            .try_for_each(|(piece, out)| weights.rows(storage, number, first + piece * piece_rows, out))?;
        let whole = ArrayViewMut2::from_shape((rows, columns), &mut out);
        let factors = matrix(deltas, rows, outputs).zip(matrix(panel, count, columns));
        let (Ok(whole), Some((deltas, panel))) = (whole, factors) else {
            return Err(EngineError::Gradient {
                node: "MUL_MAT".to_owned(),
                what: format!("{} deltas are not rows of {outputs}", deltas.len()),
            });
        };
        tiles(whole).into_par_iter().for_each(|(row, column, mut tile)| {
            let (height, width) = tile.dim();
            let left = deltas.slice(ndarray::s![row..row + height, first..first + count]);
            let right = panel.slice(ndarray::s![.., column..column + width]);
            general_mat_mul(1.0, &left, &right, 1.0, &mut tile);
        });
    }
    Ok(out)
}

/// Returns a matrix of an operand, the transpose of ggml's: a row for each step of its second dimension.
fn part<'v>(from: &'v [f32], operand: &Operand, i2: usize, i3: usize) -> Option<ArrayView2<'v, f32>> {
    let [columns, rows, ..] = operand.counts;
    let start = operand.offset + i2 * operand.strides[2] + i3 * operand.strides[3];
    let shape = (rows, columns).strides((operand.strides[1], operand.strides[0]));
    ArrayView2::from_shape(shape, from.get(start..)?).ok()
}

/// Returns the gradient by the first factor of `MUL_MAT`, in dense order: for each of its matrices the sum over those that it was
/// multiplied with of the transposed deltas times the second factor. `deltas` are dense, of the shape `out`. Returns nothing if the
/// shapes do not agree.
pub(super) fn by_second(
    first: &Operand,
    second: (&[f32], &Operand),
    deltas: &[f32],
    out: [usize; 4],
) -> Option<Vec<f32>> {
    let [columns, outputs, n2, n3] = first.counts;
    let (values, second) = second;
    let (repeat2, repeat3) = (out[2] / n2.max(1), out[3] / n3.max(1));
    let size = columns * outputs;
    let mut gradient = vec![0.0; size * n2 * n3];
    gradient
        .par_chunks_mut(size.max(1))
        .enumerate()
        .try_for_each(|(at, gradient)| {
            let (i2, i3) = (at % n2, at / n2);
            let mut gradient = ArrayViewMut2::from_shape((outputs, columns), gradient).ok()?;
            for j3 in i3 * repeat3..(i3 + 1) * repeat3 {
                for j2 in i2 * repeat2..(i2 + 1) * repeat2 {
                    let start = (j3 * out[2] + j2) * out[1] * out[0];
                    let deltas = matrix(deltas.get(start..start + out[1] * out[0])?, out[1], out[0])?;
                    let second = part(values, second, j2, j3)?;
                    general_mat_mul(1.0, &deltas.t(), &second, 1.0, &mut gradient);
                }
            }
            Some(())
        })?;
    Some(gradient)
}

/// Returns the gradient by the second factor of `MUL_MAT`, in dense order: deltas times the first factor. Returns nothing if
/// the shapes do not agree.
pub(super) fn by_first(first: (&[f32], &Operand), columns: usize, deltas: &[f32], out: [usize; 4]) -> Option<Vec<f32>> {
    let (values, first) = first;
    let (repeat2, repeat3) = (out[2] / first.counts[2].max(1), out[3] / first.counts[3].max(1));
    let mut gradient = vec![0.0; columns * out[1] * out[2] * out[3]];
    // Bands of rows of each matrix, so that few matrices keep all threads busy, too.
    let bands = out[1].div_ceil(TILE_ROWS);
    let mut pieces = Vec::new();
    let mut rest = gradient.as_mut_slice();
    for at in 0..out[2] * out[3] {
        for band in 0..bands {
            let rows = TILE_ROWS.min(out[1] - band * TILE_ROWS);
            let (piece, later) = rest.split_at_mut(rows * columns);
            pieces.push((at, band * TILE_ROWS, rows, piece));
            rest = later;
        }
    }
    pieces.into_par_iter().try_for_each(|(at, row, rows, piece)| {
        let (j2, j3) = (at % out[2], at / out[2]);
        let start = (at * out[1] + row) * out[0];
        let deltas = matrix(deltas.get(start..start + rows * out[0])?, rows, out[0])?;
        let factor = part(values, first, j2 / repeat2.max(1), j3 / repeat3.max(1))?;
        let mut gradient = ArrayViewMut2::from_shape((rows, columns), piece).ok()?;
        general_mat_mul(1.0, &deltas, &factor, 0.0, &mut gradient);
        Some(())
    })?;
    Some(gradient)
}
