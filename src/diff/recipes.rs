//! Two recipes, resolved: every default filled in, sweeps as their steps. What is written otherwise and means the same is
//! no difference.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Part;
use super::Row;
use crate::action::difference;
use crate::recipe::Recipe;

pub(super) fn compare(a: &Recipe, b: &Recipe) -> Vec<Part> {
    let value = |recipe: &Recipe| serde_json::to_value(recipe).unwrap_or_default();
    of_values(&value(a), &value(b))
}

/// Compares two recipes as JSON, the form in which manifests hold them.
pub(super) fn of_values(a: &Value, b: &Value) -> Vec<Part> {
    let mut about = Part::new("recipe");
    for field in ["name", "description", "engine"] {
        push(&mut about, field, a.get(field), b.get(field));
    }
    let candidates = Part::of("candidates", &candidates(a), &candidates(b), |a, b| {
        Row::of(a.cloned(), b.cloned())
    });
    vec![
        about,
        candidates,
        fields("sources", &sources(a), &sources(b)),
        fields("steps", &steps(a), &steps(b)),
    ]
}

fn push(part: &mut Part, what: &str, a: Option<&Value>, b: Option<&Value>) {
    match Row::of(shown(a), shown(b)) {
        Some(row) => part.push(Row {
            what: what.to_owned(),
            ..row
        }),
        None => part.same += 1,
    }
}

fn shown(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

fn sources(recipe: &Value) -> BTreeMap<String, Value> {
    let sources = recipe.get("sources").and_then(Value::as_object);
    sources
        .into_iter()
        .flatten()
        .map(|(name, source)| (format!("source.{name}"), source.clone()))
        .collect()
}

fn steps(recipe: &Value) -> BTreeMap<String, Value> {
    let steps = recipe.get("steps").and_then(Value::as_array);
    steps
        .into_iter()
        .flatten()
        .filter_map(|step| Some((step.get("id")?.as_str()?.to_owned(), step.get("body")?.clone())))
        .collect()
}

/// The candidates by name, each with its policy.
fn candidates(recipe: &Value) -> BTreeMap<String, String> {
    let steps = steps(recipe);
    let candidates = steps.iter().filter_map(|(id, body)| {
        let name = id.strip_prefix("promote.")?.replace('@', "-");
        Some((name, shown(body.get("policy"))?))
    });
    candidates.collect()
}

/// Compares things field by field; one that only one side has is one row.
pub(super) fn fields(name: &'static str, a: &BTreeMap<String, Value>, b: &BTreeMap<String, Value>) -> Part {
    let mut part = Part::new(name);
    let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
    for what in names {
        match (a.get(what), b.get(what)) {
            (Some(before), Some(after)) => {
                let differences = difference::of_values(before, after);
                if differences.is_empty() {
                    part.same += 1;
                } else {
                    part.changed += 1;
                }
                part.rows.extend(differences.into_iter().filter_map(|difference| {
                    let plain = |value: Option<String>| value.map(|value| value.trim_matches('"').to_owned());
                    let row = Row::of(plain(difference.before), plain(difference.after))?;
                    Some(Row {
                        what: format!("{what}: {}", difference.field),
                        ..row
                    })
                }));
            }
            (before, after) => {
                if let Some(row) = Row::of(
                    before.map(|_| "present".to_owned()),
                    after.map(|_| "present".to_owned()),
                ) {
                    part.push(Row {
                        what: what.clone(),
                        ..row
                    });
                }
            }
        }
    }
    part
}
