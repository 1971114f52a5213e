//! `[policy.NAME.device.NAME]`: memory that some of a candidate's tensors must fit into.

use crate::quantity::Quantity;
use crate::recipe::error::RecipeError;
use crate::recipe::field::Field;
use crate::recipe::field::Reader;
use crate::recipe::model::Cache;
use crate::recipe::model::Device;
use crate::recipe::model::Pattern;
use crate::recipe::names::CACHE_TYPES;
use crate::recipe::names::name_problem;
use crate::recipe::raw::RawEntry;
use crate::recipe::raw::RawValue;
use crate::recipe::read_shared::number;
use crate::recipe::read_shared::word_of;

/// Tokens that a cache may have room for.
const CONTEXTS: std::ops::RangeInclusive<u32> = 1..=1 << 30;

const DEVICES: &str = "a table of devices, `[policy.NAME.device.gpu0]`";
const MEMORY: &str = "a size (`24 GiB`)";

/// Reads the devices of a policy; none if anything is wrong, and reported.
pub(crate) fn devices(reader: &mut Reader<'_, '_>) -> Option<Vec<Device>> {
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
pub(crate) fn put_devices(reader: &mut Reader<'_, '_>, devices: &[Device]) {
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
