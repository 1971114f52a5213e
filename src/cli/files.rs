//! Finds recipes and settings; the commands that only read or write these.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::Global;
use crate::cli::check;
use crate::cli::check::Problems;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::environment;
use crate::cli::revision::Revision;
use crate::cli::settings::Config;
use crate::cli::show;
use crate::cli::terminal::Terminal;
use crate::cli::text_file::read_source;
use crate::content::Content;
use crate::digest::BlobDigest;
use crate::engine::Cancel;
use crate::engine::EngineSettings;
use crate::engine::Engines;
use crate::fs;
use crate::graph::Graph;
use crate::prose;
use crate::recipe::LoadError;
use crate::recipe::Parsed;
use crate::recipe::Recipe;
use crate::session;
use crate::session::BuildRequest;
use crate::session::NothingToDo;
use crate::session::Runtime;
use crate::session::Session;
use crate::session::SessionError;
use crate::session::overlap;
use crate::store::Store;
use crate::text::Source;
use crate::why::TensorError;

/// A recipe, some of its steps, and how to build them.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The recipe's file, as the command line names it.
    pub(super) recipe: String,
    /// Only these steps and what they need; all, if there are none.
    pub(super) steps: Vec<String>,
    /// Where outputs go, if not next to the recipe.
    pub(super) out: Option<PathBuf>,
    /// How many threads to use, if the command line says so.
    pub(super) jobs: Option<u16>,
}

impl Target {
    /// Returns a recipe as a whole, with its outputs in their usual place.
    pub(super) fn whole(recipe: String, jobs: Option<u16>) -> Self {
        Self {
            recipe,
            steps: Vec::new(),
            out: None,
            jobs,
        }
    }
}

/// Finds files for the commands.
pub(super) struct Files {
    directory: PathBuf,
    cache_dir: Option<PathBuf>,
    /// What was read of a recipe.
    texts: RefCell<Vec<(PathBuf, BlobDigest)>>,
}

impl Files {
    pub(super) fn new(global: &Global) -> Self {
        let directory = global.directory.clone().unwrap_or_default();
        Self {
            directory,
            cache_dir: global.cache_dir.clone(),
            texts: RefCell::default(),
        }
    }

    fn read(&self, path: &str) -> Result<Source, LoadError> {
        self.read_text(&self.directory.join(path), path)
    }

    fn read_text(&self, path: &Path, name: &str) -> Result<Source, LoadError> {
        let source = read_source(path, name)?;
        let text = (path.to_owned(), BlobDigest::of(source.text().as_bytes()));
        self.texts.borrow_mut().push(text);
        Ok(source)
    }

    /// Returns the files that a recipe was read from, and the digest of each; none if it has warnings.
    pub(super) fn texts(&self) -> Vec<(PathBuf, BlobDigest)> {
        self.texts.borrow().clone()
    }

    fn extend(&self, recipe: &str, extended: &str) -> Result<Source, LoadError> {
        let beside = Path::new(recipe).parent().unwrap_or(Path::new("")).join(extended);
        self.read_text(&self.directory.join(&beside), &beside.to_string_lossy())
    }

    /// Reads a recipe; its warnings are printed.
    pub(super) fn recipe(&self, path: &str, terminal: &Terminal) -> Result<Parsed, Failure> {
        let loaded = check::load(
            path,
            &mut |path| self.read(path),
            &mut |recipe, other| self.extend(recipe, other),
            &known_engines(),
        );
        self.loaded(path, loaded, terminal)
    }

    /// Reads a recipe from a file that stands for another of the given name, in whose folder is what it extends.
    pub(super) fn recipe_of(
        &self,
        name: &str,
        path: &Path,
        folder: &Path,
        terminal: &Terminal,
    ) -> Result<Parsed, Failure> {
        let loaded = check::load(
            name,
            &mut |name| read_source(path, name),
            &mut |_, other| {
                let beside = folder.join(other);
                read_source(&beside, &beside.to_string_lossy())
            },
            &known_engines(),
        );
        // git prints this within its own output, where warnings would only disturb.
        match loaded {
            Ok(parsed) => Ok(parsed),
            loaded => self.loaded(name, loaded, terminal),
        }
    }

