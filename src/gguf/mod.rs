//! GGUF containers: bounded reading, streaming writing.
//!
//! The format is ggml's (`ggml/docs/gguf.md` and `gguf.cpp`), versions 2 and 3, little-endian:
//!
//! ```text
//! "GGUF"  u32 version  u64 tensors  u64 keys
//! keys:    string key, u32 type, value              string = u64 length + bytes
//! tensors: string name, u32 dimensions, u64[] sizes (fastest first), u32 type, u64 offset from the data
//! zeros to `general.alignment`, then the data: every tensor zero-filled to the alignment, the last one too
//! ```
//!
//! [`parse`] reads a header out of bytes, [`File`] out of one file, [`Model`] out of a file or a set of shards.
//! [`Layout`] writes one: it has every byte before the first tensor and the place of each tensor.
//!
//! No count or length in a file is trusted: each is checked against the bytes of the file before memory is allocated for it,
//! every sum is checked, and every error has its position.

mod cursor;
mod error;
mod file;
mod header;
mod layout;
mod metadata;
mod model;
mod value;

pub use error::{GgufError, Place, Problem};
pub use file::{File, OpenError};
pub use header::{Header, MAX_HEADER, TensorInfo, parse};
pub use layout::{Layout, TensorSpec, without_trailing_ones};
pub use metadata::{Entries, Entry, Metadata, StringArray};
pub use model::{Model, ModelTensor, TensorReader};
pub use value::{Value, ValueType};

/// The bytes every GGUF file begins with.
pub const MAGIC: [u8; 4] = *b"GGUF";

/// The alignment of tensor data where `general.alignment` does not say another.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment that is read or written: the padding before the data is kept in memory.
const MAX_ALIGNMENT: u64 = 1 << 24;

/// The key of the alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// The longest tensor name in bytes that llama.cpp reads (`GGML_MAX_NAME` less its final zero).
pub const MAX_TENSOR_NAME: usize = 63;
