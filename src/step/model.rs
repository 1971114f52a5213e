//! A model as a source: hashed once, whole and tensor by tensor, in one pass. What later steps need of it is kept in four
//! documents, each with just what one kind of use depends on, so that a change elsewhere in the file changes nothing there:
//!
//! | document | holds | for |
//! |---|---|---|
//! | `model` | the place and digest of every tensor | promote |
//! | `metadata` | all metadata, byte for byte | promote |
//! | `shape` | hyperparameters; names, types, dimensions | join, policy |
//! | `compute` | hyperparameters; names, types, dimensions and digests | imatrix, eval |
//! | `tokenizer` | the vocabulary, chat templates apart | imatrix, eval |

use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;

use serde::Deserialize;
use serde::Serialize;

use crate::action::Action;
use crate::action::InspectModel;
use crate::digest::BlobDigest;
use crate::fs;
use crate::gguf::Layout;
use crate::gguf::Metadata;
use crate::gguf::Model;
use crate::observer::Unit;
use crate::policy::ModelFacts;
use crate::policy::TensorFacts;
use crate::step::Env;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::source_file::SourceFile;
use crate::tensor_type::TensorType;

/// The version of the documents below: raise it when their form changes.
pub const INDEX: u32 = 1;

/// No document about a model is longer than this (a header holds the vocabulary: some tens of MB).
pub const DOCUMENT_CAP: u64 = 1 << 30;

/// How much of a file is read at once.
const PIECE: usize = 8 << 20;

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
fn inert(key: &str) -> bool {
    let group = |prefix: &str| key.starts_with(prefix);
    (group("general.") && key != "general.architecture")
        || group("tokenizer.")
        || group("quantize.")
        || group("split.")
        || group("imatrix.")
}

/// Returns the metadata that a filter lets pass, sorted by key, as the bytes of a GGUF header without tensors.
fn header_of(metadata: &Metadata, keep: impl Fn(&str) -> bool) -> Result<Vec<u8>, StepError> {
    let mut entries: Vec<_> = metadata.iter().filter(|entry| keep(entry.key())).collect();
    entries.sort_by_key(|entry| entry.key());
    let mut kept = Metadata::new();
    for entry in entries {
        kept.set_entry(entry.clone());
    }
    encode_metadata(&kept)
}

/// Writes metadata as a GGUF header without tensors.
pub fn encode_metadata(metadata: &Metadata) -> Result<Vec<u8>, StepError> {
    // The header must have the alignment that the metadata state, or no reader would take it.
    let layout = metadata
        .alignment()
        .and_then(|alignment| Layout::new(metadata, &[], alignment))
        .map_err(|error| StepError::input(format!("the metadata cannot be written: {error}")))?;
    Ok(layout.header().to_vec())
}

/// Reads metadata from a GGUF header without tensors.
pub fn decode_metadata(bytes: &[u8]) -> Result<Metadata, StepError> {
    let header = crate::gguf::parse(bytes).map_err(|error| StepError::Document {
        what: "metadata",
        problem: error.to_string(),
    })?;
    Ok(header.metadata)
}

/// Returns the bytes of a JSON document.
pub fn encode<T: Serialize>(document: &T) -> Result<Vec<u8>, StepError> {
    serde_json::to_vec(document).map_err(|error| StepError::Document {
        what: "document",
        problem: error.to_string(),
    })
}

/// Reads a JSON document from the store.
pub fn decode<T: for<'de> Deserialize<'de>>(
    env: &Env<'_>,
    what: &'static str,
    digest: BlobDigest,
) -> Result<T, StepError> {
    let bytes = env.store.read(&digest, DOCUMENT_CAP)?;
    serde_json::from_slice(&bytes).map_err(|error| StepError::Document {
        what,
        problem: error.to_string(),
    })
}

/// Returns what the rules of policies must know of a model.
pub fn facts_of(env: &Env<'_>, shape: &Shape) -> Result<ModelFacts, StepError> {
    let metadata = decode_metadata(&env.store.read(&shape.hyperparameters, DOCUMENT_CAP)?)?;
    let tensors = shape.tensors.iter().map(|tensor| TensorFacts {
        name: tensor.name.clone(),
        ty: tensor.ty,
        dims: tensor.dims.clone(),
    });
    ModelFacts::from_metadata(&metadata, tensors.collect()).map_err(|error| StepError::input(error.to_string()))
}

