//! Which of the outputs that are verified a recipe no longer makes.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::args::OutputArgs;
use crate::cli::files::Files;
use crate::fs;
use crate::session::clean;
use crate::verify::Target;

/// Returns the outputs that a recipe no longer makes. Of a recipe that the command line means, its stale outputs are added to
/// `targets`. Of a folder, they are known if it is, or contains, the output folder of the recipe of `-f` or of the current folder.
pub(super) fn of(args: &OutputArgs, files: &Files, targets: &mut Vec<Target>) -> BTreeSet<PathBuf> {
    let mut stale = BTreeSet::new();
    let mut recipes: BTreeSet<String> = BTreeSet::new();
    if args.paths.is_empty() {
        recipes.insert(args.recipe.file().to_owned());
    }
    let mut has_folder = false;
    for path in &args.paths {
        let is_folder = fs::list(&files.path(path)).is_ok();
        has_folder |= is_folder;
        let recipe = path.to_str().filter(|word| !is_folder && files.is_recipe(word));
        recipes.extend(recipe.map(str::to_owned));
    }
    for recipe in &recipes {
        for target in of_recipe(recipe, args, files) {
            stale.insert(target.output.clone());
            targets.push(target);
        }
    }
    if has_folder {
        let known: BTreeSet<PathBuf> = of_recipe(args.recipe.file(), args, files)
            .iter()
            .map(|target| resolved(&target.output))
            .collect();
        let found = targets
            .iter()
            .filter(|target| known.contains(&resolved(&target.output)));
        stale.extend(found.map(|target| target.output.clone()));
    }
    targets.sort();
    targets.dedup();
    stale
}

/// Returns the stale outputs of a recipe; none if it cannot be read.
fn of_recipe(path: &str, args: &OutputArgs, files: &Files) -> Vec<Target> {
    let Some(recipe) = files.good_recipe(path) else {
        return Vec::new();
    };
    let out = files.out(path, &recipe.name, args.out.as_deref());
    clean::stale_targets(&recipe, &out).unwrap_or_default()
}

/// Returns a path that is the same for all names of its folder.
fn resolved(path: &Path) -> PathBuf {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = fs::resolve(folder.unwrap_or(Path::new("."))).unwrap_or_default();
    folder.join(path.file_name().unwrap_or_default())
}
