//! `forge cache dir` and `forge cache size`.

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::cache::open;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::prose;
use crate::store::Amount;

pub(super) fn dir(files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let (directory, _) = files.cache()?;
    if terminal.is_json() {
        line(
            terminal,
            "cache-dir",
            json!({ "path": directory.display().to_string() }),
        );
    } else {
        terminal.document(&format!("{}\n", directory.display()));
    }
    Ok(Exit::Done)
}

pub(super) fn run(files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    let usage = store.usage().map_err(|error| failure(&error))?;
    let free = store.free_space().map_err(|error| failure(&error))?;
    let total = usage.total();
    let amount = |amount: &Amount| json!({ "files": amount.files, "bytes": amount.bytes, "disk_bytes": amount.space });
    if terminal.is_json() {
        let all = |parts: &std::collections::BTreeMap<String, Amount>| {
            let parts = parts.iter().map(|(name, part)| (name.clone(), amount(part)));
            serde_json::Value::Object(parts.collect())
        };
        line(
            terminal,
            "cache-size",
            json!({
                "path": store.root().display().to_string(),
                "blobs": all(&usage.blobs),
                "parts": all(&usage.parts),
                "total": amount(&total),
                "borrowed": amount(&usage.borrowed),
                "free": free,
            }),
        );
        return Ok(Exit::Done);
    }
    let mut rows: Vec<(String, Amount)> = usage
        .blobs
        .iter()
        .map(|(kind, part)| (format!("blobs: {kind}"), *part))
        .collect();
    rows.sort_by_key(|(_, part)| std::cmp::Reverse(part.space));
    let parts = usage.parts.iter().filter(|(_, part)| part.files > 0);
    rows.extend(parts.map(|(name, part)| (name.clone(), *part)));
    let mut text = Block::of(format_args!("{}\n", store.root().display()));
    rows.push(("total".to_owned(), total));
    let rows: Vec<Vec<Cell>> = rows
        .iter()
        .map(|(name, part)| {
            let files = prose::count(part.files, "file");
            vec![left(name), right(prose::bytes(part.space)), left(files)]
        })
        .collect();
    table::add(&mut text, "  ", &rows);
    if usage.borrowed.files > 0 {
        let _ = writeln!(
            text,
            "in addition, the store borrows {} in {} from outputs",
            prose::bytes(usage.borrowed.bytes),
            prose::count(usage.borrowed.files, "blob")
        );
    }
    let _ = writeln!(text, "free on this disk: {}", prose::bytes(free));
    terminal.data(text.as_str());
    Ok(Exit::Done)
}
