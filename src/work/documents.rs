//! Documents in the store: written, read, and small enough to hold.

use serde::Deserialize;
use serde::Serialize;

use super::StepError;
use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::gguf::Layout;
use crate::store::Store;

/// The longest text that is tokenized in one piece, in bytes: the limit of llama.cpp.
pub(super) const TEXT_CAP: u64 = (1 << 31) - 128;

/// No document about a model is longer than this (a header holds the vocabulary: some tens of MB).
pub const DOCUMENT_CAP: u64 = 1 << 30;

/// Returns the bytes of a JSON document.
///
/// # Errors
///
/// [`StepError::Document`].
pub fn encode<T: Serialize>(document: &T) -> Result<Vec<u8>, StepError> {
    serde_json::to_vec(document).map_err(|error| StepError::Document {
        what: "document",
        problem: error.to_string(),
    })
}

/// Reads a JSON document from the store; `what` names it in errors.
///
/// # Errors
///
/// [`StepError::Document`], and errors of the store.
pub fn decode<T: for<'de> Deserialize<'de>>(
    store: &Store,
    what: &'static str,
    digest: BlobDigest,
) -> Result<T, StepError> {
    let bytes = store.read(&digest, DOCUMENT_CAP)?;
    serde_json::from_slice(&bytes).map_err(|error| StepError::Document {
        what,
        problem: error.to_string(),
    })
}

/// Returns metadata as the bytes of a GGUF header without tensors.
///
/// # Errors
///
/// [`StepError::Input`] if they cannot be written.
pub fn encode_metadata(metadata: &Metadata) -> Result<Vec<u8>, StepError> {
    // The header must have the alignment that the metadata state, or no reader would take it.
    let layout = metadata
        .alignment()
        .and_then(|alignment| Layout::new(metadata, &[], alignment))
        .map_err(|error| StepError::input(format!("the metadata cannot be written: {error}")))?;
    Ok(layout.header().to_vec())
}

/// Reads metadata from the store, written as a GGUF header without tensors.
///
/// # Errors
///
/// [`StepError::Document`], and errors of the store.
pub fn decode_metadata(store: &Store, digest: BlobDigest) -> Result<Metadata, StepError> {
    let bytes = store.read(&digest, DOCUMENT_CAP)?;
    let header = crate::gguf::parse(&bytes).map_err(|error| StepError::Document {
        what: "metadata",
        problem: error.to_string(),
    })?;
    Ok(header.metadata)
}
