//! `forge check`: says everything that is wrong with recipes, without building anything.

use std::io;
use std::io::Write;

use crate::cli::diagnostic::Diagnostic;
use crate::cli::diagnostic::SCHEMA;
use crate::cli::diagnostic::Style;
use crate::cli::escape::escape;
use crate::engine::Engines;
use crate::graph::Graph;
use crate::prose;
use crate::recipe;
use crate::recipe::LoadError;
use crate::session::engines;
use crate::text::Source;

/// How messages are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// For people.
    Text(Style),
    /// One JSON document a line.
    Json,
}

impl Messages {
    /// Writes one diagnostic.
    pub fn write(self, diagnostic: &Diagnostic, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Text(style) => writeln!(out, "{}", diagnostic.render(style)),
            Self::Json => writeln!(out, "{}", diagnostic.to_json()),
        }
    }
}

/// Reads the file that a recipe is, or that it extends. The second path is relative to the first one's directory.
pub type Read<'a> = dyn FnMut(&str) -> Result<Source, LoadError> + 'a;

/// Checks recipes: `ok` lines go to `out`, diagnostics to `err`. `open` reads a recipe by its path on the command line;
/// `extend` reads a file that the recipe of the first path extends, by its path relative to that recipe's directory.
/// Engines that recipes name must be `known`. `files` returns what is wrong with the files of a recipe that is fine by itself. Returns
/// whether all are fine.
#[expect(clippy::too_many_arguments, reason = "where recipes come from and where messages go")]
pub fn run(
    recipes: &[String],
    open: &mut Read<'_>,
    extend: &mut dyn FnMut(&str, &str) -> Result<Source, LoadError>,
    known: &Engines,
    files: &mut dyn FnMut(&str, &recipe::Parsed) -> Vec<Diagnostic>,
    messages: Messages,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<bool> {
    let mut fine = true;
    for path in recipes {
        let loaded = load(path, open, extend, known).and_then(|parsed| {
            let diagnostics = files(path, &parsed);
            if diagnostics.is_empty() {
                return Ok(parsed);
            }
            let count = diagnostics.len();
            Err(Problems { diagnostics, count })
        });
        match loaded {
            Ok(parsed) => {
                for warning in Diagnostic::recipe_warnings(&parsed.warnings) {
                    messages.write(&warning, err)?;
                }
                if let Messages::Text(_) = messages {
                    let steps = Graph::of(&parsed.recipe).map_or(0, |graph| graph.steps());
                    let candidates = parsed.recipe.candidates().count();
                    writeln!(
                        out,
                        "ok: {} ({}, {})",
                        escape(path),
                        prose::count(steps as u64, "step"),
                        prose::count(candidates as u64, "candidate")
                    )?;
                } else {
                    writeln!(
                        out,
                        "{}",
                        serde_json::json!({ "schema": SCHEMA, "reason": "checked", "file": path })
                    )?;
                }
            }
            Err(problems) => {
                fine = false;
                for diagnostic in &problems.diagnostics {
                    messages.write(diagnostic, err)?;
                }
                if let Messages::Text(_) = messages {
                    writeln!(
                        err,
                        "forge: {} in {}",
                        prose::count(problems.count as u64, "error"),
                        escape(path)
                    )?;
                }
            }
        }
    }
    Ok(fine)
}

/// What is wrong with a recipe.
pub struct Problems {
    /// What to print; not every error, where there are very many.
    pub diagnostics: Vec<Diagnostic>,
    /// How many errors there are.
    pub count: usize,
}

/// Reads a recipe for a command, and checks that the engines that it names are `known` and can do what it asks; errors come as diagnostics.
pub fn load(
    path: &str,
    open: &mut Read<'_>,
    extend: &mut dyn FnMut(&str, &str) -> Result<Source, LoadError>,
    known: &Engines,
) -> Result<recipe::Parsed, Problems> {
    let source = open(path).map_err(|error| {
        let missing = Diagnostic::error(format!("can't read the recipe `{path}`")).code("recipe::unreadable");
        let hint = "`forge init` writes a recipe to start from; `-f RECIPE` names another one";
        Problems {
            diagnostics: vec![missing.caused_by(error.message).hint(hint)],
            count: 1,
        }
    })?;
    let parsed = recipe::parse(&source, &mut |extended| extend(path, extended)).map_err(|errors| Problems {
        diagnostics: Diagnostic::recipe_errors(&errors),
        count: errors.len(),
    })?;
    let graph = Graph::of(&parsed.recipe).map_err(|error| Problems {
        diagnostics: vec![Diagnostic::from_error(&error)],
        count: 1,
    })?;
    engines::check(&parsed.recipe, &graph, known).map_err(|problems| Problems {
        diagnostics: problems.iter().map(Diagnostic::engine).collect(),
        count: problems.len(),
    })?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineSettings;

    fn check(texts: &[(&str, &str)], messages: Messages) -> (bool, String, String) {
        let paths: Vec<String> = texts.iter().map(|(name, _)| (*name).to_owned()).collect();
        let find = |name: &str| {
            let found = texts.iter().find(|(known, _)| *known == name);
            let found = found.filter(|(_, text)| !text.is_empty());
            found.map(|(name, text)| Source::new(*name, *text)).ok_or(LoadError {
                message: "there is no such file".to_owned(),
            })
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let fine = run(
            &paths,
            &mut |name| find(name),
            &mut |_, name| find(name),
            &Engines::new(1, &EngineSettings::new()),
            &mut |_, _| Vec::new(),
            messages,
            &mut out,
            &mut err,
        );
        (
            fine.unwrap(),
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    const GOOD: &str = "schema = 1\nname = \"a\"\n[source.m]\npath = \"m.gguf\"\n[policy.p]\nmethod = \"mix\"\n\
                        mix = [\"Q4_K_M\", \"Q8_0\"]\n[promote.p]\npolicy = \"p\"\n";

    #[test]
    fn good_recipes_are_ok_and_bad_ones_are_counted() {
        let text = Messages::Text(Style::PLAIN);
        let (fine, out, err) = check(
            &[("good.toml", GOOD), ("bad.toml", "nme = 1\n"), ("gone.toml", "")],
            text,
        );
        assert!(!fine);
        assert_eq!(out, "ok: good.toml (4 steps, 2 candidates)\n");
        assert!(err.contains("forge: 2 errors in bad.toml\n"), "{err}");
        assert!(
            err.contains("error[recipe::unreadable]: can't read the recipe `gone.toml`\n"),
            "{err}"
        );
        assert!(err.contains("`forge init` writes a recipe"), "{err}");
    }

    #[test]
    fn json_is_one_document_a_line() {
        let (fine, out, err) = check(&[("good.toml", GOOD), ("bad.toml", "schema = 2\n")], Messages::Json);
        assert!(!fine);
        let line: serde_json::Value = serde_json::from_str(out.trim()).unwrap();
        assert_eq!(line["file"], "good.toml");
        for line in err.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(
                (line["schema"].as_u64(), line["reason"].as_str()),
                (Some(u64::from(SCHEMA)), Some("diagnostic"))
            );
            assert_eq!(line["file"], "bad.toml");
        }
        assert_eq!(err.lines().count(), 2);
    }
}
