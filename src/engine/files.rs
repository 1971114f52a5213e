//! The files of a model, held open while the engine reads them.

use std::path::Path;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::fs;
use crate::fs::File;

/// The open files of a model, the first part first. The engine reads these very files, whatever their paths lead to
/// meanwhile.
#[derive(Debug)]
pub struct ModelFiles(Vec<(PathBuf, File)>);

impl ModelFiles {
    /// Takes over open files with their paths; at least one.
    ///
    /// # Errors
    ///
    /// [`EngineError::NoFile`] if there is none.
    pub fn new(files: Vec<(PathBuf, File)>) -> Result<Self, EngineError> {
        if files.is_empty() {
            return Err(EngineError::NoFile);
        }
        Ok(Self(files))
    }

    /// Opens the only file of a model.
    ///
    /// # Errors
    ///
    /// [`EngineError::Open`].
    pub fn open(path: &Path) -> Result<Self, EngineError> {
        let file = fs::open(path).map_err(EngineError::Open)?;
        Self::new(vec![(path.to_owned(), file)])
    }

    /// Returns the path of the first part, for messages.
    pub fn path(&self) -> &Path {
        self.0.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// Returns, for each file, a path that leads to the open file as long as this lives, and the path that users know. The
    /// two are the same where the system has no such paths.
    pub(super) fn paths(&self) -> Vec<(PathBuf, &Path)> {
        let paths = self.0.iter();
        paths
            .map(|(path, file)| {
                (
                    fs::descriptor_path(file).unwrap_or_else(|| path.clone()),
                    path.as_path(),
                )
            })
            .collect()
    }
}
