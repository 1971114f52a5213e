//! Imatrices in the store: read, written, and added up.

use super::ActionOutputs;
use super::StepError;
use crate::action::ImatrixCollect;
use crate::digest::BlobDigest;
use crate::imatrix::Imatrix;
use crate::imatrix::Weight;
use crate::store::Store;
use crate::vocab::MergeMode;

/// No imatrix is longer than this: one with every expert of the largest models known is some GB.
pub(super) const IMATRIX_CAP: u64 = 1 << 36;

/// Reads an imatrix from the store.
///
/// # Errors
///
/// [`StepError::Document`], and errors of the store.
pub fn load(store: &Store, digest: BlobDigest) -> Result<Imatrix, StepError> {
    let bytes = store.read(&digest, IMATRIX_CAP)?;
    Imatrix::parse(&bytes).map_err(|error| StepError::Document {
        what: "imatrix",
        problem: error.to_string(),
    })
}

/// Puts an imatrix into the store. One of zeros is refused here too, whether it was imported, merged or collected.
pub(super) fn save(store: &Store, imatrix: &Imatrix) -> Result<ActionOutputs, StepError> {
    let bytes = imatrix
        .to_gguf()
        .map_err(|error| StepError::input(format!("the imatrix cannot be written: {error}")))?;
    let mut made = ActionOutputs::default();
    made.output(ImatrixCollect::IMATRIX, store.put(&bytes)?);
    made.fact(ImatrixCollect::ENTRIES, imatrix.entries.len());
    made.fact(ImatrixCollect::CHUNKS, imatrix.chunk_count);
    made.fact(
        ImatrixCollect::DATASET,
        imatrix.datasets.first().map_or("", String::as_str),
    );
    Ok(made)
}

/// Adds up two imatrices: every token counts the same.
pub(super) fn add(sum: &Imatrix, part: &Imatrix) -> Result<Imatrix, StepError> {
    let merged = Imatrix::merge(&[(sum, Weight::ONE), (part, Weight::ONE)], MergeMode::Sum);
    merged
        .map(|merged| merged.imatrix)
        .map_err(|error| StepError::input(error.to_string()))
}
