//! The evaluations of a recipe, as far as the store has them: also of a version that was built once and whose outputs have been
//! replaced since.

use std::sync::Arc;

use super::Session;
use crate::action;
use crate::action::Action;
use crate::diff;
use crate::diff::Evaluation;
use crate::diff::Measured;
use crate::graph::NodeId;
use crate::observer::Silent;
use crate::step;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;

impl Session {
    /// Returns every evaluation of a candidate, with its figures if the store has them. Nothing runs, no source is read, and output
    /// files are not looked at: what counts is the actions of the recipe on its files as they are now.
    pub fn evaluations(&self) -> Vec<Evaluation> {
        let env = self.env(&Silent);
        let mut known = Inputs::default();
        let mut evaluations = Vec::new();
        for node in self.graph.nodes() {
            let waits = self.graph.inputs(&node.id).iter().any(|id| known.of(id).is_err());
            let found = (!waits).then(|| step::kind_of(node).key(node, &known, &env));
            let action = match found {
                Some(Ok(Key::Action { action, .. })) => Some(*action),
                // It needs what was never made, or a file that was never read.
                _ => None,
            };
            let outcome = action.as_ref().and_then(|action| {
                let key = action.digest();
                let result = self.store.lookup_shallow(&key).ok()??;
                Some(Outcome {
                    key,
                    result,
                    ran: false,
                    wrote: false,
                    files: Vec::new(),
                })
            });
            if let NodeId::Eval { eval, candidate } = &node.id {
                let figures = outcome.as_ref().and_then(|outcome| {
                    let figures = outcome.output(action::Eval::FIGURES).ok()?;
                    diff::read_figures(&self.store, &figures)
                });
                let measured = match (action, figures) {
                    (Some(Action::Eval(action)), Some(figures)) => Some(Measured { action, figures }),
                    _ => None,
                };
                evaluations.push(Evaluation {
                    eval: eval.label(),
                    candidate: candidate.label(),
                    measured,
                });
            }
            if let Some(outcome) = outcome {
                known.insert(node.id.clone(), Arc::new(outcome));
            }
        }
        evaluations
    }
}
