//! Which recipe and which steps the words of a command line mean. The rule is the same for every command: `-f RECIPE` names
//! the recipe; else the first word does if it is a file, is a path or ends in `.toml`; all other words name steps. Without
//! a recipe, that of the current folder counts.

use std::path::Path;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args::RecipeArgument;
use crate::cli::args::TargetArgs;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::fs;
use crate::recipe::StepId;

/// Returns whether a word names a recipe and not a step. A step may have a separator after its id (`eval.quality/small`).
pub(super) fn names_recipe(word: &str, files: &Files) -> bool {
    let path = Path::new(word);
    if is_toml(path) || is_file(&files.path(path)) {
        return true;
    }
    let first = word.split(std::path::is_separator).next().unwrap_or_default();
    word != first && first.parse::<StepId>().is_err()
}

/// Returns whether anything but a folder has this path. A folder may have the name of a step.
fn is_file(path: &Path) -> bool {
    fs::exists(path).unwrap_or(false) && fs::list(path).is_err()
}

fn is_toml(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "toml")
}

/// Returns the recipe, and the names of steps.
///
/// # Errors
///
/// One of usage, if a recipe stands where a step is expected.
pub(super) fn recipe_and_steps(
    recipe: &RecipeArgument,
    words: impl IntoIterator<Item = String>,
    files: &Files,
) -> Result<(String, Vec<String>), Failure> {
    let file = recipe.option.file().to_owned();
    let (file, mut steps) = match &recipe.first {
        Some(first) if recipe.option.recipe.is_none() && names_recipe(first, files) => (first.clone(), Vec::new()),
        Some(first) => (file, vec![first.clone()]),
        None => (file, Vec::new()),
    };
    steps.extend(words);
    if let Some(misplaced) = steps.iter().find(|step| is_toml(Path::new(step))) {
        let error = Diagnostic::error(format!("`{misplaced}` is a recipe, not a step")).code("usage::no-such-step");
        let hint = format!("give one recipe, before the steps or with `-f`: `-f {misplaced}`");
        return Err(Failure::new(Exit::Usage, error.hint(hint)));
    }
    Ok((file, steps))
}

/// Returns the recipe of a command that takes no steps.
///
/// # Errors
///
/// One of usage, if there are more words than one recipe.
pub(super) fn only_recipe(recipe: &RecipeArgument, verb: &str, files: &Files) -> Result<String, Failure> {
    let (file, steps) = recipe_and_steps(recipe, [], files)?;
    match steps.first() {
        None => Ok(file),
        Some(step) => {
            let error = Diagnostic::error(format!("`{step}` is not a recipe, and `forge {verb}` takes no steps"));
            let hint = format!("`forge {verb} {file}` reads the recipe `{file}`");
            Err(Failure::new(Exit::Usage, error.code("usage::no-steps").hint(hint)))
        }
    }
}

/// Returns what a command is to build or plan.
///
/// # Errors
///
/// As [`recipe_and_steps`].
pub(super) fn target(args: &TargetArgs, files: &Files) -> Result<Target, Failure> {
    let (recipe, steps) = recipe_and_steps(&args.recipe, args.steps.iter().cloned(), files)?;
    Ok(Target {
        recipe,
        steps,
        out: args.out.clone(),
        jobs: args.jobs,
    })
}
