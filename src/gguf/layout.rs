//! Writing: a file's every byte but the data, known before the first is written.

use std::collections::HashSet;
use std::io::{self, Write};

use super::error::{GgufError, Place, Problem};
use super::header::{TensorInfo, tensor_len};
use super::metadata::Metadata;
use super::{ALIGNMENT_KEY, MAGIC, MAX_ALIGNMENT, MAX_TENSOR_NAME};
use crate::tensor_type::TensorType;

/// What a file shall hold of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The name, 1 to 63 bytes.
    pub name: String,
    /// The type.
    pub ty: TensorType,
    /// The sizes, fastest first. They are written as they are; llama.cpp writes them [`without_trailing_ones`].
    pub dims: Vec<u64>,
}

impl From<&TensorInfo> for TensorSpec {
    fn from(info: &TensorInfo) -> Self {
        Self {
            name: info.name.clone(),
            ty: info.ty,
            dims: info.dims.clone(),
        }
    }
}

/// Returns the dimensions as llama.cpp writes them: without the ones at the end, but never none.
pub fn without_trailing_ones(dims: &[u64]) -> &[u64] {
    let count = dims.iter().rposition(|dim| *dim != 1).map_or(1, |at| at + 1);
    &dims[..count.min(dims.len())]
}

/// A GGUF file that is fully known but for its tensors' bytes.
///
/// Version 3, tensors in the order given, each zero-filled to the alignment, as llama.cpp writes it and demands it.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    header: Vec<u8>,
    tensors: Vec<TensorInfo>,
    alignment: u64,
    file_len: u64,
}

impl Layout {
    /// Lays a file out.
    ///
    /// # Errors
    ///
    /// Names that are empty, too long or twice there, shapes that the type cannot have, sizes that overflow, and an
    /// `alignment` that is not the one `metadata` tells the reader (`general.alignment`, 32 without it).
    pub fn new(metadata: &Metadata, tensors: &[TensorSpec], alignment: u64) -> Result<Self, GgufError> {
        check_alignment(metadata, alignment)?;
        let mut seen = HashSet::new();
        let mut infos = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for (index, spec) in tensors.iter().enumerate() {
            let wrong = |problem| {
                let place = Place::Tensor {
                    index: index as u64,
                    name: Some(spec.name.clone()),
                };
                GgufError {
                    offset: None,
                    place,
                    problem,
                }
            };
            check_name(&spec.name).map_err(wrong)?;
            if !seen.insert(&spec.name) {
                return Err(wrong(Problem::Duplicate));
            }
            let len = tensor_len(spec.ty, &spec.dims).map_err(wrong)?;
            infos.push(TensorInfo {
                name: spec.name.clone(),
                ty: spec.ty,
                dims: spec.dims.clone(),
                offset,
                len,
            });
            offset = offset
                .checked_add(len)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .filter(|end| i64::try_from(*end).is_ok())
                .ok_or_else(|| {
                    wrong(Problem::ShapeOverflow {
                        dims: spec.dims.clone(),
                    })
                })?;
        }
        let header = encode_header(metadata, &infos, alignment);
        // No overflow: the header is in memory, the data below 2^63.
        let file_len = header.len() as u64 + offset;
        Ok(Self {
            header,
            tensors: infos,
            alignment,
            file_len,
        })
    }

    /// Returns the bytes of the header with the padding up to the data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Returns where the data starts, from the start of the file.
    pub fn data_offset(&self) -> u64 {
        self.header.len() as u64
    }

    /// Returns the tensors with their places, in the order of the file; offsets count from the data's start.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Returns the alignment.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Returns how many zeros follow a tensor of `len` bytes.
    pub fn padding(&self, len: u64) -> u64 {
        len.next_multiple_of(self.alignment) - len
    }

    /// Returns the length of the file, to the byte.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Writes the file; `fill` is called once per tensor, in order, and writes that tensor's bytes.
    ///
    /// # Errors
    ///
    /// Those of `out` and `fill`, and `InvalidData` if `fill` writes more or fewer bytes than the tensor has.
    pub fn write(
        &self,
        out: &mut dyn Write,
        fill: &mut dyn FnMut(usize, &mut dyn Write) -> io::Result<()>,
    ) -> io::Result<()> {
        out.write_all(&self.header)?;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let mut bounded = Bounded {
                out: &mut *out,
                left: tensor.len,
                tensor,
            };
            fill(index, &mut bounded)?;
            if bounded.left != 0 {
                return Err(bounded.wrong(tensor.len - bounded.left));
            }
            io::copy(&mut io::Read::take(io::repeat(0), self.padding(tensor.len)), out)?;
        }
        Ok(())
    }
}

/// Passes on at most a tensor's bytes.
struct Bounded<'a> {
    out: &'a mut dyn Write,
    left: u64,
    tensor: &'a TensorInfo,
}

