//! Two policies: by class, by layer, and tensor by tensor, from type to type, and why.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Part;
use super::Row;
use super::candidates::types;
use super::delta;
use crate::policy::Listed;
use crate::policy::Listing;
use crate::policy::Sum;
use crate::policy::Why;
use crate::prose;

pub(super) fn compare(a: &Listing, b: &Listing) -> Vec<Part> {
    let tensors = |listing: &Listing| -> BTreeMap<String, Listed> {
        let tensors = listing.tensors.iter();
        tensors.map(|tensor| (tensor.name.clone(), tensor.clone())).collect()
    };
    let (of_a, of_b) = (tensors(a), tensors(b));
    let (sum_a, sum_b) = (Sum::of(&a.tensors), Sum::of(&b.tensors));
    let mut about = Part::new("policy");
    let (what, sizes) = match (a.file_bytes, b.file_bytes) {
        (Some(file_a), Some(file_b)) => ("size", [(file_a, sum_a.elements), (file_b, sum_b.elements)]),
        // Of a table of types alone the header is not known.
        _ => (
            "size of all tensors",
            [(sum_a.bytes, sum_a.elements), (sum_b.bytes, sum_b.elements)],
        ),
    };
    let [shown_a, shown_b] = sizes.map(|(bytes, weights)| prose::size(bytes, weights));
    let [(bytes_a, _), (bytes_b, _)] = sizes;
    match Row::of(Some(shown_a), Some(shown_b))
        .or_else(|| Row::of(Some(bytes_a.to_string()), Some(bytes_b.to_string())))
    {
        Some(row) => about.push(Row {
            what: what.to_owned(),
            note: Some(delta(i128::from(bytes_b) - i128::from(bytes_a))),
            ..row
        }),
        None => about.same += 1,
    }
    // Where only one predicts, nothing is known to differ.
    let losses = a.predicted_loss.clone().zip(b.predicted_loss.clone());
    match losses.and_then(|(a, b)| Row::of(Some(a), Some(b))) {
        Some(row) => about.push(Row {
            what: "predicted loss".to_owned(),
            ..row
        }),
        None => about.same += 1,
    }
    let by_type = |listing: &Listing| {
        let tensors = listing.tensors.iter();
        tensors
            .map(|tensor| (tensor.name.clone(), (tensor.to.name().to_owned(), tensor.bytes)))
            .collect()
    };
    let layer = |listed: &Listed| match listed.layer() {
        // Numbers of one width stand in their order where effects are equal.
        Some(layer) => format!("layer {layer:>3}"),
        None => "outside of layers".to_owned(),
    };
    vec![
        about,
        types(&by_type(a), &by_type(b)),
        grouped("classes", [&of_a, &of_b], |listed| listed.class().to_owned()),
        grouped("layers", [&of_a, &of_b], layer),
        Part::of("tensors", &of_a, &of_b, |a, b| {
            let whys = a.is_none_or(|a| a.why.is_some()) && b.is_none_or(|b| b.why.is_some());
            let shown = |listed: &Listed| match (&listed.why, whys) {
                (Some(reason), true) => format!("{} ({})", listed.to, why(reason)),
                _ => listed.to.to_string(),
            };
            let by = bytes(b) - bytes(a);
            let row = Row::of(a.map(shown), b.map(shown))?.effect(by as f64);
            Some(
                match change(by, loss_change(a.and_then(|a| a.loss), b.and_then(|b| b.loss))) {
                    note if note.is_empty() => row,
                    note => row.note(note),
                },
            )
        }),
    ]
}

fn bytes(listed: Option<&Listed>) -> i128 {
    listed.map_or(0, |listed| i128::from(listed.bytes))
}

/// Second less first, if anything was predicted of either; what is not there loses nothing.
fn loss_change(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    (a.is_some() && b.is_some()).then(|| b.unwrap_or(0.0) - a.unwrap_or(0.0))
}

/// `+1.2 MiB, predicted loss -1.2e-3`.
fn change(by: i128, loss: Option<f64>) -> String {
    let mut said = Vec::new();
    if by != 0 {
        said.push(delta(by));
    }
    if let Some(loss) = loss.filter(|loss| *loss != 0.0) {
        said.push(format!("predicted loss {loss:+.2e}"));
    }
    said.join(", ")
}

/// Compares tensors that are taken together. Only what differs in some tensor's type is a difference.
fn grouped(name: &'static str, both: [&BTreeMap<String, Listed>; 2], key: impl Fn(&Listed) -> String) -> Part {
    let by_key = |tensors: &BTreeMap<String, Listed>| {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for (name, listed) in tensors {
            let group = groups.entry(key(listed)).or_default();
            group.sum.add(listed);
            group.types.insert(name.clone(), listed.to.name());
        }
        groups
    };
    let [a, b] = both.map(by_key);
    Part::of(name, &a, &b, |a, b| {
        if let (Some(a), Some(b)) = (a, b)
            && a.types == b.types
        {
            return None;
        }
        let size = |group: Option<&Group>| group.map_or(0, |group| i128::from(group.sum.bytes));
        let by = size(b) - size(a);
        let loss = |group: Option<&Group>| group.and_then(|group| group.sum.loss);
        // Two groups of the same types by bytes can still differ in which tensor has which.
        let (before, after) = (a.map(Group::shown), b.map(Group::shown));
        let differing = differing(a, b);
        let row = Row::of(before.clone(), after.clone()).or_else(|| {
            let after = after.map(|after| format!("{after}, in other tensors"));
            Row::of(before, after)
        })?;
        let note = match change(by, loss_change(loss(a), loss(b))) {
            text if text.is_empty() => differing,
            text => format!("{text}, {differing}"),
        };
        Some(row.effect(by as f64).note(note))
    })
}

#[derive(Default)]
struct Group {
    sum: Sum,
    types: BTreeMap<String, &'static str>,
}

impl Group {
    /// `1.2 MiB, 4.500 bpw`.
    fn shown(&self) -> String {
        prose::size(self.sum.bytes, self.sum.elements)
    }
}

/// How many tensors of two groups have another type, or are in one of them only.
fn differing(a: Option<&Group>, b: Option<&Group>) -> String {
    let none = BTreeMap::new();
    let types = |group: Option<&Group>| group.map_or(&none, |group| &group.types).clone();
    let (a, b) = (types(a), types(b));
    let names = a.keys().chain(b.keys().filter(|name| !a.contains_key(*name)));
    let count = names.filter(|name| a.get(*name) != b.get(*name)).count();
    prose::count(count as u64, "tensor")
}

/// The reason in a few words, as its document has them.
fn why(why: &Why) -> String {
    let mut document = serde_json::to_value(why).unwrap_or_default();
    if let (Why::Solved { .. }, Value::Object(fields)) = (why, &mut document) {
        // What is predicted is compared as a number.
        fields.remove("loss");
    }
    if let (Why::Rule { index }, Value::Object(fields)) = (why, &mut document) {
        // People count from one.
        fields.insert("index".to_owned(), (index + 1).into());
    }
    let mut words = Vec::new();
    flat(&document, &mut words);
    words.join(" ")
}

/// Names of tensors stay as they are; all other words are those of people.
fn flat(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get_key_value("kind").into_iter();
            let rest = fields.iter().filter(|(name, _)| *name != "kind");
            for (name, value) in kind.chain(rest) {
                match value {
                    Value::String(text) if matches!(name.as_str(), "group" | "anchor_of") => words.push(text.clone()),
                    value => flat(value, words),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| flat(value, words)),
        Value::String(text) => words.push(text.replace('_', " ")),
        Value::Null => {}
        value => words.push(value.to_string()),
    }
}
