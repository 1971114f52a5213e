//! What is answered, as data: `forge.why.v2`.

use serde::Serialize;

use crate::action::role::Origin;
use crate::runs::Ran;
use crate::vocab::verdict::Counts;
use crate::vocab::verdict::Verdict;

/// The version of the documents.
const SCHEMA: &str = "forge.why.v2";

/// What began it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootKind {
    /// A source file was changed.
    Source,
    /// A source file must be read first.
    Unread,
    /// The recipe was changed.
    Recipe,
    /// The engine was changed.
    Engine,
    /// forge itself was changed: the form of a document, or its rules.
    Forge,
    /// It never ran for this recipe.
    New,
    /// A file in the output folder is gone or was changed.
    Output,
    /// A requirement was not met when the gate ran last.
    Gate,
    /// Blobs of the result are gone or damaged.
    Lost,
    /// The result was removed from the store on purpose.
    Collected,
    /// The result is not in the store.
    Forgotten,
    /// There is no record of the previous run.
    Unrecorded,
    /// Unknown, because of an error.
    Error,
}

/// A thing that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detail {
    /// What.
    pub name: String,
    /// How it was; nothing where it was not there.
    pub before: Option<String>,
    /// How it is.
    pub after: Option<String>,
}

/// A root cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    /// Where it sits; nothing for an engine, which is the same for all.
    pub step: Option<String>,
    /// What it is.
    pub cause: RootKind,
    /// In words.
    pub what: String,
    /// What exactly differs, the most telling first.
    pub details: Vec<Detail>,
}

impl Root {
    /// Returns whether both are the same cause, however each was found.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.step, self.cause, &self.what) == (&other.step, other.cause, &other.what)
    }
}

/// How a cause came to a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tree {
    /// The step.
    pub step: String,
    /// What of it is not what it was.
    pub what: String,
    /// The steps before that are behind it.
    pub causes: Vec<Tree>,
}

/// A field in which two actions differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Field {
    /// Its path in the document.
    pub field: String,
    /// The value before, as JSON.
    pub before: Option<String>,
    /// The value now.
    pub after: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// The step that made it.
    pub from: Option<String>,
}

/// What an action was compared with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The recipe.
    pub recipe: String,
    /// The step.
    pub step: String,
    /// Its action.
    pub key: String,
}

/// Why a step or a tensor runs, or when and why it ran last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The version of this form.
    pub schema: &'static str,
    /// The recipe's name.
    pub recipe: String,
    /// The step.
    pub step: String,
    /// The tensor, where one was asked for.
    pub tensor: Option<String>,
    /// What a build would do.
    pub verdict: Verdict,
    /// The action's key, if it is known.
    pub key: Option<String>,
    /// In words.
    pub why: String,
    /// The root causes.
    pub roots: Vec<Root>,
    /// The steps that run, or may, for the same causes.
    pub follows: Vec<String>,
    /// How the causes came to the step.
    pub tree: Tree,
    /// What the action was compared with.
    pub compared: Option<Compared>,
    /// The fields that differ.
    pub fields: Vec<Field>,
    /// When the action ran last, where nothing runs.
    pub last_ran: Option<Ran>,
}

impl Answer {
    pub(super) fn new(recipe: &str, step: String, verdict: Verdict, tree: Tree) -> Self {
        Self {
            schema: SCHEMA,
            recipe: recipe.to_owned(),
            step,
            tensor: None,
            verdict,
            key: None,
            why: String::new(),
            roots: Vec::new(),
            follows: Vec::new(),
            tree,
            compared: None,
            fields: Vec::new(),
            last_ran: None,
        }
    }
}

/// What a build of the whole recipe would do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overview {
    /// The version of this form.
    pub schema: &'static str,
    /// The recipe's name.
    pub recipe: String,
    /// What a build would do about every step.
    pub steps: Vec<(String, Verdict)>,
    /// Every root cause, with the steps that run, or may, because of it.
    pub causes: Vec<(Root, Vec<String>)>,
}

impl Overview {
    pub(super) fn new(recipe: String) -> Self {
        Self {
            schema: SCHEMA,
            recipe,
            steps: Vec::new(),
            causes: Vec::new(),
        }
    }

    /// Counts the steps.
    pub fn counts(&self) -> Counts<Verdict> {
        self.steps.iter().map(|(_, verdict)| *verdict).collect()
    }
}
