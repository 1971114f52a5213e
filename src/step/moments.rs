//! `[moments.NAME]`: second moments of the inputs of a model's weights.

use crate::action::Action;
use crate::action::Corpus;
use crate::action::InspectModel;
use crate::action::Moments as MomentsAction;
use crate::engine::Capability;
use crate::engine::Role;
use crate::graph::Node;
use crate::graph::Work;
use crate::prose;
use crate::recipe::model::MomentsStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::key_of;
use crate::step::wrong_kind;
use crate::work::Context;

/// Second moments.
pub struct Moments;

fn moments_step(node: &Node) -> Result<&MomentsStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Moments(moments) => Ok(moments),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let step = moments_step(node)?;
    let model = inputs.source(&step.model)?;
    Ok(Action::Moments(MomentsAction {
        model: model.output(InspectModel::COMPUTE)?,
        shape: model.output(InspectModel::SHAPE)?,
        tokenizer: model.output(InspectModel::TOKENIZER)?,
        corpus: inputs.step(&step.corpus)?.output(Corpus::CORPUS)?,
        dataset: step.corpus.label(),
        context: step.context,
        chunks: step.chunks,
        block: step.block,
        held_out: step.held_out,
        engine: env.fingerprint(&node.engine, Role::Evaluator)?,
        form: MomentsAction::FORM,
    }))
}

impl Kind for Moments {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    fn needs(&self, _node: &Node) -> Vec<Capability> {
        vec![Capability::Tokenize, Capability::Moments]
    }

    fn texts<'n>(&self, node: &'n Node) -> Vec<TextUse<'n>> {
        let step = moments_step(node).ok();
        let text = step.map(|step| TextUse {
            corpus: &step.corpus,
            model: &step.model,
            context: step.context,
            minimum: 1,
        });
        text.into_iter().collect()
    }

    fn model<'n>(&self, node: &'n Node) -> Option<&'n SourceName> {
        moments_step(node).ok().map(|step| &step.model)
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Model
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let performed = work.perform(&action_of(node, inputs, env)?)?;
        Ok(Outcome::of(performed, Vec::new()))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        format!(
            "{}, {} chunks, {} of them for validation, {}",
            prose::count(outcome.fact(MomentsAction::INPUTS).unwrap_or_default(), "input"),
            outcome.shown(MomentsAction::CHUNKS),
            outcome.shown(MomentsAction::HELD_OUT),
            prose::bytes(outcome.fact(MomentsAction::BYTES).unwrap_or_default()),
        )
    }
}
