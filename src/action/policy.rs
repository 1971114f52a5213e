//! Gives each tensor a type: the document of a policy, and the parts of it that its methods have.

use serde::Deserialize;
use serde::Serialize;

use super::Document;
use super::output::Fact;
use super::output::Output;
use super::role::Field;
use super::role::OutputOf;
use super::role::Role;
use super::role::Role::Engine;
use super::role::Role::Fields;
use super::role::Role::Input;
use super::role::Role::OneOf;
use super::role::Role::PartOf;
use super::role::Role::Setting;
use super::role::Role::Version;
use super::role::field;
use super::role::output;
use super::shared::CORPORA;
use super::shared::IMATRICES;
use super::shared::SHAPES;
use super::shared::TOKENIZERS;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::vocab::EngineRole::Evaluator;
use crate::vocab::EngineRole::Quantizer;

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
    /// The compute-relevant part of the model.
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

/// What every tensor gets before some are boosted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BoostBase {
    /// One of llama.cpp's mixes.
    Mix {
        /// Its name, as llama.cpp spells it.
        mix: String,
    },
    /// One type.
    Type {
        /// Its name.
        to: String,
    },
}

/// Which layers are boosted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BoostLayers {
    /// These.
    Listed {
        /// Their numbers, ascending.
        layers: Vec<u32>,
    },
    /// Those that an imatrix ranks highest.
    Ranked {
        /// How many.
        count: u32,
        /// How they are ranked.
        ranking: String,
        /// The importances.
        imatrix: BlobDigest,
        /// Those of other texts, where layers are ranked by what differs.
        baseline: Option<BlobDigest>,
    },
}

/// What decides on a policy by squared errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    /// What decides on the length of the file's header.
    pub header: PolicyHeader,
    /// The most that the file may have.
    pub budget: PolicyBudget,
    /// The compute-relevant part of the model.
    pub model: BlobDigest,
    /// The importances, and how often experts were routed to.
    pub imatrix: Option<BlobDigest>,
    /// What the sensitivities are measured with; all count the same without.
    pub probes: Option<Probes>,
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
    /// The version of a tensor's errors.
    pub form: u32,
    /// What quantizes.
    pub quantizer: Fingerprint,
}

/// A few measurements of each group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// How many types are measured of each group.
    pub count: u32,
    /// The texts that are measured on.
    pub corpus: BlobDigest,
    /// How the model reads them.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: u64,
    /// Chunks in one block.
    pub block: u32,
    /// What measures.
    pub evaluator: Fingerprint,
}

/// Memory that some tensors lie in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyDevice {
    /// Its name.
    pub name: String,
    /// Patterns of tensors that lie in it.
    pub tensors: Vec<String>,
    /// Its bytes.
    pub memory: u64,
    /// Bytes of it that are for other things.
    pub reserve: u64,
    /// The cache of keys and values of the layers whose attention lies in it.
    pub cache: Option<PolicyCache>,
}

/// A cache of keys and values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyCache {
    /// Tokens that it has room for.
    pub context: u32,
    /// The type of keys and values.
    #[serde(rename = "type")]
    pub ty: String,
}

const HEADER: Role = Fields(&[
    field("metadata", Input(&[output("inspect-model", "metadata")])),
    field("dataset", PartOf(JOINED)),
]);
const BUDGET: Role = OneOf {
    tag: "unit",
    variants: &[
        ("bytes", &[field("number", Setting)]),
        ("millionths-of-bits", &[field("number", Setting)]),
    ],
};
const RULES: Role = Fields(&[field("pattern", Setting), field("target", Setting)]);
const CACHE: Role = Fields(&[field("context", Setting), field("type", Setting)]);
const DEVICES: Role = Fields(&[
    field("name", Setting),
    field("tensors", Setting),
    field("memory", Setting),
    field("reserve", Setting),
    field("cache", CACHE),
]);
/// The imatrix that a policy goes by is the one that was joined with its model.
const JOINED: &[OutputOf] = &[output("join", "imatrix")];
const COMPUTES: &[OutputOf] = &[output("inspect-model", "compute")];

