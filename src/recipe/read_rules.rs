//! Rules of policies: which type tensors get whose names match an expression.

use crate::recipe::error::RecipeError;
use crate::recipe::field::Field;
use crate::recipe::field::Reader;
use crate::recipe::model::Place;
use crate::recipe::model::Rule;
use crate::recipe::model::RuleType;
use crate::recipe::names::TYPES;
use crate::recipe::raw::RawValue;

/// Notes rules of the resolved recipe.
pub(crate) fn put_rules(reader: &mut Reader<'_, '_>, key: &'static str, rules: &[Rule]) {
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
pub(crate) fn rule_type(field: Field<'_>) -> Result<RuleType, RecipeError> {
    if field.raw.value.kind() == "a string" && field.string("")? == "keep" {
        return Ok(RuleType::Keep);
    }
    field.type_name().map(RuleType::Type).map_err(|error| match error {
        RecipeError::UnknownWord { place, key, found, .. } => {
            let known = ["keep"].iter().chain(TYPES).copied().collect();
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

/// Reads rules, with the place of each one's pattern.
pub(crate) fn rules(
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
        let mut rule = Reader::new("a rule".to_owned(), place.clone(), ("", ""), entries, &mut errors);
        let pattern = rule.required("match", "match = \"ffn_down\"", |field| {
            Ok((field.pattern()?, field.place()))
        });
        let to = rule.required("type", "type = \"Q6_K\"", read_type);
        if let (Some(_), Some((pattern, pattern_place)), Some(to)) = (rule.finish(), pattern, to) {
            rules.push((
                Rule {
                    pattern,
                    to,
                    origin: place,
                },
                pattern_place,
            ));
        }
    }
    let fine = errors.is_empty();
    reader.errors.append(&mut errors);
    fine.then_some(rules)
}

/// Reports rules that another takes everything from, as far as that can be told from the expressions.
pub(crate) fn unreachable_rules(rules: &[(Rule, Place)], errors: &mut Vec<RecipeError>) {
    const ALL: &[&str] = &["", ".", ".*", ".+", "^", "$", "^.*", ".*$", "^.*$", "^.+$"];
    for (at, (rule, place)) in rules.iter().enumerate() {
        let takes_all = |(earlier, _): &&(Rule, Place)| ALL.contains(&earlier.pattern.as_str());
        let same = |(earlier, _): &&(Rule, Place)| earlier.pattern == rule.pattern;
        let before = &rules[..at];
        let found = before
            .iter()
            .find(takes_all)
            .map(|found| (found, "a rule before it matches every tensor"))
            .or_else(|| {
                before
                    .iter()
                    .find(same)
                    .map(|found| (found, "a rule before it has the same expression"))
            });
        if let Some(((_, earlier), why)) = found {
            let (place, earlier) = (place.clone(), earlier.clone());
            errors.push(RecipeError::UnreachableRule { place, why, earlier });
        }
    }
}
