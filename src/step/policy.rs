//! `[policy.NAME]`: a table of tensor, type and why.

mod budget;
mod cost;
mod method;

use crate::action;
use crate::action::Action;
use crate::engine::Capability;
use crate::graph::Node;
use crate::graph::Work;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::prose;
use crate::recipe::model;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepBody;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::output;
use crate::work::Context;
use crate::work::Cut;
use crate::work::policy::Inspected;
use crate::work::policy::choose_by_rules;

pub use cost::foresee_probes;

use method::action_of;
use method::by_rules;

/// A policy.
pub struct Policy;

fn policy_step(node: &Node) -> Result<&PolicyStep, StepError> {
    match &node.work {
        Work::Step(step) => match &step.body {
            StepBody::Policy(policy) => Ok(policy),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

/// Returns the texts that a policy measures the model on, and what it takes of them; nothing of one that measures nothing.
pub(super) fn measures_on(step: &PolicyStep) -> Option<(&model::StepId, Cut)> {
    match &step.method {
        model::Method::Measured(measured) => {
            let cut = Cut::spread(measured.context, measured.chunks, measured.block);
            Some((&measured.corpus, cut.and_others()))
        }
        model::Method::Error(error) => {
            let probes = error.probes.as_ref()?;
            let cut = Cut::spread(probes.context, probes.chunks, probes.block);
            Some((&probes.corpus, cut))
        }
        _ => None,
    }
}

impl Kind for Policy {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(policy_step(node)?, inputs, env, &node.engine)?))
    }

    fn needs(&self, node: &Node) -> Vec<Capability> {
        let probes = [Capability::Tokenize, Capability::Score, Capability::Probe];
        let errors = [Capability::Quantize, Capability::Compare];
        match policy_step(node).map(|step| &step.method) {
            Ok(model::Method::Measured(_)) => [probes.as_slice(), &errors].concat(),
            Ok(model::Method::Error(error)) if error.probes.is_some() => [errors.as_slice(), &probes].concat(),
            Ok(model::Method::Error(_)) => errors.to_vec(),
            _ => Vec::new(),
        }
    }

    fn pool(&self, node: &Node) -> Pool {
        match policy_step(node).map(|step| &step.method) {
            Ok(model::Method::Measured(_) | model::Method::Error(_)) => Pool::Model,
            _ => Pool::Light,
        }
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let step = policy_step(node)?;
        if !matches!(step.method, model::Method::Measured(_) | model::Method::Error(_)) {
            return Ok(Estimate::default());
        }
        let Action::Policy(document) = action_of(step, inputs, env, &node.engine)? else {
            return Err(misplaced(node));
        };
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

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let performed = work.perform(&action_of(policy_step(node)?, inputs, env, &node.engine)?)?;
        let mut outcome = Outcome::of(performed, Vec::new());
        if let Ok(digest) = outcome.output(action::Policy::CERTIFICATE) {
            let name = certificate_name(node)?;
            outcome
                .files
                .push(output::place(env, work, &name, outcome.key, &digest)?);
        }
        outcome.ran |= work.counts().0 > 0;
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

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = prose::bytes(outcome.fact(action::Policy::BYTES).unwrap_or_default());
        let proved = match outcome.shown(action::Policy::PROVED) {
            "optimal" => ", proved optimal for its losses",
            "gap" => ", not proved optimal",
            _ => "",
        };
        format!(
            "{} of {} tensors change type, {bytes}{proved}",
            outcome.shown(action::Policy::QUANTIZED),
            outcome.shown(action::Policy::TENSORS)
        )
    }
}

/// Returns how many bytes of tensors a candidate of this policy would have at the least, by the model's header alone: as if
/// the imatrix covered every tensor. Nothing where the policy would fail, or where more than the header decides.
pub fn foresee(step: &PolicyStep, facts: &ModelFacts) -> Option<u64> {
    let all = |_: &str| true;
    let has: HasImatrix<'_> = if step.join.is_some() { Some(&all) } else { None };
    let (table, _) = choose_by_rules(facts, &by_rules(step)?, has).ok()?;
    table.bytes()
}

fn certificate_name(node: &Node) -> Result<String, StepError> {
    match &node.work {
        Work::Step(step) => Ok(format!("{}.certificate.json", step.id.label())),
        _ => Err(misplaced(node)),
    }
}
