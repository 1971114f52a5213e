//! Action documents. An action is one unit of cached work; its document holds every input as a digest. The canonical bytes of the
//! document are stored, and their hash is the key of the result. So the key covers just what the document shows, and two
//! actions can be compared field by field (`docs/design-notes.md`, "An action is a document").

mod corpus;
pub mod difference;
mod eval;
mod eval_block;
mod gate;
mod gradients;
mod gradients_block;
mod imatrix_block;
mod imatrix_collect;
mod imatrix_import;
mod imatrix_merge;
mod imatrix_moments;
mod inspect_model;
mod join;
mod metrics;
mod moments;
mod moments_block;
mod moments_sum;
mod output;
mod overlap;
mod policy;
mod promote;
mod reference_block;
mod refined_tensor;
pub mod result;
pub mod role;
mod tensor;
mod tensor_error;
mod tensor_loss;
mod tokens;
mod weight_inputs;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;

pub use corpus::Corpus;
pub use eval::Eval;
pub use eval_block::EvalBlock;
pub use gate::Gate;
pub use gradients::Gradients;
pub use gradients_block::GradientsBlock;
pub use imatrix_block::ImatrixBlock;
pub use imatrix_collect::ImatrixCollect;
pub use imatrix_import::ImatrixImport;
pub use imatrix_merge::ImatrixMerge;
pub use imatrix_moments::ImatrixMoments;
pub use inspect_model::InspectModel;
pub use join::Join;
pub use metrics::Metrics;
pub use metrics::MetricsRow;
pub use metrics::RowOverlap;
pub use moments::Moments;
pub use moments_block::MomentsBlock;
pub use moments_sum::MomentsSum;
pub use output::Fact;
pub use output::Output;
pub use overlap::Overlap;
pub use policy::Policy;
pub use promote::Promote;
pub use reference_block::ReferenceBlock;
pub use refined_tensor::RefinedTensor;
pub use result::ActionResult;
pub use tensor::Tensor;
pub use tensor_error::TensorError;
pub use tensor_loss::TensorLoss;
pub use tokens::Tokens;
pub use weight_inputs::WeightInputs;

use role::Field;

/// The version of the format of action documents. It is part of every document, so raising it changes every key.
pub const SCHEMA: u32 = 1;

/// What each kind of action declares.
trait Document {
    /// The name of the kind, as in documents.
    const KIND: &'static str;
    /// All fields of the inputs, with their roles.
    const FIELDS: &'static [Field];
    /// The names of the outputs.
    const OUTPUTS: &'static [&'static str];
}

/// The declaration of a kind of action.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The name, as in documents.
    pub name: &'static str,
    /// All fields of the inputs, with their roles.
    pub fields: &'static [Field],
    /// The names of the outputs.
    pub outputs: &'static [&'static str],
}

