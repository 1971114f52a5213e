//! The resolved recipe as TOML: every default written out, extended files filled in, sweeps as lists.

use std::fmt::Write as _;

use crate::recipe::model::Recipe;

impl Recipe {
    /// Returns the recipe as TOML that reads back as an equal recipe. Paths are relative to the directory of the recipe
    /// that was asked for.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        for section in &self.resolved {
            if !section.kind.is_empty() {
                let _ = writeln!(text, "\n[{}.{}]", section.kind, key(&section.name));
            }
            for (key, value) in &section.entries {
                match value {
                    // Rules stand one to a line.
                    toml::Value::Array(rules) if rules.iter().any(toml::Value::is_table) => {
                        let _ = writeln!(text, "{key} = [");
                        for rule in rules {
                            let _ = writeln!(text, "  {rule},");
                        }
                        text.push_str("]\n");
                    }
                    value => {
                        let _ = writeln!(text, "{key} = {value}");
                    }
                }
            }
        }
        text
    }
}

/// Names are bare keys unless they contain a dot.
fn key(name: &str) -> String {
    if name.contains('.') {
        format!("\"{name}\"")
    } else {
        name.to_owned()
    }
}
