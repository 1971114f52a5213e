//! The phases of steps.

use std::fmt;

use serde::Serialize;

/// A part of a step's work. The phases of a step follow each other in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Reading files and hashing them.
    Hash,
    /// The log-probabilities of a reference.
    Reference,
    /// The imatrix of a text.
    Collect,
    /// Second moments of inputs.
    Moments,
    /// The loss of the unchanged model, by which the others are corrected.
    Unchanged,
    /// Gradients at the outputs of weights.
    Gradients,
    /// Quantizing tensors.
    Quantize,
    /// Refining the codes of tensors.
    Codes,
    /// The first measurements of all types of all groups.
    Screen,
    /// More measurements of those that could be part of the best choice.
    Undecided,
    /// Squared errors of tensors in types.
    Compare,
    /// Choices, measured as a whole.
    Choices,
    /// Changes of single groups of the best choice, measured and solved again.
    Refine,
    /// A candidate, measured on a text.
    Evaluate,
    /// Writing a candidate.
    Write,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 15] = [
        Self::Hash,
        Self::Reference,
        Self::Collect,
        Self::Moments,
        Self::Unchanged,
        Self::Gradients,
        Self::Quantize,
        Self::Codes,
        Self::Screen,
        Self::Undecided,
        Self::Compare,
        Self::Choices,
        Self::Refine,
        Self::Evaluate,
        Self::Write,
    ];

    /// Returns the name in documents.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Reference => "reference",
            Self::Collect => "collect",
            Self::Moments => "moments",
            Self::Unchanged => "unchanged",
            Self::Gradients => "gradients",
            Self::Quantize => "quantize",
            Self::Codes => "codes",
            Self::Screen => "screen",
            Self::Undecided => "undecided",
            Self::Compare => "compare",
            Self::Choices => "choices",
            Self::Refine => "refine",
            Self::Evaluate => "evaluate",
            Self::Write => "write",
        }
    }

    /// Returns what is done, for people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Hash => "hashing",
            Self::Reference => "computing the reference",
            Self::Collect => "collecting",
            Self::Moments => "collecting second moments",
            Self::Unchanged => "measuring the unchanged model",
            Self::Gradients => "computing gradients",
            Self::Quantize => "quantizing",
            Self::Codes => "refining codes",
            Self::Screen => "screening",
            Self::Undecided => "measuring undecided types",
            Self::Compare => "comparing",
            Self::Choices => "measuring choices",
            Self::Refine => "refining",
            Self::Evaluate => "measuring",
            Self::Write => "writing",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
