//! The checked, expanded recipe: what the rest of the program works from. Every default is filled in and every reference
//! resolved; places are kept for messages and are never part of a value's identity.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use crate::recipe::body::*;
pub use crate::recipe::body_policy::*;
use crate::text::Source;
use crate::text::Span;

/// A place in one of a recipe's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub source: Source,
    /// Where in it.
    pub span: Span,
}

impl Place {
    /// Joins a file and a byte range in it.
    pub fn new(source: &Source, span: impl Into<Span>) -> Self {
        Self {
            source: source.clone(),
            span: span.into(),
        }
    }
}

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

/// A section of the resolved recipe: its header words and its keys with their values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResolvedSection {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) entries: Vec<(&'static str, toml::Value)>,
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

/// The name of a `[source.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SourceName(String);

impl SourceName {
    /// Wraps a name that was checked.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for SourceName {
    fn borrow(&self) -> &str {
        &self.0
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

/// What a source file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A model (GGUF; of a split model the first part).
    Model,
    /// An importance matrix (GGUF or the older `.dat`).
    Imatrix,
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

/// What a step does. In the order in which kinds build on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Finds and cuts texts.
    Corpus,
    /// Collects, merges or imports an importance matrix.
    Imatrix,
    /// Fits an importance matrix to a model and says what is missing.
    Join,
    /// Chooses a type for each tensor.
    Policy,
    /// Writes a candidate model.
    Promote,
    /// Compares candidates with a reference on a corpus.
    Eval,
    /// Puts figures of evaluations side by side.
    Metrics,
    /// Requires something of figures.
    Gate,
}

impl StepKind {
    /// All kinds, in order.
    pub const ALL: [Self; 8] = [
        Self::Corpus,
        Self::Imatrix,
        Self::Join,
        Self::Policy,
        Self::Promote,
        Self::Eval,
        Self::Metrics,
        Self::Gate,
    ];

    /// Returns the word in section headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Corpus => "corpus",
            Self::Imatrix => "imatrix",
            Self::Join => "join",
            Self::Policy => "policy",
            Self::Promote => "promote",
            Self::Eval => "eval",
            Self::Metrics => "metrics",
            Self::Gate => "gate",
        }
    }
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The identity of a step: `policy.small`, or `policy.small@Q4_K_M` for one variant of a sweep.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId {
    /// What it does.
    pub kind: StepKind,
    /// The name in its section's header.
    pub name: String,
    /// Which variant of a sweep it is.
    pub variant: Option<String>,
}

impl StepId {
    /// Joins the parts of an id.
    pub fn new(kind: StepKind, name: impl Into<String>, variant: Option<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            variant,
        }
    }

    /// Returns the name that is safe in file names: `small`, `small-Q4_K_M`. For a `promote` step this is the
    /// candidate's name.
    pub fn label(&self) -> String {
        match &self.variant {
            Some(variant) => format!("{}-{variant}", self.name),
            None => self.name.clone(),
        }
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.name)?;
        match &self.variant {
            Some(variant) => write!(f, "@{variant}"),
            None => Ok(()),
        }
    }
}

/// A text that is not a step's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a step")]
pub struct ParseStepIdError(pub String);

impl FromStr for StepId {
    type Err = ParseStepIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseStepIdError(text.to_owned());
        let (kind, rest) = text.split_once('.').ok_or_else(error)?;
        let kind = StepKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or_else(error)?;
        let (name, variant) = match rest.split_once('@') {
            Some((name, variant)) => (name, Some(variant)),
            None => (rest, None),
        };
        let good = |name: &str| crate::recipe::names::name_problem(name).is_none();
        if !good(name) || !variant.is_none_or(good) {
            return Err(error());
        }
        Ok(Self::new(kind, name, variant.map(str::to_owned)))
    }
}

impl Serialize for StepId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
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
