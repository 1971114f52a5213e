//! The inner loops: rounding of blocks of columns, for many rows at once.
//!
//! Rows are cut into lanes of [`LANES`] rows, which the compiler makes vectors of. Rust fuses a multiplication and an addition only where
//! it is told to (`mul_add`), so the results do not depend on the width of the vectors.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined is not compiled for the vectors of its caller"
)]

use multiversion::multiversion;

use super::codec::Codes;

/// Rows that are rounded at a time.
pub(super) const LANES: usize = 32;

/// Adding this number and subtracting it again rounds numbers below 2^22 to the nearest integer, halves to even.
const TO_INTEGER: f32 = 12_582_912.0;

/// The values that multiply a scale.
#[derive(Clone, Copy)]
pub(super) enum Levels {
    /// All integers between two.
    Integers {
        /// The least.
        least: f32,
        /// The largest.
        most: f32,
    },
    /// 16 values in ascending order, and the middles between them.
    Table {
        /// The values.
        values: [f32; 16],
        /// The middles.
        middles: [f32; 15],
    },
}

impl Levels {
    /// Returns the levels of codes; nothing for a codebook.
    pub(super) fn new(codes: &Codes) -> Option<Self> {
        match codes {
            Codes::Linear { zero, least, most } => Some(Self::Integers {
                least: f32::from(least - zero),
                most: f32::from(most - zero),
            }),
            Codes::Table(table) => {
                let mut values = table.map(f32::from);
                values.sort_by(f32::total_cmp);
                let middles = std::array::from_fn(|at| f32::midpoint(values[at], values[at + 1]));
                Some(Self::Table { values, middles })
            }
            Codes::Codebook(_) => None,
        }
    }

    /// Replaces numbers by the nearest levels.
    #[inline(always)]
    fn round(&self, x: &mut [f32; LANES]) {
        match self {
            Self::Integers { least, most } => {
                for x in x {
                    *x = (x.max(*least).min(*most) + TO_INTEGER) - TO_INTEGER;
                }
            }
            Self::Table { values, middles } => {
                let mut nearest = [values[0]; LANES];
                for (value, middle) in values[1..].iter().zip(middles) {
                    for (nearest, x) in nearest.iter_mut().zip(&*x) {
                        *nearest = if *x > *middle { *value } else { *nearest };
                    }
                }
                *x = nearest;
            }
        }
    }
}

/// The scales of a panel: for each group of columns one number for each row.
#[derive(Default)]
pub(super) struct Scales {
    /// Columns of a group.
    pub(super) group: usize,
    pub(super) factors: Vec<f32>,
    /// 1 / scale, or 0.
    pub(super) inverses: Vec<f32>,
    /// What is subtracted; empty if nothing is.
    pub(super) minimums: Vec<f32>,
}

/// A block of columns of a panel: all slices hold one column after another, `rows` numbers each.
pub(super) struct Block<'a> {
    /// The first column.
    pub(super) start: usize,
    /// Rows of the panel; a multiple of [`LANES`].
    pub(super) rows: usize,
    /// The source.
    pub(super) source: &'a [f32],
    /// Source less value.
    pub(super) errors: &'a mut [f32],
    /// The levels that are chosen.
    pub(super) chosen: &'a mut [f32],
    /// In descent the products of A with the errors, in feedback the compensated columns.
    pub(super) work: &'a mut [f32],
    /// In descent how much each value grew; in feedback what the products of A with the errors are made of ([`Factor`](super::Factor)).
    pub(super) made: &'a mut [f32],
    /// The change of the objective, in feedback the objective, for each row.
    pub(super) objective: &'a mut [f64],
}

#[inline(always)]
fn lanes(values: &[f32], at: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&values[at..at + LANES]);
    lanes
}

