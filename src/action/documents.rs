//! The inputs of every kind of action. Digests, integers, booleans and strings; no path, no time, no host name, no float.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::action::BoostBase;
use crate::action::BoostLayers;
use crate::action::Errors;
use crate::action::PolicyDevice;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

/// Reads a GGUF model's header and digests its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectModel {
    /// The file, or its shards in order.
    pub files: Vec<BlobDigest>,
    /// The version of the index that is made.
    pub index: u32,
}

/// How texts are cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Chunking {
    /// Each file by itself: no chunk crosses a file, so a file more costs only its own chunks.
    PerFile,
    /// All files as one text.
    Joined,
}

/// Checks the texts of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corpus {
    /// The texts, in order.
    pub texts: Vec<BlobDigest>,
    /// How they are cut.
    pub chunking: Chunking,
    /// Whether special tokens in the text are read as such.
    pub parse_special: bool,
}

/// Turns texts into tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// The texts that are joined, in order.
    pub texts: Vec<BlobDigest>,
    /// The model's vocabulary: a document of its `tokenizer.*` metadata, chat template apart.
    pub tokenizer: BlobDigest,
    /// Whether special tokens in the text are read as such.
    pub parse_special: bool,
    /// The engine that tokenizes.
    pub engine: Fingerprint,
}

/// Collects the imatrix of a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixBlock {
    /// The model as far as it computes: a document of its tensors and the metadata that matter.
    pub model: BlobDigest,
    /// The tokens of the block, 32-bit little-endian, `chunks x context`.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// Whether data is collected for the output tensor too.
    pub process_output: bool,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

/// Collects an imatrix: the sum of its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixCollect {
    /// The model as far as it computes.
    pub model: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// The name that the imatrix records for its data set.
    pub dataset: String,
    /// Tokens per chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Whether data is collected for the output tensor too.
    pub process_output: bool,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

/// How imatrices are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMode {
    /// Sums and counts are added: every token counts the same.
    Sum,
    /// The importances are averaged: every imatrix counts by its weight.
    Mean,
    /// The largest importance of each column.
    Max,
}

/// Merges imatrices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixMerge {
    /// The imatrices, in order.
    pub imatrices: Vec<BlobDigest>,
    /// How they are merged.
    pub mode: MergeMode,
    /// One weight each, in millionths.
    pub weights: Vec<u64>,
}

/// Reads a foreign imatrix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImatrixImport {
    /// The file.
    pub file: BlobDigest,
}

/// What to do about a flaw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Say so.
    Warn,
    /// Stop.
    Fail,
}

/// Holds an imatrix against a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The model's shape: names, types and dimensions of its tensors, and its hyperparameters.
    pub shape: BlobDigest,
    /// The imatrix.
    pub imatrix: BlobDigest,
    /// What to do where a quantizable tensor has no data.
    pub missing: Severity,
    /// What to do where an expert was never routed.
    pub unrouted: Severity,
    /// The fewest rows that a matrix must have seen to count as routed.
    pub min_count: u64,
}

/// A rule of a manual policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRule {
    /// The regular expression that a tensor's name must match.
    pub pattern: String,
    /// The type, or `keep`.
    pub target: String,
}

