//! `forge init`: finds the model and the texts, and writes a recipe that names them.

use std::collections::BTreeSet;
use std::path::Component;
use std::path::Path;
use std::path::PathBuf;

use glob::Pattern;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::diagnostic::SCHEMA;
use crate::cli::files::Files;
use crate::cli::init;
use crate::cli::terminal::Terminal;
use crate::container;
use crate::content::Content;
use crate::fs;
use crate::prose;
use crate::step::pattern;

/// Names of files that go with a model and are not one, by how they begin.
const SIDECARS: [&str; 5] = ["mmproj", "mtp-", "dspark-", "eagle3-", "draft-"];
/// Endings of texts: `.raw` is that of WikiText.
const TEXTS: [&str; 2] = ["txt", "raw"];
/// Beginnings of the names of texts that are about a folder and not for calibration.
const NOTES: [&str; 5] = ["license", "licence", "notice", "readme", "requirements"];
/// Words in names of texts that were kept for evaluation.
const HELD_OUT: [&str; 6] = ["heldout", "test", "valid", "validation", "eval", "evaluation"];

/// Texts of a recipe: how it writes them, and the files.
#[derive(Debug, Default)]
struct Texts {
    written: Vec<String>,
    files: Vec<PathBuf>,
}

impl Texts {
    fn add(&mut self, written: String, files: Vec<PathBuf>) {
        self.written.push(written);
        self.files.extend(files);
    }

    /// Returns the files without the links that lead to them.
    fn resolved(&self) -> BTreeSet<PathBuf> {
        self.files.iter().filter_map(|file| fs::resolve(file).ok()).collect()
    }
}

pub(super) fn run(args: &args::Init, files: &Files, terminal: &Terminal) -> Result<Exit, Failure> {
    let folder = match args.folder.as_path() {
        here if here == Path::new(".") => files.directory().to_owned(),
        other => files.path(other),
    };
    let path = folder.join(init::FILE);
    if fs::exists(&path).unwrap_or(true) {
        let exists = Diagnostic::error(format!("`{}` already exists", path.display())).code("init::exists");
        return Err(Failure::new(
            Exit::Recipe,
            exists.hint("choose another folder: `forge init DIR`"),
        ));
    }
    let finder = Finder::new(files.directory(), &folder);
    let mut problems = Vec::new();
    let model = finder
        .model(args.model.as_deref())
        .map_err(|failure| problems.extend(failure.diagnostics));
    let texts = finder
        .texts(args)
        .map_err(|failure| problems.extend(failure.diagnostics));
    let (Ok((model, quantized)), Ok((corpus, held_out))) = (model, texts) else {
        return Err(Failure {
            diagnostics: problems,
            exit: Exit::Usage,
        });
    };
    let text = init::recipe(&init::InitArgs {
        model: model.clone(),
        corpus: corpus.written.clone(),
        held_out: held_out.written.clone(),
        name: args.name.clone(),
    });
    write(&folder, &path, &text)?;
    if quantized {
        let warning = Diagnostic::warning(format!("`{model}` is quantized already"));
        let hint = "quantize a model in F32, F16 or BF16; or set `allow_requantize = true` in `[promote.mixes]` and accept the loss";
        terminal.diagnostic(&warning.code("init::quantized").hint(hint));
    }
    if let Some(warning) = held_out_warning(&corpus, &held_out) {
        terminal.diagnostic(&warning);
    }
    if terminal.is_json() {
        let written =
            serde_json::json!({ "schema": SCHEMA, "reason": "initialized", "file": path.display().to_string() });
        terminal.data(&format!("{written}\n"));
        return Ok(Exit::Done);
    }
    terminal.line(&format!("wrote {}", path.display()));
    terminal.line(&format!("  model        {model}"));
    terminal.line(&format!("  calibration  {}", corpus.written.join(", ")));
    if !held_out.written.is_empty() {
        terminal.line(&format!("  held-out     {}", held_out.written.join(", ")));
    }
    let recipe = if path == Path::new(init::FILE) {
        String::new()
    } else {
        format!(" {}", path.display())
    };
    terminal.line(&format!(
        "next: `forge plan{recipe}` shows what would run, `forge build{recipe}` runs it"
    ));
    Ok(Exit::Done)
}

