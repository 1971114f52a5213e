//! The damped second moments of a tensor's inputs, and their factorization for the feedback of errors.
//!
//! A = H + damping * mean(diag H) * I = R RT with R upper triangular, where H = E\[x xT\]. With errors e = w - v of a row, the
//! objective is eT A e = sum over k of R_kk^2 (e_k + sum over i < k of e_i R_ik / R_kk)^2. So if the columns are rounded from left to
//! right, column k is best rounded to what is nearest to w_k + sum over i < k of (w_i - v_i) R_ik / R_kk. This is the LDLQ form of
//! GPTQ (arXiv:2307.13304, section 4, which proves that both give the same codes), and it needs no inverse of A.

use ndarray::ArrayView2;
use ndarray::ArrayViewMut2;
use ndarray::linalg::general_mat_mul;
use rayon::prelude::*;

use crate::moments::SecondMoments;

/// Columns of a tile of the factorization.
const TILE: usize = 128;

/// The share of the mean of the diagonal of H that is added to the diagonal. Measured: 0.001, 0.01 and 0.1 give 0.563, 0.549 and
/// 0.549 of the KLD of ggml's bytes.
pub const DAMPING: f64 = 0.01;

/// The least importance of a column, relative to the mean. A block of columns whose inputs were all zero would get the scale 0 otherwise.
pub const LEAST_IMPORTANCE: f64 = 1e-4;

/// Why second moments cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MomentsError {
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
    /// No input was counted.
    #[error("no input was counted")]
    Empty,
    /// All inputs were zero.
    #[error("all inputs are zero")]
    Zero,
    /// A moment is a NaN or an infinity.
    #[error("the moment of the inputs {row} and {column} is {value}")]
    NotFinite {
        /// One input.
        row: usize,
        /// The other input, or the same.
        column: usize,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// A moment that no inputs can have: a negative square, or a product larger than the squares allow.
    #[error("no inputs have these moments: that of the inputs {row} and {column} is {value}")]
    Impossible {
        /// One input.
        row: usize,
        /// The other input, or the same.
        column: usize,
        /// The moment.
        value: String,
    },
    /// The damped matrix is not positive definite.
    #[error("the matrix of moments is not positive definite at input {column}")]
    NotPositive {
        /// The input at which the factorization stopped.
        column: usize,
    },
    /// The system gives no memory.
    #[error("not enough memory for {bytes} bytes of the factorization of the second moments")]
    Memory {
        /// How many bytes.
        bytes: u64,
    },
}

/// The damped second moments of the inputs of a matrix, factorized. Tensors with the same inputs share one.
///
/// Holds 4 bytes for each pair of columns, in both orders.
#[derive(Debug)]
pub struct Factor {
    columns: usize,
    /// Row by row: on and above the diagonal A / `unit`; below it, in row k and column i, R_ik / R_kk.
    mixed: Vec<f32>,
    /// R_kk^2 / `unit`.
    pivots: Vec<f32>,
    /// The diagonal of H / `unit`, with a least value.
    importances: Vec<f32>,
    /// The mean of the diagonal of H. What is computed with is relative to it, so the size of the inputs does not matter.
    unit: f64,
}

