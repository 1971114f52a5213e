//! What a candidate says of itself in its metadata.

use super::StepError;
use crate::action::Join;
use crate::action::Promote;
use crate::container::Metadata;
use crate::gguf::Value;

/// What a candidate says of the imatrix that it was made with.
pub struct ImatrixFacts<'a> {
    /// The name of its text.
    pub dataset: &'a str,
    /// Its tensors.
    pub entries: u64,
    /// Its chunks.
    pub chunks: u64,
}

impl<'a> ImatrixFacts<'a> {
    /// Returns what a candidate's action says of its imatrix, if it has one.
    pub(super) fn of(promote: &'a Promote) -> Result<Option<Self>, StepError> {
        let Some(dataset) = promote.imatrix.get(Join::DATASET.as_str()) else {
            return Ok(None);
        };
        let number = |name: &str| {
            let number = promote.imatrix.get(name).and_then(|text| text.parse().ok());
            number.ok_or_else(|| StepError::Document {
                what: "action",
                problem: format!("it does not say how many `{name}` the imatrix has"),
            })
        };
        Ok(Some(Self {
            dataset,
            entries: number(Join::ENTRIES.as_str())?,
            chunks: number(Join::CHUNKS.as_str())?,
        }))
    }
}

/// Returns the source's metadata with what a quantized model says of itself, as `llama-quantize` writes it but for the
/// path of the imatrix, which is nobody's business.
pub(super) fn candidate_metadata(
    mut metadata: Metadata,
    file_type: Option<u32>,
    imatrix: Option<&ImatrixFacts<'_>>,
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
