//! Help: the verbs in groups, and examples of each. A new verb is one line in [`VERBS`]; tests fail for a verb that is in no line,
//! and for an example that the command line does not take.

use std::fmt::Write as _;

use clap::Command;
use clap::CommandFactory as _;
use clap::builder::Resettable;

use crate::cli::args::Args;
use crate::cli::environment;

/// What a verb is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Build,
    Understand,
    Compare,
    Publish,
    Store,
}

impl Group {
    const ALL: [Self; 5] = [Self::Build, Self::Understand, Self::Compare, Self::Publish, Self::Store];

    const fn title(self) -> &'static str {
        match self {
            Self::Build => "Build",
            Self::Understand => "Understand",
            Self::Compare => "Compare",
            Self::Publish => "Publish",
            Self::Store => "Store",
        }
    }
}

use Group::{Build, Compare, Publish, Store, Understand};

/// The verbs in the order of the help: the group, the name, examples. A verb with verbs of its own shows the first example of each.
const VERBS: &[(Group, &str, &[&str])] = &[
    (
        Build,
        "init",
        &[
            "forge init",
            "forge init --model model-BF16.gguf",
            "forge init mine --corpus 'texts/*.txt' --held-out wiki.txt",
        ],
    ),
    (
        Build,
        "check",
        &[
            "forge check",
            "forge check one.toml other.toml",
            "forge check out/small/small-Q4_0.gguf",
            "forge check --twice promote.small",
        ],
    ),
    (
        Build,
        "plan",
        &[
            "forge plan",
            "forge plan promote.small",
            "forge plan other.toml eval.quality",
            "forge plan --check",
        ],
    ),
    (
        Build,
        "build",
        &[
            "forge build",
            "forge build promote.small eval.quality",
            "forge build other.toml promote.small",
            "forge build -f other.toml -k",
            "forge build --frozen",
        ],
    ),
    (
        Build,
        "clean",
        &[
            "forge clean --stale",
            "forge clean --stale --dry-run",
            "forge clean --stale --keep-tensors --yes",
            "forge clean -f other.toml",
        ],
    ),
    (
        Build,
        "lock",
        &["forge lock", "forge lock --check", "forge lock other.toml"],
    ),
    (
        Understand,
        "show",
        &["forge show", "forge show other.toml --format json"],
    ),
    (
        Understand,
        "graph",
        &["forge graph", "forge graph -f other.toml --format dot"],
    ),
    (
        Understand,
        "why",
        &[
            "forge why",
            "forge why promote.small",
            "forge why promote.small@Q4_K_M blk.3.ffn_down",
            "forge why -f other.toml eval.quality",
        ],
    ),
    (
        Understand,
        "log",
        &["forge log", "forge log -n 5", "forge log show last promote.small"],
    ),
    (
        Understand,
        "log show",
        &["forge log show", "forge log show last promote.small"],
    ),
    (Understand, "engine", &["forge engine"]),
    (Understand, "schema", &["forge schema > recipe.schema.json"]),
    (
        Compare,
        "table",
        &[
            "forge table",
            "forge table --sort kld --columns candidate,size,kld",
            "forge table --format csv > figures.csv",
            "forge table a/metrics.json b/metrics.json",
        ],
    ),
    (
        Compare,
        "diff",
        &[
            "forge diff HEAD~1:recipe.toml recipe.toml",
            "forge diff recipe.toml other.toml",
            "forge diff promote.small@Q4_0 promote.small@Q4_K_M",
            "forge diff out/a/a-Q4_0.gguf out/b/b-Q4_0.gguf",
            "forge diff --exit-code old.manifest.json new.manifest.json",
        ],
    ),
    (Compare, "policy", &[]),
    (
        Compare,
        "policy show",
        &[
            "forge policy show small-Q4_K_M",
            "forge policy show --by layer small-Q4_K_M -f other.toml",
            "forge policy show --by tensor downloaded.gguf",
        ],
    ),
    (
        Compare,
        "policy diff",
        &[
            "forge policy diff small-7bpw small-Q5_K_M",
            "forge policy diff --exit-code old.gguf new.gguf",
        ],
    ),
    (
        Compare,
        "policy chart",
        &[
            "forge policy chart",
            "forge policy chart --svg front.svg other/metrics.json",
        ],
    ),
    (
        Compare,
        "policy export",
        &[
            "forge policy export small-Q4_K_M > types.txt",
            "forge policy export --format rules small.gguf",
        ],
    ),
    (Compare, "policy import", &["forge policy import types.txt --name mine"]),
    (
        Compare,
        "policy groups",
        &[
            "forge policy groups model.gguf",
            "forge policy groups model.gguf --fuse attention",
        ],
    ),
    (
        Compare,
        "policy check",
        &["forge policy check out/small/*.certificate.json"],
    ),
    (
        Publish,
        "verify",
        &[
            "forge verify",
            "forge verify promote.small",
            "forge verify downloads --key publisher.pub",
        ],
    ),
    (
        Publish,
        "reproduce",
        &[
            "forge reproduce small.gguf.manifest.json",
            "forge reproduce small.gguf --search /data/models",
            "forge reproduce promote.small@Q4_K_M",
        ],
    ),
    (
        Publish,
        "sign",
        &[
            "forge sign out/small --key me.key",
            "forge sign small.gguf.manifest.json",
        ],
    ),
    (
        Publish,
        "bundle",
        &[
            "forge bundle out/small -o small.intoto.jsonl",
            "forge bundle small.gguf -o small.json --format sigstore",
        ],
    ),
    (Publish, "key", &[]),
    (Publish, "key new", &["forge key new me.key"]),
    (Publish, "key show", &["forge key show me.key.pub"]),
    (Store, "cache", &[]),
    (
        Store,
        "cache dir",
        &["forge cache dir", "forge cache dir --cache-dir /big/forge"],
    ),
    (Store, "cache size", &["forge cache size"]),
    (
        Store,
        "cache list",
        &["forge cache list", "forge cache list --kind tensor --older-than 30d"],
    ),
    (
        Store,
        "cache verify",
        &[
            "forge cache verify",
            "forge cache verify --sample 5%",
            "forge cache verify --repair recipe.toml",
        ],
    ),
    (
        Store,
        "cache gc",
        &["forge cache gc --dry-run", "forge cache gc --max-size 200GB --yes"],
    ),
    (
        Store,
        "cache pin",
        &["forge cache pin", "forge cache pin small.gguf.manifest.json"],
    ),
    (Store, "cache unpin", &["forge cache unpin small.gguf.manifest.json"]),
    (Store, "cache clean", &["forge cache clean", "forge cache clean --all"]),
    (
        Store,
        "exec",
        &[
            "forge exec action.json",
            "forge exec --commit --source model.gguf action.json",
        ],
    ),
];