    /// Reads a recipe of a git revision, with what it extends in that revision.
    pub(super) fn recipe_of_revision(&self, revision: &Revision, terminal: &Terminal) -> Result<Parsed, Failure> {
        let loaded = check::load(
            &revision.word,
            &mut |_| revision.source(),
            &mut |_, other| revision.beside(other),
            &known_engines(),
        );
        self.loaded(&revision.word, loaded, terminal)
    }

    fn loaded(&self, path: &str, loaded: Result<Parsed, Problems>, terminal: &Terminal) -> Result<Parsed, Failure> {
        match loaded {
            Ok(parsed) => {
                if !terminal.quiet {
                    for warning in Diagnostic::recipe_warnings(&parsed.warnings) {
                        terminal.diagnostic(&warning);
                    }
                }
                if !parsed.warnings.is_empty() {
                    // They are to be said each time, so the recipe is to be read each time.
                    self.texts.borrow_mut().clear();
                }
                Ok(parsed)
            }
            Err(Problems { mut diagnostics, count }) => {
                if count > 1 && !terminal.is_json() {
                    diagnostics.push(Diagnostic::error(format!(
                        "{} in `{path}`",
                        prose::count(count as u64, "error")
                    )));
                }
                Err(Failure {
                    diagnostics,
                    exit: Exit::Recipe,
                })
            }
        }
    }

    /// Returns the folder that a recipe's paths start from; empty for the current one.
    pub(super) fn folder(&self, recipe: &str) -> PathBuf {
        self.directory.join(recipe).parent().unwrap_or(Path::new("")).to_owned()
    }

