//! The checked, expanded recipe: what the rest of the program works from. Every default is filled in and every reference
//! resolved; places are kept for messages and are never part of a value's identity.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::recipe::names::Mix;
use crate::recipe::names::TypeName;
use crate::recipe::quantity::Decimal;
use crate::recipe::requirement::Requirement;
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
    pub engine: Engine,
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

/// What runs the model's mathematics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// llama.cpp, linked in.
    #[default]
    Embedded,
}

impl Engine {
    /// Returns the word that recipes use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
        }
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
    /// The name in its section's header; for an implicit step, of the section that asked for it.
    #[serde(skip)]
    pub origin: Place,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.body == other.body
    }
}

/// What a step is to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StepBody {
    /// `[corpus.NAME]`
    Corpus(CorpusStep),
    /// `[imatrix.NAME]`
    Imatrix(ImatrixStep),
    /// `[join.NAME]`
    Join(JoinStep),
    /// `[policy.NAME]`
    Policy(PolicyStep),
    /// `[promote.NAME]`
    Promote(PromoteStep),
    /// `[eval.NAME]`
    Eval(EvalStep),
    /// `[metrics.NAME]`
    Metrics(MetricsStep),
    /// `[gate.NAME]`
    Gate(GateStep),
}

impl StepBody {
    /// Returns the steps that this one refers to, in the order of its fields.
    pub fn inputs(&self) -> Vec<&StepId> {
        match self {
            Self::Corpus(_) | Self::Imatrix(ImatrixStep::Import { .. }) => Vec::new(),
            Self::Imatrix(ImatrixStep::Collect(collect)) => vec![&collect.corpus],
            Self::Imatrix(ImatrixStep::Merge { inputs, .. }) => inputs.iter().map(|input| &input.imatrix).collect(),
            Self::Join(join) => vec![&join.imatrix],
            Self::Policy(policy) => policy.join.iter().collect(),
            Self::Promote(promote) => vec![&promote.policy],
            Self::Eval(eval) => eval.candidates.iter().chain([&eval.corpus]).collect(),
            Self::Metrics(metrics) => metrics.evals.iter().collect(),
            Self::Gate(gate) => [&gate.metrics]
                .into_iter()
                .chain(&gate.candidates)
                .chain(&gate.baseline)
                .collect(),
        }
    }

    /// Returns the sources that this step itself refers to.
    pub fn sources(&self) -> Vec<&SourceName> {
        match self {
            Self::Imatrix(ImatrixStep::Collect(collect)) => vec![&collect.model],
            Self::Imatrix(ImatrixStep::Import { source }) => vec![source],
            Self::Join(join) => vec![&join.model],
            Self::Policy(policy) => vec![&policy.model],
            Self::Eval(eval) => vec![&eval.reference],
            _ => Vec::new(),
        }
    }
}

/// Texts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorpusStep {
    /// Paths and glob patterns, in order. Within a pattern, files are taken in the order of their names.
    pub files: Vec<RecipePath>,
    /// How texts become chunks.
    pub chunking: Chunking,
    /// Whether special tokens in the text are read as such.
    pub parse_special: bool,
}

/// How texts become chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chunking {
    /// Each file by itself: no chunk crosses a file.
    PerFile,
    /// All files joined to one text.
    Joined,
}

/// How an importance matrix comes to be.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum ImatrixStep {
    /// By running the model over a corpus.
    Collect(CollectImatrix),
    /// From other matrices.
    Merge {
        /// What is merged, in order, with weights.
        inputs: Vec<WeightedImatrix>,
        /// How.
        mode: MergeMode,
    },
    /// From a source file.
    Import {
        /// The file.
        source: SourceName,
    },
}

/// Settings of a collection.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CollectImatrix {
    /// The model that runs.
    pub model: SourceName,
    /// What it reads.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// How many chunks; all of them when absent.
    pub chunks: Option<u64>,
    /// Whether the output tensor is measured too.
    pub process_output: bool,
    /// Chunks in one action.
    pub block: u32,
}

/// One part of a merge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WeightedImatrix {
    /// The matrix.
    pub imatrix: StepId,
    /// Its weight.
    pub weight: Decimal,
}