/// Returns the command line's definition, with its help.
pub(super) fn command() -> Command {
    let command = without_empty_variables(Args::command());
    let width = environment::help_width();
    let listing = listing(&command, width);
    let command = with_examples(command, "").term_width(width);
    let header = command.get_styles().get_header().to_owned();
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{listing}{header}Options:{header:#}\n{{options}}{{after-help}}"
    ))
}

/// Makes variables that are empty count as unset.
fn without_empty_variables(command: Command) -> Command {
    command.mut_args(|arg| match arg.get_env().map(ToOwned::to_owned) {
        Some(name) if environment::variable(&name).is_none() => {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            // The help still names the variable.
            let help = format!("{help} [env: {}=]", name.display());
            arg.env(Resettable::Reset).help(help)
        }
        _ => arg,
    })
}

/// Returns the verbs, group by group, each with its description.
fn listing(command: &Command, width: usize) -> String {
    let styles = command.get_styles();
    let (header, literal) = (styles.get_header(), styles.get_literal());
    let indent = VERBS
        .iter()
        .filter(|(_, name, _)| is_top(name))
        .map(|(_, name, _)| name.len())
        .max();
    let indent = indent.unwrap_or(0) + 4;
    let mut text = String::new();
    for group in Group::ALL {
        let _ = writeln!(text, "{header}{}:{header:#}", group.title());
        for (_, name, _) in VERBS.iter().filter(|(of, name, _)| *of == group && is_top(name)) {
            let about = command.find_subcommand(name).and_then(Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let gap = " ".repeat(indent - 2 - name.len());
            let _ = write!(text, "  {literal}{name}{literal:#}{gap}");
            let lines = wrap(&about, width.saturating_sub(indent));
            let _ = writeln!(text, "{}", lines.join(&format!("\n{}", " ".repeat(indent))));
        }
        text.push('\n');
    }
    text
}

/// Breaks a text at spaces into lines of at most `width` columns; a longer word has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn is_top(name: &str) -> bool {
    !name.contains(' ')
}

