//! Text files: recipes and settings.

use std::path::Path;

use crate::fs;
use crate::recipe::LoadError;
use crate::text::Source;

/// The maximum length of a recipe or settings file.
const TEXT_CAP: u64 = 4 << 20;

pub(super) fn read_source(path: &Path, name: &str) -> Result<Source, LoadError> {
    let bytes = fs::read_small(path, TEXT_CAP).map_err(|error| LoadError {
        message: if error.is_not_found() {
            fs::no_such_file(path)
        } else {
            error.to_string()
        },
    })?;
    let text = String::from_utf8(bytes).map_err(|error| LoadError {
        message: format!("it is not UTF-8: byte {} is wrong", error.utf8_error().valid_up_to()),
    })?;
    Ok(Source::new(name, text))
}
