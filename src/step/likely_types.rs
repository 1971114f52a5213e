//! The types of a candidate's tensors, as far as they are known before it exists.

use std::rc::Rc;

use crate::action::Policy;
use crate::policy::Table;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::policy;
use crate::step::space::Headers;
use crate::tensor_type::TensorType;
use crate::work::decode;

/// Returns the type that each tensor has in a candidate, in the order of the model's file: as chosen if its policy has a result, or as far
/// as the header of the model tells; `None` if neither does.
pub(super) fn of_candidate(
    candidate: &StepId,
    known: &Inputs,
    env: &Env<'_>,
    headers: &mut Headers<'_>,
) -> Option<Rc<[TensorType]>> {
    let StepBody::Promote(promote) = headers.step(candidate)? else {
        return None;
    };
    let outcome = known.step(&promote.policy).ok();
    let table = outcome.and_then(|outcome| outcome.output(Policy::POLICY).ok());
    if let Some(table) = table.and_then(|table| decode::<Table>(env.store, "policy", table).ok()) {
        return Some(table.choices.iter().map(|choice| choice.to).collect());
    }
    headers.types(&promote.policy, env, policy::likely_types)
}
