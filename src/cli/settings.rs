//! `forge.toml`: the user's own file, and the one next to a recipe, which may come from somebody else.
//!
//! A setting of the recipe's folder takes precedence over the user's. But a folder that came with a download must not choose where
//! forge writes, what it deletes, what it runs or what it signs with. Those settings count only in the user's own file, or in
//! a folder that the user's own file lists under `trusted`.

use std::path::Path;
use std::path::PathBuf;

use crate::cli::Exit;
use crate::cli::Failure;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::environment;
use crate::cli::text_file::read_source;
use crate::engine::EngineSettings;
use crate::engine::default_engine;
use crate::fs;
use crate::settings::CacheSettings;
use crate::settings::ColorChoice;
use crate::settings::PoolSettings;
use crate::settings::Settings;

const FILE: &str = "forge.toml";

/// The settings that apply to a recipe: of the folder's file and of the user's.
#[derive(Debug, Default)]
pub(super) struct Config {
    user: Settings,
    user_dir: Option<PathBuf>,
    folder: Settings,
    folder_dir: PathBuf,
    /// Whether the folder's file may set everything.
    is_trusted: bool,
}

impl Config {
    /// Reads the `forge.toml` in a folder, and the user's own.
    pub(super) fn read(folder: &Path) -> Result<Self, Failure> {
        let user_dir = environment::config_dir();
        let user = user_dir.as_deref().map(read).transpose()?.flatten().unwrap_or_default();
        let is_own = user_dir.as_deref().is_some_and(|own| is_same(own, folder));
        let beside = if is_own { None } else { read(folder)? };
        if let Some(beside) = &beside
            && !beside.trusted.is_empty()
        {
            let misplaced = Diagnostic::error(format!("`{}` sets `trusted`", folder.join(FILE).display()));
            return Err(Failure::new(
                Exit::Environment,
                misplaced.code("settings::untrusted").hint(format!(
                    "only your own settings file can list trusted folders: `{}`",
                    user_file(user_dir.as_deref())
                )),
            ));
        }
        let is_trusted = user.trusted.iter().any(|trusted| {
            environment::expand_home(Path::new(trusted)).is_ok_and(|trusted| is_below(folder, &trusted))
        });
        Ok(Self {
            user,
            user_dir,
            folder: beside.unwrap_or_default(),
            folder_dir: folder.to_owned(),
            is_trusted,
        })
    }

    pub(super) fn color(&self) -> Option<ColorChoice> {
        self.folder.color.or(self.user.color)
    }

    pub(super) fn pools(&self) -> PoolSettings {
        let (folder, user) = (&self.folder.pools, &self.user.pools);
        PoolSettings {
            cpu: folder.cpu.or(user.cpu),
            model: folder.model.or(user.model),
            disk: folder.disk.or(user.disk),
            memory: folder.memory.or(user.memory),
        }
    }

    /// Returns the settings of engines.
    ///
    /// # Errors
    ///
    /// The folder's file sets a path and is not trusted.
    pub(super) fn engines(&self) -> Result<EngineSettings, Failure> {
        let mut engines = self.folder.engine.clone();
        let with_path = engines.iter().find(|(_, values)| values.has_path());
        if let Some((name, _)) = with_path
            && !self.is_trusted
        {
            return Err(self.untrusted(&format!("engine.{name}"), "remove that section"));
        }
        for (name, values) in &self.user.engine {
            engines.entry(name.clone()).or_default().fill_from(values);
        }
        for values in engines.values_mut() {
            values.try_map_paths(expand_home)?;
        }
        Ok(engines)
    }

    /// Returns how many threads a computation is to use, if a file says so.
    pub(super) fn threads(&self) -> Option<u32> {
        let threads = |settings: &Settings| settings.engine.get(default_engine())?.integer("threads");
        threads(&self.folder).or(threads(&self.user)).or(self.pools().cpu)
    }

    /// Returns whether the store borrows tensors from outputs.
    pub(super) fn borrow(&self) -> bool {
        self.folder.cache.borrow.or(self.user.cache.borrow).unwrap_or(true)
    }

