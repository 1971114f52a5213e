//! What the documentation shows is true: its recipes parse, its commands are there, and the recipes that come with the
//! project pass `forge check` and make a graph.

use std::path::Path;
use std::path::PathBuf;

use forge::cli::diagnostic::Diagnostic;
use forge::cli::diagnostic::Style;
use forge::graph::Graph;
use forge::recipe;
use forge::recipe::LoadError;
use forge::text::Source;

use crate::support::Forge;
use crate::support::project;
use crate::support::quickstart;

/// A fenced block of a Markdown file.
struct Block {
    place: String,
    language: String,
    text: String,
}

/// Returns the fenced blocks of a Markdown text.
fn blocks_of(name: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    for (number, line) in text.lines().enumerate() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            if !open {
                blocks.push(Block {
                    place: format!("{name}:{}", number + 1),
                    language: info.split([' ', ',']).next().unwrap_or_default().to_owned(),
                    text: String::new(),
                });
            }
            open = !open;
        } else if open && let Some(block) = blocks.last_mut() {
            block.text.push_str(line);
            block.text.push('\n');
        }
    }
    assert!(!open, "{name}: a block is not closed");
    blocks
}

/// Returns all blocks of the front page and of `docs/`.
fn blocks() -> Vec<Block> {
    let mut pages = vec![project().join("README.md")];
    for entry in std::fs::read_dir(project().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    let read = |page: &PathBuf| {
        let name = page.strip_prefix(project()).unwrap().display().to_string();
        blocks_of(&name, &std::fs::read_to_string(page).unwrap())
    };
    pages.iter().flat_map(read).collect()
}

/// Returns whether a TOML block is a recipe: its first line that says anything gives the schema.
fn is_recipe(text: &str) -> bool {
    let first = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| line.replace(' ', "").starts_with("schema=1"))
}

/// Returns the commands of a block: without prompt, comment, and what a shell does with them.
fn commands_of(block: &Block) -> Vec<Vec<String>> {
    let commands = block.text.lines().filter_map(|line| {
        let line = line.trim_start().trim_start_matches("$ ");
        line.starts_with("forge ")
            .then(|| words_of(line))
            .filter(|words| words.len() > 1)
    });
    commands.collect()
}

/// Splits a line as a shell does, as far as the documentation needs it, and stops at comments, pipes and redirections.
fn words_of(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '#' | '|' | '>' | '&' | ';' | '<') if word.is_none() => break,
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Whether a recipe that another extends must be there.
#[derive(Clone, Copy)]
enum Base {
    /// Yes.
    IsThere,
    /// No: documentation extends what only readers have. The example stands in for it.
    MayBeMadeUp,
}

fn recipe_of(name: &str, text: &str, folder: &Path, base: Base) -> recipe::Recipe {
    let parsed = recipe::parse(&Source::new(name, text), &mut |extended| {
        std::fs::read_to_string(folder.join(extended))
            .map(|text| Source::new(extended, text))
            .map_err(|error| LoadError {
                message: error.to_string(),
            })
            .or_else(|error| {
                let stand_in = quickstart().join("recipe.toml");
                match base {
                    Base::MayBeMadeUp => Ok(Source::new(extended, std::fs::read_to_string(stand_in).unwrap())),
                    Base::IsThere => Err(error),
                }
            })
    });
    let rendered = |errors: Vec<recipe::RecipeError>| -> String {
        let all = errors
            .iter()
            .map(|error| Diagnostic::recipe(error).render(Style::PLAIN));
        all.collect::<Vec<_>>().join("\n")
    };
    parsed
        .unwrap_or_else(|errors| panic!("{name}:\n{}", rendered(errors)))
        .recipe
}

#[test]
fn recipes_in_the_documentation_parse() {
    let blocks = blocks();
    let shown: Vec<&Block> = blocks
        .iter()
        .filter(|block| block.language == "toml" && is_recipe(&block.text))
        .collect();
    assert!(!shown.is_empty(), "the front page shows no recipe");
    for block in shown {
        let recipe = recipe_of(&block.place, &block.text, project(), Base::MayBeMadeUp);
        Graph::of(&recipe).unwrap_or_else(|error| panic!("{}: {error}", block.place));
    }
}

#[test]
fn commands_in_the_documentation_exist() {
    let forge = Forge::new();
    let mut seen = 0;
    for block in blocks() {
        if !matches!(block.language.as_str(), "console" | "sh" | "shell" | "bash" | "text") {
            continue;
        }
        // Output is quoted in `text` blocks: only lines after a prompt are commands there.
        let quoted = block.language == "text";
        if quoted && !block.text.contains("$ forge ") {
            continue;
        }
        for words in commands_of(&block) {
            let mut args: Vec<&str> = words[1..].iter().map(String::as_str).collect();
            if args[0].starts_with('-') || args[0].ends_with(':') {
                continue;
            }
            // Everything up to `--help` is parsed; a word that is not known is a usage error, status 2.
            args.push("--help");
            let run = forge.run(&args);
            assert_eq!(
                run.status,
                Some(0),
                "{}: forge {}\n{}",
                block.place,
                args.join(" "),
                run.stderr
            );
            seen += 1;
        }
    }
    assert!(seen > 0, "the documentation shows no command");
    assert_eq!(forge.run(&["no-such-verb", "--help"]).status, Some(2));
    assert_eq!(forge.run(&["build", "--no-such-option", "--help"]).status, Some(2));
}

#[test]
fn recipes_of_the_project_check_and_make_a_graph() {
    let mut paths = Vec::new();
    let mut folders = vec![project().join("recipes"), project().join("examples")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("out") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "toml") {
                let text = std::fs::read_to_string(&path).unwrap();
                if is_recipe(&text) {
                    paths.push((path, text));
                }
            }
        }
    }
    assert!(paths.len() >= 5, "only {} recipes found", paths.len());
    let forge = Forge::new();
    for (path, text) in &paths {
        let name = path.display().to_string();
        let run = forge.run(&["check", "--no-files", &name]).success();
        assert_eq!(run.stderr.matches("warning").count(), 0, "{name}:\n{}", run.stderr);
        let recipe = recipe_of(&name, text, path.parent().unwrap(), Base::IsThere);
        let graph = Graph::of(&recipe).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(graph.len() > recipe.sources.len(), "{name}");
    }
}

#[test]
fn the_reader_of_pages_reads_them() {
    let page = "a\n```toml\n# x\n\nschema = 1\n```\n```console\n$ forge build \"a b\" -k # c\nforge: done\nls\n```\n";
    let blocks = blocks_of("page", page);
    assert_eq!(blocks.len(), 2);
    assert!(blocks[0].language == "toml" && is_recipe(&blocks[0].text));
    assert!(!is_recipe("cache_dir = \"x\"\nschema = 1"));
    assert_eq!(blocks[1].place, "page:7");
    assert_eq!(
        commands_of(&blocks[1]),
        [["forge", "build", "a b", "-k"].map(str::to_owned)]
    );
    assert_eq!(words_of("forge plan | less"), ["forge", "plan"]);
}