    fn cache_dir(&self, config: &Config) -> Result<PathBuf, Failure> {
        let dir = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => config.cache_dir()?.map_or_else(default_cache_dir, Ok)?,
        };
        check_utf8(
            &dir,
            "the store",
            "choose another folder: `--cache-dir DIR` or `FORGE_CACHE_DIR`",
        )?;
        Ok(dir)
    }

    /// Returns what a build is asked, for [`session::nothing_to_do`].
    pub(super) fn request(&self, target: &Target) -> Option<BuildRequest> {
        Some(BuildRequest {
            recipe: self.directory.join(&target.recipe),
            out: target.out.as_ref().map(|out| self.directory.join(out)),
            steps: target.steps.clone(),
            program: std::env::current_exe().ok()?,
            engines: known_engines(),
        })
    }

    /// Returns what a build shows, if a note says that all of its steps are done, and still holds.
    pub(super) fn nothing_to_do(
        &self,
        target: &Target,
        request: &BuildRequest,
        terminal: &Terminal,
    ) -> Option<NothingToDo> {
        // What is wrong with the settings is said on the long way.
        let config = Config::read(&self.folder(&target.recipe)).ok()?;
        config.max_size().ok()?;
        terminal.set_preferred_color(config.color());
        session::nothing_to_do(&self.cache_dir(&config).ok()?, request)
    }

    /// Opens a session for a recipe.
    pub(super) fn session(
        &self,
        target: &Target,
        terminal: &Terminal,
        cancel: Cancel,
    ) -> Result<(Session, Config), Failure> {
        let recipe = self.recipe(&target.recipe, terminal)?.recipe;
        self.session_of(recipe, target, terminal, cancel)
    }

    /// Opens a session for a recipe that was read from the target's file already.
    pub(super) fn session_of(
        &self,
        recipe: Recipe,
        target: &Target,
        terminal: &Terminal,
        cancel: Cancel,
    ) -> Result<(Session, Config), Failure> {
        let folder = self.folder(&target.recipe);
        let config = Config::read(&folder)?;
        terminal.set_preferred_color(config.color());
        let cache_dir = self.cache_dir(&config)?;
        let out = self.out(&target.recipe, &recipe.name, target.out.as_deref());
        check_utf8(&folder, "the recipe's folder", "rename the folder")?;
        check_utf8(&out, "the output folder", "choose another folder: `--out DIR`")?;
        let runtime = runtime(target.jobs, &config)?;
        let command = command_line();
        let repeat = repeat(&self.directory.join(&target.recipe), &out, &cache_dir, runtime.threads);
        let settings = session::Settings {
            folder,
            out,
            cache_dir,
            runtime,
            command,
            borrow: config.borrow(),
            repeat: Some(repeat),
        };
        let session = Session::open(recipe, settings, &target.steps, cancel);
        Ok((session.map_err(|error| session_failure(&error))?, config))
    }

    /// Returns whether a word of the command line names a recipe: a file with text that is not JSON. For a file that cannot be
    /// read, its name decides which subcommand reports that.
    pub(super) fn is_recipe(&self, word: &str) -> bool {
        match Content::of(&self.path(Path::new(word))) {
            Ok(content) => matches!(content, Content::Text),
            Err(_) => Path::new(word).extension().is_some_and(|extension| extension == "toml"),
        }
    }

    /// Returns where the store is, and the user's settings, for commands that need no recipe: as for a recipe in this folder.
    pub(super) fn cache(&self) -> Result<(PathBuf, Config), Failure> {
        let config = Config::read(&self.directory)?;
        Ok((self.cache_dir(&config)?, config))
    }

    /// Returns where the outputs of the recipe in a file are: where the command line says, else next to it.
    pub(super) fn out(&self, recipe: &str, name: &str, explicit: Option<&Path>) -> PathBuf {
        match explicit {
            Some(out) => self.path(out),
            None => self.folder(recipe).join("out").join(name),
        }
    }

    /// Returns where the store is, for commands that need no recipe: settings are read from the folder that they work in.
    pub(super) fn store_dir(&self, terminal: &Terminal) -> Result<PathBuf, Failure> {
        let config = Config::read(&self.directory)?;
        terminal.set_preferred_color(config.color());
        self.cache_dir(&config)
    }

    /// Returns the store that builds of a recipe use, or the one for another file in its folder, if there is one; it is not made.
    pub(super) fn existing_store(&self, file: &str, terminal: &Terminal) -> Result<Option<Store>, Failure> {
        let config = Config::read(&self.folder(file))?;
        terminal.set_preferred_color(config.color());
        let place = self.cache_dir(&config)?;
        if !fs::exists(&place).unwrap_or(false) {
            return Ok(None);
        }
        Ok(Store::open_read_only(&place).ok())
    }

    /// Opens the store that builds of a recipe use.
    pub(super) fn store_of(&self, recipe: &str, terminal: &Terminal) -> Result<(Store, Config), Failure> {
        let config = Config::read(&self.folder(recipe))?;
        terminal.set_preferred_color(config.color());
        let store = Store::open(&self.cache_dir(&config)?);
        let store = store.map_err(|error| session_failure(&SessionError::Store(error)))?;
        Ok((store, config))
    }

    /// Returns a recipe if it can be read and has no error; nothing is printed.
    pub(super) fn good_recipe(&self, path: &str) -> Option<Recipe> {
        let loaded = check::load(
            path,
            &mut |path| self.read(path),
            &mut |recipe, other| self.extend(recipe, other),
            &known_engines(),
        );
        loaded.ok().map(|parsed| parsed.recipe)
    }

    /// Opens the store, for commands that need no recipe.
    pub(super) fn store(&self, terminal: &Terminal) -> Result<Store, Failure> {
        let place = self.store_dir(terminal)?;
        Store::open(&place).map_err(|error| session_failure(&SessionError::Store(error)))
    }

    /// Returns a path as the command line means it.
    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
    }

    /// Returns the folder that the command line's paths start from; empty for the current one.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the secret key that signs: that of the command line, else that of `forge.toml`.
    pub(super) fn signing_key(&self, asked: Option<&Path>, folder: &Path) -> Result<Option<PathBuf>, Failure> {
        if let Some(asked) = asked {
            return Ok(Some(self.path(asked)));
        }
        Config::read(folder)?.signing_key()
    }

    /// Checks a recipe, and prints what is wrong with it. Returns whether it is fine.
    /// Checks a recipe, and, with `sources`, the files that a build of it would read.
    pub(super) fn check_recipe(&self, recipe: &str, sources: bool, terminal: &Terminal) -> Result<bool, Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut files = |path: &str, parsed: &Parsed| {
            if !sources {
                // A graph that cannot be made was reported when the recipe was read.
                let graph = Graph::of(&parsed.recipe);
                let overlaps = graph.map(|graph| overlap::of_recipe(&parsed.recipe, &graph));
                return Diagnostic::overlaps(&overlaps.unwrap_or_default());
            }
            let target = Target::whole(path.to_owned(), None);
            let session = self.session_of(parsed.recipe.clone(), &target, terminal, Cancel::new());
            match session {
                Ok((session, _)) => Diagnostic::findings(&session.check()),
                Err(failure) => failure.diagnostics,
            }
        };
        let fine = check::run(
            &[recipe.to_owned()],
            &mut |path| self.read(path),
            &mut |recipe, other| self.extend(recipe, other),
            &known_engines(),
            &mut files,
            terminal.messages(),
            &mut out,
            &mut err,
        );
        let fine = fine.map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
        let err = String::from_utf8_lossy(&err);
        if terminal.is_json() {
            terminal.data(&err);
        } else if !err.is_empty() {
            terminal.styled_line(err.trim_end());
        }
        terminal.data(&String::from_utf8_lossy(&out));
        Ok(fine)
    }

    pub(super) fn show(&self, recipe: &str, show: &args::Show, terminal: &Terminal) -> Result<Exit, Failure> {
        let parsed = self.recipe(recipe, terminal)?;
        let format = match show.format {
            _ if terminal.is_json() => show::Format::Json,
            args::ShowFormat::Toml => show::Format::Toml,
            args::ShowFormat::Json => show::Format::Json,
        };
        let mut out = Vec::new();
        show::run(&parsed.recipe, format, &mut out)
            .map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
        terminal.document(&String::from_utf8_lossy(&out));
        Ok(Exit::Done)
    }
}

