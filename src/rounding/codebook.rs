//! Descent over the vectors of a codebook: a code stands for 4 or 8 adjacent columns.
//!
//! With the scale s of the columns c, products g = A e and values v, the objective changes to that of s u instead of v by
//! (s u - t)T A_cc (s u - t) up to a constant, with t = v + A_cc^-1 g. All entries of the grid are tried.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the vectors of its caller"
)]

use multiversion::multiversion;

use super::codec::Codebook;
use super::descent::Scales;

/// Entries that are tried at a time.
const TRIED: usize = 16;

/// The entries of a codebook.
#[derive(Debug)]
pub(super) struct Grid {
    pub(super) width: usize,
    pub(super) free_signs: bool,
    entries: usize,
    /// For each column of an entry the numbers of all entries.
    columns: Vec<f32>,
}

impl Grid {
    /// Makes a grid of entries, each `width` numbers.
    pub(super) fn new(book: &Codebook, entries: &[f32]) -> Self {
        let count = entries.len() / book.width;
        let mut columns = vec![0.0; entries.len()];
        for (at, entry) in entries.chunks_exact(book.width).enumerate() {
            for (column, number) in entry.iter().enumerate() {
                columns[column * count + at] = *number;
            }
        }
        Self {
            width: book.width,
            free_signs: book.free_signs,
            entries: count,
            columns,
        }
    }

    fn number(&self, entry: u16, column: usize) -> f32 {
        self.columns[column * self.entries + usize::from(entry)]
    }

    /// Returns the value of a column of an entry, as ggml computes it.
    pub(super) fn value(&self, scale: f32, entry: u16, column: usize, negative: bool) -> f32 {
        scale * self.number(entry, column) * if negative { -1.0 } else { 1.0 }
    }

    /// Returns the multiplications and additions to try all entries for one value of a tensor.
    pub(super) fn operations(book: &Codebook) -> f64 {
        let terms = book.width + book.width * (book.width + 1) / 2;
        (2 * terms * book.entries / book.width) as f64
    }
}

/// A block of columns of a panel: all slices hold one column (or code) after another, `rows` numbers each.
pub(super) struct Block<'a> {
    pub(super) start: usize,
    pub(super) rows: usize,
    pub(super) source: &'a [f32],
    pub(super) errors: &'a mut [f32],
    /// The products of A with the errors.
    pub(super) work: &'a mut [f32],
    /// How much each value grew.
    pub(super) made: &'a mut [f32],
    /// For each `width` columns.
    pub(super) codes: &'a mut [u16],
    /// For each 8 columns.
    pub(super) signs: &'a mut [u8],
    pub(super) objective: &'a mut [f64],
}