impl Bounded<'_> {
    fn wrong(&self, written: u64) -> io::Error {
        let TensorInfo { name, len, .. } = self.tensor;
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("tensor `{name}` takes {len} bytes, {written} were written for it"),
        )
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(self.wrong(self.tensor.len - self.left + bytes.len() as u64));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn check_alignment(metadata: &Metadata, asked: u64) -> Result<(), GgufError> {
    let problem = match metadata.alignment()? {
        _ if !asked.is_power_of_two() => Problem::Alignment { found: asked },
        _ if asked > MAX_ALIGNMENT => Problem::AlignmentTooLarge {
            found: asked,
            limit: MAX_ALIGNMENT,
        },
        said if said == asked => return Ok(()),
        metadata => Problem::AlignmentMismatch { metadata, asked },
    };
    Err(GgufError {
        offset: None,
        place: Place::Key {
            index: 0,
            name: Some(ALIGNMENT_KEY.to_owned()),
        },
        problem,
    })
}

fn check_name(name: &str) -> Result<(), Problem> {
    match name.len() {
        0 => Err(Problem::NameEmpty),
        length if length > MAX_TENSOR_NAME => Err(Problem::NameLength { length: length as u64 }),
        _ if name.contains('\0') => Err(Problem::NameZero),
        _ => Ok(()),
    }
}

fn encode_header(metadata: &Metadata, tensors: &[TensorInfo], alignment: u64) -> Vec<u8> {
    fn string(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for entry in metadata {
        string(&mut out, entry.key());
        out.extend(entry.value_type().id().to_le_bytes());
        out.extend(entry.raw());
    }
    for tensor in tensors {
        string(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(tensor.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(alignment as usize), 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{Value, ValueType};

    fn spec(name: &str, dims: &[u64]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            ty: TensorType::Q8_0,
            dims: dims.to_vec(),
        }
    }

    fn problem(tensors: &[TensorSpec]) -> Problem {
        Layout::new(&Metadata::new(), tensors, 32).unwrap_err().problem
    }

    #[test]
    fn layouts_that_no_reader_accepts_are_refused() {
        assert_eq!(problem(&[spec("", &[32])]), Problem::NameEmpty);
        assert_eq!(
            problem(&[spec(&"x".repeat(64), &[32])]),
            Problem::NameLength { length: 64 }
        );
        assert_eq!(problem(&[spec("a\0", &[32])]), Problem::NameZero);
        assert_eq!(problem(&[spec("a", &[32]), spec("a", &[64])]), Problem::Duplicate);
        assert_eq!(problem(&[spec("a", &[])]), Problem::Dimensions { found: 0 });
        assert_eq!(problem(&[spec("a", &[32, 0])]), Problem::DimensionZero { index: 1 });
        assert_eq!(
            problem(&[spec("a", &[33])]),
            Problem::RowBlocks {
                ty: TensorType::Q8_0,
                ncols: 33
            }
        );
        let huge = spec("a", &[(1 << 63) - 32, 1]);
        assert!(
            matches!(problem(&[huge]), Problem::ShapeOverflow { .. }),
            "more bytes than 63 bits count"
        );
        let half = [
            spec("a", &[1 << 61]),
            spec("b", &[1 << 61]),
            spec("c", &[1 << 61]),
            spec("d", &[1 << 61]),
        ];
        assert!(matches!(problem(&half), Problem::ShapeOverflow { .. }), "all together");
    }

    #[test]
    fn the_alignment_is_the_one_that_a_reader_will_use() {
        let mut wide = Metadata::new();
        wide.set(ALIGNMENT_KEY, &Value::U64(32)).unwrap();
        let error = Layout::new(&wide, &[], 32).unwrap_err().problem;
        assert_eq!(
            error,
            Problem::WrongValueType {
                found: ValueType::U64,
                expected: ValueType::U32
            }
        );
        let mut metadata = Metadata::new();
        let error = Layout::new(&metadata, &[], 64).unwrap_err().problem;
        assert_eq!(
            error,
            Problem::AlignmentMismatch {
                metadata: 32,
                asked: 64
            }
        );
        metadata.set(ALIGNMENT_KEY, &Value::U32(64)).unwrap();
        assert_eq!(Layout::new(&metadata, &[], 64).unwrap().file_len() % 64, 0);
        assert_eq!(
            Layout::new(&metadata, &[], 48).unwrap_err().problem,
            Problem::Alignment { found: 48 }
        );
        let far = Layout::new(&metadata, &[], 1 << 40).unwrap_err().problem;
        assert!(matches!(far, Problem::AlignmentTooLarge { .. }));
    }

    #[test]
    fn a_tensor_that_is_too_short_or_too_long_is_not_written() {
        let layout = Layout::new(&Metadata::new(), &[spec("a", &[32])], 32).unwrap();
        for (given, message) in [(33, "33 were written"), (35, "35 were written"), (0, "0 were written")] {
            let fill = &mut |_: usize, out: &mut dyn Write| out.write_all(&vec![1; given]);
            let error = layout.write(&mut Vec::new(), fill).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn trailing_ones_are_removed_but_never_all() {
        assert_eq!(without_trailing_ones(&[5, 1, 2, 1]), [5, 1, 2]);
        assert_eq!(without_trailing_ones(&[1, 1]), [1]);
        assert_eq!(without_trailing_ones(&[7]), [7]);
        assert!(without_trailing_ones(&[]).is_empty());
    }
}