    /// Returns where the store is, if a file says so.
    ///
    /// # Errors
    ///
    /// The folder's file says so and is not trusted.
    pub(super) fn cache_dir(&self) -> Result<Option<PathBuf>, Failure> {
        self.path(
            "cache_dir",
            "give `--cache-dir DIR`, which overrides both files",
            |settings| settings.cache_dir.as_deref(),
        )
    }

    /// Returns the secret key that signs, if a file names one.
    ///
    /// # Errors
    ///
    /// The folder's file names one and is not trusted.
    pub(super) fn signing_key(&self) -> Result<Option<PathBuf>, Failure> {
        self.path(
            "signing.key",
            "name the key on the command line, which overrides both files",
            |settings| settings.signing_key.as_deref(),
        )
    }

    /// Returns the most bytes that the store may take after a build, if a file says so.
    ///
    /// # Errors
    ///
    /// The folder's file says so and is not trusted.
    pub(super) fn max_size(&self) -> Result<Option<u64>, Failure> {
        let size = |cache: &CacheSettings| cache.max_size;
        match size(&self.folder.cache) {
            Some(_) if !self.is_trusted => Err(self.untrusted("cache.max-size", "remove that line")),
            Some(bytes) => Ok(Some(bytes)),
            None => Ok(size(&self.user.cache)),
        }
    }

    fn path(
        &self,
        key: &str,
        otherwise: &str,
        of: impl Fn(&Settings) -> Option<&str>,
    ) -> Result<Option<PathBuf>, Failure> {
        match (of(&self.folder), of(&self.user), &self.user_dir) {
            (Some(_), ..) if !self.is_trusted => Err(self.untrusted(key, otherwise)),
            (Some(path), ..) => Ok(Some(self.folder_dir.join(expand_home(Path::new(path))?))),
            (None, Some(path), Some(place)) => Ok(Some(place.join(expand_home(Path::new(path))?))),
            _ => Ok(None),
        }
    }

    fn untrusted(&self, key: &str, otherwise: &str) -> Failure {
        let file = self.folder_dir.join(FILE);
        let folder = real(&self.folder_dir).unwrap_or_else(|| self.folder_dir.clone());
        let error = Diagnostic::error(format!(
            "`{}` sets `{key}`, but its folder is not trusted",
            file.display()
        ))
        .code("settings::untrusted")
        .caused_by("a file next to a recipe may not choose where forge writes, what it deletes or what it signs with")
        .hint(format!(
            "to trust this folder and those below it, write `trusted = [{}]` into `{}`",
            toml::Value::String(folder.display().to_string()),
            user_file(self.user_dir.as_deref())
        ))
        .hint(format!("or set `{key}` there instead, or {otherwise}"));
        Failure::new(Exit::Environment, error)
    }
}

/// Returns a path of a settings file with the home folder for `~`.
fn expand_home(path: &Path) -> Result<PathBuf, Failure> {
    environment::expand_home(path).map_err(|error| {
        let unknown = Diagnostic::from_error(&error).code("environment::home");
        Failure::new(Exit::Environment, unknown.hint("write the path in full, or set `HOME`"))
    })
}

fn user_file(place: Option<&Path>) -> String {
    place.map_or_else(
        || "~/.config/forge/forge.toml".to_owned(),
        |place| place.join(FILE).display().to_string(),
    )
}

fn read(place: &Path) -> Result<Option<Settings>, Failure> {
    let path = place.join(FILE);
    if !fs::exists(&path).unwrap_or(false) {
        return Ok(None);
    }
    let name = path.display().to_string();
    let source = read_source(&path, &name).map_err(|error| {
        Failure::new(
            Exit::Environment,
            Diagnostic::error(format!("can't read `{name}`")).caused_by(error.message),
        )
    })?;
    Settings::parse(&source).map(Some).map_err(|errors| Failure {
        diagnostics: Diagnostic::settings_errors(&errors),
        exit: Exit::Environment,
    })
}

/// Returns the folder itself, however links lead to it.
fn real(folder: &Path) -> Option<PathBuf> {
    fs::resolve(if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    })
    .ok()
}

fn is_same(one: &Path, other: &Path) -> bool {
    real(one).is_some_and(|one| real(other) == Some(one))
}

fn is_below(folder: &Path, trusted: &Path) -> bool {
    match (real(folder), real(trusted)) {
        (Some(folder), Some(trusted)) => folder.starts_with(trusted),
        _ => false,
    }
}
