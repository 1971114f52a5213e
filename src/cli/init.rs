//! `forge init`: a commented recipe to start from.

/// What the starter recipe is filled in with. Paths are relative to the recipe's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitArgs {
    /// The model's path.
    pub model: String,
    /// Paths or patterns of the calibration text.
    pub corpus: Vec<String>,
    /// Paths or patterns of other text to evaluate on; without any, the recipe has no evaluation.
    pub held_out: Vec<String>,
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
    let name = args.name.clone().unwrap_or_else(|| name_of(&args.model));
    let starter = if args.held_out.is_empty() {
        without_evaluation(STARTER)
    } else {
        STARTER.to_owned()
    };
    let held_out = match args.held_out.as_slice() {
        [] => &["held-out.txt".to_owned()],
        given => given,
    };
    starter
        .replace("\"@NAME@\"", &toml::Value::from(name).to_string())
        .replace("\"@MODEL@\"", &toml::Value::from(args.model.clone()).to_string())
        .replace("@CORPUS@", &toml::Value::from(args.corpus.clone()).to_string())
        .replace("@HELD_OUT@", &toml::Value::from(held_out.to_vec()).to_string())
}

/// Comments out the held-out text and the evaluation on it.
fn without_evaluation(starter: &str) -> String {
    let sections = starter.split("\n\n").map(|section| {
        if !section.contains("\n[corpus.held-out]") && !section.contains("\n[eval.") {
            return section.to_owned();
        }
        let lines = section.lines().map(|line| {
            if line.starts_with('#') {
                line.to_owned()
            } else {
                format!("# {line}")
            }
        });
        let lines: Vec<String> = lines.collect();
        format!(
            "{}\n# Remove the `#` of this section once there is such a text.",
            lines.join("\n")
        )
    });
    sections.collect::<Vec<_>>().join("\n\n")
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

    fn args(model: &str) -> InitArgs {
        InitArgs {
            model: model.to_owned(),
            corpus: vec!["calibration/*.txt".to_owned()],
            held_out: vec!["held-out.txt".to_owned()],
            name: None,
        }
    }

    #[test]
    fn the_starter_recipe_is_fine() {
        let parsed = check(&args("model.gguf"));
        assert_eq!(parsed.warnings, []);
        assert_eq!(parsed.recipe.name, "model");
        assert!(parsed.recipe.candidates().count() > 1);
        assert!(recipe(&args("model.gguf")).contains("\n[eval.quality]\n"));
    }

    #[test]
    fn without_a_held_out_text_there_is_no_evaluation() {
        let alone = InitArgs {
            held_out: Vec::new(),
            ..args("model.gguf")
        };
        let parsed = check(&alone);
        assert_eq!(parsed.warnings, []);
        assert!(parsed.recipe.find("quality").is_empty());
        let text = recipe(&alone);
        assert!(
            text.contains("\n# [corpus.held-out]\n# files = [\"held-out.txt\"]\n"),
            "{text}"
        );
        assert!(text.contains("\n# [eval.quality]\n"), "{text}");
        // As the comments say: without the marks it is the whole recipe.
        let whole = text
            .replace("# [corpus.held-out]\n# ", "[corpus.held-out]\n")
            .replace("# [eval.quality]\n# ", "[eval.quality]\n");
        let whole = crate::recipe::parse_alone(&Source::new("recipe.toml", whole)).unwrap();
        assert!(!whole.recipe.find("quality").is_empty());
    }

    #[test]
    fn awkward_paths_are_quoted() {
        let awkward = InitArgs {
            corpus: vec!["a b/*.txt".to_owned(), "\"q\".txt".to_owned()],
            ..args("C:\\models\\\"my\" model.gguf")
        };
        let parsed = check(&awkward);
        let model = parsed.recipe.sources.values().next().unwrap();
        assert_eq!(model.path.resolved, awkward.model);
        assert_eq!(parsed.recipe.name, "my--model");
        assert_eq!(check(&args("...")).recipe.name, "my-model");
    }
}