const MIX: &[Field] = &[
    field("mix", Setting),
    field("pure", Setting),
    field("output_type", Setting),
    field("embedding_type", Setting),
    field("keep", Setting),
];
const MANUAL: &[Field] = &[field("rules", RULES), field("otherwise", Setting)];
const ASHQ1: &[Field] = &[
    field("imatrix", Input(JOINED)),
    field("header", HEADER),
    field("budget", BUDGET),
    field("depth", Setting),
    field("free", Setting),
    field("qat", Setting),
    field("floors", RULES),
    field("ceilings", RULES),
    field("keep", Setting),
];
const DENSITY: &[Field] = &[
    field("imatrix", Input(JOINED)),
    field("header", HEADER),
    field("budget", BUDGET),
    field("base", Setting),
    field("promotion", Setting),
    field("anchors", Setting),
    field("keep", Setting),
];
const BOOST: &[Field] = &[
    field(
        "base",
        OneOf {
            tag: "kind",
            variants: &[("mix", &[field("mix", Setting)]), ("type", &[field("to", Setting)])],
        },
    ),
    field(
        "layers",
        OneOf {
            tag: "kind",
            variants: &[
                ("listed", &[field("layers", Setting)]),
                (
                    "ranked",
                    &[
                        field("count", Setting),
                        field("ranking", Setting),
                        field("imatrix", Input(JOINED)),
                        field("baseline", Input(IMATRICES)),
                    ],
                ),
            ],
        },
    ),
    field("families", Setting),
    field("promotion", Setting),
    field("keep", Setting),
];
const PRIOR: &[Field] = &[
    field("header", HEADER),
    field("budget", BUDGET),
    field("types", Setting),
    field("fuse", Setting),
    field("floors", RULES),
    field("ceilings", RULES),
    field("keep", Setting),
    field("devices", DEVICES),
    field("states", Setting),
    field("solver", Version),
];
const MEASURED: &[Field] = &[
    field("header", HEADER),
    field("budget", BUDGET),
    field("model", Input(COMPUTES)),
    field("imatrix", Input(JOINED)),
    field("corpus", Input(CORPORA)),
    field("tokenizer", Input(TOKENIZERS)),
    field("context", Setting),
    field("chunks", Setting),
    field("block", Setting),
    field("screen", Setting),
    field("max_probes", Setting),
    field("refine", Setting),
    field("types", Setting),
    field("fuse", Setting),
    field("floors", RULES),
    field("ceilings", RULES),
    field("keep", Setting),
    field("devices", DEVICES),
    field("states", Setting),
    field("solver", Version),
    field("form", Version),
    field("quantizer", Engine(Quantizer)),
    field("evaluator", Engine(Evaluator)),
];
const PROBES: &[Field] = &[
    field("count", Setting),
    field("corpus", Input(CORPORA)),
    field("tokenizer", Input(TOKENIZERS)),
    field("context", Setting),
    field("chunks", Setting),
    field("block", Setting),
    field("evaluator", Engine(Evaluator)),
];
const ERROR: &[Field] = &[
    field("header", HEADER),
    field("budget", BUDGET),
    field("model", Input(COMPUTES)),
    field("imatrix", Input(JOINED)),
    field("probes", Fields(PROBES)),
    field("types", Setting),
    field("fuse", Setting),
    field("floors", RULES),
    field("ceilings", RULES),
    field("keep", Setting),
    field("devices", DEVICES),
    field("states", Setting),
    field("solver", Version),
    field("form", Version),
    field("quantizer", Engine(Quantizer)),
];

impl Policy {
    /// Output: the type of each tensor.
    pub const POLICY: Output = Output::new("policy");
    /// Output: the proof of how near to optimal the choice is; of methods that solve.
    pub const CERTIFICATE: Output = Output::new("certificate");
    /// How many bytes the tensors have.
    pub const BYTES: Fact<u64> = Fact::new("bytes");
    /// How many tensors change type.
    pub const QUANTIZED: Fact<u64> = Fact::new("quantized");
    /// How many tensors there are.
    pub const TENSORS: Fact<u64> = Fact::new("tensors");
    /// llama.cpp's number of the file type, or `keep`.
    pub const FILE_TYPE: Fact<String> = Fact::new("file_type");
    /// `optimal`, or `gap`.
    pub const PROVED: Fact<String> = Fact::new("proved");
}

impl Document for Policy {
    const KIND: &'static str = "policy";
    const FIELDS: &'static [Field] = &[
        field("shape", Input(SHAPES)),
        field("coverage", Input(&[output("join", "coverage")])),
        field(
            "method",
            OneOf {
                tag: "name",
                variants: &[
                    ("mix", MIX),
                    ("manual", MANUAL),
                    ("ashq1", ASHQ1),
                    ("density", DENSITY),
                    ("boost", BOOST),
                    ("prior", PRIOR),
                    ("measured", MEASURED),
                    ("error", ERROR),
                ],
            },
        ),
        field("rules", Version),
    ];
    const OUTPUTS: &'static [&'static str] = &[Self::POLICY.as_str(), Self::CERTIFICATE.as_str()];
}
