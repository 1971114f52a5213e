//! `method = "error"`: the loss of each tensor in each type is estimated from the squared errors of its quantized values, scaled with
//! a few measurements on the model, and the best choice within the budget is solved exactly.

use std::collections::BTreeMap;

use crate::method::Chosen;
use crate::method::Solving;
use crate::method::error::Document;
use crate::method::error::ProbesDocument;
use crate::observer::Phase;
use crate::observer::Unit;
use crate::policy;
use crate::policy::Losses;
use crate::policy::Sensitivity;
use crate::policy::TensorGroup;
use crate::prose;
use crate::tensor_type::TensorType;
use crate::work::Context;
use crate::work::LocatedModel;
use crate::work::StepError;
use crate::work::blocks::BlockOptions;
use crate::work::blocks::TokenizedCorpus;
use crate::work::join::Slices;
use crate::work::probe::ProbeRunner;
use crate::work::probe::Variant;
use crate::work::references::Reference;
use crate::work::tensors::Tensors;

use super::stored::Stored;

/// A group in a type that it may have, and its squared error.
pub(super) struct Known<'g> {
    pub(super) group: &'g TensorGroup,
    pub(super) ty: TensorType,
    pub(super) error: f64,
}

/// Compares, measures a few, and chooses.
pub(super) fn choose(stored: Stored<'_, '_>, method: &Document, slices: Slices) -> Result<Chosen, StepError> {
    let Stored { context, facts, has } = stored;
    let solving = Solving::of(facts, has, &method.constraints)?;
    let devices = &method.constraints.devices;
    let limits = solving.limits(&stored, &method.header, method.budget, devices, method.states)?;
    // If nothing fits the budget, this fails before anything is compared or measured.
    let guessed = policy::prior(facts, &solving.groups, &solving.types);
    let _ = solving.solve(&stored, &guessed, &limits)?;
    let located = context.located();
    let model = located.model(&method.model)?;
    let load = |slices| Tensors::of_model(context, model, slices, method.imatrix, method.quantizer);
    let plain = load(slices.clone())?;
    // Refining makes the errors of outputs smaller, and with that those of single weights larger: what is measured has refined codes.
    let mut tensors = load(slices)?;
    tensors.refine(context.store(), method.rounding)?;
    let known = compare(context, solving.options(), &plain)?;
    let sensitivities = match &method.probes {
        Some(probes) => measure(context, model, probes, &tensors, &known)?,
        None => BTreeMap::new(),
    };
    let mut losses = Losses::new();
    for Known { group, ty, error } in &known {
        let sensitivity = sensitivities.get(&group.name).unwrap_or(&Sensitivity::ONE);
        losses.insert((group.name.clone(), *ty), sensitivity.loss(*error));
    }
    // A group that keeps its type has no loss.
    for group in &solving.groups {
        if let Some(own) = group.own_type(facts) {
            losses.insert((group.name.clone(), own), Sensitivity::ONE.loss(0.0));
        }
    }
    let mut chosen = solving.choose(&stored, &losses, &limits)?;
    // Sums of squared errors are not divergences, so they are not shown as a predicted loss.
    if method.probes.is_none() {
        chosen.table.predicted_loss = None;
    }
    Ok(chosen)
}

/// Returns the squared errors of groups in types.
pub(super) fn compare<'g>(
    context: &Context<'_>,
    asked: Vec<(&'g TensorGroup, TensorType)>,
    tensors: &Tensors,
) -> Result<Vec<Known<'g>>, StepError> {
    let parts = || {
        asked
            .iter()
            .flat_map(|(group, ty)| group.members.iter().map(|at| (*at, *ty)))
    };
    let (mut missing, mut total) = (0_u64, 0_u64);
    for (at, ty) in parts() {
        let tensor = tensors.get(at)?;
        if context
            .store()
            .lookup(&tensors.error_action(tensor, ty).digest())?
            .is_none()
        {
            missing += 1;
            total += tensor.bytes.len;
        }
    }
    if missing > 0 {
        context.note(format!(
            "squared errors: {missing} of {} combinations of tensor and type must be quantized and compared with the source",
            parts().count()
        ));
    }
    let seen = tensors.tokens(context.store())?;
    context.expect(Unit::BytesCompared, total);
    let mut known = Vec::with_capacity(asked.len());
    for (group, ty) in asked {
        let mut error = 0.0;
        for &at in &group.members {
            context.check_cancel()?;
            let tensor = tensors.get(at)?;
            let lost = tensors.errors(context, tensor, ty)?;
            error += policy::squared_error(&lost.errors, &tensors.counts(context.store(), &tensor.name)?, seen);
        }
        known.push(Known { group, ty, error });
    }
    Ok(known)
}

/// Measures a few types of each group. Returns the sensitivity of each group: the divergence in nats per squared error.
fn measure(
    context: &Context<'_>,
    model: &LocatedModel,
    probes: &ProbesDocument,
    tensors: &Tensors,
    known: &[Known<'_>],
) -> Result<BTreeMap<String, Sensitivity>, StepError> {
    // Options without an error are left out: there is nothing to divide by.
    let erring = || known.iter().filter(|known| known.error > 0.0);
    let mut options: BTreeMap<&str, Vec<TensorType>> = BTreeMap::new();
    for known in erring() {
        options.entry(&known.group.name).or_default().push(known.ty);
    }
    let count = probes.count as usize;
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
    let tokenized = TokenizedCorpus {
        corpus: probes.corpus,
        tokenizer: probes.tokenizer,
        engine: probes.evaluator,
    };
    let blocks = tokenized.blocks(
        context,
        BlockOptions::spread(probes.context, probes.chunks, probes.block),
    )?;
    let reference = Reference {
        model: model.compute,
        tokenizer: probes.tokenizer,
        context: probes.context,
        engine: probes.evaluator,
    };
    let what = format!(
        "{} of {}",
        prose::count(variants.len() as u64, "probe"),
        prose::count(probed.len() as u64, "group")
    );
    let mut runner = ProbeRunner::new(context, reference, model.hyperparameters, tensors, &blocks)?;
    let divergences = runner.divergences(Phase::Screen, &what, &variants, 0..blocks.len())?;
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
