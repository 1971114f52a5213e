//! What can be wrong with a recipe: facts and places. `cli::diagnostic` writes the excerpts and the fixes.

use std::sync::Arc;

use crate::prose::listed;
use crate::quantity::QuantityProblem;
use crate::requirement::Figure;
use crate::requirement::RequirementProblem;
use crate::syntax::id::Place;
use crate::syntax::names::NameProblem;

/// Why a file named by `extends` could not be loaded, as a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LoadError {
    /// What went wrong, as a clause: `there is no such file`.
    pub message: String,
}

/// One thing that is wrong with a recipe (or with a settings file), and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML.
    #[error("{message}")]
    Syntax {
        /// Where the parser gave up.
        place: Place,
        /// What it says.
        message: String,
    },
    /// A table of a kind that does not exist.
    #[error("there is no section kind `{found}`")]
    UnknownSection {
        /// The word.
        place: Place,
        /// The word.
        found: String,
        /// All kinds.
        known: Vec<&'static str>,
    },
    /// `[policy]` where `[policy.NAME]` must stand.
    #[error("a `{kind}` section needs a name")]
    UnnamedSection {
        /// The kind's word.
        place: Place,
        /// The kind.
        kind: String,
    },
    /// A key that does not exist in its section.
    #[error("{section} has no key `{found}`")]
    UnknownKey {
        /// The key.
        place: Place,
        /// The key.
        found: String,
        /// The section in words: "`policy.small`", "a recipe".
        section: String,
        /// All keys there.
        known: Vec<&'static str>,
        /// The required key that is missing and was likely meant.
        missing: Option<&'static str>,
    },
    /// A key that is not allowed with the other keys of its section.
    #[error("`{key}` is not allowed in {section}: it needs {belongs_to}")]
    MisplacedKey {
        /// The key.
        place: Place,
        /// The key.
        key: String,
        /// The section in words.
        section: String,
        /// What it needs.
        belongs_to: String,
        /// What the section says instead.
        instead: Option<Place>,
    },
    /// A required key that is not there.
    #[error("{section} needs the key `{key}`")]
    MissingKey {
        /// The section's name.
        place: Place,
        /// The section in words.
        section: String,
        /// The key.
        key: &'static str,
        /// A line that would do.
        example: &'static str,
        /// What makes the key necessary, if not the section itself.
        because: Option<Place>,
    },
    /// None of several keys is there, of which there must be one.
    #[error("{section} needs one of {}", listed(keys))]
    NeedsOneOf {
        /// The section's name.
        place: Place,
        /// The section in words.
        section: String,
        /// The keys.
        keys: Vec<&'static str>,
    },
    /// Two keys exclude each other.
    #[error("{section} has both `{first_key}` and `{second_key}`")]
    Conflict {
        /// The section in words.
        section: String,
        /// The first key.
        first: Place,
        /// The first key.
        first_key: &'static str,
        /// The second key.
        second: Place,
        /// The second key.
        second_key: &'static str,
    },
    /// A value of the wrong TOML type.
    #[error("`{key}` must be {expected}, not {found}")]
    WrongType {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// What must stand there.
        expected: String,
        /// What does.
        found: &'static str,
    },
    /// A word that is not among those allowed.
    #[error("`{key}` can't be `{found}`")]
    UnknownWord {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// The word.
        found: String,
        /// What such words are: "a mix of llama.cpp".
        what: String,
        /// All that are allowed.
        known: Vec<&'static str>,
    },
    /// A word that the language keeps for later.
    #[error("{key} `{found}` is not available in this version")]
    Reserved {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// The word.
        found: String,
        /// What is available.
        available: Vec<&'static str>,
    },
    /// A number outside its limits.
    #[error("`{key}` must be {expected}, not {found}")]
    OutOfRange {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// The limits in words.
        expected: String,
        /// As written.
        found: String,
    },
    /// A version of the language that is not known.
    #[error("this recipe has schema {found}, this program reads schema {known}")]
    Schema {
        /// The value.
        place: Place,
        /// As written.
        found: String,
        /// The version that is read.
        known: u32,
    },
    /// A list with nothing in it.
    #[error("`{key}` is empty")]
    EmptyList {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
    },
    /// A list of the wrong length.
    #[error("`{key}` has {found} values, but `{other}` has {expected}")]
    WrongLength {
        /// The value.
        place: Place,
        /// Its key.
        key: &'static str,
        /// How many values it has.
        found: usize,
        /// How many it must have.
        expected: usize,
        /// The key that it goes with.
        other: &'static str,
        /// That key's value.
        other_place: Place,
    },
    /// An invalid name.
    #[error("`{name}` can't be the name of {what}: {problem}")]
    BadName {
        /// The name.
        place: Place,
        /// The name.
        name: String,
        /// Of what.
        what: String,
        /// Why.
        problem: NameProblem,
    },
    /// A name that nothing declares.
    #[error("{user} refers to the {wanted} `{name}`, which is not declared")]
    UnknownReference {
        /// The name.
        place: Place,
        /// The name.
        name: String,
        /// The section that refers.
        user: String,
        /// What is looked for: "corpus", "candidate".
        wanted: String,
        /// What there is of that, with places. Shared: many references may be wrong.
        declared: Arc<[(String, Place)]>,
        /// Something else of this name: its kind and place.
        other: Option<(String, Place)>,
    },
    /// A source of the wrong kind.
    #[error("{user} needs {wanted}, and the source `{name}` is {found}")]
    WrongSource {
        /// The name.
        place: Place,
        /// The name.
        name: String,
        /// The section that refers.
        user: String,
        /// "a model", "an imatrix".
        wanted: &'static str,
        /// The same of what it is.
        found: &'static str,
        /// Where the source is declared.
        declared: Place,
    },
    /// A key is missing and has no unambiguous default.
    #[error("{section} must say which {what} it means: there {}", count_of(declared.len()))]
    NoDefault {
        /// The section's name.
        place: Place,
        /// The section in words.
        section: String,
        /// The key.
        key: &'static str,
        /// What it refers to.
        what: &'static str,
        /// What there is of that, with places.
        declared: Vec<(String, Place)>,
    },
    /// One name twice.
    #[error("there are two {what}s named `{name}`")]
    Duplicate {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// The first.
        first: Place,
        /// The second.
        second: Place,
        /// Whether they differ in the case of letters.
        only_case: bool,
    },
    /// A number with a unit that can't be read.
    #[error("`{key}`: {problem}")]
    BadQuantity {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// As written.
        text: String,
        /// Why.
        problem: QuantityProblem,
        /// What such a value looks like.
        example: &'static str,
    },
    /// An invalid regular expression.
    #[error("`{pattern}` is not a regular expression: {message}")]
    BadRegex {
        /// The value, or the part of it that is wrong.
        place: Place,
        /// As written.
        pattern: String,
        /// Why.
        message: String,
    },
    /// An invalid file pattern.
    #[error("`{pattern}` is not a file pattern: {message}")]
    BadGlob {
        /// The value, or the character in it that is wrong.
        place: Place,
        /// As written.
        pattern: String,
        /// Why.
        message: &'static str,
    },
    /// An invalid path.
    #[error("`{key}` is not a path: {problem}")]
    BadPath {
        /// The value.
        place: Place,
        /// Its key.
        key: String,
        /// Why.
        problem: &'static str,
    },
    /// A rule that can never apply.
    #[error("this rule is never reached: {why}")]
    UnreachableRule {
        /// The rule's pattern.
        place: Place,
        /// Why.
        why: &'static str,
        /// The rule that takes all its tensors.
        earlier: Place,
    },
    /// A requirement that can't be read.
    #[error("`{text}` is not a requirement: {problem}")]
    BadRequirement {
        /// The part of the value that is wrong.
        place: Place,
        /// As written.
        text: String,
        /// Why.
        problem: RequirementProblem,
    },
    /// A requirement on a figure that nothing measures.
    #[error("nothing measures `{figure}` for {section}: {why}")]
    NoFigure {
        /// The requirement.
        place: Place,
        /// The gate in words.
        section: String,
        /// The figure.
        figure: Figure,
        /// Why.
        why: String,
        /// The section that could.
        metrics: Option<Place>,
    },
    /// A mix that needs importance data, without any.
    #[error("the mix `{mix}` needs an imatrix")]
    NeedsImatrix {
        /// The mix.
        place: Place,
        /// The mix.
        mix: &'static str,
        /// Imatrix steps that there are.
        declared: Vec<String>,
    },
    /// Things that belong to different models.
    #[error("{user} uses the model `{model}`, but {input} uses `{other}`")]
    ModelMismatch {
        /// The reference.
        place: Place,
        /// The section that refers.
        user: String,
        /// Its model.
        model: String,
        /// The step that it refers to.
        input: String,
        /// That step's model.
        other: String,
        /// Where that step is declared.
        declared: Place,
    },
    /// A name that means several steps where one must stand.
    #[error("`{key}` must name one candidate, but `{name}` has {count}")]
    NotSingle {
        /// The name.
        place: Place,
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
        /// How many it is.
        count: usize,
        /// Their names.
        labels: Vec<String>,
    },
    /// Steps that depend on each other.
    #[error("{}", waiting(path))]
    Cycle {
        /// The first name in the text.
        place: Place,
        /// Each with the place where it names the next; the last names the first.
        path: Vec<(String, Place)>,
    },
    /// A sweep with too many variants.
    #[error("{what} has {count} variants, more than the maximum of {limit}")]
    TooMany {
        /// The section's name.
        place: Place,
        /// The section in words, or "the recipe".
        what: String,
        /// How many (saturating).
        count: usize,
        /// The maximum number.
        limit: usize,
    },
    /// A file that `extends` names, and that can't be used.
    #[error("can't extend `{path}`: {problem}")]
    Extends {
        /// The value of `extends`.
        place: Place,
        /// As written.
        path: String,
        /// Why.
        problem: ExtendsProblem,
    },
}

