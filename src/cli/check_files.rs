//! `forge check`: recipes and manifests.

use std::path::Path;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::diagnostic::SCHEMA;
use crate::cli::files::Files;
use crate::cli::selection;
use crate::cli::targets;
use crate::cli::terminal::Terminal;
use crate::content::Content;
use crate::manifest;
use crate::manifest::Manifest;
use crate::prose;
use crate::verify;

pub(super) fn run(args: &args::Check, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    // What `-f` names comes first; without any file, that is the recipe of the current folder.
    let recipe = (args.recipe.recipe.is_some() || args.files.is_empty()).then(|| args.recipe.file());
    let mut fine = true;
    for file in recipe.into_iter().chain(args.files.iter().map(String::as_str)) {
        fine &= if is_manifest(file, files) {
            check_manifest(file, files, terminal)?
        } else {
            refuse_step(file, files)?;
            files.check_recipe(file, !args.no_files, terminal)?
        };
    }
    Ok(if fine { Exit::Done } else { Exit::Recipe })
}

/// Returns whether a word means a manifest: a JSON file, or the candidate that one belongs to.
fn is_manifest(word: &str, files: &Files) -> bool {
    word.ends_with(manifest::SUFFIX)
        || matches!(
            Content::of(&files.path(word)),
            Ok(Content::Json | Content::Model | Content::Damaged(_))
        )
}

fn refuse_step(word: &str, files: &Files) -> Result<(), Failure> {
    if selection::names_recipe(word, files) || word.parse::<crate::recipe::StepId>().is_err() {
        return Ok(());
    }
    let error = Diagnostic::error(format!(
        "there is no file `{word}`, and `forge check` checks whole recipes, not steps"
    ));
    let hint = format!(
        "`forge plan {word}` shows what a build of this step would run; `forge check {word} --twice` runs it twice"
    );
    Err(Failure::new(Exit::Usage, error.code("usage::no-steps").hint(hint)))
}

/// Checks that a manifest agrees with itself. Reads no output.
fn check_manifest(word: &str, files: &Files, terminal: &Terminal) -> Result<bool, Failure> {
    let target = targets::of_file(&files.path(Path::new(word)))?;
    let problem = |text: String| {
        terminal.diagnostic(&Diagnostic::error(text).code("check::manifest"));
        Ok(false)
    };
    let name = target.manifest.display();
    let bytes = match verify::read_manifest(&target.manifest) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return problem(format!("there is no `{name}`")),
        Err(error) => return problem(error.to_string()),
    };
    let manifest = match Manifest::parse(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => return problem(format!("`{name}`: {error}")),
    };
    let (_, problems) = verify::check_document(&manifest, &bytes);
    for found in &problems {
        let place = if found.place.is_empty() {
            String::new()
        } else {
            format!("{}: ", found.place)
        };
        problem(format!("`{name}`: {place}{}", found.what))?;
    }
    if !problems.is_empty() {
        return Ok(false);
    }
    if terminal.is_json() {
        let line = serde_json::json!({ "schema": SCHEMA, "reason": "checked", "file": word });
        terminal.data(&format!("{line}\n"));
    } else {
        let tensors = manifest.predicate.forge.tensors.len() as u64;
        terminal.data(&format!("ok: {name} ({})\n", prose::count(tensors, "tensor")));
    }
    Ok(true)
}
