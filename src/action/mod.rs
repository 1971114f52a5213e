//! An action is a document: what will be done, with every input as a digest. Its canonical bytes are stored, and their
//! hash is the key under which the result is found again. So a key can never cover less, or more, than what a person can
//! read, and two actions are compared field by field (`docs/design-notes.md`, "An action is a document").

pub mod difference;
pub mod documents;
pub mod policies;
pub mod result;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;

pub use documents::*;
pub use policies::*;
pub use result::ActionResult;

/// The version of the form of action documents. It stands in every document, so that raising it changes every key.
pub const SCHEMA: u32 = 1;

/// One unit of cached work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "inputs", rename_all = "kebab-case")]
pub enum Action {
    /// Reads a GGUF model's header and digests its tensors.
    InspectModel(InspectModel),
    /// Checks the texts of a corpus.
    Corpus(Corpus),
    /// Turns texts into tokens.
    Tokens(Tokens),
    /// Collects the imatrix of a block of chunks.
    ImatrixBlock(ImatrixBlock),
    /// Collects an imatrix: the sum of its blocks.
    ImatrixCollect(ImatrixCollect),
    /// Merges imatrices.
    ImatrixMerge(ImatrixMerge),
    /// Reads a foreign imatrix.
    ImatrixImport(ImatrixImport),
    /// Holds an imatrix against a model.
    Join(Join),
    /// Gives each tensor a type.
    Policy(Policy),
    /// Quantizes one tensor.
    Tensor(Tensor),
    /// Compares a quantized tensor with its source.
    TensorError(TensorError),
    /// Assembles a candidate of its tensors.
    Promote(Promote),
    /// Computes the reference's log-probabilities of a block of chunks.
    ReferenceBlock(ReferenceBlock),
    /// Measures a candidate on a block of chunks.
    EvalBlock(EvalBlock),
    /// Measures a candidate: the figures of all its blocks.
    Eval(Eval),
    /// Makes the table of candidates.
    Metrics(Metrics),
    /// Holds figures against bounds.
    Gate(Gate),
}

#[derive(Serialize, Deserialize)]
struct Document<A> {
    schema: u32,
    #[serde(flatten)]
    action: A,
}

/// A stored document that is not an action of this version.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or not of a known kind.
    #[error("not an action document: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of another version.
    #[error("an action document of schema {found}; this version of forge reads {SCHEMA}")]
    Schema {
        /// The version that the document names.
        found: u32,
    },
}

impl Action {
    /// Returns the canonical bytes: JSON without white space, fields in declared order, maps sorted; strings, integers
    /// and booleans only.
    pub fn document(&self) -> Vec<u8> {
        serde_json::to_vec(&Document {
            schema: SCHEMA,
            action: self,
        })
        .unwrap_or_else(|error| {
            // Typed structs of strings, integers and string-keyed maps cannot fail to serialize.
            unreachable!("an action document serializes: {error}")
        })
    }

    /// Reads a document back.
    pub fn parse(document: &[u8]) -> Result<Self, DocumentError> {
        let document: Document<Self> = serde_json::from_slice(document)?;
        if document.schema == SCHEMA {
            Ok(document.action)
        } else {
            Err(DocumentError::Schema { found: document.schema })
        }
    }

    /// Returns the key.
    pub fn digest(&self) -> ActionDigest {
        ActionDigest::of(&self.document())
    }

    /// Returns the digest under which the document itself is stored.
    pub fn document_digest(&self) -> BlobDigest {
        BlobDigest::of(&self.document())
    }

    /// Returns the kind, as the document spells it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InspectModel(_) => "inspect-model",
            Self::Corpus(_) => "corpus",
            Self::Tokens(_) => "tokens",
            Self::ImatrixBlock(_) => "imatrix-block",
            Self::ImatrixCollect(_) => "imatrix-collect",
            Self::ImatrixMerge(_) => "imatrix-merge",
            Self::ImatrixImport(_) => "imatrix-import",
            Self::Join(_) => "join",
            Self::Policy(_) => "policy",
            Self::Tensor(_) => "tensor",
            Self::TensorError(_) => "tensor-error",
            Self::Promote(_) => "promote",
            Self::ReferenceBlock(_) => "reference-block",
            Self::EvalBlock(_) => "eval-block",
            Self::Eval(_) => "eval",
            Self::Metrics(_) => "metrics",
            Self::Gate(_) => "gate",
        }
    }
}
