//! What a file is, recognized by its content. Its name is not looked at: people rename files, and sources of the web have names
//! such as `imatrix_unsloth.gguf_file`.

use std::io::Read as _;
use std::path::Path;

use crate::container;
use crate::fs;

/// Bytes from the start of a file that decide what it is.
const START: u64 = 64 << 10;
/// A safetensors file starts with the length of its header, which no model makes longer than this many bytes.
const SAFETENSORS_HEADER: u64 = 1 << 30;

/// What a file is.
#[derive(Debug)]
pub enum Content {
    /// It has no bytes.
    Empty,
    /// UTF-8 text that is not JSON, such as a recipe.
    Text,
    /// A JSON object, such as a manifest or a table of types.
    Json,
    /// A model in GGUF.
    Model,
    /// An imatrix in GGUF.
    Imatrix,
    /// Most likely an imatrix of the older `.dat` format, which has no magic number.
    OldImatrix,
    /// A model in safetensors.
    Safetensors,
    /// A GGUF file whose header cannot be read.
    Damaged(container::OpenError),
    /// None of these.
    Unknown,
}

impl Content {
    /// Recognizes a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn of(path: &Path) -> Result<Self, fs::PathError> {
        let mut start = Vec::new();
        fs::open(path)?
            .take(START)
            .read_to_end(&mut start)
            .map_err(fs::PathError::on(path, "read"))?;
        Ok(if start.is_empty() {
            Self::Empty
        } else if let Some(container) = container::recognize(&start) {
            match container.open(path) {
                Ok(model) if is_imatrix(model.as_ref()) => Self::Imatrix,
                Ok(_) => Self::Model,
                Err(error) => Self::Damaged(error),
            }
        } else if is_safetensors(&start) {
            Self::Safetensors
        } else if let Some(text) = text_of(&start) {
            if text.trim_start().starts_with('{') {
                Self::Json
            } else {
                Self::Text
            }
        } else if may_be_old_imatrix(&start) {
            Self::OldImatrix
        } else {
            Self::Unknown
        })
    }

    /// Returns the content with its article, as messages write it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Empty => "an empty file",
            Self::Text => "a text file",
            Self::Json => "a JSON document",
            Self::Model => "a GGUF model",
            Self::Imatrix => "an imatrix (GGUF)",
            Self::OldImatrix => "a legacy imatrix",
            Self::Safetensors => "a safetensors model",
            Self::Damaged(_) => "a damaged GGUF file",
            Self::Unknown => "a file that forge does not recognize",
        }
    }
}

/// Returns whether a GGUF file is an imatrix: it says so, or it has nothing but sums and counts, as the first files of that format.
fn is_imatrix(model: &dyn container::Source) -> bool {
    let is_sum = |name: &str| name.ends_with(".in_sum2") || name.ends_with(".counts");
    model.metadata().get_str("general.type") == Some("imatrix")
        || (!model.tensors().is_empty() && model.tensors().iter().all(|tensor| is_sum(&tensor.info.name)))
}

/// Returns the start of a file as text. The last character may be cut.
fn text_of(start: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() && start.len() as u64 == START => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    (!text.contains('\0')).then_some(text)
}

/// A safetensors file is the length of its header (64 bits, little-endian), then the header, a JSON object.
fn is_safetensors(start: &[u8]) -> bool {
    let Some((length, header)) = start.split_first_chunk::<8>() else {
        return false;
    };
    let length = u64::from_le_bytes(*length);
    (2..SAFETENSORS_HEADER).contains(&length) && header.starts_with(b"{\"")
}

/// The older format has no magic number, but it starts with the number of entries and the name of the first one.
fn may_be_old_imatrix(start: &[u8]) -> bool {
    let number = |at: usize| -> Option<usize> {
        let bytes = start.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(i32::from_le_bytes(bytes)).ok()
    };
    let (Some(entries), Some(length)) = (number(0), number(4)) else {
        return false;
    };
    let name = start.get(8..).and_then(|rest| rest.get(..length));
    let is_name = name.is_some_and(|name| !name.is_empty() && name.iter().all(u8::is_ascii_graphic));
    (1..1 << 20).contains(&entries) && is_name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, bytes).unwrap();
        Content::of(&path).unwrap().as_str().to_owned()
    }

    #[test]
    fn content_decides_whatever_the_name() {
        assert_eq!(found(b""), "an empty file");
        assert_eq!(found(b"schema = 1\n"), "a text file");
        assert_eq!(found(b"  {\"schema\": 1}"), "a JSON document");
        assert_eq!(found(b"GGUF\x03"), "a damaged GGUF file");
        assert_eq!(found(b"\x02\0\0\0\x05\0\0\0blk.0rest"), "a legacy imatrix");
        assert_eq!(found(b"\x40\0\0\0\0\0\0\0{\"__metadata__\":{}}"), "a safetensors model");
        assert_eq!(found(b"\x7fELF\0\0\0"), "a file that forge does not recognize");
    }
}
