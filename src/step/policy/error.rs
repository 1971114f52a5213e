//! `method = "error"`: what each tensor loses in each type is told from the squared errors of its quantized bytes, scaled by a
//! few measurements on the model itself, and the choice within the budget solved exactly.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::action;
use crate::action::Method;
use crate::observer::Event;
use crate::observer::Unit;
use crate::policy;
use crate::policy::HasImatrix;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Sensitivity;
use crate::policy::TensorGroup;
use crate::recipe::model::ErrorPolicy;
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

/// What is compared, and what a few types of it are measured on.
pub(super) struct Parts<'i> {
    model: &'i Outcome,
    join: Option<&'i Outcome>,
    probing: Option<Probing<'i>>,
}

/// What sensitivities are measured with.
struct Probing<'i> {
    corpus: &'i Outcome,
    cut: tokens::Cut,
    /// Types of each group.
    count: u32,
}

impl<'i> Parts<'i> {
    pub(super) fn of(step: &PolicyStep, settings: &ErrorPolicy, inputs: &'i Inputs) -> Result<Self, StepError> {
        let probing = super::measures_on(step).zip(settings.probes.as_ref());
        let probing = probing.map(|((corpus, cut), probes)| {
            Ok::<_, StepError>(Probing {
                corpus: inputs.step(corpus)?,
                cut,
                count: probes.count,
            })
        });
        Ok(Self {
            model: inputs.source(&step.model)?,
            join: step.join.as_ref().map(|join| inputs.step(join)).transpose()?,
            probing: probing.transpose()?,
        })
    }
}

/// A group in a type that it may have, and its squared error.
pub(super) struct Known<'g> {
    pub(super) group: &'g TensorGroup,
    pub(super) ty: TensorType,
    pub(super) error: f64,
}

/// Compares, measures a few, and chooses.
pub(super) fn choose(
    task: &Task<'_>,
    parts: &Parts<'_>,
    facts: &ModelFacts,
    method: &Method,
    has: HasImatrix<'_>,
) -> Result<Chosen, StepError> {
    let Method::Error(errors) = method else {
        return Err(StepError::input("not a policy by errors"));
    };
    let action::Errors {
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
    } = &**errors;
    let solving = Solving::of(facts, has, types, fuse, keep, floors, ceilings)?;
    let limits = solving.limits(task.env, header, *budget, devices, *states)?;
    // What the budget cannot hold fails before anything is compared or measured, whatever is lost.
    let guessed = policy::prior(facts, &solving.groups, &solving.types);
    let _ = solving.solve(task.env, &guessed, &limits)?;
    let tensors = Tensors::load(parts.model, parts.join, task.env)?;
    let known = compare(task, solving.options(), &tensors)?;
    let sensitivities = match &parts.probing {
        Some(probing) => measure(task, parts, probing, &tensors, &known)?,
        None => BTreeMap::new(),
    };
    let mut losses = Losses::new();
    for Known { group, ty, error } in &known {
        let sensitivity = sensitivities.get(&group.name).unwrap_or(&Sensitivity::ONE);
        losses.insert((group.name.clone(), *ty), sensitivity.loss(*error));
    }
    // What stays as it is loses nothing.
    for group in &solving.groups {
        if let Some(own) = group.own_type(facts) {
            losses.insert((group.name.clone(), own), Sensitivity::ONE.loss(0.0));
        }
    }
    let mut chosen = solving.choose(task.env, &losses, &limits)?;
    // Sums of squared errors are no divergence: nobody shall take them for one.
    if parts.probing.is_none() {
        chosen.table.predicted_loss = None;
    }
    Ok(chosen)
}

