//! `[moments.NAME]`: second moments of the inputs of a model's weights.

use crate::action::Action;
use crate::action::Corpus;
use crate::action::InspectModel;
use crate::action::Moments as MomentsAction;
use crate::engine::Capability;
use crate::engine::Role;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::graph::Work;
use crate::moments;
use crate::moments::Accumulator;
use crate::moments::Header;
use crate::observer::Phase;
use crate::policy;
use crate::policy::LikelyInput;
use crate::prose;
use crate::recipe::model::MomentsStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::key_of;
use crate::step::space::Headers;
use crate::step::timing;
use crate::step::wrong_kind;
use crate::timing::Operation;
use crate::timing::PhaseWork;
use crate::timing::Purpose;
use crate::work::BlockOptions;
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

/// Returns the inputs that the header of a step's model lets expect.
fn inputs_of(step: &MomentsStep, env: &Env<'_>, headers: &mut Headers<'_>) -> Option<Vec<LikelyInput>> {
    let facts = headers.of(&step.model, env)?.facts.as_ref()?;
    Some(policy::likely_inputs(facts))
}

/// Returns the memory that the sums of an input take.
fn memory_of(input: &LikelyInput) -> u64 {
    Accumulator::bytes(input.columns, input.matrices)
}

/// Returns how often a text is read so that the sums of a pass fit into some bytes of memory: once at least.
fn passes(inputs: &[LikelyInput], memory: u64) -> f64 {
    moments::passes(inputs, memory_of, memory).len().max(1) as f64
}

/// Returns how many files of second moments are written for each input: one for each block, the sum of several, and the same for validation.
fn files(step: &MomentsStep, chunks: f64) -> f64 {
    let held_out = if step.held_out > 0 {
        (chunks / f64::from(step.held_out)).floor()
    } else {
        0.0
    };
    let of = |chunks: f64| {
        let blocks = (chunks / f64::from(step.block.max(1))).ceil();
        if blocks > 1.0 { blocks + 1.0 } else { blocks }
    };
    of(chunks - held_out) + of(held_out)
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

    fn phases(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        let Ok(step) = moments_step(node) else {
            return Vec::new();
        };
        let (Some(forward), Some(inputs)) = (headers.forward(&step.model, env), inputs_of(step, env, headers)) else {
            return Vec::new();
        };
        let cut = BlockOptions::first(step.context, step.chunks, step.block);
        let chunks = timing::chunks_of(&step.corpus, &step.model, cut, env, headers);
        let passes = passes(&inputs, env.machine.memory());
        // A pass ends with its last input: of three passes the first computes a third of the model.
        let computed = chunks * (passes + 1.0) / 2.0;
        let mut work = timing::computing(
            Phase::Moments,
            (forward.as_ref(), None),
            computed,
            cut,
            Purpose::Collect,
        );
        work.total = chunks * passes;
        for input in &inputs {
            let rows = forward.rows_per_token(input.tensors[0]) * f64::from(step.context) * chunks;
            work.amounts
                .add(Operation::Product, Accumulator::multiply_adds(input.columns, rows));
            let written = Header::file_bytes(input.columns, input.matrices);
            work.amounts.add(Operation::Write, written as f64 * files(step, chunks));
            work.amounts.add(Operation::Commit, files(step, chunks));
        }
        vec![work]
    }

    fn memory(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> u64 {
        let Some(inputs) = moments_step(node).ok().and_then(|step| inputs_of(step, env, headers)) else {
            return 0;
        };
        let passes = moments::passes(&inputs, memory_of, env.machine.memory());
        let bytes = passes.into_iter().map(|pass| pass.iter().map(memory_of).sum());
        bytes.max().unwrap_or_default()
    }

    fn preliminary_estimate(&self, node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> Option<Estimate> {
        let step = moments_step(node).ok()?;
        let inputs = inputs_of(step, env, headers)?;
        let cut = BlockOptions::first(step.context, step.chunks, step.block);
        let chunks = timing::chunks_of(&step.corpus, &step.model, cut, env, headers);
        let bytes = inputs
            .iter()
            .map(|input| Header::file_bytes(input.columns, input.matrices))
            .fold(0, u64::saturating_add);
        let parts = (inputs.len() as f64 * files(step, chunks)) as u64;
        Some(Estimate {
            reads: headers.file_bytes(&NodeId::Source(step.model.as_str().to_owned()), env),
            writes: (bytes as f64 * files(step, chunks)) as u64,
            missing: parts,
            parts,
            unit: "part",
            ..Estimate::default()
        })
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
