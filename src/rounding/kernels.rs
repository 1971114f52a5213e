//! What the refinement asks of the engine that quantizes.

use crate::tensor_type::TensorType;

/// The quantizer and the dequantizer of an engine. Called from many threads at once.
pub trait Kernels: Sync {
    /// What can go wrong, cancelling included.
    type Error: Send;

    /// Quantizes rows of `columns` values, whole blocks of a type, weighted by the importances of the columns. All values and
    /// importances are finite; the result need not be.
    fn quantize(
        &self,
        ty: TensorType,
        values: &[f32],
        columns: usize,
        importances: &[f32],
        out: &mut [u8],
    ) -> Result<(), Self::Error>;

    /// Converts whole blocks of a type to numbers.
    fn dequantize(&self, ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), Self::Error>;

    /// Returns an error once the caller has asked to stop.
    fn check(&self) -> Result<(), Self::Error>;
}
