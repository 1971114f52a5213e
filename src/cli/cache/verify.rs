//! `forge cache verify`.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use indicatif::ProgressBar;
use indicatif::ProgressDrawTarget;
use indicatif::ProgressStyle;
use serde_json::Value;
use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::build;
use crate::cli::cache::args;
use crate::cli::cache::failure;
use crate::cli::cache::line;
use crate::cli::cache::open;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::files::Files;
use crate::cli::signals;
use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::prose;
use crate::session::names::Names;
use crate::store::CheckControl;
use crate::store::CheckReport;
use crate::store::Damage;
use crate::store::Owner;
use crate::store::Sample;

/// How often a check without a terminal says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(30);

pub(super) fn run(args: &args::Verify, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let store = open(files, terminal)?;
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    // Read before anything is quarantined: a manifest may be among it.
    let names = Names::of(&store).map_err(|error| failure(&error))?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.jobs.map_or(cores, usize::from);
    let progress = Progress::new(terminal);
    let report = store
        .check(
            args.sample.unwrap_or(Sample::All),
            threads,
            CheckControl {
                progress: &|done, total| progress.tell(done, total),
                stop: &|| cancel.is_cancelled(),
            },
        )
        .map_err(|error| failure(&error))?;
    progress.end();
    for damage in &report.damage {
        if terminal.is_json() {
            line(terminal, "cache-damage", damage_facts(damage, &names));
        } else {
            terminal.diagnostic(&explain(damage, &names));
        }
    }
    print_summary(&report, terminal);
    if report.stopped {
        return Ok(Exit::Stopped);
    }
    let is_damaged = !report.damage.is_empty();
    if let Some(recipe) = &args.repair
        && is_damaged
    {
        drop(store);
        let exit = build::repair(recipe, files, terminal, cancel)?;
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    Ok(if is_damaged { Exit::Recipe } else { Exit::Done })
}

fn print_summary(report: &CheckReport, terminal: &Terminal) {
    let read = report.blobs.bytes + report.borrowed_files.bytes;
    if terminal.is_json() {
        line(
            terminal,
            "cache-verified",
            json!({
                "blobs": report.blobs.files,
                "outputs": report.borrowed_files.files,
                "bytes": read,
                "all_bytes": report.all.bytes,
                "results": report.results,
                "notes": report.notes,
                "damaged": report.damage.len(),
                "dropped": report.dropped,
                "foreign": report.foreign.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
                "stopped": report.stopped,
            }),
        );
        return;
    }
    for path in &report.foreign {
        let warning = Diagnostic::warning(format!(
            "`{}` is not part of a forge store; it was left in place",
            path.display()
        ));
        terminal.diagnostic(&warning);
    }
    if report.dropped > 0 {
        terminal.line(&format!(
            "forge: {} dropped because a part is missing; a build restores what it needs",
            prose::count(report.dropped, "result")
        ));
    }
    let part = if read < report.all.bytes {
        format!(" of {}", prose::bytes(report.all.bytes))
    } else {
        String::new()
    };
    let outputs = match report.borrowed_files.files {
        0 => String::new(),
        files => format!(" and {}", prose::count(files, "output")),
    };
    let damage = match report.damage.len() {
        0 => "nothing is damaged".to_owned(),
        1 => "1 is damaged".to_owned(),
        count => format!("{count} are damaged"),
    };
    let stopped = if report.stopped { "stopped: " } else { "" };
    terminal.line(&format!(
        "forge: {stopped}{}{outputs} ({}{part}), {} and {} read: {damage}",
        prose::count(report.blobs.files, "blob"),
        prose::bytes(read),
        prose::count(report.results, "result"),
        prose::count(report.notes, "note")
    ));
    if report.damage.iter().any(is_remade) {
        terminal.line("forge: `forge build RECIPE` restores it (or `forge cache verify --repair RECIPE`)");
    }
}

fn is_remade(damage: &Damage) -> bool {
    !matches!(damage, Damage::Note { .. } | Damage::NotAFile { .. })
}

/// Says what an output of an action is, as well as that is known.
fn describe_owner(owner: &Owner, names: &Names) -> String {
    let kind = owner.kind.as_deref();
    let of = names.action(&owner.key).map_or_else(
        || format!("{} action {}", kind.unwrap_or("an unknown"), owner.key.short()),
        str::to_owned,
    );
    match owner.output.as_deref() {
        // Its name says what it is.
        Some(output) if of.starts_with(&format!("{output} `")) => format!("the {of}"),
        Some(output) if Some(output) == kind => format!("the {output} of {of}"),
        Some(output) => format!("output `{output}` of {of}"),
        None => format!("the document of {of}"),
    }
}

fn describe_owners(owners: &[Owner], otherwise: Option<&str>, names: &Names) -> String {
    match owners {
        [] => otherwise.map_or_else(|| "no result refers to it".to_owned(), str::to_owned),
        [only] => describe_owner(only, names),
        [first, rest @ ..] => format!("{}, and {} more", describe_owner(first, names), rest.len()),
    }
}

fn sentence(damage: &Damage, names: &Names) -> (String, Option<String>) {
    match damage {
        Damage::Blob {
            hash, moved_to, owners, ..
        } => (
            format!(
                "blob {} is damaged: {}",
                hash.short(),
                describe_owners(owners, names.blob(hash), names)
            ),
            Some(format!("it was moved to `{}`", moved_to.display())),
        ),
        Damage::NotAFile { path, moved_to, what } => (
            format!("`{}` was {what}, which does not belong there", path.display()),
            Some(format!("it was moved to `{}`", moved_to.display())),
        ),
        Damage::Result { key, kind, moved_to } => (
            format!(
                "result {} is damaged: {}",
                key.short(),
                match (names.action(key), kind) {
                    (Some(name), _) => name.to_owned(),
                    (None, Some(kind)) => format!("of the kind `{kind}`"),
                    (None, None) => "of an unknown kind".to_owned(),
                }
            ),
            Some(format!("it was moved to `{}`", moved_to.display())),
        ),
        Damage::Gone { digest, owner } => (
            format!(
                "blob {} is missing: {}",
                digest.hash.short(),
                describe_owner(owner, names)
            ),
            Some("how it was lost is not known; the result that refers to it was dropped".to_owned()),
        ),
        Damage::BorrowedBlob { digest, path, owners } => (
            format!(
                "`{}` no longer contains blob {}: {}",
                path.display(),
                digest.hash.short(),
                describe_owners(owners, None, names)
            ),
            Some("its bytes changed but its timestamps did not; the next build reads the file again".to_owned()),
        ),
        Damage::BorrowedFile { path } => (
            format!("`{}` has changed but its timestamps have not", path.display()),
            Some(
                "the tensors that the store borrows from it are intact; the next build writes the file again"
                    .to_owned(),
            ),
        ),
        Damage::Note {
            directory,
            name,
            moved_to,
        } => (
            format!("note `{directory}/{name}` is damaged"),
            Some(format!(
                "it was moved to `{}`; notes only explain, no result depends on them",
                moved_to.display()
            )),
        ),
    }
}

fn explain(damage: &Damage, names: &Names) -> Diagnostic {
    let (message, cause) = sentence(damage, names);
    let diagnostic = Diagnostic::error(message).code("cache::damaged");
    cause.into_iter().fold(diagnostic, Diagnostic::caused_by)
}

fn damage_facts(damage: &Damage, names: &Names) -> Value {
    let owners = |owners: &[Owner]| -> Vec<Value> {
        owners
            .iter()
            .map(|owner| {
                json!({
                    "key": owner.key.to_string(),
                    "kind": owner.kind,
                    "output": owner.output,
                    "name": names.action(&owner.key),
                })
            })
            .collect()
    };
    let mut facts = match damage {
        Damage::Blob {
            hash,
            bytes,
            moved_to,
            owners: of,
        } => json!({ "damage": "blob", "blob": format!("{hash}:{bytes}"), "moved_to": moved_to, "owners": owners(of) }),
        Damage::NotAFile { path, moved_to, .. } => {
            json!({ "damage": "not-a-file", "path": path, "moved_to": moved_to })
        }
        Damage::Result { key, kind, moved_to } => {
            json!({ "damage": "result", "key": key.to_string(), "kind": kind, "moved_to": moved_to })
        }
        Damage::Gone { digest, owner } => {
            json!({ "damage": "missing", "blob": digest.to_string(), "owners": owners(std::slice::from_ref(owner)) })
        }
        Damage::BorrowedBlob {
            digest,
            path,
            owners: of,
        } => json!({ "damage": "borrowed-blob", "blob": digest.to_string(), "path": path, "owners": owners(of) }),
        Damage::BorrowedFile { path } => json!({ "damage": "output", "path": path }),
        Damage::Note {
            directory,
            name,
            moved_to,
        } => json!({ "damage": "note", "directory": directory, "name": name, "moved_to": moved_to }),
    };
    facts["message"] = json!(sentence(damage, names).0);
    facts
}

/// Shows how far a check is.
struct Progress<'t> {
    terminal: &'t Terminal,
    bar: Option<ProgressBar>,
    last: Mutex<Instant>,
}

impl<'t> Progress<'t> {
    fn new(terminal: &'t Terminal) -> Self {
        let bar = terminal.progress.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
            let template = "reading [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=- "));
            bar
        });
        Self {
            terminal,
            bar,
            last: Mutex::new(Instant::now()),
        }
    }

    fn tell(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            return;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.elapsed() >= HEARTBEAT && !self.terminal.is_json() && !self.terminal.quiet {
            *last = Instant::now();
            self.terminal
                .line(&format!("reading: {} of {}", prose::bytes(done), prose::bytes(total)));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
