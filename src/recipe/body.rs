//! What the steps of a recipe are to do, one type for each kind.

use serde::Serialize;

use crate::method::Budget;
use crate::method::Method;
use crate::method::SizeOf;
use crate::quantity::Decimal;
use crate::recipe::model::RecipePath;
use crate::requirement::Requirement;
use crate::syntax::id::SourceName;
use crate::syntax::id::StepId;
use crate::syntax::pattern::Pattern;
use crate::vocab::Chunking;
use crate::vocab::MergeMode;
use crate::vocab::Severity;

/// What a step is to do.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StepBody {
    /// `[corpus.NAME]`
    Corpus(CorpusStep),
    /// `[moments.NAME]`
    Moments(MomentsStep),
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
            Self::Moments(moments) => vec![&moments.corpus],
            Self::Imatrix(ImatrixStep::Collect(collect)) => vec![&collect.corpus],
            Self::Imatrix(ImatrixStep::Moments { moments, .. }) => vec![moments],
            Self::Imatrix(ImatrixStep::Merge { inputs, .. }) => inputs.iter().map(|input| &input.imatrix).collect(),
            Self::Join(join) => vec![&join.imatrix],
            Self::Policy(policy) => {
                let measured = policy.method.measures().map(|measures| measures.corpus);
                let read = measured.into_iter().chain(policy.method.references());
                let sized = policy.size_of().into_iter();
                let sized = sized.flat_map(|size| std::iter::once(&size.policy).chain(&size.join));
                let moments = policy.rounding.iter().map(|rounding| &rounding.moments);
                policy.join.iter().chain(read).chain(sized).chain(moments).collect()
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
            Self::Moments(moments) => vec![&moments.model],
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

/// Collects second moments.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MomentsStep {
    /// The model that runs.
    pub model: SourceName,
    /// What it reads.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// How many chunks; all of them when absent.
    pub chunks: Option<u64>,
    /// Chunks in one action.
    pub block: u32,
    /// Of how many chunks of a text one is kept for validation; 0 for none.
    pub held_out: u32,
}

/// How an importance matrix is created.
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
    /// As the diagonal of second moments.
    Moments {
        /// The second moments.
        moments: StepId,
        /// Whether it has data for the output tensor.
        process_output: bool,
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

/// Fits an importance matrix to a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JoinStep {
    /// The model.
    pub model: SourceName,
    /// The matrix.
    pub imatrix: StepId,
    /// When a tensor has no data.
    pub missing: Severity,
    /// When an expert was never routed to.
    pub unrouted: Severity,
    /// The fewest tokens that count as data.
    pub min_count: Option<u64>,
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
    /// How codes are refined; without it, tensors have the quantizer's own bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounding: Option<RefinedRounding>,
}

/// Codes that are chosen under second moments.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RefinedRounding {
    /// The second moments.
    pub moments: StepId,
}

impl PolicyStep {
    /// Returns the candidate whose size the file may have, if the budget names one.
    pub fn size_of(&self) -> Option<&SizeOf> {
        match self.method.budget()? {
            Budget::Quantity(_) => None,
            Budget::Candidate(size) => Some(size),
        }
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
    /// Whether the text may overlap with text that the candidates were calibrated on.
    pub allow_overlap: bool,
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