/// Returns the files of a model without opening any: its own name tells whether it is split.
pub fn shard_paths(path: &Path) -> Vec<PathBuf> {
    let parts = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
        let stem = name.strip_suffix(".gguf")?;
        let (rest, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let plain = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (plain(count) && plain(number)).then_some(())?;
        Some((prefix.to_owned(), count.parse::<u32>().ok()?))
    });
    match parts {
        Some((prefix, count)) if count > 0 => (1..=count)
            .map(|number| path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf")))
            .collect(),
        _ => vec![path.to_owned()],
    }
}

/// Returns the key of a model's inspection, as far as it can be told without reading the model.
pub fn key(env: &Env<'_>, path: &Path) -> Result<Key, StepError> {
    super::key_of_files(env, shard_paths(path), |files| {
        Action::InspectModel(InspectModel { files, index: INDEX })
    })
}

/// Hashes and inspects a model.
pub fn run(task: &Task<'_>, path: &Path) -> Result<Outcome, StepError> {
    let model = Model::open(path)?;
    let paths = shard_paths(path);
    if model.shard_paths() != paths {
        return Err(StepError::input_hint(
            format!(
                "`{}` is a part of a split model, but is not named as one",
                path.display()
            ),
            "give the parts the names that `llama-gguf-split` gives them: `NAME-00001-of-00003.gguf`",
        ));
    }
    // Headers may be long: whoever stopped meanwhile does not wait for what follows.
    task.check_cancel()?;
    let total = model.shard_lens().sum();
    let mut files = Vec::new();
    let mut tensors: Vec<Option<IndexedTensor>> = vec![None; model.tensors().len()];
    let mut by_shard: Vec<Vec<usize>> = vec![Vec::new(); paths.len()];
    for (index, tensor) in model.tensors().iter().enumerate() {
        by_shard[tensor.shard].push(index);
    }
    for (shard, (path, mut inside)) in paths.iter().zip(by_shard).enumerate() {
        inside.sort_by_key(|&index| model.tensors()[index].start);
        let ranges: Vec<(u64, u64)> = inside
            .iter()
            .map(|&index| (model.tensors()[index].start, model.tensors()[index].info.len))
            .collect();
        let (file, digests) = hash_file(task, path, &ranges, total)?;
        for (index, bytes) in inside.into_iter().zip(digests) {
            let tensor = &model.tensors()[index];
            tensors[index] = Some(IndexedTensor {
                name: tensor.info.name.clone(),
                ty: tensor.info.ty,
                dims: tensor.info.dims.clone(),
                shard,
                start: tensor.start,
                bytes,
            });
        }
        files.push(file);
    }
    let tensors: Vec<IndexedTensor> = tensors.into_iter().flatten().collect();
    let action = Action::InspectModel(InspectModel {
        files: files.iter().map(|file| file.digest).collect(),
        index: INDEX,
    });
    let performed = task.perform(&action, &files, |made| {
        let put = |bytes: &[u8]| {
            task.check_cancel()?;
            Ok::<_, StepError>(task.env.store.put(bytes)?)
        };
        let metadata = model.metadata();
        let hyperparameters = put(&header_of(metadata, |key| !inert(key))?)?;
        let vocabulary = |key: &str| key.starts_with("tokenizer.") && !key.starts_with("tokenizer.chat_template");
        made.output("metadata", put(&encode_metadata(metadata)?)?);
        made.output("hyperparameters", hyperparameters);
        made.output("tokenizer", put(&header_of(metadata, vocabulary)?)?);
        made.output("compute", put(&encode(&compute_of(hyperparameters, &tensors))?)?);
        let shaped = tensors.iter().map(|tensor| ShapedTensor {
            name: tensor.name.clone(),
            ty: tensor.ty,
            dims: tensor.dims.clone(),
        });
        made.output(
            "shape",
            put(&encode(&Shape {
                schema: INDEX,
                hyperparameters,
                tensors: shaped.collect(),
            })?)?,
        );
        let elements: u64 = tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum();
        made.fact("elements", elements);
        made.fact("tensors", tensors.len());
        made.fact("bytes", total);
        made.fact(
            "architecture",
            metadata.get_str("general.architecture").unwrap_or("unknown"),
        );
        let index = ModelIndex {
            schema: INDEX,
            alignment: model.alignment(),
            tensors: tensors.clone(),
        };
        made.output("model", put(&encode(&index)?)?);
        Ok(())
    })?;
    Ok(Outcome::of(performed, files))
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

/// Returns the digest of the document of a model as far as it computes, told from its metadata and its tensors.
pub fn compute_digest(metadata: &Metadata, mut tensors: Vec<ComputeTensor>) -> Result<BlobDigest, StepError> {
    tensors.sort();
    let compute = Compute {
        schema: INDEX,
        hyperparameters: BlobDigest::of(&header_of(metadata, |key| !inert(key))?),
        tensors,
    };
    Ok(BlobDigest::of(&encode(&compute)?))
}

/// Hashes a file, and ranges of it (in order, apart), reading it once. A second thread reads ahead.
fn hash_file(
    task: &Task<'_>,
    path: &Path,
    ranges: &[(u64, u64)],
    total: u64,
) -> Result<(SourceFile, Vec<BlobDigest>), StepError> {
    let env = task.env;
    let file = fs::open(path)?;
    let (before, started) = fs::settle(&file, path)?;
    let mut whole = blake3::Hasher::new();
    let mut digests = Vec::with_capacity(ranges.len());
    let mut current = blake3::Hasher::new();
    let mut at = 0u64;
    std::thread::scope(|scope| -> Result<(), StepError> {
        let (sender, receiver) = mpsc::sync_channel::<Result<Vec<u8>, std::io::Error>>(2);
        // Buffers go round: fresh ones would cost as much as the hashing.
        let (give_back, spare) = mpsc::channel::<Vec<u8>>();
        scope.spawn({
            let file = &file;
            move || {
                let mut offset = 0;
                while offset < before.size {
                    let len = PIECE.min(usize::try_from(before.size - offset).unwrap_or(PIECE));
                    let mut piece = spare.try_recv().unwrap_or_default();
                    piece.resize(len, 0);
                    let read = fs::read_exact_at(file, &mut piece, offset).map(|()| piece);
                    let failed = read.is_err();
                    if sender.send(read).is_err() || failed {
                        return;
                    }
                    offset += len as u64;
                }
            }
        });
        for piece in receiver {
            task.check_cancel()?;
            let piece = piece.map_err(|source| fs::PathError::new(path, "read", source))?;
            whole.update_rayon(&piece);
            let end = at + piece.len() as u64;
            while let Some(&(start, len)) = ranges.get(digests.len()) {
                let from = start.max(at);
                let to = (start + len).min(end);
                if from < to {
                    current.update_rayon(&piece[(from - at) as usize..(to - at) as usize]);
                }
                if start + len > end {
                    break;
                }
                digests.push(BlobDigest {
                    hash: crate::digest::Hash::from_bytes(*current.finalize().as_bytes()),
                    len,
                });
                current.reset();
            }
            at = end;
            task.advance(Unit::BytesHashed, piece.len() as u64, total);
            // The reader may have ended: then nobody wants it.
            give_back.send(piece).ok();
        }
        Ok(())
    })?;
    let after = fs::Stamp::of_file(&file, path)?;
    if before != after || at != before.size || digests.len() != ranges.len() {
        return Err(StepError::SourceChanged { path: path.to_owned() });
    }
    let digest = BlobDigest {
        hash: crate::digest::Hash::from_bytes(*whole.finalize().as_bytes()),
        len: at,
    };
    env.store.remember(&before, &after, &started, &digest)?;
    Ok((
        SourceFile {
            path: path.to_owned(),
            digest,
            stamp: before,
        },
        digests,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_split_model_follow_from_one_name() {
        let name = |number| PathBuf::from(format!("/m/big-{number:05}-of-00003.gguf"));
        assert_eq!(shard_paths(&name(2)), [name(1), name(2), name(3)]);
        for single in [
            "/m/big.gguf",
            "/m/big-1-of-3.gguf",
            "/m/big-00001-of-00000.gguf",
            "/m/a-of-b.gguf",
        ] {
            assert_eq!(shard_paths(Path::new(single)), [PathBuf::from(single)]);
        }
    }

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
