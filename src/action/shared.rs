//! Outputs that several kinds of actions take.

use super::role::OutputOf;
use super::role::output;

/// Where all bytes of a model are.
pub(super) const MODELS: &[OutputOf] = &[output("inspect-model", "model")];
/// What a policy can know of a model.
pub(super) const SHAPES: &[OutputOf] = &[output("inspect-model", "shape")];
/// A model's vocabulary.
pub(super) const TOKENIZERS: &[OutputOf] = &[output("inspect-model", "tokenizer")];
/// The texts of a corpus.
pub(super) const CORPORA: &[OutputOf] = &[output("corpus", "corpus")];
/// Imatrices, however they came about.
pub(super) const IMATRICES: &[OutputOf] = &[
    output("imatrix-collect", "imatrix"),
    output("imatrix-merge", "imatrix"),
    output("imatrix-import", "imatrix"),
];
/// The digest of each tensor's importances.
pub(super) const SLICES: &[OutputOf] = &[output("join", "slices")];
