//! One tensor of a candidate, told without writing the candidate.

use super::draft::Draft;
use super::draft::Parts;
use crate::action::Action;
use crate::graph::Node;
use crate::policy::Choice;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::StepError;

/// A tensor of a candidate: what becomes of it, and how.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// What the policy says of it.
    pub choice: Choice,
    /// The action that quantizes it; nothing where its bytes stay as they are.
    pub action: Option<Action>,
}

/// Returns the tensors of a candidate, in the file's order.
pub fn planned_tensors(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Vec<PlannedTensor>, StepError> {
    let draft = Draft::load(&Parts::of(node, inputs)?, env)?;
    let tensors = draft.tensors.index.tensors.iter().zip(&draft.table.choices);
    let planned = tensors.map(|(tensor, choice)| PlannedTensor {
        choice: choice.clone(),
        action: (choice.from != choice.to).then(|| draft.tensors.action(tensor, choice.to)),
    });
    Ok(planned.collect())
}