/// Fails if a path is not UTF-8 when it is made absolute: manifests, run records and the index of borrowed tensors are JSON,
/// which could only name another path.
fn check_utf8(path: &Path, what: &str, hint: &str) -> Result<(), Failure> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let absolute = fs::absolute(path);
    if absolute.to_str().is_some() {
        return Ok(());
    }
    let path = text_of_bytes(absolute.as_os_str());
    let error = Diagnostic::error(format!("the path of {what} is not UTF-8: `{path}`")).code("usage::not-utf8");
    let error = error.caused_by("manifests and run records are UTF-8 text, so they could not contain it");
    Err(Failure::new(Exit::Usage, error.hint(hint)))
}

/// Returns the commands that repeat a part of a build with these settings, from any folder.
fn repeat(recipe: &Path, out: &Path, cache_dir: &Path, threads: usize) -> session::Commands {
    let absolute = |path: &Path| fs::absolute(path).display().to_string();
    let program = std::env::current_exe().map_or_else(|_| "forge".to_owned(), |path| path.display().to_string());
    let command = |subcommand: &str| {
        let words = [
            &program,
            subcommand,
            "--cache-dir",
            &absolute(cache_dir),
            "-j",
            &threads.to_string(),
        ];
        words.map(str::to_owned).to_vec()
    };
    let mut build = command("build");
    build.extend(["--out".to_owned(), absolute(out), absolute(recipe)]);
    let mut exec = command("exec");
    exec.push("--commit".to_owned());
    session::Commands { build, exec }
}

/// Returns the command line for records. JSON holds no bytes that are not UTF-8; those are written as `\xff`.
pub(super) fn command_line() -> Vec<String> {
    std::env::args_os().map(|word| text_of_bytes(&word)).collect()
}

fn text_of_bytes(word: &OsStr) -> String {
    let mut text = String::new();
    for chunk in word.as_encoded_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// Returns how many threads to use, and makes the pool of that size.
pub(super) fn threads(jobs: Option<u16>, config: &Config) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let wanted = jobs.map(usize::from).or(config.threads().map(|n| n as usize));
    let threads = wanted.unwrap_or(cores).max(1);
    // Refused only if a pool was built before, and then that one serves.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    threads
}

/// Returns the engines for commands that run nothing on them.
pub(super) fn known_engines() -> Engines {
    Engines::new(1, &EngineSettings::new())
}

/// Returns what runs actions: the engines with the machine's settings, and worker processes of this program.
pub(super) fn runtime(jobs: Option<u16>, config: &Config) -> Result<Runtime, Failure> {
    let threads = threads(jobs, config);
    Ok(Runtime {
        engines: Engines::new(threads, &config.engines()?),
        threads,
        memory: config.pools().memory,
        worker: program(),
    })
}

