//! What each field of an action's document is: where its value comes from, and what it must agree with. `why`, `diff`,
//! `verify`, `reproduce`, `lock` and `--frozen` ask this; none of them knows a field by its name.

use serde::Serialize;
use serde_json::Value;

use super::KINDS;

/// What an engine is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineRole {
    /// It runs models: tokens, imatrices, log-probabilities.
    Evaluator,
    /// It turns numbers into quantized bytes and back.
    Quantizer,
}

impl EngineRole {
    /// Returns the word for it, as engine identities spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Evaluator => "evaluator",
            Self::Quantizer => "quantizer",
        }
    }
}

/// An output of a kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputOf {
    /// The kind, as documents spell it.
    pub kind: &'static str,
    /// The output's name.
    pub output: &'static str,
}

/// Names an output of a kind of action.
pub(super) const fn output(kind: &'static str, output: &'static str) -> OutputOf {
    OutputOf { kind, output }
}

/// What a field is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The digest of a file that the user owns, or a list of them.
    Source,
    /// The digest of an output of another action, or a list of them: any of these outputs.
    Input(&'static [OutputOf]),
    /// A value that was taken from such outputs, or computed from them.
    PartOf(&'static [OutputOf]),
    /// The key of another action, of this kind.
    Key(&'static str),
    /// Something that the recipe says.
    Setting,
    /// The fingerprint of an engine.
    Engine(EngineRole),
    /// The version of a form, or of rules, of forge's own.
    Version,
    /// A document with fields of its own, or a list of such documents.
    Fields(&'static [Field]),
    /// A document whose fields depend on what it has in the field `tag`.
    OneOf {
        /// The field that tells which.
        tag: &'static str,
        /// The values of that field, each with the other fields.
        variants: &'static [(&'static str, &'static [Field])],
    },
}

/// A field of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub role: Role,
}

/// Declares a field.
pub(super) const fn field(name: &'static str, role: Role) -> Field {
    Field { name, role }
}

/// Where the value of a field comes from, in the words of `forge why`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A file of the user's.
    Source,
    /// The recipe.
    Recipe,
    /// The engine.
    Engine,
    /// Forge itself: the version of a form or of built-in rules.
    Forge,
    /// What a step before has made.
    Input,
}

impl Role {
    /// Returns where a value with this role comes from. What has fields of its own comes and goes as the recipe says.
    pub const fn origin(&self) -> Origin {
        match self {
            Self::Source => Origin::Source,
            Self::Input(_) | Self::PartOf(_) | Self::Key(_) => Origin::Input,
            Self::Engine(_) => Origin::Engine,
            Self::Version => Origin::Forge,
            Self::Setting | Self::Fields(_) | Self::OneOf { .. } => Origin::Recipe,
        }
    }

    /// Returns the role of a field of an object, whose tag tells which fields it has.
    fn inner_of(&self, object: &serde_json::Map<String, Value>, name: &str) -> Option<&'static Role> {
        let Self::OneOf { tag, variants } = *self else {
            return self.inner(name);
        };
        if tag == name {
            return Some(&Role::Setting);
        }
        let variant = object.get(tag).and_then(Value::as_str)?;
        let (_, fields) = variants.iter().find(|(name, _)| *name == variant)?;
        fields.iter().find(|field| field.name == name).map(|field| &field.role)
    }

    /// Returns the role of a field inside, by its name.
    fn inner(&self, name: &str) -> Option<&'static Role> {
        let find = |fields: &'static [Field]| fields.iter().find(|field| field.name == name).map(|field| &field.role);
        match *self {
            Self::Fields(fields) => find(fields),
            Self::OneOf { tag, .. } if tag == name => Some(&Role::Setting),
            // Variants that share a field's name have its values from the same origin: a test holds that.
            Self::OneOf { variants, .. } => variants.iter().find_map(|(_, fields)| find(fields)),
            _ => None,
        }
    }
}

/// Returns the declared fields of a kind's inputs; nothing for a kind that this version does not know.
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

/// A value in a document that is no document itself, with its role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf<'d> {
    /// Its path below `inputs`, with the numbers of elements of lists.
    pub path: String,
    /// Its role; nothing if the field is not declared.
    pub role: Option<&'static Role>,
    /// The value: a text, a number, a truth value, nothing, or what a map of settings holds.
    pub value: &'d Value,
}

/// Returns all values of the inputs of a document, in its order. `document` is the whole document.
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

/// Returns the fingerprints of engines that a document names, with what each is used for.
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
