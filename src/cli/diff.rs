//! `forge diff`: two recipes, tables of figures, manifests, candidates, imatrices or policies.

use std::collections::BTreeMap;
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
use crate::cli::files::Target;
use crate::cli::json;
use crate::cli::revision::Revision;
use crate::cli::targets;
use crate::cli::terminal::Terminal;
use crate::cli::terminal::columns;
use crate::diff;
use crate::diff::Change;
use crate::diff::Comparison;
use crate::diff::Diff;
use crate::diff::DiffError;
use crate::diff::Evaluation;
use crate::diff::Kind;
use crate::diff::Opened;
use crate::diff::Paired;
use crate::diff::Part;
use crate::diff::Row;
use crate::diff::Unpaired;
use crate::diff::Verdict;
use crate::engine::Cancel;
use crate::fs;
use crate::prose;
use crate::recipe::Recipe;
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
    let opened = [operand(a, args, files, terminal)?, operand(b, args, files, terminal)?];
    let [(of_a, place_a), (of_b, place_b)] = &opened;
    let store = store(files, terminal, of_a);
    let mut found = diff::compare(of_a, of_b, [a, b], store.as_ref()).map_err(|error| failure(&error))?;
    if let (Opened::Recipe(of_a), Opened::Recipe(of_b)) = (of_a, of_b)
        && found.differ
    {
        let of_a = evaluations(of_a, place_a, files, terminal);
        let of_b = evaluations(of_b, place_b, files, terminal);
        match (of_a, of_b) {
            (Ok(Some(of_a)), Ok(Some(of_b))) => found.add_figures(&of_a, &of_b),
            (Err(why), _) | (_, Err(why)) => found.notes.push(format!("no figures: {why}")),
            (Ok(None), _) | (_, Ok(None)) => {}
        }
    }
    show(&found, args.format, args.rows, terminal);
    Ok(if args.exit_code && found.differ {
        Exit::Recipe
    } else {
        Exit::Done
    })
}

/// Opens what a word of the command line names: a file, a file of a git revision, or the output of a step. Also returns where it is in the working tree.
fn operand(word: &str, args: &args::Diff, files: &Files, terminal: &Terminal) -> Result<(Opened, String), Failure> {
    let Some(revision) = Revision::find(word, files.directory())? else {
        let target = targets::of_step(word, &args.names, files, terminal)?;
        let path = target.map_or_else(|| files.path(word), |target| target.output);
        return Ok((open(files, terminal, word, &path, None)?, word.to_owned()));
    };
    let bytes = revision.bytes().map_err(|problem| {
        let unreadable = Diagnostic::error(format!("`{word}` cannot be read from git"));
        Failure::new(Exit::Usage, unreadable.code("usage::revision").caused_by(problem))
    })?;
    let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
    let opened = if is_json {
        diff::open_json(Path::new(word), &bytes).map_err(|error| failure(&error))?
    } else {
        Opened::Recipe(Box::new(files.recipe_of_revision(&revision, terminal)?.recipe))
    };
    Ok((opened, revision.in_working_tree().to_string_lossy().into_owned()))
}

/// Returns the evaluations of a recipe whose files are next to `place`; nothing if there is no store, and why not if its engines
/// or settings do not allow it.
fn evaluations(
    recipe: &Recipe,
    place: &str,
    files: &Files,
    terminal: &Terminal,
) -> Result<Option<Vec<Evaluation>>, String> {
    let why = |failure: Failure| {
        let first = failure.diagnostics.into_iter().next();
        first.map_or_else(|| "the recipe cannot be planned".to_owned(), |first| first.message)
    };
    if files.existing_store(place, terminal).map_err(why)?.is_none() {
        return Ok(None);
    }
    let target = Target::whole(place.to_owned(), None);
    let session = files.session_of(recipe.clone(), &target, terminal, Cancel::new());
    let (session, _) = session.map_err(why)?;
    Ok(Some(session.evaluations()))
}

