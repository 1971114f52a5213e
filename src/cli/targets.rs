//! Which outputs and manifests the words of a command line mean, for the commands that verify, sign and bundle them.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args::NameArgs;
use crate::cli::args::OutputArgs;
use crate::cli::args::RecipeOption;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::content::Content;
use crate::fs;
use crate::manifest;
use crate::prose;
use crate::recipe::Recipe;
use crate::recipe::StepId;
use crate::recipe::StepKind;
use crate::sign::SUFFIX as SIGNATURES;
use crate::verify::Target;

/// Returns the outputs that the command line means, sorted; at least one.
pub(super) fn of(args: &OutputArgs, files: &Files, terminal: &Terminal) -> Result<Vec<Target>, Failure> {
    let finder = Finder {
        recipe: &args.recipe,
        out: args.out.as_deref(),
        files,
        terminal,
    };
    let mut targets = BTreeSet::new();
    if args.paths.is_empty() {
        targets.extend(finder.of_recipe(args.recipe.file())?);
    }
    for path in &args.paths {
        targets.extend(finder.of_word(path)?);
    }
    Ok(targets.into_iter().collect())
}

/// Returns the manifests that the command line means; of a folder, those that it holds.
///
/// # Errors
///
/// A manifest that is named is missing.
pub(super) fn written(args: &OutputArgs, files: &Files, terminal: &Terminal) -> Result<Vec<Target>, Failure> {
    let mut targets = of(args, files, terminal)?;
    let folders: Vec<PathBuf> = args.paths.iter().map(|path| files.path(path)).collect();
    let exists = |target: &Target| fs::exists(&target.manifest).unwrap_or(true);
    // A folder may hold models that forge did not write.
    targets.retain(|target| {
        exists(target)
            || !folders
                .iter()
                .any(|folder| target.output.starts_with(folder) && target.output != *folder)
    });
    let missing = |what: String| {
        let missing = Diagnostic::error(what).code("sign::manifest");
        Failure::new(
            Exit::Recipe,
            missing.hint("`forge build` writes manifests beside candidates"),
        )
    };
    if let Some(target) = targets.iter().find(|target| !exists(target)) {
        return Err(missing(format!("there is no `{}`", target.manifest.display())));
    }
    if targets.is_empty() {
        let folders: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
        return Err(missing(format!(
            "there is no manifest in {}",
            prose::names(&folders, 3)
        )));
    }
    Ok(targets)
}

/// Returns what a path means: a manifest, or the output that it belongs to.
pub(super) fn of_file(path: &Path) -> Result<Target, Failure> {
    if matches!(Content::of(path), Ok(Content::Json)) {
        Target::of_manifest(path).ok_or_else(|| {
            let name = Diagnostic::error(format!("`{}` is not named like a manifest", path.display()));
            Failure::new(
                Exit::Usage,
                name.code("usage")
                    .hint(format!("manifests are called `<output>{}`", manifest::SUFFIX)),
            )
        })
    } else {
        Ok(Target::of_output(path))
    }
}

/// Returns the output of the one candidate that a word names as a step of the recipe; `None` if the word can be a file.
///
/// # Errors
///
/// The recipe has no such candidate, or several.
pub(super) fn of_step(
    word: &str,
    of: &NameArgs,
    files: &Files,
    terminal: &Terminal,
) -> Result<Option<Target>, Failure> {
    let finder = Finder {
        recipe: &of.recipe,
        out: of.out.as_deref(),
        files,
        terminal,
    };
    if !finder.is_step(word, &files.path(word)) {
        return Ok(None);
    }
    let mut found = finder.of_step(word)?;
    if found.len() > 1 {
        let outputs: Vec<String> = found.iter().map(|target| target.output.display().to_string()).collect();
        let several = Diagnostic::error(format!("`{word}` means {} candidates", found.len()));
        let several = several
            .code("usage::no-such-candidate")
            .caused_by(prose::names(&outputs, 12));
        return Err(Failure::new(
            Exit::Usage,
            several.hint("name one of them, such as `promote.small@Q4_K_M`"),
        ));
    }
    Ok(found.pop())
}

