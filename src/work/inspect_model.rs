//! A model as a source: hashed once, whole and tensor by tensor, in one pass.

use std::path::Path;
use std::path::PathBuf;
use std::sync::mpsc;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::documents::encode_metadata;
use super::model_documents::INDEX;
use super::model_documents::IndexedTensor;
use super::model_documents::ModelIndex;
use super::model_documents::Shape;
use super::model_documents::ShapedTensor;
use super::model_documents::compute_of;
use super::model_documents::header_of;
use super::model_documents::inert;
use crate::action::InspectModel;
use crate::container;
use crate::container::Source;
use crate::digest::BlobDigest;
use crate::fs;
use crate::observer::Unit;

/// How much of a file is read at once.
const PIECE: usize = 8 << 20;

impl Work for InspectModel {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        let located = context.located();
        let files = self.files.iter().map(|digest| located.file(digest).cloned());
        files.collect()
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let files = self.reads(context)?;
        let model = open(&files)?;
        let tensors = index_tensors(context, model.as_ref(), &files)?;
        let store = context.store();
        let put = |bytes: &[u8]| {
            context.check_cancel()?;
            Ok::<_, StepError>(store.put(bytes)?)
        };
        let mut made = ActionOutputs::default();
        let metadata = model.metadata();
        let hyperparameters = put(&header_of(metadata, |key| !inert(key))?)?;
        let vocabulary = |key: &str| key.starts_with("tokenizer.") && !key.starts_with("tokenizer.chat_template");
        made.output(Self::METADATA, put(&encode_metadata(metadata)?)?);
        made.output(Self::HYPERPARAMETERS, hyperparameters);
        made.output(Self::TOKENIZER, put(&header_of(metadata, vocabulary)?)?);
        made.output(Self::COMPUTE, put(&encode(&compute_of(hyperparameters, &tensors))?)?);
        let shaped = tensors.iter().map(|tensor| ShapedTensor {
            name: tensor.name.clone(),
            ty: tensor.ty,
            dims: tensor.dims.clone(),
        });
        let shape = Shape {
            schema: INDEX,
            hyperparameters,
            tensors: shaped.collect(),
        };
        made.output(Self::SHAPE, put(&encode(&shape)?)?);
        let elements: u64 = tensors.iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum();
        made.fact(Self::ELEMENTS, elements);
        made.fact(Self::TENSORS, tensors.len());
        made.fact(Self::BYTES, files.iter().map(|file| file.digest.len).sum::<u64>());
        made.fact(
            Self::ARCHITECTURE,
            metadata.get_str("general.architecture").unwrap_or("unknown"),
        );
        let index = ModelIndex {
            schema: INDEX,
            alignment: model.alignment(),
            tensors,
        };
        made.output(Self::MODEL, put(&encode(&index)?)?);
        Ok(made)
    }
}

/// Opens a model whose files are known.
fn open(files: &[SourceFile]) -> Result<Box<dyn Source>, StepError> {
    let first = files.first().ok_or_else(|| StepError::input("the model has no file"))?;
    let model = container::open(&first.path)?;
    if model.files().iter().eq(files.iter().map(|file| &file.path)) {
        Ok(model)
    } else {
        Err(StepError::input_hint(
            format!(
                "`{}` is a part of a split model, but is not named as one",
                first.path.display()
            ),
            "give the parts the names that `llama-gguf-split` gives them: `NAME-00001-of-00003.gguf`",
        ))
    }
}

/// Returns the places and digests of a model's tensors. Files that were hashed in this process are not read again.
fn index_tensors(
    context: &Context<'_>,
    model: &dyn Source,
    files: &[SourceFile],
) -> Result<Vec<IndexedTensor>, StepError> {
    let located = context.located();
    let mut tensors: Vec<Option<IndexedTensor>> = vec![None; model.tensors().len()];
    for (shard, file) in files.iter().enumerate() {
        context.check_cancel()?;
        let inside = tensors_in(model, shard);
        let ranges = ranges_of(model, &inside);
        let digests = if let Some(digests) = located.digests(&file.digest, &ranges) {
            digests
        } else {
            let (found, digests) = hash_file(context, &file.path, &ranges)?;
            if found != *file {
                return Err(StepError::SourceChanged {
                    path: file.path.clone(),
                });
            }
            digests
        };
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
    }
    Ok(tensors.into_iter().flatten().collect())
}

