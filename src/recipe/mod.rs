//! Recipes: from text with places to checked values.
//!
//! ```text
//! text::Source -> raw (every key and value with its place) -> read (typed, sections with sweeps) -> Recipe (expanded)
//! ```
//!
//! No stage stops at the first error: all errors of a recipe are returned at once, in the order of the text. There is no
//! I/O here: files named by `extends` come from a closure that the caller gives.

pub mod error;
pub mod model;
pub mod names;
pub mod quantity;
pub mod requirement;

pub use crate::recipe::error::LoadError;
pub use crate::recipe::error::RecipeError;
pub use crate::recipe::error::RecipeWarning;
pub use crate::recipe::model::*;

use crate::text::Source;

/// The version of the language.
pub const SCHEMA: u32 = 1;

/// A recipe that was read, and what is odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The recipe.
    pub recipe: Recipe,
    /// In the order of the text.
    pub warnings: Vec<RecipeWarning>,
}

/// Reads a recipe.
///
/// `load` is asked for each file that `extends` names, by its path relative to the directory of `source` (or absolute,
/// where a recipe says so), and returns its text with the name that messages shall print for it.
///
/// # Errors
///
/// Everything that is wrong, file by file in the order of the text.
pub fn parse(
    source: &Source,
    load: &mut dyn FnMut(&str) -> Result<Source, LoadError>,
) -> Result<Parsed, Vec<RecipeError>> {
    let _ = (source, load);
    Err(Vec::new())
}
