//! A user's `forge.toml`: what depends on the machine and never belongs in a recipe.

// Errors are rare and carry what a diagnostic needs; a smaller one would cost an allocation for each of its parts.
#![allow(clippy::result_large_err)]

use std::path::Path;

use serde::Serialize;

use crate::engine;
use crate::engine::EngineSettings;
use crate::engine::SettingKind;
use crate::engine::SettingValue;
use crate::engine::Values;
use crate::quantity::Quantity;
use crate::recipe::model::Place;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::raw;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::text::Source;

/// Settings of a machine. What is absent is decided by the program.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Where the store is; relative to the file that says so.
    pub cache_dir: Option<String>,
    /// Whether output has colour.
    pub color: Option<ColorChoice>,
    /// Engines.
    #[serde(skip)]
    pub engine: EngineSettings,
    /// What builds may use at once.
    pub pools: PoolSettings,
    /// How the store is kept.
    pub cache: CacheSettings,
    /// The secret key that signs manifests; relative to the file that says so.
    pub signing_key: Option<String>,
    /// Folders whose own `forge.toml`, and those below, may set everything. Absolute paths, or below `~`. A reader of paths here replaces `~`
    /// with the home folder.
    pub trusted: Vec<String>,
}

/// `[cache]`: how the store is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CacheSettings {
    /// The maximum size of the store after a build, in bytes.
    pub max_size: Option<u64>,
    /// Whether the store borrows tensors from outputs (default: yes).
    pub borrow: Option<bool>,
}

/// When output has colour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ColorChoice {
    /// On a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// `[pools]`: how much runs at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PoolSettings {
    /// Threads of one step.
    pub cpu: Option<u32>,
    /// Steps that hold a model in memory.
    pub model: Option<u32>,
    /// Steps that mostly read and write files.
    pub disk: Option<u32>,
    /// Bytes of memory that one computation may take beside its model.
    pub memory: Option<u64>,
}

impl Settings {
    /// Reads a settings file.
    ///
    /// # Errors
    ///
    /// Everything that is wrong, in the order of the text.
    pub fn parse(source: &Source) -> Result<Self, Vec<RecipeError>> {
        let entries = raw::read(source, 0)?;
        let mut errors = Vec::new();
        let mut settings = Self::default();
        let head = Place::new(source, 0..0);
        let mut reader = Reader::new("a settings file".to_owned(), head, ("", ""), &entries, &mut errors);
        settings.cache_dir = reader.read("cache_dir", path);
        let colors = [
            ("auto", ColorChoice::Auto),
            ("always", ColorChoice::Always),
            ("never", ColorChoice::Never),
        ];
        settings.color = reader.read("color", |field| field.word(&colors, &[]));
        let trusted = reader.list("trusted", "a list of folders", folder);
        settings.trusted = trusted.into_iter().flatten().map(|(folder, _)| folder).collect();
        let engine = reader.read("engine", table);
        let pools = reader.read("pools", table);
        let cache = reader.read("cache", table);
        let signing = reader.read("signing", table);
        reader.finish();
        if let Some((place, entries)) = signing {
            let mut reader = Reader::new("`signing`".to_owned(), place, ("", ""), entries, &mut errors);
            settings.signing_key = reader.read("key", path);
            reader.finish();
        }
        if let Some((place, entries)) = engine {
            settings.engine = engines(place, entries, &mut errors);
        }
        if let Some((place, entries)) = pools {
            let mut reader = Reader::new("`pools`".to_owned(), place, ("", ""), entries, &mut errors);
            settings.pools.cpu = reader.read("cpu", |field| field.integer32(1..=65_536));
            settings.pools.model = reader.read("model", |field| field.integer32(1..=1024));
            settings.pools.disk = reader.read("disk", |field| field.integer32(1..=1024));
            settings.pools.memory = reader.read("memory", bytes);
            reader.finish();
        }
        if let Some((place, entries)) = cache {
            let mut reader = Reader::new("`cache`".to_owned(), place, ("", ""), entries, &mut errors);
            settings.cache.max_size = reader.read("max-size", bytes);
            settings.cache.borrow = reader.read("borrow", |field| field.boolean());
            reader.finish();
        }
        if errors.is_empty() {
            return Ok(settings);
        }
        errors.sort_by_key(|error| error.place().span);
        Err(errors)
    }
}

