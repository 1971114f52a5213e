//! What the policies need that keep to a budget: the exact length of the file, and what the imatrix saw.

use crate::action::PolicyBudget;
use crate::action::PolicyHeader;
use crate::allocation;
use crate::allocation::Answer;
use crate::allocation::Effort;
use crate::allocation::Solver;
use crate::allocation::Status;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::gguf::Layout;
use crate::gguf::TensorSpec;
use crate::imatrix::Entry;
use crate::policy::Budget;
use crate::policy::Energies;
use crate::policy::Energy;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Prepared;
use crate::store::Store;
use crate::work::Context;
use crate::work::StepError;
use crate::work::candidate_metadata::ImatrixFacts;
use crate::work::candidate_metadata::candidate_metadata;
use crate::work::documents::decode_metadata;
use crate::work::imatrix;
use crate::work::join::slice_bytes;

/// Returns the bytes of a budget.
pub(super) fn bytes_of(budget: PolicyBudget, facts: &ModelFacts) -> u64 {
    let elements = facts
        .tensors
        .iter()
        .map(|tensor| tensor.dims.iter().product::<u64>())
        .sum();
    match budget {
        PolicyBudget::Bytes { number } => Budget::Bytes(number),
        PolicyBudget::MillionthsOfBits { number } => Budget::MillionthsOfBits(number),
    }
    .bytes(elements)
}

/// Returns how long a candidate's file is besides its tensors: types do not change the length of its header.
pub(super) fn file_size(store: &Store, header: &PolicyHeader, facts: &ModelFacts) -> Result<FileSize, StepError> {
    // Counts have the same length whatever they are.
    let imatrix = header.dataset.as_deref().map(|dataset| ImatrixFacts {
        dataset,
        entries: 0,
        chunks: 0,
    });
    let specs = facts.tensors.iter().map(|tensor| TensorSpec {
        name: tensor.name.clone(),
        ty: tensor.ty,
        dims: tensor.dims.clone(),
    });
    around(store, header.metadata, specs.collect(), Some(0), imatrix.as_ref())
}

/// Returns what a file of these tensors has around their data, whatever their types are.
pub fn around(
    store: &Store,
    metadata: BlobDigest,
    specs: Vec<TensorSpec>,
    file_type: Option<u32>,
    imatrix: Option<&ImatrixFacts<'_>>,
) -> Result<FileSize, StepError> {
    let metadata = decode_metadata(store, metadata)?;
    let metadata = candidate_metadata(metadata, file_type, imatrix)?;
    let layout = metadata
        .alignment()
        .and_then(|alignment| Layout::new(&metadata, &specs, alignment))
        .map_err(|error| StepError::input(format!("the candidate cannot be laid out: {error}")))?;
    Ok(FileSize {
        header: layout.data_offset(),
        alignment: layout.alignment(),
    })
}

/// Returns what an imatrix of the store saw of the tensors that it fits.
pub(super) fn energies(context: &Context<'_>, digest: BlobDigest, has: HasImatrix<'_>) -> Result<Energies, StepError> {
    let imatrix = imatrix::load(context.store(), digest)?;
    Ok(energies_of(&imatrix, |name| has.is_some_and(|has| has(name))))
}

/// Returns what an imatrix saw of some tensors.
pub fn energies_of(imatrix: &crate::imatrix::Imatrix, of: impl Fn(&str) -> bool) -> Energies {
    let entries = imatrix.entries.iter().filter(|(name, _)| of(name));
    entries.map(|(name, entry)| (name.clone(), energy_of(entry))).collect()
}

/// What the solver proved.
pub(super) struct Solved {
    /// The certificate.
    pub(super) certificate: String,
    /// True if no other choice has a smaller loss.
    pub(super) optimal: bool,
}

/// Solves a problem within a limit for each of its capacities: the bytes of the file, then those of devices.
pub(super) fn answer(
    context: &Context<'_>,
    prepared: &Prepared,
    limits: &[u64],
    states: u64,
    failed: impl Fn(PolicyError) -> StepError,
) -> Result<Answer, StepError> {
    let cancelled = || context.cancel().is_cancelled();
    let effort = Effort {
        states,
        stop: Some(&cancelled),
    };
    let answer = Solver::new(prepared.problem())
        .solve(limits, &effort)
        .map_err(|error| broken(&error))?;
    // An answer that was cut short is not what others would get.
    if context.cancel().is_cancelled() {
        return Err(StepError::Stopped);
    }
    if answer.status == Status::BelowMinimum {
        return Err(failed(below_minimum(prepared, limits, &answer.uses)));
    }
    Ok(answer)
}

/// Returns what an answer proves.
pub(super) fn certify(prepared: &Prepared, answer: &Answer) -> Result<Solved, StepError> {
    let certificate = allocation::document(prepared.problem(), prepared.scale(), std::slice::from_ref(answer))
        .map_err(|error| broken(&error))?;
    Ok(Solved {
        certificate,
        optimal: answer.status == Status::Optimal,
    })
}

fn broken(error: &dyn std::fmt::Display) -> StepError {
    StepError::Document {
        what: "certificate",
        problem: error.to_string(),
    }
}

/// Says which limit is below what the smallest options use. These are the smallest in every capacity, since a type that is smaller for
/// one tensor is so for all.
fn below_minimum(prepared: &Prepared, limits: &[u64], uses: &[u64]) -> PolicyError {
    let capacities = prepared.problem().capacities().iter();
    let all = capacities.zip(limits.iter().zip(uses)).enumerate();
    for (at, (capacity, (limit, minimum))) in all {
        if at > 0 && minimum > limit {
            return PolicyError::DeviceBelowMinimum {
                device: capacity.name.clone(),
                memory: *limit,
                minimum: *minimum,
                constant: capacity.constant,
            };
        }
    }
    PolicyError::BelowMinimum {
        budget: limits.first().copied().unwrap_or_default(),
        minimum: uses.first().copied().unwrap_or_default(),
    }
}

fn energy_of(entry: &Entry) -> Energy {
    let columns = entry.columns.max(1);
    let sum = |sums: &[f32]| sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
    let rows: f64 = entry.counts.iter().map(|count| f64::from(*count)).sum();
    let seen = (rows * columns as f64).max(f64::MIN_POSITIVE);
    let experts = entry.sums.chunks(columns).map(|sums| sum(sums) / seen).collect();
    let hash = Hash::of(&slice_bytes(&entry.sums));
    let tie = hash
        .as_bytes()
        .iter()
        .take(16)
        .fold(0_u128, |tie, byte| tie << 8 | u128::from(*byte));
    Energy {
        mean: if rows > 0.0 { sum(&entry.sums) / seen } else { 0.0 },
        experts,
        columns: columns as u64,
        tie,
    }
}
