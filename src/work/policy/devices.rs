//! Memory that some tensors lie in, with the cache of keys and values that lies beside them.

use std::collections::BTreeSet;

use crate::action::PolicyDevice;
use crate::action::PolicyHeader;
use crate::policy::CacheShape;
use crate::policy::Device;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::cached_layer;
use crate::work::Context;
use crate::work::StepError;
use crate::work::documents::decode_metadata;

use super::read::failed;
use super::read::regex_of;
use super::read::type_of;

/// Returns the devices of a method's document as the solver takes them.
pub(super) fn of(
    context: &Context<'_>,
    devices: &[PolicyDevice],
    header: &PolicyHeader,
    facts: &ModelFacts,
) -> Result<Vec<Device>, StepError> {
    devices
        .iter()
        .map(|device| one(context, device, header, facts))
        .collect()
}

fn one(
    context: &Context<'_>,
    device: &PolicyDevice,
    header: &PolicyHeader,
    facts: &ModelFacts,
) -> Result<Device, StepError> {
    let holds = device.tensors.iter().map(|pattern| regex_of(pattern));
    let holds = holds.collect::<Result<Vec<_>, StepError>>()?;
    let inside = |name: &str| holds.iter().any(|pattern| pattern.is_match(name));
    let names: Vec<&str> = facts.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    if !names.iter().any(|name| inside(name)) {
        return Err(failed(PolicyError::EmptyDevice {
            device: device.name.clone(),
        }));
    }
    let mut constant = device.reserve;
    if let Some(cache) = &device.cache {
        let metadata = decode_metadata(context.store(), header.metadata)?;
        let shape = CacheShape::from_metadata(facts, &metadata).map_err(failed)?;
        let ty = type_of(&cache.ty)?;
        let layers = names
            .iter()
            .filter(|name| inside(name))
            .filter_map(|name| cached_layer(name));
        for layer in layers.collect::<BTreeSet<u32>>() {
            let bytes = shape.bytes(layer, u64::from(cache.context), ty).map_err(failed)?;
            constant = constant.saturating_add(bytes);
        }
    }
    Ok(Device {
        name: device.name.clone(),
        constant,
        holds,
    })
}
