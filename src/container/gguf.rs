//! GGUF as a container: [`crate::gguf`] has the format itself.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use super::Candidate;
use super::Container;
use super::LayoutError;
use super::Metadata;
use super::ModelTensor;
use super::OpenError;
use super::Source;
use super::TensorInfo;
use super::TensorSpec;
use crate::gguf::Layout;
use crate::gguf::MAGIC;
use crate::gguf::Model;
use crate::tensor_type::TensorType;

/// GGUF, versions 2 and 3.
pub(super) struct Gguf;

impl Container for Gguf {
    fn name(&self) -> &'static str {
        "GGUF"
    }

    fn recognizes(&self, start: &[u8]) -> bool {
        start.starts_with(&MAGIC)
    }

    fn open(&self, path: &Path) -> Result<Box<dyn Source>, OpenError> {
        Ok(Box::new(Model::open(path)?))
    }

    fn parts(&self, path: &Path) -> Vec<PathBuf> {
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

    fn types(&self) -> &'static [TensorType] {
        TensorType::ALL
    }

    fn lay_out(
        &self,
        metadata: &Metadata,
        tensors: &[TensorSpec],
        alignment: u64,
    ) -> Result<Box<dyn Candidate>, LayoutError> {
        Ok(Box::new(Layout::new(metadata, tensors, alignment)?))
    }

    fn file_name(&self, candidate: &str) -> String {
        format!("{candidate}.gguf")
    }
}

impl Source for Model {
    fn metadata(&self) -> &Metadata {
        self.metadata()
    }

    fn tensors(&self) -> &[ModelTensor] {
        self.tensors()
    }

    fn tensor(&self, name: &str) -> Option<&ModelTensor> {
        self.tensor(name)
    }

    fn alignment(&self) -> u64 {
        self.alignment()
    }

    fn files(&self) -> &[PathBuf] {
        self.shard_paths()
    }

    fn file_lens(&self) -> Vec<u64> {
        self.shard_lens().collect()
    }

    fn read_at(&self, tensor: &ModelTensor, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_tensor_at(tensor, offset, buffer)
    }
}

impl Candidate for Layout {
    fn header(&self) -> &[u8] {
        self.header()
    }

    fn tensors(&self) -> &[TensorInfo] {
        self.tensors()
    }

    fn alignment(&self) -> u64 {
        self.alignment()
    }

    fn file_len(&self) -> u64 {
        self.file_len()
    }

    fn write(
        &self,
        out: &mut dyn Write,
        fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        self.write(out, fill)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_split_model_follow_from_one_name() {
        let name = |number| PathBuf::from(format!("/m/big-{number:05}-of-00003.gguf"));
        assert_eq!(Gguf.parts(&name(2)), [name(1), name(2), name(3)]);
        for single in [
            "/m/big.gguf",
            "/m/big-1-of-3.gguf",
            "/m/big-00001-of-00000.gguf",
            "/m/a-of-b.gguf",
        ] {
            assert_eq!(Gguf.parts(Path::new(single)), [PathBuf::from(single)]);
        }
    }
}
