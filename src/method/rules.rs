//! Rules: which type tensors get whose names match an expression.

use serde::Deserialize;
use serde::Serialize;
use serde::Serializer;

use super::problem::MethodError;
use crate::policy;
use crate::policy::Target;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::field::Reader;
use crate::syntax::id::Place;
use crate::syntax::names::TYPES;
use crate::syntax::pattern::Pattern;
use crate::syntax::raw::RawValue;
use crate::tensor_type::TensorType;
use crate::vocab::role::Role;
use crate::vocab::role::field;

/// One rule of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    /// Which tensors.
    #[serde(rename = "match")]
    pub pattern: Pattern,
    /// What they become.
    #[serde(rename = "type")]
    pub to: RuleType,
}

/// What a rule makes of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleType {
    /// It keeps the source's type.
    Keep,
    /// It becomes this type.
    Type(TensorType),
}

impl RuleType {
    /// Returns the word that recipes use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Type(ty) => ty.name(),
        }
    }
}

impl Serialize for RuleType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One rule of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleDocument {
    /// The regular expression that a tensor's name must match.
    pub pattern: String,
    /// The type, or `keep`.
    pub target: String,
}

impl RuleDocument {
    pub(super) const ROLE: Role = Role::Fields(&[field("pattern", Role::Setting), field("target", Role::Setting)]);

    /// A rule that keeps tensors as they are.
    pub(super) fn keep(pattern: &str) -> Self {
        Self {
            pattern: pattern.to_owned(),
            target: RuleType::Keep.as_str().to_owned(),
        }
    }
}

impl From<&Rule> for RuleDocument {
    fn from(rule: &Rule) -> Self {
        Self {
            pattern: rule.pattern.as_str().to_owned(),
            target: rule.to.as_str().to_owned(),
        }
    }
}

/// Returns rules as documents have them.
pub(super) fn documents_of(rules: &[Rule]) -> Vec<RuleDocument> {
    rules.iter().map(RuleDocument::from).collect()
}

/// Returns the rules of a document as the algorithms take them.
pub(super) fn rules_of(rules: &[RuleDocument]) -> Result<Vec<policy::Rule>, MethodError> {
    let rule = |rule: &RuleDocument| {
        Ok(policy::Rule {
            pattern: regex_of(&rule.pattern)?,
            to: target_of(&rule.target)?,
        })
    };
    rules.iter().map(rule).collect()
}

/// Returns patterns of tensors that stay as they are as rules.
pub(super) fn kept(patterns: &[String]) -> Result<Vec<policy::Rule>, MethodError> {
    let keep = |pattern: &String| {
        Ok(policy::Rule {
            pattern: regex_of(pattern)?,
            to: Target::Keep,
        })
    };
    patterns.iter().map(keep).collect()
}

/// Returns the type of a name in a document.
pub(super) fn type_of(name: &str) -> Result<TensorType, MethodError> {
    TensorType::from_name(name).ok_or_else(|| MethodError::new(format!("there is no tensor type `{name}`")))
}

/// Returns the type of a name in a document, or that a tensor stays as it is.
pub(super) fn target_of(name: &str) -> Result<Target, MethodError> {
    if name == RuleType::Keep.as_str() {
        Ok(Target::Keep)
    } else {
        type_of(name).map(Target::Type)
    }
}

/// Returns the regular expression of a document.
pub(super) fn regex_of(pattern: &str) -> Result<regex::Regex, MethodError> {
    regex::Regex::new(pattern).map_err(|error| MethodError::new(format!("`{pattern}`: {error}")))
}

/// Notes rules of the resolved recipe.
pub(super) fn put_rules(reader: &mut Reader<'_, '_>, key: &'static str, rules: &[Rule]) {
    let list: Vec<_> = rules
        .iter()
        .map(|rule| {
            let mut table = toml::Table::new();
            table.insert("match".to_owned(), toml::Value::from(rule.pattern.as_str()));
            table.insert("type".to_owned(), toml::Value::from(rule.to.as_str()));
            toml::Value::Table(table)
        })
        .collect();
    if !list.is_empty() {
        reader.put(key, list);
    }
}

