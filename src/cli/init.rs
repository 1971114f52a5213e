//! `forge init`: a commented recipe to start from.

/// What the starter recipe is filled in with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InitArgs {
    /// The model's path; `model.gguf` when absent.
    pub model: Option<String>,
    /// The calibration text's path or pattern; `calibration/*.txt` when absent.
    pub corpus: Option<String>,
    /// The recipe's name; made from the model's when absent.
    pub name: Option<String>,
}

/// The name of the file that `forge init` writes. Whoever writes it must not replace a file that is there.
pub const FILE: &str = "recipe.toml";

/// The name of the file with the JSON Schema of recipes, which the starter names for editors.
pub const SCHEMA_FILE: &str = "recipe.schema.json";

/// The JSON Schema of recipes.
pub const SCHEMA: &str = include_str!("../../recipes/schema.json");

const STARTER: &str = include_str!("starter.toml");

/// Returns the text of a starter recipe; it passes `forge check`.
pub fn recipe(args: &InitArgs) -> String {
    let model = args.model.as_deref().unwrap_or("model.gguf");
    let corpus = args.corpus.as_deref().unwrap_or("calibration/*.txt");
    let name = args.name.clone().unwrap_or_else(|| name_of(model));
    STARTER
        .replace("\"@NAME@\"", &toml::Value::from(name).to_string())
        .replace("\"@MODEL@\"", &toml::Value::from(model).to_string())
        .replace("\"@CORPUS@\"", &toml::Value::from(corpus).to_string())
}

/// Makes a recipe's name of a model's path.
fn name_of(model: &str) -> String {
    let file = model.rsplit(['/', '\\']).next().unwrap_or(model);
    let stem = file.strip_suffix(".gguf").unwrap_or(file);
    let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = stem.chars().map(|c| if kept(c) { c } else { '-' }).take(60).collect();
    let name = name.trim_start_matches(['.', '-']);
    if name.is_empty() {
        "my-model".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::diagnostic::Diagnostic;
    use crate::cli::diagnostic::Style;
    use crate::text::Source;

    fn check(args: &InitArgs) -> crate::recipe::Parsed {
        let text = recipe(args);
        assert!(text.starts_with(&format!("#:schema {SCHEMA_FILE}\n")), "{text}");
        crate::recipe::parse_alone(&Source::new("recipe.toml", text)).unwrap_or_else(|errors| {
            let all: Vec<_> = errors
                .iter()
                .map(|error| Diagnostic::recipe(error).render(Style::PLAIN))
                .collect();
            panic!("{}", all.join("\n"))
        })
    }

    #[test]
    fn the_starter_recipe_is_fine() {
        let parsed = check(&InitArgs::default());
        assert_eq!(parsed.warnings, []);
        assert_eq!(parsed.recipe.name, "model");
        assert!(parsed.recipe.candidates().count() > 1);
    }

    #[test]
    fn awkward_paths_are_quoted() {
        let args = InitArgs {
            model: Some("C:\\models\\\"my\" model.gguf".to_owned()),
            corpus: Some("a b/*.txt".to_owned()),
            name: None,
        };
        let parsed = check(&args);
        let model = parsed.recipe.sources.values().next().unwrap();
        assert_eq!(model.path.resolved, args.model.unwrap());
        assert_eq!(parsed.recipe.name, "my--model");
        let odd = InitArgs {
            model: Some("...".to_owned()),
            ..InitArgs::default()
        };
        assert_eq!(check(&odd).recipe.name, "my-model");
    }
}