/// Chooses the level of each value in the block that lowers the objective most while the others stay, column by column. `matrix` is the part
/// of A for these columns. Returns true if a value changed.
///
/// Source: coordinate descent as in QuantEase (arXiv:2309.01885), with the levels of ggml's blocks.
#[multiversion(targets("x86_64+avx2+fma"))]
pub(super) fn descend(levels: &Levels, scales: &Scales, matrix: &[f32], block: &mut Block) -> bool {
    let rows = block.rows;
    let columns = block.source.len() / rows;
    let mut changed = false;
    for lane in (0..rows).step_by(LANES) {
        let mut gain = [0.0_f32; LANES];
        for j in 0..columns {
            let at = j * rows + lane;
            let group = (block.start + j) / scales.group * rows + lane;
            let scale = lanes(&scales.factors, group);
            let inverse = lanes(&scales.inverses, group);
            let source = lanes(block.source, at);
            let errors = lanes(block.errors, at);
            let gradient = lanes(block.work, at);
            let own = matrix[j * columns + j];
            let step = 1.0 / own;
            let mut minimum = [0.0; LANES];
            if !scales.minimums.is_empty() {
                minimum = lanes(&scales.minimums, group);
            }
            let mut level = [0.0; LANES];
            for r in 0..LANES {
                let wanted = source[r] - errors[r] + gradient[r] * step;
                level[r] = (wanted + minimum[r]) * inverse[r];
            }
            levels.round(&mut level);
            let mut change = [0.0; LANES];
            let mut any = 0_u32;
            for r in 0..LANES {
                let error = source[r] - (scale[r] * level[r] - minimum[r]);
                change[r] = errors[r] - error;
                any |= change[r].to_bits() & 0x7fff_ffff;
                gain[r] += change[r] * (change[r] * own - 2.0 * gradient[r]);
                block.errors[at + r] = error;
                block.chosen[at + r] = level[r];
                block.made[at + r] = change[r];
            }
            if any == 0 {
                continue;
            }
            changed = true;
            for k in j + 1..columns {
                let factor = -matrix[j * columns + k];
                let work = &mut block.work[k * rows + lane..k * rows + lane + LANES];
                for (work, change) in work.iter_mut().zip(&change) {
                    *work = factor.mul_add(*change, *work);
                }
            }
        }
        for (objective, gain) in block.objective[lane..].iter_mut().zip(&gain) {
            *objective += f64::from(*gain);
        }
    }
    changed
}

/// Rounds the compensated columns of a block from left to right and feeds each error back into the columns after it. `matrix` has
/// R_ik / R_kk of these columns in row i and column k, `pivots` R_kk^2.
///
/// Source: GPTQ (arXiv:2210.17323) in the form of LDLQ (arXiv:2307.13304).
#[multiversion(targets("x86_64+avx2+fma"))]
pub(super) fn feed_back(levels: &Levels, scales: &Scales, matrix: &[f32], pivots: &[f32], block: &mut Block) {
    let rows = block.rows;
    let columns = block.source.len() / rows;
    for lane in (0..rows).step_by(LANES) {
        let mut lost = [0.0_f32; LANES];
        for j in 0..columns {
            let at = j * rows + lane;
            let group = (block.start + j) / scales.group * rows + lane;
            let scale = lanes(&scales.factors, group);
            let inverse = lanes(&scales.inverses, group);
            let source = lanes(block.source, at);
            let wanted = lanes(block.work, at);
            let mut minimum = [0.0; LANES];
            if !scales.minimums.is_empty() {
                minimum = lanes(&scales.minimums, group);
            }
            let mut level = [0.0; LANES];
            for r in 0..LANES {
                level[r] = (wanted[r] + minimum[r]) * inverse[r];
            }
            levels.round(&mut level);
            let mut errors = [0.0; LANES];
            for r in 0..LANES {
                let value = scale[r] * level[r] - minimum[r];
                errors[r] = source[r] - value;
                let weighted = pivots[j] * (wanted[r] - value);
                lost[r] += weighted * (wanted[r] - value);
                block.made[at + r] = weighted;
                block.errors[at + r] = errors[r];
                block.chosen[at + r] = level[r];
            }
            for k in j + 1..columns {
                let factor = matrix[j * columns + k];
                let work = &mut block.work[k * rows + lane..k * rows + lane + LANES];
                for (work, error) in work.iter_mut().zip(&errors) {
                    *work = factor.mul_add(*error, *work);
                }
            }
        }
        for (objective, lost) in block.objective[lane..].iter_mut().zip(&lost) {
            *objective += f64::from(*lost);
        }
    }
}

/// Feeds the changes of compensated columns, from left to right, into the columns after them, as if no column were rounded. `matrix` is that of
/// [`feed_back`]; `moved` receives the source less the columns.
#[multiversion(targets("x86_64+avx2+fma"))]
pub(super) fn move_ahead(matrix: &[f32], rows: usize, source: &[f32], ahead: &mut [f32], moved: &mut [f32]) {
    let columns = source.len() / rows;
    for lane in (0..rows).step_by(LANES) {
        for j in 0..columns {
            let at = j * rows + lane;
            let mut change = [0.0; LANES];
            for r in 0..LANES {
                change[r] = source[at + r] - ahead[at + r];
            }
            moved[at..at + LANES].copy_from_slice(&change);
            for k in j + 1..columns {
                let factor = matrix[j * columns + k];
                let ahead = &mut ahead[k * rows + lane..k * rows + lane + LANES];
                for (ahead, change) in ahead.iter_mut().zip(&change) {
                    *ahead = factor.mul_add(*change, *ahead);
                }
            }
        }
    }
}
