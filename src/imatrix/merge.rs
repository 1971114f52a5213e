//! Merging.

use super::Imatrix;

/// How inputs become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MergeMode {
    /// Adds sums and counts: every token counts the same.
    Sum,
    /// Averages importances.
    Mean,
    /// Takes the largest importance.
    Max,
}

/// The weight of an input, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// 1.
    pub const ONE: Self = Self(1_000_000);

    /// Returns the weight of so many millionths; none for 0.
    pub const fn from_millionths(millionths: u32) -> Option<Self> {
        if millionths == 0 { None } else { Some(Self(millionths)) }
    }

    /// Returns the millionths.
    pub const fn millionths(self) -> u32 {
        self.0
    }
}

/// A merged imatrix and what its inputs lacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The result.
    pub imatrix: Imatrix,
    /// The weights that some inputs did not have, by name.
    pub partial: Vec<PartialTensor>,
}

/// A weight that some inputs did not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialTensor {
    /// The weight.
    pub name: String,
    /// The inputs without it, by number from 0.
    pub missing_in: Vec<usize>,
}

/// Why inputs do not merge.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("there is nothing to merge")]
    NoInputs,
}

impl Imatrix {
    /// Merges.
    pub fn merge(inputs: &[(&Self, Weight)], mode: MergeMode) -> Result<Merged, MergeError> {
        let _ = (inputs, mode);
        Err(MergeError::NoInputs)
    }
}
