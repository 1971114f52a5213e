//! What would run, and why. Plans and builds use the same function to decide, so a plan predicts what a build does.

use std::sync::Arc;

use crate::action::Action;
use crate::action::ActionResult;
use crate::action::difference;
use crate::action::difference::Difference;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::graph::Graph;
use crate::graph::Node;
use crate::observer::Time;
use crate::report::gate::Check;
use crate::step;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::output;
use crate::store::Lookup;
use crate::store::StepRecord;
use crate::store::Store;
use crate::vocab::verdict::Counts;
use crate::vocab::verdict::Verdict;

/// The maximum size of an action's document, in bytes.
const ACTION_CAP: u64 = 16 << 20;

/// Why a node runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// It has never run for this recipe.
    New,
    /// Files must be read before its action is known.
    Unread {
        /// The number of files.
        files: usize,
        /// Their total size in bytes.
        bytes: u64,
    },
    /// Its action differs from the one that ran last.
    Changed(Vec<Difference>),
    /// The store has its result, but blobs of it are missing or damaged.
    Incomplete,
    /// The store has its result, but a file of it is not in the output folder.
    OutputGone,
    /// The store has its result, but a file of it in the output folder was changed.
    OutputChanged,
    /// The store has its result, which says that requirements are not met. It fails again, so that the build does.
    Unmet(Vec<Check>),
    /// Its output is unchanged, but the manifest beside it is missing, was edited, or is inconsistent. Only the manifest is
    /// written.
    ManifestGone,
    /// Its action is the one that ran last, but the store no longer has the result.
    Forgotten,
    /// The store has its result; it runs once more to compare (`--twice`).
    Again,
}

impl Reason {
    /// Returns whether the store has the result, and only files beside it are to be written.
    pub fn has_result(&self) -> bool {
        matches!(
            self,
            Self::OutputGone | Self::OutputChanged | Self::Unmet(_) | Self::ManifestGone
        )
    }
}

/// Whether a node whose inputs are known must run.
#[derive(Debug, Clone)]
pub enum Decision {
    /// It does not run.
    Hit(Outcome),
    /// The store has everything that its files are made of: they only have to be written to the output folder.
    Write(Reason),
    /// It runs.
    Miss(Reason),
}

/// The state of a node in a plan.
#[derive(Debug, Clone)]
pub enum Status {
    /// It does not run.
    Hit {
        /// Its action.
        key: ActionDigest,
    },
    /// Its result is in the store, and only files of it would be written to the output folder.
    Write {
        /// Its action.
        key: ActionDigest,
        /// The reason.
        reason: Reason,
        /// The names of the files.
        files: Vec<String>,
        /// The estimated work.
        estimate: Estimate,
    },
    /// It would run.
    Miss {
        /// Its action, if it is known.
        key: Option<ActionDigest>,
        /// The reason.
        reason: Reason,
        /// The estimated work.
        estimate: Estimate,
    },
    /// It depends on nodes that would run.
    Unknown {
        /// Their names.
        waits_for: Vec<String>,
        /// The work that it would begin with, if the headers of sources determine it.
        expected: Option<Estimate>,
    },
    /// Its state cannot be determined.
    Failed {
        /// The reason.
        error: Arc<StepError>,
    },
}

/// A node and its state in a plan.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name of the node.
    pub node: String,
    /// Whether it counts as a step ([`NodeId::is_step`](crate::graph::NodeId::is_step)).
    pub is_step: bool,
    /// The state.
    pub status: Status,
    /// How long it would take, if it would run.
    pub time: Option<Time>,
}

/// A plan: all nodes of a graph, in build order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The nodes.
    pub entries: Vec<Entry>,
    /// How long all of them would take.
    pub time: Time,
    /// The most bytes on disk that it would need at once, in the store and the output folder, as far as it is known.
    pub disk: u64,
    /// The most memory that it would need at once, in bytes: models, and what is computed with them.
    pub memory: u64,
}

impl Status {
    /// Returns the word for it.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Hit { .. } => Verdict::Hit,
            Self::Write { .. } => Verdict::Write,
            Self::Miss { .. } => Verdict::Miss,
            Self::Unknown { .. } => Verdict::Unknown,
            Self::Failed { .. } => Verdict::Failed,
        }
    }
}

impl Plan {
    /// Counts the steps.
    pub fn counts(&self) -> Counts<Verdict> {
        let steps = self.entries.iter().filter(|entry| entry.is_step);
        steps.map(|entry| entry.status.verdict()).collect()
    }

    /// Returns the number of sources, which are not steps, that a build would read.
    pub fn sources_to_read(&self) -> usize {
        let sources = self.entries.iter().filter(|entry| !entry.is_step);
        sources.filter(|entry| entry.status.verdict() != Verdict::Hit).count()
    }

    /// Returns whether a build would do nothing.
    pub fn is_fresh(&self) -> bool {
        self.entries.iter().all(|entry| entry.status.verdict() == Verdict::Hit)
    }
}

/// The decision about a node whose inputs are known.
#[derive(Debug, Clone)]
pub struct Assessment {
    /// Its action and the files that it names; `None` if files must be read before it is known.
    pub action: Option<(Box<Action>, Vec<SourceFile>)>,
    /// Whether it must run.
    pub decision: Decision,
    /// The recorded result, if there is one although the node must run: running the same action gives the same result.
    pub expected: Option<Outcome>,
    /// The blobs that are missing from its result.
    pub missing: Vec<BlobDigest>,
}