fn write(folder: &Path, path: &Path, text: &str) -> Result<(), Failure> {
    let schema = folder.join(init::SCHEMA_FILE);
    let write = |path: &Path, text: &str| fs::write_atomic(path, text.as_bytes(), fs::Durability::Synced);
    let written = fs::create_dir_all(folder)
        .and_then(|()| write(path, text))
        .and_then(|()| {
            // One that is there serves another recipe of the folder, or the user changed it.
            if fs::exists(&schema)? {
                return Ok(());
            }
            write(&schema, init::SCHEMA)
        });
    written.map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))
}

/// Says what is wrong with the text to evaluate on, if anything is.
fn held_out_warning(corpus: &Texts, held_out: &Texts) -> Option<Diagnostic> {
    if held_out.written.is_empty() {
        let warning = Diagnostic::warning("there is no held-out text, so the recipe evaluates nothing")
            .code("init::no-held-out")
            .caused_by("figures on the calibration text would be too good");
        return Some(match corpus.files.as_slice() {
            [only] => {
                let name = only.display();
                warning
                    .hint(
                        "name another text in the recipe (`[corpus.held-out]`), such as `wiki.test.raw` of WikiText-2",
                    )
                    .hint(format!(
                        "or take a part of the calibration text: `split -n l/2 --additional-suffix=.txt {name} part-` \
                         makes `part-aa.txt` to calibrate on and `part-ab.txt` to hold out"
                    ))
            }
            _ => warning.hint(
                "take one of the texts out of `[corpus.calibration]` and name it in `[corpus.held-out]`; \
                 `forge init --held-out FILE` does that",
            ),
        });
    }
    let both: Vec<String> = corpus
        .resolved()
        .intersection(&held_out.resolved())
        .map(|path| path.display().to_string())
        .collect();
    (!both.is_empty()).then(|| {
        let both = prose::names(&both, 3);
        Diagnostic::warning(format!("{both}: calibration text and held-out text are the same"))
            .code("init::held-out")
            .caused_by("figures on the calibration text are too good")
            .hint("name other text in `[corpus.held-out]`")
    })
}

/// What a model file is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ModelFile {
    /// It can be quantized.
    Source,
    /// It is quantized already.
    Quantized,
    /// It is something else, in words.
    Other(String),
}

struct Finder {
    /// The folder that the command line's paths start from, without links.
    base: PathBuf,
    /// The folder of the recipe, without links as far as it exists.
    folder: PathBuf,
}

impl Finder {
    fn new(base: &Path, folder: &Path) -> Self {
        let base = fs::absolute(if base.as_os_str().is_empty() {
            Path::new(".")
        } else {
            base
        });
        let base = fs::resolve(&base).unwrap_or(base);
        let folder = without_dots(&base.join(folder_from(&base, folder)));
        let existing = folder.ancestors().find_map(|at| Some((at, fs::resolve(at).ok()?)));
        let folder = match existing {
            Some((at, real)) => match folder.strip_prefix(at) {
                Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
                _ => real,
            },
            None => folder,
        };
        Self { base, folder }
    }

    /// Returns the folders where files are searched, the recipe's first.
    fn folders(&self) -> Vec<&Path> {
        let mut folders = vec![self.folder.as_path()];
        if self.base != self.folder {
            folders.push(&self.base);
        }
        folders
    }

    fn folder_names(&self) -> String {
        let names = self
            .folders()
            .into_iter()
            .map(|folder| format!("`{}`", folder.display()));
        names.collect::<Vec<_>>().join(" or ")
    }

    /// Returns how the recipe writes the path of a model, and whether that is quantized.
    fn model(&self, given: Option<&str>) -> Result<(String, bool), Failure> {
        match given {
            Some(given) => self.given_model(given),
            None => self.found_model(),
        }
    }

    fn given_model(&self, given: &str) -> Result<(String, bool), Failure> {
        let path = self.base.join(given);
        // Of a split model, any part means the model.
        let first = first_part(&path);
        let given = match (first == path, first.file_name().and_then(|name| name.to_str())) {
            (false, Some(name)) => Path::new(given).with_file_name(name).display().to_string(),
            _ => given.to_owned(),
        };
        if !fs::exists(&first).unwrap_or(false) {
            let missing = Diagnostic::error(format!("there is no model `{given}`")).code("init::no-such-file");
            return Err(refused(
                missing.hint("give the path of a GGUF file from the current folder: `--model FILE`"),
            ));
        }
        match what_is(&first, Named::Explicitly) {
            ModelFile::Source => Ok((self.written(&given), false)),
            ModelFile::Quantized => Ok((self.written(&given), true)),
            ModelFile::Other(what) => {
                let other = Diagnostic::error(format!("`{given}` is {what}, not a model")).code("init::no-model");
                Err(refused(
                    other.hint("give a GGUF model in F32, F16 or BF16: `--model FILE`"),
                ))
            }
        }
    }