impl Factor {
    /// Factorizes second moments, on rayon's threads of the caller's pool. `damping` is relative to the mean of the diagonal. `cancelled`
    /// is asked between tiles.
    ///
    /// The result does not depend on the number of threads.
    ///
    /// # Errors
    ///
    /// Why the moments cannot be used; [`MomentsError::Cancelled`].
    pub fn new(
        moments: &SecondMoments,
        damping: f64,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, MomentsError> {
        let n = moments.columns();
        let unit = checked_unit(moments)?;
        let scale = 1.0 / (unit * moments.rows() as f64);
        let sums = moments.sums();
        let entry = |i: usize, j: usize| {
            let damping = if i == j { damping } else { 0.0 };
            f64::from(sums[packed(n, i, j)]) * scale + damping
        };
        let tiles = Tiles::factorize(n, &entry, cancelled)?;
        let mut mixed = reserve(n.saturating_mul(n))?;
        let mut pivots = reserve(n)?;
        for row in 0..n {
            mixed.extend((0..row).map(|column| (tiles.get(column, row) / tiles.get(row, row)) as f32));
            mixed.extend((row..n).map(|column| entry(row, column) as f32));
            pivots.push((tiles.get(row, row) * tiles.get(row, row)) as f32);
        }
        let square = |column| f64::from(sums[packed(n, column, column)]) * scale;
        Ok(Self {
            columns: n,
            mixed,
            pivots,
            importances: (0..n)
                .map(|column| square(column).max(LEAST_IMPORTANCE) as f32)
                .collect(),
            unit,
        })
    }

    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the importances of the columns for the search of scales: the mean square of each input, relative to the mean of all, and at least
    /// [`LEAST_IMPORTANCE`].
    pub fn importances(&self) -> &[f32] {
        &self.importances
    }

    /// Returns the bytes that a factor of so many columns holds.
    pub fn bytes(columns: u64) -> u64 {
        4 * columns.saturating_mul(columns).saturating_add(2 * columns)
    }

    /// Returns the most bytes that making a factor takes, the factor included and the moments not.
    pub fn peak_bytes(columns: u64) -> u64 {
        let tiles = columns.div_ceil(TILE as u64);
        let factorization = (tiles * (tiles + 1) / 2).saturating_mul(8 * (TILE * TILE) as u64);
        Self::bytes(columns).saturating_add(factorization)
    }

    /// Returns the additions and multiplications of making a factor: n^3 / 3 of each.
    pub fn operations(columns: u64) -> f64 {
        (columns as f64).powi(3) * 2.0 / 3.0
    }

    pub(super) fn unit(&self) -> f64 {
        self.unit
    }

    /// A / `unit` on and above the diagonal, R_ik / R_kk in row k and column i below it.
    pub(super) fn mixed(&self) -> ArrayView2<'_, f32> {
        view(&self.mixed, self.columns, self.columns)
    }

    /// A row of A / `unit`, from the diagonal on.
    pub(super) fn upper_row(&self, row: usize) -> &[f32] {
        &self.mixed[row * self.columns + row..(row + 1) * self.columns]
    }

    /// A row of the feedback: R_ik / R_kk for the columns i before k.
    pub(super) fn lower_row(&self, row: usize) -> &[f32] {
        &self.mixed[row * self.columns..row * self.columns + row]
    }

    /// Copies the feedback between the columns of a block: R_ik / R_kk in row k and column i, and zeros on and above the diagonal.
    pub(super) fn load_lower(&self, start: usize, width: usize, tile: &mut Vec<f32>) {
        tile.clear();
        tile.resize(width * width, 0.0);
        for (row, tile) in (start..).zip(tile.chunks_exact_mut(width)) {
            tile[..row - start].copy_from_slice(&self.lower_row(row)[start..]);
        }
    }

    pub(super) fn pivots(&self) -> &[f32] {
        &self.pivots
    }
}

/// Returns the place of an entry (`i <= j`) of a packed upper triangle.
pub(super) fn packed(n: usize, i: usize, j: usize) -> usize {
    i * (2 * n - i + 1) / 2 + (j - i)
}

/// Checks moments and returns the mean of the diagonal.
fn checked_unit(moments: &SecondMoments) -> Result<f64, MomentsError> {
    let n = moments.columns();
    if n == 0 || moments.rows() == 0 {
        return Err(MomentsError::Empty);
    }
    let sums = moments.sums();
    let squares: Vec<f64> = (0..n).map(|at| f64::from(sums[packed(n, at, at)])).collect();
    for row in 0..n {
        let values = &sums[packed(n, row, row)..][..n - row];
        for (at, value) in values.iter().enumerate() {
            let column = row + at;
            if !value.is_finite() {
                let value = value.to_string();
                return Err(MomentsError::NotFinite { row, column, value });
            }
            // Sums in 32 bits may miss the bound by their rounding; 1 % is far more than that.
            let bound = squares[row] * squares[column];
            let value = f64::from(*value);
            if squares[row] < 0.0 || value * value > 1.02 * bound + f64::from(f32::MIN_POSITIVE).powi(2) {
                let value = value.to_string();
                return Err(MomentsError::Impossible { row, column, value });
            }
        }
    }
    let unit = squares.iter().sum::<f64>() / n as f64 / moments.rows() as f64;
    if unit > 0.0 { Ok(unit) } else { Err(MomentsError::Zero) }
}

/// The upper triangle in square tiles, the last row and column of tiles smaller.
struct Tiles {
    n: usize,
    tiles: Vec<Vec<f64>>,
}

