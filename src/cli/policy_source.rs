//! The arguments of the commands of `forge policy`: a file, or the name of a candidate or policy of a recipe.

use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args::NameArgs;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::diff::failure;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::diff;
use crate::engine::Cancel;
use crate::fs;
use crate::manifest;
use crate::policy::Listing;
use crate::policy::Table;
use crate::prose;
use crate::prose::nearest;
use crate::recipe::Recipe;
use crate::recipe::Step;
use crate::recipe::StepId;
use crate::recipe::StepKind;
use crate::step::promote;
use crate::store::Store;

/// The maximum length of a table of types.
const TABLE_CAP: u64 = 64 << 20;

/// Lists the types of what a word of the command line means: a file if there is one of that name, else a candidate or a policy
/// of the recipe.
pub(super) fn listing(word: &str, of: &NameArgs, files: &Files, terminal: &Terminal) -> Result<Listing, Failure> {
    let path = files.path(Path::new(word));
    let store = store(files, terminal);
    if fs::exists(&path).unwrap_or(false) || is_path(word) {
        return diff::listing(&path, store.as_ref()).map_err(|error| failure(&error));
    }
    let recipe = files.recipe(of.recipe.file(), terminal)?.recipe;
    let step = step_of(word, &recipe, of.recipe.file())?;
    let policy = match promote::policy_of(step) {
        Some(policy) => {
            let file = file_of(&step.id, &recipe, of, files);
            if fs::exists(&file).unwrap_or(false) {
                return diff::listing(&file, store.as_ref()).map_err(|error| failure(&error));
            }
            policy
        }
        None => &step.id,
    };
    // A policy is chosen before its candidate is written.
    let listing = match store {
        Some(store) => chosen(&store, policy, &recipe, of, files, terminal)?,
        None => None,
    };
    listing.ok_or_else(|| not_built(&step.id, of))
}

/// Returns the file of a candidate: the word of the command line if that is one, else the file that a build of the recipe writes for
/// the candidate of that name. A manifest means the file next to it.
pub(super) fn candidate(word: &str, of: &NameArgs, files: &Files, terminal: &Terminal) -> Result<PathBuf, Failure> {
    let path = files.path(Path::new(word.strip_suffix(manifest::SUFFIX).unwrap_or(word)));
    if fs::exists(&path).unwrap_or(false) || is_path(word) {
        return Ok(path);
    }
    let recipe = files.recipe(of.recipe.file(), terminal)?.recipe;
    let step = step_of(word, &recipe, of.recipe.file())?;
    let file = file_of(&step.id, &recipe, of, files);
    if fs::exists(&file).unwrap_or(false) {
        Ok(file)
    } else {
        Err(not_built(&step.id, of))
    }
}

fn file_of(candidate: &StepId, recipe: &Recipe, of: &NameArgs, files: &Files) -> PathBuf {
    let out = files.out(of.recipe.file(), &recipe.name, of.out.as_deref());
    out.join(container::file_name(&candidate.label()))
}

fn not_built(step: &StepId, of: &NameArgs) -> Failure {
    let missing = Diagnostic::error(format!(
        "`{step}` has not been built as `{}` defines it",
        of.recipe.file()
    ))
    .code("policy::not-built");
    Failure::new(
        Exit::Recipe,
        missing.hint(format!("build it: `forge build {} {step}`", of.recipe.file())),
    )
}

/// A word that cannot be a name.
fn is_path(word: &str) -> bool {
    let extension = Path::new(word).extension();
    word.contains(std::path::is_separator)
        || extension.is_some_and(|extension| ["gguf", "json", "toml"].iter().any(|known| extension == *known))
}

/// Returns what a policy chose, if it was built as the recipe has it now.
fn chosen(
    store: &Store,
    policy: &StepId,
    recipe: &Recipe,
    of: &NameArgs,
    files: &Files,
    terminal: &Terminal,
) -> Result<Option<Listing>, Failure> {
    let target = Target {
        recipe: of.recipe.file().to_owned(),
        steps: vec![policy.to_string()],
        out: of.out.clone(),
        jobs: None,
    };
    let (session, _) = files.session_of(recipe.clone(), &target, terminal, Cancel::new())?;
    let listing = || {
        let (key, file_bytes) = session.policy(policy)?;
        let result = store.lookup_shallow(&key).ok()??;
        let bytes = store
            .read(&result.output(crate::action::Policy::POLICY.as_str())?, TABLE_CAP)
            .ok()?;
        let table: Table = serde_json::from_slice(&bytes).ok()?;
        Some(Listing::of(&table).with_file_bytes(Some(file_bytes)))
    };
    Ok(listing())
}

/// Opens the store, if there is one. None is made for this.
pub(super) fn store(files: &Files, terminal: &Terminal) -> Option<Store> {
    let place = files.store_dir(terminal).ok()?;
    fs::exists(&place)
        .unwrap_or(false)
        .then(|| Store::open(&place).ok())
        .flatten()
}

fn step_of<'r>(word: &str, recipe: &'r Recipe, path: &str) -> Result<&'r Step, Failure> {
    let of_kind = |kind: StepKind| -> Vec<&Step> {
        let found = recipe.find(word).into_iter();
        found.filter(|step| step.id.kind == kind).collect()
    };
    // A candidate takes precedence over a policy of the same name.
    let found = match of_kind(StepKind::Promote) {
        candidates if candidates.is_empty() => of_kind(StepKind::Policy),
        candidates => candidates,
    };
    let usage = |diagnostic: Diagnostic| Failure::new(Exit::Usage, diagnostic.code("usage::no-such-candidate"));
    match found.as_slice() {
        [step] => Ok(step),
        [] => {
            let known: Vec<String> = recipe.candidates().map(|step| step.id.label()).collect();
            let near = nearest(word, known.iter().map(String::as_str));
            let none = Diagnostic::error(format!(
                "there is no file `{word}`, and `{path}` has no candidate or policy of that name"
            ));
            Err(usage(
                near.into_iter()
                    .fold(none, |none, near| none.hint(format!("did you mean `{near}`?"))),
            ))
        }
        several => {
            let names: Vec<String> = several.iter().map(|step| step.id.label()).collect();
            let many = Diagnostic::error(format!(
                "`{word}` matches {}",
                prose::count(several.len() as u64, "candidate")
            ));
            Err(usage(many.hint(format!("name one of {}", prose::names(&names, 12)))))
        }
    }
}

/// Reads a file of the command line as text.
///
/// # Errors
///
/// One of usage if there is no such file, else of what is in it.
pub(super) fn read(path: &str, cap: u64, files: &Files) -> Result<String, Failure> {
    let unreadable = |exit: Exit, cause: String| {
        let unread = Diagnostic::error(format!("can't read `{path}`")).code("policy::unreadable");
        Failure::new(exit, unread.caused_by(cause))
    };
    let bytes = fs::read_small(&files.path(Path::new(path)), cap).map_err(|error| {
        if error.is_not_found() {
            unreadable(Exit::Usage, fs::no_such_file(&files.path(Path::new(path))))
        } else {
            unreadable(Exit::Recipe, error.to_string())
        }
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        unreadable(Exit::Recipe, format!("it is not UTF-8: byte {at} is wrong"))
    })
}
