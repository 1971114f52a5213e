//! The arguments of the commands that show and compare types.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::ValueEnum;

use super::DiffFormat;
use super::RecipeOption;

/// The recipe in which a name is looked up, and its outputs.
#[derive(Debug, Default, ClapArgs)]
pub(in crate::cli) struct NameArgs {
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeOption,
    /// Where its outputs are [default: `out/<recipe name>/` next to the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The policy's reasons and predicted losses are shown if the manifest is next to the candidate and
the store still has the policy. Of other files, only the types are shown.")]
pub(in crate::cli) struct PolicyShow {
    /// A candidate or another model (GGUF), a manifest, a policy (JSON), or the name of a candidate or policy of the recipe
    #[arg(value_name = "CANDIDATE|POLICY|GGUF")]
    pub(in crate::cli) of: String,
    /// How to group the tensors; `layer` draws a map with a row for each layer and a column for each class
    #[arg(long, value_enum, default_value = "class")]
    pub(in crate::cli) by: GroupBy,
    #[command(flatten)]
    pub(in crate::cli) recipe: NameArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum GroupBy {
    Class,
    Layer,
    Tensor,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Compares types only; `forge diff` also compares the bytes of two candidates' tensors.")]
pub(in crate::cli) struct PolicyDiff {
    /// The first: as for `forge policy show`
    #[arg(value_name = "A")]
    pub(in crate::cli) a: String,
    /// The second
    #[arg(value_name = "B")]
    pub(in crate::cli) b: String,
    /// Exit with 1 if they differ
    #[arg(long)]
    pub(in crate::cli) exit_code: bool,
    /// The output format; Markdown is meant for comments on a change
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: DiffFormat,
    /// The maximum number of rows of each part in text and Markdown; 0 for all
    #[arg(long, default_value = "30", value_name = "N")]
    pub(in crate::cli) rows: usize,
    #[command(flatten)]
    pub(in crate::cli) recipe: NameArgs,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The loss axis is logarithmic. Bars are 95 % confidence intervals; crosses are predicted losses,
shown while the policy's result is in the store. Figures from other engines or texts than the first file's are
marked as historical.")]
pub(in crate::cli) struct PolicyChart {
    /// Recipes that were built, or their `metrics.json` [default: recipe.toml]
    #[arg(value_name = "RECIPE|METRICS")]
    pub(in crate::cli) files: Vec<String>,
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeOption,
    /// The evaluation, if there are several
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) eval: Option<String>,
    /// Write the chart as an SVG image
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) svg: Option<PathBuf>,
    /// Draw with ASCII characters only [default: if the locale is not UTF-8]
    #[arg(long)]
    pub(in crate::cli) ascii: bool,
    /// Columns of the chart
    #[arg(long, default_value = "80", value_name = "N", value_parser = clap::value_parser!(u16).range(40..=400))]
    pub(in crate::cli) width: u16,
    /// Rows of the plot area
    #[arg(long, default_value = "22", value_name = "N", value_parser = clap::value_parser!(u16).range(6..=200))]
    pub(in crate::cli) height: u16,
    /// Where the recipes' outputs are [default: `out/<recipe name>/` next to each recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}
