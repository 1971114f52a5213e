//! What all methods have that solve for losses, wherever these come from: the groups and what bounds them, and the choice.

use crate::action::PolicyBudget;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::allocation::Answer;
use crate::policy;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::GroupOptions;
use crate::policy::HasImatrix;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Prepared;
use crate::policy::Question;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::TensorGroup;
use crate::step::Env;
use crate::step::StepError;
use crate::tensor_type::TensorType;

use super::Chosen;
use super::budget;
use super::read::failed;
use super::read::fuse_of;
use super::read::kept;
use super::read::rules_of;
use super::read::type_of;

/// The groups of a model, the types to choose from, and what the recipe says of them.
pub(super) struct Solving<'a> {
    facts: &'a ModelFacts,
    has: HasImatrix<'a>,
    pub(super) groups: Vec<TensorGroup>,
    pub(super) types: Vec<TensorType>,
    pub(super) keep: Vec<Rule>,
    pub(super) floors: Vec<Rule>,
    pub(super) ceilings: Vec<Rule>,
}

impl<'a> Solving<'a> {
    /// Reads what a method's document says.
    pub(super) fn of(
        facts: &'a ModelFacts,
        has: HasImatrix<'a>,
        types: &[String],
        fuse: &[String],
        keep: &[String],
        floors: &[PolicyRule],
        ceilings: &[PolicyRule],
    ) -> Result<Self, StepError> {
        let (keep, floors, ceilings) = (kept(keep)?, rules_of(floors)?, rules_of(ceilings)?);
        let types = types.iter().map(|name| type_of(name)).collect::<Result<_, _>>()?;
        let options = GroupOptions {
            tied: false,
            fuse: fuse.iter().map(|rule| fuse_of(rule)).collect::<Result<_, _>>()?,
        };
        Ok(Self {
            facts,
            has,
            groups: policy::groups(facts, &Energies::new(), &options),
            types,
            keep,
            floors,
            ceilings,
        })
    }

    /// Returns the problem that losses make.
    pub(super) fn prepare(&self, losses: &Losses, size: FileSize) -> Result<Prepared, StepError> {
        let question = Question {
            model: self.facts,
            groups: &self.groups,
            losses,
            caution: 0.0,
            size,
            keep: &self.keep,
            floors: &self.floors,
            ceilings: &self.ceilings,
            has_imatrix: self.has,
            devices: &[],
        };
        policy::prepare(&question).map_err(failed)
    }

    /// Returns the choice of least loss within the budget, with its certificate.
    pub(super) fn choose(
        &self,
        env: &Env<'_>,
        losses: &Losses,
        header: &PolicyHeader,
        budget: PolicyBudget,
        states: u64,
    ) -> Result<Chosen, StepError> {
        let prepared = self.prepare(losses, budget::file_size(env, header, self.facts)?)?;
        let limit = budget::bytes_of(budget, self.facts);
        let answer = budget::answer(env, &prepared, limit, states, failed)?;
        chosen(&prepared, &answer, prepared.table(&answer))
    }
}

/// Returns an answer as a choice, with its certificate.
pub(super) fn chosen(prepared: &Prepared, answer: &Answer, table: Table) -> Result<Chosen, StepError> {
    let file_type = table.file_type();
    Ok(Chosen {
        solved: Some(budget::certify(prepared, answer)?),
        ..Chosen::of(table, Some(file_type))
    })
}
