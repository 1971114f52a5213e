//! `method = "measured"`: what each group of tensors loses in each type is measured on the model itself, and the choice within
//! the budget solved exactly.

use crate::action;
use crate::action::Method;
use crate::observer::Event;
use crate::policy;
use crate::policy::HasImatrix;
use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Rule;
use crate::policy::Target;
use crate::policy::TensorFacts;
use crate::policy::TensorGroup;
use crate::recipe::model::MeasuredPolicy;
use crate::recipe::model::PolicyStep;
use crate::report::words;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::eval::Reference;
use crate::step::measure::Bench;
use crate::step::measure::Variant;
use crate::step::tensor::Tensors;
use crate::step::tokens;
use crate::tensor_type::TensorType;

use super::Chosen;
use super::solving::Solving;

/// What is measured on what.
pub(super) struct Parts<'i> {
    model: &'i Outcome,
    join: Option<&'i Outcome>,
    corpus: &'i Outcome,
    cut: tokens::Cut,
}

impl<'i> Parts<'i> {
    pub(super) fn of(step: &PolicyStep, settings: &MeasuredPolicy, inputs: &'i Inputs) -> Result<Self, StepError> {
        Ok(Self {
            model: inputs.source(&step.model)?,
            join: step.join.as_ref().map(|join| inputs.step(join)).transpose()?,
            corpus: inputs.step(&settings.corpus)?,
            cut: tokens::Cut {
                context: settings.context,
                chunks: Some(settings.chunks),
                block: settings.block,
            },
        })
    }
}

/// Measures, and chooses.
pub(super) fn choose(
    task: &Task<'_>,
    parts: &Parts<'_>,
    facts: &ModelFacts,
    method: &Method,
    has: HasImatrix<'_>,
) -> Result<Chosen, StepError> {
    let Method::Measured(measured) = method else {
        return Err(StepError::input("not a measured policy"));
    };
    let action::Measured {
        header,
        budget,
        types,
        fuse,
        floors,
        ceilings,
        keep,
        devices,
        states,
        ..
    } = &**measured;
    let solving = Solving::of(facts, has, types, fuse, keep, floors, ceilings)?;
    let allowed = |tensor: &TensorFacts, ty: TensorType| {
        policy::legal(tensor, ty, has)
            && ty.bpw() < tensor.ty.bpw()
            && bound(&solving.keep, tensor).is_none()
            && bound(&solving.floors, tensor).is_none_or(|least| ty.bpw() >= least)
            && bound(&solving.ceilings, tensor).is_none_or(|most| ty.bpw() <= most)
    };
    let losses = losses(task, parts, facts, &solving.groups, &solving.types, &allowed)?;
    solving.choose(task.env, &losses, header, *budget, devices, *states)
}

/// Returns the bits per weight that the first rule that matches a tensor speaks of; infinitely many for `keep`.
fn bound(rules: &[Rule], tensor: &TensorFacts) -> Option<f64> {
    let rule = rules.iter().find(|rule| rule.pattern.is_match(&tensor.name))?;
    Some(match rule.to {
        Target::Type(ty) => ty.bpw(),
        Target::Keep => f64::INFINITY,
    })
}

/// Returns the mean KL divergence that each group alone causes in each type, less what the model itself shows against the
/// coded reference.
fn losses(
    task: &Task<'_>,
    parts: &Parts<'_>,
    facts: &ModelFacts,
    groups: &[TensorGroup],
    types: &[TensorType],
    allowed: &dyn Fn(&TensorFacts, TensorType) -> bool,
) -> Result<Losses, StepError> {
    let mut asked: Vec<(&TensorGroup, TensorType)> = Vec::new();
    // The last one is the model itself.
    let mut variants: Vec<Variant> = Vec::new();
    for group in groups {
        for &ty in types {
            if group.members.iter().all(|at| allowed(&facts.tensors[*at], ty)) {
                asked.push((group, ty));
                variants.push(group.members.iter().map(|at| (*at, ty)).collect());
            }
        }
    }
    variants.push(Variant::new());
    let tensors = Tensors::load(parts.model, parts.join, task.env)?;
    let blocks = tokens::blocks(task, parts.model, parts.corpus, parts.cut)?;
    let bench = Bench {
        reference: Reference {
            task,
            model: parts.model,
            context: parts.cut.context,
        },
        tensors: &tensors,
        blocks: &blocks,
    };
    let chunks: usize = blocks.iter().map(|block| block.chunks.len()).sum();
    let missing = bench.missing(&variants)?;
    if missing > 0 {
        task.tell(Event::Note {
            step: task.step.clone(),
            message: format!(
                "{} of {} in {} and {}: {missing} of {} blocks of chunks are to be measured",
                words::count(variants.len() as u64, "probe"),
                words::count(groups.len() as u64, "group"),
                words::count(types.len() as u64, "type"),
                words::count(chunks as u64, "chunk"),
                variants.len() * blocks.len()
            ),
        });
    }
    let divergences = bench.divergences(&variants)?;
    let Some((null, measured)) = divergences.split_last() else {
        return Err(StepError::input("nothing was measured"));
    };
    let mut losses = Losses::new();
    for ((group, ty), found) in asked.into_iter().zip(measured) {
        let lost: Vec<f64> = found.iter().zip(null).map(|(with, without)| with - without).collect();
        losses.insert((group.name.clone(), ty), loss_of(&lost));
    }
    // What stays as it is loses nothing.
    for group in groups {
        if let Some(own) = group.members.first().map(|at| facts.tensors[*at].ty)
            && group.members.iter().all(|at| facts.tensors[*at].ty == own)
        {
            losses.insert((group.name.clone(), own), loss_of(&[]));
        }
    }
    Ok(losses)
}

/// Returns the mean over chunks and its variance.
fn loss_of(chunks: &[f64]) -> Loss {
    let count = chunks.len() as f64;
    let mean = chunks.iter().sum::<f64>() / count.max(1.0);
    let squares: f64 = chunks.iter().map(|lost| (lost - mean).powi(2)).sum();
    Loss {
        mean,
        variance: if count > 1.0 {
            squares / (count - 1.0) / count
        } else {
            0.0
        },
        chunks: chunks.len() as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variance_is_that_of_the_mean() {
        let loss = loss_of(&[1.0, 2.0, 3.0, 6.0]);
        assert_eq!((loss.mean, loss.chunks), (3.0, 4));
        assert!((loss.variance - 14.0 / 3.0 / 4.0).abs() < 1e-12);
        assert_eq!((loss_of(&[2.0]).variance, loss_of(&[]).mean), (0.0, 0.0));
    }
}
