//! The document of a policy: everything that determines its table, and nothing else.

use crate::action::Corpus;
use crate::action::ImatrixCollect;
use crate::action::InspectModel;
use crate::action::Join;
use crate::action::Moments;
use crate::action::Policy;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::method;
use crate::method::BudgetDocument;
use crate::method::HeaderDocument;
use crate::method::rounding::RoundingDocument;
use crate::recipe::model::Budget;
use crate::recipe::model::EngineRef;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::vocab::EngineRole;

use super::budget;

/// The version of the built-in rules: raise it when a mix gives other types.
const RULES: u32 = 1;

/// Returns the patterns of tensors that stay as they are.
pub(super) fn keep_of(step: &PolicyStep) -> Vec<String> {
    step.keep.iter().map(|pattern| pattern.as_str().to_owned()).collect()
}

/// The results of the steps that a policy depends on.
struct StepInputs<'s> {
    step: &'s PolicyStep,
    inputs: &'s Inputs,
    env: &'s Env<'s>,
    engine: &'s EngineRef,
}

impl StepInputs<'_> {
    fn model(&self) -> Result<&Outcome, StepError> {
        self.inputs.source(&self.step.model)
    }

    fn join(&self) -> Result<Option<&Outcome>, StepError> {
        self.step.join.as_ref().map(|join| self.inputs.step(join)).transpose()
    }
}

impl method::Inputs for StepInputs<'_> {
    type Error = StepError;

    fn model(&self) -> Result<BlobDigest, StepError> {
        self.model()?.output(InspectModel::COMPUTE)
    }

    fn tokenizer(&self) -> Result<BlobDigest, StepError> {
        self.model()?.output(InspectModel::TOKENIZER)
    }

    fn header(&self) -> Result<HeaderDocument, StepError> {
        Ok(HeaderDocument {
            metadata: self.model()?.output(InspectModel::METADATA)?,
            dataset: self.join()?.map(|join| join.fact(Join::DATASET)).transpose()?,
        })
    }

    fn imatrix(&self) -> Result<Option<BlobDigest>, StepError> {
        let join = self.join()?;
        join.map(|join| join.output(ImatrixCollect::IMATRIX)).transpose()
    }

    fn corpus(&self, step: &StepId) -> Result<BlobDigest, StepError> {
        self.inputs.step(step)?.output(Corpus::CORPUS)
    }

    fn imatrix_of(&self, step: &StepId) -> Result<BlobDigest, StepError> {
        self.inputs.step(step)?.output(ImatrixCollect::IMATRIX)
    }

    fn budget(&self, budget: &Budget) -> Result<BudgetDocument, StepError> {
        budget::document_of(budget, self.inputs, self.env)
    }

    fn rounding(&self) -> Result<Option<RoundingDocument>, StepError> {
        rounding_of(self.step, self.inputs)
    }

    fn engine(&self, role: EngineRole) -> Result<Fingerprint, StepError> {
        self.env.fingerprint(self.engine, role)
    }
}

/// Returns how the codes of a policy's tensors are refined, if they are.
///
/// # Errors
///
/// The second moments have no result.
pub fn rounding_of(step: &PolicyStep, inputs: &Inputs) -> Result<Option<RoundingDocument>, StepError> {
    let Some(rounding) = &step.rounding else {
        return Ok(None);
    };
    let moments = inputs.step(&rounding.moments)?;
    Ok(Some(RoundingDocument::new(moments.output(Moments::INDEX)?)))
}

/// Returns the document of a policy.
pub(super) fn document_of(
    step: &PolicyStep,
    inputs: &Inputs,
    env: &Env<'_>,
    engine: &EngineRef,
) -> Result<Policy, StepError> {
    let step_inputs = StepInputs {
        step,
        inputs,
        env,
        engine,
    };
    Ok(Policy {
        shape: step_inputs.model()?.output(InspectModel::SHAPE)?,
        coverage: step_inputs
            .join()?
            .map(|join| join.output(Join::COVERAGE))
            .transpose()?,
        method: step.method.document(keep_of(step), &step_inputs)?,
        rules: RULES,
    })
}
