//! Compares two action documents field by field.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Action;
use super::role;
use super::role::Origin;
use super::role::Role;

/// A field in which two actions differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path of the field in the document, such as `inputs.policy` or `inputs.texts.2`.
    pub field: String,
    /// The earlier value as JSON; `None` if the field is new.
    pub before: Option<String>,
    /// The current value as JSON; `None` if the field is gone.
    pub after: Option<String>,
}

impl Difference {
    /// Returns the origin of the field, given the kind of both documents.
    pub fn origin(&self, kind: &str) -> Origin {
        role::role_at(kind, &self.field).map_or(Origin::Recipe, Role::origin)
    }
}

/// Compares two JSON values and returns every field that differs, in the order of the fields.
pub fn of_values(before: &Value, after: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

/// Compares two actions and returns every field that differs, in the order of the document.
pub fn differences(before: &Action, after: &Action) -> Vec<Difference> {
    let parse = |action: &Action| serde_json::from_slice::<Value>(&action.document()).unwrap_or(Value::Null);
    of_values(&parse(before), &parse(after))
}

/// Returns the rows of an array by name, if all of them are rows of differently named candidates. An added candidate is then one
/// difference, not one in each row after it.
fn by_name(array: &[Value]) -> Option<BTreeMap<String, &Value>> {
    let mut rows = BTreeMap::new();
    for row in array {
        let candidate = row.as_object()?.get("candidate")?.as_str()?;
        let eval = row.get("eval").and_then(Value::as_str).unwrap_or_default();
        if rows.insert(format!("{eval}/{candidate}"), row).is_some() {
            return None;
        }
    }
    Some(rows)
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Difference>) {
    let join = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                compare(&join(name), old.get(name), new.get(name), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            if let (Some(old), Some(new)) = (by_name(old), by_name(new))
                && !(old.is_empty() && new.is_empty())
            {
                for name in old.keys().chain(new.keys().filter(|name| !old.contains_key(*name))) {
                    compare(&join(name), old.get(name).copied(), new.get(name).copied(), found);
                }
                return;
            }
            for index in 0..old.len().max(new.len()) {
                compare(&join(&index.to_string()), old.get(index), new.get(index), found);
            }
        }
        _ if before == after => {}
        _ => found.push(Difference {
            field: path.to_owned(),
            before: before.map(ToString::to_string),
            after: after.map(ToString::to_string),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::action::Corpus;
    use crate::digest::BlobDigest;
    use crate::vocab::Chunking;

    #[test]
    fn only_the_fields_that_differ_are_named() {
        let corpus = |texts: &[&str], parse_special| {
            let texts = texts.iter().map(|text| BlobDigest::of(text.as_bytes())).collect();
            Action::Corpus(Corpus {
                texts,
                chunking: Chunking::PerFile,
                parse_special,
            })
        };
        assert_eq!(differences(&corpus(&["a"], false), &corpus(&["a"], false)), []);
        let fields: Vec<_> = differences(&corpus(&["a", "b"], false), &corpus(&["a", "c", "d"], true))
            .into_iter()
            .map(|difference| {
                (
                    difference.field,
                    difference.before.is_some(),
                    difference.after.is_some(),
                )
            })
            .collect();
        assert_eq!(
            fields,
            [
                ("inputs.parse_special".to_owned(), true, true),
                ("inputs.texts.1".to_owned(), true, true),
                ("inputs.texts.2".to_owned(), false, true),
            ]
        );
    }

    #[test]
    fn rows_of_candidates_are_matched_by_name() {
        let row = |candidate: &str, file: u64| json!({"eval": "e", "candidate": candidate, "file": file});
        let before = json!({"rows": [row("a", 1), row("b", 2)]});
        let after = json!({"rows": [row("new", 9), row("a", 1), row("b", 3)]});
        let fields: Vec<_> = of_values(&before, &after)
            .into_iter()
            .map(|difference| (difference.field, difference.before.is_some()))
            .collect();
        assert_eq!(
            fields,
            [("rows.e/b.file".to_owned(), true), ("rows.e/new".to_owned(), false)]
        );
    }
}