struct Finder<'a> {
    recipe: &'a RecipeOption,
    out: Option<&'a Path>,
    files: &'a Files,
    terminal: &'a Terminal,
}

impl Finder<'_> {
    /// Returns what a word of the command line means: a folder, a recipe, a file, or a step of the recipe.
    fn of_word(&self, word: &Path) -> Result<Vec<Target>, Failure> {
        let place = self.files.path(word);
        let name = word.to_str();
        if fs::list(&place).is_ok() {
            let found = in_folder(&place)?;
            if found.is_empty() {
                let error = format!("`{}` contains no candidate and no manifest", word.display());
                return Err(Failure::new(
                    Exit::Recipe,
                    Diagnostic::error(error).code("verify::nothing"),
                ));
            }
            return Ok(found);
        }
        match name {
            Some(recipe) if self.files.is_recipe(recipe) => return self.of_recipe(recipe),
            Some(step) if self.is_step(step, &place) => return self.of_step(step),
            _ => {}
        }
        let signed = name.and_then(|name| name.strip_suffix(SIGNATURES));
        of_file(&signed.map_or(place, |manifest| self.files.path(manifest))).map(|target| vec![target])
    }

    /// Returns whether a word can only be the name of a step.
    fn is_step(&self, word: &str, place: &Path) -> bool {
        let is_named = word.parse::<StepId>().is_ok() || self.recipe.recipe.is_some();
        let extension = Path::new(word).extension();
        let is_file = extension.is_some_and(|extension| ["gguf", "json"].iter().any(|known| extension == *known));
        is_named && !is_file && !word.contains(std::path::is_separator) && !fs::exists(place).unwrap_or(true)
    }

    fn of_recipe(&self, path: &str) -> Result<Vec<Target>, Failure> {
        let recipe = self.files.recipe(path, self.terminal)?.recipe;
        let found: Vec<Target> = recipe
            .candidates()
            .map(|step| self.output(path, &recipe, &step.id))
            .collect();
        if found.is_empty() {
            let error = format!("`{path}` contains no candidate and no manifest");
            return Err(Failure::new(
                Exit::Recipe,
                Diagnostic::error(error).code("verify::nothing"),
            ));
        }
        Ok(found)
    }

    fn of_step(&self, name: &str) -> Result<Vec<Target>, Failure> {
        let path = self.recipe.file();
        let recipe = self.files.recipe(path, self.terminal)?.recipe;
        let steps = recipe.find(name);
        let found: Vec<Target> = steps
            .iter()
            .filter(|step| step.id.kind == StepKind::Promote)
            .map(|step| self.output(path, &recipe, &step.id))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let known: Vec<String> = recipe.candidates().map(|step| step.id.to_string()).collect();
        let what = if steps.is_empty() {
            format!("there is no file `{name}`, and `{path}` has no such candidate")
        } else {
            format!("`{name}` writes no candidate")
        };
        let error = Diagnostic::error(what).code("usage::no-such-candidate");
        let hint = match prose::closest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => format!("`{path}` has no `[promote.NAME]`"),
            None => format!("name one of {}", prose::names(&known, 12)),
        };
        Err(Failure::new(Exit::Usage, error.hint(hint)))
    }

    fn output(&self, path: &str, recipe: &Recipe, candidate: &StepId) -> Target {
        let out = self.files.out(path, &recipe.name, self.out);
        Target::of_output(&out.join(container::file_name(&candidate.label())))
    }
}

/// Returns every candidate and every manifest below a folder.
fn in_folder(folder: &Path) -> Result<Vec<Target>, Failure> {
    let mut targets = Vec::new();
    let walked = fs::plain_files(folder, &mut |path, _| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(manifest::SUFFIX) {
            targets.extend(Target::of_manifest(&path));
        } else if matches!(Content::of(&path), Ok(Content::Model | Content::Damaged(_))) {
            targets.push(Target::of_output(&path));
        }
    });
    walked.map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
    Ok(targets)
}
