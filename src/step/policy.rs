//! `[policy.NAME]`: a table of tensor, type and why.

mod boosting;
mod budget;
mod choose;
mod cost;
mod devices;
mod error;
mod measured;
mod method;
mod read;
mod solving;
mod told;

use crate::action;
use crate::action::Action;
use crate::graph::Node;
use crate::graph::Work;
use crate::policy;
use crate::policy::ModelFacts;
use crate::policy::Table;
use crate::recipe::model;
use crate::recipe::model::PolicyStep;
use crate::recipe::model::StepBody;
use crate::report::words;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::join::Coverage;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::model::Shape;
use crate::step::model::decode;
use crate::step::model::encode;
use crate::step::model::facts_of;
use crate::step::output;
use crate::step::tokens;

pub use budget::energies_of;
pub use choose::foresee;
pub use cost::foresee_probes;

use choose::choose;
use method::action_of;
use told::sentence;

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
pub(super) fn measures_on(step: &PolicyStep) -> Option<(&model::StepId, tokens::Cut)> {
    match &step.method {
        model::Method::Measured(measured) => {
            let cut = tokens::Cut::spread(measured.context, measured.chunks, measured.block);
            Some((&measured.corpus, cut.and_others()))
        }
        model::Method::Error(error) => {
            let probes = error.probes.as_ref()?;
            let cut = tokens::Cut::spread(probes.context, probes.chunks, probes.block);
            Some((&probes.corpus, cut))
        }
        _ => None,
    }
}

impl Kind for Policy {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(policy_step(node)?, inputs, env)?))
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
        let Action::Policy(document) = action_of(step, inputs, env)? else {
            return Err(misplaced(node));
        };
        let looked = Looked::at(&document, env)?;
        let covered = |name: &str| looked.covers(name);
        cost::estimate(step, inputs, &looked.facts, looked.has(&covered), env)
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let step = policy_step(node)?;
        let action = action_of(step, inputs, task.env)?;
        let Action::Policy(document) = &action else {
            return Err(misplaced(node));
        };
        let performed = task.perform(&action, &[], |made| {
            let env = task.env;
            let looked = Looked::at(document, env)?;
            let covered = |name: &str| looked.covers(name);
            let (facts, has) = (&looked.facts, looked.has(&covered));
            let Chosen {
                table,
                file_type,
                solved,
            } = match &step.method {
                model::Method::Measured(_) => {
                    let parts = measured::Parts::of(step, inputs)?;
                    measured::choose(task, &parts, facts, &document.method, has)?
                }
                model::Method::Error(settings) => {
                    let parts = error::Parts::of(step, settings, inputs)?;
                    error::choose(task, &parts, facts, &document.method, has)?
                }
                _ => choose(env, facts, &document.method, has)?,
            };
            table.warnings.iter().for_each(|warning| task.warn(sentence(warning)));
            if table.fallbacks() > 0 {
                let fallbacks = words::count(table.fallbacks() as u64, "tensor");
                task.warn(format!(
                    "{fallbacks} got another type than asked for, since their rows are no whole blocks of it"
                ));
            }
            made.fact("bytes", table.bytes().unwrap_or(u64::MAX));
            made.fact(
                "quantized",
                table.choices.iter().filter(|choice| choice.from != choice.to).count(),
            );
            made.fact("tensors", table.choices.len());
            made.fact(
                "file_type",
                file_type.map_or_else(|| "keep".to_owned(), |number| number.to_string()),
            );
            made.output("policy", env.store.put(&encode(&table)?)?);
            if let Some(solved) = solved {
                made.output("certificate", env.store.put(solved.certificate.as_bytes())?);
                made.fact("proved", if solved.optimal { "optimal" } else { "gap" });
            }
            Ok(())
        })?;
        let mut outcome = Outcome::of(performed, Vec::new());
        if let Ok(digest) = outcome.output("certificate") {
            let name = certificate_name(node)?;
            outcome.files.push(output::place(task, &name, outcome.key, &digest)?);
        }
        outcome.ran |= task.counts().0 > 0;
        Ok(outcome)
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let Ok(digest) = outcome.output("certificate") else {
            return Ok(true);
        };
        let found = output::intact(env, &output::path(env, &certificate_name(node)?)?, &digest)?;
        outcome.files.extend(found);
        Ok(!outcome.files.is_empty())
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let bytes = words::bytes(outcome.number("bytes").unwrap_or_default());
        let proved = match outcome.fact("proved") {
            "optimal" => ", proved optimal for its losses",
            "gap" => ", not proved optimal",
            _ => "",
        };
        format!(
            "{} of {} tensors change type, {bytes}{proved}",
            outcome.fact("quantized"),
            outcome.fact("tensors")
        )
    }
}

/// What a policy looks at.
struct Looked {
    facts: ModelFacts,
    coverage: Option<Coverage>,
}

impl Looked {
    fn at(document: &action::Policy, env: &Env<'_>) -> Result<Self, StepError> {
        let shape: Shape = decode(env, "shape", document.shape)?;
        let coverage = document.coverage.map(|coverage| decode(env, "coverage", coverage));
        Ok(Self {
            facts: facts_of(env, &shape)?,
            coverage: coverage.transpose()?,
        })
    }

    /// Says whether the imatrix has data for a tensor.
    fn covers(&self, name: &str) -> bool {
        let coverage = self.coverage.as_ref();
        coverage.is_some_and(|coverage| coverage.tensors.binary_search_by(|t| t.as_str().cmp(name)).is_ok())
    }

    fn has<'c>(&self, covered: &'c dyn Fn(&str) -> bool) -> policy::HasImatrix<'c> {
        self.coverage.is_some().then_some(covered)
    }
}

/// What a method chose.
struct Chosen {
    table: Table,
    file_type: Option<u32>,
    solved: Option<budget::Solved>,
}

impl Chosen {
    fn of(table: Table, file_type: Option<u32>) -> Self {
        Self {
            table,
            file_type,
            solved: None,
        }
    }
}

fn certificate_name(node: &Node) -> Result<String, StepError> {
    match &node.work {
        Work::Step(step) => Ok(format!("{}.certificate.json", step.id.label())),
        _ => Err(misplaced(node)),
    }
}
