//! The errors of outputs: eT A e of rows, and eT H e for other moments. Products in 32 bits, their sums over columns in 64.

use ndarray::linalg::general_mat_mul;
use ndarray::s;

use super::factor::Factor;
use super::factor::packed;
use super::factor::view;
use super::factor::view_mut;
use crate::moments::SecondMoments;

/// Columns of a tile.
const TILE: usize = 128;

/// Adds eT A e of each row to `sums`: the sum of squares of RT e, which loses nothing to cancelling. `errors` has the errors column by column,
/// `scaled` receives D RT e / unit in the same order, with D the diagonal of R.
///
/// The order of the additions depends on the number of columns alone.
pub(super) fn add_forms(factor: &Factor, errors: &[f32], scaled: &mut [f32], tile: &mut Vec<f32>, sums: &mut [f64]) {
    let (n, rows) = (factor.columns(), sums.len());
    let mixed = factor.mixed();
    for start in (0..n).step_by(TILE) {
        let end = n.min(start + TILE);
        let width = end - start;
        let (before, own) = errors[..end * rows].split_at(start * rows);
        let products = &mut scaled[start * rows..end * rows];
        products.copy_from_slice(own);
        {
            factor.load_lower(start, width, tile);
            let mut products = view_mut(products, width, rows);
            let own = view(own, width, rows);
            general_mat_mul(1.0, &view(tile, width, width), &own, 1.0, &mut products);
            if start > 0 {
                let part = mixed.slice(s![start..end, ..start]);
                general_mat_mul(1.0, &part, &view(before, start, rows), 1.0, &mut products);
            }
        }
        for (products, pivot) in products.chunks_exact_mut(rows).zip(&factor.pivots()[start..]) {
            for (product, sum) in products.iter_mut().zip(&mut *sums) {
                let weighted = *product * *pivot;
                *sum += f64::from(weighted) * f64::from(*product) * factor.unit();
                *product = weighted;
            }
        }
    }
}

/// What the forms of moments are computed in. One for each thread.
#[derive(Default)]
pub(super) struct Buffers {
    tile: Vec<f32>,
    products: Vec<f32>,
}

impl Buffers {
    /// Returns the bytes for panels of so many rows.
    pub(super) const fn bytes(rows: usize) -> u64 {
        (4 * (TILE * TILE + TILE * rows)) as u64
    }

    /// Returns the bytes that are held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> u64 {
        4 * (self.tile.capacity() + self.products.capacity()) as u64
    }

    /// Adds eT H e of each row to `sums`. `errors` has the errors column by column.
    ///
    /// The order of the additions depends on the number of columns alone.
    pub(super) fn add_forms(&mut self, moments: &SecondMoments, errors: &[f32], sums: &mut [f64]) {
        let (n, rows) = (moments.columns(), sums.len());
        self.tile.resize(TILE * TILE, 0.0);
        self.products.resize(TILE * rows, 0.0);
        let scale = 1.0 / moments.rows() as f64;
        for start in (0..n).step_by(TILE) {
            let end = n.min(start + TILE);
            let width = end - start;
            let products = &mut self.products[..width * rows];
            products.fill(0.0);
            for above in (0..=start).step_by(TILE) {
                let height = TILE.min(n - above);
                let tile = &mut self.tile[..height * width];
                for (row, tile) in (above..).zip(tile.chunks_exact_mut(width)) {
                    // Each pair of columns counts twice, a column with itself once.
                    let skip = row.saturating_sub(start);
                    tile[..skip].fill(0.0);
                    let values = &moments.sums()[packed(n, row, start.max(row))..][..width - skip];
                    for (tile, value) in tile[skip..].iter_mut().zip(values) {
                        *tile = (2.0 * scale * f64::from(*value)) as f32;
                    }
                    if row >= start {
                        tile[skip] *= 0.5;
                    }
                }
                let errors = view(&errors[above * rows..(above + height) * rows], height, rows);
                let tile = view(tile, height, width);
                general_mat_mul(1.0, &tile.t(), &errors, 1.0, &mut view_mut(products, width, rows));
            }
            let errors = errors[start * rows..end * rows].chunks_exact(rows);
            for (errors, products) in errors.zip(products.chunks_exact(rows)) {
                for ((sum, error), product) in sums.iter_mut().zip(errors).zip(products) {
                    *sum += f64::from(*error) * f64::from(*product);
                }
            }
        }
    }
}

/// Rows that are computed together.
const ROWS: usize = 64;

/// Returns the mean of (e x)^2 over the inputs x of second moments, for each row e of errors.
pub fn squared_errors(moments: &SecondMoments, errors: &[f32]) -> Vec<f64> {
    let columns = moments.columns().max(1);
    let mut buffers = Buffers::default();
    let mut by_column = Vec::new();
    let mut found = Vec::with_capacity(errors.len() / columns);
    for errors in errors.chunks(ROWS * columns) {
        let rows = errors.len() / columns;
        by_column.clear();
        for column in 0..columns {
            by_column.extend(errors.iter().skip(column).step_by(columns).take(rows));
        }
        let start = found.len();
        found.resize(start + rows, 0.0);
        buffers.add_forms(moments, &by_column, &mut found[start..]);
    }
    // A sum of squares, but for the rounding of products.
    for error in &mut found {
        *error = error.max(0.0);
    }
    found
}
