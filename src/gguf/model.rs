//! A model: one GGUF file, or the shards that `llama-gguf-split` makes of one.

use std::collections::HashMap;
use std::io;
use std::io::Read;
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

    /// Returns a tensor's bytes as a stream.
    pub fn tensor_reader<'a>(&'a self, tensor: &'a ModelTensor) -> TensorReader<'a> {
        TensorReader {
            model: self,
            tensor,
            at: 0,
        }
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

/// A tensor's bytes as a stream: what [`Model::tensor_reader`] returns.
#[derive(Debug)]
pub struct TensorReader<'a> {
    model: &'a Model,
    tensor: &'a ModelTensor,
    at: u64,
}

impl Read for TensorReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.tensor.info.len.saturating_sub(self.at);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        self.model.read_tensor_at(self.tensor, self.at, &mut buf[..count])?;
        self.at += count as u64;
        Ok(count)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Layout, TensorSpec, Value};
    use crate::tensor_type::TensorType;

    /// Writes a shard that holds one tensor per name, filled with the name's first byte.
    fn write(path: &Path, split: &[(&str, Value)], names: &[&str]) {
        let mut metadata = Metadata::new();
        metadata.set("general.architecture", &"toy".into()).unwrap();
        for (key, value) in split {
            metadata.set(key, value).unwrap();
        }
        let spec = |name: &&str| TensorSpec {
            name: (*name).to_owned(),
            ty: TensorType::F32,
            dims: vec![3, 2],
        };
        let layout = Layout::new(&metadata, &names.iter().map(spec).collect::<Vec<_>>(), 32).unwrap();
        let mut bytes = Vec::new();
        let fill = &mut |at: usize, out: &mut dyn io::Write| out.write_all(&[names[at].as_bytes()[0]; 24]);
        layout.write(&mut bytes, fill).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn split(number: u16, count: u16, tensors: i32) -> Vec<(&'static str, Value)> {
        vec![
            ("split.no", Value::U16(number)),
            ("split.count", Value::U16(count)),
            ("split.tensors.count", Value::I32(tensors)),
        ]
    }

    /// Writes a set of three shards, the first without tensors.
    fn set(dir: &Path) -> [PathBuf; 3] {
        let paths = [1, 2, 3].map(|number| dir.join(format!("m-{number:05}-of-00003.gguf")));
        write(&paths[0], &split(0, 3, 3), &[]);
        write(&paths[1], &split(1, 3, 3), &["a", "b"]);
        write(&paths[2], &split(2, 3, 3), &["c"]);
        paths
    }

    #[test]
    fn a_set_opens_through_any_shard() {
        let dir = tempfile::tempdir().unwrap();
        let paths = set(dir.path());
        for path in &paths {
            let model = Model::open(path).unwrap();
            assert_eq!(model.shard_paths(), paths);
            let names: Vec<_> = model
                .tensors()
                .iter()
                .map(|t| (t.info.name.as_str(), t.shard))
                .collect();
            assert_eq!(names, [("a", 1), ("b", 1), ("c", 2)]);
            let keys: Vec<_> = model.metadata().iter().map(|entry| entry.key().to_owned()).collect();
            assert_eq!(keys, ["general.architecture"]);
            let mut buf = [0; 4];
            let tensor = model.tensor("b").unwrap();
            model.read_tensor_at(tensor, 20, &mut buf).unwrap();
            assert_eq!(&buf, b"bbbb");
            let error = model.read_tensor_at(tensor, 21, &mut buf).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            assert!(model.read_tensor_at(tensor, u64::MAX, &mut buf).is_err());
            assert!(model.tensor("d").is_none());
            let mut all = Vec::new();
            model
                .tensor_reader(model.tensor("c").unwrap())
                .read_to_end(&mut all)
                .unwrap();
            assert_eq!(all, [b'c'; 24]);
        }
    }

    #[test]
    fn a_file_cut_after_opening_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        write(&path, &[], &["a", "b"]);
        let model = Model::open(&path).unwrap();
        let tensor = model.tensor("b").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(tensor.start + 23).unwrap();
        model.read_tensor_at(tensor, 0, &mut [0; 23]).unwrap();
        let error = model.read_tensor_at(tensor, 0, &mut [0; 24]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_merged_file_still_says_split_count_0() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("merged.gguf");
        write(&path, &[("split.count", Value::U16(0))], &["a"]);
        let model = Model::open(&path).unwrap();
        assert_eq!(model.tensors().len(), 1);
        assert!(!model.metadata().contains("split.count"));
    }

    #[test]
    fn many_shards_are_not_held_open_and_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |number: u16| dir.path().join(format!("m-{:05}-of-00100.gguf", number + 1));
        for number in 0..100u16 {
            write(
                &path(number),
                &split(number, 100, 100),
                &[&format!("{}.{number}", number % 10)],
            );
        }
        let model = Model::open(&path(50)).unwrap();
        let mut buf = [0; 24];
        model
            .read_tensor_at(model.tensor("7.37").unwrap(), 0, &mut buf)
            .unwrap();
        assert_eq!(buf, [b'7'; 24]);
    }

    #[test]
    fn broken_sets_are_named() {
        let problem = |change: &dyn Fn(&[PathBuf; 3])| {
            let dir = tempfile::tempdir().unwrap();
            let paths = set(dir.path());
            change(&paths);
            let opened = paths.iter().find(|path| path.exists()).unwrap();
            Model::open(opened)
                .unwrap_err()
                .to_string()
                .replace(&format!("{}/", dir.path().display()), "")
        };
        let remove = |path: &Path| std::fs::remove_file(path).unwrap();
        assert_eq!(
            problem(&|paths| remove(&paths[1])),
            "the set of m-00001-of-00003.gguf lacks 1 of its shards: m-00002-of-00003.gguf"
        );
        assert_eq!(
            problem(&|paths| {
                remove(&paths[0]);
                remove(&paths[2]);
            }),
            "the set of m-00002-of-00003.gguf lacks 2 of its shards: m-00001-of-00003.gguf, m-00003-of-00003.gguf"
        );
        assert_eq!(
            problem(&|paths| write(&paths[2], &split(1, 3, 3), &["c"])),
            "m-00003-of-00003.gguf: key `split.no`: the value is 1, but the file's name and place in the set ask for 2"
        );
        assert_eq!(
            problem(&|paths| write(&paths[2], &split(2, 4, 3), &["c"])),
            "m-00003-of-00003.gguf: key `split.count`: the value is 4, but the file's name and place in the set ask for 3"
        );
        assert_eq!(
            problem(&|paths| write(&paths[2], &[], &["c"])),
            "m-00003-of-00003.gguf: key `split.no`: the key is missing"
        );
        assert_eq!(
            problem(&|paths| write(&paths[2], &split(2, 3, 3), &["a"])),
            "m-00003-of-00003.gguf: tensor `a`: the tensor is also in shard `m-00002-of-00003.gguf`"
        );
        assert_eq!(
            problem(&|paths| write(&paths[2], &split(2, 3, 3), &["c", "d"])),
            "m-00001-of-00003.gguf: the set should have 3 tensors, its shards have 4"
        );
        assert_eq!(
            problem(&|paths| write(&paths[0], &split(7, 3, 3), &[])),
            "m-00001-of-00003.gguf is one of 3 shards, but its name does not end in `-00008-of-00003.gguf`, so the \
             others cannot be found; give the shards the names they were made with"
        );
    }
}