/// Chooses the entry of each code that lowers the objective most while the others stay. Returns true if a value changed.
pub(super) fn descend(grid: &Grid, scales: &Scales, matrix: &[f32], block: &mut Block<'_>) -> bool {
    if grid.width == 4 {
        descend_4(grid, scales, matrix, block)
    } else {
        descend_8(grid, scales, matrix, block)
    }
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn descend_4(grid: &Grid, scales: &Scales, matrix: &[f32], block: &mut Block) -> bool {
    descend_width::<4>(grid, scales, matrix, block)
}

#[multiversion(targets("x86_64+avx2+fma"))]
fn descend_8(grid: &Grid, scales: &Scales, matrix: &[f32], block: &mut Block) -> bool {
    descend_width::<8>(grid, scales, matrix, block)
}

#[inline(always)]
fn descend_width<const W: usize>(grid: &Grid, scales: &Scales, matrix: &[f32], block: &mut Block<'_>) -> bool {
    let rows = block.rows;
    let columns = block.source.len() / rows;
    let mut changed = false;
    for first in (0..columns).step_by(W) {
        let mut own = [[0.0_f32; W]; W];
        for (i, own) in own.iter_mut().enumerate() {
            own.copy_from_slice(&matrix[(first + i) * columns + first..][..W]);
        }
        let inverse = grid.free_signs.then(|| inverse(&own));
        let group = (block.start + first) / scales.group * rows;
        let shift = first % 8;
        let mask = ((1_u16 << W) - 1) as u8;
        let mut any = false;
        for row in 0..rows {
            let scale = scales.factors[group + row];
            for i in 0..W {
                block.made[(first + i) * rows + row] = 0.0;
            }
            if scales.inverses[group + row] == 0.0 {
                continue;
            }
            let mut value = [0.0_f32; W];
            let mut gradient = [0.0_f32; W];
            for i in 0..W {
                let at = (first + i) * rows + row;
                value[i] = block.source[at] - block.errors[at];
                gradient[i] = block.work[at];
            }
            let (code, signs) = (
                &mut block.codes[first / W * rows + row],
                &mut block.signs[first / 8 * rows + row],
            );
            let old = *signs >> shift & mask;
            let mut new = old;
            if let Some(inverse) = &inverse {
                new = 0;
                for i in 0..W {
                    let mut target = value[i];
                    for k in 0..W {
                        target += inverse[i][k] * gradient[k];
                    }
                    new |= u8::from(target * scale < 0.0) << i;
                }
            }
            let (best, cost) = search::<W>(grid, &own, &value, &gradient, scale, new);
            if best == *code && new == old {
                continue;
            }
            let lower = cost < cost_of::<W>(grid, &own, &value, &gradient, scale, old, *code);
            if !lower {
                continue;
            }
            any = true;
            *code = best;
            *signs = *signs & !(mask << shift) | new << shift;
            let mut change = [0.0_f32; W];
            for (i, change) in change.iter_mut().enumerate() {
                let at = (first + i) * rows + row;
                let error = block.source[at] - grid.value(scale, best, i, new >> i & 1 == 1);
                *change = block.errors[at] - error;
                block.errors[at] = error;
                block.made[at] = *change;
            }
            let mut gain = 0.0;
            for i in 0..W {
                let mut product = -2.0 * gradient[i];
                for k in 0..W {
                    product += own[i][k] * change[k];
                }
                gain += change[i] * product;
            }
            block.objective[row] += f64::from(gain);
        }
        if !any {
            continue;
        }
        changed = true;
        let changes = &block.made[first * rows..(first + W) * rows];
        for (i, change) in changes.chunks_exact(rows).enumerate() {
            for k in first + W..columns {
                let factor = -matrix[(first + i) * columns + k];
                for (work, change) in block.work[k * rows..(k + 1) * rows].iter_mut().zip(change) {
                    *work = factor.mul_add(*change, *work);
                }
            }
        }
    }
    changed
}

/// The quadratic form of the entries for some signs: terms of each number, and of each pair.
#[inline(always)]
fn terms<const W: usize>(
    own: &[[f32; W]; W],
    value: &[f32; W],
    gradient: &[f32; W],
    scale: f32,
    signs: u8,
) -> ([f32; W], [[f32; W]; W]) {
    let sign = |i: usize| if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
    let mut linear = [0.0; W];
    let mut pairs = [[0.0; W]; W];
    for i in 0..W {
        let mut product = gradient[i];
        for k in 0..W {
            product += own[i][k] * value[k];
        }
        linear[i] = -2.0 * sign(i) * product / scale;
        pairs[i][i] = own[i][i];
        for k in 0..i {
            pairs[i][k] = 2.0 * sign(i) * sign(k) * own[i][k];
        }
    }
    (linear, pairs)
}

/// Returns the entry of the least cost, the first of equals, and the cost, up to a constant and in units of the squared scale.
#[inline(always)]
fn search<const W: usize>(
    grid: &Grid,
    own: &[[f32; W]; W],
    value: &[f32; W],
    gradient: &[f32; W],
    scale: f32,
    signs: u8,
) -> (u16, f32) {
    let (linear, pairs) = terms(own, value, gradient, scale, signs);
    let mut least = [f32::INFINITY; TRIED];
    let mut first = [0_u32; TRIED];
    for start in (0..grid.entries).step_by(TRIED) {
        let mut numbers = [[0.0_f32; TRIED]; W];
        let mut cost = [0.0_f32; TRIED];
        for i in 0..W {
            numbers[i].copy_from_slice(&grid.columns[i * grid.entries + start..][..TRIED]);
            let mut factor = [linear[i]; TRIED];
            for k in 0..=i {
                for lane in 0..TRIED {
                    factor[lane] = pairs[i][k].mul_add(numbers[k][lane], factor[lane]);
                }
            }
            for lane in 0..TRIED {
                cost[lane] = factor[lane].mul_add(numbers[i][lane], cost[lane]);
            }
        }
        for lane in 0..TRIED {
            let lower = cost[lane] < least[lane];
            first[lane] = if lower { start as u32 } else { first[lane] };
            least[lane] = if lower { cost[lane] } else { least[lane] };
        }
    }
    let mut best = (u32::MAX, f32::INFINITY);
    for lane in 0..TRIED {
        let entry = first[lane] + lane as u32;
        if least[lane] < best.1 || (least[lane] == best.1 && entry < best.0) {
            best = (entry, least[lane]);
        }
    }
    (best.0.min(grid.entries as u32 - 1) as u16, best.1)
}

/// Returns the cost of one entry, with the operations of [`search`].
#[inline(always)]
fn cost_of<const W: usize>(
    grid: &Grid,
    own: &[[f32; W]; W],
    value: &[f32; W],
    gradient: &[f32; W],
    scale: f32,
    signs: u8,
    entry: u16,
) -> f32 {
    let (linear, pairs) = terms(own, value, gradient, scale, signs);
    let mut cost = 0.0;
    for i in 0..W {
        let mut factor = linear[i];
        for (k, pair) in pairs[i][..=i].iter().enumerate() {
            factor = pair.mul_add(grid.number(entry, k), factor);
        }
        cost = factor.mul_add(grid.number(entry, i), cost);
    }
    cost
}

/// Returns the inverse of a positive definite matrix, by elimination.
#[inline(always)]
fn inverse<const W: usize>(own: &[[f32; W]; W]) -> [[f32; W]; W] {
    let mut left = own.map(|row| row.map(f64::from));
    let mut right = [[0.0_f64; W]; W];
    for (i, row) in right.iter_mut().enumerate() {
        row[i] = 1.0;
    }
    for pivot in 0..W {
        let scale = 1.0 / left[pivot][pivot];
        for k in 0..W {
            left[pivot][k] *= scale;
            right[pivot][k] *= scale;
        }
        for row in 0..W {
            let factor = left[row][pivot];
            if row == pivot || factor == 0.0 {
                continue;
            }
            for k in 0..W {
                left[row][k] -= factor * left[pivot][k];
                right[row][k] -= factor * right[pivot][k];
            }
        }
    }
    right.map(|row| row.map(|value| value as f32))
}
