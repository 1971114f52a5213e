//! Settings of engines: what depends on the machine (`[engine.NAME]` in `forge.toml`) and is part of no key.

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;

/// A setting that an engine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its key.
    pub key: &'static str,
    /// What its value is.
    pub kind: SettingKind,
}

/// What the value of a setting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingKind {
    /// A whole number within bounds.
    Integer {
        /// The smallest.
        least: u32,
        /// The largest.
        most: u32,
    },
    /// `true` or `false`.
    Boolean,
    /// A path.
    Path,
}

/// The value of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// A whole number.
    Integer(u32),
    /// `true` or `false`.
    Boolean(bool),
    /// An absolute path.
    Path(PathBuf),
}

/// The settings of one engine, by key. Keys and kinds were checked against the engine's [`Setting`]s.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, SettingValue>);

impl Values {
    /// Sets a value.
    pub fn set(&mut self, key: impl Into<String>, value: SettingValue) {
        self.0.insert(key.into(), value);
    }

    /// Takes over the values of keys that have none yet.
    pub fn fill_from(&mut self, other: &Self) {
        for (key, value) in &other.0 {
            self.0.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }

    /// Says whether any value is a path.
    pub fn has_path(&self) -> bool {
        self.0.values().any(|value| matches!(value, SettingValue::Path(_)))
    }

    /// Replaces every path.
    ///
    /// # Errors
    ///
    /// The first error of `replace`.
    pub fn try_map_paths<E>(&mut self, replace: impl Fn(&Path) -> Result<PathBuf, E>) -> Result<(), E> {
        for value in self.0.values_mut() {
            if let SettingValue::Path(path) = value {
                *path = replace(path)?;
            }
        }
        Ok(())
    }

    /// Returns a number.
    pub fn integer(&self, key: &str) -> Option<u32> {
        match self.0.get(key) {
            Some(SettingValue::Integer(value)) => Some(*value),
            _ => None,
        }
    }

    /// Returns a truth value.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        match self.0.get(key) {
            Some(SettingValue::Boolean(value)) => Some(*value),
            _ => None,
        }
    }
}
