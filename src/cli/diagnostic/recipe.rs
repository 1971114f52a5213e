//! The words for what is wrong with a recipe or a settings file: labels at places, and what to do.

use crate::cli::diagnostic::Diagnostic;
use crate::cli::diagnostic::Hint;
use crate::cli::diagnostic::Label;
use crate::cli::diagnostic::Level;
use crate::prose;
use crate::prose::nearest;
use crate::quantity::Quantity;
use crate::quantity::QuantityProblem;
use crate::recipe::Place;
use crate::recipe::RecipeError;
use crate::recipe::RecipeWarning;
use crate::requirement::Figure;
use crate::requirement::RequirementProblem;
use crate::session::Findings;
use crate::session::Problem;
use crate::session::engines::EngineProblem;
use crate::session::engines::EngineProblemKind;
use crate::syntax::error::ExtendsProblem;
use crate::syntax::names::MAX_NAME;

/// No more problems of one file are shown.
const SHOWN: usize = 20;
/// No more names of one kind are listed in a hint.
const LISTED: usize = 50;

impl Diagnostic {
    /// Words an error of a recipe.
    pub fn recipe(error: &RecipeError) -> Self {
        Self::spanned(error, "recipe")
    }

    /// Words an error of a settings file.
    pub fn settings(error: &RecipeError) -> Self {
        Self::spanned(error, "settings")
    }

    /// Words what is wrong with a recipe: the first 20 errors, and how many more there are.
    pub fn recipe_errors(errors: &[RecipeError]) -> Vec<Self> {
        first(errors, Self::recipe, "recipe", Level::Error)
    }

    /// Words what is wrong with a settings file: the first 20 errors, and how many more there are.
    pub fn settings_errors(errors: &[RecipeError]) -> Vec<Self> {
        first(errors, Self::settings, "settings", Level::Error)
    }

    /// Words the warnings about a recipe: the first 20, and how many more there are.
    pub fn recipe_warnings(warnings: &[RecipeWarning]) -> Vec<Self> {
        first(warnings, Self::recipe_warning, "recipe", Level::Warning)
    }

    /// Words what is wrong with the use of an engine.
    pub fn engine(problem: &EngineProblem) -> Self {
        let name = &problem.engine.name;
        let mut diagnostic = match &problem.what {
            EngineProblemKind::Unknown { known } => {
                let mut unknown = Self::error(format!("there is no engine `{name}`")).code("recipe::unknown-engine");
                if let Some(near) = nearest(name, known.iter().map(String::as_str)) {
                    unknown = unknown.hint(format!("did you mean `{near}`?"));
                }
                unknown.hint(format!("available engines: {}", prose::names(known, LISTED)))
            }
            EngineProblemKind::LacksCapability {
                capability,
                step,
                alternatives,
                ..
            } => {
                let what = format!("the engine `{name}` cannot {capability}, which `{step}` needs");
                let lacks = Self::error(what).code("recipe::engine-lacks");
                if alternatives.is_empty() {
                    lacks.hint("no available engine can")
                } else {
                    lacks.hint(format!(
                        "name another engine in that section: {}",
                        prose::names(alternatives, LISTED)
                    ))
                }
            }
        };
        let label = |place: &Place, text: &str| Label {
            place: place.clone(),
            text: text.to_owned(),
        };
        diagnostic.primary = Some(label(&problem.engine.origin, "the engine is named here"));
        if let EngineProblemKind::LacksCapability { place, .. } = &problem.what {
            diagnostic.context = vec![label(place, "this step needs it")];
        }
        diagnostic
    }

    /// Describes why a build is refused.
    pub fn findings(findings: &Findings) -> Vec<Self> {
        let problems = findings.problems.iter().map(Self::problem);
        problems.chain(Self::overlaps(&findings.overlaps)).collect()
    }

    /// Describes what would make a step fail.
    fn problem(problem: &Problem) -> Self {
        let message = match &problem.step {
            Some(step) => format!("`{step}`: {}", problem.message),
            None => problem.message.clone(),
        };
        let code = if problem.step.is_some() {
            "build::problem"
        } else {
            "environment::output"
        };
        let error = Self::error(message).code(code);
        problem.hint.clone().into_iter().fold(error, Self::hint)
    }

    fn spanned(error: &RecipeError, group: &str) -> Self {
        let mut diagnostic = Self::error(error.to_string()).code(format!("{group}::{}", error.code()));
        diagnostic.primary = Some(Label {
            place: error.place().clone(),
            text: label(error),
        });
        diagnostic.context = context(error);
        diagnostic.hints = hints(error);
        diagnostic
    }

