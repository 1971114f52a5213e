//! Reading keys that several kinds of sections have.

use crate::mix::Mix;
use crate::syntax::declared::Names;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::id::SourceKind;
use crate::syntax::id::SourceName;
use crate::syntax::sweep::Sweep;

/// Tokens in a chunk.
pub(crate) const CONTEXTS: std::ops::RangeInclusive<u32> = 8..=1_048_576;

/// Chunks in one action.
pub(crate) const BLOCKS: std::ops::RangeInclusive<u32> = 1..=65_536;

/// Counts that have no sensible limit.
pub(crate) const COUNTS: std::ops::RangeInclusive<u64> = 1..=i64::MAX as u64;

/// Reads the model that a section is about: a source, by default the only model.
pub(crate) fn model(reader: &mut Reader<'_, '_>, key: &'static str, names: &Names) -> Option<SourceName> {
    let words = reader.words.clone();
    if reader.has(key) {
        return reader.read(key, |field| names.source(field, SourceKind::Model, &words));
    }
    match names.models.as_slice() {
        [(only, _)] if !names.sources_unsure => Some(SourceName::new(only.as_str())),
        models => {
            if !names.sources_unsure {
                reader.errors.push(RecipeError::NoDefault {
                    place: reader.head.clone(),
                    section: words,
                    key,
                    what: "model source",
                    declared: models.to_vec(),
                });
            }
            None
        }
    }
}

// By reference to a `String`, as the items of sweeps come.
#[allow(clippy::ptr_arg)]
pub(crate) fn text(value: &String) -> toml::Value {
    toml::Value::from(value.as_str())
}

pub(crate) fn number(value: u64) -> toml::Value {
    toml::Value::from(i64::try_from(value).unwrap_or(i64::MAX))
}

/// Reads a name, or several that make a sweep.
pub(crate) fn names_of(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    names: &Names,
    kind: &'static str,
    wanted: &'static str,
) -> Option<Sweep<String>> {
    let words = reader.words.clone();
    reader.sweep(key, String::clone, |field| names.reference(field, kind, wanted, &words))
}

/// Reads one of some words.
pub(crate) fn word_of(field: &Field<'_>, what: &str, known: &[&'static str]) -> Result<&'static str, RecipeError> {
    let found = field.string(what)?;
    let word = known.iter().find(|word| **word == found).copied();
    word.ok_or_else(|| RecipeError::UnknownWord {
        place: field.place(),
        key: field.key.to_owned(),
        found: found.to_owned(),
        what: what.to_owned(),
        known: known.to_vec(),
    })
}

/// Reports mixes that are not made without an imatrix, where there is none.
pub(crate) fn mixes_need_data(reader: &mut Reader<'_, '_>, mixes: &Sweep<Mix>, names: &Names) {
    let declared: Vec<String> = names.of("imatrix").map(|(name, _)| name.to_owned()).collect();
    for (mix, place) in mixes.values.iter().filter(|(mix, _)| mix.needs_imatrix()) {
        reader.errors.push(RecipeError::NeedsImatrix {
            place: place.clone(),
            mix: mix.name(),
            declared: declared.clone(),
        });
    }
}

/// Reads a key that may be a sweep; one value if it is absent or wrong.
pub(crate) fn or_default<T>(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    default: T,
    read: impl FnOnce(&mut Reader<'_, '_>) -> Option<Sweep<T>>,
) -> Sweep<T> {
    let head = reader
        .entry(key)
        .map_or_else(|| reader.head.clone(), |entry| entry.value.place.clone());
    read(reader).unwrap_or_else(|| Sweep::one(default, &head))
}
