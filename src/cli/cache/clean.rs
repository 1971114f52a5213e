//! `forge cache clean`.

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::cache::open;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::terminal::Terminal;
use crate::prose;

pub(super) fn run(args: &args::Clean, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    let root = store.root().display().to_string();
    if !args.all {
        let removed = store.clean().map_err(|error| failure(&error))?;
        if terminal.is_json() {
            line(
                terminal,
                "cache-clean",
                json!({ "path": root, "files": removed.files, "disk_bytes": removed.space, "all": false }),
            );
        } else {
            terminal.line(&format!(
                "forge: {} removed, {} freed",
                prose::count(removed.files, "file"),
                prose::bytes(removed.space)
            ));
        }
        return Ok(Exit::Done);
    }
    let total = store.usage().map_err(|error| failure(&error))?.total();
    let question = format!("remove the whole store at {root} ({})?", prose::bytes(total.space));
    if !args.yes && !terminal.ask(&question) {
        if !terminal.can_ask() {
            let unsure = Diagnostic::error("nothing was removed: there is no terminal to ask for confirmation")
                .code("usage::unconfirmed");
            return Err(Failure::new(
                Exit::Usage,
                unsure.hint("give `--yes` to remove the whole store"),
            ));
        }
        terminal.line("forge: nothing was removed");
        return Ok(Exit::Done);
    }
    let left = store.clean_all().map_err(|error| failure(&error))?;
    if terminal.is_json() {
        line(
            terminal,
            "cache-clean",
            json!({ "path": root, "files": total.files, "disk_bytes": total.space, "all": true }),
        );
    } else {
        terminal.line(&format!("forge: removed the store at {root}"));
    }
    if !left.is_empty() {
        let names = prose::names(&left, 5);
        terminal.diagnostic(&Diagnostic::warning(format!(
            "kept {names} in {root}: not part of a forge store"
        )));
    }
    Ok(Exit::Done)
}
