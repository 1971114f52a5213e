//! What would run, and why. One function decides for plans and builds alike, so that a plan never says what a build
//! does not do.

use std::sync::Arc;

use crate::action::Action;
use crate::action::ActionResult;
use crate::action::difference;
use crate::action::difference::Difference;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::graph::Graph;
use crate::graph::Node;
use crate::step;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::store::Last;
use crate::store::Lookup;
use crate::store::Store;

/// No action's document is longer.
const ACTION_CAP: u64 = 16 << 20;

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
    /// Its output is as it should be, but the manifest beside it is gone, was edited, or contradicts itself: only that is
    /// written.
    ManifestGone,
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
        /// What it would do to begin with, where headers of sources tell that already.
        foreseen: Option<Estimate>,
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

/// A node whose inputs are known, as it is judged.
#[derive(Debug, Clone)]
pub struct Judged {
    /// Its action and the files that stand in it; nothing where files must be read before it can be told.
    pub action: Option<(Box<Action>, Vec<SourceFile>)>,
    /// What is to be done.
    pub decision: Decision,
    /// What it would give when it runs, where that is on record though its result is no hit: the same action gives the
    /// same.
    pub expected: Option<Outcome>,
    /// The blobs that its result lacks.
    pub missing: Vec<BlobDigest>,
}

/// Decides whether a node whose inputs are known must run.
pub fn decide(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Decision, StepError> {
    Ok(judge(node, inputs, env)?.decision)
}

/// Decides whether a node whose inputs are known must run, and returns what that rests on.
pub fn judge(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Judged, StepError> {
    let kind = step::kind_of(node);
    let (action, files) = match kind.key(node, inputs, env)? {
        Key::Unread { paths, bytes } => {
            return Ok(Judged {
                action: None,
                decision: Decision::Miss(Reason::Unread {
                    files: paths.len(),
                    bytes,
                }),
                expected: None,
                missing: Vec::new(),
            });
        }
        Key::Action { action, files } => (action, files),
    };
    let key = action.digest();
    let outcome = |result| Outcome {
        key,
        result,
        ran: false,
        files: files.clone(),
    };
    let mut missing = Vec::new();
    let mut expected = None;
    let decision = match env.store.find(&key)? {
        Lookup::Hit(result) if env.is_twice(&node.id.to_string()) => {
            expected = Some(outcome(result));
            Decision::Miss(Reason::Again)
        }
        Lookup::Hit(result) => {
            let mut outcome = outcome(result);
            if kind.intact(node, &mut outcome, inputs, env)? {
                Decision::Hit(outcome)
            } else {
                expected = Some(outcome);
                Decision::Miss(Reason::OutputGone)
            }
        }
        Lookup::Incomplete { result, missing: lost } => {
            missing = lost;
            expected = Some(outcome(result));
            Decision::Miss(Reason::Incomplete)
        }
        Lookup::Damaged { .. } => Decision::Miss(Reason::Incomplete),
        Lookup::Absent => {
            // What a result that was removed on purpose named is still known.
            expected = env.store.tombstone(&key).map(|left| {
                outcome(ActionResult {
                    schema: ActionResult::SCHEMA,
                    action: action.document_digest(),
                    outputs: left.outputs,
                    cost_ms: left.cost_ms,
                    facts: left.facts,
                })
            });
            Decision::Miss(why_absent(node, &action, env))
        }
    };
    Ok(Judged {
        action: Some((action, files)),
        decision,
        expected,
        missing,
    })
}

/// Compares an action that has no result with what the node did last.
fn why_absent(node: &Node, action: &Action, env: &Env<'_>) -> Reason {
    let Some(last) = env.store.last(&env.recipe, &node.id.to_string()) else {
        return Reason::New;
    };
    if last.action == action.digest() {
        return Reason::Forgotten;
    }
    match document_of(env.store, &last) {
        Some(before) => Reason::Changed(difference::differences(&before, action)),
        None => Reason::New,
    }
}

/// Returns the action of a step's record: its document from the store or, where the result was removed on purpose, from
/// what was left of it.
pub fn document_of(store: &Store, last: &Last) -> Option<Action> {
    let kept = store.read(&last.document, ACTION_CAP).ok();
    let left = || store.tombstone(&last.action)?.document;
    let document = kept.or_else(|| left().map(String::into_bytes))?;
    Action::parse(&document).ok()
}

/// Plans a build without reading a source or writing anything.
pub fn plan(graph: &Graph, env: &Env<'_>) -> Plan {
    survey(graph, env).0
}

/// Plans a build, and returns what the nodes have made that are done, too.
pub fn survey(graph: &Graph, env: &Env<'_>) -> (Plan, Inputs) {
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
            Status::Unknown {
                waits_for,
                foreseen: None,
            }
        };
        plan.entries.push(Entry {
            node: node.id.to_string(),
            status,
        });
    }
    (plan, known)
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
