//! What is known of a model without its file. There is a document for each kind of use, each with just what one kind of use depends on, so that a change elsewhere in the file changes nothing there:
//!
//! | document | holds | for |
//! |---|---|---|
//! | `model` | the place and digest of every tensor | promote |
//! | `metadata` | all metadata, byte for byte | promote |
//! | `shape` | hyperparameters; names, types, dimensions | join, policy |
//! | `compute` | hyperparameters; names, types, dimensions and digests | imatrix, eval |
//! | `tokenizer` | the vocabulary, chat templates apart | imatrix, eval |

use serde::Deserialize;
use serde::Serialize;

use super::StepError;
use super::documents::decode_metadata;
use super::documents::encode;
use super::documents::encode_metadata;
use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::store::Store;
use crate::tensor_type::TensorType;

/// The version of the documents below: raise it when their form changes.
pub const INDEX: u32 = 1;

/// The place and digest of a tensor's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedTensor {
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub ty: TensorType,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Which file of the model holds it.
    pub shard: usize,
    /// Where its bytes begin in that file.
    pub start: u64,
    /// Its bytes.
    pub bytes: BlobDigest,
}

/// Where everything is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIndex {
    /// [`INDEX`].
    pub schema: u32,
    /// The alignment of tensors in the file.
    pub alignment: u64,
    /// The tensors, in the file's order.
    pub tensors: Vec<IndexedTensor>,
}

/// A tensor by its looks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShapedTensor {
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub ty: TensorType,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
}

/// What a policy can know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// [`INDEX`].
    pub schema: u32,
    /// The metadata that tell how the model computes, as a GGUF header without tensors.
    pub hyperparameters: BlobDigest,
    /// The tensors, in the file's order.
    pub tensors: Vec<ShapedTensor>,
}

/// A tensor as far as it computes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ComputeTensor {
    /// The name.
    pub name: String,
    /// The type.
    #[serde(rename = "type")]
    pub ty: TensorType,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Its bytes.
    pub bytes: BlobDigest,
}

/// A model as far as it computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// [`INDEX`].
    pub schema: u32,
    /// The metadata that tell how the model computes.
    pub hyperparameters: BlobDigest,
    /// The tensors, by name.
    pub tensors: Vec<ComputeTensor>,
}

/// Keys that say nothing of how a model computes. Everything that is not known to be inert counts as a hyperparameter.
pub(super) fn inert(key: &str) -> bool {
    let group = |prefix: &str| key.starts_with(prefix);
    (group("general.") && key != "general.architecture")
        || group("tokenizer.")
        || group("quantize.")
        || group("split.")
        || group("imatrix.")
}

/// Returns the metadata that a filter lets pass, sorted by key, as the bytes of a GGUF header without tensors.
pub(super) fn header_of(metadata: &Metadata, keep: impl Fn(&str) -> bool) -> Result<Vec<u8>, StepError> {
    let mut entries: Vec<_> = metadata.iter().filter(|entry| keep(entry.key())).collect();
    entries.sort_by_key(|entry| entry.key());
    let mut kept = Metadata::new();
    for entry in entries {
        kept.set_entry(entry.clone());
    }
    encode_metadata(&kept)
}

/// Returns what the rules of policies must know of a model.
pub fn facts_of(store: &Store, shape: &Shape) -> Result<ModelFacts, StepError> {
    let metadata = decode_metadata(store, shape.hyperparameters)?;
    let tensors = shape.tensors.iter().map(|tensor| TensorFacts {
        name: tensor.name.clone(),
        ty: tensor.ty,
        dims: tensor.dims.clone(),
    });
    ModelFacts::from_metadata(&metadata, tensors.collect()).map_err(|error| StepError::input(error.to_string()))
}

/// Returns the document of a model as far as it computes.
pub fn compute_of<'t>(hyperparameters: BlobDigest, tensors: impl IntoIterator<Item = &'t IndexedTensor>) -> Compute {
    let mut tensors: Vec<ComputeTensor> = tensors
        .into_iter()
        .map(|tensor| ComputeTensor {
            name: tensor.name.clone(),
            ty: tensor.ty,
            dims: tensor.dims.clone(),
            bytes: tensor.bytes,
        })
        .collect();
    tensors.sort();
    Compute {
        schema: INDEX,
        hyperparameters,
        tensors,
    }
}

/// Returns the digest of the compute-relevant part of a model, from its metadata and its tensors.
pub fn compute_digest(metadata: &Metadata, mut tensors: Vec<ComputeTensor>) -> Result<BlobDigest, StepError> {
    tensors.sort();
    let compute = Compute {
        schema: INDEX,
        hyperparameters: BlobDigest::of(&header_of(metadata, |key| !inert(key))?),
        tensors,
    };
    Ok(BlobDigest::of(&encode(&compute)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chat_template_and_the_name_are_no_hyperparameters() {
        for key in [
            "general.name",
            "tokenizer.chat_template",
            "tokenizer.ggml.tokens",
            "split.count",
            "general.file_type",
        ] {
            assert!(inert(key), "{key}");
        }
        for key in ["general.architecture", "qwen3.block_count", "something.new"] {
            assert!(!inert(key), "{key}");
        }
    }
}
