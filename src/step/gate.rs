//! `[gate.NAME]`: requirements on candidates. If one is not met, the build fails and shows the figures.

use crate::action;
use crate::action::Action;
use crate::graph::FiguresOf;
use crate::graph::Node;
use crate::graph::Work;
use crate::prose;
use crate::recipe::model::GateStep;
use crate::recipe::model::StepBody;
use crate::report::gate::Check;
use crate::report::gate::Verdict;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::key_of;
use crate::step::metrics;
use crate::step::overlap;
use crate::step::wrong_kind;
use crate::work::Context;
use crate::work::decode;

/// Resamples of a comparison.
const BOOTSTRAP: u32 = 10_000;

/// A gate.
pub struct Gate;

fn gate(node: &Node) -> Result<(&GateStep, &[FiguresOf]), StepError> {
    match &node.work {
        Work::Figures { step, rows } => match &step.body {
            StepBody::Gate(gate) => Ok((gate, rows)),
            _ => Err(wrong_kind(node)),
        },
        _ => Err(wrong_kind(node)),
    }
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (step, of) = gate(node)?;
    let mut rows = Vec::new();
    let mut baseline = Vec::new();
    for of in of {
        if step.candidates.contains(&of.candidate) && step.baseline.as_ref() != Some(&of.candidate) {
            rows.push(metrics::row_of(of, inputs, env)?);
        }
        if step.baseline.as_ref() == Some(&of.candidate) {
            baseline.push(metrics::row_of(of, inputs, env)?);
        }
    }
    if rows.is_empty() {
        return Err(StepError::input("no evaluation measured any of the gate's candidates"));
    }
    Ok(Action::Gate(action::Gate {
        rows,
        baseline,
        require: step.require.iter().map(ToString::to_string).collect(),
        confidence: step.confidence.millionths() / 100,
        bootstrap: BOOTSTRAP,
        seed: 0,
    }))
}

impl Kind for Gate {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    /// A stored verdict that failed is not a hit: the build must fail again and show the figures.
    fn intact(&self, _node: &Node, outcome: &mut Outcome, _inputs: &Inputs, _env: &Env<'_>) -> Result<bool, StepError> {
        Ok(outcome.fact(action::Gate::FAILED)? == 0)
    }

    fn unmet(&self, outcome: &Outcome, env: &Env<'_>) -> Result<Vec<Check>, StepError> {
        let verdict: Verdict = decode(env.store, "verdict", outcome.output(action::Gate::VERDICT)?)?;
        Ok(verdict.failures().into_iter().cloned().collect())
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let (_, of) = gate(node)?;
        overlap::perform_all(of.iter().filter_map(|of| of.overlaps.as_ref()), inputs, work)?;
        let performed = work.perform(&action_of(node, inputs, env)?)?;
        let outcome = Outcome::of(performed, Vec::new());
        let verdict: Verdict = decode(env.store, "verdict", outcome.output(action::Gate::VERDICT)?)?;
        let failures = verdict.failures();
        if failures.is_empty() {
            return Ok(outcome);
        }
        Err(StepError::Gate {
            failed: failures.len(),
            all: verdict.checks.len(),
            unmet: failures.into_iter().cloned().collect(),
        })
    }

    fn summary(&self, outcome: &Outcome) -> String {
        format!(
            "{} met",
            prose::count(outcome.fact(action::Gate::CHECKS).unwrap_or_default(), "requirement")
        )
    }
}
