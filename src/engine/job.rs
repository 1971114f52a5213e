//! Tensors to quantize or compare.

use std::io;
use std::sync::Arc;

use super::EngineError;
use crate::moments::SecondMoments;
use crate::rounding::Factor;
use crate::rounding::Outcome;
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

/// Some rows of a matrix, and what became of them.
#[derive(Debug, Clone, Copy)]
pub struct RowPanel<'a> {
    /// The first row, counted in its matrix.
    pub first: usize,
    /// The values in a row.
    pub columns: usize,
    /// The values of the source, row by row.
    pub source: &'a [f32],
    /// The values that the quantized bytes stand for.
    pub quantized: &'a [f32],
}

/// Returns some sums over rows: for all rows of a tensor as many. Called from many threads at once.
pub type SumsOfRows<'a> = dyn Fn(&RowPanel<'_>) -> Vec<f64> + Sync + 'a;

/// What is known of the inputs of one matrix of a tensor.
#[derive(Debug, Clone)]
pub enum MatrixMoments {
    /// Moments that can be used.
    Known {
        /// Their factorization, which decides the codes.
        factor: Arc<Factor>,
        /// Moments of inputs that `factor` does not have. If their error does not fall, the matrix keeps the bytes that it had.
        validation: Option<Arc<SecondMoments>>,
    },
    /// The matrix keeps the bytes that it had, for this reason.
    Unusable(String),
}

/// Returns the moments of a matrix. Called once for each matrix, in order, so that the factors of experts need not all be in memory.
pub type MomentsOf<'a> = dyn FnMut(u64) -> Result<MatrixMoments, EngineError> + 'a;

/// What refining did to one matrix of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixRefinement {
    /// What came of its rows; nothing if it was not tried. If the matrix keeps its bytes for the sake of validation, this is what was refused.
    pub outcome: Option<Outcome>,
    /// Why the whole matrix keeps the bytes that it had.
    pub kept: Option<KeptBytes>,
}

/// Why a matrix keeps the bytes of the quantizer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KeptBytes {
    /// The type is not refined.
    #[error("{ty} is not refined: {reason}")]
    Type {
        /// The type.
        ty: TensorType,
        /// Why not.
        reason: &'static str,
    },
    /// The source has this type, so its bytes are copied.
    #[error("the source is {ty} already")]
    Copied {
        /// The type.
        ty: TensorType,
    },
    /// The moments of the inputs cannot be used.
    #[error("{0}")]
    Moments(String),
    /// The error with the moments for validation did not fall.
    #[error("the error on the inputs held out did not fall")]
    Validation,
}
