//! The engines that this program has. A new engine is one file that implements [`Engine`] and one line in [`BUILT_IN`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::OnceLock;

use super::Engine;
use super::Identity;
use super::Role;
use super::Setting;
use super::Values;
use super::embedded;
use crate::digest::Fingerprint;

/// An engine that comes with the program.
struct BuiltIn {
    name: &'static str,
    settings: &'static [Setting],
    /// Makes the engine for a number of threads and the machine's settings.
    new: fn(usize, &Values) -> Arc<dyn Engine>,
}

/// The engines that come with the program. The first is the one that a recipe gets that names none.
const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: embedded::identity::NAME,
    settings: embedded::adapter::SETTINGS,
    new: embedded::adapter::new,
}];

/// The settings of engines, by engine.
pub type EngineSettings = BTreeMap<String, Values>;

/// Returns the names of the engines that come with the program, and the settings that each has.
pub fn built_in() -> impl Iterator<Item = (&'static str, &'static [Setting])> {
    BUILT_IN.iter().map(|engine| (engine.name, engine.settings))
}

/// Returns the engine that a recipe gets that names none.
pub fn default_engine() -> &'static str {
    BUILT_IN[0].name
}

/// An engine with its identities, which are worked out when they are first asked for.
#[derive(Debug)]
struct Registered {
    engine: Arc<dyn Engine>,
    identities: [OnceLock<(Identity, Fingerprint)>; 2],
}

impl Registered {
    fn identity(&self, role: Role) -> &(Identity, Fingerprint) {
        self.identities[role as usize].get_or_init(|| {
            let identity = self.engine.identity(role);
            let fingerprint = identity.fingerprint();
            (identity, fingerprint)
        })
    }
}

/// Engines by name. Cheap to clone; clones share the engines.
#[derive(Debug, Clone)]
pub struct Engines(Vec<Arc<Registered>>);

impl Engines {
    /// Makes the engines that come with the program ready to use `threads` threads.
    pub fn new(threads: usize, settings: &EngineSettings) -> Self {
        let none = Values::default();
        let made = BUILT_IN
            .iter()
            .map(|engine| (engine.new)(threads, settings.get(engine.name).unwrap_or(&none)));
        made.fold(Self(Vec::new()), Engines::with)
    }

    /// Adds an engine, in place of one with the same name.
    pub fn with(mut self, engine: Arc<dyn Engine>) -> Self {
        self.0.retain(|known| known.engine.name() != engine.name());
        self.0.push(Arc::new(Registered {
            engine,
            identities: [const { OnceLock::new() }; 2],
        }));
        self
    }

    fn find(&self, name: &str) -> Option<&Registered> {
        self.0.iter().find(|known| known.engine.name() == name).map(Arc::as_ref)
    }

    /// Returns an engine.
    pub fn get(&self, name: &str) -> Option<&dyn Engine> {
        self.find(name).map(|known| known.engine.as_ref())
    }

    /// Returns the names of all engines.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|known| known.engine.name())
    }

    /// Returns all engines.
    pub fn all(&self) -> impl Iterator<Item = &dyn Engine> {
        self.0.iter().map(|known| known.engine.as_ref())
    }

    /// Returns the identity of a role of an engine.
    pub fn identity(&self, name: &str, role: Role) -> Option<&Identity> {
        self.find(name).map(|known| &known.identity(role).0)
    }

    /// Returns the fingerprint of a role of an engine.
    pub fn fingerprint(&self, name: &str, role: Role) -> Option<Fingerprint> {
        self.find(name).map(|known| known.identity(role).1)
    }

    /// Returns the identity, of any engine in any role, that has a fingerprint.
    pub fn identity_of(&self, fingerprint: &Fingerprint) -> Option<&Identity> {
        let all = self
            .0
            .iter()
            .flat_map(|known| Role::ALL.map(|role| known.identity(role)));
        let mut found = all.filter(|(_, known)| known == fingerprint);
        found.next().map(|(identity, _)| identity)
    }

    /// Returns a text that differs whenever the identity of any engine may differ, and costs microseconds.
    pub fn quick_identity(&self) -> String {
        let all = self
            .all()
            .map(|engine| format!("{}={}", engine.name(), engine.quick_identity()));
        all.collect::<Vec<_>>().join("\n")
    }

    /// Returns the engine whose identity in a role has a fingerprint.
    pub fn by_fingerprint(&self, role: Role, fingerprint: &Fingerprint) -> Option<&dyn Engine> {
        let found = self.0.iter().find(|known| known.identity(role).1 == *fingerprint);
        found.map(|known| known.engine.as_ref())
    }
}
