//! Outputs that several kinds of action take as inputs.

use super::role::OutputOf;
use super::role::output;

/// Indices of models.
pub(super) const MODELS: &[OutputOf] = &[output("inspect-model", "model")];
/// The tensors and hyperparameters of a model.
pub(super) const SHAPES: &[OutputOf] = &[output("inspect-model", "shape")];
/// Vocabularies of models.
pub(super) const TOKENIZERS: &[OutputOf] = &[output("inspect-model", "tokenizer")];
/// Corpora.
pub(super) const CORPORA: &[OutputOf] = &[output("corpus", "corpus")];
/// Imatrices, collected, merged or imported.
pub(super) const IMATRICES: &[OutputOf] = &[
    output("imatrix-collect", "imatrix"),
    output("imatrix-merge", "imatrix"),
    output("imatrix-import", "imatrix"),
];
/// The digests of each tensor's importances.
pub(super) const SLICES: &[OutputOf] = &[output("join", "slices")];
