//! `forge plan`: what a build would run, and why.

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::selection;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::observer::Silent;
use crate::plan::Entry;
use crate::plan::Plan;
use crate::plan::Reason;
use crate::plan::Status;
use crate::prose;
use crate::scheduler;
use crate::session::SessionError;
use crate::step::Estimate;

pub(super) fn run(args: &args::Plan, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let (session, _) = files.session(&selection::target(&args.target, files)?, terminal, Cancel::new())?;
    let findings = session.check();
    let plan = session.plan(&Silent);
    if terminal.is_json() {
        plan.entries
            .iter()
            .for_each(|entry| terminal.data(&json::plan_line(entry)));
    }
    // What a build would refuse has no plan.
    if !findings.is_empty() {
        return Err(session_failure(&SessionError::Refused(findings)));
    }
    if !terminal.is_json() {
        terminal.data(text(&plan, terminal).as_str());
    }
    let failed = plan
        .entries
        .iter()
        .any(|entry| matches!(entry.status, Status::Failed { .. }));
    let stale = args.check && !plan.is_fresh();
    Ok(if failed || stale { Exit::Recipe } else { Exit::Done })
}

fn text(plan: &Plan, terminal: &Terminal) -> Block {
    let mut text = Block::new();
    let width = plan.entries.iter().map(|entry| entry.node.len()).max().unwrap_or(0);
    let (mut hits, mut misses, mut unknown) = (0u64, 0u64, 0u64);
    let mut total = Estimate::default();
    for Entry { node, status } in &plan.entries {
        match status {
            Status::Hit { .. } => {
                hits += 1;
                let _ = writeln!(text, "hit      {node}");
            }
            Status::Miss { reason, estimate, .. } => {
                misses += 1;
                total.reads += estimate.reads;
                total.writes += estimate.writes;
                let work = work(estimate);
                let _ = writeln!(text, "miss     {node:width$}  {}{work}", scheduler::sentence(reason));
                if let (Reason::Changed(differences), true) = (reason, terminal.verbose) {
                    for difference in differences {
                        let was = difference.before.as_deref().unwrap_or("nothing");
                        let is = difference.after.as_deref().unwrap_or("nothing");
                        let _ = writeln!(text, "           {}: {was} -> {is}", difference.field);
                    }
                }
            }
            Status::Unknown { waits_for, expected } => {
                unknown += 1;
                let most = expected.as_ref().map(work).unwrap_or_default();
                let _ = writeln!(
                    text,
                    "unknown  {node:width$}  waits for {}{most}",
                    prose::names(waits_for, 3)
                );
            }
            Status::Failed { error } => {
                misses += 1;
                let _ = writeln!(text, "error    {node:width$}  {error}");
                if let Some(hint) = error.hint() {
                    let _ = writeln!(text, "         {:width$}  hint: {hint}", "");
                }
            }
        }
    }
    let sizes = match (total.reads, total.writes) {
        (0, 0) => String::new(),
        (reads, writes) => format!("; reads {}, writes {}", prose::bytes(reads), prose::bytes(writes)),
    };
    let more = if unknown > 0 { " or more" } else { "" };
    if misses + unknown == 0 {
        let _ = writeln!(text, "plan: nothing to do, {}", prose::count(hits, "hit"));
    } else {
        let _ = writeln!(
            text,
            "plan: {hits} hit, {misses} to run, {unknown} unknown{sizes}{}",
            if sizes.is_empty() { "" } else { more }
        );
    }
    text
}

fn work(estimate: &Estimate) -> String {
    let mut parts = Vec::new();
    let of = prose::count(estimate.parts, estimate.unit);
    match estimate.unit {
        _ if estimate.parts == 0 => {}
        "" => {}
        // How many of them were made before is not looked for, and what they lead to is not known.
        "probe" => parts.push(format!("up to {of} to begin with")),
        _ => parts.push(format!("{} of {of}", estimate.missing)),
    }
    if estimate.reads > 0 {
        parts.push(format!("reads {}", prose::bytes(estimate.reads)));
    }
    if estimate.writes > 0 {
        parts.push(format!("writes {}", prose::bytes(estimate.writes)));
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}
