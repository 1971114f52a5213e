//! What the steps of a recipe are to do, one type for each kind.

use serde::Serialize;
use serde::Serializer;

use crate::quantity::Decimal;
use crate::recipe::model::BoostPolicy;
use crate::recipe::model::Budget;
use crate::recipe::model::Device;
use crate::recipe::model::ErrorPolicy;
use crate::recipe::model::Place;
use crate::recipe::model::RecipePath;
use crate::recipe::model::SizeOf;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepId;
use crate::recipe::names::Mix;
use crate::recipe::names::TypeName;
use crate::requirement::Requirement;

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
            Self::Policy(policy) => {
                let baseline = match &policy.method {
                    Method::Boost(boost) => boost.layers.baseline(),
                    _ => None,
                };
                let read = policy.corpus().into_iter().chain(baseline);
                let sized = policy.size_of().into_iter();
                let sized = sized.flat_map(|size| std::iter::once(&size.policy).chain(&size.join));
                policy.join.iter().chain(read).chain(sized).collect()
            }
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
            Self::Policy(policy) => {
                let sized = policy.size_of().map(|size| &size.model);
                std::iter::once(&policy.model).chain(sized).collect()
            }
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
    /// By importance, from floors up, until a budget is spent.
    Ashq1(Ashq1Policy),
    /// Two types: the larger one where it gains most for its bytes.
    Density(DensityPolicy),
    /// A mix, or one type, and a better type for families of tensors in a few layers.
    Boost(BoostPolicy),
    /// By losses that are guessed from roles, depth and types, solved exactly.
    Prior(PriorPolicy),
    /// By losses that are measured on the model itself, solved exactly.
    Measured(Box<MeasuredPolicy>),
    /// By the squared errors of the quantized tensors, scaled by a few measurements, solved exactly.
    Error(Box<ErrorPolicy>),
}

impl PolicyStep {
    /// Returns the most that the file may have, if the method keeps to a budget.
    pub fn budget(&self) -> Option<&Budget> {
        match &self.method {
            Method::Mix(_) | Method::Manual(_) | Method::Boost(_) => None,
            Method::Ashq1(ashq1) => Some(&ashq1.budget),
            Method::Density(density) => Some(&density.budget),
            Method::Prior(prior) => Some(&prior.budget),
            Method::Measured(measured) => Some(&measured.budget),
            Method::Error(error) => Some(&error.budget),
        }
    }

    /// Returns the text that the method measures on.
    pub fn corpus(&self) -> Option<&StepId> {
        match &self.method {
            Method::Measured(measured) => Some(&measured.corpus),
            Method::Error(error) => error.probes.as_ref().map(|probes| &probes.corpus),
            _ => None,
        }
    }

    /// Returns the candidate that the file may be as long as, if the budget names one.
    pub fn size_of(&self) -> Option<&SizeOf> {
        match self.budget()? {
            Budget::Quantity(_) => None,
            Budget::Candidate(size) => Some(size),
        }
    }
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

/// Settings of `ashq1`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ashq1Policy {
    /// The most that the file may have.
    pub budget: Budget,
    /// Whether the first layer and the last ones count for more.
    pub depth: bool,
    /// Whether upgrades are taken that cost no bytes.
    pub free: bool,
    /// Whether the model was trained to be quantized.
    pub qat: bool,
    /// Other floors; the first that matches counts.
    pub floors: Vec<Rule>,
    /// Other ceilings; the first that matches counts.
    pub ceilings: Vec<Rule>,
}

/// Settings of `density`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DensityPolicy {
    /// The most that the file may have.
    pub budget: Budget,
    /// The type of every tensor that can be quantized.
    pub base: TypeName,
    /// The larger type.
    pub promotion: TypeName,
    /// Whether tensors are promoted only together with the one whose type a runtime takes for them, too.
    pub anchors: bool,
}

/// Settings of `prior`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PriorPolicy {
    /// The most that the file may have.
    pub budget: Budget,
    /// The types to choose from.
    pub types: Vec<TypeName>,
    /// Which tensors an engine wants to have one type.
    pub fuse: Vec<&'static str>,
    /// The least type of tensors; the first rule that matches counts.
    pub floors: Vec<Rule>,
    /// The largest type of tensors; the first rule that matches counts.
    pub ceilings: Vec<Rule>,
    /// Memory besides the file.
    pub devices: Vec<Device>,
}

/// Settings of `measured`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MeasuredPolicy {
    /// The most that the file may have.
    pub budget: Budget,
    /// The texts that losses are measured on.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
    /// How many chunks every probe is measured on before it is said which need all.
    pub screen: u64,
    /// At most so many groups in types are probed.
    pub max_probes: Option<u64>,
    /// How many times at most moves around the choice are measured.
    pub refine: u32,
    /// The types to choose from, besides the source's own.
    pub types: Vec<TypeName>,
    /// Which tensors an engine wants to have one type.
    pub fuse: Vec<&'static str>,
    /// The least type of tensors; the first rule that matches counts.
    pub floors: Vec<Rule>,
    /// The largest type of tensors; the first rule that matches counts.
    pub ceilings: Vec<Rule>,
    /// Memory besides the file.
    pub devices: Vec<Device>,
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
