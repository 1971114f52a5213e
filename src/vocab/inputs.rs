//! Outputs that several kinds of action take as inputs.

use super::role::OutputOf;
use super::role::output;

/// Indices of models.
pub const MODELS: &[OutputOf] = &[output("inspect-model", "model")];
/// The tensors and hyperparameters of a model.
pub const SHAPES: &[OutputOf] = &[output("inspect-model", "shape")];
/// Vocabularies of models.
pub const TOKENIZERS: &[OutputOf] = &[output("inspect-model", "tokenizer")];
/// Corpora.
pub const CORPORA: &[OutputOf] = &[output("corpus", "corpus")];
/// Imatrices, collected, merged or imported.
pub const IMATRICES: &[OutputOf] = &[
    output("imatrix-collect", "imatrix"),
    output("imatrix-merge", "imatrix"),
    output("imatrix-import", "imatrix"),
    output("imatrix-moments", "imatrix"),
];
/// Second moments of all inputs of a model.
pub const MOMENTS: &[OutputOf] = &[output("moments", "index")];
/// The digests of each tensor's importances.
pub const SLICES: &[OutputOf] = &[output("join", "slices")];
/// The imatrix that a policy goes by is the one that was joined with its model.
pub const JOINED: &[OutputOf] = &[output("join", "imatrix")];
/// The compute-relevant parts of models.
pub const COMPUTES: &[OutputOf] = &[output("inspect-model", "compute")];
