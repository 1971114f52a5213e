//! The types of a candidate, with all that is known of why it has them: from a policy's table, from a manifest, or from the
//! candidate's own header.

use std::path::Path;
use std::path::PathBuf;

use super::DiffError;
use super::Kind;
use super::Opened;
use super::detect;
use super::open;
use crate::action::Policy;
use crate::container::Source;
use crate::fs;
use crate::manifest;
use crate::manifest::ActionRecord;
use crate::manifest::Manifest;
use crate::policy::Listing;
use crate::policy::ModelFacts;
use crate::policy::Table;
use crate::policy::TensorFacts;
use crate::store::Store;
use crate::tensor_type::TensorType;

/// No table of types is longer: it has some 200 bytes for each tensor.
const TABLE_CAP: u64 = 64 << 20;

/// Lists the types of a policy's table, of a manifest's candidate, or of a model file. What the policy that made a candidate
/// said is found by the manifest (beside a model file), in the store; without either, types are all there is.
///
/// # Errors
/// [`DiffError::Unknown`] for anything else; what goes wrong when a file is read.
pub fn listing(path: &Path, store: Option<&Store>) -> Result<Listing, DiffError> {
    match open_listed(path)? {
        Opened::Policy(table) => Ok(Listing::of(&table)),
        Opened::Manifest(manifest) => Ok(of_manifest(&manifest, store)),
        Opened::Candidate(candidate) => of_model(path, candidate.model.as_ref(), store),
        other => Err(DiffError::Unlisted {
            path: path.to_owned(),
            kind: other.kind(),
        }),
    }
}

fn open_listed(path: &Path) -> Result<Opened, DiffError> {
    match detect(path)? {
        kind @ (Kind::Recipe | Kind::Imatrix | Kind::Metrics | Kind::Nothing) => Err(DiffError::Unlisted {
            path: path.to_owned(),
            kind,
        }),
        kind => open(path, kind),
    }
}

/// Returns the action of the policy that a manifest's candidate was made by: the one whose table the candidate's action read. That of
/// another candidate may be there, too, if its size was the budget.
pub fn policy_of(manifest: &Manifest) -> Option<&ActionRecord> {
    let forge = &manifest.predicate.forge;
    let read = forge.actions.get(&forge.action)?.document["inputs"]["policy"].as_str()?;
    let wrote = |record: &&ActionRecord| {
        record
            .outputs
            .get(Policy::POLICY.as_str())
            .is_some_and(|table| table == read)
    };
    forge.actions.values().find(wrote)
}

/// Returns the table of the policy that made a manifest's candidate, if the store still has it.
pub fn table_of(manifest: &Manifest, store: Option<&Store>) -> Option<Table> {
    let table = policy_of(manifest)?.outputs.get(Policy::POLICY.as_str())?;
    let bytes = store?.read(&table.parse().ok()?, TABLE_CAP).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn of_manifest(manifest: &Manifest, store: Option<&Store>) -> Listing {
    let subject = manifest.subject.first();
    let file_bytes = subject.and_then(|subject| subject.annotations.get("bytes")?.parse().ok());
    if let Some(table) = table_of(manifest, store) {
        return Listing::of(&table).with_file_bytes(file_bytes);
    }
    let tensors = manifest.predicate.forge.tensors.iter().filter_map(|tensor| {
        let ty = TensorType::from_name(&tensor.ty)?;
        Some((tensor.name.clone(), ty, ty.tensor_bytes(&tensor.dims)?))
    });
    Listing::of_tensors(tensors).with_file_bytes(file_bytes)
}

fn of_model(path: &Path, model: &dyn Source, store: Option<&Store>) -> Result<Listing, DiffError> {
    let file_bytes = Some(model.file_lens().iter().sum());
    let mut beside = path.as_os_str().to_owned();
    beside.push(manifest::SUFFIX);
    let known = fs::read_small(&PathBuf::from(beside), manifest::CAP)
        .ok()
        .and_then(|bytes| Manifest::parse(&bytes).ok())
        .and_then(|manifest| table_of(&manifest, store));
    if let Some(table) = known {
        // A file that was replaced since has other types, or at least may have.
        let same = table.choices.len() == model.tensors().len()
            && table.choices.iter().all(|choice| {
                let tensor = model.tensor(&choice.tensor);
                tensor.is_some_and(|tensor| (tensor.info.ty, tensor.info.len) == (choice.to, choice.bytes))
            });
        if same {
            return Ok(Listing::of(&table).with_file_bytes(file_bytes));
        }
    }
    let tensors = model.tensors().iter().map(|tensor| TensorFacts::from(&tensor.info));
    let facts = ModelFacts::from_metadata(model.metadata(), tensors.collect()).map_err(|error| DiffError::Unknown {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(Listing::of_model(&facts).with_file_bytes(file_bytes))
}
