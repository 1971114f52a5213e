//! The objective eT A e of rows, in 64 bits.

use ndarray::linalg::general_mat_mul;

use super::factor::Factor;
use super::factor::packed;
use super::factor::view;
use super::factor::view_mut;
use crate::moments::SecondMoments;

/// Columns of a tile.
const TILE: usize = 256;

/// A symmetric matrix whose upper triangle can be read row by row.
pub(super) enum Symmetric<'a> {
    /// The damped moments of a factor, in the factor's unit.
    Damped(&'a Factor),
    /// The sums of moments.
    Sums(&'a SecondMoments),
}

impl Symmetric<'_> {
    fn columns(&self) -> usize {
        match self {
            Self::Damped(factor) => factor.columns(),
            Self::Sums(moments) => moments.columns(),
        }
    }

    /// Returns a row from the diagonal on.
    fn row(&self, row: usize) -> &[f32] {
        match self {
            Self::Damped(factor) => factor.upper_row(row),
            Self::Sums(moments) => {
                let n = moments.columns();
                &moments.sums()[packed(n, row, row)..][..n - row]
            }
        }
    }

    /// Returns what a value of the form has to be multiplied with.
    fn unit(&self) -> f64 {
        match self {
            Self::Damped(factor) => factor.unit(),
            Self::Sums(moments) => 1.0 / moments.rows() as f64,
        }
    }
}

/// What the forms are computed in. One for each thread.
#[derive(Default)]
pub(super) struct Buffers {
    tile: Vec<f64>,
    left: Vec<f64>,
    right: Vec<f64>,
    product: Vec<f64>,
}

impl Buffers {
    /// Returns the bytes for panels of so many rows.
    pub(super) const fn bytes(rows: usize) -> u64 {
        (8 * (TILE * TILE + 3 * TILE * rows)) as u64
    }

    /// Returns the bytes that are held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        let buffers = [&self.tile, &self.left, &self.right, &self.product];
        buffers.iter().map(|buffer| 8 * buffer.capacity() as u64).sum()
    }

    /// Adds eT A e of each row to `sums`. `errors` has the errors column by column, `rows` in each.
    ///
    /// The order of the additions depends on the number of columns alone.
    pub(super) fn add_forms(&mut self, matrix: &Symmetric<'_>, errors: &[f32], rows: usize, sums: &mut [f64]) {
        let n = matrix.columns();
        self.tile.resize(TILE * TILE, 0.0);
        for buffer in [&mut self.left, &mut self.right, &mut self.product] {
            buffer.resize(TILE * rows, 0.0);
        }
        let unit = matrix.unit();
        for start in (0..n).step_by(TILE) {
            let end = n.min(start + TILE);
            let width = end - start;
            convert(&errors[start * rows..end * rows], &mut self.right);
            let product = &mut self.product[..width * rows];
            product.fill(0.0);
            for above in (0..=start).step_by(TILE) {
                let height = TILE.min(n - above);
                let tile = &mut self.tile[..height * width];
                for (row, tile) in (above..).zip(tile.chunks_exact_mut(width)) {
                    // Each pair of columns counts twice, a column with itself once.
                    let skip = row.saturating_sub(start);
                    tile[..skip].fill(0.0);
                    let values = &matrix.row(row)[start.saturating_sub(row)..][..width - skip];
                    for (tile, value) in tile[skip..].iter_mut().zip(values) {
                        *tile = 2.0 * f64::from(*value);
                    }
                    if row >= start {
                        tile[skip] *= 0.5;
                    }
                }
                convert(&errors[above * rows..(above + height) * rows], &mut self.left);
                let left = view(&self.left[..height * rows], height, rows);
                let tile = view(tile, height, width);
                general_mat_mul(1.0, &tile.t(), &left, 1.0, &mut view_mut(product, width, rows));
            }
            for (errors, product) in self.right.chunks_exact(rows).zip(product.chunks_exact(rows)) {
                for ((sum, error), product) in sums.iter_mut().zip(errors).zip(product) {
                    *sum += error * product * unit;
                }
            }
        }
    }
}

fn convert(from: &[f32], to: &mut [f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = f64::from(*from);
    }
}