/// Decides whether a node whose inputs are known must run.
pub fn decide(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Decision, StepError> {
    Ok(assess(node, inputs, env)?.decision)
}

/// Decides whether a node whose inputs are known must run, and returns the reasons.
pub fn assess(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Assessment, StepError> {
    let kind = step::kind_of(node);
    let (action, files) = match kind.key(node, inputs, env)? {
        Key::Unread { paths, bytes } => {
            return Ok(Assessment {
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
        wrote: false,
        files: files.clone(),
    };
    let mut missing = Vec::new();
    let mut expected = None;
    let decision = match env.store.find(&key)? {
        Lookup::Hit(result) if env.is_repeated(&node.id.to_string()) => {
            expected = Some(outcome(result));
            Decision::Miss(Reason::Again)
        }
        Lookup::Hit(result) => {
            let outcome = outcome(result);
            let decision = with_result(node, &outcome, inputs, env)?;
            if !matches!(decision, Decision::Hit(_)) {
                expected = Some(outcome);
            }
            decision
        }
        Lookup::Incomplete { result, missing: lost } => {
            missing = lost;
            expected = Some(outcome(result));
            Decision::Miss(Reason::Incomplete)
        }
        Lookup::Damaged { .. } => Decision::Miss(Reason::Incomplete),
        Lookup::Absent => {
            // A tombstone still has the outputs of a collected result.
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
    Ok(Assessment {
        action: Some((action, files)),
        decision,
        expected,
        missing,
    })
}

/// Decides about a node whose complete result is in the store: its files may have to be written, or its requirements are not met.
pub fn with_result(node: &Node, outcome: &Outcome, inputs: &Inputs, env: &Env<'_>) -> Result<Decision, StepError> {
    let kind = step::kind_of(node);
    let mut outcome = outcome.clone();
    if kind.intact(node, &mut outcome, inputs, env)? {
        return Ok(Decision::Hit(outcome));
    }
    let unmet = kind.unmet(&outcome, env)?;
    if !unmet.is_empty() {
        return Ok(Decision::Miss(Reason::Unmet(unmet)));
    }
    let writing = kind.estimate_writing(node, &outcome, inputs, env);
    let names = kind.output_names(node, Some(&outcome), env.only_table);
    let reason = if names.iter().all(|name| output::is_there(env, name)) {
        Reason::OutputChanged
    } else {
        Reason::OutputGone
    };
    Ok(if writing.is_ok_and(|estimate| estimate.missing == 0) {
        Decision::Write(reason)
    } else {
        Decision::Miss(reason)
    })
}

/// Compares an action without a result with the action that the node ran last.
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

/// Returns the action in a step's record: its document from the store or, if the result was collected, from its tombstone.
pub fn document_of(store: &Store, last: &StepRecord) -> Option<Action> {
    let kept = store.read(&last.document, ACTION_CAP).ok();
    let left = || store.tombstone(&last.action)?.document;
    let document = kept.or_else(|| left().map(String::into_bytes))?;
    Action::parse(&document).ok()
}

/// Plans a build without reading a source or writing anything.
pub fn plan(graph: &Graph, env: &Env<'_>) -> Plan {
    survey(graph, env).0
}

/// Plans a build; also returns the results of the nodes that would not run.
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
            match assess(node, &known, env) {
                Ok(assessment) => {
                    let (status, outcome) = status_of(node, &known, env, assessment);
                    if let Some(outcome) = outcome {
                        known.insert(node.id.clone(), Arc::new(outcome));
                    }
                    status
                }
                Err(error) => Status::Failed { error: Arc::new(error) },
            }
        } else {
            Status::Unknown {
                waits_for,
                expected: None,
            }
        };
        plan.entries.push(Entry {
            node: node.id.to_string(),
            is_step: node.id.is_step(),
            status,
            time: None,
        });
    }
    (plan, known)
}

/// Returns the status of a node whose inputs are known, and its result, if the store has it.
fn status_of(node: &Node, known: &Inputs, env: &Env<'_>, assessment: Assessment) -> (Status, Option<Outcome>) {
    match (assessment.decision, assessment.expected) {
        (Decision::Hit(outcome), _) => (Status::Hit { key: outcome.key }, Some(outcome)),
        (Decision::Write(reason), Some(outcome)) => {
            let kind = step::kind_of(node);
            let status = match kind.estimate_writing(node, &outcome, known, env) {
                Ok(estimate) => Status::Write {
                    key: outcome.key,
                    reason,
                    files: kind.output_names(node, Some(&outcome), env.only_table),
                    estimate,
                },
                Err(error) => Status::Failed { error: Arc::new(error) },
            };
            (status, Some(outcome))
        }
        // What depends on it needs its result, not its files.
        (Decision::Miss(reason @ (Reason::OutputGone | Reason::OutputChanged)), outcome) => {
            (miss(node, known, env, reason), outcome)
        }
        (Decision::Write(reason) | Decision::Miss(reason), _) => (miss(node, known, env, reason), None),
    }
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