/// Reads `[engine.NAME]`: the settings that each engine of this program has.
fn engines(place: Place, entries: &[RawEntry], errors: &mut Vec<RecipeError>) -> EngineSettings {
    let mut reader = Reader::new("`engine`".to_owned(), place, ("", ""), entries, errors);
    let tables: Vec<_> = engine::built_in()
        .map(|(name, settings)| (name, settings, reader.read(name, table)))
        .collect();
    reader.finish();
    let mut found = EngineSettings::new();
    for (name, settings, table) in tables {
        let Some((place, entries)) = table else { continue };
        let mut reader = Reader::new(format!("`engine.{name}`"), place, ("", ""), entries, errors);
        let mut values = Values::default();
        for setting in settings {
            if let Some(value) = reader.read(setting.key, |field| value(field, setting.kind)) {
                values.set(setting.key, value);
            }
        }
        reader.finish();
        found.insert(name.to_owned(), values);
    }
    found
}

fn value(field: Field<'_>, kind: SettingKind) -> Result<SettingValue, RecipeError> {
    Ok(match kind {
        SettingKind::Integer { least, most } => SettingValue::Integer(field.integer32(least..=most)?),
        SettingKind::Boolean => SettingValue::Boolean(field.boolean()?),
        SettingKind::Path => SettingValue::Path(path(field)?.into()),
    })
}

fn table(field: Field<'_>) -> Result<(Place, &[RawEntry]), RecipeError> {
    match &field.raw.value {
        RawValue::Table(entries) => Ok((field.place(), entries)),
        _ => Err(field.wrong_type("a table")),
    }
}

fn bytes(field: Field<'_>) -> Result<u64, RecipeError> {
    match field.quantity("a number of bytes", "200 GB")? {
        Quantity::Bytes(bytes) => Ok(bytes),
        _ => Err(field.wrong_type("a number of bytes, like `200 GB`")),
    }
}

fn folder(field: Field<'_>) -> Result<String, RecipeError> {
    let folder = path(field)?;
    let path = Path::new(&folder);
    if path.is_absolute() || path.starts_with("~") {
        Ok(folder)
    } else {
        Err(field.wrong_type("an absolute path, or one that starts with `~/`"))
    }
}

fn path(field: Field<'_>) -> Result<String, RecipeError> {
    crate::recipe::read::path(field, &[]).map(|path| path.resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, Vec<RecipeError>> {
        Settings::parse(&Source::new("forge.toml", text))
    }

    #[test]
    fn all_settings_are_read() {
        let text = "cache_dir = \"/big/cache\"\ntrusted = [\"/home/me/models\"]\ncolor = \"never\"\n[engine.embedded]\nthreads = 8\n\
                    worker = false\n[pools]\ncpu = 16\nmodel = 2\ndisk = 4\nmemory = \"8 GB\"\n[cache]\nmax-size = \"200 GB\"\nborrow = false\n\n\
                    [signing]\nkey = \"keys/me.pem\"\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.cache_dir.as_deref(), Some("/big/cache"));
        assert_eq!(settings.color, Some(ColorChoice::Never));
        let engine = &settings.engine["embedded"];
        assert_eq!(
            (engine.integer("threads"), engine.boolean("worker")),
            (Some(8), Some(false))
        );
        assert_eq!(settings.signing_key.as_deref(), Some("keys/me.pem"));
        assert_eq!(settings.trusted, ["/home/me/models"]);
        let pools = PoolSettings {
            cpu: Some(16),
            model: Some(2),
            disk: Some(4),
            memory: Some(8_000_000_000),
        };
        assert_eq!(settings.pools, pools);
        assert_eq!(settings.cache.max_size, Some(200_000_000_000));
        assert_eq!(settings.cache.borrow, Some(false));
        assert_eq!(parse("").unwrap(), Settings::default());
    }

    #[test]
    fn a_trusted_folder_is_absolute() {
        for text in [
            "trusted = [\"models\"]",
            "trusted = [\"~other/models\"]",
            "trusted = \"/models\"",
        ] {
            let errors = parse(text).unwrap_err();
            assert_eq!(
                errors.iter().map(RecipeError::code).collect::<Vec<_>>(),
                ["wrong-type"],
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_an_engine_and_a_setting_that_do_not_exist() {
        let text = "[engine.embeded]\nthreads = 8\n[engine.embedded]\nthread = 8\nworker = 1\n";
        let codes: Vec<_> = parse(text).unwrap_err().iter().map(RecipeError::code).collect();
        assert_eq!(codes, ["unknown-key", "unknown-key", "wrong-type"]);
    }

    #[test]
    fn all_errors_come_at_once_in_order() {
        let errors = parse(
            "colour = \"auto\"\n[engine]\nembedded = 3\n[pools]\nram = 24\ncpu = 0\n[cache]\nmax-size = \"4 bpw\"\n",
        );
        let codes: Vec<_> = errors.unwrap_err().iter().map(RecipeError::code).collect();
        let expected = ["unknown-key", "wrong-type", "unknown-key", "out-of-range", "wrong-type"];
        assert_eq!(codes, expected);
    }
}