/// Returns the squared errors of groups in types.
pub(super) fn compare<'g>(
    task: &Task<'_>,
    asked: Vec<(&'g TensorGroup, TensorType)>,
    tensors: &Tensors<'_>,
) -> Result<Vec<Known<'g>>, StepError> {
    let parts = || {
        asked
            .iter()
            .flat_map(|(group, ty)| group.members.iter().map(|at| (*at, *ty)))
    };
    let (mut missing, mut total) = (0_u64, 0_u64);
    for (at, ty) in parts() {
        let tensor = tensors.get(at)?;
        if task
            .env
            .store
            .lookup(&tensors.error_action(tensor, ty).digest())?
            .is_none()
        {
            missing += 1;
            total += tensor.bytes.len;
        }
    }
    if missing > 0 {
        task.tell(Event::Note {
            step: task.step.clone(),
            message: format!(
                "{missing} of {} tensors in types are to be quantized and compared with the source",
                parts().count()
            ),
        });
    }
    let seen = tensors.tokens(task.env)?;
    let told = AtomicU64::new(0);
    let progress = |bytes: u64| {
        told.fetch_add(bytes, Ordering::Relaxed);
        task.advance(Unit::BytesQuantized, bytes, total.max(told.load(Ordering::Relaxed)));
    };
    let mut known = Vec::with_capacity(asked.len());
    for (group, ty) in asked {
        let mut error = 0.0;
        for &at in &group.members {
            task.check_cancel()?;
            let tensor = tensors.get(at)?;
            let expected = ty.tensor_bytes(&tensor.dims);
            let expected = expected.ok_or_else(|| StepError::input(format!("`{}` cannot be {ty}", tensor.name)))?;
            let lost = tensors.errors(task, tensor, ty, expected, &progress)?;
            error += policy::squared_error(&lost.errors, &tensors.counts(task.env, &tensor.name)?, seen);
        }
        known.push(Known { group, ty, error });
    }
    Ok(known)
}

/// Returns what a squared error costs each group, in nats of divergence: a few types of each are measured.
fn measure(
    task: &Task<'_>,
    parts: &Parts<'_>,
    probing: &Probing<'_>,
    tensors: &Tensors<'_>,
    known: &[Known<'_>],
) -> Result<BTreeMap<String, Sensitivity>, StepError> {
    // Without an error there is nothing to divide by.
    let erring = || known.iter().filter(|known| known.error > 0.0);
    let mut options: BTreeMap<&str, Vec<TensorType>> = BTreeMap::new();
    for known in erring() {
        options.entry(&known.group.name).or_default().push(known.ty);
    }
    let count = probing.count as usize;
    let probed: BTreeMap<&str, Vec<TensorType>> = options
        .into_iter()
        .map(|(name, options)| (name, policy::probed_types(&options, count)))
        .collect();
    let asked: Vec<&Known<'_>> = erring()
        .filter(|known| {
            probed
                .get(known.group.name.as_str())
                .is_some_and(|types| types.contains(&known.ty))
        })
        .collect();
    let variant = |known: &&Known<'_>| {
        known
            .group
            .members
            .iter()
            .map(|at| (*at, known.ty))
            .collect::<Variant>()
    };
    // The last one is the model itself.
    let variants: Vec<Variant> = asked.iter().map(variant).chain([Variant::new()]).collect();
    let blocks = tokens::blocks(task, parts.model, probing.corpus, probing.cut)?;
    let reference = Reference {
        task,
        model: parts.model,
        context: probing.cut.context,
    };
    let what = format!(
        "{} of {}",
        words::count(variants.len() as u64, "probe"),
        words::count(probed.len() as u64, "group")
    );
    let divergences = Bench::new(reference, tensors, &blocks).divergences(&what, &variants, 0..blocks.len())?;
    let Some((null, measured)) = divergences.split_last() else {
        return Err(StepError::input("nothing was measured"));
    };
    let mut of_group: BTreeMap<&str, Vec<(f64, Vec<f64>)>> = BTreeMap::new();
    for (known, found) in asked.iter().zip(measured) {
        let lost = found.iter().zip(null).map(|(with, without)| with - without);
        let measured = (known.error, lost.collect());
        of_group.entry(&known.group.name).or_default().push(measured);
    }
    let mut found: BTreeMap<String, Sensitivity> = of_group
        .into_iter()
        .filter_map(|(name, measured)| Some((name.to_owned(), Sensitivity::of(&measured)?)))
        .collect();
    policy::lift_sensitivities(&mut found);
    Ok(found)
}
