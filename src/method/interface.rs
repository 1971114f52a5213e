//! The traits of methods of policies, and of their inputs.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::budget::Budget;
use super::budget::BudgetDocument;
use super::constraints::Constraints;
use super::header::HeaderDocument;
use super::open::Open;
use super::problem::MethodError;
use super::rounding::RoundingDocument;
use super::section::PolicySection;
use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::engine::Capability;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::Table;
use crate::syntax::id::StepId;
use crate::vocab::EngineRole;
use crate::vocab::role::Field;

/// A method, as the settings that a recipe gives it.
pub(crate) trait PolicyMethod: Clone + Serialize + Sized {
    /// The word for it in recipes and documents.
    const NAME: &'static str;
    /// The keys of a policy's section that this method has.
    const KEYS: &'static [&'static str];
    /// What an action holds of it.
    type Document: PolicyDocument;

    /// Reads its keys, with their defaults, and notes them for the resolved recipe. What is wrong is reported to the section.
    fn read(section: &mut PolicySection<'_, '_, '_>) -> Option<Open<Self>>;

    /// Returns its document: everything that decides on the choice. `keep` are patterns of tensors that keep their types.
    fn document<I: Inputs>(&self, keep: Vec<String>, inputs: &I) -> Result<Self::Document, I::Error>;

    /// Returns the most that the file may have, if the method keeps to a budget.
    fn budget(&self) -> Option<&Budget> {
        None
    }

    /// Returns the text that the method measures on, and how much of it.
    fn measures(&self) -> Option<Measures<'_>> {
        None
    }

    /// Returns other steps whose outputs the method reads.
    fn references(&self) -> Vec<&StepId> {
        Vec::new()
    }

    /// Returns the capabilities that the method needs of an engine. A method without any chooses from documents alone.
    fn needs(&self) -> Vec<Capability> {
        Vec::new()
    }

    /// Returns what bounds the choice, of a method that solves for losses.
    fn constraints(&self) -> Option<&Constraints> {
        None
    }

    /// Returns which types of each group are measured.
    fn probing(&self) -> Probing {
        Probing::None
    }
}

/// A method, as an action's document has it.
pub(crate) trait PolicyDocument: Serialize + DeserializeOwned {
    /// The fields, in the order of the struct.
    const FIELDS: &'static [Field];

    /// Chooses a type for each tensor.
    fn choose<M: Material>(&self, material: &M) -> Result<Chosen, M::Error>;
}

/// A text that a method measures on.
#[derive(Debug, Clone, Copy)]
pub struct Measures<'m> {
    /// The `corpus` step.
    pub corpus: &'m StepId,
    /// Tokens in a chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: u64,
    /// Chunks in one action.
    pub block: u32,
    /// Whether other chunks of the text are read, too.
    pub and_others: bool,
}

/// Which types of each group of tensors a method measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probing {
    /// None.
    None,
    /// All types that the group may have, up to a maximum number over all groups.
    All {
        /// How many.
        most: Option<u64>,
        /// The chunks that each is measured on first.
        screen: u64,
        /// The maximum number of rounds of refinement.
        rounds: u32,
    },
    /// So many of each group.
    OfEachGroup(u32),
    /// So many groups of a mixture of experts; gradients tell the losses of all.
    Gradients {
        /// How many.
        probes: u32,
        /// How often the choice is measured as a whole, and without each kind of tensor.
        corrections: u32,
    },
}

/// The outputs of earlier steps and the engines, for the document of a method.
pub(crate) trait Inputs {
    /// What can go wrong.
    type Error: From<MethodError>;

    /// Returns the compute-relevant part of the model.
    fn model(&self) -> Result<BlobDigest, Self::Error>;
    /// Returns how the model reads texts.
    fn tokenizer(&self) -> Result<BlobDigest, Self::Error>;
    /// Returns what decides on the length of the candidate's header.
    fn header(&self) -> Result<HeaderDocument, Self::Error>;
    /// Returns the imatrix that was joined with the model, if the policy has one.
    fn imatrix(&self) -> Result<Option<BlobDigest>, Self::Error>;
    /// Returns the corpus of a step.
    fn corpus(&self, step: &StepId) -> Result<BlobDigest, Self::Error>;
    /// Returns the imatrix of a step.
    fn imatrix_of(&self, step: &StepId) -> Result<BlobDigest, Self::Error>;
    /// Returns a budget as documents have it: of another candidate its bytes, so that what keeps to the same number of bytes is
    /// the same action.
    fn budget(&self, budget: &Budget) -> Result<BudgetDocument, Self::Error>;
    /// Returns how the codes of tensors are refined, if they are.
    fn rounding(&self) -> Result<Option<RoundingDocument>, Self::Error>;
    /// Returns the identity of the engine in a role.
    fn engine(&self, role: EngineRole) -> Result<Fingerprint, Self::Error>;

    /// Returns the imatrix that was joined with the model, for a method that cannot do without.
    fn needed_imatrix(&self, method: &str) -> Result<BlobDigest, Self::Error> {
        let missing = || MethodError::new(format!("`{method}` needs an imatrix, and the policy has none"));
        Ok(self.imatrix()?.ok_or_else(missing)?)
    }
}

/// The inputs of a method besides its document.
pub(crate) trait Material {
    /// What can go wrong.
    type Error: From<MethodError>;

    /// Returns the model.
    fn facts(&self) -> &ModelFacts;
    /// Says which tensors the imatrix covers, if there is one.
    fn has_imatrix(&self) -> HasImatrix<'_>;
    /// Returns what an imatrix saw of all its tensors.
    fn energies(&self, imatrix: BlobDigest) -> Result<Energies, Self::Error>;
    /// Returns the size of a candidate's file without its tensors.
    fn file_size(&self, header: &HeaderDocument) -> Result<FileSize, Self::Error>;
    /// Returns the metadata of the model.
    fn metadata(&self, header: &HeaderDocument) -> Result<Metadata, Self::Error>;
    /// Fails if the build was stopped.
    fn check_stopped(&self) -> Result<(), Self::Error>;
    /// Returns what is set when the build is stopped, if the choice may take long.
    fn cancel(&self) -> Option<&Cancel>;

    /// Returns what an imatrix saw of the tensors that it fits.
    fn covered_energies(&self, imatrix: BlobDigest) -> Result<Energies, Self::Error> {
        let mut energies = self.energies(imatrix)?;
        let has = self.has_imatrix();
        energies.retain(|name, _| has.is_some_and(|has| has(name)));
        Ok(energies)
    }
}

/// What a method chose.
#[derive(Debug)]
pub struct Chosen {
    /// The type of each tensor.
    pub table: Table,
    /// llama.cpp's number of the file type, if there is one.
    pub file_type: Option<u32>,
    /// What the solver proved, of a method that solves.
    pub solved: Option<Solved>,
}

/// What the solver proved.
#[derive(Debug)]
pub struct Solved {
    /// The certificate, a document.
    pub certificate: String,
    /// True if no other choice has a smaller loss.
    pub optimal: bool,
}

impl Chosen {
    /// A choice whose file type follows from its types.
    pub fn of(table: Table) -> Self {
        Self {
            file_type: Some(table.file_type()),
            table,
            solved: None,
        }
    }
}
