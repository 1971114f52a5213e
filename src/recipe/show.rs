//! The resolved recipe as TOML: every default written out, extended files filled in, sweeps as lists.

use toml_edit::Array;
use toml_edit::DocumentMut;
use toml_edit::Item;
use toml_edit::Table;
use toml_edit::Value;

use crate::recipe::model::Recipe;
use crate::recipe::model::ResolvedSection;

impl Recipe {
    /// Returns the recipe as TOML that reads back as an equal recipe. Paths are relative to the directory of the recipe
    /// that was asked for.
    pub fn to_toml(&self) -> String {
        let mut document = DocumentMut::new();
        for sections in self.resolved.chunk_by(|a, b| a.kind == b.kind) {
            match sections {
                [top] if top.kind.is_empty() => document.extend(entries(top)),
                [first, ..] => {
                    let tables = sections.iter().map(|section| {
                        let table: Table = entries(section).collect();
                        (section.name.as_str(), table)
                    });
                    let mut named: Table = tables.collect();
                    // Its sections have headers of their own.
                    named.set_implicit(true);
                    document.insert(first.kind, Item::Table(named));
                }
                [] => {}
            }
        }
        document.to_string()
    }
}

fn entries(section: &ResolvedSection) -> impl Iterator<Item = (&'static str, Value)> {
    section.entries.iter().map(|(key, value)| (*key, laid_out(value)))
}

/// Returns a value as it is printed: rules stand one to a line.
fn laid_out(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text.as_str()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Float(number) => Value::from(*number),
        toml::Value::Boolean(answer) => Value::from(*answer),
        toml::Value::Datetime(time) => Value::from(*time),
        toml::Value::Array(list) => {
            let mut array: Array = list.iter().map(laid_out).collect();
            if list.iter().any(toml::Value::is_table) {
                array.iter_mut().for_each(|rule| rule.decor_mut().set_prefix("\n  "));
                array.set_trailing_comma(true);
                array.set_trailing("\n");
            }
            Value::from(array)
        }
        toml::Value::Table(table) => table
            .iter()
            .map(|(key, value)| (key.as_str(), laid_out(value)))
            .collect(),
    }
}
