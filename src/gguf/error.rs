//! What can be wrong with a GGUF file, and where.

use std::fmt;

use super::MAX_TENSOR_NAME;
use super::value::ValueType;
use crate::tensor_type::TensorType;

/// A fault of a GGUF file (or of what shall become one), with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufError {
    /// The byte of the file at which reading stopped; none for what is about to be written.
    pub offset: Option<u64>,
    /// The part of the file.
    pub place: Place,
    /// The fault.
    pub problem: Problem,
}

impl std::error::Error for GgufError {}

impl fmt::Display for GgufError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File => {}
            place => write!(f, "{place}: ")?,
        }
        write!(f, "{}", self.problem)?;
        match self.offset {
            Some(offset) => write!(f, " (at byte {offset})"),
            None => Ok(()),
        }
    }
}

/// A part of a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The first bytes, or the file as a whole.
    File,
    /// A metadata key.
    Key {
        /// Its number, from 0.
        index: u64,
        /// Its name, where it could be read.
        name: Option<String>,
    },
    /// A tensor.
    Tensor {
        /// Its number, from 0.
        index: u64,
        /// Its name, where it could be read.
        name: Option<String>,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("file"),
            Self::Key { name: Some(name), .. } => write!(f, "key `{}`", shown(name)),
            Self::Key { index, name: None } => write!(f, "key number {index}"),
            Self::Tensor { name: Some(name), .. } => write!(f, "tensor `{}`", shown(name)),
            Self::Tensor { index, name: None } => write!(f, "tensor number {index}"),
        }
    }
}

/// Makes a name out of a file fit for a sentence: no control characters, bounded.
fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        text.push('…');
    }
    text
}

