//! `[policy.NAME.device.NAME]`: memory that some of a candidate's tensors must fit into, with the cache of keys and values of
//! their layers.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use super::problem::MethodError;
use super::rules::regex_of;
use super::rules::type_of;
use crate::container::Metadata;
use crate::policy;
use crate::policy::CacheShape;
use crate::policy::ModelFacts;
use crate::policy::PolicyError;
use crate::policy::cached_layer;
use crate::quantity::Quantity;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::names::CACHE_TYPES;
use crate::syntax::names::name_problem;
use crate::syntax::pattern::Pattern;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::syntax::shared::number;
use crate::syntax::shared::word_of;
use crate::vocab::role::Role;
use crate::vocab::role::field;

/// Memory that some tensors lie in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// The tensors on the device: those that one of these patterns matches.
    pub tensors: Vec<Pattern>,
    /// Its bytes.
    pub memory: u64,
    /// Bytes of it that are for other things.
    pub reserve: u64,
    /// The KV cache of the layers whose attention is on the device.
    pub cache: Option<Cache>,
}

/// A cache of keys and values.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cache {
    /// How many tokens it holds.
    pub context: u32,
    /// The type of keys and values, as llama.cpp's options spell it.
    #[serde(rename = "type")]
    pub ty: &'static str,
}

/// A device, as documents have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceDocument {
    /// Its name.
    pub name: String,
    /// Patterns of tensors that lie in it.
    pub tensors: Vec<String>,
    /// Its bytes.
    pub memory: u64,
    /// Bytes of it that are for other things.
    pub reserve: u64,
    /// The KV cache of the layers whose attention is on the device.
    pub cache: Option<CacheDocument>,
}

/// A cache of keys and values, as documents have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheDocument {
    /// How many tokens it holds.
    pub context: u32,
    /// The type of keys and values, as ggml spells it.
    #[serde(rename = "type")]
    pub ty: String,
}

impl From<&Device> for DeviceDocument {
    fn from(device: &Device) -> Self {
        Self {
            name: device.name.clone(),
            tensors: device
                .tensors
                .iter()
                .map(|pattern| pattern.as_str().to_owned())
                .collect(),
            memory: device.memory,
            reserve: device.reserve,
            cache: device.cache.as_ref().map(|cache| CacheDocument {
                context: cache.context,
                ty: cache.ty.to_ascii_uppercase(),
            }),
        }
    }
}

impl DeviceDocument {
    pub(super) const ROLE: Role = Role::Fields(&[
        field("name", Role::Setting),
        field("tensors", Role::Setting),
        field("memory", Role::Setting),
        field("reserve", Role::Setting),
        field(
            "cache",
            Role::Fields(&[field("context", Role::Setting), field("type", Role::Setting)]),
        ),
    ]);

    /// Returns the device as the solver takes it. `metadata` is the model's; it is asked for only where there is a cache.
    pub(super) fn resolve<E: From<MethodError>>(
        &self,
        facts: &ModelFacts,
        metadata: impl FnOnce() -> Result<Metadata, E>,
    ) -> Result<policy::Device, E> {
        let failed = |error: PolicyError| MethodError::from(error);
        let holds = self.tensors.iter().map(|pattern| regex_of(pattern));
        let holds = holds.collect::<Result<Vec<_>, MethodError>>()?;
        let inside = |name: &str| holds.iter().any(|pattern| pattern.is_match(name));
        let names = || facts.tensors.iter().map(|tensor| tensor.name.as_str());
        if !names().any(inside) {
            return Err(failed(PolicyError::EmptyDevice {
                device: self.name.clone(),
            })
            .into());
        }
        let mut constant = self.reserve;
        if let Some(cache) = &self.cache {
            let shape = CacheShape::from_metadata(facts, &metadata()?).map_err(failed)?;
            let ty = type_of(&cache.ty)?;
            let layers = names().filter(|name| inside(name)).filter_map(cached_layer);
            for layer in layers.collect::<BTreeSet<u32>>() {
                let bytes = shape.bytes(layer, u64::from(cache.context), ty).map_err(failed)?;
                constant = constant.saturating_add(bytes);
            }
        }
        Ok(policy::Device {
            name: self.name.clone(),
            constant,
            holds,
        })
    }
}

/// How many tokens a cache may hold.
const CONTEXTS: std::ops::RangeInclusive<u32> = 1..=1 << 30;

