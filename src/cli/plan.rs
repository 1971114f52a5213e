//! `forge plan`: what a build would run, and why.

use std::fmt::Write as _;
use std::path::Path;

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
use crate::fs;
use crate::observer::Event;
use crate::observer::Observer;
use crate::observer::Time;
use crate::plan::Entry;
use crate::plan::Plan;
use crate::plan::Reason;
use crate::plan::Status;
use crate::prose;
use crate::scheduler;
use crate::session::SessionError;
use crate::step::Estimate;
use crate::vocab::verdict::Verdict;

pub(super) fn run(args: &args::Plan, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let (session, _) = files.session(&selection::target(&args.target, files)?, terminal, Cancel::new())?;
    let findings = session.check();
    let plan = session.plan(&Notes(terminal));
    if terminal.is_json() {
        plan.entries
            .iter()
            .for_each(|entry| terminal.data(&json::plan_line(entry)));
        terminal.data(&json::plan_end(&plan, session.out()));
    }
    // What a build would refuse has no plan.
    if !findings.is_empty() {
        return Err(session_failure(&SessionError::Refused(findings)));
    }
    if !terminal.is_json() {
        terminal.data(text(&plan, session.out(), terminal).as_str());
    }
    let failed = plan
        .entries
        .iter()
        .any(|entry| matches!(entry.status, Status::Failed { .. }));
    let stale = args.check && !plan.is_fresh();
    Ok(if failed || stale { Exit::Recipe } else { Exit::Done })
}

/// Says that the machine is measured, which takes a while.
struct Notes<'t>(&'t Terminal);

impl Observer for Notes<'_> {
    fn event(&self, event: &Event) {
        if !matches!(event, Event::MeasuringSpeeds) {
            return;
        }
        if self.0.is_json() {
            json::Lines(self.0).event(event);
        } else if !self.0.quiet {
            self.0.line("note: measuring the speed of this machine, once");
        }
    }
}

/// The time of a step that takes less is not shown, in milliseconds.
const WORTH_SAYING_MS: u64 = 1000;

fn text(plan: &Plan, out: &Path, terminal: &Terminal) -> Block {
    let mut text = Block::new();
    let width = plan.entries.iter().map(|entry| entry.node.len()).max().unwrap_or(0);
    let mut total = Estimate::default();
    for Entry { node, status, time, .. } in &plan.entries {
        let time = time.as_ref();
        let word = format!("{:1$}", status.verdict(), Verdict::WIDTH);
        match status {
            Status::Hit { .. } => {
                let _ = writeln!(text, "{word}  {node}");
            }
            Status::Write {
                reason,
                files,
                estimate,
                ..
            } => {
                total.writes += estimate.outputs;
                let files = prose::names(files, 3);
                let size = match estimate.outputs {
                    0 => String::new(),
                    bytes => format!(" ({})", prose::bytes(bytes)),
                };
                let _ = writeln!(
                    text,
                    "{word}  {node:width$}  only {files}{size}: {}",
                    scheduler::sentence(reason)
                );
            }
            Status::Miss { reason, estimate, .. } => {
                total.reads += estimate.reads;
                total.writes += estimate.kept();
                let work = work(estimate, time);
                let _ = writeln!(text, "{word}  {node:width$}  {}{work}", scheduler::sentence(reason));
                if let (Reason::Changed(differences), true) = (reason, terminal.verbose) {
                    for difference in differences {
                        let was = difference.before.as_deref().unwrap_or("nothing");
                        let is = difference.after.as_deref().unwrap_or("nothing");
                        let _ = writeln!(text, "           {}: {was} -> {is}", difference.field);
                    }
                }
            }
            Status::Unknown { waits_for, expected } => {
                let most = work(expected.as_ref().unwrap_or(&Estimate::default()), time);
                let _ = writeln!(
                    text,
                    "{word}  {node:width$}  waits for {}{most}",
                    prose::names(waits_for, 3)
                );
            }
            Status::Failed { error } => {
                let _ = writeln!(text, "{word}  {node:width$}  {error}");
                if let Some(hint) = error.hint() {
                    let _ = writeln!(text, "         {:width$}  hint: {hint}", "");
                }
            }
        }
    }
    let counts = plan.counts();
    if plan.is_fresh() {
        let _ = writeln!(text, "plan: nothing to do ({} hit)", counts.of(Verdict::Hit));
        return text;
    }
    let mut line = format!("plan: {}: {counts}", prose::count(counts.steps() as u64, "step"));
    let sources = plan.sources_to_read();
    if sources > 0 {
        let _ = write!(line, "; {} to read", prose::count(sources as u64, "source"));
    }
    let more = if counts.of(Verdict::Unknown) > 0 {
        " or more"
    } else {
        ""
    };
    if total.reads > 0 {
        let _ = write!(line, "; reads {}{more}", prose::bytes(total.reads));
    }
    if total.writes > 0 {
        let _ = write!(line, "; writes {}{more}", prose::bytes(total.writes));
    }
    let _ = writeln!(text, "{line}");
    let Time {
        likely_ms,
        least_ms,
        most_ms,
    } = plan.time;
    let time = prose::about_range_ms(likely_ms, least_ms, most_ms);
    let _ = write!(text, "time: about {time}");
    for (what, bytes) in [("memory", plan.memory), ("disk", plan.disk)] {
        if bytes > 0 {
            let _ = write!(text, "; {} of {what}", prose::bytes(bytes));
        }
    }
    let _ = writeln!(text);
    let new = if fs::exists(out).unwrap_or(true) { "" } else { " (new)" };
    let _ = writeln!(text, "output folder: {}{new}", out.display());
    text
}

fn work(estimate: &Estimate, time: Option<&Time>) -> String {
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
    // What is written and removed again is not a part of the result.
    if estimate.kept() > 0 {
        parts.push(format!("writes {}", prose::bytes(estimate.kept())));
    }
    if let Some(time) = time.filter(|time| time.likely_ms >= WORTH_SAYING_MS) {
        parts.push(format!("about {}", prose::about_ms(time.likely_ms)));
    }
    if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    }
}
