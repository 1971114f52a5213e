//! What can be typed to look at types.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use clap::ValueEnum;

use super::DiffFormat;

/// Which recipe a name is one of.
#[derive(Debug, ClapArgs)]
pub(in crate::cli) struct OfRecipe {
    /// The recipe that names are looked for in
    #[arg(short = 'f', long, default_value = "recipe.toml", value_name = "RECIPE")]
    pub(in crate::cli) recipe: String,
    /// Where its outputs are [default: `out/<recipe name>/` beside the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
  forge policy show small-Q4_K_M
  forge policy show --by layer out/small/small-Q4_K_M.gguf
  forge policy show --by tensor downloaded.gguf

What a policy said of a candidate (why, predicted losses) is known where its manifest lies beside
it, and the store still has the policy. Of other files only the types are.")]
pub(in crate::cli) struct PolicyShow {
    /// A candidate or another model (GGUF), a manifest, a policy (JSON), or the name of a candidate or policy of the recipe
    #[arg(value_name = "CANDIDATE|POLICY|GGUF")]
    pub(in crate::cli) of: String,
    /// By which the tensors are taken together; by layer it is a map, a row a layer and a column a class
    #[arg(long, value_enum, default_value = "class")]
    pub(in crate::cli) by: By,
    #[command(flatten)]
    pub(in crate::cli) recipe: OfRecipe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum By {
    Class,
    Layer,
    Tensor,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
  forge policy diff small-7bpw small-Q5_K_M
  forge policy diff --exit-code old.gguf new.gguf

Bytes of tensors are not looked at: `forge diff` compares those of two candidates, too.")]
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
    /// For people, for programs, or for a comment on a change
    #[arg(long, value_enum, default_value = "text")]
    pub(in crate::cli) format: DiffFormat,
    /// Show at most so many rows of each part in text and Markdown; 0 for all
    #[arg(long, default_value = "30", value_name = "N")]
    pub(in crate::cli) rows: usize,
    #[command(flatten)]
    pub(in crate::cli) recipe: OfRecipe,
}

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
  forge policy chart
  forge policy chart --svg front.svg recipe.toml other/metrics.json

The axis of losses is logarithmic. Bars are 95 % intervals; crosses are what a policy predicted,
where the store still has it. Figures of other engines or texts than the first file's are marked as
historical.")]
pub(in crate::cli) struct PolicyChart {
    /// Recipes that were built, or their `metrics.json`
    #[arg(default_value = "recipe.toml", value_name = "RECIPE|METRICS")]
    pub(in crate::cli) files: Vec<String>,
    /// The evaluation, where there are several
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) eval: Option<String>,
    /// Write the chart as a picture
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) svg: Option<PathBuf>,
    /// Draw with characters of ASCII only [default: if the locale says that the terminal knows no others]
    #[arg(long)]
    pub(in crate::cli) ascii: bool,
    /// Columns of the chart
    #[arg(long, default_value = "80", value_name = "N", value_parser = clap::value_parser!(u16).range(40..=400))]
    pub(in crate::cli) width: u16,
    /// Rows of the field with the marks
    #[arg(long, default_value = "22", value_name = "N", value_parser = clap::value_parser!(u16).range(6..=200))]
    pub(in crate::cli) height: u16,
    /// Where the recipes' outputs are [default: `out/<recipe name>/` beside each recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
}