const DEVICES: &str = "a table of devices, `[policy.NAME.device.gpu0]`";
const MEMORY: &str = "a size (`24 GiB`)";

/// Reads the devices of a policy; none if anything is wrong, and reported.
pub(super) fn devices(reader: &mut Reader<'_, '_>) -> Option<Vec<Device>> {
    let Some(entry) = reader.entry("device") else {
        return Some(Vec::new());
    };
    let field = Field {
        key: "device",
        raw: &entry.value,
    };
    let RawValue::Table(named) = &entry.value.value else {
        let error = field.wrong_type(DEVICES);
        reader.errors.push(error);
        return None;
    };
    // Devices are sections of their own: each may have several errors, so they are gathered apart.
    let mut errors = Vec::new();
    let devices: Vec<Option<Device>> = named.iter().map(|entry| device(entry, &mut errors)).collect();
    reader.errors.append(&mut errors);
    devices.into_iter().collect()
}

fn device(entry: &RawEntry, errors: &mut Vec<RecipeError>) -> Option<Device> {
    let field = Field {
        key: "device",
        raw: &entry.value,
    };
    let RawValue::Table(entries) = &entry.value.value else {
        errors.push(field.wrong_type(DEVICES));
        return None;
    };
    if let Some(problem) = name_problem(&entry.key) {
        errors.push(RecipeError::BadName {
            place: entry.key_place.clone(),
            name: entry.key.clone(),
            what: "a device".to_owned(),
            problem,
        });
        return None;
    }
    let words = format!("the device `{}`", entry.key);
    let mut reader = Reader::new(words, entry.key_place.clone(), ("", ""), entries, errors);
    reader.need("tensors", "tensors = \".\"");
    let single = reader
        .entry("tensors")
        .is_some_and(|entry| !matches!(entry.value.value, RawValue::Array(_)));
    let tensors: Option<Vec<Pattern>> = if single {
        reader
            .read("tensors", |field| field.pattern())
            .map(|pattern| vec![pattern])
    } else {
        let list = reader.list("tensors", "a list of regular expressions", |field| field.pattern());
        list.map(|list| list.into_iter().map(|(pattern, _)| pattern).collect())
    };
    let memory = reader.required("memory", "memory = \"24 GiB\"", bytes);
    let absent = !reader.has("reserve");
    let reserve = reader.read("reserve", bytes);
    let reserve = if absent { Some(0) } else { reserve };
    let cache = if reader.has("context") {
        let context = reader.read("context", |field| field.integer32(CONTEXTS));
        let absent = !reader.has("cache");
        let ty = reader.read("cache", |field| word_of(&field, "a type of a cache", CACHE_TYPES));
        let ty = if absent { Some("f16") } else { ty };
        context.zip(ty).map(|(context, ty)| Some(Cache { context, ty }))
    } else {
        reader.misplaced(&["cache"], "`context` (the tokens of the cache)", None);
        Some(None)
    };
    reader.finish()?;
    Some(Device {
        name: entry.key.clone(),
        tensors: tensors?,
        memory: memory?,
        reserve: reserve?,
        cache: cache?,
    })
}

fn bytes(field: Field<'_>) -> Result<u64, RecipeError> {
    match field.quantity(MEMORY, "24 GiB")? {
        Quantity::Bytes(bytes) => Ok(bytes),
        other => Err(RecipeError::OutOfRange {
            place: field.place(),
            key: field.key.to_owned(),
            expected: MEMORY.to_owned(),
            found: other.to_string(),
        }),
    }
}

/// Notes the devices of the resolved recipe.
pub(super) fn put_devices(reader: &mut Reader<'_, '_>, devices: &[Device]) {
    if devices.is_empty() {
        return;
    }
    let mut all = toml::Table::new();
    for device in devices {
        let mut table = toml::Table::new();
        let tensors = device.tensors.iter().map(|pattern| toml::Value::from(pattern.as_str()));
        table.insert("tensors".to_owned(), toml::Value::Array(tensors.collect()));
        let size = |bytes| toml::Value::from(Quantity::Bytes(bytes).to_string());
        table.insert("memory".to_owned(), size(device.memory));
        table.insert("reserve".to_owned(), size(device.reserve));
        if let Some(cache) = &device.cache {
            table.insert("context".to_owned(), number(u64::from(cache.context)));
            table.insert("cache".to_owned(), toml::Value::from(cache.ty));
        }
        all.insert(device.name.clone(), toml::Value::Table(table));
    }
    reader.put("device", all);
}
