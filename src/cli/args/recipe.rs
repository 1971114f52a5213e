//! How every command takes a recipe and its steps.

use std::path::PathBuf;

use clap::Args as ClapArgs;

/// The recipe of a command that is given none.
pub(in crate::cli) const DEFAULT_RECIPE: &str = "recipe.toml";

/// `-f RECIPE`: the recipe, for every command that reads one.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(in crate::cli) struct RecipeOption {
    /// The recipe [default: recipe.toml]
    #[arg(short = 'f', long = "recipe", value_name = "RECIPE")]
    pub(in crate::cli) recipe: Option<String>,
}

impl RecipeOption {
    /// Returns the recipe: the given one, or that of the current folder.
    pub(in crate::cli) fn file(&self) -> &str {
        self.recipe.as_deref().unwrap_or(DEFAULT_RECIPE)
    }
}

/// A recipe by position or with `-f`. `selection` decides whether the first word is a recipe or a step.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(in crate::cli) struct RecipeArgument {
    /// The recipe [default: recipe.toml]
    #[arg(value_name = "RECIPE")]
    pub(in crate::cli) first: Option<String>,
    #[command(flatten)]
    pub(in crate::cli) option: RecipeOption,
}

/// A recipe and its steps, and how to build them.
#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct TargetArgs {
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeArgument,
    /// Only these steps and what they need, such as `promote.small` or `eval.quality`; the recipe may be left out
    #[arg(value_name = "STEP")]
    pub(in crate::cli) steps: Vec<String>,
    /// Where outputs go [default: `out/<recipe name>/` next to the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Threads to use [default: all cores, or `[engine.embedded] threads` of forge.toml]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) jobs: Option<u16>,
}
