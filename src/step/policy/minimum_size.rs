//! The size of a candidate, estimated from the header of the model alone, as if the imatrix covered every tensor.

use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Cancel;
use crate::method;
use crate::method::BudgetDocument;
use crate::method::HeaderDocument;
use crate::method::MethodError;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::recipe::model::Budget;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepId;
use crate::vocab::EngineRole;

use super::document::keep_of;

/// Returns a lower bound of the tensor bytes of a candidate of this policy. `None` if the policy would fail or needs more than the
/// header.
pub fn minimum_bytes(step: &PolicyStep, facts: &ModelFacts) -> Option<u64> {
    let all = |_: &str| true;
    let header = Header {
        facts,
        has: if step.join.is_some() { Some(&all) } else { None },
    };
    let document = step.method.document(keep_of(step), &header).ok()?;
    document.choose(&header).ok()?.table.bytes()
}

/// The header of a model: everything else is an error.
struct Header<'m> {
    facts: &'m ModelFacts,
    has: HasImatrix<'m>,
}

fn unknown<T>() -> Result<T, MethodError> {
    Err(MethodError::new("the header of the model does not state this"))
}

impl method::Inputs for Header<'_> {
    type Error = MethodError;

    fn model(&self) -> Result<BlobDigest, MethodError> {
        unknown()
    }

    fn tokenizer(&self) -> Result<BlobDigest, MethodError> {
        unknown()
    }

    fn header(&self) -> Result<HeaderDocument, MethodError> {
        unknown()
    }

    fn imatrix(&self) -> Result<Option<BlobDigest>, MethodError> {
        unknown()
    }

    fn corpus(&self, _step: &StepId) -> Result<BlobDigest, MethodError> {
        unknown()
    }

    fn imatrix_of(&self, _step: &StepId) -> Result<BlobDigest, MethodError> {
        unknown()
    }

    fn budget(&self, _budget: &Budget) -> Result<BudgetDocument, MethodError> {
        unknown()
    }

    fn engine(&self, _role: EngineRole) -> Result<Fingerprint, MethodError> {
        unknown()
    }
}

impl method::Material for Header<'_> {
    type Error = MethodError;

    fn facts(&self) -> &ModelFacts {
        self.facts
    }

    fn has_imatrix(&self) -> HasImatrix<'_> {
        self.has
    }

    fn energies(&self, _imatrix: BlobDigest) -> Result<Energies, MethodError> {
        unknown()
    }

    fn file_size(&self, _header: &HeaderDocument) -> Result<FileSize, MethodError> {
        unknown()
    }

    fn metadata(&self, _header: &HeaderDocument) -> Result<Metadata, MethodError> {
        unknown()
    }

    fn check_stopped(&self) -> Result<(), MethodError> {
        Ok(())
    }

    fn cancel(&self) -> Option<&Cancel> {
        None
    }
}
