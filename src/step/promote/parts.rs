//! What a candidate says of itself in its metadata.

use crate::gguf::Metadata;
use crate::gguf::Value;
use crate::step::Outcome;
use crate::step::StepError;

/// Returns the source's metadata with what a quantized model says of itself, as `llama-quantize` writes it but for the
/// path of the imatrix, which is nobody's business.
pub(super) fn candidate_metadata(
    mut metadata: Metadata,
    policy: &Outcome,
    join: Option<&Outcome>,
) -> Result<Metadata, StepError> {
    let mut set = |key: &str, value: Value| {
        metadata
            .set(key, &value)
            .map_err(|error| StepError::input(format!("metadata `{key}`: {error}")))
    };
    if let Ok(file_type) = policy.fact("file_type").parse() {
        set("general.quantization_version", Value::U32(2))?;
        set("general.file_type", Value::U32(file_type))?;
    }
    if let Some(join) = join {
        let count = |name| {
            join.number(name)
                .map(|number| Value::U32(u32::try_from(number).unwrap_or(u32::MAX)))
        };
        set(
            "quantize.imatrix.dataset",
            Value::String(join.fact("dataset").as_bytes().to_vec()),
        )?;
        set("quantize.imatrix.entries_count", count("entries")?)?;
        set("quantize.imatrix.chunks_count", count("chunks")?)?;
    }
    Ok(metadata)
}
