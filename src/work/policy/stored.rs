//! What methods choose by, read from the store: the model, what an imatrix saw, and the exact length of the file.

use crate::container;
use crate::container::Metadata;
use crate::container::TensorSpec;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine::Cancel;
use crate::imatrix::Entry;
use crate::imatrix::Imatrix;
use crate::method::HeaderDocument;
use crate::method::Material;
use crate::policy::Energies;
use crate::policy::Energy;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::store::Store;
use crate::work::Context;
use crate::work::StepError;
use crate::work::candidate_metadata::ImatrixFacts;
use crate::work::candidate_metadata::candidate_metadata;
use crate::work::documents::decode_metadata;
use crate::work::imatrix;
use crate::work::join::slice_bytes;

/// A model, its imatrix, and the store that holds what else a method reads.
#[derive(Clone, Copy)]
pub(super) struct Stored<'c, 't> {
    pub(super) context: &'c Context<'t>,
    pub(super) facts: &'c ModelFacts,
    pub(super) has: HasImatrix<'c>,
}

impl Material for Stored<'_, '_> {
    type Error = StepError;

    fn facts(&self) -> &ModelFacts {
        self.facts
    }

    fn has_imatrix(&self) -> HasImatrix<'_> {
        self.has
    }

    fn energies(&self, imatrix: BlobDigest) -> Result<Energies, StepError> {
        Ok(energies_of(&imatrix::load(self.context.store(), imatrix)?))
    }

    fn file_size(&self, header: &HeaderDocument) -> Result<FileSize, StepError> {
        file_size(self.context.store(), header, self.facts)
    }

    fn metadata(&self, header: &HeaderDocument) -> Result<Metadata, StepError> {
        decode_metadata(self.context.store(), header.metadata)
    }

    fn check_stopped(&self) -> Result<(), StepError> {
        self.context.check_cancel()
    }

    fn cancel(&self) -> Option<&Cancel> {
        Some(self.context.cancel())
    }
}

/// Returns how long a candidate's file is besides its tensors: types do not change the length of its header.
fn file_size(store: &Store, header: &HeaderDocument, facts: &ModelFacts) -> Result<FileSize, StepError> {
    let imatrix = uncounted(header.dataset.as_deref());
    file_size_of(store, header.metadata, specs_of(facts), Some(0), imatrix.as_ref())
}

/// Returns the size of a file with these tensors, as a function of their types.
pub fn file_size_of(
    store: &Store,
    metadata: BlobDigest,
    specs: Vec<TensorSpec>,
    file_type: Option<u32>,
    imatrix: Option<&ImatrixFacts<'_>>,
) -> Result<FileSize, StepError> {
    size_of(decode_metadata(store, metadata)?, &specs, file_type, imatrix)
}

/// Returns the size of a file with the tensors of a model, as a function of their types, from the metadata of the model and the name of
/// the text of its imatrix.
///
/// # Errors
///
/// Names and shapes that the container cannot hold.
pub fn file_size_of_header(
    metadata: Metadata,
    facts: &ModelFacts,
    dataset: Option<&str>,
) -> Result<FileSize, StepError> {
    size_of(metadata, &specs_of(facts), Some(0), uncounted(dataset).as_ref())
}

/// Counts have the same length whatever they are.
fn uncounted(dataset: Option<&str>) -> Option<ImatrixFacts<'_>> {
    dataset.map(|dataset| ImatrixFacts {
        dataset,
        entries: 0,
        chunks: 0,
    })
}

fn specs_of(facts: &ModelFacts) -> Vec<TensorSpec> {
    let specs = facts.tensors.iter().map(|tensor| TensorSpec {
        name: tensor.name.clone(),
        ty: tensor.ty,
        dims: tensor.dims.clone(),
    });
    specs.collect()
}

fn size_of(
    metadata: Metadata,
    specs: &[TensorSpec],
    file_type: Option<u32>,
    imatrix: Option<&ImatrixFacts<'_>>,
) -> Result<FileSize, StepError> {
    let metadata = candidate_metadata(metadata, file_type, imatrix)?;
    let layout = metadata
        .alignment()
        .and_then(|alignment| container::OF_CANDIDATES.lay_out(&metadata, specs, alignment))
        .map_err(|error| StepError::input(format!("cannot compute the layout of the candidate: {error}")))?;
    Ok(FileSize {
        header: layout.header().len() as u64,
        alignment: layout.alignment(),
    })
}

/// Returns what an imatrix saw of its tensors.
pub fn energies_of(imatrix: &Imatrix) -> Energies {
    let entries = imatrix.entries.iter();
    entries.map(|(name, entry)| (name.clone(), energy_of(entry))).collect()
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
