//! `forge reproduce`.

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::NameArgs;
use crate::cli::args::RecipeOption;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::environment;
use crate::cli::escape::escape;
use crate::cli::files;
use crate::cli::files::Files;
use crate::cli::files::session_failure;
use crate::cli::json;
use crate::cli::outcome;
use crate::cli::progress::Progress;
use crate::cli::settings::Config;
use crate::cli::signals;
use crate::cli::targets;
use crate::cli::terminal::Terminal;
use crate::content::Content;
use crate::engine::Cancel;
use crate::observer::Observer;
use crate::prose;
use crate::scheduler::Report;
use crate::session::reproduce::Comparison;
use crate::session::reproduce::Divergence;
use crate::session::reproduce::Missing;
use crate::session::reproduce::Places;
use crate::session::reproduce::ReproduceError;
use crate::session::reproduce::Reproduced;
use crate::session::reproduce::Reproduction;
use crate::session::reproduce::Verdict;

pub(super) fn run(args: &args::Reproduce, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    // `--out` of this verb is where the new candidate goes, not where the recipe's outputs are.
    let of = NameArgs {
        recipe: RecipeOption {
            recipe: args.recipe.clone(),
        },
        out: None,
    };
    let step = args
        .path
        .to_str()
        .map(|word| targets::of_step(word, &of, files, terminal));
    let path = match step.transpose()?.flatten() {
        Some(target) => target.manifest,
        None => files.path(&args.path),
    };
    let manifest = if matches!(Content::of(&path), Ok(Content::Json)) {
        path
    } else {
        targets::of_file(&path)?.manifest
    };
    let beside = manifest.parent().unwrap_or(Path::new("")).to_owned();
    let places = Places {
        bases: vec![beside.clone(), beside.join("../.."), files.directory().to_owned()],
        search: args.search.iter().map(|folder| files.path(folder)).collect(),
        temporary: environment::temporary_dir(),
        store: args.store.as_ref().map(|store| files.path(store)),
        resume: args.resume,
        out: args.out.as_ref().map(|out| files.path(out)),
    };
    if let Some(folder) = places.search.iter().find(|folder| crate::fs::list(folder).is_err()) {
        let nothing = Diagnostic::error(format!("`{}` is not a folder that can be searched", folder.display()));
        return Err(Failure::new(Exit::Usage, nothing.code("usage")));
    }
    let config = Config::read(files.directory())?;
    let runtime = files::runtime(args.jobs, &config)?;
    let reproduction = Reproduction::prepare(&manifest, places, runtime, &|_| {}).map_err(|error| failure(&error))?;
    let graph = reproduction.graph().map_err(|error| failure(&error))?;
    print_found(&reproduction, terminal);
    let engine = |missing: &Missing| matches!(missing, Missing::Engine { .. });
    let fatal = reproduction
        .missing
        .iter()
        .filter(|missing| !(args.any_engine && engine(missing)))
        .count();
    if fatal > 0 {
        return Err(missing(&reproduction.missing, args));
    }
    let other_engine = reproduction.missing.iter().any(engine);
    let cancel = Cancel::new();
    signals::stop_on_signals(&cancel, terminal);
    let command = files::command_line();
    let reproduced = {
        let lines = json::Lines(terminal);
        let progress = Progress::new(terminal, &graph);
        let observer: &dyn Observer = if terminal.is_json() { &lines } else { &progress };
        let options = outcome::options(&config.pools(), args.jobs);
        reproduction
            .run(command, cancel, options, observer)
            .map_err(|error| failure(&error))?
    };
    for failure in &reproduced.report.failures {
        terminal.diagnostic(&outcome::explain(&failure.node.to_string(), &failure.error));
    }
    let Some(comparison) = &reproduced.comparison else {
        return Ok(outcome::exit_of(&reproduced.report));
    };
    print_result(comparison, &reproduced, other_engine, terminal);
    Ok(match comparison.verdict {
        Verdict::Identical => Exit::Done,
        _ => Exit::Recipe,
    })
}

/// Lists what the candidate was made of, where it is, and what is missing.
fn print_found(reproduction: &Reproduction, terminal: &Terminal) {
    if terminal.is_json() {
        for missing in &reproduction.missing {
            terminal.data(&missing_line(missing));
        }
        return;
    }
    let mut text = format!(
        "{} of recipe `{}`, {}\n",
        reproduction.step(),
        reproduction.recipe().name,
        prose::bytes(reproduction.bytes())
    );
    let found = reproduction.found.iter().map(|(wanted, _)| wanted);
    let width = found.map(|wanted| wanted.node.len()).max().unwrap_or(0);
    for (wanted, path) in &reproduction.found {
        let (name, path) = (escape(&wanted.name), escape(&path.display().to_string()));
        let _ = writeln!(text, "found    {:width$}  {name}  ({path})", wanted.node);
    }
    for missing in &reproduction.missing {
        text.push_str(&missing_text(missing));
    }
    terminal.data(&text);
}

