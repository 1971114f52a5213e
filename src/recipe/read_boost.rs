//! Keys of `boost`: a mix with a better type for families of tensors in a few layers.

use std::collections::BTreeSet;

use crate::recipe::decl::BoostBases;
use crate::recipe::decl::BoostLayers;
use crate::recipe::decl::Method;
use crate::recipe::error::RecipeError;
use crate::recipe::field::Field;
use crate::recipe::field::Reader;
use crate::recipe::names::FAMILIES;
use crate::recipe::names::Mix;
use crate::recipe::names::RANKINGS;
use crate::recipe::names::TypeName;
use crate::recipe::raw::RawValue;
use crate::recipe::raw::inside;
use crate::recipe::read_shared::Context;
use crate::recipe::read_shared::mixes_need_data;
use crate::recipe::read_shared::needs_data;
use crate::recipe::read_shared::number;
use crate::recipe::read_shared::word_of;

/// No model has more layers.
const MAX_LAYERS: u32 = 512;

const LAYERS: &str = "numbers of layers (`[0, 7]`, `\"0-3,7\"`) or how many (`\"auto:6\"`)";

/// Layers as they are written.
enum Layers {
    Listed(BTreeSet<u32>),
    Auto(u32),
}

pub(crate) fn boost(reader: &mut Reader<'_, '_>, no_data: bool, context: &Context<'_>) -> Option<Method> {
    let base = bases(reader, no_data, context);
    reader.need("promotion", "promotion = \"Q6_K\"");
    let promotion = reader.sweep(
        "promotion",
        |name: &TypeName| name.as_str().to_owned(),
        |field| field.type_name(),
    );
    reader.need("layers", "layers = \"auto:6\"");
    let layers = reader.read("layers", layers);
    let layers_place = reader.entry("layers").map(|entry| entry.value.place.clone());
    let families = if reader.has("families") {
        let families = reader.list("families", "a list of families", |field| {
            word_of(&field, "a family of tensors", FAMILIES)
        });
        families.map(|families| families.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    } else {
        Some(vec!["gate", "up", "down"])
    };
    let ranking = reader.read("ranking", |field| word_of(&field, "a ranking of layers", RANKINGS));
    let words = reader.words.clone();
    let baseline = reader.read("baseline", |field| {
        context.names.reference(field, "imatrix", "an imatrix", &words)
    });
    let layers = match layers? {
        Layers::Listed(layers) => {
            reader.misplaced(&["ranking", "baseline"], "`layers = \"auto:N\"`", layers_place.as_ref());
            BoostLayers::Listed(layers.into_iter().collect())
        }
        Layers::Auto(count) => {
            needs_data(reader, no_data, layers_place.as_ref());
            let ranking = if reader.has("ranking") { ranking? } else { "energy" };
            let place = reader.entry("ranking").map(|entry| entry.value.place.clone());
            if ranking != "contrast" {
                reader.misplaced(&["baseline"], "`ranking = \"contrast\"`", place.as_ref());
            } else if !reader.has("baseline") {
                reader.errors.push(RecipeError::MissingKey {
                    place: reader.head.clone(),
                    section: reader.words.clone(),
                    key: "baseline",
                    example: "baseline = \"NAME\"",
                    because: place,
                });
            }
            BoostLayers::Ranked {
                count,
                ranking,
                baseline,
            }
        }
    };
    let (base, promotion, families) = (base?, promotion?, families?);
    match &base {
        BoostBases::Mix(mix) => reader.put("mix", mix.to_toml(|mix| toml::Value::from(mix.as_str()))),
        BoostBases::Type(ty) => reader.put("base", ty.to_toml(|ty| toml::Value::from(ty.as_str()))),
    }
    reader.put("promotion", promotion.to_toml(|ty| toml::Value::from(ty.as_str())));
    match &layers {
        BoostLayers::Listed(layers) => {
            let list: Vec<_> = layers.iter().map(|layer| number(u64::from(*layer))).collect();
            reader.put("layers", list);
        }
        BoostLayers::Ranked {
            count,
            ranking,
            baseline,
        } => {
            reader.put("layers", format!("auto:{count}"));
            reader.put("ranking", *ranking);
            if let Some(baseline) = baseline {
                reader.put("baseline", baseline.as_str());
            }
        }
    }
    let list: Vec<_> = families.iter().map(|family| toml::Value::from(*family)).collect();
    reader.put("families", list);
    Some(Method::Boost {
        base,
        layers,
        families,
        promotion,
    })
}

/// Reads the mix or the type that every tensor gets first: one of the two keys.
fn bases(reader: &mut Reader<'_, '_>, no_data: bool, context: &Context<'_>) -> Option<BoostBases> {
    let places = reader
        .entry("mix")
        .map(|entry| entry.key_place.clone())
        .zip(reader.entry("base").map(|entry| entry.key_place.clone()));
    if let Some((mix, base)) = places {
        let mut pair = [("mix", mix), ("base", base)];
        pair.sort_by_key(|(_, place)| place.span);
        let [(first_key, first), (second_key, second)] = pair;
        let section = reader.words.clone();
        reader.errors.push(RecipeError::Conflict {
            section,
            first,
            first_key,
            second,
            second_key,
        });
        return None;
    }
    if reader.has("base") {
        let base = reader.sweep(
            "base",
            |name: &TypeName| name.as_str().to_owned(),
            |field| field.type_name(),
        );
        return base.map(BoostBases::Type);
    }
    reader.need("mix", "mix = \"Q4_K_M\"");
    let mix = reader.sweep("mix", |mix: &Mix| mix.as_str().to_owned(), |field| field.mix())?;
    if no_data {
        mixes_need_data(reader, &mix, context);
    }
    Some(BoostBases::Mix(mix))
}

/// Reads layers: a list of numbers, a text of numbers and ranges, or how many are to be taken.
fn layers(field: Field<'_>) -> Result<Layers, RecipeError> {
    if let RawValue::Array(values) = &field.raw.value {
        if values.is_empty() {
            return Err(RecipeError::EmptyList {
                place: field.place(),
                key: field.key.to_owned(),
            });
        }
        let number = |raw| Field { key: field.key, raw }.integer32(0..=MAX_LAYERS - 1);
        return values.iter().map(number).collect::<Result<_, _>>().map(Layers::Listed);
    }
    let text = field.string(LAYERS)?;
    let wrong = |part: &str, expected: &str| {
        let at = part.as_ptr() as usize - text.as_ptr() as usize;
        RecipeError::OutOfRange {
            place: inside(&field.raw.place, text, at..at + part.len()),
            key: field.key.to_owned(),
            expected: expected.to_owned(),
            found: format!("`{part}`"),
        }
    };
    if let Some(count) = text.strip_prefix("auto:") {
        let number = count
            .trim()
            .parse()
            .ok()
            .filter(|number| (1..=MAX_LAYERS).contains(number));
        return number
            .map(Layers::Auto)
            .ok_or_else(|| wrong(count, &format!("`auto:` and a number from 1 to {MAX_LAYERS}")));
    }
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| *number < MAX_LAYERS);
    let mut layers = BTreeSet::new();
    for part in text.split(',') {
        let range = match part.split_once('-') {
            Some((first, last)) => number(first).zip(number(last)).filter(|(first, last)| first <= last),
            None => number(part).map(|number| (number, number)),
        };
        let Some((first, last)) = range else {
            return Err(wrong(part, LAYERS));
        };
        layers.extend(first..=last);
    }
    Ok(Layers::Listed(layers))
}
