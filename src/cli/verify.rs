//! `forge verify`.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::escape::escape;
use crate::cli::files;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::settings::Config;
use crate::cli::sign::key_failure;
use crate::cli::stale;
use crate::cli::targets;
use crate::cli::terminal::Terminal;
use crate::fs;
use crate::prose;
use crate::sign::PublicKey;
use crate::verify;
use crate::verify::Target;
use crate::verify::Verdict;
use crate::verify::Verified;

/// Outputs that are read at once: each keeps one thread busy with SHA-256, and the disk is one.
const MAX_PARALLEL: usize = 4;

pub(super) fn run(args: &args::Verify, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let mut keys = Vec::with_capacity(args.key.len());
    for path in &args.key {
        keys.push(PublicKey::load(&files.path(path)).map_err(|error| key_failure(&error))?);
    }
    let mut targets = targets::of(&args.outputs, files, terminal)?;
    let stale = stale::of(&args.outputs, files, &mut targets);
    let threads = files::threads(args.jobs, &Config::default());
    let all = verify_all(&targets, &keys, threads.min(MAX_PARALLEL), terminal);
    let mut verdicts = Vec::with_capacity(all.len());
    for verified in &all {
        let verdict = verified.verdict(!stale.contains(&verified.output));
        verdicts.push(verdict);
        if terminal.is_json() {
            terminal.data(&line(verified, verdict));
        } else {
            terminal.data(&text(verified, verdict));
        }
    }
    if !terminal.is_json() {
        terminal.line(&format!("forge: {}", counts(&verdicts)));
    }
    let is_failure = verdicts.into_iter().any(Verdict::is_failure);
    Ok(if is_failure { Exit::Recipe } else { Exit::Done })
}

fn verify_all(targets: &[Target], keys: &[PublicKey], threads: usize, terminal: &Terminal) -> Vec<Verified> {
    let sizes = targets.iter().filter_map(|target| fs::Stamp::of(&target.output).ok());
    let bar = terminal.progress.then(|| {
        let style =
            ProgressStyle::with_template("  verifying {bytes}/{total_bytes} {binary_bytes_per_sec}, {eta} left");
        let bar = ProgressBar::new(sizes.map(|stamp| stamp.size).sum());
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    });
    let progress = |bytes: u64| {
        if let Some(bar) = &bar {
            bar.inc(bytes);
        }
    };
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.min(targets.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(target) = targets.get(at) else { return };
                    let verified = verify::verify(target, keys, &progress);
                    let mut done = done.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    done.push((at, verified));
                }
            });
        }
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, verified)| verified).collect()
}

/// Counts the verdicts: good and bad ones always, others if there are any.
fn counts(verdicts: &[Verdict]) -> String {
    let count = |verdict| verdicts.iter().filter(|found| **found == verdict).count();
    let mut words = vec![
        format!("{} good", count(Verdict::Good)),
        format!("{} bad", count(Verdict::Bad)),
    ];
    for verdict in [Verdict::Missing, Verdict::Stale] {
        match count(verdict) {
            0 => {}
            number => words.push(format!("{number} {}", verdict.as_str())),
        }
    }
    words.join(", ")
}

fn line(verified: &Verified, verdict: Verdict) -> String {
    let problems = verified.problems.iter().map(|problem| {
        serde_json::json!({
            "part": problem.part.as_str(),
            "place": problem.place,
            "message": problem.what,
        })
    });
    let line = serde_json::json!({
        "schema": json::SCHEMA,
        "reason": "verified",
        "output": verified.output.display().to_string(),
        "good": verified.problems.is_empty(),
        "verdict": verdict.as_str(),
        "bytes": verified.bytes,
        "tensors": verified.tensors,
        "signers": verified.signers,
        "keys": verified.keys,
        "problems": problems.collect::<Vec<_>>(),
    });
    format!("{line}\n")
}

fn text(verified: &Verified, verdict: Verdict) -> String {
    let mut text = String::new();
    let output = escape(&verified.output.display().to_string());
    if verified.problems.is_empty() {
        let tensors = prose::count(verified.tensors as u64, "tensor");
        let signed = match (verified.keys, verified.signers.len()) {
            (0, 0) => "not signed".to_owned(),
            (0, _) => {
                let names: Vec<String> = verified
                    .signers
                    .iter()
                    .map(|name| name.chars().take(16).collect())
                    .collect();
                let names = escape(&prose::names(&names, 3));
                format!("claims to be signed by {names}; check it with `--key PUB`")
            }
            (keys, _) => format!("signed by {}", prose::count(keys as u64, "given key")),
        };
        let renamed = verified.renamed_from.as_ref();
        let renamed = renamed
            .map(|name| format!(", renamed from `{}`", escape(name)))
            .unwrap_or_default();
        let bytes = prose::bytes(verified.bytes);
        let (word, stale) = match verdict {
            Verdict::Stale => ("stale", "; the recipe no longer makes it"),
            _ => ("good ", ""),
        };
        let _ = writeln!(text, "{word} {output}  {tensors}, {bytes}, {signed}{renamed}{stale}");
        return text;
    }
    let word = match verdict {
        Verdict::Missing => "MISSING",
        _ => "BAD  ",
    };
    let _ = writeln!(text, "{word} {output}");
    for problem in &verified.problems {
        let place = match problem.place.as_str() {
            "" => String::new(),
            place => format!(", {}", escape(place)),
        };
        let _ = writeln!(
            text,
            "      {}{place}: {}",
            problem.part.as_str(),
            escape(&problem.what)
        );
    }
    text
}
