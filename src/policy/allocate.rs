//! Losses of groups and types as a problem for the solver, and its answer as a table.
//!
//! Where losses come from (measured, predicted, guessed) does not matter here.

use std::collections::BTreeMap;

use regex::Regex;

use crate::allocation::Answer;
use crate::allocation::Candidate;
use crate::allocation::Capacity;
use crate::allocation::Group;
use crate::allocation::Problem;
use crate::allocation::Scale;
use crate::policy::Choice;
use crate::policy::FileSize;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::Rule;
use crate::policy::Table;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::policy::Warning;
use crate::policy::Why;
use crate::policy::check::convertible;
use crate::policy::check::exempt;
use crate::policy::check::useless_without;
use crate::policy::manual::RuleMatcher;
use crate::policy::manual::TypeRequest;
use crate::policy::manual::choice;
use crate::policy::quantizable::quantizable;
use crate::tensor_type::TensorType;

/// What a group loses in a type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The loss. It may be negative: what is left of noise when the null is subtracted.
    pub mean: f64,
    /// The variance of this mean; 0 where it is not known.
    pub variance: f64,
    /// How many chunks it was measured on; 0 where it was not measured.
    pub chunks: u32,
}

/// Losses by the name of a group and the type. A type without a loss is not an option. The type in the source is an option like others.
pub type Losses = BTreeMap<(String, TensorType), Loss>;

/// Memory that some tensors lie in.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// What else it holds, as a cache of keys and values.
    pub constant: u64,
    /// The tensors that lie in it: those in whose names one of these is found.
    pub holds: Vec<Regex>,
}

/// What is asked of the solver, but for limits.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The model.
    pub model: &'a ModelFacts,
    /// Its groups, as [`groups()`](crate::policy::groups) gives them.
    pub groups: &'a [TensorGroup],
    /// What they lose.
    pub losses: &'a Losses,
    /// How many standard deviations are added to each loss: 0 to take the means as they are.
    pub caution: f64,
    /// The size of the file without its tensors.
    pub size: FileSize,
    /// Tensors that keep the source's type; so does the rest of their group.
    pub keep: &'a [Rule],
    /// Least types by pattern, compared by bits per weight; the first that is found counts.
    pub floors: &'a [Rule],
    /// Largest types by pattern.
    pub ceilings: &'a [Rule],
    /// Which tensors have data in the imatrix.
    pub has_imatrix: HasImatrix<'a>,
    /// Devices with limited memory.
    pub devices: &'a [Device],
}

/// A problem for the solver, with what is needed to read its answer.
#[derive(Debug, Clone)]
pub struct Prepared {
    problem: Problem,
    scale: Scale,
    /// For each group of the problem: its tensors, and the choices and the loss of each option.
    groups: Vec<(Vec<usize>, Vec<Option_>)>,
    /// The choices that do not depend on the answer, by tensor.
    fixed: BTreeMap<usize, Choice>,
    warnings: Vec<Warning>,
}

#[derive(Debug, Clone)]
struct Option_ {
    choices: Vec<Choice>,
    loss: Loss,
}

/// Says whether a tensor can have a type: the engine converts it, its rows are whole blocks, and there are the imatrix data
/// without which the type would be garbage. The tensor's own type is always possible.
pub fn legal(tensor: &TensorFacts, ty: TensorType, has_imatrix: HasImatrix<'_>) -> bool {
    if ty == tensor.ty {
        return true;
    }
    let needs = ty.needs_imatrix() || (!exempt(&tensor.name) && useless_without(ty, None));
    ty.quantizable_target()
        && convertible(tensor.ty)
        && tensor.columns().is_multiple_of(ty.block_elements())
        && !tensor.dims.iter().skip(3).any(|dim| *dim > 1)
        && (!needs || has_imatrix.is_some_and(|has| has(&tensor.name)))
}

