//! Keys with several values: each combination of values is a variant of the section.

use crate::syntax::id::Place;

/// How many variants one section may have.
pub(crate) const MAX_VARIANTS: usize = 1000;

/// A value, or the several values of a sweep.
#[derive(Debug, Clone)]
pub(crate) struct Sweep<T> {
    pub(crate) values: Vec<(T, Place)>,
    /// Whether a list was written: a list of one value names its variant too, so that adding a second renames nothing.
    pub(crate) list: bool,
}

impl<T> Sweep<T> {
    /// A default.
    pub(crate) fn one(value: T, place: &Place) -> Self {
        Self {
            values: vec![(value, place.clone())],
            list: false,
        }
    }

    /// Returns the value or the list as TOML.
    pub(crate) fn to_toml(&self, to: impl Fn(&T) -> toml::Value) -> toml::Value {
        match self.values.as_slice() {
            [(value, _)] if !self.list => to(value),
            values => toml::Value::Array(values.iter().map(|(value, _)| to(value)).collect()),
        }
    }
}

/// One way to choose in one dimension of a sweep: its part of the variant's name, and what is chosen.
pub(crate) struct Choice<T> {
    pub(crate) part: Option<String>,
    pub(crate) value: T,
}

/// Returns the choices that the values of a sweep are.
pub(crate) fn choices<T: Clone>(sweep: &Sweep<T>, part: impl Fn(&T) -> String) -> Vec<Choice<T>> {
    let choice = |(value, _): &(T, Place)| Choice {
        part: sweep.list.then(|| part(value)),
        value: value.clone(),
    };
    sweep.values.iter().map(choice).collect()
}

/// Returns the choices of a key that may be absent: then there is one, of nothing.
pub(crate) fn optional<T: Clone>(sweep: Option<&Sweep<T>>, part: impl Fn(&T) -> String) -> Vec<Choice<Option<T>>> {
    let Some(sweep) = sweep else {
        return vec![Choice {
            part: None,
            value: None,
        }];
    };
    let some = |choice: Choice<T>| Choice {
        part: choice.part,
        value: Some(choice.value),
    };
    choices(sweep, part).into_iter().map(some).collect()
}

/// Names a boolean choice: `pure`, `no-pure`.
pub(crate) fn flag(key: &str) -> impl Fn(&bool) -> String {
    move |value| if *value { key.to_owned() } else { format!("no-{key}") }
}

pub(crate) fn joined(parts: &[Option<String>]) -> Option<String> {
    let parts: Vec<&str> = parts.iter().flatten().map(String::as_str).collect();
    if parts.is_empty() { None } else { Some(parts.join("-")) }
}