/// Opens the store where it may know of candidates. One that is not there is not made for this.
fn store(files: &Files, terminal: &Terminal, opened: &Opened) -> Option<Store> {
    if !matches!(opened.kind(), Kind::Candidate | Kind::Metrics) {
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
                "what can be compared: recipes (TOML), tables of figures, manifests, policies (JSON), candidates and imatrices (GGUF)",
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
    let width = columns().unwrap_or(usize::MAX);
    for sentence in sentences(found).iter().chain(&found.notes) {
        for line in prose::wrap(sentence, width).lines() {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

/// Returns a sentence for each candidate, and one for all that cannot be compared for the same reason.
fn sentences(found: &Diff) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut unpaired: BTreeMap<Unpaired, Vec<&Comparison>> = BTreeMap::new();
    let mut same: Vec<&str> = Vec::new();
    for comparison in &found.comparisons {
        match (comparison.unpaired, comparison.verdict) {
            (Some(why), _) => unpaired.entry(why).or_default().push(comparison),
            (None, Verdict::Same) => same.push(&comparison.candidate),
            (None, _) => sentences.push(sentence(comparison)),
        }
    }
    same.dedup();
    if !same.is_empty() {
        sentences.insert(0, format!("the same figures in both: {}", prose::names(&same, 8)));
    }
    for (why, comparisons) in unpaired {
        let mut names: Vec<&str> = comparisons
            .iter()
            .map(|comparison| comparison.candidate.as_str())
            .collect();
        names.dedup();
        let of = prose::names(&names, 4);
        let (a, b) = (&found.a, &found.b);
        let never = |file: &str| {
            format!(
                "the store has no figures of `{file}`: it was never built, its files have changed since, or its results were removed"
            )
        };
        sentences.push(match why {
            Unpaired::FirstMissing => format!("no comparison of {of}: {}; {}", never(a), build(a)),
            Unpaired::SecondMissing => format!("no comparison of {of}: {}; {}", never(b), build(b)),
            Unpaired::BothMissing => format!("no comparison of {of}: the store has the figures of neither; build both"),
            Unpaired::OtherEngine => {
                format!("no comparison of {of}: measured by different engines; the figures of `{a}` are historical")
            }
            Unpaired::OtherText => format!(
                "no comparison of {of}: measured on different texts, in chunks of different lengths, or against different references; the figures of `{a}` are historical"
            ),
            Unpaired::FewChunks => {
                format!("no comparison of {of}: fewer than two chunks were measured in both, so there is no interval")
            }
        });
    }
    sentences
}

/// Says how to get the figures of a recipe.
fn build(file: &str) -> String {
    match file.split_once(':') {
        Some((revision, path)) => {
            format!("build it in a folder of its own: `git worktree add DIR {revision}`, then `forge build DIR/{path}`")
        }
        None if Path::new(file).extension().is_some_and(|extension| extension == "json") => {
            "choose the store of its build: `--cache-dir DIR`".to_owned()
        }
        None => format!("build it: `forge build {file}`"),
    }
}

fn sentence(comparison: &Comparison) -> String {
    let Comparison {
        candidate,
        eval,
        figure,
        chunks,
        ..
    } = comparison;
    let (Some(before), Some(after)) = (comparison.before, comparison.after) else {
        return format!("`{candidate}` cannot be compared in `{eval}`");
    };
    let Some(Paired {
        value,
        ci95: [low, high],
    }) = comparison.paired
    else {
        return format!("`{candidate}` in `{eval}`: {figure} {before:.6} -> {after:.6}, without an interval");
    };
    // Three digits of the interval.
    let size = low.abs().max(high.abs());
    let digits = if size > 0.0 {
        (2.0 - size.log10().floor()).clamp(2.0, 12.0) as usize
    } else {
        6
    };
    let what = match comparison.verdict {
        Verdict::Better => "is better",
        Verdict::Worse => "is worse",
        Verdict::NoDifference | Verdict::Same | Verdict::Unknown => "shows no difference within the interval",
    };
    format!(
        "`{candidate}` {what} in `{eval}`: {figure} {before:.digits$} -> {after:.digits$}, difference {value:+.digits$} \
         (95 % interval {low:+.digits$} to {high:+.digits$}, paired on {})",
        prose::count(chunks.unwrap_or_default(), "chunk")
    )
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
    for sentence in sentences(found).iter().chain(&found.notes) {
        let _ = writeln!(text, "\n{sentence}");
    }
    text
}