/// Makes a problem: the file's bytes are its first capacity, the devices' follow.
///
/// # Errors
/// [`PolicyError::NoOption`] if no type is possible for a group, [`PolicyError::BadLoss`], [`PolicyError::NoProblem`].
pub fn prepare(question: &Question<'_>) -> Result<Prepared, PolicyError> {
    let model = question.model;
    let mut matchers = [question.keep, question.floors, question.ceilings].map(RuleMatcher::new);
    // What the patterns say of each tensor.
    let mut said = Vec::with_capacity(model.tensors.len());
    for tensor in &model.tensors {
        let found = [0, 1, 2].map(|matcher: usize| matchers[matcher].find(&tensor.name));
        let never = quantizable(model, &tensor.name, &tensor.dims).err();
        for (matcher, index) in matchers.iter_mut().zip(found) {
            match never {
                Some(reason) => matcher.without_effect(index, tensor, reason),
                None => matcher.had_effect(index),
            }
        }
        said.push((found, never));
    }

    let mut fixed = BTreeMap::new();
    let mut open = Vec::new();
    let mut grouped = vec![false; model.tensors.len()];
    for group in question.groups {
        let kept = group.members.iter().find_map(|at| said[*at].0[0]);
        for at in &group.members {
            grouped[*at] = true;
            if let Some(index) = kept {
                let tensor = &model.tensors[*at];
                fixed.insert(*at, choice(tensor, TypeRequest::keep(tensor, Why::Rule { index }))?);
            }
        }
        if kept.is_none() {
            open.push(options_of(question, group, &said)?);
        }
    }
    for (at, tensor) in model.tensors.iter().enumerate().filter(|(at, _)| !grouped[*at]) {
        let why = said[at].1.map_or(Why::Copy, |reason| Why::NeverQuantized { reason });
        fixed.insert(at, choice(tensor, TypeRequest::keep(tensor, why))?);
    }

    open.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let cautious = |loss: &Loss| loss.mean + question.caution * loss.variance.sqrt();
    let all = open
        .iter()
        .flat_map(|(_, options)| options.values().map(|option| cautious(&option.loss)));
    let no_problem = |message: String| PolicyError::NoProblem { message };
    let scale = Scale::of(open.len(), all).map_err(|error| no_problem(error.to_string()))?;
    let uses = |choices: &[Choice]| -> Vec<u64> {
        let sum = |holds: &dyn Fn(&str) -> bool| {
            let held = choices.iter().filter(|choice| holds(&choice.tensor));
            held.fold(0_u64, |sum, choice| {
                sum.saturating_add(question.size.padded(choice.bytes))
            })
        };
        let devices = question
            .devices
            .iter()
            .map(|device| sum(&|name| device.holds.iter().any(|pattern| pattern.is_match(name))));
        std::iter::once(sum(&|_| true)).chain(devices).collect()
    };
    let constants = uses(&fixed.values().cloned().collect::<Vec<_>>());
    let named = std::iter::once(("file", question.size.header)).chain(
        question
            .devices
            .iter()
            .map(|device| (device.name.as_str(), device.constant)),
    );
    let capacities = named.zip(constants).map(|((name, more), constant)| Capacity {
        name: name.to_owned(),
        constant: constant.saturating_add(more),
    });
    let groups = open.iter().map(|(group, options)| Group {
        name: group.name.clone(),
        options: options
            .iter()
            .map(|(name, option)| Candidate {
                name: (*name).to_owned(),
                loss: scale.units(cautious(&option.loss)),
                uses: uses(&option.choices),
            })
            .collect(),
    });
    let problem =
        Problem::new(capacities.collect(), groups.collect()).map_err(|error| no_problem(error.to_string()))?;
    Ok(Prepared {
        problem,
        scale,
        groups: open
            .into_iter()
            .map(|(group, options)| (group.members.clone(), options.into_values().collect()))
            .collect(),
        fixed,
        warnings: matchers.into_iter().flat_map(RuleMatcher::warnings).collect(),
    })
}

/// What the patterns of keep, floors and ceilings say of a tensor, and why it is never quantized.
type Said = ([Option<usize>; 3], Option<crate::policy::Reason>);