/// How matrices are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMode {
    /// Sums and counts add up: as if one run had read all texts.
    Sum,
    /// Every matrix counts the same, however many chunks it saw.
    Mean,
    /// The larger importance wins, per column.
    Max,
}

impl MergeMode {
    /// Returns the word that recipes use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Mean => "mean",
            Self::Max => "max",
        }
    }
}

/// Fits an importance matrix to a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JoinStep {
    /// The model.
    pub model: SourceName,
    /// The matrix.
    pub imatrix: StepId,
    /// When a tensor has no data.
    pub missing: OnProblem,
    /// When an expert was never routed to.
    pub unrouted: OnProblem,
    /// The fewest tokens that count as data.
    pub min_count: Option<u64>,
}

/// What a found problem means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnProblem {
    /// Say it and go on.
    Warn,
    /// The step fails.
    Fail,
}

/// Chooses types.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PolicyStep {
    /// The model to quantize.
    pub model: SourceName,
    /// The importance data to use, fitted to the model.
    pub join: Option<StepId>,
    /// How types are chosen.
    pub method: Method,
    /// Tensors whose names match one of these keep the source's type.
    pub keep: Vec<Pattern>,
}

/// How types are chosen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Method {
    /// As llama.cpp's named mix does.
    Mix(MixPolicy),
    /// By rules in the recipe.
    Manual(ManualPolicy),
}

/// Settings of a mix.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MixPolicy {
    /// Which mix.
    pub mix: Mix,
    /// Whether all tensors take the mix's base type.
    pub pure: bool,
    /// The type of the output tensor, if not the mix's.
    pub output_type: Option<TypeName>,
    /// The type of the token embedding, if not the mix's.
    pub embedding_type: Option<TypeName>,
}

/// Rules; the first that matches wins.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ManualPolicy {
    /// The rules, in order.
    pub rules: Vec<Rule>,
    /// The type of tensors that no rule matches; when absent, such a quantizable tensor is an error.
    pub otherwise: Option<RuleType>,
}

/// One rule.
#[derive(Debug, Clone, Serialize)]
pub struct Rule {
    /// Which tensors.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// What they become.
    #[serde(rename = "type")]
    pub to: RuleType,
    /// Where the rule stands.
    #[serde(skip)]
    pub origin: Place,
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.to == other.to
    }
}

/// What a rule makes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleType {
    /// It keeps the source's type.
    Keep,
    /// It becomes this type.
    Type(TypeName),
}

impl RuleType {
    /// Returns the word that recipes use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Type(name) => name.as_str(),
        }
    }
}

impl Serialize for RuleType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A regular expression over tensor names; it may match anywhere in a name unless anchored.
#[derive(Debug, Clone)]
pub struct Pattern(regex::Regex);

impl Pattern {
    pub(crate) fn new(regex: regex::Regex) -> Self {
        Self(regex)
    }

    /// Returns whether a name matches.
    pub fn is_match(&self, name: &str) -> bool {
        self.0.is_match(name)
    }

    /// Returns the expression as the recipe has it.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Writes a candidate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PromoteStep {
    /// The choice of types.
    pub policy: StepId,
    /// Whether tensors that are quantized already may be quantized again.
    pub allow_requantize: bool,
}

/// Compares candidates with a reference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalStep {
    /// The candidates (`promote` steps).
    pub candidates: Vec<StepId>,
    /// The model they are compared with.
    pub reference: SourceName,
    /// The text.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// How many chunks; all of them when absent.
    pub chunks: Option<u64>,
    /// Whether the divergence from the reference is measured, besides perplexity.
    pub kld: bool,
    /// Chunks in one action.
    pub block: u32,
    /// Resamples of the bootstrap.
    pub bootstrap: u32,
    /// Where the bootstrap's random numbers start.
    pub seed: u64,
}

/// Puts figures side by side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricsStep {
    /// The evaluations.
    pub evals: Vec<StepId>,
}

/// Requires something of figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GateStep {
    /// The figures.
    pub metrics: StepId,
    /// The candidates that must pass.
    pub candidates: Vec<StepId>,
    /// All of these must hold.
    pub require: Vec<Requirement>,
    /// The candidate that `baseline` means.
    pub baseline: Option<StepId>,
    /// The confidence level of intervals, in percent.
    pub confidence: Decimal,
}
