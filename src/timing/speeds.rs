//! The speeds of a machine: seconds for a unit of each operation.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use super::Amounts;
use super::Operation;
use crate::tensor_type::TensorType;

/// The version of the document.
pub const SCHEMA: u32 = 1;

/// The factor within which a duration by assumed speeds is nine of ten times.
const ASSUMED: f64 = 5.0;

/// The factor within which a duration by measured speeds is nine of ten times (`timing_of_recorded_runs` in `tests/it/timing.rs`).
const MEASURED: f64 = 1.8;

/// Seconds for a unit of each operation, with all threads of a build.
#[derive(Debug, Clone, PartialEq)]
pub struct Speeds {
    seconds: BTreeMap<Operation, f64>,
    measured: BTreeSet<Operation>,
}

/// The document of speeds, by the names of operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Seconds for a unit.
    pub seconds: BTreeMap<String, f64>,
}

impl Speeds {
    /// Returns the speeds of a common machine: what is assumed before a machine is measured.
    pub fn assumed(threads: usize) -> Self {
        let threads = threads.max(1) as f64;
        let seconds = Operation::all().map(|operation| (operation, assumed(operation, threads)));
        Self {
            seconds: seconds.collect(),
            measured: BTreeSet::new(),
        }
    }

    /// Replaces the seconds for a unit of an operation by measured ones. Those that are not numbers above zero are ignored.
    pub fn set(&mut self, operation: Operation, seconds: f64) {
        if seconds.is_finite() && seconds > 0.0 {
            self.seconds.insert(operation, seconds);
            self.measured.insert(operation);
        }
    }

    /// Adds the speeds that were measured in others.
    pub fn add(&mut self, others: &Self) {
        for &operation in &others.measured {
            self.set(operation, others.seconds(operation));
        }
    }

    /// Returns the seconds for a unit of an operation.
    pub fn seconds(&self, operation: Operation) -> f64 {
        self.seconds.get(&operation).copied().unwrap_or_default()
    }

    /// Returns whether the speed of an operation was measured.
    pub fn is_measured(&self, operation: Operation) -> bool {
        self.measured.contains(&operation)
    }

    /// Returns whether the speed of any operation was measured.
    pub fn is_any_measured(&self) -> bool {
        !self.measured.is_empty()
    }

    /// Returns how long amounts of work take, in milliseconds.
    pub fn milliseconds(&self, amounts: &Amounts) -> f64 {
        let seconds = amounts
            .iter()
            .map(|(operation, amount)| amount * self.seconds(operation));
        seconds.sum::<f64>() * 1e3
    }

    /// Returns the factor within which such a duration is nine of ten times.
    pub fn spread(&self) -> f64 {
        if self.is_any_measured() { MEASURED } else { ASSUMED }
    }

    /// Returns the document of the speeds that were measured.
    pub fn document(&self) -> Document {
        let seconds = self
            .measured
            .iter()
            .map(|operation| (operation.to_string(), self.seconds(*operation)));
        Document {
            schema: SCHEMA,
            seconds: seconds.collect(),
        }
    }

    /// Reads a document; operations that are not known are ignored. `None` if it has another version.
    pub fn of_document(document: &Document, threads: usize) -> Option<Self> {
        if document.schema != SCHEMA {
            return None;
        }
        let mut speeds = Self::assumed(threads);
        for (name, &seconds) in &document.seconds {
            if let Some(operation) = Operation::from_name(name) {
                speeds.set(operation, seconds);
            }
        }
        Some(speeds)
    }
}

/// Returns the seconds for a unit of an operation that are assumed for so many threads: those of an Intel Ice Lake server at 2.6 GHz,
/// rounded.
fn assumed(operation: Operation, threads: f64) -> f64 {
    match operation {
        Operation::Start => 0.1,
        Operation::Load => 1.0 / 1.5e9,
        Operation::Hash => 1.0 / 2e9,
        Operation::Write => 1.0 / 0.25e9,
        Operation::Commit => 0.004,
        Operation::Node => 300e-6 / threads,
        Operation::Quantize(ty) => 1.0 / (quantized_in_a_second(ty) * threads),
        // One thread builds them.
        Operation::Tables(ty) => seconds_of_tables(ty),
        Operation::Compare(_) => 1.0 / (150e6 * threads),
        Operation::Multiply(_) => 1.0 / (30e9 * threads),
        Operation::Score => 1.0 / (75e6 * threads),
        Operation::Encode => 1.0 / 80e6,
        Operation::Collect => 1.0 / (50e6 * threads),
        Operation::Product => 1.0 / (15e9 * threads),
    }
}

/// Returns how many seconds a thread needs to build the tables of a type on that machine; 0 if it has none.
pub fn seconds_of_tables(ty: TensorType) -> f64 {
    match ty {
        TensorType::IQ1_S | TensorType::IQ1_M => 12.0,
        TensorType::IQ2_XXS => 1.4,
        TensorType::IQ2_XS => 2.8,
        TensorType::IQ2_S => 5.5,
        TensorType::IQ3_XXS => 0.1,
        TensorType::IQ3_S => 0.3,
        _ => 0.0,
    }
}

/// Returns how many weights a thread quantizes in a second on that machine. Types whose quantizers build large tables first, which takes
/// seconds, are not measured on other machines: they are assumed to be slower there than Q4_K by the same factor.
pub(super) fn quantized_in_a_second(ty: TensorType) -> f64 {
    match ty {
        TensorType::IQ1_S | TensorType::IQ2_XXS => 1.5e6,
        TensorType::IQ1_M | TensorType::Q2_K => 2.1e6,
        TensorType::IQ2_XS => 0.55e6,
        TensorType::IQ2_S => 1.2e6,
        TensorType::IQ3_XXS => 0.8e6,
        TensorType::IQ3_S => 1.1e6,
        TensorType::IQ4_XS | TensorType::IQ4_NL => 2.8e6,
        TensorType::Q3_K => 8.5e6,
        TensorType::Q4_K | TensorType::Q5_K | TensorType::Q4_1 | TensorType::Q5_1 => 5e6,
        TensorType::Q6_K | TensorType::Q4_0 | TensorType::Q5_0 => 23e6,
        _ => 100e6,
    }
}
