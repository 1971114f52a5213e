//! An action is a document: what will be done, with every input as a digest. Its canonical bytes are stored, and their
//! hash is the key under which the result is found again. So a key can never cover less, or more, than what a person can
//! read, and two actions are compared field by field (`docs/design-notes.md`, "An action is a document").

mod corpus;
pub mod difference;
mod eval;
mod eval_block;
mod gate;
mod imatrix_block;
mod imatrix_collect;
mod imatrix_import;
mod imatrix_merge;
mod inspect_model;
mod join;
mod metrics;
mod output;
mod policy;
mod promote;
mod reference_block;
pub mod result;
pub mod role;
mod shared;
mod tensor;
mod tensor_error;
mod tokens;

use serde::Deserialize;
use serde::Serialize;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;

pub use corpus::Chunking;
pub use corpus::Corpus;
pub use eval::Eval;
pub use eval_block::EvalBlock;
pub use gate::Gate;
pub use imatrix_block::ImatrixBlock;
pub use imatrix_collect::ImatrixCollect;
pub use imatrix_import::ImatrixImport;
pub use imatrix_merge::ImatrixMerge;
pub use imatrix_merge::MergeMode;
pub use inspect_model::InspectModel;
pub use join::Join;
pub use join::Severity;
pub use metrics::Metrics;
pub use metrics::MetricsRow;
pub use output::Fact;
pub use output::Output;
pub use policy::BoostBase;
pub use policy::BoostLayers;
pub use policy::Errors;
pub use policy::Measured;
pub use policy::Method;
pub use policy::Policy;
pub use policy::PolicyBudget;
pub use policy::PolicyCache;
pub use policy::PolicyDevice;
pub use policy::PolicyHeader;
pub use policy::PolicyRule;
pub use policy::Probes;
pub use promote::Promote;
pub use reference_block::ReferenceBlock;
pub use result::ActionResult;
pub use tensor::Tensor;
pub use tensor_error::TensorError;
pub use tokens::Tokens;

use role::Field;

/// The version of the form of action documents. It stands in every document, so that raising it changes every key.
pub const SCHEMA: u32 = 1;

/// The inputs of a kind of action, with what forge must know of them without knowing the kind.
trait Document {
    /// The kind, as documents spell it.
    const KIND: &'static str;
    /// Every field, with its role.
    const FIELDS: &'static [Field];
    /// The names of the outputs.
    const OUTPUTS: &'static [&'static str];
}

/// A kind of action, as it is declared.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name, as documents spell it.
    pub name: &'static str,
    /// The fields of its inputs.
    pub fields: &'static [Field],
    /// The names of its outputs.
    pub outputs: &'static [&'static str],
}

/// Makes the type of all actions and the table of their kinds: a kind more is one line here and one file.
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
            /// Returns the kind, as the document spells it.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => <$kind as Document>::KIND,)*
                }
            }
        }
    };
}

kinds! {
    /// Reads a GGUF model's header and digests its tensors.
    InspectModel,
    /// Checks the texts of a corpus.
    Corpus,
    /// Turns texts into tokens.
    Tokens,
    /// Collects the imatrix of a block of chunks.
    ImatrixBlock,
    /// Collects an imatrix: the sum of its blocks.
    ImatrixCollect,
    /// Merges imatrices.
    ImatrixMerge,
    /// Reads a foreign imatrix.
    ImatrixImport,
    /// Holds an imatrix against a model.
    Join,
    /// Gives each tensor a type.
    Policy,
    /// Quantizes one tensor.
    Tensor,
    /// Compares a quantized tensor with its source.
    TensorError,
    /// Assembles a candidate of its tensors.
    Promote,
    /// Computes the reference's log-probabilities of a block of chunks.
    ReferenceBlock,
    /// Measures a candidate on a block of chunks.
    EvalBlock,
    /// Measures a candidate: the figures of all its blocks.
    Eval,
    /// Makes the table of candidates.
    Metrics,
    /// Holds figures against bounds.
    Gate,
}

#[derive(Serialize, Deserialize)]
struct Envelope<A> {
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
        serde_json::to_vec(&Envelope {
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
        let document: Envelope<Self> = serde_json::from_slice(document)?;
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
}

#[cfg(test)]
mod tests {
    use super::role::Role;
    use super::*;

    /// Calls `see` for every role that is declared, with the path of its field.
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
                Role::Key(kind) => assert!(has(kind, None), "{path}: {kind}"),
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
