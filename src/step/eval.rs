//! `[eval.NAME]`, for one candidate: perplexity and divergence from the reference, block by block. The reference's
//! log-probabilities are computed once for all candidates, and only if a candidate's block has no result yet.

use crate::action;
use crate::action::Action;
use crate::action::Corpus;
use crate::action::InspectModel;
use crate::action::Promote;
use crate::engine::Capability;
use crate::engine::Role;
use crate::graph::Node;
use crate::graph::Work;
use crate::observer::Phase;
use crate::recipe::model::EvalStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::key_of;
use crate::step::likely_types;
use crate::step::promote;
use crate::step::space::Comparison;
use crate::step::space::Headers;
use crate::step::timing;
use crate::step::wrong_kind;
use crate::timing::PhaseWork;
use crate::timing::Purpose;
use crate::work::BlockOptions;
use crate::work::CODEC;
use crate::work::Context;

/// An evaluation of a candidate.
pub struct Eval;

fn eval(node: &Node) -> Result<(&EvalStep, &StepId), StepError> {
    match &node.work {
        Work::Eval { step, candidate } => match &step.body {
            StepBody::Eval(eval) => Ok((eval, candidate)),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn cut(eval: &EvalStep) -> BlockOptions {
    BlockOptions::first(eval.context, eval.chunks, eval.block)
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (eval, candidate) = eval(node)?;
    let reference = inputs.source(&eval.reference)?;
    Ok(Action::Eval(action::Eval {
        candidate: inputs.step(candidate)?.output(Promote::COMPUTE)?,
        reference: if eval.kld {
            Some(reference.output(InspectModel::COMPUTE)?)
        } else {
            None
        },
        tokenizer: reference.output(InspectModel::TOKENIZER)?,
        corpus: inputs.step(&eval.corpus)?.output(Corpus::CORPUS)?,
        context: eval.context,
        chunks: eval.chunks,
        block: eval.block,
        bootstrap: eval.bootstrap,
        seed: eval.seed,
        codec: CODEC,
        engine: env.fingerprint(&node.engine, Role::Evaluator)?,
    }))
}

impl Kind for Eval {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    /// `None` if the candidate has no result yet and its file exists: it may be the one that was measured.
    fn comparison<'n>(&self, node: &'n Node, known: &Inputs, env: &Env<'_>) -> Option<Comparison<'n>> {
        let (eval, candidate) = eval(node).ok()?;
        let made = known.step(candidate);
        if !eval.kld || (made.is_err() && promote::is_there(candidate, env)) {
            return None;
        }
        Some(Comparison {
            reference: &eval.reference,
            corpus: &eval.corpus,
            cut: cut(eval),
            compute: made.and_then(|outcome| outcome.output(Promote::COMPUTE)).ok(),
            engine: &node.engine,
        })
    }

    fn texts<'n>(&self, node: &'n Node) -> Vec<TextUse<'n>> {
        let Ok((eval, _)) = eval(node) else { return Vec::new() };
        vec![TextUse {
            corpus: &eval.corpus,
            model: &eval.reference,
            context: eval.context,
            // The confidence intervals resample the chunks.
            minimum: if eval.bootstrap > 0 { 2 } else { 1 },
        }]
    }

    fn needs(&self, _node: &Node) -> Vec<Capability> {
        vec![Capability::Tokenize, Capability::Score]
    }

    fn phases(&self, node: &Node, known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        let Ok((eval, candidate)) = eval(node) else {
            return Vec::new();
        };
        let Some(forward) = headers.forward(&eval.reference, env) else {
            return Vec::new();
        };
        let types = likely_types::of_candidate(candidate, known, env, headers);
        let chunks = timing::chunks_of(&eval.corpus, &eval.reference, cut(eval), env, headers);
        let model = (forward.as_ref(), types.as_deref());
        vec![timing::computing(
            Phase::Evaluate,
            model,
            chunks,
            cut(eval),
            Purpose::Score,
        )]
    }

    fn model<'n>(&self, node: &'n Node) -> Option<&'n SourceName> {
        eval(node).ok().map(|(eval, _)| &eval.reference)
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Model
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let performed = work.perform(&action_of(node, inputs, env)?)?;
        Ok(Outcome::of(performed, Vec::new()))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let ppl = outcome.shown(action::Eval::PPL);
        match outcome.shown(action::Eval::KLD_MEAN) {
            "" => format!("PPL {ppl}"),
            kld => format!("KLD {kld}, PPL {ppl}"),
        }
    }
}