impl Tiles {
    /// Factorizes the matrix of the entries (`i <= j`) into R RT, from the last column of tiles to the first. Each tile gets
    /// its products in a fixed order, and tiles of a column are independent.
    fn factorize(
        n: usize,
        entry: &(dyn Fn(usize, usize) -> f64 + Sync),
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, MomentsError> {
        let count = n.div_ceil(TILE);
        let mut tiles: Vec<Vec<f64>> = Vec::new();
        tiles.resize_with(count * (count + 1) / 2, Vec::new);
        for k in (0..count).rev() {
            let width = Self::side(n, k);
            // The tiles of column k above and on the diagonal.
            let column: Vec<Vec<f64>> = (0..=k)
                .into_par_iter()
                .map(|i| {
                    if cancelled() {
                        return Err(MomentsError::Cancelled);
                    }
                    let height = Self::side(n, i);
                    let mut tile = reserve(height * width)?;
                    for row in 0..height {
                        for at in 0..width {
                            // Below the diagonal of the diagonal tile nothing is read.
                            let (row, at) = (i * TILE + row, k * TILE + at);
                            tile.push(if row <= at { entry(row, at) } else { 0.0 });
                        }
                    }
                    for m in k + 1..count {
                        let inner = Self::side(n, m);
                        let left = view(&tiles[Self::at(i, m)], height, inner);
                        let right = view(&tiles[Self::at(k, m)], width, inner);
                        general_mat_mul(-1.0, &left, &right.t(), 1.0, &mut view_mut(&mut tile, height, width));
                    }
                    Ok(tile)
                })
                .collect::<Result<_, _>>()?;
            let mut column = column.into_iter();
            let mut above: Vec<Vec<f64>> = column.by_ref().take(k).collect();
            let mut diagonal = column.next().unwrap_or_default();
            factorize_tile(&mut diagonal, width).map_err(|at| MomentsError::NotPositive { column: k * TILE + at })?;
            above.par_iter_mut().for_each(|tile| solve_tile(tile, &diagonal, width));
            tiles[Self::at(k, k)] = diagonal;
            for (i, tile) in above.into_iter().enumerate() {
                tiles[Self::at(i, k)] = tile;
            }
        }
        Ok(Self { n, tiles })
    }

    fn side(n: usize, tile: usize) -> usize {
        TILE.min(n - tile * TILE)
    }

    fn at(i: usize, j: usize) -> usize {
        j * (j + 1) / 2 + i
    }

    /// Returns R at a row and a column, `row <= column`.
    fn get(&self, row: usize, column: usize) -> f64 {
        let tile = &self.tiles[Self::at(row / TILE, column / TILE)];
        tile[row % TILE * Self::side(self.n, column / TILE) + column % TILE]
    }
}

/// Replaces the upper triangle of a tile by R with R RT = tile, or returns the column whose pivot is not positive.
fn factorize_tile(tile: &mut [f64], side: usize) -> Result<(), usize> {
    for k in (0..side).rev() {
        for i in (0..=k).rev() {
            let mut sum = tile[i * side + k];
            for m in k + 1..side {
                sum -= tile[i * side + m] * tile[k * side + m];
            }
            if i == k {
                if !(sum.is_finite() && sum > 0.0) {
                    return Err(k);
                }
                tile[k * side + k] = sum.sqrt();
            } else {
                tile[i * side + k] = sum / tile[k * side + k];
            }
        }
    }
    Ok(())
}

/// Replaces X by X R^-T, for the upper triangle R of the diagonal tile.
fn solve_tile(tile: &mut [f64], diagonal: &[f64], side: usize) {
    // By columns, so that the inner loop is over adjacent numbers.
    let mut columns = vec![0.0; side * side];
    for k in 0..side {
        for m in 0..k {
            columns[k * side + m] = diagonal[m * side + k];
        }
    }
    for row in tile.chunks_exact_mut(side) {
        for k in (0..side).rev() {
            let value = row[k] / diagonal[k * side + k];
            row[k] = value;
            for (x, r) in row[..k].iter_mut().zip(&columns[k * side..k * side + k]) {
                *x -= value * r;
            }
        }
    }
}

/// Returns an empty vector with memory for so many values.
pub(super) fn reserve<T>(len: usize) -> Result<Vec<T>, MomentsError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| MomentsError::Memory {
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    Ok(values)
}

/// Returns a slice as a matrix. The callers' lengths agree.
#[allow(clippy::expect_used)]
pub(super) fn view<T>(values: &[T], rows: usize, columns: usize) -> ArrayView2<'_, T> {
    ArrayView2::from_shape((rows, columns), values).expect("rows times columns values")
}

/// Returns a slice as a matrix that can be changed. The callers' lengths agree.
#[allow(clippy::expect_used)]
pub(super) fn view_mut<T>(values: &mut [T], rows: usize, columns: usize) -> ArrayViewMut2<'_, T> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("rows times columns values")
}
