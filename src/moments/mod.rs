//! Second moments of the inputs of weights: for each input vector x of a product, the sum of x xT over the tokens of a text.
//!
//! A weight matrix W is used as W x. The mean squared error of W x that an error E in W makes is the trace of E H ET, with H the mean of
//! x xT. The diagonal of H is what an imatrix has. Products with the same input (queries, keys and values; gate and up) share H; experts have one each.
//! GPTQ (arXiv:2210.17323) and QuantEase (arXiv:2309.01885) choose codes by it.

mod accumulator;
mod experts;
mod file;

pub use accumulator::Accumulator;
pub use accumulator::passes;
pub use experts::Experts;
pub use file::Header;
pub use file::MomentsError;
pub use file::MomentsFile;
pub use file::add;
pub use file::packed_len;

/// The second moments of one input.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondMoments {
    columns: usize,
    rows: u64,
    sums: Vec<f32>,
}

impl SecondMoments {
    /// Makes second moments of an input of `columns` numbers from the sums of x_i x_j over `rows` input vectors: the upper triangle row by
    /// row, with the diagonal. `None` if the number of sums is not that of the triangle.
    pub fn new(columns: usize, rows: u64, sums: Vec<f32>) -> Option<Self> {
        (packed_len(columns) == Some(sums.len())).then_some(Self { columns, rows, sums })
    }

    /// Returns the length of the input vectors.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the number of input vectors.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns the sums of x_i x_j for i <= j: (0, 0), (0, 1), ..., (1, 1), (1, 2), ...
    pub fn sums(&self) -> &[f32] {
        &self.sums
    }

    /// Returns the sums of squares by column.
    pub fn diagonal(&self) -> impl Iterator<Item = f32> {
        (0..self.columns).map(|row| self.sums[start_of(row, self.columns)])
    }
}

/// Returns where the row of a packed upper triangle begins: that of its diagonal.
pub(crate) fn start_of(row: usize, columns: usize) -> usize {
    // Row r has `columns - r` numbers.
    row * columns - row * row.saturating_sub(1) / 2
}
