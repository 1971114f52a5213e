//! What a candidate says of itself in its metadata.

use crate::gguf::Metadata;
use crate::gguf::Value;
use crate::step::Outcome;
use crate::step::StepError;

/// What a candidate says of the imatrix that it was made with.
pub(in crate::step) struct Said<'a> {
    /// The name of its text.
    pub(in crate::step) dataset: &'a str,
    /// Its tensors.
    pub(in crate::step) entries: u64,
    /// Its chunks.
    pub(in crate::step) chunks: u64,
}

impl<'a> Said<'a> {
    /// Returns what a join tells of its imatrix.
    pub(in crate::step) fn of(join: &'a Outcome) -> Result<Self, StepError> {
        Ok(Self {
            dataset: join.fact("dataset"),
            entries: join.number("entries")?,
            chunks: join.number("chunks")?,
        })
    }
}

/// Returns the source's metadata with what a quantized model says of itself, as `llama-quantize` writes it but for the
/// path of the imatrix, which is nobody's business.
pub(in crate::step) fn candidate_metadata(
    mut metadata: Metadata,
    file_type: Option<u32>,
    imatrix: Option<&Said<'_>>,
) -> Result<Metadata, StepError> {
    let mut set = |key: &str, value: Value| {
        metadata
            .set(key, &value)
            .map_err(|error| StepError::input(format!("metadata `{key}`: {error}")))
    };
    if let Some(file_type) = file_type {
        set("general.quantization_version", Value::U32(2))?;
        set("general.file_type", Value::U32(file_type))?;
    }
    if let Some(said) = imatrix {
        let count = |number: u64| Value::U32(u32::try_from(number).unwrap_or(u32::MAX));
        set(
            "quantize.imatrix.dataset",
            Value::String(said.dataset.as_bytes().to_vec()),
        )?;
        set("quantize.imatrix.entries_count", count(said.entries))?;
        set("quantize.imatrix.chunks_count", count(said.chunks))?;
    }
    Ok(metadata)
}
