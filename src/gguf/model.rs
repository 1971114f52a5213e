//! A model: one GGUF file, or the shards that `llama-gguf-split` makes of one.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{GgufError, Place, Problem};
use super::file::{File, OpenError};
use super::header::{Header, TensorInfo};
use super::metadata::Metadata;
use crate::fs::map::PositionedFile;

/// More shards than this are opened for each read instead of all at once: systems limit open files, often to 256.
const MAX_OPEN: u64 = 64;

/// A tensor of a model and the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Name, type and shape. Its `offset` counts from the data of its shard.
    pub info: TensorInfo,
    /// The number of its shard, from 0.
    pub shard: usize,
    /// Where its bytes start, from the start of its shard's file.
    pub start: u64,
}

/// A model on disk: the metadata of its first shard (without `split.*`) and the tensors of all.
#[derive(Debug)]
pub struct Model {
    metadata: Metadata,
    tensors: Vec<ModelTensor>,
    by_name: HashMap<String, usize>,
    alignment: u64,
    paths: Vec<PathBuf>,
    shards: Vec<PositionedFile>,
}

impl Model {
    /// Opens a model by its file or by any one of its shards.
    ///
    /// The other shards are looked for beside it, by names made from its own: a model cannot name a file elsewhere.
    ///
    /// # Errors
    ///
    /// Any fault of any header, shards that are missing or that belong to another place of the set, and tensors that
    /// are in two of them.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let opened = File::open(path)?;
        let count = opened.header().metadata.get_u64("split.count").unwrap_or(1);
        if count <= 1 {
            // A count of 0 is what merging shards leaves behind.
            return Self::join(vec![opened]);
        }
        let names = shard_names(&opened, count)?;
        let missing: Vec<_> = names
            .iter()
            .filter(|path| !is_there(path))
            .map(|path| file_name(path))
            .collect();
        if !missing.is_empty() {
            return Err(OpenError::MissingShards {
                path: path.to_owned(),
                missing,
            });
        }
        let mut shards = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let mut shard = File::open(name)?;
            check_split(&shard, number as u64, count)?;
            if count > MAX_OPEN {
                shard.close_between_reads();
            }
            shards.push(shard);
        }
        Self::join(shards)
    }

    fn join(files: Vec<File>) -> Result<Self, OpenError> {
        let mut model = Self {
            metadata: Metadata::new(),
            tensors: Vec::new(),
            by_name: HashMap::new(),
            alignment: 0,
            paths: Vec::new(),
            shards: Vec::new(),
        };
        for (shard, file) in files.into_iter().enumerate() {
            let (
                Header {
                    metadata,
                    tensors,
                    data_offset,
                    alignment,
                    ..
                },
                file,
            ) = file.into_header();
            let path = file.path().to_owned();
            if shard == 0 {
                model.metadata = metadata;
                model.alignment = alignment;
            }
            for (index, info) in tensors.into_iter().enumerate() {
                if let Some(other) = model.by_name.insert(info.name.clone(), model.tensors.len()) {
                    let other = file_name(&model.paths[model.tensors[other].shard]);
                    let place = Place::Tensor {
                        index: index as u64,
                        name: Some(info.name),
                    };
                    let error = GgufError {
                        offset: None,
                        place,
                        problem: Problem::InTwoShards { other },
                    };
                    return Err(OpenError::format(&path, error));
                }
                // No overflow: the header's check put the tensor inside the file.
                let start = data_offset + info.offset;
                model.tensors.push(ModelTensor { info, shard, start });
            }
            model.paths.push(path);
            model.shards.push(file);
        }
        model.check_total()?;
        model.metadata.remove_prefix("split.");
        Ok(model)
    }

    fn check_total(&self) -> Result<(), OpenError> {
        let found = self.tensors.len() as u64;
        match self.metadata.get_u64("split.tensors.count") {
            Some(expected) if self.shards.len() > 1 && expected != found => {
                let problem = Problem::SplitTensors { expected, found };
                Err(OpenError::format(
                    &self.paths[0],
                    GgufError {
                        offset: None,
                        place: Place::File,
                        problem,
                    },
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns the model's keys, in order, without `split.*`.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Returns all tensors, shard by shard, in the order of each header.
    pub fn tensors(&self) -> &[ModelTensor] {
        &self.tensors
    }

    /// Returns a tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&ModelTensor> {
        self.by_name.get(name).map(|index| &self.tensors[*index])
    }

    /// Returns the alignment that the first shard's metadata asks for.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Returns the files, in order; one for a model that is not split.
    pub fn shard_paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Returns the lengths of the files when they were opened.
    pub fn shard_lens(&self) -> impl Iterator<Item = u64> + '_ {
        self.shards.iter().map(PositionedFile::len)
    }

    /// Fills `buf` with a tensor's bytes from `offset` (within the tensor) on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if that reaches past the tensor, `UnexpectedEof` if the file was cut since it was opened, and
    /// those of the system.
    pub fn read_tensor_at(&self, tensor: &ModelTensor, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let inside = offset
            .checked_add(buf.len() as u64)
            .is_some_and(|end| end <= tensor.info.len);
        let shard = self.shards.get(tensor.shard).filter(|_| inside);
        let start = tensor.start.checked_add(offset);
        match (shard, start) {
            (Some(shard), Some(start)) => shard.read_at(start, buf),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{} bytes from byte {offset} on are not inside tensor `{}` of {} bytes",
                    buf.len(),
                    tensor.info.name,
                    tensor.info.len
                ),
            )),
        }
    }
}

/// Returns the paths of all shards, by the name and `split.no` of one.
fn shard_names(shard: &File, count: u64) -> Result<Vec<PathBuf>, OpenError> {
    let path = shard.path();
    let number = shard.header().metadata.get_u64("split.no").unwrap_or(0);
    // The name has five digits; `split.count` itself has 16 bits.
    let prefix = path
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| number < count && count <= 99_999)
        .and_then(|name| name.strip_suffix(&format!("-{:05}-of-{count:05}.gguf", number + 1)));
    let Some(prefix) = prefix else {
        return Err(OpenError::ShardName {
            path: path.to_owned(),
            number,
            count,
        });
    };
    Ok((1..=count)
        .map(|number| path.with_file_name(format!("{prefix}-{number:05}-of-{count:05}.gguf")))
        .collect())
}

/// Checks that a shard is the one its name says.
fn check_split(shard: &File, number: u64, count: u64) -> Result<(), OpenError> {
    for (key, expected) in [("split.no", number), ("split.count", count)] {
        let found = shard.header().metadata.get_u64(key);
        let problem = match found {
            Some(found) if found == expected => continue,
            Some(found) => Problem::SplitMismatch { found, expected },
            None => Problem::MissingKey,
        };
        let place = Place::Key {
            index: 0,
            name: Some(key.to_owned()),
        };
        return Err(OpenError::format(
            shard.path(),
            GgufError {
                offset: None,
                place,
                problem,
            },
        ));
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    // Anything but a clear "no" is left to the opening, which says why.
    !matches!(PositionedFile::open(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
