//! `[policy.NAME]`: what all policies have. Their methods read the rest.

use crate::method::METHODS;
use crate::method::MethodEntry;
use crate::method::PolicyMethod as _;
use crate::method::PolicySection;
use crate::method::measured;
use crate::recipe::decl::Data;
use crate::recipe::decl::Policy;
use crate::recipe::read::Context;
use crate::syntax::field::Reader;
use crate::syntax::shared::model;
use crate::syntax::shared::names_of;
use crate::syntax::shared::or_default;
use crate::syntax::shared::text;
use crate::syntax::sweep::Sweep;

/// The method of a policy that names none.
const USUAL: &str = measured::Settings::NAME;

/// Returns the keys of all methods; some are in it twice.
fn keys() -> impl Iterator<Item = &'static str> {
    METHODS.iter().flat_map(|method| method.keys).copied()
}

/// Returns the method of a section that names none: the usual one, but if there are keys that it does not have, the first that has
/// them.
fn meant(reader: &mut Reader<'_, '_>) -> Option<&'static MethodEntry> {
    let there: Vec<&str> = keys().filter(|key| reader.has(key)).collect();
    let has = |method: &&MethodEntry, wanted: &[&str]| wanted.iter().all(|key| method.keys.contains(key));
    let usual = METHODS.iter().filter(|method| method.name == USUAL);
    let found = usual.chain(METHODS).find(|method| has(method, &there));
    // Keys of several methods: the first tells.
    found.or_else(|| METHODS.iter().find(|method| has(method, &there[..1])))
}

/// Returns the method of a section; reports one that is needed, or unknown.
fn method(reader: &mut Reader<'_, '_>) -> Option<&'static MethodEntry> {
    let meant = meant(reader);
    if reader.has("method") {
        let methods: Vec<(&str, &MethodEntry)> = METHODS.iter().map(|method| (method.name, method)).collect();
        return reader.read("method", |field| field.word(&methods, &[]));
    }
    if let Some(other) = meant.filter(|method| method.name != USUAL) {
        reader.need("method", other.line);
        return None;
    }
    meant
}

pub(crate) fn policy(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Policy> {
    let model = model(reader, "model", context.names);
    let data = data(reader, context);
    let (refined, moments) = rounding(reader, context);
    let keep = reader.list("keep", "a list of regular expressions", |field| field.pattern());
    let Some(method) = method(reader) else {
        for key in keys() {
            reader.has(key);
        }
        // Keys of a method that does not exist (yet) are not the user's mistake.
        reader.any_key = reader.has("method");
        return None;
    };
    let method_place = reader.entry("method").map(|entry| entry.value.place.clone());
    if let Some(model) = &model {
        reader.put("model", model.as_str());
    }
    match &data {
        Some(Data::Imatrix(names)) => reader.put("imatrix", names.to_toml(text)),
        Some(Data::Join(names)) => reader.put("join", names.to_toml(text)),
        _ => {}
    }
    reader.put("method", method.name);
    let mut seen: Vec<&str> = method.keys.to_vec();
    for key in keys() {
        if !seen.contains(&key) {
            seen.push(key);
            let theirs = METHODS.iter().filter(|method| method.keys.contains(&key));
            let words: Vec<String> = theirs.map(|method| format!("`{}`", method.line)).collect();
            reader.misplaced(&[key], &words.join(" or "), method_place.as_ref());
        }
    }
    let mut section = PolicySection {
        reader: &mut *reader,
        names: context.names,
        has_imatrix: !matches!(data, Some(Data::None)),
        method_place,
        budgets: None,
    };
    let method = (method.read)(&mut section);
    let budgets = section.budgets;
    let keep: Vec<_> = keep.into_iter().flatten().map(|(pattern, _)| pattern).collect();
    if !keep.is_empty() {
        let list: Vec<_> = keep.iter().map(|pattern| toml::Value::from(pattern.as_str())).collect();
        reader.put("keep", list);
    }
    Some(Policy {
        model: model?,
        data: data?,
        method: method?,
        budgets,
        keep,
        refined,
        moments,
    })
}

/// The words for the quantizer's own codes, and for refined ones.
pub(crate) fn rounding_word(refined: bool) -> &'static str {
    if refined { "refined" } else { "plain" }
}

fn rounding(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> (Sweep<bool>, Option<Sweep<String>>) {
    let words = [false, true].map(|refined| (rounding_word(refined), refined));
    let refined = or_default(reader, "rounding", false, |reader| {
        reader.sweep(
            "rounding",
            |refined| rounding_word(*refined).to_owned(),
            |field| field.word(&words, &[]),
        )
    });
    if !refined.values.iter().any(|(refined, _)| *refined) {
        let place = reader.entry("rounding").map(|entry| entry.value.place.clone());
        reader.misplaced(&["moments"], "`rounding = \"refined\"`", place.as_ref());
        return (refined, None);
    }
    reader.need("moments", "moments = \"general\"");
    let moments = names_of(reader, "moments", context.names, "moments", "second moments");
    reader.put(
        "rounding",
        refined.to_toml(|refined| toml::Value::from(rounding_word(*refined))),
    );
    if let Some(moments) = &moments {
        reader.put("moments", moments.to_toml(text));
    }
    (refined, moments)
}

fn data(reader: &mut Reader<'_, '_>, context: &Context<'_>) -> Option<Data> {
    if reader.conflict("imatrix", "join") {
        return None;
    }
    if reader.has("join") {
        return names_of(reader, "join", context.names, "join", "a join").map(Data::Join);
    }
    if reader.has("imatrix") {
        return names_of(reader, "imatrix", context.names, "imatrix", "an imatrix").map(Data::Imatrix);
    }
    Some(Data::None)
}
