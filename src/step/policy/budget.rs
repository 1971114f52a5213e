//! Budgets of a recipe as actions hold them.

use crate::action::InspectModel;
use crate::action::Join;
use crate::action::Policy;
use crate::container::TensorSpec;
use crate::method::BudgetDocument;
use crate::policy::Table;
use crate::recipe::Quantity;
use crate::recipe::model::Budget;
use crate::recipe::model::SizeOf;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::work::ImatrixFacts;
use crate::work::Shape;
use crate::work::decode;
use crate::work::policy::file_size_of;

/// Returns a budget of a recipe as actions hold it: of another candidate its bytes, so that what keeps to the same number of
/// bytes is the same action.
pub(super) fn document_of(budget: &Budget, inputs: &Inputs, env: &Env<'_>) -> Result<BudgetDocument, StepError> {
    match (of_quantity(budget), budget) {
        (None, Budget::Candidate(size)) => Ok(BudgetDocument::Bytes {
            number: length_of_candidate(size, inputs, env)?,
        }),
        (known, _) => known.ok_or_else(|| StepError::input("the budget is no size")),
    }
}

/// Returns the budget as actions hold it, if the recipe states it as a size; `None` for the size of another candidate.
pub(super) fn of_quantity(budget: &Budget) -> Option<BudgetDocument> {
    match budget {
        Budget::Quantity(Quantity::Bytes(number)) => Some(BudgetDocument::Bytes { number: *number }),
        // The recipe takes no percentages here.
        Budget::Quantity(Quantity::BitsPerWeight(rate) | Quantity::Percent(rate)) => {
            Some(BudgetDocument::MillionthsOfBits {
                number: rate.millionths(),
            })
        }
        Budget::Candidate(_) => None,
    }
}

fn length_of_candidate(size: &SizeOf, inputs: &Inputs, env: &Env<'_>) -> Result<u64, StepError> {
    let (model, policy) = (inputs.source(&size.model)?, inputs.step(&size.policy)?);
    let join = size.join.as_ref().map(|join| inputs.step(join)).transpose()?;
    length_of(model, policy, join, env)
}

/// Returns how long a candidate's file is, or will be: that follows from its types and its header.
pub(super) fn length_of(
    model: &Outcome,
    policy: &Outcome,
    join: Option<&Outcome>,
    env: &Env<'_>,
) -> Result<u64, StepError> {
    let shape: Shape = decode(env.store, "shape", model.output(InspectModel::SHAPE)?)?;
    let table: Table = decode(env.store, "policy", policy.output(Policy::POLICY)?)?;
    let specs = shape.tensors.into_iter().map(|tensor| TensorSpec {
        name: tensor.name,
        ty: tensor.ty,
        dims: tensor.dims,
    });
    let metadata = model.output(InspectModel::METADATA)?;
    let dataset = join.map(|join| join.fact(Join::DATASET)).transpose()?;
    // Counts have the same length whatever they are.
    let imatrix = dataset.as_deref().map(|dataset| ImatrixFacts {
        dataset,
        entries: 0,
        chunks: 0,
    });
    let file_type = policy.fact(Policy::FILE_TYPE)?.parse().ok();
    let file_size = file_size_of(env.store, metadata, specs.collect(), file_type, imatrix.as_ref())?;
    Ok(file_size.of(&table.choices))
}
