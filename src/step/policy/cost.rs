//! Estimates of the work of policies that measure or compare tensors: from the actions without a result, or from the header of the
//! model alone.

use std::collections::BTreeMap;

use crate::action::InspectModel;
use crate::action::Join;
use crate::engine::Role;
use crate::method::Probing;
use crate::method::Solving;
use crate::policy;
use crate::policy::HasImatrix;
use crate::policy::ModelFacts;
use crate::policy::TensorGroup;
use crate::recipe::model::EngineRef;
use crate::recipe::model::PolicyStep;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::StepError;
use crate::tensor_type::TensorType;
use crate::work::Slices;
use crate::work::Tensors;
use crate::work::decode;

use super::document::keep_of;
use super::preliminary::assumed_imatrix;

/// A group in a type that it may have.
pub(super) type Choice<'g> = (&'g TensorGroup, TensorType);

/// Estimates the first part of the work of a policy that measures or compares: the maximum number of probes, including those with a
/// result, and the bytes of tensors that are not quantized yet. The estimate of other policies is empty.
pub(super) fn estimate(
    step: &PolicyStep,
    inputs: &Inputs,
    facts: &ModelFacts,
    has: HasImatrix<'_>,
    env: &Env<'_>,
    engine: &EngineRef,
) -> Result<Estimate, StepError> {
    let join = step.join.as_ref().map(|join| inputs.step(join)).transpose()?;
    let slices = match join {
        Some(join) => decode(env.store, "slices", join.output(Join::SLICES)?)?,
        None => Slices::default(),
    };
    let index = inputs.source(&step.model)?.output(InspectModel::MODEL)?;
    let quantizer = env.fingerprint(engine, Role::Quantizer)?;
    let tensors = Tensors::load(env.store, index, slices, None, quantizer)?;
    let is_missing = |at: usize, ty: TensorType, probed: bool| {
        let tensor = tensors.get(at)?;
        // What is only compared need not be there any more.
        let action = if probed {
            tensors.action(tensor, ty)
        } else {
            tensors.error_action(tensor, ty)
        };
        Ok(env.store.lookup_shallow(&action.digest())?.is_none())
    };
    let estimate = of(step, facts, has, is_missing)?;
    Ok(estimate.unwrap_or_default())
}

/// Estimates the same from the header of the model. Returns `None` for policies that neither measure nor compare, and if the recipe
/// does not fit the model.
pub fn estimate_from_header(step: &PolicyStep, facts: &ModelFacts) -> Option<Estimate> {
    of(step, facts, assumed_imatrix(step), |_, _, _| Ok(true)).ok()?
}

/// `is_missing` returns whether a tensor must still be quantized to a type. Its last argument is whether the model is measured with it.
fn of(
    step: &PolicyStep,
    facts: &ModelFacts,
    has: HasImatrix<'_>,
    is_missing: impl Fn(usize, TensorType, bool) -> Result<bool, StepError>,
) -> Result<Option<Estimate>, StepError> {
    let Some(constraints) = step.method.constraints() else {
        return Ok(None);
    };
    // A method without measurements needs no work.
    if step.method.needs().is_empty() {
        return Ok(None);
    }
    let probing = step.method.probing();
    let solving = Solving::of(facts, has, &constraints.document(keep_of(step)))?;
    let options = solving.options();
    let most = match probing {
        Probing::All { most: Some(most), .. } => most,
        _ => u64::MAX,
    };
    let probed = probed_of(probing, &options);
    let mut estimate = Estimate {
        unit: "probe",
        parts: most.min(probed.iter().filter(|probed| **probed).count() as u64),
        ..Estimate::default()
    };
    for (&(group, ty), &probed) in options.iter().zip(&probed) {
        for &at in &group.members {
            if is_missing(at, ty, probed)? {
                let tensor = &facts.tensors[at];
                estimate.reads += tensor.ty.tensor_bytes(&tensor.dims).unwrap_or_default();
                estimate.writes += ty.tensor_bytes(&tensor.dims).unwrap_or_default();
            }
        }
    }
    // Which of them `max_probes` leaves out is not known here, so all bytes are scaled.
    if options.len() as u64 > most {
        let share = |amount: u64| (u128::from(amount) * u128::from(most) / options.len() as u128) as u64;
        estimate.reads = share(estimate.reads);
        estimate.writes = share(estimate.writes);
    }
    estimate.missing = estimate.parts;
    Ok(Some(estimate))
}

/// Says of each option whether the model is measured with it.
pub(super) fn probed_of(probing: Probing, options: &[Choice<'_>]) -> Vec<bool> {
    let count = match probing {
        Probing::None | Probing::Gradients { .. } => return vec![false; options.len()],
        Probing::All { .. } => return vec![true; options.len()],
        Probing::OfEachGroup(count) => count as usize,
    };
    let mut of_group: BTreeMap<&str, Vec<TensorType>> = BTreeMap::new();
    for (group, ty) in options {
        of_group.entry(&group.name).or_default().push(*ty);
    }
    for types in of_group.values_mut() {
        *types = if count > 0 {
            policy::probed_types(types, count)
        } else {
            Vec::new()
        };
    }
    let probed = |(group, ty): &Choice<'_>| {
        of_group
            .get(group.name.as_str())
            .is_some_and(|types| types.contains(ty))
    };
    options.iter().map(probed).collect()
}