/// How types are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Method {
    /// One of llama.cpp's mixes.
    Mix {
        /// Its name, as llama.cpp spells it.
        mix: String,
        /// No mix, one type.
        pure: bool,
        /// The type of the output tensor.
        output_type: Option<String>,
        /// The type of the token embedding.
        embedding_type: Option<String>,
        /// Patterns of tensors that keep the source's type.
        keep: Vec<String>,
    },
    /// Patterns to types, the first match wins.
    Manual {
        /// The rules, in order.
        rules: Vec<PolicyRule>,
        /// What tensors get that no rule matches; without it they are an error.
        otherwise: Option<String>,
    },
    /// By importance, from floors up, until a budget is spent.
    Ashq1 {
        /// The importances.
        imatrix: BlobDigest,
        /// What decides on the length of the file's header.
        header: PolicyHeader,
        /// The most that the file may have.
        budget: PolicyBudget,
        /// The first layer and the last ones count for more.
        depth: bool,
        /// Upgrades are taken that cost no bytes.
        free: bool,
        /// The model was trained to be quantized.
        qat: bool,
        /// Other floors.
        floors: Vec<PolicyRule>,
        /// Other ceilings.
        ceilings: Vec<PolicyRule>,
        /// Patterns of tensors that keep the source's type.
        keep: Vec<String>,
    },
    /// Two types: the larger one where it gains most for its bytes.
    Density {
        /// The importances.
        imatrix: BlobDigest,
        /// What decides on the length of the file's header.
        header: PolicyHeader,
        /// The most that the file may have.
        budget: PolicyBudget,
        /// The type of every tensor that can be quantized.
        base: String,
        /// The larger type.
        promotion: String,
        /// Tensors are promoted only together with the one that they follow.
        anchors: bool,
        /// Patterns of tensors that keep the source's type.
        keep: Vec<String>,
    },
    /// A mix, or one type, and a better type for families of tensors in a few layers.
    Boost {
        /// What every tensor gets first.
        base: BoostBase,
        /// Which layers.
        layers: BoostLayers,
        /// Families of tensors.
        families: Vec<String>,
        /// The better type.
        promotion: String,
        /// Patterns of tensors that keep the source's type.
        keep: Vec<String>,
    },
    /// By losses that are guessed from roles, depth and types, solved exactly.
    Prior {
        /// What decides on the length of the file's header.
        header: PolicyHeader,
        /// The most that the file may have.
        budget: PolicyBudget,
        /// The types to choose from.
        types: Vec<String>,
        /// Which tensors an engine wants to have one type.
        fuse: Vec<String>,
        /// The least type of tensors.
        floors: Vec<PolicyRule>,
        /// The largest type of tensors.
        ceilings: Vec<PolicyRule>,
        /// Patterns of tensors that keep the source's type.
        keep: Vec<String>,
        /// Memory besides the file.
        devices: Vec<PolicyDevice>,
        /// How many states the solver may make.
        states: u64,
        /// The version of the solver and of the losses.
        solver: u32,
    },
    /// By losses that are measured on the model itself, solved exactly.
    Measured(Box<Measured>),
    /// By the squared errors of the quantized tensors, scaled by a few measurements, solved exactly.
    Error(Box<Errors>),
}

/// What decides on a policy by measured losses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What decides on the length of the file's header.
    pub header: PolicyHeader,
    /// The most that the file may have.
    pub budget: PolicyBudget,
    /// The model as far as it computes.
    pub model: BlobDigest,
    /// What tensors are quantized with, and their errors weighted by.
    pub imatrix: Option<BlobDigest>,
    /// The texts that losses are measured on.
    pub corpus: BlobDigest,
    /// How the model reads them.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: u64,
    /// Chunks in one block.
    pub block: u32,
    /// How many chunks every probe is measured on.
    pub screen: u64,
    /// At most so many groups in types are probed.
    pub max_probes: Option<u64>,
    /// How many times at most moves around the choice are measured.
    pub refine: u32,
    /// The types to choose from, besides the source's own.
    pub types: Vec<String>,
    /// Which tensors an engine wants to have one type.
    pub fuse: Vec<String>,
    /// The least type of tensors.
    pub floors: Vec<PolicyRule>,
    /// The largest type of tensors.
    pub ceilings: Vec<PolicyRule>,
    /// Patterns of tensors that keep the source's type.
    pub keep: Vec<String>,
    /// Memory besides the file.
    pub devices: Vec<PolicyDevice>,
    /// How many states the solver may make.
    pub states: u64,
    /// The version of the solver and of what losses are made of.
    pub solver: u32,
    /// The version of how squared errors are told.
    pub form: u32,
    /// What quantizes.
    pub quantizer: Fingerprint,
    /// What measures.
    pub evaluator: Fingerprint,
}

/// What decides on the length of a candidate's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyHeader {
    /// The source's metadata, byte for byte.
    pub metadata: BlobDigest,
    /// The name of the imatrix's text, which the header says where there is an imatrix.
    pub dataset: Option<String>,
}

/// The most that a file may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "unit", rename_all = "kebab-case")]
pub enum PolicyBudget {
    /// Bytes of the file.
    Bytes {
        /// How many.
        number: u64,
    },
    /// Bits per weight of the whole file, in millionths.
    MillionthsOfBits {
        /// How many.
        number: u64,
    },
}

