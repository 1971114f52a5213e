//! `forge cache gc`, and the limit that is enforced after each build.

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::cache::args;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::left;
use crate::cli::table::right;
use crate::cli::terminal::Terminal;
use crate::prose;
use crate::store::GcDone;
use crate::store::GcOptions;
use crate::store::GcPlan;
use crate::store::GcReason;
use crate::store::KeepReason;
use crate::store::Store;
use crate::store::StoreError;

pub(super) fn run(args: &args::Gc, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let (directory, config) = files.cache()?;
    terminal.set_preferred_color(config.color());
    let store = Store::open(&directory).map_err(|error| failure(&error))?;
    let options = GcOptions {
        max_size: match args.max_size {
            Some(size) => Some(size),
            None => config.max_size()?,
        },
        older_than: args.older_than,
        also_newest: args.also_newest,
    };
    let plan = store.gc_plan(&options).map_err(|error| failure(&error))?;
    let misses = plan.misses_limit();
    if terminal.is_json() {
        line(terminal, "cache-gc-plan", facts(&plan));
    } else {
        terminal.data(text(&plan).as_str());
    }
    if misses {
        terminal.diagnostic(&too_large(&plan));
    }
    if args.dry_run || plan.is_empty() {
        return Ok(Exit::Done);
    }
    if !args.yes && !terminal.ask("remove this?") {
        if !terminal.can_ask() {
            let unsure = Diagnostic::error("nothing was removed: there is no terminal to ask for confirmation")
                .code("usage::unconfirmed");
            return Err(Failure::new(
                Exit::Usage,
                unsure.hint("give `--yes` to remove it, or `--dry-run` to only see the plan"),
            ));
        }
        terminal.line("forge: nothing was removed");
        return Ok(Exit::Done);
    }
    let done = store.gc_run(plan, &|_, _| {}).map_err(|error| failure(&error))?;
    print_result(&done, terminal);
    Ok(Exit::Done)
}

/// Holds the limit that the user's settings name, after a build. Nothing that goes wrong here fails the build.
pub(in crate::cli) fn enforce_limit(store: &Store, max_size: Option<u64>, terminal: &Terminal) {
    let Some(max_size) = max_size else { return };
    let options = GcOptions {
        max_size: Some(max_size),
        ..GcOptions::default()
    };
    let held = store.space().and_then(|space| {
        // Most builds end here: looking at the lengths of files is quick, a plan reads all results.
        if space <= max_size {
            return Ok(None);
        }
        let plan = store.gc_plan(&options)?;
        if plan.misses_limit() {
            terminal.diagnostic(&too_large(&plan));
        }
        store.gc_run(plan, &|_, _| {}).map(Some)
    });
    match held {
        Ok(Some(done)) if done != GcDone::default() => {
            if terminal.is_json() || !terminal.quiet {
                print_result(&done, terminal);
            }
        }
        // Whoever collects now holds the limit.
        Ok(_) | Err(StoreError::Busy { .. }) => {}
        Err(error) => {
            let warning = Diagnostic::warning(format!("the size limit of the store could not be enforced: {error}"));
            terminal.diagnostic(&warning.code("environment::store"));
        }
    }
}

fn print_result(done: &GcDone, terminal: &Terminal) {
    if terminal.is_json() {
        let facts =
            json!({ "results": done.results, "files": done.files, "disk_bytes": done.space, "in_use": done.spared });
        line(terminal, "cache-gc", facts);
        return;
    }
    let spared = match done.spared {
        0 => String::new(),
        spared => format!("; {} kept, in use since the plan", prose::count(spared, "item")),
    };
    terminal.line(&format!(
        "forge: {} removed, {} freed{spared}",
        prose::count(done.results, "result"),
        prose::bytes(done.space)
    ));
}

fn too_large(plan: &GcPlan) -> Diagnostic {
    let limit = plan.max_size.unwrap_or_default();
    let warning = Diagnostic::warning(format!(
        "after this the store uses {}, more than the limit of {}",
        prose::bytes(plan.after),
        prose::bytes(limit)
    ));
    let mut largest: Vec<(KeepReason, u64)> = plan
        .kept_space
        .iter()
        .map(|(reason, space)| (*reason, *space))
        .collect();
    largest.sort_by_key(|(reason, space)| (std::cmp::Reverse(*space), *reason));
    let kept_space: Vec<String> = largest
        .into_iter()
        .map(|(reason, space)| format!("{} for {}", prose::bytes(space), purpose_of(reason)))
        .collect();
    let mut warning = warning.code("cache::limit");
    if !kept_space.is_empty() {
        warning = warning.caused_by(format!("what is kept: {}", kept_space.join(", ")));
    }
    let has = |reason| plan.kept_space.contains_key(&reason);
    let mut ways = Vec::new();
    if has(KeepReason::Pinned) {
        ways.push("unpin what is not needed (`forge cache pin` lists it)");
    }
    if has(KeepReason::Newest) {
        ways.push("run `forge cache gc --also-newest`");
    }
    if has(KeepReason::Running) {
        ways.push("run `forge cache gc` when no build is running");
    }
    ways.push("raise the limit");
    let last = ways.len() - 1;
    if last > 0 {
        ways[last] = "or raise the limit";
    }
    warning.hint(ways.join(", "))
}

