//! Two action documents, field by field.

use serde_json::Value;

use super::Action;

/// A field in which two actions differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The path of the field in the document, as `inputs.policy` or `inputs.texts.2`.
    pub field: String,
    /// The value before, as JSON; nothing where the field was not there.
    pub before: Option<String>,
    /// The value now.
    pub after: Option<String>,
}

/// Returns every field in which `after` differs from `before`, in the document's order.
pub fn differences(before: &Action, after: &Action) -> Vec<Difference> {
    let parse = |action: &Action| serde_json::from_slice::<Value>(&action.document()).unwrap_or(Value::Null);
    let mut found = Vec::new();
    compare("", Some(&parse(before)), Some(&parse(after)), &mut found);
    found
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
    use super::*;
    use crate::action::Chunking;
    use crate::action::Corpus;
    use crate::digest::BlobDigest;

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
}
