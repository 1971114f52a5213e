//! `[join.NAME]`: matches an imatrix with a model: which tensors have data, which have none or data of the wrong length, and which
//! experts no token was routed to. Policies and promote steps use this.

use std::fmt::Write;

use crate::action;
use crate::action::Action;
use crate::action::ImatrixCollect;
use crate::action::InspectModel;
use crate::graph::Node;
use crate::graph::Work;
use crate::recipe::model::JoinStep;
use crate::recipe::model::StepBody;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::key_of;
use crate::step::wrong_kind;
use crate::work::Context;

/// A join.
pub struct Join;

fn join_step(node: &Node) -> Result<&JoinStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Join(join) => Ok(join),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn action_of(join: &JoinStep, inputs: &Inputs) -> Result<Action, StepError> {
    Ok(Action::Join(action::Join {
        shape: inputs.source(&join.model)?.output(InspectModel::SHAPE)?,
        imatrix: inputs.step(&join.imatrix)?.output(ImatrixCollect::IMATRIX)?,
        missing: join.missing,
        unrouted: join.unrouted,
        min_count: join.min_count.unwrap_or(1),
    }))
}

impl Kind for Join {
    fn key(&self, node: &Node, inputs: &Inputs, _env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(join_step(node)?, inputs)?))
    }

    fn run(&self, node: &Node, inputs: &Inputs, _env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let performed = work.perform(&action_of(join_step(node)?, inputs)?)?;
        Ok(Outcome::of(performed, Vec::new()))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let mut text = format!(
            "{} matched, {} without data",
            outcome.shown(action::Join::MATCHED),
            outcome.shown(action::Join::MISSING)
        );
        for (fact, what) in [
            (action::Join::WRONG_LENGTH, "of wrong length"),
            (action::Join::UNROUTED, "experts unrouted"),
        ] {
            let shown = outcome.shown(fact);
            if shown != "0" {
                let _ = write!(text, ", {shown} {what}");
            }
        }
        text
    }
}
