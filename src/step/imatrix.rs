//! `[imatrix.NAME]`: collected block by block, merged, or read from a foreign file.

use crate::action::Action;
use crate::action::Corpus;
use crate::action::ImatrixCollect;
use crate::action::ImatrixImport;
use crate::action::ImatrixMerge;
use crate::action::ImatrixMoments;
use crate::action::InspectModel;
use crate::action::Moments;
use crate::digest::Fingerprint;
use crate::engine::Capability;
use crate::engine::Role;
use crate::graph::Node;
use crate::graph::Work;
use crate::observer::Phase;
use crate::prose;
use crate::recipe::model::CollectImatrix;
use crate::recipe::model::ImatrixStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::recipe::model::WeightedImatrix;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::key_of;
use crate::step::space::Headers;
use crate::step::timing;
use crate::step::wrong_kind;
use crate::timing::PhaseWork;
use crate::timing::Purpose;
use crate::vocab::MergeMode;
use crate::work::BlockOptions;
use crate::work::Context;

/// An imatrix.
pub struct Imatrix;

fn imatrix_step(node: &Node) -> Result<&ImatrixStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Imatrix(imatrix) => Ok(imatrix),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn collect_action(collect: &CollectImatrix, inputs: &Inputs, engine: Fingerprint) -> Result<Action, StepError> {
    let model = inputs.source(&collect.model)?;
    Ok(Action::ImatrixCollect(ImatrixCollect {
        model: model.output(InspectModel::COMPUTE)?,
        tokenizer: model.output(InspectModel::TOKENIZER)?,
        corpus: inputs.step(&collect.corpus)?.output(Corpus::CORPUS)?,
        dataset: collect.corpus.label(),
        context: collect.context,
        chunks: collect.chunks,
        block: collect.block,
        process_output: collect.process_output,
        engine,
    }))
}

fn merge_action(parts: &[WeightedImatrix], mode: MergeMode, inputs: &Inputs) -> Result<Action, StepError> {
    let imatrices = parts
        .iter()
        .map(|part| inputs.step(&part.imatrix)?.output(ImatrixCollect::IMATRIX));
    Ok(Action::ImatrixMerge(ImatrixMerge {
        imatrices: imatrices.collect::<Result<_, _>>()?,
        mode,
        weights: parts.iter().map(|part| part.weight.millionths()).collect(),
    }))
}

/// Returns the action of a step, and the files that it reads.
fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<(Action, Vec<SourceFile>), StepError> {
    Ok(match imatrix_step(node)? {
        ImatrixStep::Collect(collect) => {
            let engine = env.fingerprint(&node.engine, Role::Evaluator)?;
            (collect_action(collect, inputs, engine)?, Vec::new())
        }
        ImatrixStep::Merge { inputs: parts, mode } => (merge_action(parts, *mode, inputs)?, Vec::new()),
        ImatrixStep::Moments {
            moments,
            process_output,
        } => {
            let action = Action::ImatrixMoments(ImatrixMoments {
                moments: inputs.step(moments)?.output(Moments::INDEX)?,
                process_output: *process_output,
            });
            (action, Vec::new())
        }
        ImatrixStep::Import { source } => {
            let file = inputs.source(source)?.files.first().ok_or_else(|| wrong_kind(node))?;
            let action = Action::ImatrixImport(ImatrixImport { file: file.digest });
            (action, vec![file.clone()])
        }
    })
}

impl Kind for Imatrix {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?.0))
    }

    fn needs(&self, node: &Node) -> Vec<Capability> {
        match imatrix_step(node) {
            Ok(ImatrixStep::Collect(_)) => vec![Capability::Tokenize, Capability::Collect],
            _ => Vec::new(),
        }
    }

    fn texts<'n>(&self, node: &'n Node) -> Vec<TextUse<'n>> {
        match imatrix_step(node) {
            Ok(ImatrixStep::Collect(collect)) => vec![TextUse {
                corpus: &collect.corpus,
                model: &collect.model,
                context: collect.context,
                minimum: 1,
            }],
            _ => Vec::new(),
        }
    }

    fn phases(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        let Ok(ImatrixStep::Collect(collect)) = imatrix_step(node) else {
            return Vec::new();
        };
        let cut = BlockOptions::first(collect.context, collect.chunks, collect.block);
        let Some(forward) = headers.forward(&collect.model, env) else {
            return Vec::new();
        };
        let chunks = timing::chunks_of(&collect.corpus, &collect.model, cut, env, headers);
        let model = (forward.as_ref(), None);
        vec![timing::computing(Phase::Collect, model, chunks, cut, Purpose::Collect)]
    }

    fn model<'n>(&self, node: &'n Node) -> Option<&'n SourceName> {
        match imatrix_step(node) {
            Ok(ImatrixStep::Collect(collect)) => Some(&collect.model),
            _ => None,
        }
    }

    fn pool(&self, node: &Node) -> Pool {
        match imatrix_step(node) {
            Ok(ImatrixStep::Collect(_)) => Pool::Model,
            _ => Pool::Light,
        }
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let (action, files) = action_of(node, inputs, env)?;
        let performed = work.perform(&action)?;
        Ok(Outcome::of(performed, files))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let entries = outcome.fact(ImatrixCollect::ENTRIES).unwrap_or_default();
        format!(
            "{}, {} chunks",
            prose::count(entries, "tensor"),
            outcome.shown(ImatrixCollect::CHUNKS)
        )
    }
}
