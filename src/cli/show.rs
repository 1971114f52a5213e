//! `forge show RECIPE`: the resolved recipe, with every default written out.

use std::io;
use std::io::Write;

use crate::recipe::Recipe;

/// The version of the JSON form.
pub const SCHEMA: u32 = 1;

/// How a recipe is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// TOML that reads back as an equal recipe.
    Toml,
    /// JSON with all steps of all sweeps.
    Json,
}

/// Writes a resolved recipe.
pub fn run(recipe: &Recipe, format: Format, out: &mut dyn Write) -> io::Result<()> {
    match format {
        Format::Toml => out.write_all(recipe.to_toml().as_bytes()),
        Format::Json => {
            #[derive(serde::Serialize)]
            struct Shown<'a> {
                schema: u32,
                reason: &'static str,
                recipe: &'a Recipe,
            }
            serde_json::to_writer_pretty(
                &mut *out,
                &Shown {
                    schema: SCHEMA,
                    reason: "recipe",
                    recipe,
                },
            )?;
            writeln!(out)
        }
    }
}
