//! `forge clean`.

use std::path::Path;

use indicatif::ProgressBar;
use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::selection;
use crate::cli::signals::stop_on_signals;
use crate::cli::table;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::observer::StaleFile;
use crate::prose;
use crate::session::SessionError;
use crate::session::clean::Found;
use crate::session::clean::LeftFile;
use crate::session::clean::Lost;
use crate::session::clean::OutputFolder;
use crate::session::clean::OwnFile;
use crate::session::clean::Scope;
use crate::store::StoreError;

/// The number of names in a sentence.
const NAMED: usize = 3;

pub(super) fn run(args: &args::Clean, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let path = selection::only_recipe(&args.recipe, "clean", files)?;
    let recipe = files.recipe(&path, terminal)?.recipe;
    let out = files.out(&path, &recipe.name, args.out.as_deref());
    let (store, config) = files.store_of(&path, terminal)?;
    let _ = files::threads(None, &config);
    let folder =
        OutputFolder::new(&recipe, &out, &store).map_err(|error| session_failure(&SessionError::Graph(error)))?;
    let scope = if args.stale { Scope::Stale } else { Scope::All };
    let bar = terminal.progress.then(ProgressBar::new_spinner);
    let found = folder
        .examine(scope, &|bytes| {
            if let Some(bar) = &bar {
                bar.set_message(format!("reading: {}", prose::bytes(bytes)));
                bar.tick();
            }
        })
        .map_err(|error| failure(&error))?;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let lost = folder.lost_with(&found).map_err(|error| failure(&error))?;
    show(args, &out, &found, &lost, terminal);
    if args.dry_run || found.groups.is_empty() {
        return Ok(Exit::Done);
    }
    if !args.yes && !terminal.ask("remove these files?") {
        if !terminal.can_ask() {
            let unsure = Diagnostic::error("nothing was removed: there is no terminal to ask for confirmation")
                .code("usage::unconfirmed");
            return Err(Failure::new(
                Exit::Usage,
                unsure.hint("give `--yes` to remove the files, or `--dry-run` to only list them"),
            ));
        }
        terminal.line("forge: nothing was removed");
        return Ok(Exit::Done);
    }
    let cancel = Cancel::new();
    stop_on_signals(&cancel, terminal);
    let mut on_removed = |file: &OwnFile| {
        if terminal.verbose && !terminal.is_json() {
            terminal.line(&format!("removed {}", file.path.display()));
        }
    };
    let removed = folder
        .remove(&found, args.keep_tensors, &|| !cancel.is_cancelled(), &mut on_removed)
        .map_err(|error| failure(&error))?;
    warn(&removed.left, terminal);
    if terminal.is_json() {
        line(
            terminal,
            "cleaned",
            json!({ "files": removed.files, "bytes": removed.bytes, "left": left_json(&removed.left) }),
        );
    } else {
        terminal.line(&format!(
            "forge: {} removed, {} freed",
            prose::count(removed.files, "file"),
            prose::bytes(removed.bytes)
        ));
    }
    Ok(if cancel.is_cancelled() {
        Exit::Stopped
    } else if removed.left.is_empty() {
        Exit::Done
    } else {
        Exit::Environment
    })
}

/// Shows what is to be removed, and what stays.
fn show(args: &args::Clean, out: &Path, found: &Found, lost: &Lost, terminal: &Terminal) {
    let bytes: u64 = found.files().map(|file| file.digest.len).sum();
    if terminal.is_json() {
        let listed = found
            .files()
            .map(|file| json!({ "path": file.path.display().to_string(), "bytes": file.digest.len }));
        line(
            terminal,
            "clean-plan",
            json!({
                "folder": out.display().to_string(),
                "stale": args.stale,
                "files": listed.collect::<Vec<_>>(),
                "bytes": bytes,
                "left": left_json(&found.left),
                "keep_tensors": args.keep_tensors,
                "only_here": { "tensors": lost.tensors, "bytes": lost.bytes, "names": lost.names },
            }),
        );
        return;
    }
    warn(&found.left, terminal);
    let out = out.display();
    if found.groups.is_empty() {
        let what = if args.stale {
            "nothing in it is stale"
        } else {
            "forge wrote nothing in it"
        };
        terminal.line(&format!("forge: nothing to remove from {out}: {what}"));
        return;
    }
    let rows = found.files().map(|file| {
        vec![
            right(prose::bytes(file.digest.len)),
            left(file.path.display().to_string()),
        ]
    });
    let rows: Vec<_> = rows.collect();
    let mut text = Block::new();
    let _ = writeln!(
        text,
        "to remove: {}, {}",
        prose::count(rows.len() as u64, "file"),
        prose::bytes(bytes)
    );
    table::add(&mut text, "  ", &rows);
    if lost.tensors > 0 {
        let names = match lost.names.len() {
            0 => String::new(),
            _ => format!(" ({})", prose::names(&lost.names, NAMED)),
        };
        let tensors = prose::count(lost.tensors, "tensor");
        let bytes = prose::bytes(lost.bytes);
        let _ = if args.keep_tensors {
            writeln!(text, "{tensors}{names} will be copied into the store first: {bytes}")
        } else {
            writeln!(
                text,
                "{tensors}{names} are only in these files: a build that needs them quantizes them again; `--keep-tensors` copies them into the store first ({bytes})"
            )
        };
    }
    terminal.data(text.as_str());
}

/// Says at the end of a build what is stale; `None` if nothing is.
pub(super) fn stale_line(stale: &[StaleFile], out: &str, target: &Target) -> Option<String> {
    let name = |file: &StaleFile| {
        let name = Path::new(&file.path).file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    // The largest first, so that candidates are named before their manifests.
    let mut largest: Vec<&StaleFile> = stale.iter().collect();
    largest.sort_by_key(|file| (std::cmp::Reverse(file.bytes), &file.path));
    let names: Vec<String> = largest.into_iter().map(name).collect();
    let are = match stale.len() {
        0 => return None,
        1 => "is",
        _ => "are",
    };
    let mut command = "forge clean".to_owned();
    if target.recipe != args::DEFAULT_RECIPE {
        command = format!("{command} {}", target.recipe);
    }
    if let Some(out) = &target.out {
        command = format!("{command} --out {}", out.display());
    }
    Some(format!(
        "{} in {out} {are} no longer made by this recipe ({}): {}; `{command} --stale` removes {}",
        prose::count(stale.len() as u64, "file"),
        prose::bytes(stale.iter().map(|file| file.bytes).sum()),
        prose::list(names.iter(), NAMED),
        if stale.len() == 1 { "it" } else { "them" },
    ))
}

fn warn(left: &[LeftFile], terminal: &Terminal) {
    if terminal.is_json() {
        return;
    }
    for file in left {
        let what = format!("`{}` stays: {}", file.path.display(), file.why);
        terminal.diagnostic(&Diagnostic::warning(what).code("clean::left"));
    }
}

fn left_json(left: &[LeftFile]) -> Value {
    let left = left
        .iter()
        .map(|file| json!({ "path": file.path.display().to_string(), "why": file.why }));
    Value::Array(left.collect())
}

fn line(terminal: &Terminal, reason: &str, facts: Value) {
    let mut line = json!({ "schema": json::SCHEMA, "reason": reason });
    if let (Value::Object(line), Value::Object(facts)) = (&mut line, facts) {
        line.extend(facts);
    }
    terminal.data(&format!("{line}\n"));
}

fn failure(error: &StoreError) -> Failure {
    Failure::new(
        Exit::Environment,
        Diagnostic::from_error(error).code("environment::clean"),
    )
}
