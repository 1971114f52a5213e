//! Two policies: tensor by tensor, from type to type, and why.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Part;
use super::Row;
use super::candidates::types;
use super::delta;
use crate::policy::Choice;
use crate::policy::Table;
use crate::policy::Why;
use crate::report::words;

pub(super) fn compare(a: &Table, b: &Table) -> Vec<Part> {
    let choices = |table: &Table| -> BTreeMap<String, Choice> {
        let choices = table.choices.iter();
        choices.map(|choice| (choice.tensor.clone(), choice.clone())).collect()
    };
    let (of_a, of_b) = (choices(a), choices(b));
    let size = |table: &Table| table.bytes().unwrap_or(u64::MAX);
    let mut about = Part::new("policy");
    let row = Row::of(Some(words::bytes(size(a))), Some(words::bytes(size(b))));
    match row.or_else(|| Row::of(Some(size(a).to_string()), Some(size(b).to_string()))) {
        Some(row) => about.push(Row {
            what: "bytes of all tensors".to_owned(),
            note: Some(delta(i128::from(size(b)) - i128::from(size(a)))),
            ..row
        }),
        None => about.same += 1,
    }
    let loss = |table: &Table| table.predicted_loss.clone();
    match Row::of(loss(a), loss(b)) {
        Some(row) => about.push(Row {
            what: "predicted loss".to_owned(),
            ..row
        }),
        None => about.same += 1,
    }
    let by_type = |table: &Table| {
        table
            .choices
            .iter()
            .map(|choice| (choice.tensor.clone(), (choice.to.name().to_owned(), choice.bytes)))
            .collect()
    };
    vec![
        about,
        types(&by_type(a), &by_type(b)),
        Part::of("tensors", &of_a, &of_b, |a, b| {
            let bytes = |choice: Option<&Choice>| choice.map_or(0, |choice| i128::from(choice.bytes));
            let by = bytes(b) - bytes(a);
            let row = Row::of(a.map(shown), b.map(shown))?.effect(by as f64);
            Some(if by == 0 { row } else { row.note(delta(by)) })
        }),
    ]
}

fn shown(choice: &Choice) -> String {
    format!("{} ({})", choice.to, why(&choice.why))
}

/// The reason in a few words, as its document has them.
fn why(why: &Why) -> String {
    let document = serde_json::to_value(why).unwrap_or_default();
    let mut words = Vec::new();
    flat(&document, &mut words);
    words.join(" ").replace('_', " ")
}

fn flat(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            let kind = fields.get("kind").into_iter();
            let rest = fields
                .iter()
                .filter(|(name, _)| *name != "kind")
                .map(|(_, value)| value);
            kind.chain(rest).for_each(|value| flat(value, words));
        }
        Value::Array(values) => values.iter().for_each(|value| flat(value, words)),
        Value::String(text) => words.push(text.clone()),
        Value::Null => {}
        value => words.push(value.to_string()),
    }
}
