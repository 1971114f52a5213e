//! `forge diff`: two recipes, manifests, candidates, imatrices or policies.

use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;

use serde_json::json;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::DiffFormat;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::escape::Block;
use crate::cli::files::Files;
use crate::cli::json;
use crate::cli::targets;
use crate::cli::terminal::Terminal;
use crate::diff;
use crate::diff::Change;
use crate::diff::Diff;
use crate::diff::DiffError;
use crate::diff::Kind;
use crate::diff::Opened;
use crate::diff::Part;
use crate::diff::Row;
use crate::fs;
use crate::store::Store;

pub(super) fn run(args: &args::Diff, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    if args.git {
        return git(args, files, terminal);
    }
    let [a, b] = args.files.as_slice() else {
        let many = Diagnostic::error(format!(
            "{} files were given, but `forge diff` compares two",
            args.files.len()
        ));
        return Err(Failure::new(Exit::Usage, many.code("usage::diff")));
    };
    let opened = [
        open(files, terminal, a, &path_of(a, args, files, terminal)?, None)?,
        open(files, terminal, b, &path_of(b, args, files, terminal)?, None)?,
    ];
    let [of_a, of_b] = &opened;
    let store = store(files, terminal, of_a);
    let found = diff::compare(of_a, of_b, [a, b], store.as_ref()).map_err(|error| failure(&error))?;
    show(&found, args.format, args.rows, terminal);
    Ok(if args.exit_code && found.differ {
        Exit::Recipe
    } else {
        Exit::Done
    })
}

/// Returns the file that a word means: the output of a candidate, where it is the name of a step.
fn path_of(word: &str, args: &args::Diff, files: &Files, terminal: &Terminal) -> Result<PathBuf, Failure> {
    let target = targets::of_step(word, &args.names, files, terminal)?;
    Ok(target.map_or_else(|| files.path(word), |target| target.output))
}

/// Opens the store where it may know of candidates. One that is not there is not made for this.
fn store(files: &Files, terminal: &Terminal, opened: &Opened) -> Option<Store> {
    if opened.kind() != Kind::Candidate {
        return None;
    }
    let place = files.store_dir(terminal).ok()?;
    if !fs::exists(&place).unwrap_or(false) {
        return None;
    }
    Store::open(&place).ok()
}

/// Opens a file. `name` is what messages call it; `folder` is where a recipe's other files are, if not next to it.
fn open(files: &Files, terminal: &Terminal, name: &str, path: &Path, folder: Option<&Path>) -> Result<Opened, Failure> {
    let kind = diff::detect(path).map_err(|error| failure(&error))?;
    if kind == Kind::Recipe {
        let parsed = match folder {
            None => files.recipe(name, terminal)?,
            Some(folder) => files.recipe_of(name, path, folder, terminal)?,
        };
        return Ok(Opened::Recipe(Box::new(parsed.recipe)));
    }
    diff::open(path, kind).map_err(|error| failure(&error))
}

pub(super) fn failure(error: &DiffError) -> Failure {
    match error {
        DiffError::Kinds { .. } => {
            let kinds = Diagnostic::error(format!("files of different kinds cannot be compared: {error}"));
            Failure::new(Exit::Usage, kinds.code("usage::diff-kinds"))
        }
        DiffError::Unknown { .. } => Failure::new(
            Exit::Usage,
            Diagnostic::from_error(error).code("usage::diff-unknown").hint(
                "what can be compared: recipes (TOML), manifests, policies (JSON), candidates and imatrices (GGUF)",
            ),
        ),
        DiffError::Unlisted { .. } => Failure::new(
            Exit::Usage,
            Diagnostic::from_error(error).code("usage::no-types").hint(
                "give a candidate or another model (GGUF), a manifest, a policy (`policy.v1`), or the name of a candidate",
            ),
        ),
        DiffError::Path(path) if path.is_not_found() => {
            Failure::new(Exit::Usage, Diagnostic::from_error(error).code("usage::no-such-file"))
        }
        DiffError::Path(_) | DiffError::Read { .. } => Failure::new(
            Exit::Environment,
            Diagnostic::from_error(error).code("environment::diff"),
        ),
        DiffError::Gguf(_) | DiffError::Imatrix { .. } => {
            Failure::new(Exit::Recipe, Diagnostic::from_error(error).code("diff::broken"))
        }
    }
}

