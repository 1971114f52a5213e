//! The products of A with the errors of a panel's rows, and their updates when some values change.
//!
//! After the first passes of descent few values change, each row others. So an update multiplies only what changed: for each row the rows
//! of A that belong to its changes, a tile of columns at a time, with the sums in registers. Per operation that is about as fast as a matrix product.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the vectors of its caller"
)]

use multiversion::multiversion;

use super::factor::Factor;

/// Columns of a tile: as many sums as registers hold beside what is multiplied.
const WIDE: usize = 64;

/// Values of a block of columns that changed.
#[derive(Default)]
pub(super) struct Changes {
    /// Columns of the block.
    width: usize,
    /// For each row, `width` places.
    places: Vec<(u32, f32)>,
    /// How many places of each row are in use.
    counts: Vec<u32>,
}

impl Changes {
    /// Collects changes that stand column by column, `rows` in each.
    pub(super) fn collect(&mut self, values: &[f32], rows: usize) {
        self.width = values.len() / rows;
        self.counts.clear();
        self.counts.resize(rows, 0);
        self.places.resize(values.len(), (0, 0.0));
        for (column, values) in (0..).zip(values.chunks_exact(rows)) {
            for ((value, count), places) in values
                .iter()
                .zip(&mut self.counts)
                .zip(self.places.chunks_exact_mut(self.width))
            {
                // Errors shrink by what values grow. Written in any case: a branch would be mispredicted.
                places[*count as usize] = (column, -value);
                *count += u32::from(*value != 0.0);
            }
        }
    }
}

/// The products, in tiles of [`WIDE`] columns: row by row in each.
#[derive(Default)]
pub(super) struct Products {
    columns: usize,
    rows: usize,
    values: Vec<f32>,
    /// A part of A.
    tile: Vec<f32>,
}

impl Products {
    /// Returns the bytes for panels of so many columns and rows.
    pub(super) fn bytes(columns: u64, rows: u64, block: u64) -> u64 {
        let values = columns.next_multiple_of(WIDE as u64).saturating_mul(rows);
        values.saturating_mul(4) + 4 * block * WIDE as u64 + block * rows * 8 + 4 * rows
    }

    /// Makes space for the products of a panel.
    pub(super) fn start(&mut self, columns: usize, rows: usize) {
        self.columns = columns;
        self.rows = rows;
        self.values.resize(columns.next_multiple_of(WIDE) * rows, 0.0);
    }

    /// Sets the products of a block of columns, which stand column by column. A block begins with a tile.
    pub(super) fn store(&mut self, start: usize, block: &[f32]) {
        let rows = self.rows;
        for (tile, block) in self.values[start * rows..]
            .chunks_exact_mut(WIDE * rows)
            .zip(block.chunks(WIDE * rows))
        {
            for (column, products) in block.chunks_exact(rows).enumerate() {
                for (row, product) in tile.chunks_exact_mut(WIDE).zip(products) {
                    row[column] = *product;
                }
            }
        }
    }

    /// Reads the products of a block of columns, column by column.
    pub(super) fn load(&self, start: usize, block: &mut [f32]) {
        let rows = self.rows;
        for (tile, block) in self.values[start * rows..]
            .chunks_exact(WIDE * rows)
            .zip(block.chunks_mut(WIDE * rows))
        {
            for (column, products) in block.chunks_exact_mut(rows).enumerate() {
                for (row, product) in tile.chunks_exact(WIDE).zip(products) {
                    *product = row[column];
                }
            }
        }
    }

    /// Updates the products of all columns from `from` on, a multiple of [`WIDE`], after the changes of a block that begins with column `start`.
    pub(super) fn update(&mut self, factor: &Factor, start: usize, changes: &Changes, from: usize) {
        let tile = &mut self.tile;
        tile.resize(changes.width * WIDE, 0.0);
        for first in (from..self.columns).step_by(WIDE) {
            let last = self.columns.min(first + WIDE);
            for (row, tile) in (start..).zip(tile.chunks_exact_mut(WIDE)) {
                // On and above the diagonal.
                let above = row.clamp(first, last);
                if above < last {
                    let values = &factor.upper_row(row)[above - row..last - row];
                    tile[above - first..last - first].copy_from_slice(values);
                }
            }
            for column in first..last {
                // Below it: the same values by columns.
                let below = (column + 1).max(start);
                if below < start + changes.width {
                    let values = &factor.upper_row(column)[below - column..start + changes.width - column];
                    for (tile, value) in tile[(below - start) * WIDE..].chunks_exact_mut(WIDE).zip(values) {
                        tile[column - first] = *value;
                    }
                }
            }
            let products = &mut self.values[first * self.rows..][..WIDE * self.rows];
            add(changes, tile, products);
        }
    }

    /// Returns the bytes that are held now.
    #[cfg(test)]
    pub(super) fn held(&self, changes: &Changes) -> u64 {
        let numbers = self.values.capacity() + self.tile.capacity() + changes.counts.capacity();
        (4 * numbers + 8 * changes.places.capacity()) as u64
    }
}

/// Adds to the products of each row its changes times the rows of a tile.
#[multiversion(targets("x86_64+avx2+fma"))]
fn add(changes: &Changes, tile: &[f32], products: &mut [f32]) {
    add_inlined(changes, tile, products);
}

#[inline(always)]
fn add_inlined(changes: &Changes, tile: &[f32], products: &mut [f32]) {
    for ((products, places), count) in products
        .chunks_exact_mut(WIDE)
        .zip(changes.places.chunks_exact(changes.width))
        .zip(&changes.counts)
    {
        if *count == 0 {
            continue;
        }
        let mut sums = [0.0_f32; WIDE];
        sums.copy_from_slice(products);
        for (column, change) in &places[..*count as usize] {
            let row = &tile[*column as usize * WIDE..][..WIDE];
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum = change.mul_add(*value, *sum);
            }
        }
        products.copy_from_slice(&sums);
    }
}
