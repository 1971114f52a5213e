//! Which texts had a part in a candidate.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use crate::recipe::model::ImatrixStep;
use crate::recipe::model::Recipe;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;

/// How a text was used to make a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CalibrationUse {
    /// An imatrix was collected on it.
    Imatrix,
    /// Second moments were collected on it.
    Moments,
    /// The candidate's policy measured on it.
    Policy,
}

impl CalibrationUse {
    /// Returns the kind of the section that uses the text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Imatrix => "imatrix",
            Self::Moments => "moments",
            Self::Policy => "policy",
        }
    }
}

/// The texts that the candidates of a recipe were calibrated on.
pub struct Calibration<'r>(HashMap<&'r StepId, &'r Step>);

impl<'r> Calibration<'r> {
    /// Prepares to look them up.
    pub fn of(recipe: &'r Recipe) -> Self {
        Self(recipe.steps.iter().map(|step| (&step.id, step)).collect())
    }

    /// Returns the corpora that a candidate was calibrated on: those that its imatrices were collected on, merged ones
    /// included, those that second moments were collected on, and the one that its policy measured on. The texts of an imported imatrix are not known.
    pub fn texts(&self, candidate: &StepId) -> BTreeMap<&'r StepId, BTreeSet<CalibrationUse>> {
        let mut found: BTreeMap<&StepId, BTreeSet<CalibrationUse>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut todo: Vec<&'r StepId> = self.0.get(candidate).map(|step| &step.id).into_iter().collect();
        while let Some(id) = todo.pop() {
            let Some(step) = self.0.get(id).filter(|_| seen.insert(id)) else {
                continue;
            };
            match &step.body {
                StepBody::Imatrix(ImatrixStep::Collect(collect)) => {
                    found
                        .entry(&collect.corpus)
                        .or_default()
                        .insert(CalibrationUse::Imatrix);
                }
                StepBody::Moments(moments) => {
                    found
                        .entry(&moments.corpus)
                        .or_default()
                        .insert(CalibrationUse::Moments);
                }
                StepBody::Policy(policy) => {
                    if let Some(measures) = policy.method.measures() {
                        found.entry(measures.corpus).or_default().insert(CalibrationUse::Policy);
                    }
                    // Whose size a budget is has no part in the choice.
                    todo.extend(&policy.join);
                    todo.extend(policy.method.references());
                    todo.extend(policy.rounding.iter().map(|rounding| &rounding.moments));
                }
                body => todo.extend(body.inputs()),
            }
        }
        found
    }
}
