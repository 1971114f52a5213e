//! What the methods of policies know of a model and its imatrix.

use crate::action::Policy;
use crate::policy;
use crate::policy::ModelFacts;
use crate::store::Store;
use crate::work::StepError;
use crate::work::documents::decode;
use crate::work::join::Coverage;
use crate::work::model_documents::Shape;
use crate::work::model_documents::facts_of;

/// A model, and which of its tensors an imatrix covers.
pub struct Inspected {
    /// The model.
    pub facts: ModelFacts,
    coverage: Option<Coverage>,
}

impl Inspected {
    /// Reads what a policy depends on.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn load(document: &Policy, store: &Store) -> Result<Self, StepError> {
        let shape: Shape = decode(store, "shape", document.shape)?;
        let coverage = document.coverage.map(|coverage| decode(store, "coverage", coverage));
        Ok(Self {
            facts: facts_of(store, &shape)?,
            coverage: coverage.transpose()?,
        })
    }

    /// Says whether the imatrix has data for a tensor.
    pub fn covers(&self, name: &str) -> bool {
        let coverage = self.coverage.as_ref();
        coverage.is_some_and(|coverage| coverage.tensors.binary_search_by(|t| t.as_str().cmp(name)).is_ok())
    }

    /// Returns the question whether the imatrix has data for a tensor; nothing without an imatrix.
    pub fn has<'c>(&self, covered: &'c dyn Fn(&str) -> bool) -> policy::HasImatrix<'c> {
        self.coverage.is_some().then_some(covered)
    }
}
