//! Containers: the formats of model files. A [`Container`] opens sources and lays candidates out; whoever works with models names
//! no format. A new one is a file in this folder and a line in [`CONTAINERS`].
//!
//! Metadata are typed keys and values, as GGUF has them; a container with metadata of another form translates them.

use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

mod gguf;

pub use crate::gguf::GgufError as LayoutError;
pub use crate::gguf::Metadata;
pub use crate::gguf::ModelTensor;
pub use crate::gguf::OpenError;
pub use crate::gguf::TensorInfo;
pub use crate::gguf::TensorSpec;

use crate::fs;
use crate::tensor_type::TensorType;

/// A format of model files.
pub trait Container: Sync {
    /// Returns the name of the format.
    fn name(&self) -> &'static str;

    /// Says whether a file has this format, by its first bytes. Its name does not count.
    fn recognizes(&self, start: &[u8]) -> bool;

    /// Opens a model by its file, or by any one of the files that it is split into.
    ///
    /// # Errors
    ///
    /// What is wrong with a header, and files that are missing.
    fn open(&self, path: &Path) -> Result<Box<dyn Source>, OpenError>;

    /// Returns the files that a model is split into, by the name of any one of them; the file itself if its name says nothing
    /// of parts.
    fn parts(&self, path: &Path) -> Vec<PathBuf>;

    /// Returns the types that tensors in this container can have.
    fn types(&self) -> &'static [TensorType];

    /// Lays a candidate out. `alignment` is that of the source.
    ///
    /// # Errors
    ///
    /// Names and shapes that the format cannot hold.
    fn lay_out(
        &self,
        metadata: &Metadata,
        tensors: &[TensorSpec],
        alignment: u64,
    ) -> Result<Box<dyn Candidate>, LayoutError>;

    /// Returns the file name of a candidate.
    fn file_name(&self, candidate: &str) -> String;
}

/// A model file, or the files that a model is split into: their headers are read, tensors are read by range.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Returns the keys and values, in order; none is about how the model is split.
    fn metadata(&self) -> &Metadata;

    /// Returns all tensors, file by file, in the order of each header.
    fn tensors(&self) -> &[ModelTensor];

    /// Returns a tensor by its name.
    fn tensor(&self, name: &str) -> Option<&ModelTensor>;

    /// Returns the alignment of tensors in their file, in bytes.
    fn alignment(&self) -> u64;

    /// Returns the files, in order.
    fn files(&self) -> &[PathBuf];

    /// Returns the length of each file when it was opened.
    fn file_lens(&self) -> Vec<u64>;

    /// Fills `buffer` with a tensor's bytes from `offset` (within the tensor) on.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if that reaches past the tensor, `UnexpectedEof` if the file was cut since it was opened, and those of the system.
    fn read_at(&self, tensor: &ModelTensor, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A candidate's file, known to the byte except for the tensors' data.
pub trait Candidate: Send + Sync + std::fmt::Debug {
    /// Returns everything before the first tensor.
    fn header(&self) -> &[u8];

    /// Returns the tensors, in the order of the file; offsets count from the end of the header.
    fn tensors(&self) -> &[TensorInfo];

    /// Returns the alignment of tensors, in bytes.
    fn alignment(&self) -> u64;

    /// Returns the length of the file, in bytes.
    fn file_len(&self) -> u64;

    /// Writes the file. `fill` is called once for each tensor, in order, and writes its bytes.
    ///
    /// # Errors
    ///
    /// Those of `out` and `fill`, and `InvalidData` if `fill` writes more or fewer bytes than the tensor has.
    fn write(
        &self,
        out: &mut dyn Write,
        fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()>;
}

/// All containers. The first is that of files which none recognizes, so that its errors say what is wrong with them.
pub const CONTAINERS: &[&dyn Container] = &[&gguf::Gguf];

/// The container of the candidates that forge writes.
pub const OF_CANDIDATES: &dyn Container = &gguf::Gguf;

/// The longest start of a file that a container needs to recognize it.
const START: usize = 16;

/// Returns the container that recognizes a file by its first bytes.
pub fn recognize(start: &[u8]) -> Option<&'static dyn Container> {
    CONTAINERS.iter().copied().find(|container| container.recognizes(start))
}

/// Opens a model in any container.
///
/// # Errors
///
/// Those of [`Container::open`].
pub fn open(path: &Path) -> Result<Box<dyn Source>, OpenError> {
    let start = start_of(path).unwrap_or_default();
    let container = recognize(&start).unwrap_or(CONTAINERS[0]);
    container.open(path)
}

/// Returns the first bytes of a file.
fn start_of(path: &Path) -> Option<Vec<u8>> {
    let mut start = Vec::with_capacity(START);
    let file = fs::open(path).ok()?;
    io::Read::read_to_end(&mut io::Read::take(file, START as u64), &mut start).ok()?;
    Some(start)
}

/// Returns the files that a model is split into, by the name of any one of them.
pub fn parts(path: &Path) -> Vec<PathBuf> {
    let mut parts = CONTAINERS.iter().map(|container| container.parts(path));
    parts
        .find(|parts| parts.len() > 1)
        .unwrap_or_else(|| vec![path.to_owned()])
}

/// Returns the file name of a candidate.
pub fn file_name(candidate: &str) -> String {
    OF_CANDIDATES.file_name(candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_writes_is_recognized_and_read_back() {
        for container in CONTAINERS {
            let mut metadata = Metadata::new();
            let architecture = crate::gguf::Value::String(b"llama".to_vec());
            metadata.set("general.architecture", &architecture).unwrap();
            let specs: Vec<TensorSpec> = [("a.weight", TensorType::F32, 4), ("b.weight", TensorType::Q8_0, 32)]
                .map(|(name, ty, columns)| TensorSpec {
                    name: name.to_owned(),
                    ty,
                    dims: vec![columns, 2],
                })
                .into();
            let candidate = container.lay_out(&metadata, &specs, 32).unwrap();
            let mut bytes = Vec::new();
            let data = |index: usize, len: u64| vec![b'a' + index as u8; len as usize];
            let mut fill =
                |index: usize, out: &mut dyn Write| out.write_all(&data(index, candidate.tensors()[index].len));
            candidate.write(&mut bytes, &mut fill).unwrap();
            assert_eq!(bytes.len() as u64, candidate.file_len());
            assert!(bytes.starts_with(candidate.header()));

            let folder = tempfile::tempdir().unwrap();
            // The name says nothing.
            let path = folder.path().join("weights.bin");
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(recognize(&bytes).unwrap().name(), container.name());
            let source = open(&path).unwrap();
            assert_eq!(source.metadata().get_str("general.architecture"), Some("llama"));
            assert_eq!(
                (source.files(), source.file_lens()),
                (&[path][..], vec![candidate.file_len()])
            );
            for (index, spec) in specs.iter().enumerate() {
                let tensor = source.tensor(&spec.name).unwrap();
                assert_eq!((tensor.info.ty, &tensor.info.dims), (spec.ty, &spec.dims));
                assert!(container.types().contains(&tensor.info.ty));
                let mut read = vec![0; tensor.info.len as usize];
                source.read_at(tensor, 0, &mut read).unwrap();
                assert_eq!(read, data(index, tensor.info.len));
            }
        }
    }
}
