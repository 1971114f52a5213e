//! Places in a recipe's files, and the names of its sections and steps.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::syntax::names::name_problem;
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

/// A section of the resolved recipe: its header words and its keys with their values.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ResolvedSection {
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    pub(crate) entries: Vec<(&'static str, toml::Value)>,
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

/// What a source file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// A model (GGUF; of a split model the first part).
    Model,
    /// An importance matrix (GGUF or the older `.dat`).
    Imatrix,
}

/// What a step does. In the order in which kinds build on each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// Finds and cuts texts.
    Corpus,
    /// Collects second moments of inputs.
    Moments,
    /// Collects, merges, imports or derives an importance matrix.
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
    pub const ALL: [Self; 9] = [
        Self::Corpus,
        Self::Moments,
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
            Self::Moments => "moments",
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
        let good = |name: &str| name_problem(name).is_none();
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