/// Returns the tensors in a file of a model, in the order of their places.
fn tensors_in(model: &dyn Source, shard: usize) -> Vec<usize> {
    let tensors = model.tensors();
    let mut inside: Vec<usize> = (0..tensors.len()).filter(|&at| tensors[at].shard == shard).collect();
    inside.sort_by_key(|&at| tensors[at].start);
    inside
}

/// Returns where tensors begin in their file, and how long they are.
fn ranges_of(model: &dyn Source, tensors: &[usize]) -> Vec<(u64, u64)> {
    let range = |&at: &usize| (model.tensors()[at].start, model.tensors()[at].info.len);
    tensors.iter().map(range).collect()
}

/// Hashes the files of a model, and all its tensors in the same pass; [`InspectModel`] then reads no file again.
///
/// # Errors
///
/// What is wrong with a file; [`StepError::SourceChanged`].
pub fn hash_model(context: &Context<'_>, paths: &[PathBuf]) -> Result<Vec<SourceFile>, StepError> {
    let first = paths.first().ok_or_else(|| StepError::input("the model has no file"))?;
    let model = container::open(first)?;
    // Headers may be long: a user who stopped the build meanwhile does not wait for what follows.
    context.check_cancel()?;
    context.expect(Unit::BytesHashed, model.file_lens().into_iter().sum());
    let mut files = Vec::with_capacity(paths.len());
    for (shard, path) in paths.iter().enumerate() {
        let ranges = ranges_of(model.as_ref(), &tensors_in(model.as_ref(), shard));
        let (file, digests) = hash_file(context, path, &ranges)?;
        context.locate(|located| located.add_hashed(file.clone(), ranges.into_iter().zip(digests).collect()));
        files.push(file);
    }
    Ok(files)
}

/// Hashes a file, and ranges of it (in order, apart), reading it once. A second thread reads ahead, unless rayon has one thread only.
fn hash_file(
    context: &Context<'_>,
    path: &Path,
    ranges: &[(u64, u64)],
) -> Result<(SourceFile, Vec<BlobDigest>), StepError> {
    let file = fs::open(path)?;
    let (before, started) = fs::settle(&file, path)?;
    let mut whole = blake3::Hasher::new();
    let mut digests = Vec::with_capacity(ranges.len());
    let mut current = blake3::Hasher::new();
    let mut at = 0u64;
    let mut take = |piece: &[u8]| -> Result<(), StepError> {
        context.check_cancel()?;
        whole.update_rayon(piece);
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
        context.advance(Unit::BytesHashed, piece.len() as u64);
        Ok(())
    };
    let failed = |source| fs::PathError::new(path, "read", source);
    let read = |piece: &mut Vec<u8>, offset: u64| {
        piece.resize(PIECE.min(usize::try_from(before.size - offset).unwrap_or(PIECE)), 0);
        fs::read_exact_at(&file, piece, offset)
    };
    if rayon::current_num_threads() == 1 {
        let (mut piece, mut offset) = (Vec::new(), 0);
        while offset < before.size {
            read(&mut piece, offset).map_err(failed)?;
            take(&piece)?;
            offset += piece.len() as u64;
        }
    } else {
        std::thread::scope(|scope| -> Result<(), StepError> {
            let (sender, receiver) = mpsc::sync_channel::<Result<Vec<u8>, std::io::Error>>(2);
            // Buffers go round: fresh ones would cost as much as the hashing.
            let (give_back, spare) = mpsc::channel::<Vec<u8>>();
            scope.spawn(move || {
                let mut offset = 0;
                while offset < before.size {
                    let mut piece = spare.try_recv().unwrap_or_default();
                    let read = read(&mut piece, offset);
                    offset += piece.len() as u64;
                    let failed = read.is_err();
                    if sender.send(read.map(|()| piece)).is_err() || failed {
                        return;
                    }
                }
            });
            for piece in receiver {
                let piece = piece.map_err(failed)?;
                take(&piece)?;
                // The reader may have ended: then nobody wants it.
                give_back.send(piece).ok();
            }
            Ok(())
        })?;
    }
    let after = fs::Stamp::of_file(&file, path)?;
    if before != after || at != before.size || digests.len() != ranges.len() {
        return Err(StepError::SourceChanged { path: path.to_owned() });
    }
    let digest = BlobDigest {
        hash: crate::digest::Hash::from_bytes(*whole.finalize().as_bytes()),
        len: at,
    };
    context.store().remember(&before, &after, &started, &digest)?;
    Ok((
        SourceFile {
            path: path.to_owned(),
            digest,
            stamp: before,
        },
        digests,
    ))
}
