//! What would run, and why. One function decides for plans and builds alike, so that a plan never says what a build
//! does not do.

use std::sync::Arc;

use crate::action::Action;
use crate::action::difference;
use crate::action::difference::Difference;
use crate::digest::ActionDigest;
use crate::graph::Graph;
use crate::graph::Node;
use crate::step;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::StepError;
use crate::store::Lookup;

/// Why a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It never ran for this recipe.
    New,
    /// Files must be read before anything can be told.
    Unread {
        /// How many.
        files: usize,
        /// How long they are together.
        bytes: u64,
    },
    /// Its action is not the one that ran last.
    Changed(Vec<Difference>),
    /// Its result is known, but blobs of it are gone or damaged.
    Incomplete,
    /// Its result is known, but a file in the output folder is gone or was changed.
    OutputGone,
    /// It ran last as it would now, but its result is not in the store.
    Forgotten,
    /// Its result is known, and is to be made once more to compare.
    Again,
}

/// What is to be done about a node whose inputs are known.
#[derive(Debug, Clone)]
pub enum Decision {
    /// Nothing.
    Hit(Outcome),
    /// It runs.
    Miss(Reason),
}

/// What a plan says of a node.
#[derive(Debug, Clone)]
pub enum Status {
    /// Nothing is to be done.
    Hit {
        /// Its action.
        key: ActionDigest,
    },
    /// It would run.
    Miss {
        /// Its action, if that can be told.
        key: Option<ActionDigest>,
        /// Why.
        reason: Reason,
        /// What it would do.
        estimate: Estimate,
    },
    /// It waits for nodes that would run.
    Unknown {
        /// Their names.
        waits_for: Vec<String>,
    },
    /// It cannot be told.
    Failed {
        /// Why not.
        error: Arc<StepError>,
    },
}

/// A node and what a plan says of it.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The node, as users read it.
    pub node: String,
    /// Its status.
    pub status: Status,
}

/// A plan: every node of the graph, in the order of a build.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Plan {
    /// Returns whether a build would do nothing.
    pub fn is_fresh(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| matches!(entry.status, Status::Hit { .. }))
    }
}

/// Decides whether a node whose inputs are known must run.
pub fn decide(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Decision, StepError> {
    let kind = step::kind_of(node);
    let (action, files) = match kind.key(node, inputs, env)? {
        Key::Unread { paths, bytes } => {
            return Ok(Decision::Miss(Reason::Unread {
                files: paths.len(),
                bytes,
            }));
        }
        Key::Action { action, files } => (action, files),
    };
    let key = action.digest();
    let result = match env.store.find(&key)? {
        Lookup::Hit(result) => result,
        Lookup::Incomplete { .. } | Lookup::Damaged { .. } => return Ok(Decision::Miss(Reason::Incomplete)),
        Lookup::Absent => return Ok(Decision::Miss(why_absent(node, &action, env))),
    };
    if env.is_twice(&node.id.to_string()) {
        return Ok(Decision::Miss(Reason::Again));
    }
    let mut outcome = Outcome {
        key,
        result,
        ran: false,
        files,
    };
    if kind.intact(node, &mut outcome, inputs, env)? {
        Ok(Decision::Hit(outcome))
    } else {
        Ok(Decision::Miss(Reason::OutputGone))
    }
}

/// Compares an action that has no result with what the node did last.
fn why_absent(node: &Node, action: &Action, env: &Env<'_>) -> Reason {
    let Some(last) = env.store.last(&env.recipe, &node.id.to_string()) else {
        return Reason::New;
    };
    if last.action == action.digest() {
        return Reason::Forgotten;
    }
    let before = match env.store.read(&last.document, 16 << 20) {
        Ok(document) => Action::parse(&document).ok(),
        Err(_) => None,
    };
    match before {
        Some(before) => Reason::Changed(difference::differences(&before, action)),
        None => Reason::New,
    }
}

/// Plans a build without reading a source or writing anything.
pub fn plan(graph: &Graph, env: &Env<'_>) -> Plan {
    let mut known = Inputs::default();
    let mut plan = Plan::default();
    for node in graph.nodes() {
        let waits_for: Vec<String> = graph
            .inputs(&node.id)
            .into_iter()
            .filter(|id| known.of(id).is_err())
            .map(ToString::to_string)
            .collect();
        let status = if waits_for.is_empty() {
            match decide(node, &known, env) {
                Ok(Decision::Hit(outcome)) => {
                    let key = outcome.key;
                    known.insert(node.id.clone(), Arc::new(outcome));
                    Status::Hit { key }
                }
                Ok(Decision::Miss(reason)) => miss(node, &known, env, reason),
                Err(error) => Status::Failed { error: Arc::new(error) },
            }
        } else {
            Status::Unknown { waits_for }
        };
        plan.entries.push(Entry {
            node: node.id.to_string(),
            status,
        });
    }
    plan
}

fn miss(node: &Node, known: &Inputs, env: &Env<'_>, reason: Reason) -> Status {
    let kind = step::kind_of(node);
    let estimated = kind
        .estimate(node, known, env)
        .and_then(|estimate| Ok((estimate, kind.key(node, known, env)?)));
    match estimated {
        Ok((estimate, Key::Action { action, .. })) => Status::Miss {
            key: Some(action.digest()),
            reason,
            estimate,
        },
        Ok((estimate, Key::Unread { .. })) => Status::Miss {
            key: None,
            reason,
            estimate,
        },
        Err(error) => Status::Failed { error: Arc::new(error) },
    }
}
