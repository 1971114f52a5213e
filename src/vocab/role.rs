//! The role of each field of an action document: where its value comes from.

use serde::Serialize;
use serde_json::Value;

use super::EngineRole;

/// An output of a kind of action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputOf {
    /// The name of the kind, as in documents.
    pub kind: &'static str,
    /// The name of the output.
    pub output: &'static str,
}

/// Names an output of a kind of action, for the role of a field.
pub const fn output(kind: &'static str, output: &'static str) -> OutputOf {
    OutputOf { kind, output }
}

/// The role of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The digest of a file that the user owns, or a list of them.
    Source,
    /// The digest of an output of another action, or a list of such digests. Each is one of these outputs.
    Input(&'static [OutputOf]),
    /// A value that is taken or computed from such outputs.
    PartOf(&'static [OutputOf]),
    /// The key of another action of this kind.
    Key(&'static [&'static str]),
    /// A setting of the recipe.
    Setting,
    /// The fingerprint of an engine.
    Engine(EngineRole),
    /// The version of a format or of rules of forge itself.
    Version,
    /// A document with fields of its own, or a list of such documents.
    Fields(&'static [Field]),
    /// A document whose fields depend on the value of its field `tag`.
    OneOf {
        /// The name of the tag.
        tag: &'static str,
        /// The possible values of the tag, each with the other fields.
        variants: &'static [(&'static str, &'static [Field])],
    },
}

/// A field of a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// The name.
    pub name: &'static str,
    /// The role.
    pub role: Role,
}

/// Declares a field.
pub const fn field(name: &'static str, role: Role) -> Field {
    Field { name, role }
}

/// Where the value of a field comes from, as `forge why` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A source file.
    Source,
    /// The recipe.
    Recipe,
    /// The engine.
    Engine,
    /// Forge itself: the version of a format or of built-in rules.
    Forge,
    /// The result of an earlier step.
    Input,
}

impl Role {
    /// Returns where a value with this role comes from. A nested document as a whole is a setting of the recipe.
    pub const fn origin(&self) -> Origin {
        match self {
            Self::Source => Origin::Source,
            Self::Input(_) | Self::PartOf(_) | Self::Key(_) => Origin::Input,
            Self::Engine(_) => Origin::Engine,
            Self::Version => Origin::Forge,
            Self::Setting | Self::Fields(_) | Self::OneOf { .. } => Origin::Recipe,
        }
    }

    /// Returns the role of a field of an object; for tagged documents the tag of the object selects the fields.
    pub fn inner_of(&self, object: &serde_json::Map<String, Value>, name: &str) -> Option<&'static Role> {
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

    /// Returns the role of a nested field, by its name.
    pub fn inner(&self, name: &str) -> Option<&'static Role> {
        let find = |fields: &'static [Field]| fields.iter().find(|field| field.name == name).map(|field| &field.role);
        match *self {
            Self::Fields(fields) => find(fields),
            Self::OneOf { tag, .. } if tag == name => Some(&Role::Setting),
            // A field that several variants have comes from the same origin in each; a test checks that.
            Self::OneOf { variants, .. } => variants.iter().find_map(|(_, fields)| find(fields)),
            _ => None,
        }
    }
}

/// Joins lists of fields, each in its order, to one of `N` fields.
///
/// # Panics
///
/// If there are not `N` fields; in a constant that is an error of the compiler.
pub const fn fields<const N: usize>(lists: &[&[Field]]) -> [Field; N] {
    let mut all = [field("", Role::Setting); N];
    let (mut list, mut total) = (0, 0);
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            all[total] = lists[list][at];
            at += 1;
            total += 1;
        }
        list += 1;
    }
    assert!(total == N, "the number of fields is another");
    all
}