/// Adds examples to every verb, and lets paragraphs of its help be as wide as the terminal.
fn with_examples(command: Command, path: &str) -> Command {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut after = one_line_paragraphs(&after);
    let examples = examples_of(path);
    if !examples.is_empty() {
        let header = command.get_styles().get_header();
        let mut text = format!("{header}Examples:{header:#}\n");
        for example in examples {
            let _ = writeln!(text, "  {example}");
        }
        after = if after.is_empty() {
            text
        } else {
            format!("{text}\n{after}")
        };
    }
    let command = command.mut_subcommands(|sub| {
        let name = format!("{path} {}", sub.get_name());
        with_examples(sub, name.trim_start())
    });
    if after.is_empty() {
        command
    } else {
        command.after_help(after.trim_end().to_owned())
    }
}

/// Returns the examples of a verb: its own, or the first one of each of its verbs.
fn examples_of(path: &str) -> Vec<&'static str> {
    let own = VERBS.iter().find(|(_, name, _)| *name == path);
    match own {
        Some((_, _, examples)) if !examples.is_empty() => examples.to_vec(),
        Some((_, parent, _)) => VERBS
            .iter()
            .filter(|(_, name, _)| name.strip_prefix(parent).is_some_and(|rest| rest.starts_with(' ')))
            .filter_map(|(_, _, examples)| examples.first().copied())
            .collect(),
        None => Vec::new(),
    }
}

/// Joins the lines of each paragraph; indented lines stay as they are.
fn one_line_paragraphs(text: &str) -> String {
    let mut joined = String::new();
    let mut may_join = false;
    for line in text.lines() {
        let is_prose = !line.is_empty() && !line.starts_with(' ');
        if !joined.is_empty() {
            joined.push(if may_join && is_prose { ' ' } else { '\n' });
        }
        joined.push_str(line);
        may_join = is_prose && !line.ends_with(':');
    }
    joined
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Returns the paths of all verbs below a command, but for clap's own `help`.
    fn verbs(command: &Command, path: &str) -> Vec<String> {
        let subcommands = command.get_subcommands().filter(|sub| sub.get_name() != "help");
        let below = subcommands.flat_map(|sub| {
            let name = format!("{path} {}", sub.get_name()).trim_start().to_owned();
            let mut all = verbs(sub, &name);
            all.push(name);
            all
        });
        below.collect()
    }

    /// Splits an example as a shell does, up to a redirection.
    fn words(example: &str) -> Vec<String> {
        let words = example.split(' ').take_while(|word| *word != ">");
        words.map(|word| word.trim_matches('\'').to_owned()).collect()
    }

    #[test]
    fn every_verb_is_in_one_group() {
        let known: BTreeSet<String> = verbs(&Args::command(), "").into_iter().collect();
        let listed: Vec<String> = VERBS.iter().map(|(_, name, _)| (*name).to_owned()).collect();
        let unique: BTreeSet<String> = listed.iter().cloned().collect();
        assert_eq!(unique.len(), listed.len(), "a verb is listed twice");
        assert_eq!(unique, known, "`VERBS` lists other verbs than there are");
    }

    #[test]
    fn every_verb_has_examples_that_parse_as_this_verb() {
        for (_, name, _) in VERBS {
            let examples = examples_of(name);
            assert!(!examples.is_empty(), "`{name}` has no example");
            for example in examples {
                assert!(example.len() <= 58, "`{example}` is too wide for 60 columns");
                let matches = command().try_get_matches_from(words(example));
                let matches = matches.unwrap_or_else(|error| panic!("{example}\n{error}"));
                let mut path = Vec::new();
                let mut at = &matches;
                while let Some((verb, below)) = at.subcommand() {
                    path.push(verb.to_owned());
                    at = below;
                }
                let path = path.join(" ");
                let is_below = path
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '));
                assert!(is_below, "`{example}` is an example of `{path}`, not of `{name}`");
            }
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn the_listing_fits_into_its_width() {
        for width in [40, 60, 80, 100] {
            let text = anstream::adapter::strip_str(&listing(&Args::command(), width)).to_string();
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            for group in Group::ALL {
                assert!(text.contains(&format!("{}:\n", group.title())), "{text}");
            }
        }
    }

    #[test]
    fn paragraphs_become_lines_and_the_rest_stays() {
        assert_eq!(
            one_line_paragraphs("one\ntwo\n\nthree:\n  a\n  b\nfour\n"),
            "one two\n\nthree:\n  a\n  b\nfour"
        );
    }
}
