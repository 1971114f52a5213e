//! The common part of methods that minimize losses: groups, constraints, and the choice.

use std::collections::BTreeMap;

use super::budget::BudgetDocument;
use super::constraints::ConstraintsDocument;
use super::device::DeviceDocument;
use super::header::HeaderDocument;
use super::interface::Chosen;
use super::interface::Material;
use super::interface::Solved;
use super::problem::MethodError;
use super::rules::kept;
use super::rules::rules_of;
use super::rules::type_of;
use crate::allocation;
use crate::allocation::Answer;
use crate::allocation::Base;
use crate::allocation::Effort;
use crate::allocation::Group;
use crate::allocation::Problem;
use crate::allocation::Scale;
use crate::allocation::Solver;
use crate::allocation::Status;
use crate::engine::Cancel;
use crate::policy;
use crate::policy::Device;
use crate::policy::Energies;
use crate::policy::FileSize;
use crate::policy::GroupOptions;
use crate::policy::HasImatrix;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Prepared;
use crate::policy::Question;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::tensor_type::TensorType;

/// The groups of a model, the types to choose from, and what the recipe says of them.
pub struct Solving<'a> {
    facts: &'a ModelFacts,
    has: HasImatrix<'a>,
    pub(crate) groups: Vec<TensorGroup>,
    pub(crate) types: Vec<TensorType>,
    keep: Vec<Rule>,
    floors: Vec<Rule>,
    ceilings: Vec<Rule>,
}

impl<'a> Solving<'a> {
    /// Reads what a document says.
    ///
    /// # Errors
    ///
    /// A type or an expression that does not exist.
    pub fn of(
        facts: &'a ModelFacts,
        has: HasImatrix<'a>,
        constraints: &ConstraintsDocument,
    ) -> Result<Self, MethodError> {
        let options = GroupOptions {
            tied: false,
            fuse: constraints.fuse.clone(),
        };
        let types = constraints.types.iter().map(|name| type_of(name));
        Ok(Self {
            facts,
            has,
            groups: policy::groups(facts, &Energies::new(), &options),
            types: types.collect::<Result<_, _>>()?,
            keep: kept(&constraints.keep)?,
            floors: rules_of(&constraints.floors)?,
            ceilings: rules_of(&constraints.ceilings)?,
        })
    }

    /// Returns whether a tensor may get another type: a smaller one that the recipe allows.
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
    pub(crate) fn limits<M: Material>(
        &self,
        material: &M,
        header: &HeaderDocument,
        budget: BudgetDocument,
        devices: &[DeviceDocument],
        states: u64,
    ) -> Result<Limits, M::Error> {
        let file = budget.bytes(self.facts);
        let resolve = |device: &DeviceDocument| device.resolve(self.facts, || material.metadata(header));
        Ok(Limits {
            size: material.file_size(header)?,
            most: std::iter::once(file)
                .chain(devices.iter().map(|device| device.memory))
                .collect(),
            devices: devices.iter().map(resolve).collect::<Result<_, _>>()?,
            states,
        })
    }

    /// Returns the problem that losses make, and the choice of least loss within the limits.
    pub(crate) fn solve<M: Material>(
        &self,
        material: &M,
        losses: &Losses,
        limits: &Limits,
    ) -> Result<(Prepared, Answer), M::Error> {
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
        let prepared = policy::prepare(&question).map_err(MethodError::from)?;
        let answer = answer(material, &prepared, &limits.most, limits.states)?;
        Ok((prepared, answer))
    }

    /// Returns the choice of least loss within the budget and the memory of devices, with its certificate.
    pub(crate) fn choose<M: Material>(
        &self,
        material: &M,
        losses: &Losses,
        limits: &Limits,
    ) -> Result<Chosen, M::Error> {
        let (prepared, answer) = self.solve(material, losses, limits)?;
        Ok(chosen(&prepared, &answer, None, prepared.table(&answer))?)
    }
}

/// Checks that some choice keeps to the budget and to the memory of devices, whatever is lost.
///
/// # Errors
///
/// Not even the smallest choice does, or a tensor has no type that the constraints allow.
pub(crate) fn check_feasible<M: Material>(
    material: &M,
    constraints: &ConstraintsDocument,
    header: &HeaderDocument,
    budget: BudgetDocument,
) -> Result<(), M::Error> {
    let facts = material.facts();
    let solving = Solving::of(facts, material.has_imatrix(), constraints)?;
    let losses = policy::prior(facts, &solving.groups, &solving.types);
    let limits = solving.limits(material, header, budget, &constraints.devices, 1)?;
    solving.solve(material, &losses, &limits).map(|_| ())
}