    /// Words a warning about a recipe.
    pub fn recipe_warning(warning: &RecipeWarning) -> Self {
        let mut diagnostic = Self::error(warning.to_string()).code(format!("recipe::{}", warning.code()));
        diagnostic.level = Level::Warning;
        let text = match warning {
            RecipeWarning::Unused { .. } => "declared here".to_owned(),
        };
        diagnostic.primary = Some(Label {
            place: warning.place().clone(),
            text,
        });
        match warning {
            RecipeWarning::Unused { user, .. } => diagnostic
                .hints
                .push(Hint::Text(format!("to use it, name it in {user}"))),
        }
        diagnostic
    }
}

/// Words the first problems of a file. A generated file may have 100,000: nobody reads them, and each excerpt costs a
/// pass over the text.
fn first<P>(problems: &[P], word: impl Fn(&P) -> Diagnostic, group: &str, level: Level) -> Vec<Diagnostic> {
    let mut diagnostics: Vec<Diagnostic> = problems.iter().take(SHOWN).map(word).collect();
    let more = problems.len() - diagnostics.len();
    if more > 0 {
        let what = if level == Level::Error { "error" } else { "warning" };
        let message = format!("and {}", prose::count(more as u64, &format!("more {what}")));
        let mut diagnostic = Diagnostic::error(message).code(format!("{group}::more"));
        diagnostic.level = level;
        diagnostics.push(diagnostic);
    }
    diagnostics
}

/// Returns the text for the primary place.
fn label(error: &RecipeError) -> String {
    match error {
        RecipeError::UnknownSection { .. } => "no such kind of section".to_owned(),
        RecipeError::UnnamedSection { .. } => "no name".to_owned(),
        RecipeError::UnknownKey { missing: Some(key), .. } => format!("unknown key, and `{key}` is missing"),
        RecipeError::UnknownKey { .. } => "unknown key".to_owned(),
        RecipeError::MisplacedKey { .. } => "it has no effect here".to_owned(),
        RecipeError::MissingKey { key, .. } | RecipeError::NoDefault { key, .. } => format!("`{key}` is missing"),
        RecipeError::Conflict { .. } => "and this".to_owned(),
        RecipeError::WrongType { expected, .. } => format!("expected {expected}"),
        RecipeError::UnknownWord { what, .. } => format!("expected {what}"),
        RecipeError::OutOfRange { .. } => "out of range".to_owned(),
        RecipeError::EmptyList { .. } => "expected at least one value".to_owned(),
        RecipeError::WrongLength { found, .. } => format!("{found} here"),
        RecipeError::UnknownReference { wanted, .. } => format!("no {wanted} has this name"),
        RecipeError::WrongSource { wanted, .. } => format!("expected {wanted}"),
        RecipeError::Duplicate { .. } => "the second is here".to_owned(),
        RecipeError::BadQuantity { example, .. } => format!("expected something like \"{example}\""),
        RecipeError::UnreachableRule { .. } => "never reached".to_owned(),
        RecipeError::NoFigure { figure, .. } => format!("needs `{figure}`"),
        RecipeError::ModelMismatch { other, .. } => format!("for the model `{other}`"),
        RecipeError::NotSingle { .. } => "expected one of them".to_owned(),
        RecipeError::Cycle { path, .. } => {
            let next = path.get(1).or(path.first()).map_or("", |(name, _)| name);
            format!("depends on `{next}`")
        }
        RecipeError::TooMany { limit, .. } => format!("at most {limit}"),
        _ => String::new(),
    }
}