/// Gives each tensor a type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The model's shape.
    pub shape: BlobDigest,
    /// Which tensors the imatrix covers, where there is one.
    pub coverage: Option<BlobDigest>,
    /// How types are chosen.
    pub method: Method,
    /// The version of the rules that are built in.
    pub rules: u32,
}

/// Quantizes one tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// The tensor's bytes in the source.
    pub source: BlobDigest,
    /// Its type in the source.
    pub from: String,
    /// Its dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Its type in the candidate.
    pub to: String,
    /// Its importances, 32-bit floats, one for each column of each matrix, where the type uses them.
    pub weights: Option<BlobDigest>,
    /// The quantizer.
    pub quantizer: Fingerprint,
}

/// Compares a quantized tensor with its source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorError {
    /// The action that quantizes the tensor: source, types and dimensions stand there. Not the digest of what it made, so that
    /// the errors stay known after the quantized bytes were collected.
    pub tensor: ActionDigest,
    /// The importances that squares are weighted with, whether or not the type uses them.
    pub weights: Option<BlobDigest>,
    /// What turns quantized bytes into numbers.
    pub quantizer: Fingerprint,
    /// The version of the errors.
    pub form: u32,
}

/// Assembles a candidate of its tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// The index of the source model: all its metadata, and the digest of each tensor.
    pub model: BlobDigest,
    /// The source's metadata, byte for byte.
    pub metadata: BlobDigest,
    /// The table of types.
    pub policy: BlobDigest,
    /// The digest of each tensor's importances, where there is an imatrix.
    pub slices: Option<BlobDigest>,
    /// What the metadata say of the imatrix.
    pub imatrix: BTreeMap<String, String>,
    /// Whether quantized tensors may be quantized again.
    pub allow_requantize: bool,
    /// The quantizer.
    pub quantizer: Fingerprint,
    /// The version of the writer.
    pub writer: u32,
}

/// Computes the reference's log-probabilities of a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceBlock {
    /// The reference as far as it computes.
    pub model: BlobDigest,
    /// The tokens of the block.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The form in which they are stored.
    pub codec: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

/// Measures a candidate on a block of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvalBlock {
    /// The candidate as far as it computes.
    pub candidate: BlobDigest,
    /// The action that makes the reference's log-probabilities, where KLD is measured. Not their digest: so that a
    /// measured block stays known after its reference, large and cheap to make again, was collected.
    pub reference: Option<ActionDigest>,
    /// The tokens of the block.
    pub tokens: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// The form of the figures.
    pub codec: u32,
    /// The engine that runs the model.
    pub engine: Fingerprint,
}

/// Measures a candidate: the figures of all its blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eval {
    /// The candidate as far as it computes.
    pub candidate: BlobDigest,
    /// The reference as far as it computes, where KLD is measured.
    pub reference: Option<BlobDigest>,
    /// The reference's vocabulary.
    pub tokenizer: BlobDigest,
    /// The corpus.
    pub corpus: BlobDigest,
    /// Tokens per chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Resamples of the bootstrap.
    pub bootstrap: u32,
    /// The seed of the bootstrap.
    pub seed: u64,
    /// The form of the figures.
    pub codec: u32,
    /// The engine that runs the models.
    pub engine: Fingerprint,
}

/// A row of the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsRow {
    /// The evaluation's name.
    pub eval: String,
    /// The candidate's name.
    pub candidate: String,
    /// Its file.
    pub file: BlobDigest,
    /// How many weights it holds.
    pub elements: u64,
    /// Its figures.
    pub figures: BlobDigest,
    /// What its policy measured of it on other text: mean and deviation of a chunk's divergence in trillionths of a nat, chunks,
    /// tokens in a chunk.
    pub probed: Option<String>,
    /// The engine that measured.
    pub engine: Fingerprint,
}

/// Makes the table of candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// The recipe's name.
    pub recipe: String,
    /// The rows, in the recipe's order.
    pub rows: Vec<MetricsRow>,
    /// The version of the table.
    pub table: u32,
}

/// Holds figures against bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The rows that are judged.
    pub rows: Vec<MetricsRow>,
    /// The rows that `baseline` means, one for each evaluation.
    pub baseline: Vec<MetricsRow>,
    /// The requirements, as written.
    pub require: Vec<String>,
    /// The confidence of comparisons, in millionths.
    pub confidence: u64,
    /// Resamples of the bootstrap.
    pub bootstrap: u32,
    /// The seed of the bootstrap.
    pub seed: u64,
}
