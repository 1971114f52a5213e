//! The legacy form, `.dat`.

use super::{Imatrix, ImatrixError};

/// What is wrong with a legacy file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatError {
    /// Empty.
    #[error("the file is empty")]
    Empty,
}

impl Imatrix {
    /// Reads the legacy form.
    pub fn parse_dat(bytes: &[u8]) -> Result<Self, ImatrixError> {
        let _ = bytes;
        Self::default().checked()
    }

    /// Writes the legacy form.
    pub fn to_dat(&self) -> Result<Vec<u8>, ImatrixError> {
        Ok(Vec::new())
    }
}
