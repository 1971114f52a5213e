//! `forge cache list`.

use std::fmt::Write;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args;
use crate::cli::cache::args::Sort;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::cache::open;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::table;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::prose;
use crate::session::names::Names;

pub(super) fn run(args: &args::List, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    let names = Names::of(&store).map_err(|error| failure(&error))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut listed = store.list().map_err(|error| failure(&error))?;
    let all = listed.len();
    listed.retain(|entry| {
        let age = now.saturating_sub(Duration::from_secs(entry.used));
        (args.kind.is_empty() || args.kind.contains(&entry.kind))
            && args.older_than.is_none_or(|than| age > than)
            && args.larger_than.is_none_or(|than| entry.bytes > than)
    });
    match args.sort {
        Sort::Size => listed.sort_by(|a, b| (b.bytes, &a.kind, a.key).cmp(&(a.bytes, &b.kind, b.key))),
        Sort::Age => listed.sort_by_key(|entry| (entry.used, entry.key)),
        Sort::Cost => listed.sort_by(|a, b| (b.cost_ms, a.key).cmp(&(a.cost_ms, b.key))),
        Sort::Kind => listed.sort_by(|a, b| (&a.kind, b.bytes, a.key).cmp(&(&b.kind, a.bytes, b.key))),
    }
    let matching = listed.len();
    listed.truncate(args.limit.unwrap_or(usize::MAX));
    if terminal.is_json() {
        for entry in &listed {
            line(
                terminal,
                "cache-entry",
                json!({
                    "key": entry.key.to_string(),
                    "kind": entry.kind,
                    "name": names.action(&entry.key),
                    "used": entry.used,
                    "cost_ms": entry.cost_ms,
                    "bytes": entry.bytes,
                    "borrowed_bytes": entry.borrowed,
                    "whole": entry.whole,
                }),
            );
        }
        return Ok(Exit::Done);
    }
    let mut rows = Vec::new();
    for entry in &listed {
        let age = now.saturating_sub(Duration::from_secs(entry.used));
        let mut note = names.action(&entry.key).unwrap_or_default().to_owned();
        if entry.borrowed > 0 {
            let _ = write!(note, " (in an output)");
        }
        if !entry.whole {
            let _ = write!(note, " (incomplete)");
        }
        rows.push(vec![
            left(entry.key.short()),
            left(&entry.kind),
            right(prose::bytes(entry.bytes)),
            right(prose::duration_ms(entry.cost_ms)),
            right(format!("{} ago", coarse(age))),
            left(note.trim_start()),
        ]);
    }
    let mut text = Block::new();
    table::add(&mut text, "", &rows);
    terminal.data(text.as_str());
    let shown = listed.len();
    if shown < all && !terminal.quiet {
        terminal.line(&format!(
            "forge: {shown} of {} shown, {matching} match",
            prose::count(all as u64, "result")
        ));
    }
    Ok(Exit::Done)
}

/// Writes an age in its largest unit: `3 d`, `5 h`.
fn coarse(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
