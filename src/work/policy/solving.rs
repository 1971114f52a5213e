//! What all methods have that solve for losses, wherever these come from: the groups and what bounds them, and the choice.

use crate::action::PolicyBudget;
use crate::action::PolicyDevice;
use crate::action::PolicyHeader;
use crate::action::PolicyRule;
use crate::allocation::Answer;
use crate::policy;
use crate::policy::Device;
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
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::tensor_type::TensorType;
use crate::work::Context;
use crate::work::StepError;

use super::Chosen;
use super::budget;
use super::devices;
use super::read::failed;
use super::read::fuse_of;
use super::read::kept;
use super::read::rules_of;
use super::read::type_of;

/// The groups of a model, the types to choose from, and what the recipe says of them.
pub struct Solving<'a> {
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
    pub fn of(
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
    fn allows(&self, tensor: &TensorFacts, ty: TensorType) -> bool {
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

    /// Returns the groups in the types that they may have, but for the source's own.
    pub fn options(&self) -> Vec<(&TensorGroup, TensorType)> {
        let all = self
            .groups
            .iter()
            .flat_map(|group| self.types.iter().map(move |ty| (group, *ty)));
        let allowed = |(group, ty): &(&TensorGroup, TensorType)| {
            let mut members = group.members.iter();
            members.all(|at| self.allows(&self.facts.tensors[*at], *ty))
        };
        all.filter(allowed).collect()
    }

    /// Returns what a choice has to keep to: the bytes of the file, then the memory of devices.
    pub(super) fn limits(
        &self,
        context: &Context<'_>,
        header: &PolicyHeader,
        budget: PolicyBudget,
        devices: &[PolicyDevice],
        states: u64,
    ) -> Result<Limits, StepError> {
        let file = budget::bytes_of(budget, self.facts);
        Ok(Limits {
            size: budget::file_size(context.store(), header, self.facts)?,
            most: std::iter::once(file)
                .chain(devices.iter().map(|device| device.memory))
                .collect(),
            devices: devices::of(context, devices, header, self.facts)?,
            states,
        })
    }

    /// Returns the problem that losses make, and the choice of least loss within the limits.
    pub(super) fn solve(
        &self,
        context: &Context<'_>,
        losses: &Losses,
        limits: &Limits,
    ) -> Result<(Prepared, Answer), StepError> {
        let question = Question {
            model: self.facts,
            groups: &self.groups,
            losses,
            caution: 0.0,
            size: limits.size,
            keep: &self.keep,
            floors: &self.floors,
            ceilings: &self.ceilings,
            has_imatrix: self.has,
            devices: &limits.devices,
        };
        let prepared = policy::prepare(&question).map_err(failed)?;
        let answer = budget::answer(context, &prepared, &limits.most, limits.states, failed)?;
        Ok((prepared, answer))
    }

    /// Returns the choice of least loss within the budget and the memory of devices, with its certificate.
    pub(super) fn choose(&self, context: &Context<'_>, losses: &Losses, limits: &Limits) -> Result<Chosen, StepError> {
        let (prepared, answer) = self.solve(context, losses, limits)?;
        chosen(&prepared, &answer, prepared.table(&answer))
    }
}

/// What a choice has to keep to.
pub(super) struct Limits {
    size: FileSize,
    /// The bytes of the file, then those of each device.
    most: Vec<u64>,
    devices: Vec<Device>,
    states: u64,
}

/// Returns an answer as a choice, with its certificate.
pub(super) fn chosen(prepared: &Prepared, answer: &Answer, table: Table) -> Result<Chosen, StepError> {
    let file_type = table.file_type();
    Ok(Chosen {
        solved: Some(budget::certify(prepared, answer)?),
        ..Chosen::of(table, Some(file_type))
    })
}
