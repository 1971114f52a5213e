//! `[policy.NAME]`: a table of tensor, type and why.

mod budget;
mod cost;
mod document;
mod preliminary;
mod timing;

use crate::action;
use crate::action::Action;
use crate::action::InspectModel;
use crate::engine::Capability;
use crate::graph::Node;
use crate::graph::Work;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::SourceName;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::TextUse;
use crate::step::at;
use crate::step::key_of;
use crate::step::output;
use crate::step::place_of;
use crate::step::space::Comparison;
use crate::step::space::Headers;
use crate::step::wrong_kind;
use crate::timing::PhaseWork;
use crate::work::BlockOptions;
use crate::work::Context;
use crate::work::policy::Inspected;

pub use cost::estimate_from_header;
pub use document::rounding_of;
pub use preliminary::likely_types;
pub use preliminary::minimum_bytes;
pub use preliminary::preliminary_choice;
pub use preliminary::requantized;

use budget::length_of;
use document::document_of;

/// A policy.
pub struct Policy;

fn policy_step(node: &Node) -> Result<&PolicyStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Policy(policy) => Ok(policy),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

/// Returns the texts that a policy measures the model on, and what it takes of them; nothing of one that measures nothing.
fn measures_on(step: &PolicyStep) -> Option<(&StepId, BlockOptions)> {
    let measures = step.method.measures()?;
    let cut = BlockOptions::spread(measures.context, measures.chunks, measures.block);
    let cut = if measures.and_others { cut.with_held_out() } else { cut };
    Some((measures.corpus, cut))
}

impl Kind for Policy {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let document = document_of(policy_step(node)?, inputs, env, &node.engine)?;
        Ok(key_of(Action::Policy(document)))
    }

    fn check(&self, node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> Result<(), StepError> {
        let step = policy_step(node)?;
        let dataset = step.join.as_ref().and_then(|join| headers.imatrix_text(join));
        match headers.of(&step.model, env) {
            Some(header) => preliminary_choice(step, header, dataset.as_deref())
                .map(|_| ())
                .map_err(|error| at(place_of(node), &error)),
            // The check of the source says what is wrong with it.
            None => Ok(()),
        }
    }

    fn texts<'n>(&self, node: &'n Node) -> Vec<TextUse<'n>> {
        let Ok(step) = policy_step(node) else {
            return Vec::new();
        };
        let measures = step.method.measures().into_iter().map(|measures| TextUse {
            corpus: measures.corpus,
            model: &step.model,
            context: measures.context,
            minimum: 1,
        });
        measures.collect()
    }

    fn needs(&self, node: &Node) -> Vec<Capability> {
        policy_step(node).map(|step| step.method.needs()).unwrap_or_default()
    }

    fn phases(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        policy_step(node).map_or_else(|_| Vec::new(), |step| timing::phases(step, env, headers))
    }

    fn memory(&self, node: &Node, _known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> u64 {
        policy_step(node).map_or(0, |step| timing::memory(step, env, headers))
    }

    fn model<'n>(&self, node: &'n Node) -> Option<&'n SourceName> {
        policy_step(node).ok().map(|step| &step.model)
    }

    fn pool(&self, node: &Node) -> Pool {
        if self.needs(node).is_empty() {
            Pool::Light
        } else {
            Pool::Model
        }
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let step = policy_step(node)?;
        if step.method.needs().is_empty() {
            return Ok(Estimate::default());
        }
        let document = document_of(step, inputs, env, &node.engine)?;
        let inspected = Inspected::load(&document, env.store)?;
        let covered = |name: &str| inspected.covers(name);
        cost::estimate(
            step,
            inputs,
            &inspected.facts,
            inspected.has(&covered),
            env,
            &node.engine,
        )
    }

    fn preliminary_estimate(&self, node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> Option<Estimate> {
        let step = policy_step(node).ok()?;
        estimate_from_header(step, headers.of(&step.model, env)?.facts.as_ref()?)
    }

    /// A policy that measures computes the log-probabilities of the model itself, on all chunks that it measures anything on.
    fn comparison<'n>(&self, node: &'n Node, known: &Inputs, _env: &Env<'_>) -> Option<Comparison<'n>> {
        let step = policy_step(node).ok()?;
        let (corpus, cut) = measures_on(step)?;
        let model = known.source(&step.model);
        Some(Comparison {
            reference: &step.model,
            corpus,
            cut,
            compute: model.and_then(|outcome| outcome.output(InspectModel::COMPUTE)).ok(),
            engine: &node.engine,
        })
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let document = document_of(policy_step(node)?, inputs, env, &node.engine)?;
        let performed = work.perform(&Action::Policy(document))?;
        let mut outcome = Outcome::of(performed, Vec::new());
        if let Ok(digest) = outcome.output(action::Policy::CERTIFICATE) {
            let name = certificate_name(node)?;
            outcome
                .files
                .push(output::place(env, work, &name, outcome.key, &digest)?);
        }
        outcome.ran |= work.counts().0 > 0;
        outcome.wrote = work.has_written();
        Ok(outcome)
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let Ok(digest) = outcome.output(action::Policy::CERTIFICATE) else {
            return Ok(true);
        };
        let found = output::intact(env, &output::path(env, &certificate_name(node)?)?, &digest)?;
        outcome.files.extend(found);
        Ok(!outcome.files.is_empty())
    }

    /// The certificate, if there is one.
    fn output_names(&self, node: &Node, outcome: Option<&Outcome>, _only_table: bool) -> Vec<String> {
        let has_certificate = outcome.is_none_or(|outcome| outcome.output(action::Policy::CERTIFICATE).is_ok());
        let name = certificate_name(node).ok().filter(|_| has_certificate);
        name.into_iter().collect()
    }

    fn estimate_writing(
        &self,
        _node: &Node,
        outcome: &Outcome,
        _inputs: &Inputs,
        _env: &Env<'_>,
    ) -> Result<Estimate, StepError> {
        let certificate = outcome.output(action::Policy::CERTIFICATE)?;
        Ok(Estimate::of_writing(certificate.len))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        // No size: that of a candidate is the size of its file, with a header.
        let proved = match outcome.shown(action::Policy::PROVED) {
            "optimal" => ", proved optimal for its losses",
            "gap" => ", not proved optimal",
            _ => "",
        };
        format!(
            "{} of {} tensors change type{proved}",
            outcome.shown(action::Policy::QUANTIZED),
            outcome.shown(action::Policy::TENSORS)
        )
    }
}

/// Returns the size of the file of a candidate that has the types of a policy's result.
///
/// # Errors
///
/// Errors of reading the documents of the model and the policy.
pub fn file_bytes(node: &Node, outcome: &Outcome, inputs: &Inputs, env: &Env<'_>) -> Result<u64, StepError> {
    let step = policy_step(node)?;
    let join = step.join.as_ref().map(|join| inputs.step(join)).transpose()?;
    length_of(inputs.source(&step.model)?, outcome, join, env)
}

fn certificate_name(node: &Node) -> Result<String, StepError> {
    match &node.work {
        Work::Step(step) => Ok(certificate_file(&step.id)),
        _ => Err(wrong_kind(node)),
    }
}

/// Returns the file name of the certificate of a policy.
pub fn certificate_file(policy: &StepId) -> String {
    format!("{}.certificate.json", policy.label())
}