/// Returns other places that matter.
fn context(error: &RecipeError) -> Vec<Label> {
    let label = |place: &Place, text: &str| Label {
        place: place.clone(),
        text: text.to_owned(),
    };
    match error {
        RecipeError::MisplacedKey {
            instead: Some(place), ..
        } => vec![label(place, "because of this")],
        RecipeError::MissingKey {
            because: Some(place), ..
        } => vec![label(place, "needed for this")],
        RecipeError::Conflict { first, .. } => vec![label(first, "this")],
        RecipeError::WrongLength {
            expected, other_place, ..
        } => vec![label(other_place, &format!("{expected} here"))],
        RecipeError::UnknownReference {
            name, declared, other, ..
        } => {
            if let Some((kind, place)) = other {
                return vec![label(place, &format!("a {kind} has this name"))];
            }
            let near = nearest(name, declared.iter().map(|(name, _)| name.as_str()));
            let near = near.and_then(|near| declared.iter().find(|(name, _)| name == near));
            near.map(|(_, place)| label(place, "a similar name is declared here"))
                .into_iter()
                .collect()
        }
        RecipeError::WrongSource { found, declared, .. } => vec![label(declared, &format!("declared as {found}"))],
        RecipeError::NoDefault { declared, .. } => declared
            .iter()
            .take(4)
            .map(|(_, place)| label(place, "it could be this"))
            .collect(),
        RecipeError::Duplicate { first, .. } => vec![label(first, "the first is here")],
        RecipeError::UnreachableRule { earlier, .. } => vec![label(earlier, "this rule matches its tensors first")],
        RecipeError::NoFigure {
            metrics: Some(place), ..
        } => vec![label(place, "its figures come from here")],
        RecipeError::ModelMismatch { declared, .. } => vec![label(declared, "declared here")],
        RecipeError::Cycle { path, place } => path
            .iter()
            .enumerate()
            .filter(|(_, (_, other))| other != place)
            .map(|(at, (_, place))| {
                let (next, _) = &path[(at + 1) % path.len()];
                label(place, &format!("depends on `{next}`"))
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// An edit of a whole value or key.
fn patch(place: &Place, replacement: String, meant: &str) -> Hint {
    Hint::Patch {
        text: format!("did you mean `{meant}`?"),
        place: place.clone(),
        replacement,
    }
}

fn text(text: impl Into<String>) -> Hint {
    Hint::Text(text.into())
}

fn available<S: AsRef<str>>(words: &[S]) -> String {
    format!(
        "there {} {}",
        if words.len() == 1 { "is" } else { "are" },
        listed(words)
    )
}

fn listed<S: AsRef<str>>(words: &[S]) -> String {
    prose::names(words, LISTED)
}

/// A line that adds a key below the header of a section, if the section has a header on a line of its own.
fn add_line(place: &Place, line: &str) -> Option<Hint> {
    let source = place.source.text();
    let start = source.get(..place.span.start)?.rfind('\n').map_or(0, |at| at + 1);
    let rest = source.get(start..)?;
    let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
    let header = rest.get(..length)?;
    // The top of a recipe has no header: the line goes before its first.
    let at = if place.span.start == place.span.end {
        0
    } else {
        start + length
    };
    if at > 0 && !header.trim_start().starts_with('[') {
        return None;
    }
    let gap = if at > 0 && !header.ends_with('\n') { "\n" } else { "" };
    let place = Place::new(&place.source, at..at);
    Some(Hint::Patch {
        text: format!("add `{line}`"),
        place,
        replacement: format!("{gap}{line}\n"),
    })
}

fn hints(error: &RecipeError) -> Vec<Hint> {
    match error {
        RecipeError::UnknownSection { place, found, known } => match nearest(found, known.iter().copied()) {
            Some(near) => vec![patch(place, near.to_owned(), near)],
            None => vec![text(available(known))],
        },
        RecipeError::UnnamedSection { kind, .. } => vec![text(format!("give it a name: `[{kind}.NAME]`"))],
        RecipeError::UnknownKey {
            place,
            found,
            known,
            missing,
            ..
        } => match missing.or_else(|| nearest(found, known.iter().copied())) {
            Some(near) => vec![patch(place, near.to_owned(), near)],
            None => vec![text(format!("its keys are {}", listed(known)))],
        },
        RecipeError::MisplacedKey { .. } => vec![text("remove it")],
        RecipeError::MissingKey { place, example, .. } => {
            vec![add_line(place, example).unwrap_or_else(|| text(format!("add `{example}`")))]
        }
        RecipeError::NeedsOneOf { keys, .. } if keys.contains(&"merge") => vec![text(
            "`corpus` collects it by running the model, `merge` makes it from others, `source` reads a file",
        )],
        RecipeError::UnknownWord {
            place, found, known, ..
        } => match nearest(found, known.iter().copied()) {
            Some(near) => vec![patch(place, format!("\"{near}\""), near)],
            None => vec![text(format!("it can be {}", prose::choice(known, LISTED)))],
        },
        RecipeError::Reserved { available, .. } => vec![text(format!("this version has {}", listed(available)))],
        RecipeError::Schema { .. } => vec![text("use a version of forge that reads this schema")],
        RecipeError::BadName { .. } => vec![text(format!(
            "names become file names: letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`, at most {MAX_NAME} bytes"
        ))],
        RecipeError::UnknownReference {
            place,
            name,
            wanted,
            declared,
            other,
            ..
        } => {
            let names: Vec<&str> = declared.iter().map(|(name, _)| name.as_str()).collect();
            let section = if wanted == "candidate" { "promote" } else { wanted };
            match nearest(name, names.iter().copied()) {
                Some(near) => vec![patch(place, format!("\"{near}\""), near)],
                None if names.is_empty() || other.is_some() => {
                    vec![text(format!("declare it with `[{section}.{}]`", bare(name)))]
                }
                None => vec![text(available(&names))],
            }
        }
        RecipeError::WrongSource { .. } => vec![text("a source's `kind` says what the file contains")],
        RecipeError::NoDefault { declared, what, .. } if declared.is_empty() => vec![text(match *what {
            "candidate" => "a `[promote.NAME]` section makes candidates",
            "model source" => "a `[source.NAME]` section with `path = \"model.gguf\"` names a model",
            _ => "declare one",
        })],
        RecipeError::NoDefault { key, declared, .. } => {
            let names: Vec<&str> = declared.iter().map(|(name, _)| name.as_str()).collect();
            vec![text(format!("add `{key}` with one of {}", listed(&names)))]
        }
        RecipeError::Duplicate { only_case: true, .. } => {
            vec![text(
                "some file systems ignore upper and lower case: choose other names",
            )]
        }
        RecipeError::Duplicate { what: "candidate", .. } => {
            vec![text(
                "a variant is named after its section and its value: rename one of the sections",
            )]
        }
        RecipeError::Conflict { .. } | RecipeError::Duplicate { .. } => vec![text("remove one of them")],
        RecipeError::BadQuantity {
            place,
            text: written,
            problem,
            example,
            ..
        } => match problem {
            _ if example.ends_with('%') => vec![text(format!("write a percentage like `\"{example}\"`"))],
            QuantityProblem::UnknownUnit {
                found,
                nearest: Some(near),
            } => {
                let fixed = format!("\"{}\"", written.replacen(found.as_str(), near, 1));
                vec![patch(place, fixed, near)]
            }
            QuantityProblem::UnknownUnit { .. } | QuantityProblem::NoUnit => {
                vec![text(format!(
                    "units are {}",
                    listed(&Quantity::units().collect::<Vec<_>>())
                ))]
            }
            _ => vec![text(format!("write something like `\"{example}\"`"))],
        },
        RecipeError::BadGlob { .. } => vec![text(
            "`*` and `?` match within a name, `**/` any directories; `[` opens a set",
        )],
        RecipeError::UnreachableRule { .. } => vec![text("the first rule that matches wins: move it up, or remove it")],
        RecipeError::BadRequirement { place, problem, .. } => requirement_hints(place, problem),
        RecipeError::NoFigure { .. } => vec![text(
            "an `[eval.NAME]` of these candidates, with `kld = true`, measures it",
        )],
        RecipeError::NeedsImatrix { declared, .. } if declared.is_empty() => {
            vec![text(
                "collect one with an `[imatrix.NAME]` section, and name it with `imatrix = \"NAME\"`",
            )]
        }
        RecipeError::NeedsImatrix { declared, .. } => {
            vec![text(format!("name one with `imatrix`: {}", available(declared)))]
        }
        RecipeError::ModelMismatch { model, .. } => vec![text(format!("declare a join for the model `{model}`"))],
        RecipeError::NotSingle { labels, .. } => vec![text(format!("name one of {}", listed(labels)))],
        RecipeError::Cycle { path, .. } if path.iter().any(|(name, _)| name.starts_with("policy.")) => {
            let who = if path.len() == 1 { "it" } else { "one of them" };
            vec![text(format!("give {who} a budget in bytes or bits per weight"))]
        }
        RecipeError::Cycle { .. } => vec![text("take one of them out of the other's `merge`")],
        RecipeError::Extends {
            problem: ExtendsProblem::Load(_),
            ..
        } => {
            vec![text("paths are relative to the recipe that contains them")]
        }
        _ => Vec::new(),
    }
}

/// Returns a name as a TOML key.
fn bare(name: &str) -> String {
    let plain = !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
    if plain { name.to_owned() } else { "NAME".to_owned() }
}

fn requirement_hints(place: &Place, problem: &RequirementProblem) -> Vec<Hint> {
    let form = || {
        text(
            "a requirement is `FIGURE < BOUND`, with `<`, `<=`, `>` or `>=`; BOUND is a number, `baseline` or `1.05 * baseline`",
        )
    };
    match problem {
        RequirementProblem::UnknownFigure {
            nearest: Some(near), ..
        } => vec![patch(place, (*near).to_owned(), near)],
        RequirementProblem::UnknownFigure { .. } => {
            vec![text(format!(
                "figures are {}",
                listed(&Figure::ALL.map(Figure::as_str))
            ))]
        }
        RequirementProblem::Quantity(QuantityProblem::UnknownUnit {
            nearest: Some(near), ..
        }) => {
            vec![text(format!("did you mean `{near}`?"))]
        }
        RequirementProblem::Quantity(_) | RequirementProblem::WrongUnit { .. } => {
            vec![text(
                "sizes have units like `MiB`, `bpw` has `bpw`, shares have `%`, everything else has none",
            )]
        }
        _ => vec![form()],
    }
}