    fn found_model(&self) -> Result<(String, bool), Failure> {
        let mut others = Vec::new();
        for folder in self.folders() {
            let mut models = Vec::new();
            for (path, name) in files_in(folder, &["gguf"]) {
                if first_part(&path) != path && fs::exists(&first_part(&path)).unwrap_or(false) {
                    continue;
                }
                match what_is(&path, Named::ByFolder) {
                    ModelFile::Source => models.push((path, name)),
                    ModelFile::Quantized => others.push(format!("`{}` is quantized already", path.display())),
                    ModelFile::Other(what) => others.push(format!("`{}` is {what}", path.display())),
                }
            }
            match models.as_slice() {
                [] => {}
                [(path, _)] => return Ok((self.written(&path.to_string_lossy()), false)),
                several => {
                    let names: Vec<String> = several.iter().map(|(_, name)| name.clone()).collect();
                    let count = prose::count(names.len() as u64, "model");
                    let many = Diagnostic::error(format!("there are {count} in `{}`", folder.display()));
                    return Err(refused(
                        many.code("init::several-models")
                            .caused_by(prose::names(&names, 20))
                            .hint("choose one: `--model FILE`"),
                    ));
                }
            }
        }
        let none = Diagnostic::error(format!("there is no model to quantize in {}", self.folder_names()));
        let none = others
            .into_iter()
            .take(8)
            .fold(none.code("init::no-model"), Diagnostic::caused_by);
        Err(refused(
            none.hint("name a GGUF model in F32, F16 or BF16: `--model FILE`"),
        ))
    }

    /// Returns the calibration text and the held-out text.
    fn texts(&self, args: &args::Init) -> Result<(Texts, Texts), Failure> {
        let mut problems = Vec::new();
        let mut given = |texts: &[String], option: &str| {
            let mut all = Texts::default();
            for text in texts {
                match self.given_text(text, option) {
                    Ok((written, files)) => all.add(written, files),
                    Err(failure) => problems.extend(failure.diagnostics),
                }
            }
            all
        };
        let mut corpus = given(&args.corpus, "--corpus");
        let mut held_out = given(&args.held_out, "--held-out");
        if !problems.is_empty() {
            return Err(Failure {
                diagnostics: problems,
                exit: Exit::Usage,
            });
        }
        for folder in self.folders() {
            if !args.corpus.is_empty() && !args.held_out.is_empty() {
                break;
            }
            let (found, found_held_out) = self.found_texts(folder, &corpus.resolved(), &held_out.resolved());
            let has_any = !found.written.is_empty() || !found_held_out.written.is_empty();
            if args.corpus.is_empty() {
                corpus = found;
            }
            if args.held_out.is_empty() {
                held_out = found_held_out;
            }
            if has_any {
                break;
            }
        }
        if corpus.written.is_empty() {
            let none = Diagnostic::error(format!("there is no calibration text in {}", self.folder_names()))
                .code("init::no-text");
            let none = none.caused_by(if held_out.files.is_empty() {
                "no file ends in `.txt` or `.raw`".to_owned()
            } else {
                format!("{} is for evaluation", held_out.written.join(", "))
            });
            return Err(refused(none.hint(
                "name text like that which the model will be used for: `--corpus FILE`, or `--corpus 'FOLDER/*.txt'`",
            )));
        }
        Ok((corpus, held_out))
    }

    fn given_text(&self, given: &str, option: &str) -> Result<(String, Vec<PathBuf>), Failure> {
        let path = self.base.join(given);
        if fs::list(&path).is_ok() {
            let folder = Diagnostic::error(format!("`{given}` is a folder")).code("init::no-such-file");
            let pattern = Path::new(given).join("*.txt");
            return Err(refused(
                folder.hint(format!("name its texts: `{option} '{}'`", pattern.display())),
            ));
        }
        if fs::exists(&path).unwrap_or(false) {
            return Ok((self.written_pattern(&Pattern::escape(given)), vec![path]));
        }
        let files = if pattern::is_pattern(given) {
            pattern::matches(given, &self.base).unwrap_or_default()
        } else {
            Vec::new()
        };
        if files.is_empty() {
            let missing = Diagnostic::error(format!("there is no text `{given}`")).code("init::no-such-file");
            return Err(refused(missing.hint(format!(
                "give the path of a text from the current folder: `{option} FILE`"
            ))));
        }
        Ok((self.written_pattern(given), files))
    }