/// Returns the options of a group by the names of their types, in which order the problem has them, too.
fn options_of<'a>(
    question: &Question<'_>,
    group: &'a TensorGroup,
    said: &[Said],
) -> Result<(&'a TensorGroup, BTreeMap<&'static str, Option_>), PolicyError> {
    let bits = |rules: &[Rule], index: Option<usize>| match index.map(|index| rules[index].to) {
        Some(Target::Type(ty)) => Some(ty.bpw()),
        Some(Target::Keep) | None => None,
    };
    let mut options = BTreeMap::new();
    let mut tried = Vec::new();
    let first = (group.name.clone(), TensorType::F32);
    let of_group = question
        .losses
        .range(first..)
        .take_while(|((name, _), _)| *name == group.name);
    for ((_, ty), loss) in of_group {
        if !loss.mean.is_finite() || !loss.variance.is_finite() || loss.variance < 0.0 {
            return Err(PolicyError::BadLoss {
                group: group.name.clone(),
                message: format!("{ty} has the loss {} and the variance {}", loss.mean, loss.variance),
            });
        }
        tried.push(*ty);
        let allowed = |at: &usize| {
            let tensor = &question.model.tensors[*at];
            let [_, floor, ceiling] = said[*at].0;
            legal(tensor, *ty, question.has_imatrix)
                && bits(question.floors, floor).is_none_or(|least| ty.bpw() >= least)
                && bits(question.ceilings, ceiling).is_none_or(|most| ty.bpw() <= most)
        };
        if !group.members.iter().all(allowed) {
            continue;
        }
        let chosen = group.members.iter().map(|at| {
            let request = TypeRequest {
                to: *ty,
                why: Why::Solved {
                    group: group.name.clone(),
                    loss: Some(format!("{:e}", loss.mean)),
                },
                may_fall_back: false,
            };
            choice(&question.model.tensors[*at], request)
        });
        let option = Option_ {
            choices: chosen.collect::<Result<_, _>>()?,
            loss: *loss,
        };
        options.insert(ty.name(), option);
    }
    if options.is_empty() {
        return Err(PolicyError::NoOption {
            group: group.name.clone(),
            tried,
        });
    }
    Ok((group, options))
}

/// An option of a group, as the solver's prices see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Priced {
    /// The type.
    pub ty: TensorType,
    /// Its reduced cost: by how much its loss, with its bytes charged, is above the least of its group.
    pub cost: f64,
    /// Whether the answer chose it.
    pub chosen: bool,
}

impl Prepared {
    /// Returns the problem: its groups are those that have a choice, its options are named after types.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }

    /// Returns the scale of the problem's losses.
    pub fn scale(&self) -> Scale {
        self.scale
    }

    /// Returns the loss that an answer is predicted to have, and the variance of that if groups err independently.
    pub fn predicted(&self, answer: &Answer) -> (f64, f64) {
        let chosen = self.groups.iter().zip(&answer.choice);
        let losses = chosen.map(|((_, options), at)| options[*at].loss);
        losses.fold((0.0, 0.0), |(mean, variance), loss| {
            (mean + loss.mean, variance + loss.variance)
        })
    }

    /// Returns the options of each group with their bytes charged at an answer's prices, the cheapest first.
    pub fn priced(&self, answer: &Answer) -> Vec<(String, Vec<Priced>)> {
        let of = |multiplier: &u64| *multiplier as f64 / answer.multipliers.denominator as f64;
        let prices: Vec<f64> = answer.multipliers.numerators.iter().map(of).collect();
        let groups = self.problem.groups().iter().zip(&answer.choice);
        groups
            .map(|(group, chosen)| {
                let cost = |option: &Candidate| {
                    let bytes = option
                        .uses
                        .iter()
                        .zip(&prices)
                        .map(|(used, price)| *used as f64 * price);
                    option.loss as f64 + bytes.sum::<f64>()
                };
                let least = group.options.iter().map(cost).fold(f64::INFINITY, f64::min);
                let mut options: Vec<Priced> = group
                    .options
                    .iter()
                    .enumerate()
                    .filter_map(|(at, option)| {
                        Some(Priced {
                            ty: TensorType::from_name(&option.name)?,
                            cost: (cost(option) - least) * self.scale.loss(1),
                            chosen: at == *chosen,
                        })
                    })
                    .collect();
                options.sort_by(|a, b| a.cost.total_cmp(&b.cost));
                (group.name.clone(), options)
            })
            .collect()
    }

    /// Returns an answer as a table, in the order of the model's tensors.
    pub fn table(&self, answer: &Answer) -> Table {
        let mut choices = self.fixed.clone();
        for ((members, options), at) in self.groups.iter().zip(&answer.choice) {
            choices.extend(members.iter().copied().zip(options[*at].choices.iter().cloned()));
        }
        let mut table = Table::new(choices.into_values().collect(), self.warnings.clone());
        table.predicted_loss = Some(format!("{:e}", self.predicted(answer).0));
        table
    }
}

#[cfg(test)]
mod tests;