/// Reads a tensor type or `keep`.
pub(super) fn rule_type(field: Field<'_>) -> Result<RuleType, RecipeError> {
    if field.raw.value.kind() == "a string" && field.string("")? == RuleType::Keep.as_str() {
        return Ok(RuleType::Keep);
    }
    field.tensor_type().map(RuleType::Type).map_err(|error| match error {
        RecipeError::UnknownWord { place, key, found, .. } => {
            let known = std::iter::once("keep")
                .chain(TYPES.iter().map(|ty| ty.name()))
                .collect();
            RecipeError::UnknownWord {
                place,
                key,
                found,
                what: "a tensor type or `keep`".to_owned(),
                known,
            }
        }
        other => other,
    })
}

/// Reads the rules of a key that may be absent. The first rule that matches counts, so rules that can never match are errors.
pub(super) fn read(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    read_type: fn(Field<'_>) -> Result<RuleType, RecipeError>,
) -> Option<Vec<Rule>> {
    if !reader.has(key) {
        return Some(Vec::new());
    }
    let rules = rules(reader, key, read_type)?;
    unreachable_rules(&rules, reader.errors);
    Some(rules.into_iter().map(|(rule, _)| rule).collect())
}

/// Reads rules, with the place of each one's pattern.
fn rules(
    reader: &mut Reader<'_, '_>,
    key: &'static str,
    read_type: fn(Field<'_>) -> Result<RuleType, RecipeError>,
) -> Option<Vec<(Rule, Place)>> {
    // Rules are sections of their own: each may have several errors, so they are gathered apart.
    let mut errors = Vec::new();
    let tables = reader.list(
        key,
        "a list of `{ match = \"...\", type = \"...\" }`",
        |field| match &field.raw.value {
            RawValue::Table(entries) => Ok((field.place(), entries)),
            _ => Err(field.wrong_type("a list of `{ match = \"...\", type = \"...\" }`")),
        },
    )?;
    let mut rules = Vec::new();
    for ((place, entries), _) in tables {
        let mut rule = Reader::new("a rule".to_owned(), place, ("", ""), entries, &mut errors);
        let pattern = rule.required("match", "match = \"ffn_down\"", |field| {
            Ok((field.pattern()?, field.place()))
        });
        let to = rule.required("type", "type = \"Q6_K\"", read_type);
        if let (Some(_), Some((pattern, pattern_place)), Some(to)) = (rule.finish(), pattern, to) {
            rules.push((Rule { pattern, to }, pattern_place));
        }
    }
    let fine = errors.is_empty();
    reader.errors.append(&mut errors);
    fine.then_some(rules)
}

/// Reports rules that are never reached, as far as their expressions show it.
fn unreachable_rules(rules: &[(Rule, Place)], errors: &mut Vec<RecipeError>) {
    const ALL: &[&str] = &["", ".", ".*", ".+", "^", "$", "^.*", ".*$", "^.*$", "^.+$"];
    for (at, (rule, place)) in rules.iter().enumerate() {
        let takes_all = |(earlier, _): &&(Rule, Place)| ALL.contains(&earlier.pattern.as_str());
        let same = |(earlier, _): &&(Rule, Place)| earlier.pattern == rule.pattern;
        let before = &rules[..at];
        let found = before
            .iter()
            .find(takes_all)
            .map(|found| (found, "an earlier rule matches every tensor"))
            .or_else(|| {
                before
                    .iter()
                    .find(same)
                    .map(|found| (found, "an earlier rule has the same expression"))
            });
        if let Some(((_, earlier), why)) = found {
            let (place, earlier) = (place.clone(), earlier.clone());
            errors.push(RecipeError::UnreachableRule { place, why, earlier });
        }
    }
}