/// What a choice has to keep to.
pub(crate) struct Limits {
    size: FileSize,
    /// The bytes of the file, then those of each device.
    most: Vec<u64>,
    devices: Vec<Device>,
    states: u64,
}

/// The choice that losses are differences to.
pub(crate) struct BaseChoice {
    /// The type of each group.
    pub choice: BTreeMap<String, TensorType>,
    /// Its loss, measured as a whole.
    pub loss: f64,
    /// What the loss of every other type has on top of its difference.
    pub penalty: f64,
}

/// Returns an answer as a choice, with its certificate. With a base, losses are differences to it, and the table says which loss the
/// certificate predicts for the choice as a whole.
pub(crate) fn chosen(
    prepared: &Prepared,
    answer: &Answer,
    base: Option<&BaseChoice>,
    mut table: Table,
) -> Result<Chosen, MethodError> {
    let (problem, scale) = (prepared.problem(), prepared.scale());
    let base = base.map(|base| base_of(base, problem, scale)).transpose()?;
    if let Some(base) = &base {
        table.predicted_loss = Some(format!("{:e}", base.predicted(problem, scale, answer)));
    }
    let certificate = allocation::document(problem, scale, base.as_ref(), std::slice::from_ref(answer))
        .map_err(|error| MethodError::new(format!("the certificate cannot be written: {error}")))?;
    Ok(Chosen {
        solved: Some(Solved {
            certificate,
            optimal: answer.status == Status::Optimal,
        }),
        ..Chosen::of(table)
    })
}

/// Returns a base as a certificate has it.
fn base_of<'a>(base: &BaseChoice, problem: &'a Problem, scale: Scale) -> Result<Base<'a>, MethodError> {
    let own = |group: &'a Group| -> Option<&'a str> {
        let ty = base.choice.get(&group.name)?.name();
        let option = group.options.iter().find(|option| option.name == ty)?;
        Some(option.name.as_str())
    };
    let lost = |group: &Group| MethodError::new(format!("`{}` has no type in the measured choice", group.name));
    let choice = problem
        .groups()
        .iter()
        .map(|group| own(group).ok_or_else(|| lost(group)));
    Ok(Base {
        choice: choice.collect::<Result<_, _>>()?,
        loss: base.loss,
        penalty: u64::try_from(scale.units(base.penalty)).unwrap_or(0),
    })
}

/// Solves a problem within a limit for each of its capacities: the bytes of the file, then those of devices.
fn answer<M: Material>(material: &M, prepared: &Prepared, limits: &[u64], states: u64) -> Result<Answer, M::Error> {
    let cancel = material.cancel();
    let stopped = || cancel.is_some_and(Cancel::is_cancelled);
    let effort = Effort {
        states,
        stop: Some(&stopped),
    };
    let answer = Solver::new(prepared.problem())
        .solve(limits, &effort)
        .map_err(|error| MethodError::new(format!("the choice cannot be solved: {error}")))?;
    // An answer that was cut short is not what others would get.
    material.check_stopped()?;
    if answer.status == Status::BelowMinimum {
        return Err(MethodError::from(below_minimum(prepared, limits, &answer.uses)).into());
    }
    Ok(answer)
}

/// Says which limit is below what the smallest options use. These are the smallest in every capacity, since a type that is smaller for
/// one tensor is so for all.
fn below_minimum(prepared: &Prepared, limits: &[u64], uses: &[u64]) -> PolicyError {
    let capacities = prepared.problem().capacities().iter();
    let all = capacities.zip(limits.iter().zip(uses)).enumerate();
    for (at, (capacity, (limit, minimum))) in all {
        if at > 0 && minimum > limit {
            return PolicyError::DeviceBelowMinimum {
                device: capacity.name.clone(),
                memory: *limit,
                minimum: *minimum,
                constant: capacity.constant,
            };
        }
    }
    PolicyError::BelowMinimum {
        budget: limits.first().copied().unwrap_or_default(),
        minimum: uses.first().copied().unwrap_or_default(),
    }
}