    /// Finds the texts of a folder that are not used yet: those for calibration, and those that were held out.
    fn found_texts(&self, folder: &Path, calibration: &BTreeSet<PathBuf>, held: &BTreeSet<PathBuf>) -> (Texts, Texts) {
        let (mut corpus, mut held_out) = (Texts::default(), Texts::default());
        let escaped = Pattern::escape(&folder.to_string_lossy());
        let is_used =
            |path: &PathBuf| fs::resolve(path).is_ok_and(|path| calibration.contains(&path) || held.contains(&path));
        for (name, texts) in [("calibration", &mut corpus), ("held-out", &mut held_out)] {
            for ending in TEXTS {
                let found = files_in(&folder.join(name), &[ending])
                    .into_iter()
                    .map(|(path, _)| path);
                let found: Vec<PathBuf> = found.filter(|path| is_text(path)).collect();
                if !found.is_empty() && !found.iter().any(&is_used) {
                    texts.add(self.written_pattern(&format!("{escaped}/{name}/*.{ending}")), found);
                }
            }
        }
        let (in_calibration, in_held_out) = (!corpus.files.is_empty(), !held_out.files.is_empty());
        for (path, name) in files_in(folder, &TEXTS) {
            if is_used(&path) || is_note(&name) || !is_text(&path) {
                continue;
            }
            let is_held_out = is_held_out(&name);
            if (is_held_out && in_held_out) || (!is_held_out && in_calibration) {
                continue;
            }
            let written = self.written_pattern(&format!("{escaped}/{}", Pattern::escape(&name)));
            let texts = if is_held_out { &mut held_out } else { &mut corpus };
            texts.add(written, vec![path]);
        }
        (corpus, held_out)
    }

    /// Returns a path of the command line as the recipe writes it.
    fn written(&self, path: &str) -> String {
        written(path, &self.base, &self.folder)
    }

    /// Returns a pattern of the command line as the recipe writes it.
    fn written_pattern(&self, pattern: &str) -> String {
        let escaped = |path: &Path| PathBuf::from(Pattern::escape(&path.to_string_lossy()));
        written(pattern, &escaped(&self.base), &escaped(&self.folder))
    }
}

fn refused(diagnostic: Diagnostic) -> Failure {
    Failure::new(Exit::Usage, diagnostic)
}

/// Returns a folder that the command line names, as seen from the folder that its paths start from.
fn folder_from(base: &Path, folder: &Path) -> PathBuf {
    if folder.as_os_str().is_empty() {
        base.to_owned()
    } else {
        fs::absolute(folder)
    }
}

/// Returns a path relative to the recipe's folder. An absolute path that leads out of that folder stays as it is.
fn written(path: &str, base: &Path, folder: &Path) -> String {
    let given = Path::new(path);
    let absolute = without_dots(&base.join(given));
    let is_below = absolute.starts_with(folder) || absolute.starts_with(base);
    if given.is_absolute() && !is_below {
        return path.to_owned();
    }
    relative(folder, &absolute).to_string_lossy().into_owned()
}