/// Why a file can't be extended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExtendsProblem {
    /// It can't be loaded.
    #[error("{0}")]
    Load(LoadError),
    /// It extends itself, directly or through others.
    #[error("it extends itself: {}", path.join(" -> "))]
    Cycle {
        /// The files, relative to the first; the last is the first again.
        path: Vec<String>,
    },
    /// Too many files extend each other.
    #[error("more than {0} files extend each other")]
    TooDeep(usize),
}

impl RecipeError {
    /// Returns the stable word for this kind of error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "syntax",
            Self::UnknownSection { .. } => "unknown-section",
            Self::UnnamedSection { .. } => "unnamed-section",
            Self::UnknownKey { .. } => "unknown-key",
            Self::MisplacedKey { .. } => "misplaced-key",
            Self::MissingKey { .. } => "missing-key",
            Self::NeedsOneOf { .. } => "needs-one-of",
            Self::Conflict { .. } => "conflict",
            Self::WrongType { .. } => "wrong-type",
            Self::UnknownWord { .. } => "unknown-value",
            Self::Reserved { .. } => "not-available",
            Self::OutOfRange { .. } => "out-of-range",
            Self::Schema { .. } => "unknown-schema",
            Self::EmptyList { .. } => "empty-list",
            Self::WrongLength { .. } => "wrong-length",
            Self::BadName { .. } => "bad-name",
            Self::UnknownReference { .. } => "unknown-reference",
            Self::WrongSource { .. } => "wrong-source",
            Self::NoDefault { .. } => "no-default",
            Self::Duplicate { .. } => "duplicate",
            Self::BadQuantity { .. } => "bad-quantity",
            Self::BadRegex { .. } => "bad-regex",
            Self::BadGlob { .. } => "bad-pattern",
            Self::BadPath { .. } => "bad-path",
            Self::UnreachableRule { .. } => "unreachable-rule",
            Self::BadRequirement { .. } => "bad-requirement",
            Self::NoFigure { .. } => "no-figure",
            Self::NeedsImatrix { .. } => "needs-imatrix",
            Self::ModelMismatch { .. } => "model-mismatch",
            Self::NotSingle { .. } => "not-single",
            Self::Cycle { .. } => "cycle",
            Self::TooMany { .. } => "too-many",
            Self::Extends { .. } => "extends",
        }
    }

    /// Returns the place that the error is about.
    pub fn place(&self) -> &Place {
        match self {
            Self::Syntax { place, .. }
            | Self::UnknownSection { place, .. }
            | Self::UnnamedSection { place, .. }
            | Self::UnknownKey { place, .. }
            | Self::MisplacedKey { place, .. }
            | Self::MissingKey { place, .. }
            | Self::NeedsOneOf { place, .. }
            | Self::Conflict { second: place, .. }
            | Self::WrongType { place, .. }
            | Self::UnknownWord { place, .. }
            | Self::Reserved { place, .. }
            | Self::OutOfRange { place, .. }
            | Self::Schema { place, .. }
            | Self::EmptyList { place, .. }
            | Self::WrongLength { place, .. }
            | Self::BadName { place, .. }
            | Self::UnknownReference { place, .. }
            | Self::WrongSource { place, .. }
            | Self::NoDefault { place, .. }
            | Self::Duplicate { second: place, .. }
            | Self::BadQuantity { place, .. }
            | Self::BadRegex { place, .. }
            | Self::BadGlob { place, .. }
            | Self::BadPath { place, .. }
            | Self::UnreachableRule { place, .. }
            | Self::BadRequirement { place, .. }
            | Self::NoFigure { place, .. }
            | Self::NeedsImatrix { place, .. }
            | Self::ModelMismatch { place, .. }
            | Self::NotSingle { place, .. }
            | Self::TooMany { place, .. }
            | Self::Cycle { place, .. }
            | Self::Extends { place, .. } => place,
        }
    }
}

fn waiting(path: &[(String, Place)]) -> String {
    let names: Vec<&str> = path.iter().map(|(name, _)| name.as_str()).collect();
    match names.as_slice() {
        [only] => format!("`{only}` depends on itself"),
        several => format!("{} depend on each other", listed(several)),
    }
}

fn count_of(count: usize) -> String {
    match count {
        0 => "is none".to_owned(),
        1 => "is one".to_owned(),
        many => format!("are {many}"),
    }
}