/// Git calls `PATH OLD-FILE OLD-HEX OLD-MODE NEW-FILE NEW-HEX NEW-MODE`, of a renamed file with its new name and a text
/// after these. A status other than 0 would make git stop, so what cannot be compared is only said.
fn git(args: &args::Diff, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let [name, old, _, _, new, _, _, rest @ ..] = args.files.as_slice() else {
        let few = Diagnostic::error("git gives seven arguments or nine").code("usage::diff-git");
        return Err(Failure::new(
            Exit::Usage,
            few.hint("`--git` is for use by git: `git config diff.forge.command 'forge diff --git'`"),
        ));
    };
    let new_name = rest.first().unwrap_or(name);
    let names = [format!("a/{name}"), format!("b/{new_name}")];
    let folder = |name: &str| Path::new(name).parent().unwrap_or(Path::new("")).to_owned();
    let opened = |name: &str, file: &str, of: &str| {
        // What an older version extends is looked for next to the file as it stands in the working tree.
        let path = PathBuf::from(file);
        open(files, terminal, name, &files.path(&path), Some(&files.path(folder(of))))
    };
    let both = opened(&names[0], old, name).and_then(|a| Ok((a, opened(&names[1], new, new_name)?)));
    match both {
        Ok((Opened::Nothing, b)) => {
            terminal.data(Block::of(format_args!("new: {} is {}\n", names[1], b.kind().words())).as_str());
        }
        Ok((a, Opened::Nothing)) => {
            terminal.data(Block::of(format_args!("deleted: {} was {}\n", names[0], a.kind().words())).as_str());
        }
        Ok((a, b)) => {
            let store = store(files, terminal, &a);
            match diff::compare(&a, &b, [&names[0], &names[1]], store.as_ref()) {
                Ok(found) => show(&found, args.format, args.rows, terminal),
                Err(error) => {
                    terminal.data(Block::of(format_args!("{} and {}: {error}\n", names[0], names[1])).as_str());
                }
            }
        }
        Err(failure) => {
            for diagnostic in &failure.diagnostics {
                terminal.diagnostic(diagnostic);
            }
            terminal.data(Block::of(format_args!("{} and {} cannot be compared\n", names[0], names[1])).as_str());
        }
    }
    Ok(Exit::Done)
}

/// Prints a difference, at most so many rows of each part; 0 for all.
pub(super) fn show(found: &Diff, format: DiffFormat, rows: usize, terminal: &Terminal) {
    let most = if rows == 0 { usize::MAX } else { rows };
    if terminal.is_json() {
        let line = json!({ "schema": json::SCHEMA, "reason": "diff", "diff": found });
        terminal.data(&format!("{line}\n"));
        return;
    }
    match format {
        DiffFormat::Json => {
            let text = serde_json::to_string_pretty(found).unwrap_or_default();
            terminal.document(&format!("{text}\n"));
        }
        // Equal things have nothing to say.
        _ if !found.differ => {}
        DiffFormat::Text => terminal.data(text(found, most).as_str()),
        DiffFormat::Markdown => terminal.document(&markdown(found, most)),
    }
}

/// `tensors: 2 added, 3 changed, 40 unchanged`.
fn counts(part: &Part) -> String {
    let counts = [
        (part.added, "added"),
        (part.removed, "removed"),
        (part.changed, "changed"),
        (part.same, "unchanged"),
    ];
    let said: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    said.join(", ")
}

fn paired(row: &Row) -> String {
    match (&row.paired, &row.note) {
        (Some(paired), note) => format!(
            "{:+.6} [{:+.6}, {:+.6}]{}",
            paired.value,
            paired.ci95[0],
            paired.ci95[1],
            note.as_ref().map(|note| format!(", {note}")).unwrap_or_default()
        ),
        (None, Some(note)) => note.clone(),
        (None, None) => String::new(),
    }
}

fn text(found: &Diff, most: usize) -> Block {
    let mut text = Block::of(format_args!("--- {}\n", found.a));
    let _ = writeln!(text, "+++ {}", found.b);
    for part in found.parts.iter().filter(|part| part.differs()) {
        let _ = writeln!(text, "{}: {}", part.name, counts(part));
        for row in part.rows.iter().take(most) {
            let mark = match row.change {
                Change::Added => '+',
                Change::Removed => '-',
                Change::Changed => '~',
            };
            let change = match (&row.before, &row.after) {
                (Some(before), Some(after)) if before == after => format!(": {after}"),
                (Some(before), Some(after)) => format!(": {before} -> {after}"),
                // The mark says that it is present.
                (Some(one), None) | (None, Some(one)) if one == "present" => String::new(),
                (Some(one), None) | (None, Some(one)) => format!(": {one}"),
                (None, None) => String::new(),
            };
            let more = paired(row);
            let more = if more.is_empty() { more } else { format!("  ({more})") };
            let _ = writeln!(text, "  {mark} {}{change}{more}", row.what);
        }
        if part.rows.len() > most {
            let _ = writeln!(text, "    and {} more (--rows 0 for all)", part.rows.len() - most);
        }
    }
    for note in &found.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

fn markdown(found: &Diff, most: usize) -> String {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut text = format!("### `{}` and `{}`\n", found.a, found.b);
    for part in found.parts.iter().filter(|part| part.differs()) {
        let _ = writeln!(text, "\n**{}**: {}\n", part.name, counts(part));
        text.push_str("| | what | before | after | |\n|---|---|---|---|---|\n");
        for row in part.rows.iter().take(most) {
            let mark = match row.change {
                Change::Added => "added",
                Change::Removed => "removed",
                Change::Changed => "changed",
            };
            let value = |value: &Option<String>| cell(value.as_deref().unwrap_or_default());
            let _ = writeln!(
                text,
                "| {mark} | {} | {} | {} | {} |",
                cell(&row.what),
                value(&row.before),
                value(&row.after),
                cell(&paired(row))
            );
        }
        if part.rows.len() > most {
            let _ = writeln!(text, "\nand {} more", part.rows.len() - most);
        }
    }
    for note in &found.notes {
        let _ = writeln!(text, "\n{note}");
    }
    text
}