/// Removes `.` and `..` from an absolute path. A `..` after a link leads out of the folder that the link leads to.
fn without_dots(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                if fs::what_is(&clean) == Some("a symbolic link")
                    && let Ok(real) = fs::resolve(&clean)
                {
                    clean = real;
                }
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

/// Returns the way from a folder to a path, both absolute and without `..`.
fn relative(folder: &Path, path: &Path) -> PathBuf {
    let (from, to): (Vec<_>, Vec<_>) = (folder.components().collect(), path.components().collect());
    let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let up = from[common..].iter().map(|_| Component::ParentDir);
    up.chain(to[common..].iter().copied()).collect()
}

/// Returns the plain files of a folder with certain endings and names in UTF-8, sorted by name; none if there is no such folder.
fn files_in(folder: &Path, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let entries = fs::list(folder).unwrap_or_default();
    let mut found: Vec<(PathBuf, String)> = entries
        .into_iter()
        .filter_map(|entry| entry.name.into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .map(|name| (folder.join(&name), name))
        .filter(|(path, _)| {
            let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            endings.iter().any(|known| ending.eq_ignore_ascii_case(known))
        })
        .filter(|(path, _)| fs::Stamp::of_plain_file(path).is_ok_and(|stamp| stamp.is_some()))
        .collect();
    found.sort();
    found
}

fn first_part(path: &Path) -> PathBuf {
    container::parts(path)
        .into_iter()
        .next()
        .unwrap_or_else(|| path.to_owned())
}

/// How a model was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// By the user.
    Explicitly,
    /// By being there. Names of sidecars count.
    ByFolder,
}

/// Says what a file is good for, by its content and, if the user did not name it, its name.
fn what_is(path: &Path, named: Named) -> ModelFile {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_ascii_lowercase();
    if named == Named::ByFolder && SIDECARS.iter().any(|start| name.starts_with(start)) {
        return ModelFile::Other("a part that goes with a model (by its name)".to_owned());
    }
    match Content::of(path) {
        Ok(Content::Model) => {}
        Ok(Content::Damaged(error)) => return ModelFile::Other(format!("a damaged GGUF file ({error})")),
        Ok(other) => return ModelFile::Other(other.as_str().to_owned()),
        Err(error) => return ModelFile::Other(format!("a file that cannot be read ({error})")),
    }
    let model = match container::open(path) {
        Ok(model) => model,
        Err(error) => return ModelFile::Other(format!("a damaged GGUF file ({error})")),
    };
    let kind = model.metadata().get_str("general.type").unwrap_or("model");
    let architecture = model.metadata().get_str("general.architecture").unwrap_or_default();
    if kind == "mmproj" || architecture == "clip" {
        ModelFile::Other("a multimodal projector (mmproj)".to_owned())
    } else if kind != "model" {
        ModelFile::Other(format!("a GGUF file of the type `{kind}`"))
    } else if architecture.starts_with("eagle") {
        ModelFile::Other(format!("a draft model ({architecture})"))
    } else if model.tensors().is_empty() {
        ModelFile::Other("a GGUF file without tensors".to_owned())
    } else if model.tensors().iter().any(|tensor| tensor.info.ty.is_quantized()) {
        ModelFile::Quantized
    } else {
        ModelFile::Source
    }
}

fn is_text(path: &Path) -> bool {
    matches!(Content::of(path), Ok(Content::Text | Content::Json))
}

/// Returns whether a text is about a folder, by its name.
fn is_note(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NOTES.iter().any(|start| name.starts_with(start))
}

/// Returns whether a text was kept for evaluation, by the words in its name.
fn is_held_out(name: &str) -> bool {
    let name = name
        .to_ascii_lowercase()
        .replace("held-out", "heldout")
        .replace("held_out", "heldout");
    name.split(|c: char| !c.is_ascii_alphanumeric())
        .any(|word| HELD_OUT.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_from_the_folder_of_the_recipe() {
        let cases = [
            ("m.gguf", "/a/p", "/a/p", "m.gguf"),
            ("./models/../m.gguf", "/a/p", "/a/p", "m.gguf"),
            ("m.gguf", "/a/p", "/a/p/new", "../m.gguf"),
            ("new/m.gguf", "/a/p", "/a/p/new", "m.gguf"),
            ("../m.gguf", "/a/p", "/a/p/x/y", "../../../m.gguf"),
            ("texts/*.txt", "/a/p", "/a/q", "../p/texts/*.txt"),
            ("/a/p/m.gguf", "/a/p", "/a/p/new", "../m.gguf"),
            ("/models/m.gguf", "/a/p", "/a/p", "/models/m.gguf"),
        ];
        for (path, base, folder, expected) in cases {
            assert_eq!(
                written(path, Path::new(base), Path::new(folder)),
                expected,
                "{path} {base} {folder}"
            );
        }
    }

    #[test]
    fn names_say_what_a_text_is_for() {
        for name in [
            "held-out.txt",
            "wiki.test.raw",
            "my_held_out.txt",
            "heldout2.txt.valid.txt",
            "Eval.txt",
        ] {
            assert!(is_held_out(name), "{name}");
        }
        for name in ["prose.txt", "latest.txt", "contest.txt", "calibration.txt"] {
            assert!(!is_held_out(name), "{name}");
        }
        assert!(is_note("README.txt") && is_note("LICENSE.txt") && !is_note("prose.txt"));
    }
}
