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
use crate::policy::Table;
use crate::recipe::Quantity;
use crate::recipe::model;
use crate::recipe::model::SizeOf;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::StepError;
use crate::step::imatrix;
use crate::step::join::slice_bytes;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::Shape;
use crate::step::model::decode;
use crate::step::model::decode_metadata;
use crate::step::promote::parts::Said;
use crate::step::promote::parts::candidate_metadata;

/// Returns a budget of a recipe as actions hold it: of another candidate its bytes, so that what keeps to the same number of
/// bytes is the same action, wherever the number comes from.
pub(super) fn document_of(budget: &model::Budget, inputs: &Inputs, env: &Env<'_>) -> Result<PolicyBudget, StepError> {
    Ok(match budget {
        model::Budget::Quantity(Quantity::Bytes(number)) => PolicyBudget::Bytes { number: *number },
        // The recipe takes no percentages here.
        model::Budget::Quantity(Quantity::BitsPerWeight(rate) | Quantity::Percent(rate)) => {
            PolicyBudget::MillionthsOfBits {
                number: rate.millionths(),
            }
        }
        model::Budget::Candidate(size) => PolicyBudget::Bytes {
            number: length_of(size, inputs, env)?,
        },
    })
}

/// Returns how long a candidate's file is, or will be: that follows from its types and its header.
fn length_of(size: &SizeOf, inputs: &Inputs, env: &Env<'_>) -> Result<u64, StepError> {
    let (model, policy) = (inputs.source(&size.model)?, inputs.step(&size.policy)?);
    let join = size.join.as_ref().map(|join| inputs.step(join)).transpose()?;
    let shape: Shape = decode(env, "shape", model.output("shape")?)?;
    let table: Table = decode(env, "policy", policy.output("policy")?)?;
    let specs = shape.tensors.into_iter().map(|tensor| TensorSpec {
        name: tensor.name,
        ty: tensor.ty,
        dims: tensor.dims,
    });
    let metadata = model.output("metadata")?;
    let said = join.map(Said::of).transpose()?;
    let file_type = policy.fact("file_type").parse().ok();
    let around = around(env, metadata, specs.collect(), file_type, said.as_ref())?;
    Ok(around.of(&table.choices))
}

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
pub(super) fn file_size(env: &Env<'_>, header: &PolicyHeader, facts: &ModelFacts) -> Result<FileSize, StepError> {
    // Counts have the same length whatever they are.
    let said = header.dataset.as_deref().map(|dataset| Said {
        dataset,
        entries: 0,
        chunks: 0,
    });
    let specs = facts.tensors.iter().map(|tensor| TensorSpec {
        name: tensor.name.clone(),
        ty: tensor.ty,
        dims: tensor.dims.clone(),
    });
    around(env, header.metadata, specs.collect(), Some(0), said.as_ref())
}

/// Returns what a file of these tensors has around their data, whatever their types are.
fn around(
    env: &Env<'_>,
    metadata: BlobDigest,
    specs: Vec<TensorSpec>,
    file_type: Option<u32>,
    said: Option<&Said<'_>>,
) -> Result<FileSize, StepError> {
    let metadata = decode_metadata(&env.store.read(&metadata, DOCUMENT_CAP)?)?;
    let metadata = candidate_metadata(metadata, file_type, said)?;
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
pub(super) fn energies(env: &Env<'_>, digest: BlobDigest, has: HasImatrix<'_>) -> Result<Energies, StepError> {
    let imatrix = imatrix::load(env, digest)?;
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
    env: &Env<'_>,
    prepared: &Prepared,
    limits: &[u64],
    states: u64,
    failed: impl Fn(PolicyError) -> StepError,
) -> Result<Answer, StepError> {
    let cancelled = || env.cancel.is_cancelled();
    let effort = Effort {
        states,
        stop: Some(&cancelled),
    };
    let answer = Solver::new(prepared.problem())
        .solve(limits, &effort)
        .map_err(|error| broken(&error))?;
    // An answer that was cut short is not what others would get.
    if env.cancel.is_cancelled() {
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
