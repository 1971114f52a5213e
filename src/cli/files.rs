//! Where recipes and settings are, and the verbs that only read or write those.

use std::cell::RefCell;
use std::path::Path;
use std::path::PathBuf;

use etcetera::BaseStrategy as _;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::args;
use crate::cli::args::Global;
use crate::cli::check;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::init;
use crate::cli::show;
use crate::cli::terminal::Terminal;
use crate::digest::BlobDigest;
use crate::engine::Cancel;
use crate::fs;
use crate::recipe::LoadError;
use crate::recipe::Parsed;
use crate::recipe::settings::PoolSettings;
use crate::recipe::settings::Settings;
use crate::session;
use crate::session::Question;
use crate::session::Session;
use crate::session::SessionError;
use crate::text::Source;

/// No recipe or settings file is longer.
const TEXT_CAP: u64 = 4 << 20;

/// Finds files for the verbs.
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

    /// Returns where a path of the command line is.
    pub(super) fn place(&self, path: impl AsRef<Path>) -> PathBuf {
        self.directory.join(path)
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
        let loaded = check::load(path, &mut |path| self.read(path), &mut |recipe, other| {
            self.extend(recipe, other)
        });
        match loaded {
            Ok(parsed) => {
                if !terminal.quiet {
                    for warning in &parsed.warnings {
                        terminal.diagnostic(&Diagnostic::recipe_warning(warning));
                    }
                }
                if !parsed.warnings.is_empty() {
                    // They are to be said each time, so the recipe is to be read each time.
                    self.texts.borrow_mut().clear();
                }
                Ok(parsed)
            }
            Err(mut diagnostics) => {
                if diagnostics.len() > 1 && !terminal.is_json() {
                    diagnostics.push(Diagnostic::error(format!("{} errors in `{path}`", diagnostics.len())));
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

    fn cache_dir(&self, settings: &Settings, place: &Path) -> Result<PathBuf, Failure> {
        match (&self.cache_dir, &settings.cache_dir) {
            (Some(dir), _) => Ok(dir.clone()),
            (None, Some(dir)) => Ok(place.join(dir)),
            (None, None) => default_cache_dir(),
        }
    }

    /// Returns what a build is asked, for [`session::nothing_to_do`].
    pub(super) fn question(&self, target: &args::Target) -> Option<Question> {
        Some(Question {
            recipe: self.directory.join(&target.recipe),
            out: target.out.as_ref().map(|out| self.directory.join(out)),
            steps: target.steps.clone(),
            program: std::env::current_exe().ok()?,
        })
    }

    /// Returns how many steps of a build are done, if a note says that all are, and still holds.
    pub(super) fn nothing_to_do(
        &self,
        target: &args::Target,
        question: &Question,
        terminal: &Terminal,
    ) -> Option<usize> {
        // What is wrong with the settings is said on the long way.
        let (settings, place) = Self::settings(&self.folder(&target.recipe)).ok()?;
        terminal.prefer(settings.color);
        session::nothing_to_do(&self.cache_dir(&settings, &place).ok()?, question)
    }

    /// Opens a session for a recipe.
    pub(super) fn session(
        &self,
        target: &args::Target,
        terminal: &Terminal,
        cancel: Cancel,
    ) -> Result<(Session, PoolSettings), Failure> {
        let parsed = self.recipe(&target.recipe, terminal)?;
        let folder = self.folder(&target.recipe);
        let (settings, place) = Self::settings(&folder)?;
        terminal.prefer(settings.color);
        let cache_dir = self.cache_dir(&settings, &place)?;
        let out = match &target.out {
            Some(out) => self.directory.join(out),
            None => folder.join("out").join(&parsed.recipe.name),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let wanted = target.jobs.map(usize::from).or(settings
            .engine
            .embedded_threads
            .or(settings.pools.cpu)
            .map(|n| n as usize));
        let threads = wanted.unwrap_or(cores).max(1);
        // Refused only if a pool was built before, and then that one serves.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        let pools = settings.pools;
        let command = std::env::args().collect();
        let settings = session::Settings {
            folder,
            out,
            cache_dir,
            threads,
            command,
        };
        let session = Session::open(parsed.recipe, settings, &target.steps, cancel);
        Ok((session.map_err(|error| session_failure(&error))?, pools))
    }

    /// Reads `forge.toml`: beside the recipe, else in the user's configuration. Returns where it was, too.
    fn settings(folder: &Path) -> Result<(Settings, PathBuf), Failure> {
        let user = etcetera::choose_base_strategy()
            .ok()
            .map(|base| base.config_dir().join("forge"));
        for place in [Some(folder.to_owned()), user].into_iter().flatten() {
            let path = place.join("forge.toml");
            if !fs::exists(&path).unwrap_or(false) {
                continue;
            }
            let name = path.display().to_string();
            let source = read_source(&path, &name).map_err(|error| {
                Failure::new(
                    Exit::Environment,
                    Diagnostic::error(format!("can't read `{name}`")).caused_by(error.message),
                )
            })?;
            return match Settings::parse(&source) {
                Ok(settings) => Ok((settings, place)),
                Err(errors) => Err(Failure {
                    diagnostics: errors.iter().map(Diagnostic::settings).collect(),
                    exit: Exit::Environment,
                }),
            };
        }
        Ok((Settings::default(), folder.to_owned()))
    }

    pub(super) fn init(&self, init: &args::Init, terminal: &Terminal) -> Result<Exit, Failure> {
        let text = init::recipe(&init::InitArgs {
            model: init.model.clone(),
            corpus: init.corpus.clone(),
            name: init.name.clone(),
        });
        let folder = match init.directory.as_path() {
            here if here == Path::new(".") => self.directory.clone(),
            other => self.directory.join(other),
        };
        let path = folder.join(init::FILE);
        if fs::exists(&path).unwrap_or(true) {
            let exists = Diagnostic::error(format!("`{}` is there already", path.display())).code("init::exists");
            return Err(Failure::new(
                Exit::Recipe,
                exists.hint("give another folder: `forge init DIR`"),
            ));
        }
        let written =
            fs::create_dir_all(&folder).and_then(|()| fs::write_atomic(&path, text.as_bytes(), fs::Durability::Synced));
        written.map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
        if terminal.is_json() {
            let written =
                serde_json::json!({ "schema": 1, "reason": "initialized", "file": path.display().to_string() });
            terminal.data(&format!("{written}\n"));
        } else {
            terminal.line(&format!("wrote {}", path.display()));
            terminal.line("next: set the paths in it, then `forge check` and `forge build`");
        }
        Ok(Exit::Done)
    }

    pub(super) fn check(&self, check: &args::Check, terminal: &Terminal) -> Result<Exit, Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let fine = check::run(
            &check.recipes,
            &mut |path| self.read(path),
            &mut |recipe, other| self.extend(recipe, other),
            terminal.messages(),
            &mut out,
            &mut err,
        );
        let fine = fine.map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
        let err = String::from_utf8_lossy(&err);
        if terminal.is_json() {
            terminal.data(&err);
        } else if !err.is_empty() {
            terminal.line(err.trim_end());
        }
        terminal.data(&String::from_utf8_lossy(&out));
        Ok(if fine { Exit::Done } else { Exit::Recipe })
    }

    pub(super) fn show(&self, show: &args::Show, terminal: &Terminal) -> Result<Exit, Failure> {
        let parsed = self.recipe(&show.recipe, terminal)?;
        let format = match show.format {
            _ if terminal.is_json() => show::Format::Json,
            args::ShowFormat::Toml => show::Format::Toml,
            args::ShowFormat::Json => show::Format::Json,
        };
        let mut out = Vec::new();
        show::run(&parsed.recipe, format, &mut out)
            .map_err(|error| Failure::new(Exit::Environment, Diagnostic::from_error(&error)))?;
        terminal.data(&String::from_utf8_lossy(&out));
        Ok(Exit::Done)
    }
}

fn read_source(path: &Path, name: &str) -> Result<Source, LoadError> {
    let bytes = fs::read_small(path, TEXT_CAP).map_err(|error| LoadError {
        message: if error.is_not_found() {
            "there is no such file".to_owned()
        } else {
            error.to_string()
        },
    })?;
    let text = String::from_utf8(bytes).map_err(|error| LoadError {
        message: format!("it is not UTF-8: byte {} is wrong", error.utf8_error().valid_up_to()),
    })?;
    Ok(Source::new(name, text))
}

fn default_cache_dir() -> Result<PathBuf, Failure> {
    let base = etcetera::choose_base_strategy().map_err(|_| {
        let unknown = Diagnostic::error("no home folder is known, so the store has no place").code("environment::home");
        Failure::new(
            Exit::Environment,
            unknown.hint("set `FORGE_CACHE_DIR` or give `--cache-dir DIR`"),
        )
    })?;
    Ok(base.cache_dir().join("forge"))
}

/// Says why a session could not be opened or used.
pub(super) fn session_failure(error: &SessionError) -> Failure {
    match error {
        SessionError::NoSuchStep { wanted, known } => {
            let near = known
                .iter()
                .min_by_key(|name| strsim::damerau_levenshtein(name, wanted));
            let missing = Diagnostic::error(error.to_string()).code("usage::no-such-step");
            let hint = near.map(|near| format!("did you mean `{near}`? `forge graph RECIPE` shows all steps"));
            Failure::new(Exit::Usage, hint.into_iter().fold(missing, Diagnostic::hint))
        }
        SessionError::Sources { problems } => Failure {
            diagnostics: problems
                .iter()
                .map(|problem| Diagnostic::error(problem.clone()).code("build::source"))
                .collect(),
            exit: Exit::Recipe,
        },
        SessionError::Store(_) => {
            let store = Diagnostic::from_error(error).code("environment::store");
            Failure::new(
                Exit::Environment,
                store.hint("another place for the store: `--cache-dir DIR` or `FORGE_CACHE_DIR`"),
            )
        }
        SessionError::Output(_) => {
            let out = Diagnostic::from_error(error).code("environment::output");
            Failure::new(Exit::Environment, out.hint("another place for outputs: `--out DIR`"))
        }
        SessionError::Engine(_) => Failure::new(
            Exit::Environment,
            Diagnostic::from_error(error).code("environment::engine"),
        ),
        SessionError::Graph(_) | SessionError::Step(_) => Failure::new(Exit::Recipe, Diagnostic::from_error(error)),
    }
}