/// Names what something stays for.
fn purpose_of(reason: KeepReason) -> &'static str {
    match reason {
        KeepReason::Pinned => "pinned manifests",
        KeepReason::Newest => "the newest outputs",
        KeepReason::Running => "builds that are running",
        KeepReason::Results => "other results",
        KeepReason::Records => "records of runs",
        KeepReason::Notes => "notes (digests of files, removed results, borrowed tensors)",
    }
}

/// Returns the name of a reason in JSON.
fn reason_name(reason: KeepReason) -> &'static str {
    match reason {
        KeepReason::Pinned => "pinned",
        KeepReason::Newest => "newest",
        KeepReason::Running => "running",
        KeepReason::Results => "results",
        KeepReason::Records => "records",
        KeepReason::Notes => "notes",
    }
}

fn describe(cause: GcReason) -> &'static str {
    match cause {
        GcReason::Unreferenced => "no result refers to it (left by interrupted builds)",
        GcReason::Borrowed => "an output holds the same bytes",
        GcReason::Incomplete => "incomplete: a part was lost",
        GcReason::Quarantined => "was damaged, and quarantined",
        GcReason::Stale => "an outdated note",
        GcReason::Age => "not used for longer than --older-than",
        GcReason::History => "no build needs it, and the limit is exceeded",
        GcReason::Size => "cheap to compute again for its size, and the limit is exceeded",
    }
}

fn cause_name(cause: GcReason) -> &'static str {
    match cause {
        GcReason::Unreferenced => "unreferenced",
        GcReason::Borrowed => "borrowed",
        GcReason::Incomplete => "incomplete",
        GcReason::Quarantined => "quarantined",
        GcReason::Stale => "stale",
        GcReason::Age => "age",
        GcReason::History => "records",
        GcReason::Size => "size-limit",
    }
}

fn text(plan: &GcPlan) -> Block {
    let mut text = Block::new();
    let rows = plan.groups.iter().map(|((cause, kind), group)| {
        let mut what = Vec::new();
        if group.results > 0 {
            what.push(prose::count(group.results, "result"));
        }
        if group.files > 0 {
            what.push(prose::count(group.files, "file"));
        }
        let cost = if group.results > 0 {
            format!(", {} to compute again", prose::duration_ms(group.cost_ms))
        } else {
            String::new()
        };
        vec![
            right(prose::bytes(group.space)),
            left(kind),
            left(format!("{}{cost}; {}", what.join(" and "), describe(*cause))),
        ]
    });
    let rows: Vec<Vec<Cell>> = rows.collect();
    if rows.is_empty() {
        let _ = writeln!(
            text,
            "the store uses {}; there is nothing to remove",
            prose::bytes(plan.before)
        );
        return text;
    }
    let _ = writeln!(text, "to remove:");
    table::add(&mut text, "  ", &rows);
    let kept = plan.kept;
    let _ = writeln!(
        text,
        "the store uses {} now, {} afterwards; kept: {} for pins, {} for the newest outputs, {} in use",
        prose::bytes(plan.before),
        prose::bytes(plan.after),
        prose::count(kept.pinned, "result"),
        kept.newest,
        kept.live
    );
    text
}

fn facts(plan: &GcPlan) -> serde_json::Value {
    let groups: Vec<serde_json::Value> = plan
        .groups
        .iter()
        .map(|((cause, kind), group)| {
            json!({
                "cause": cause_name(*cause),
                "kind": kind,
                "results": group.results,
                "files": group.files,
                "disk_bytes": group.space,
                "cost_ms": group.cost_ms,
            })
        })
        .collect();
    let kept_space: serde_json::Map<String, serde_json::Value> = plan
        .kept_space
        .iter()
        .map(|(reason, space)| (reason_name(*reason).to_owned(), json!(space)))
        .collect();
    json!({
        "before": plan.before,
        "after": plan.after,
        "max_size": plan.max_size,
        "groups": groups,
        "kept": { "pinned": plan.kept.pinned, "newest": plan.kept.newest, "in_use": plan.kept.live },
        "remaining": kept_space,
    })
}
