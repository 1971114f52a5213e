//! What the methods must know of an imatrix.

use std::collections::BTreeMap;

/// What calibration saw of a tensor's inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Energy {
    /// The mean squared activation: sums over counts, over all columns; experts count as often as they were routed to.
    pub mean: f64,
    /// The same for each expert, times the share of rows that it saw; one for a plain matrix. 0 for an expert that saw none.
    pub experts: Vec<f64>,
    /// Columns of a row.
    pub columns: u64,
    /// The same for two tensors only if their sums are the same, bit for bit: then they have the same inputs.
    pub tie: u128,
}

/// Energies by tensor; tensors without data are not in it.
pub type Energies = BTreeMap<String, Energy>;