fn missing_line(missing: &Missing) -> String {
    let mut line = match missing {
        Missing::Source { wanted, other } => serde_json::json!({
            "what": "source",
            "node": wanted.node,
            "name": wanted.name,
            "digest": wanted.digest.to_string(),
            "other": other.as_ref().map(|path| path.display().to_string()),
        }),
        Missing::Engine {
            role,
            wanted,
            found,
            facts,
        } => serde_json::json!({
            "what": "engine",
            "role": role,
            "fingerprint": wanted,
            "found": found,
            "facts": facts
                .iter()
                .map(|(fact, before, now)| serde_json::json!({ "fact": fact, "wanted": before, "found": now }))
                .collect::<Vec<_>>(),
        }),
        Missing::Space { folder, needed, found } => serde_json::json!({
            "what": "disk-space",
            "folder": folder.display().to_string(),
            "needed_bytes": needed,
            "found_bytes": found,
        }),
    };
    line["schema"] = json::SCHEMA.into();
    line["reason"] = "missing".into();
    format!("{line}\n")
}

fn missing_text(missing: &Missing) -> String {
    match missing {
        Missing::Source { wanted, other } => {
            let other = other
                .as_ref()
                .map(|path| format!("; `{}` has different content", path.display()))
                .unwrap_or_default();
            escape(&format!(
                "missing  {}  {}  (blake3 {}, {}{other})",
                wanted.node,
                wanted.name,
                wanted.digest.hash,
                prose::bytes(wanted.digest.len)
            )) + "\n"
        }
        Missing::Engine {
            role,
            wanted,
            found,
            facts,
        } => {
            let short = |text: &str| text.chars().take(8).collect::<String>();
            let mut text = format!(
                "missing  {role} {}: this program's is {}\n",
                short(wanted),
                short(found)
            );
            for (fact, before, now) in facts {
                let _ = writeln!(
                    text,
                    "         {}: `{}`, here `{}`",
                    escape(fact),
                    escape(before),
                    escape(now)
                );
            }
            text
        }
        Missing::Space { folder, needed, found } => format!(
            "missing  disk space in `{}`: at least {} are needed, and {} are free\n",
            folder.display(),
            prose::bytes(*needed),
            prose::bytes(*found)
        ),
    }
}

fn missing(missing: &[Missing], args: &args::Reproduce) -> Failure {
    let is = |wanted: fn(&Missing) -> bool| missing.iter().any(wanted);
    let count = prose::count(missing.len() as u64, "thing");
    let mut diagnostic = Diagnostic::error(format!(
        "{count} needed to reproduce the candidate {} missing",
        if missing.len() == 1 { "is" } else { "are" }
    ))
    .code("reproduce::missing");
    if is(|it| matches!(it, Missing::Source { .. })) {
        diagnostic = diagnostic.hint("`--search DIR` searches a folder for sources, under any name");
    }
    if is(|it| matches!(it, Missing::Engine { .. })) && !args.any_engine {
        diagnostic = diagnostic.hint("`--any-engine` continues with this program's engine: bytes may differ");
    }
    if is(|it| matches!(it, Missing::Space { .. })) {
        diagnostic =
            diagnostic.hint("choose other folders with `--store DIR` and `--out DIR`, or set `TMPDIR` for both");
    }
    Failure::new(Exit::Environment, diagnostic)
}

fn print_result(comparison: &Comparison, reproduced: &Reproduced, other_engine: bool, terminal: &Terminal) {
    if terminal.is_json() {
        terminal.data(&verdict_line(comparison, reproduced));
        return;
    }
    let mut text = String::new();
    match &comparison.verdict {
        Verdict::Identical => {
            let _ = writeln!(text, "identical: blake3 {}", comparison.after);
        }
        Verdict::SameTensors => {
            let _ = writeln!(text, "same tensors, different metadata");
        }
        Verdict::Different(tensors) => {
            let verb = if tensors.len() == 1 { "differs" } else { "differ" };
            let _ = writeln!(text, "{} {verb}", prose::count(tensors.len() as u64, "tensor"));
            for tensor in tensors {
                let _ = writeln!(
                    text,
                    "  {}: {} {} -> {}",
                    escape(&tensor.name),
                    tensor.what,
                    tensor.before,
                    tensor.after
                );
            }
        }
    }
    if comparison.verdict != Verdict::Identical {
        let _ = writeln!(text, "  the manifest says  blake3 {}", comparison.before);
        let _ = writeln!(text, "  the new file has   blake3 {}", comparison.after);
        if let Some(divergence) = &comparison.divergence {
            text.push_str(&divergence_text(divergence));
        }
        if other_engine {
            let _ = writeln!(text, "  an engine other than the manifest's was used");
        }
    }
    terminal.data(&text);
    if let Some(output) = &reproduced.output {
        terminal.line(&format!("kept {}", output.display()));
    }
    terminal.line(&summary(&reproduced.report, reproduced.resumed));
}

