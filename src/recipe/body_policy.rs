//! What policies are made of besides their methods' own settings: budgets, devices, layers, probes.

use serde::Serialize;

use crate::quantity::Quantity;
use crate::recipe::model::Pattern;
use crate::recipe::model::Rule;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepId;
use crate::recipe::names::Mix;
use crate::recipe::names::TypeName;

/// The most that a candidate's file may have.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Budget {
    /// Bytes, or bits per weight of the whole file.
    Quantity(Quantity),
    /// The bytes of another candidate.
    Candidate(Box<SizeOf>),
}

/// A candidate whose length another one keeps to: it follows from its types and its header, so that it is known before it is
/// quantized.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SizeOf {
    /// The candidate, a `promote` step.
    pub candidate: StepId,
    /// Its policy.
    #[serde(skip)]
    pub policy: StepId,
    /// The model that it is made from.
    #[serde(skip)]
    pub model: SourceName,
    /// The importance data that its header speaks of.
    #[serde(skip)]
    pub join: Option<StepId>,
}

/// Settings of `boost`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BoostPolicy {
    /// What every tensor gets first.
    pub base: BoostBase,
    /// Which layers are boosted.
    pub layers: BoostLayers,
    /// Families of tensors.
    pub families: Vec<&'static str>,
    /// Their better type.
    pub promotion: TypeName,
}

/// What every tensor gets before some are boosted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoostBase {
    /// What a mix gives it.
    Mix(Mix),
    /// One type.
    Type(TypeName),
}

/// Which layers are boosted.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoostLayers {
    /// These, ascending.
    Listed(Vec<u32>),
    /// Those that the policy's importance data rank highest.
    Ranked {
        /// How many.
        count: u32,
        /// How they are ranked: `energy`, `contrast` or `sensitivity`.
        ranking: &'static str,
        /// Importances of other texts, for `contrast`.
        baseline: Option<StepId>,
    },
}

impl BoostLayers {
    /// Returns the imatrix that layers are held against.
    pub fn baseline(&self) -> Option<&StepId> {
        match self {
            Self::Listed(_) => None,
            Self::Ranked { baseline, .. } => baseline.as_ref(),
        }
    }
}

/// Settings of `error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ErrorPolicy {
    /// The most that the file may have.
    pub budget: Budget,
    /// What sensitivities are measured with; without, a squared error counts the same everywhere.
    pub probes: Option<Probes>,
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

/// A few measurements of each group of tensors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probes {
    /// How many types of each group.
    pub count: u32,
    /// The texts that are measured on.
    pub corpus: StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
}

/// Memory that some tensors lie in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Which tensors lie in it: those that one of these matches.
    pub tensors: Vec<Pattern>,
    /// Its bytes.
    pub memory: u64,
    /// Bytes of it that are for other things.
    pub reserve: u64,
    /// The cache of keys and values of the layers whose attention lies in it.
    pub cache: Option<Cache>,
}

/// A cache of keys and values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cache {
    /// Tokens that it has room for.
    pub context: u32,
    /// The type of keys and values, as llama.cpp's options spell it.
    #[serde(rename = "type")]
    pub ty: &'static str,
}
