//! `forge build`.

use std::path::Path;
use std::time::Instant;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::cache::gc::enforce_limit;
use crate::cli::clean;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::files::Target;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::lock;
use crate::cli::outcome::exit_of;
use crate::cli::outcome::explain;
use crate::cli::outcome::options;
use crate::cli::progress::Progress;
use crate::cli::selection;
use crate::cli::settings::Config;
use crate::cli::sign;
use crate::cli::signals::stop_on_signals;
use crate::cli::table;
use crate::cli::table::left;
use crate::cli::terminal::Terminal;
use crate::cli::terminal::columns;
use crate::cli::trace::Trace;
use crate::engine::Cancel;
use crate::manifest;
use crate::observer::Both;
use crate::observer::Observer;
use crate::observer::OutputFile;
use crate::observer::Silent;
use crate::prose;
use crate::report::metrics::Metrics;
use crate::report::table::Table;
use crate::scheduler;
use crate::scheduler::Report;
use crate::sign::SecretKey;
use crate::vocab::verdict::StepOutcome;

/// The number of outputs that are listed.
const LISTED: usize = 20;

pub(super) fn run(args: &args::Build, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let started = Instant::now();
    let target = selection::target(&args.target, files)?;
    // Read before hours of work, not after.
    let key = sign::key_of_build(&target, args.sign.as_deref(), files)?;
    // The fast path. It does not report single steps, and it neither checks nor signs anything.
    let request = files.request(&target);
    if let Some(request) = &request
        && key.is_none()
        && args.frozen.is_none()
        && !terminal.is_json()
        && !terminal.verbose
        && args.trace.is_none()
        && let Some(fresh) = files.nothing_to_do(&target, request, terminal)
    {
        print_tables(&fresh.tables, terminal);
        let report = Report {
            hit: fresh.steps,
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..Report::default()
        };
        terminal.line(&summary(&report, fresh.out.as_deref()));
        return Ok(Exit::Done);
    }
    let cancel = Cancel::new();
    stop_on_signals(&cancel, terminal);
    carry_out(&target, &Options::of(args), key.as_ref(), files, terminal, cancel)
}

/// How a build runs, apart from what it builds.
#[derive(Default)]
struct Options<'a> {
    keep_going: bool,
    frozen: Option<args::Frozen>,
    /// The lock file of `frozen`, if not the default one.
    lock: Option<&'a Path>,
    trace: Option<&'a Path>,
}

impl<'a> Options<'a> {
    fn of(args: &'a args::Build) -> Self {
        Self {
            keep_going: args.keep_going,
            frozen: args.frozen,
            lock: args.lock.as_deref(),
            trace: args.trace.as_deref(),
        }
    }
}

/// Builds a recipe to make again what was lost.
pub(super) fn repair(recipe: &str, files: &Files, terminal: &Terminal, cancel: Cancel) -> Result<Exit, Failure> {
    let target = Target::whole(recipe.to_owned(), None);
    let key = sign::key_of_build(&target, None, files)?;
    carry_out(&target, &Options::default(), key.as_ref(), files, terminal, cancel)
}

