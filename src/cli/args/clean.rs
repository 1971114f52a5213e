//! The arguments of `forge clean`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::RecipeArgument;

#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Removes a file only if its name and its content prove that forge wrote it for this recipe: they are those of the manifest
beside it, or of a result in the store. Edited files and files of other programs stay. Files that a build is writing stay,
too; the exit status is 3 then.

The store does not keep a second copy of tensors that a candidate contains. Tensors that only the removed files contain
must be quantized again if a build needs them; `--keep-tensors` copies them into the store first.

The store itself is cleaned by `forge cache gc` and `forge cache clean`.")]
pub(in crate::cli) struct Clean {
    #[command(flatten)]
    pub(in crate::cli) recipe: RecipeArgument,
    /// Only the files that the recipe no longer makes [default: all that forge wrote into the output folder]
    #[arg(long)]
    pub(in crate::cli) stale: bool,
    /// Copy tensors that only these files contain into the store before they are removed
    #[arg(long)]
    pub(in crate::cli) keep_tensors: bool,
    /// Where outputs are [default: `out/<recipe name>/` next to the recipe]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) out: Option<PathBuf>,
    /// Only show what would be removed
    #[arg(short = 'n', long, conflicts_with = "yes")]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long)]
    pub(in crate::cli) yes: bool,
}