fn summary(report: &Report, resumed: bool) -> String {
    let time = prose::duration_ms(report.elapsed_ms);
    let mut text = format!("forge: {} ran in {time}", prose::count(report.ran as u64, "step"));
    if resumed && report.hit > 0 {
        let _ = write!(
            text,
            "; {} had results in the store already, so this is not a full reproduction",
            report.hit
        );
    }
    text
}

fn divergence_text(divergence: &Divergence) -> String {
    let mut text = format!(
        "  the histories diverge at {} ({})",
        escape(&divergence.place),
        divergence.kind
    );
    if !divergence.inputs.is_empty() {
        text.push_str(": its inputs differ\n");
        for input in &divergence.inputs {
            let was = input.before.as_deref().unwrap_or("nothing");
            let is = input.after.as_deref().unwrap_or("nothing");
            let _ = writeln!(text, "    {}: {} -> {}", input.field, escape(was), escape(is));
        }
    } else if divergence.other_engine {
        let _ = writeln!(
            text,
            ": a different engine made different {}",
            divergence.outputs.join(", ")
        );
    } else {
        let _ = writeln!(
            text,
            ": the same action made different {}, so it is not deterministic",
            divergence.outputs.join(", ")
        );
    }
    text
}

fn verdict_line(comparison: &Comparison, reproduced: &Reproduced) -> String {
    let tensors = match &comparison.verdict {
        Verdict::Different(tensors) => tensors.as_slice(),
        _ => &[],
    };
    let tensors = tensors.iter().map(|tensor| {
        serde_json::json!({
            "name": tensor.name,
            "what": tensor.what,
            "before": tensor.before,
            "after": tensor.after,
        })
    });
    let divergence = comparison.divergence.as_ref().map(|divergence| {
        serde_json::json!({
            "place": divergence.place,
            "kind": divergence.kind,
            "key_before": divergence.keys.0,
            "key_after": divergence.keys.1,
            "inputs": divergence.inputs.iter().map(|input| input.field.clone()).collect::<Vec<_>>(),
            "outputs": divergence.outputs,
            "other_engine": divergence.other_engine,
        })
    });
    let line = serde_json::json!({
        "schema": json::SCHEMA,
        "reason": "reproduced",
        "verdict": comparison.verdict.as_str(),
        "before": comparison.before,
        "after": comparison.after,
        "tensors": tensors.collect::<Vec<_>>(),
        "divergence": divergence,
        "output": reproduced.output.as_ref().map(|path: &PathBuf| path.display().to_string()),
        "ran": reproduced.report.ran,
        "hit": reproduced.report.hit,
        "elapsed_ms": reproduced.report.elapsed_ms,
    });
    format!("{line}\n")
}

fn failure(error: &ReproduceError) -> Failure {
    match error {
        ReproduceError::Session(error) => session_failure(error),
        ReproduceError::Path(_) => {
            Failure::new(Exit::Environment, Diagnostic::from_error(error).code("reproduce::file"))
        }
        ReproduceError::Manifest { .. } => Failure::new(
            Exit::Recipe,
            Diagnostic::error(error.to_string()).code("reproduce::manifest"),
        ),
        ReproduceError::Inconsistent { problems, .. } => {
            let whole = Diagnostic::error(error.to_string()).code("reproduce::manifest");
            let causes = problems.iter().take(20).map(|problem| match problem.place.as_str() {
                "" => problem.what.clone(),
                place => format!("{place}: {}", problem.what),
            });
            Failure::new(Exit::Recipe, causes.fold(whole, Diagnostic::caused_by))
        }
        ReproduceError::OutputExists { .. } => {
            let there = Diagnostic::error(error.to_string()).code("usage::output-there");
            Failure::new(
                Exit::Usage,
                there.hint("choose a folder without this file: `--out DIR`"),
            )
        }
        ReproduceError::StoreNotEmpty { .. } => {
            let there = Diagnostic::error(error.to_string()).code("usage::store-not-empty");
            let hint = "choose an empty folder, or give `--resume` to use the results of an earlier attempt";
            Failure::new(Exit::Usage, there.hint(hint))
        }
    }
}
