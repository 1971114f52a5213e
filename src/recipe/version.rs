//! The version of the recipe language.

use crate::recipe::SCHEMA;
use crate::recipe::model::Place;
use crate::syntax::error::RecipeError;
use crate::syntax::field::Field;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::text::Source;

/// Checks that a file states the version of the language that this program reads.
pub(crate) fn check(entry: Option<&RawEntry>, source: &Source, errors: &mut Vec<RecipeError>) {
    let Some(entry) = entry else {
        errors.push(RecipeError::MissingKey {
            place: Place::new(source, 0..0),
            section: "a recipe".to_owned(),
            key: "schema",
            example: "schema = 1",
            because: None,
        });
        return;
    };
    let field = Field {
        key: "schema",
        raw: &entry.value,
    };
    match &entry.value.value {
        RawValue::Integer(Some(value), _) if *value == i64::from(SCHEMA) => {}
        RawValue::Integer(_, text) => {
            errors.push(RecipeError::Schema {
                place: field.place(),
                found: text.clone(),
                known: SCHEMA,
            });
        }
        _ => errors.push(field.wrong_type(format!("the version of the language, {SCHEMA}"))),
    }
}
