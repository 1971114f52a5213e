//! Tensors to quantize or compare.

use std::io;

use crate::tensor_type::TensorType;

/// Fills a buffer with the source bytes that begin at a byte offset in the tensor. Called from many threads at once.
pub type ReadAt<'a> = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Sync + 'a;

/// One tensor to quantize: `matrices` matrices of `rows_per_matrix` rows of `columns` values, rows one after another.
#[derive(Debug, Clone, Copy)]
pub struct QuantizeJob<'a> {
    /// Type of the source: F32, F16, BF16 or a quantized type.
    pub from: TensorType,
    /// Type of the result. The same as `from` copies bytes.
    pub to: TensorType,
    /// Values in a row (the first dimension in GGUF's order).
    pub columns: u64,
    /// Rows of one matrix (the second dimension).
    pub rows_per_matrix: u64,
    /// Matrices (the third dimension, times the fourth): experts, or 1.
    pub matrices: u64,
    /// Importances: `columns` per matrix, or `columns` that all matrices share. Each is finite and at least 0.
    pub weights: Option<&'a [f32]>,
}

/// The squared errors of one matrix of a quantized tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct MatrixError {
    /// The sum over all values of the weight of the column times the squared difference.
    pub error: f64,
    /// The sum over all values of the weight of the column times the squared value: the error if all values became zero.
    pub norm: f64,
}

impl MatrixError {
    pub(super) fn add(&mut self, other: Self) {
        self.error += other.error;
        self.norm += other.norm;
    }
}