fn carry_out(
    target: &Target,
    how: &Options<'_>,
    key: Option<&SecretKey>,
    files: &Files,
    terminal: &Terminal,
    cancel: Cancel,
) -> Result<Exit, Failure> {
    let request = files.request(target);
    // Asked for before a store is made.
    let max_size = Config::read(&files.folder(&target.recipe))?.max_size()?;
    let (session, config) = files.session(target, terminal, cancel)?;
    let options = scheduler::Options {
        keep_going: how.keep_going,
        ..options(&config.pools(), target.jobs)
    };
    if let Some(frozen) = how.frozen {
        lock::check_frozen(&target.recipe, how.lock, frozen, &session, options, files, terminal)?;
    }
    let trace = how
        .trace
        .map(|path| Trace::create(&files.path(path), session.graph()))
        .transpose()
        .map_err(|error| {
            let trace = Diagnostic::from_error(&error).code("environment::trace");
            Failure::new(
                Exit::Environment,
                trace.hint("write the trace to another file: `--trace FILE`"),
            )
        })?;
    let report = {
        let lines = json::Lines(terminal);
        let progress = Progress::new(terminal, session.graph());
        let shown: &dyn Observer = if terminal.is_json() { &lines } else { &progress };
        let silent = Silent;
        let traced: &dyn Observer = trace.as_ref().map_or(&silent, |trace| trace as &dyn Observer);
        let both = Both(shown, traced);
        let observer: &dyn Observer = &both;
        session
            .build(options, observer)
            .map_err(|error| session_failure(&error))?
    };
    if let Some(request) = &request {
        session.note_fresh(request, &files.texts(), &report);
    }
    // Before what failed: a gate that is not met is about the figures of the table.
    if !terminal.is_json() && !report.stopped {
        print_tables(&session.tables(&report), terminal);
    }
    for failure in &report.failures {
        let mut diagnostic = explain(&failure.node.to_string(), &failure.error);
        if let Some(script) = report.kept.get(&failure.node) {
            diagnostic = diagnostic.hint(format!(
                "its error, log and action are kept; to repeat only this step: sh {}",
                script.display()
            ));
        }
        terminal.diagnostic(&diagnostic);
    }
    if let Some(key) = key {
        sign::sign_outputs(&session, &report, key, terminal)?;
    }
    if !terminal.is_json() {
        let outputs = session.outputs(&report);
        if report.ran + report.wrote > 0 && !terminal.quiet {
            list(&outputs, session.out(), terminal);
        }
        if !terminal.quiet
            && let Some(stale) = clean::stale_line(&report.stale, &display(session.out()), target)
        {
            terminal.line(&stale);
        }
        let out = (!outputs.is_empty()).then_some(session.out());
        terminal.line(&summary(&report, out));
    }
    if report.ran > 0 {
        enforce_limit(session.store(), max_size, terminal);
    }
    Ok(exit_of(&report))
}

fn print_tables(tables: &[Metrics], terminal: &Terminal) {
    for table in tables {
        terminal.data(&Table::of(std::slice::from_ref(table)).text(columns()));
    }
}

/// Says what lies where.
fn list(outputs: &[OutputFile], out: &Path, terminal: &Terminal) {
    let shown: Vec<_> = outputs.iter().take(LISTED).collect();
    let rows: Vec<_> = shown
        .iter()
        .map(|file| {
            let size = match file.weights {
                Some(weights) => prose::size(file.bytes, weights),
                None => prose::bytes(file.bytes),
            };
            vec![left(display(Path::new(&file.path))), left(size)]
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    let manifests = outputs.iter().any(|file| file.manifest.is_some());
    let manifests = if manifests {
        format!(" (beside each candidate: its `{}`)", manifest::SUFFIX)
    } else {
        String::new()
    };
    terminal.line(&format!("outputs{manifests}:"));
    for row in table::rows(&rows, 2).lines() {
        terminal.styled_line(&format!("  {row}"));
    }
    if outputs.len() > shown.len() {
        let more = outputs.len() - shown.len();
        terminal.line(&format!("  and {more} more in {}", display(out)));
    }
}

/// Returns a path as the user would write it: from the current folder, if it is below that.
fn display(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    let below = here.and_then(|here| path.strip_prefix(here).ok());
    let path = below.filter(|below| !below.as_os_str().is_empty()).unwrap_or(path);
    path.display().to_string()
}

fn summary(report: &Report, out: Option<&Path>) -> String {
    let time = prose::duration_ms(report.elapsed_ms);
    let counts = report.counts();
    let hit = counts.of(StepOutcome::Hit);
    match (counts.steps() - hit, report.wrote) {
        _ if report.stopped => format!("forge: stopped: {counts} in {time}; run it again to continue"),
        (0, _) => {
            let out = out.map_or_else(String::new, |out| format!("; outputs in {}", display(out)));
            format!("forge: nothing to do ({hit} hit) in {time}{out}")
        }
        (others, wrote) if others == wrote => {
            format!("forge: {wrote} wrote, nothing else to do ({hit} hit) in {time}")
        }
        _ => format!("forge: {counts} in {time}"),
    }
}
