//! Parts of the documents of policies, and of the methods that have much to say.

use serde::Deserialize;
use serde::Serialize;

use crate::action::PolicyBudget;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;

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
    /// The model as far as it computes.
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