/// Returns a path that leads to this very program as long as it runs, even if another file has its name meanwhile.
fn program() -> Option<PathBuf> {
    let own = Path::new("/proc/self/exe");
    if fs::exists(own).unwrap_or(false) {
        return Some(own.to_owned());
    }
    std::env::current_exe().ok()
}

fn default_cache_dir() -> Result<PathBuf, Failure> {
    environment::cache_dir().ok_or_else(|| {
        let unknown = Diagnostic::error("the home folder is unknown, so the store has no default folder")
            .code("environment::home");
        Failure::new(
            Exit::Environment,
            unknown.hint("set `FORGE_CACHE_DIR` or give `--cache-dir DIR`"),
        )
    })
}

/// Returns a tensor's name without `.weight`.
fn short_name(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// Says why a session could not be opened or used.
pub(super) fn session_failure(error: &SessionError) -> Failure {
    match error {
        SessionError::NoSuchStep { wanted, known } => {
            let near = prose::closest(wanted, known.iter().map(String::as_str));
            let missing = Diagnostic::error(error.to_string()).code("usage::no-such-step");
            let hint = near.map(|near| format!("did you mean `{near}`? `forge graph RECIPE` shows all steps"));
            Failure::new(Exit::Usage, hint.into_iter().fold(missing, Diagnostic::hint))
        }
        SessionError::Tensor(tensor) => {
            let missing = Diagnostic::error(tensor.to_string()).code("usage::no-such-tensor");
            let known: &[String] = match tensor {
                TensorError::NoSuchTensor { known, .. } => known,
                _ => &[],
            };
            let wanted = match tensor {
                TensorError::NoSuchTensor { wanted, .. } => wanted.as_str(),
                _ => "",
            };
            let forms = known.iter().flat_map(|name| [name.as_str(), short_name(name)]);
            let near = prose::closest(wanted, forms);
            let near = near.and_then(|near| known.iter().find(|name| *name == near || short_name(name) == near));
            let hint = match (tensor, near) {
                (TensorError::NoCandidate { .. }, _) => {
                    Some("name a `promote` step: `forge why promote.NAME TENSOR`".to_owned())
                }
                (_, near) => near.map(|near| format!("did you mean `{near}`?")),
            };
            Failure::new(Exit::Usage, hint.into_iter().fold(missing, Diagnostic::hint))
        }
        SessionError::Refused(findings) => Failure {
            diagnostics: Diagnostic::findings(findings),
            exit: if findings.overlaps.is_empty() && findings.problems.iter().all(|problem| problem.is_environment) {
                Exit::Environment
            } else {
                Exit::Recipe
            },
        },
        SessionError::Store(_) => {
            let store = Diagnostic::from_error(error).code("environment::store");
            Failure::new(
                Exit::Environment,
                store.hint("choose another folder for the store: `--cache-dir DIR` or `FORGE_CACHE_DIR`"),
            )
        }
        SessionError::NoSpace(no_space) => {
            let mut diagnostic = Diagnostic::from_error(error).code("environment::disk-space");
            for (step, bytes) in no_space.steps.iter().take(8) {
                diagnostic = diagnostic.caused_by(format!("`{step}` would write {}", prose::bytes(*bytes)));
            }
            if no_space.steps.len() > 8 {
                let more = prose::count((no_space.steps.len() - 8) as u64, "step");
                diagnostic = diagnostic.caused_by(format!("and {more} more"));
            }
            if no_space.unknown > 0 {
                let unknown = prose::count(no_space.unknown as u64, "step");
                diagnostic = diagnostic.caused_by(format!("what {unknown} would write is not known yet"));
            }
            Failure::new(
                Exit::Environment,
                diagnostic.hint(if no_space.has_store {
                    "free disk space (`forge cache gc` shows what can be removed from the store), or choose another folder: `--out DIR`, `--cache-dir DIR`"
                } else {
                    "free disk space there, or choose another folder for outputs: `--out DIR`"
                }),
            )
        }
        SessionError::Engine(_) => Failure::new(
            Exit::Environment,
            Diagnostic::from_error(error).code("environment::engine"),
        ),
        SessionError::Engines(problems) => Failure {
            diagnostics: problems.iter().map(Diagnostic::engine).collect(),
            exit: Exit::Recipe,
        },
        SessionError::Graph(_) | SessionError::Step(_) => Failure::new(Exit::Recipe, Diagnostic::from_error(error)),
    }
}