/// Defines [`Action`] and [`KINDS`]. A new kind is a file and one line here.
macro_rules! kinds {
    ($($(#[$about:meta])* $kind:ident,)*) => {
        /// One unit of cached work.
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(tag = "kind", content = "inputs", rename_all = "kebab-case")]
        pub enum Action {
            $($(#[$about])* $kind($kind),)*
        }

        /// Every kind of action.
        pub const KINDS: &[Kind] = &[$(Kind {
            name: <$kind as Document>::KIND,
            fields: <$kind as Document>::FIELDS,
            outputs: <$kind as Document>::OUTPUTS,
        },)*];

        impl Action {
            /// Returns the name of the kind, as in documents.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$kind as Document>::KIND,)*
                }
            }
        }
    };
}

kinds! {
    /// Reads a model's header and hashes its tensors.
    InspectModel,
    /// Checks the texts of a corpus.
    Corpus,
    /// Tokenizes texts.
    Tokens,
    /// Collects the imatrix of a block of chunks.
    ImatrixBlock,
    /// Collects an imatrix: the sum of its blocks of chunks.
    ImatrixCollect,
    /// Merges imatrices.
    ImatrixMerge,
    /// Imports an imatrix file of another program.
    ImatrixImport,
    /// Makes an imatrix of second moments.
    ImatrixMoments,
    /// Finds out which weights of a model share an input.
    WeightInputs,
    /// Adds up the second moments of one input over a block of chunks.
    MomentsBlock,
    /// Adds up the second moments of an input.
    MomentsSum,
    /// Collects the second moments of all inputs of a model's weights.
    Moments,
    /// Adds up the factors of gradients at all weights over a block of chunks.
    GradientsBlock,
    /// Collects the factors of gradients at all weights of a model.
    Gradients,
    /// Checks that an imatrix fits a model.
    Join,
    /// Chooses a type for each tensor.
    Policy,
    /// Quantizes one tensor.
    Tensor,
    /// Quantizes one tensor, and chooses its codes under the second moments of its input.
    RefinedTensor,
    /// Computes the squared errors of a quantized tensor.
    TensorError,
    /// Computes what the errors of a quantized tensor cost, from gradients.
    TensorLoss,
    /// Assembles a candidate from its tensors.
    Promote,
    /// Computes the reference's log-probabilities of a block of chunks.
    ReferenceBlock,
    /// Measures a candidate on a block of chunks.
    EvalBlock,
    /// Measures a candidate over all its blocks of chunks.
    Eval,
    /// Compares a text that candidates are evaluated on with one that they were calibrated on.
    Overlap,
    /// Builds the table of candidates.
    Metrics,
    /// Compares figures with requirements.
    Gate,
}

#[derive(Serialize, Deserialize)]
struct Envelope<A> {
    schema: u32,
    #[serde(flatten)]
    action: A,
}

/// Why bytes are not an action document of this version.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// They are not JSON, or not of a known kind.
    #[error("not an action document: {0}")]
    Malformed(#[from] serde_json::Error),
    /// They have another version of the format.
    #[error("an action document of schema {found}; this version of forge reads {SCHEMA}")]
    Schema {
        /// The version in the document.
        found: u32,
    },
}

impl Action {
    /// Returns the canonical bytes: JSON without white space, fields in declared order, maps sorted; strings, integers
    /// and booleans only.
    pub fn document(&self) -> Vec<u8> {
        serde_json::to_vec(&Envelope {
            schema: SCHEMA,
            action: self,
        })
        .unwrap_or_else(|error| {
            // Typed structs of strings, integers and string-keyed maps cannot fail to serialize.
            unreachable!("an action document serializes: {error}")
        })
    }

    /// Parses a document.
    pub fn parse(document: &[u8]) -> Result<Self, DocumentError> {
        let document: Envelope<Self> = serde_json::from_slice(document)?;
        if document.schema == SCHEMA {
            Ok(document.action)
        } else {
            Err(DocumentError::Schema { found: document.schema })
        }
    }

    /// Returns the key: the digest of the document in the action domain.
    pub fn digest(&self) -> ActionDigest {
        ActionDigest::of(&self.document())
    }

    /// Returns the digest of the document as a blob.
    pub fn document_digest(&self) -> BlobDigest {
        BlobDigest::of(&self.document())
    }
}

#[cfg(test)]
mod tests {
    use super::role::Role;
    use super::*;

    /// Calls `see` with the path and role of every declared field.
    fn walk(path: &str, fields: &[Field], see: &mut dyn FnMut(&str, &Role)) {
        for field in fields {
            let path = format!("{path}.{}", field.name);
            see(&path, &field.role);
            match field.role {
                Role::Fields(inner) => walk(&path, inner, see),
                Role::OneOf { variants, .. } => {
                    for (name, inner) in variants {
                        walk(&format!("{path}={name}"), inner, see);
                    }
                }
                _ => {}
            }
        }
    }

    #[test]
    fn every_input_names_a_kind_and_an_output_that_exist() {
        let has = |kind: &str, output: Option<&str>| {
            let found = KINDS.iter().find(|known| known.name == kind);
            found.is_some_and(|known| output.is_none_or(|output| known.outputs.contains(&output)))
        };
        let mut inputs = 0;
        for kind in KINDS {
            assert!(!kind.outputs.is_empty(), "{}", kind.name);
            walk(kind.name, kind.fields, &mut |path, role| match role {
                Role::Input(outputs) | Role::PartOf(outputs) => {
                    assert!(!outputs.is_empty(), "{path}");
                    for named in *outputs {
                        assert!(has(named.kind, Some(named.output)), "{path}: {named:?}");
                        inputs += 1;
                    }
                }
                Role::Key(kinds) => {
                    assert!(!kinds.is_empty(), "{path}");
                    kinds.iter().for_each(|kind| assert!(has(kind, None), "{path}: {kind}"));
                }
                _ => {}
            });
        }
        assert!(inputs > 40, "{inputs}");
    }

    #[test]
    fn variants_that_share_a_field_have_it_from_the_same_origin() {
        for kind in KINDS {
            walk(kind.name, kind.fields, &mut |path, role| {
                let Role::OneOf { tag, variants } = role else { return };
                let mut known = std::collections::BTreeMap::new();
                for (name, fields) in *variants {
                    for field in *fields {
                        assert_ne!(field.name, *tag, "{path}={name}");
                        let before = known.insert(field.name, field.role.origin());
                        assert!(
                            before.is_none_or(|before| before == field.role.origin()),
                            "{path}={name}.{}",
                            field.name
                        );
                    }
                }
            });
        }
    }
}
