//! `forge lock`, and `--frozen` of `forge build`.

use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::outcome;
use crate::cli::progress::Progress;
use crate::cli::selection;
use crate::cli::signals;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::observer::Observer;
use crate::prose;
use crate::scheduler;
use crate::session::Lock;
use crate::session::LockDifference;
use crate::session::LockError;
use crate::session::Session;

/// Returns where a recipe's lock file is.
fn lock_path(recipe: &str, asked: Option<&Path>) -> PathBuf {
    asked.map_or_else(|| Path::new(recipe).with_extension("lock"), Path::to_owned)
}

pub(super) fn run(args: &args::Lock, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let target = Target::whole(selection::only_recipe(&args.recipe, "lock", files)?, args.jobs);
    let place = lock_path(&target.recipe, args.file.as_deref());
    let name = place.display().to_string();
    let path = files.path(&place);
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    let (session, config) = files.session(&target, terminal, cancel)?;
    let lines = json::Lines(terminal);
    let progress = Progress::new(terminal, session.graph());
    let observer: &dyn Observer = if terminal.is_json() { &lines } else { &progress };
    let options = outcome::options(&config.pools(), args.jobs);
    if args.check {
        let Some(lock) = Lock::load(&path).map_err(|error| failure(&error, &name))? else {
            let missing = Diagnostic::error(format!("there is no `{name}`")).code("lock::missing");
            return Err(Failure::new(Exit::Recipe, missing.hint("`forge lock` writes it")));
        };
        let differences = session
            .differs_from_lock(&lock, options, observer)
            .map_err(|error| failure(&error, &name))?;
        if !differences.is_empty() {
            return Err(differs(
                differences.into_iter().map(|it| (name.clone(), it)),
                "lock::differs",
            ));
        }
        print_done(terminal, "lock-checked", &name, lock.source.len());
        return Ok(Exit::Done);
    }
    let lock = session
        .lock(options, observer)
        .map_err(|error| failure(&error, &name))?;
    lock.save(&path)
        .map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
    print_done(terminal, "locked", &name, lock.source.len());
    Ok(Exit::Done)
}

fn print_done(terminal: &Terminal, reason: &str, file: &str, sources: usize) {
    if terminal.is_json() {
        let line = serde_json::json!({
            "schema": json::SCHEMA,
            "reason": reason,
            "file": file,
            "sources": sources,
        });
        terminal.data(&format!("{line}\n"));
    } else {
        let sources = prose::count(sources as u64, "file");
        terminal.line(&match reason {
            "locked" => format!("wrote {file}: {sources}, the engines and the recipe"),
            _ => format!("ok: {sources}, the engines and the recipe match {file}"),
        });
    }
}

/// Refuses a build whose recipe, sources or engines differ from the lock file, or else from the manifests that are there.
pub(super) fn check_frozen(
    recipe: &str,
    asked: Option<&Path>,
    frozen: args::Frozen,
    session: &Session,
    options: scheduler::Options,
    files: &Files,
    terminal: &Terminal,
) -> Result<(), Failure> {
    let place = lock_path(recipe, asked);
    let name = place.display().to_string();
    let lines = json::Lines(terminal);
    let progress = Progress::new(terminal, session.graph());
    let observer: &dyn Observer = if terminal.is_json() { &lines } else { &progress };
    let lock = Lock::load(&files.path(&place)).map_err(|error| failure(&error, &name))?;
    let differences = match lock {
        Some(lock) => session
            .differs_from_lock(&lock, options, observer)
            .map_err(|error| failure(&error, &name))?
            .into_iter()
            .filter(|difference| frozen == args::Frozen::All || !difference.is_of_recipe())
            .map(|difference| (name.clone(), difference))
            .collect(),
        None if asked.is_some() => {
            let missing = Diagnostic::error(format!("there is no `{name}`")).code("frozen::no-lock");
            return Err(Failure::new(Exit::Recipe, missing.hint("`forge lock` writes it")));
        }
        None => session
            .differs_from_manifests(options, observer)
            .map_err(|error| failure(&error, &name))?,
    };
    if differences.is_empty() {
        Ok(())
    } else {
        Err(differs(differences, "frozen::differs"))
    }
}

fn differs(differences: impl IntoIterator<Item = (String, LockDifference)>, code: &str) -> Failure {
    let mut diagnostics: Vec<Diagnostic> = differences
        .into_iter()
        .map(|(name, difference)| {
            let place = if name.is_empty() {
                String::new()
            } else {
                format!("{name}: ")
            };
            Diagnostic::error(format!("{place}{difference}")).code(code)
        })
        .collect();
    if let Some(last) = diagnostics.pop() {
        diagnostics.push(last.hint("nothing was built; `forge lock` records the current state"));
    }
    Failure {
        diagnostics,
        exit: Exit::Recipe,
    }
}

fn failure(error: &LockError, name: &str) -> Failure {
    match error {
        LockError::Session(error) => session_failure(error),
        LockError::Failed(report) => Failure {
            diagnostics: report
                .failures
                .iter()
                .map(|failure| outcome::explain(&failure.node.to_string(), &failure.error))
                .collect(),
            exit: outcome::exit_of(report),
        },
        LockError::Nothing => {
            let nothing = Diagnostic::error(format!(
                "there is no `{name}`, and no manifest in the output folder: {error}"
            ));
            Failure::new(
                Exit::Recipe,
                nothing
                    .code("frozen::no-lock")
                    .hint("`forge lock` writes it: check its content, and keep it with the recipe"),
            )
        }
        LockError::Path(_) | LockError::Unwritable(_) => Failure::new(Exit::Environment, Diagnostic::from_error(error)),
        LockError::Malformed(_) | LockError::Schema { .. } => Failure::new(
            Exit::Recipe,
            Diagnostic::error(format!("`{name}`: {error}")).code("lock::malformed"),
        ),
    }
}
