//! What all methods have that solve for losses, wherever these come from: the groups and what bounds them, and the choice.

use crate::action::PolicyBudget;
use crate::action::PolicyDevice;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::policy;
use crate::policy::Energies;
use crate::policy::GroupOptions;
use crate::policy::HasImatrix;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Question;
use crate::policy::Rule;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::step::Env;
use crate::step::StepError;
use crate::tensor_type::TensorType;

use super::Chosen;
use super::budget;
use super::devices;
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

    /// Says whether a tensor may have a type that is not its own: it is smaller, and nothing that the recipe says is against it.
    pub(super) fn allows(&self, tensor: &TensorFacts, ty: TensorType) -> bool {
        let bound = |rules: &[Rule]| {
            let rule = rules.iter().find(|rule| rule.pattern.is_match(&tensor.name))?;
            Some(match rule.to {
                Target::Type(ty) => ty.bpw(),
                Target::Keep => f64::INFINITY,
            })
        };
        policy::legal(tensor, ty, self.has)
            && ty.bpw() < tensor.ty.bpw()
            && bound(&self.keep).is_none()
            && bound(&self.floors).is_none_or(|least| ty.bpw() >= least)
            && bound(&self.ceilings).is_none_or(|most| ty.bpw() <= most)
    }

    /// Returns the choice of least loss within the budget and the memory of devices, with its certificate.
    pub(super) fn choose(
        &self,
        env: &Env<'_>,
        losses: &Losses,
        header: &PolicyHeader,
        budget: PolicyBudget,
        devices: &[PolicyDevice],
        states: u64,
    ) -> Result<Chosen, StepError> {
        let limits =
            std::iter::once(budget::bytes_of(budget, self.facts)).chain(devices.iter().map(|device| device.memory));
        let limits: Vec<u64> = limits.collect();
        let devices = devices::of(env, devices, header, self.facts)?;
        let question = Question {
            model: self.facts,
            groups: &self.groups,
            losses,
            caution: 0.0,
            size: budget::file_size(env, header, self.facts)?,
            keep: &self.keep,
            floors: &self.floors,
            ceilings: &self.ceilings,
            has_imatrix: self.has,
            devices: &devices,
        };
        let prepared = policy::prepare(&question).map_err(failed)?;
        let (table, solved) = budget::solve(env, &prepared, &limits, states, failed)?;
        let file_type = table.file_type();
        Ok(Chosen {
            solved: Some(solved),
            ..Chosen::of(table, Some(file_type))
        })
    }
}
