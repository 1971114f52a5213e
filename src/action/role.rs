//! The role of each field of an action document: where its value comes from. `why`, `diff`, `verify`, `reproduce`, `lock` and
//! `--frozen` use these roles; none of them knows a field by its name.

use serde_json::Value;

use super::KINDS;
use crate::vocab::EngineRole;
pub use crate::vocab::role::Field;
pub use crate::vocab::role::Origin;
pub use crate::vocab::role::OutputOf;
pub use crate::vocab::role::Role;
pub(super) use crate::vocab::role::field;
pub(super) use crate::vocab::role::output;

/// Returns the fields of a kind's inputs; `None` for a kind that this version does not have.
pub fn fields_of(kind: &str) -> Option<&'static [Field]> {
    KINDS
        .iter()
        .find(|declared| declared.name == kind)
        .map(|kind| kind.fields)
}

/// Returns the role of a field by its path in the document, such as `inputs.method.evaluator` or `inputs.texts.2`. Elements of
/// lists may be named by any text without a field's name after a dot in it, as rows of candidates are.
pub fn role_at(kind: &str, path: &str) -> Option<&'static Role> {
    let Some(path) = path.strip_prefix("inputs.") else {
        return matches!(path, "schema" | "kind").then_some(&Role::Version);
    };
    let (first, mut rest) = path.split_once('.').unwrap_or((path, ""));
    let mut role = fields_of(kind)?
        .iter()
        .find(|field| field.name == first)
        .map(|field| &field.role)?;
    while !rest.is_empty() && matches!(role, Role::Fields(_) | Role::OneOf { .. }) {
        let (name, after) = rest.split_once('.').unwrap_or((rest, ""));
        if let Some(inner) = role.inner(name) {
            (role, rest) = (inner, after);
        } else {
            // An element of a list: its name is followed by a field of it, or by nothing.
            let next = rest
                .char_indices()
                .filter(|(_, c)| *c == '.')
                .map(|(at, _)| &rest[at + 1..]);
            let mut fields = next.filter(|after| role.inner(after.split('.').next().unwrap_or_default()).is_some());
            rest = fields.next().unwrap_or_default();
        }
    }
    Some(role)
}

/// A value in a document that has no nested fields, with its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf<'d> {
    /// The path below `inputs`, with the indices of list elements.
    pub path: String,
    /// The role; `None` if the field is not declared.
    pub role: Option<&'static Role>,
    /// The value: a string, number, boolean, null, or a map of settings.
    pub value: &'d Value,
}

/// Returns all values of the inputs of a document, in the order of the document. `document` is the whole document.
pub fn leaves(document: &Value) -> Vec<Leaf<'_>> {
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let mut found = Vec::new();
    let fields = fields_of(kind);
    for (name, value) in document.get("inputs").and_then(Value::as_object).into_iter().flatten() {
        let role = fields.and_then(|fields| fields.iter().find(|field| field.name == name));
        gather(name.clone(), role.map(|field| &field.role), value, &mut found);
    }
    found
}

fn gather<'d>(path: String, role: Option<&'static Role>, value: &'d Value, found: &mut Vec<Leaf<'d>>) {
    match (role, value) {
        (Some(role @ (Role::Fields(_) | Role::OneOf { .. })), Value::Object(inner)) => {
            for (name, value) in inner {
                gather(format!("{path}.{name}"), role.inner_of(inner, name), value, found);
            }
        }
        (_, Value::Array(values)) => {
            for (at, value) in values.iter().enumerate() {
                gather(format!("{path}.{at}"), role, value, found);
            }
        }
        _ => found.push(Leaf { path, role, value }),
    }
}

/// Returns the engine fingerprints in a document, each with its role.
pub fn engines_in(document: &Value) -> Vec<(String, EngineRole, &str)> {
    let leaves = leaves(document).into_iter();
    let engines = leaves.filter_map(|leaf| match (leaf.role, leaf.value) {
        (Some(Role::Engine(role)), Value::String(fingerprint)) => Some((leaf.path, *role, fingerprint.as_str())),
        _ => None,
    });
    engines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_found_by_its_path() {
        let origin = |kind: &str, path: &str| role_at(kind, &format!("inputs.{path}")).map(Role::origin);
        assert_eq!(origin("corpus", "texts.1"), Some(Origin::Source));
        assert_eq!(origin("join", "imatrix"), Some(Origin::Input));
        assert_eq!(origin("promote", "imatrix.chunks"), Some(Origin::Input));
        assert_eq!(origin("eval", "engine"), Some(Origin::Engine));
        assert_eq!(origin("metrics", "rows.q/a.engine"), Some(Origin::Engine));
        assert_eq!(origin("metrics", "rows.q/tiny-3.5-b.file"), Some(Origin::Input));
        assert_eq!(origin("metrics", "rows.q/tiny-3.5-b"), Some(Origin::Recipe));
        assert_eq!(origin("metrics", "rows.3.elements"), Some(Origin::Input));
        assert_eq!(origin("policy", "rules"), Some(Origin::Forge));
        assert_eq!(origin("policy", "method.rules.0.target"), Some(Origin::Recipe));
        assert_eq!(origin("policy", "method.name"), Some(Origin::Recipe));
        assert_eq!(origin("policy", "method.solver"), Some(Origin::Forge));
        assert_eq!(origin("policy", "method.evaluator"), Some(Origin::Engine));
        assert_eq!(origin("policy", "method.header.metadata"), Some(Origin::Input));
        assert_eq!(origin("policy", "method.probes.evaluator"), Some(Origin::Engine));
        assert_eq!(origin("tensor", "to"), Some(Origin::Input));
        assert_eq!(role_at("tensor", "schema"), Some(&Role::Version));
        assert_eq!(role_at("tensor", "inputs.none"), None);
        assert_eq!(role_at("none", "inputs.to"), None);
    }
}