/// The fault itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// Zeros where the magic belongs.
    #[error(
        "the file begins with zeros instead of `GGUF`: its writer was stopped before it wrote the header (an interrupted \
         `llama-quantize` leaves such files); make the file again"
    )]
    Zeros,
    /// Another format.
    #[error("not a GGUF file: it begins with {}, not with `GGUF`", printable(.found))]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// Big-endian.
    #[error(
        "the file is byte-swapped (version reads {found:#010x}): it was written for a big-endian machine; convert it with \
         `gguf_convert_endian.py`"
    )]
    ByteSwapped {
        /// The version as read.
        found: u32,
    },
    /// A version that is not read here.
    #[error("GGUF version {found} is not supported, only 2 and 3 are{}", if *.found == 1 { "; convert the model again" } else { "" })]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends inside something.
    #[error("the file ends inside {what}: {needed} bytes are needed, {left} are left; it is truncated or damaged")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// How many bytes that takes.
        needed: u64,
        /// How many there are.
        left: u64,
    },
    /// A count that does not fit in the file.
    #[error("the header claims {count} {what}, but the {left} remaining bytes hold at most {max}")]
    Count {
        /// What is counted.
        what: &'static str,
        /// The claim.
        count: u64,
        /// Bytes left.
        left: u64,
        /// The largest count that fits.
        max: u64,
    },
    /// An array that does not fit in the file.
    #[error("the array claims {count} elements of type {ty}, but only {left} bytes are left")]
    ArrayLength {
        /// The claim.
        count: u64,
        /// The type of an element.
        ty: ValueType,
        /// Bytes left.
        left: u64,
    },
    /// A header that no model has.
    #[error("the header is longer than {limit} bytes, longer than any model's; the file is damaged")]
    HeaderTooLong {
        /// The limit.
        limit: u64,
    },
    /// A key or tensor without a name.
    #[error("the name is empty")]
    NameEmpty,
    /// A name that is no text.
    #[error("the name is not UTF-8")]
    NameEncoding,
    /// A name that C would cut.
    #[error("the name contains a zero byte")]
    NameZero,
    /// A tensor name that is longer than ggml allows.
    #[error("the name is {length} bytes long; llama.cpp reads at most {MAX_TENSOR_NAME}")]
    NameLength {
        /// Its length.
        length: u64,
    },
    /// The same key or tensor name twice.
    #[error("the name occurs twice")]
    Duplicate,
    /// A value type that is not one.
    #[error("{found} is not a value type (these are 0 to 12)")]
    UnknownValueType {
        /// The number.
        found: u32,
    },
    /// An array of arrays.
    #[error("the value is an array of arrays, which llama.cpp does not read")]
    NestedArray,
    /// A constructed array of elements that differ in type.
    #[error("the array is of type {expected} but holds a {found}")]
    MixedArray {
        /// The type of the array.
        expected: ValueType,
        /// The type of the element.
        found: ValueType,
    },
    /// A value of the wrong type.
    #[error("the value is of type {found}, expected {expected}")]
    WrongValueType {
        /// What is there.
        found: ValueType,
        /// What should be.
        expected: ValueType,
    },
    /// An alignment that is none.
    #[error("the alignment {found} is not a power of two")]
    Alignment {
        /// The alignment.
        found: u64,
    },
    /// An alignment that no file has.
    #[error("the alignment {found} is larger than {limit} bytes, the most that is supported")]
    AlignmentTooLarge {
        /// The alignment.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// A layout whose alignment is not the one its metadata tells the reader.
    #[error("the metadata says an alignment of {metadata}, the layout was asked for {asked}")]
    AlignmentMismatch {
        /// What `general.alignment` (or the default) says.
        metadata: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Too many dimensions, or none.
    #[error("the tensor has {found} dimensions; it must have 1 to 4")]
    Dimensions {
        /// How many.
        found: u64,
    },
    /// A dimension of size 0.
    #[error("dimension {index} is 0: the tensor would be empty")]
    DimensionZero {
        /// Which, from 0.
        index: usize,
    },
    /// More elements or bytes than 63 bits count.
    #[error("the shape {dims:?} overflows: no file can hold it")]
    ShapeOverflow {
        /// The shape.
        dims: Vec<u64>,
    },
    /// A row that is not whole blocks.
    #[error("rows of {ncols} elements are not whole blocks of {ty} ({} elements each)", .ty.block_elements())]
    RowBlocks {
        /// The type.
        ty: TensorType,
        /// The length of a row.
        ncols: u64,
    },
    /// A tensor type that ggml does not have.
    #[error("{id} is not a tensor type{}", removed(*.id))]
    UnknownTensorType {
        /// The number.
        id: u32,
    },
    /// Data that does not start on the alignment.
    #[error("the data offset {offset} is not a multiple of the alignment {alignment}")]
    Misaligned {
        /// The offset from the start of the data.
        offset: u64,
        /// The alignment.
        alignment: u64,
    },
    /// Data past the end of the file.
    #[error("the data should end at byte {end}, but the file ends at {file_len}; it is truncated or damaged")]
    OutsideFile {
        /// One past the last byte of the data, from the start of the file.
        end: u64,
        /// The length of the file.
        file_len: u64,
    },
    /// Data shared with another tensor.
    #[error("the data overlaps that of tensor `{}`", shown(.other))]
    Overlap {
        /// The other.
        other: String,
    },
    /// Two shards with the same tensor.
    #[error("the tensor is also in shard `{other}`")]
    InTwoShards {
        /// The file name of the other shard.
        other: String,
    },
    /// A key that must be there.
    #[error("the key is missing")]
    MissingKey,
    /// A shard that says it is another one.
    #[error("the value is {found}, but the file's name and place in the set ask for {expected}")]
    SplitMismatch {
        /// What the file says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
    /// A set that has not the tensors it should.
    #[error("the set should have {expected} tensors, its shards have {found}")]
    SplitTensors {
        /// What the first shard says.
        expected: u64,
        /// What was found.
        found: u64,
    },
}

fn printable(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

fn removed(id: u32) -> &'static str {
    match id {
        4 | 5 | 31..=33 | 36..=38 => ": it was removed from ggml; convert the model again",
        _ => " that this version knows; the file is damaged or was made by a fork or a newer llama.cpp",
    }
}
