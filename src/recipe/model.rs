//! The checked, expanded recipe: what the rest of the program works from. Every default is filled in and every reference
//! resolved; places are kept for messages and are never part of a value's identity.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

pub use crate::method::Budget;
pub use crate::method::Method;
pub use crate::method::SizeOf;
pub use crate::recipe::body::*;
pub use crate::syntax::id::*;
pub use crate::syntax::pattern::Pattern;

/// A recipe, checked and expanded.
///
/// Two recipes are equal when they ask for the same work: places, comments, the order of keys and sections and the
/// split over files (`extends`) do not count.
#[derive(Debug, Clone, Serialize)]
pub struct Recipe {
    /// The recipe's name: the prefix of what it writes. Safe as a file name.
    pub name: String,
    /// One line for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What runs the model's mathematics.
    pub engine: EngineRef,
    /// The files that the recipe starts from, by name.
    pub sources: BTreeMap<SourceName, SourceDef>,
    /// All steps; a step stands after everything that it refers to.
    pub steps: Vec<Step>,
    /// The sections with every default filled in and sweeps as lists, for [`Recipe::to_toml`].
    #[serde(skip)]
    pub(crate) resolved: Vec<ResolvedSection>,
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.description == other.description
            && self.engine == other.engine
            && self.sources == other.sources
            && self.steps == other.steps
    }
}

impl Recipe {
    /// Returns the step with this id.
    pub fn step(&self, id: &StepId) -> Option<&Step> {
        self.steps.iter().find(|step| step.id == *id)
    }

    /// Returns the candidates (`promote` steps), in the order of their names and of their sweeps.
    pub fn candidates(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.id.kind == StepKind::Promote)
    }

    /// Returns the steps that a name on the command line may mean: a full id (`policy.small@Q4_K_M`), `kind.name` (all
    /// variants), or the label of one step or the name of all variants of a step of any kind.
    pub fn find(&self, name: &str) -> Vec<&Step> {
        let exact: Vec<&Step> = self
            .steps
            .iter()
            .filter(|step| step.id.to_string() == name || format!("{}.{}", step.id.kind.as_str(), step.id.name) == name)
            .collect();
        if !exact.is_empty() {
            return exact;
        }
        self.steps
            .iter()
            .filter(|step| step.id.label() == name || step.id.name == name)
            .collect()
    }
}

/// The engine that a recipe or a step names. Whether there is such an engine, and whether it can do what it is asked for, is
/// checked against the engines that the program has. Equal when the names are.
#[derive(Debug, Clone)]
pub struct EngineRef {
    /// The engine's name.
    pub name: String,
    /// Where it is named; the start of the recipe, if it names none.
    pub origin: Place,
}

impl EngineRef {
    /// The engine of a recipe that names none.
    pub const DEFAULT: &'static str = "embedded";
}

impl PartialEq for EngineRef {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Serialize for EngineRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.name)
    }
}

/// A file that a recipe starts from.
#[derive(Debug, Clone, Serialize)]
pub struct SourceDef {
    /// Its name in the recipe.
    pub name: SourceName,
    /// Where it is.
    pub path: RecipePath,
    /// What it holds.
    pub kind: SourceKind,
    /// The name in the section's header.
    #[serde(skip)]
    pub origin: Place,
}

impl PartialEq for SourceDef {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.path == other.path && self.kind == other.kind
    }
}

/// A path or glob pattern as a recipe states it. Equal when both mean the same path.
#[derive(Debug, Clone)]
pub struct RecipePath {
    /// As the recipe has it, relative to the file that states it.
    pub written: String,
    /// Relative to the directory of the recipe that was asked for (or absolute, where the recipe says so).
    pub resolved: String,
    /// Where it stands.
    pub origin: Place,
}

impl PartialEq for RecipePath {
    fn eq(&self, other: &Self) -> bool {
        self.resolved == other.resolved
    }
}

impl Serialize for RecipePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.resolved)
    }
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Who it is.
    pub id: StepId,
    /// What it is to do.
    pub body: StepBody,
    /// The engine, if it is not the recipe's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineRef>,
    /// The name in its section's header; for an implicit step, of the section that asked for it.
    #[serde(skip)]
    pub origin: Place,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.body == other.body && self.engine == other.engine
    }
}
