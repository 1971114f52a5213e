//! What a build would do about every node, as far as that is known.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::action::Action;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::graph::Graph;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::plan;
use crate::plan::Assessment;
use crate::plan::Decision;
use crate::plan::Reason;
use crate::step;
use crate::step::Class;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::store::ReadFile;
use crate::vocab::verdict::Verdict;

/// Which source files to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFiles {
    /// Those whose digest is not known.
    Unknown,
    /// None.
    Never,
}

/// What is known of a node.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) verdict: Verdict,
    /// Why it runs.
    pub(super) reason: Option<Reason>,
    /// The action that would run, or whose result is there.
    pub(super) action: Option<Action>,
    /// The user's files that stand in it.
    pub(super) files: Vec<ReadFile>,
    /// The nodes that it waits for.
    pub(super) waits: Vec<NodeId>,
    /// The action that would run if the inputs had their last results. Differences in it, except in their digests, are certain.
    pub(super) provisional: Option<Action>,
    /// The blobs that its result lacks.
    pub(super) missing: Vec<BlobDigest>,
    /// Its outcome, if that is known.
    pub(super) outcome: Option<Arc<Outcome>>,
    pub(super) error: Option<Arc<StepError>>,
}

impl Known {
    fn new(verdict: Verdict) -> Self {
        Self {
            verdict,
            reason: None,
            action: None,
            files: Vec::new(),
            waits: Vec::new(),
            provisional: None,
            missing: Vec::new(),
            outcome: None,
            error: None,
        }
    }

    pub(super) fn key(&self) -> Option<ActionDigest> {
        self.action.as_ref().map(Action::digest)
    }
}

pub(super) struct Survey {
    nodes: BTreeMap<NodeId, Known>,
    pub(super) outcomes: Inputs,
    nothing: Known,
}

impl Survey {
    pub(super) fn of(graph: &Graph, env: &Env<'_>, wanted: &[NodeId], files: ReadFiles) -> Result<Self, StepError> {
        let needed: BTreeSet<NodeId> = match wanted {
            [] => graph.nodes().map(|node| node.id.clone()).collect(),
            wanted => graph.only(wanted).nodes().map(|node| node.id.clone()).collect(),
        };
        let mut survey = Self {
            nodes: BTreeMap::new(),
            outcomes: Inputs::default(),
            nothing: Known::new(Verdict::Failed),
        };
        for node in graph.nodes() {
            let read = files == ReadFiles::Unknown && needed.contains(&node.id);
            let known = survey.inspect(graph, env, node, read)?;
            if let Some(outcome) = &known.outcome {
                survey.outcomes.insert(node.id.clone(), Arc::clone(outcome));
            }
            survey.nodes.insert(node.id.clone(), known);
        }
        Ok(survey)
    }

    pub(super) fn known(&self, id: &NodeId) -> &Known {
        self.nodes.get(id).unwrap_or(&self.nothing)
    }

    fn inspect(&self, graph: &Graph, env: &Env<'_>, node: &Node, read: bool) -> Result<Known, StepError> {
        let waits: Vec<NodeId> = graph
            .inputs(&node.id)
            .into_iter()
            .filter(|id| self.outcomes.of(id).is_err())
            .cloned()
            .collect();
        if !waits.is_empty() {
            let has_error = waits.iter().any(|id| self.known(id).verdict == Verdict::Failed);
            return Ok(Known {
                waits,
                provisional: self.provisional(graph, env, node),
                ..Known::new(if has_error { Verdict::Failed } else { Verdict::Unknown })
            });
        }
        let assessment = plan::assess(node, &self.outcomes, env).and_then(|assessment| {
            // A step without a record has nothing to compare with, so its files need not be read.
            let compares = env.store.last(&env.recipe, &node.id.to_string()).is_some();
            if assessment.action.is_none() && read && compares {
                self.read(node, env)?;
                plan::assess(node, &self.outcomes, env)
            } else {
                Ok(assessment)
            }
        });
        match assessment {
            Ok(assessment) => self.restored(node, env, assessment),
            Err(error) if error.class() == Class::Stopped => Err(error),
            Err(error) => Ok(Known {
                error: Some(Arc::new(error)),
                ..Known::new(Verdict::Failed)
            }),
        }
    }

    /// Returns the action of a node that waits, with what its inputs gave last where it is not known what they give.
    fn provisional(&self, graph: &Graph, env: &Env<'_>, node: &Node) -> Option<Action> {
        let mut inputs = Inputs::default();
        for id in graph.inputs(&node.id) {
            let outcome = if let Some(outcome) = &self.known(id).outcome {
                Arc::clone(outcome)
            } else {
                let last = env.store.last(&env.recipe, &id.to_string())?;
                Arc::new(Outcome {
                    key: last.action,
                    result: env.store.lookup_shallow(&last.action).ok()??,
                    ran: false,
                    wrote: false,
                    files: Vec::new(),
                })
            };
            inputs.insert(id.clone(), outcome);
        }
        match step::kind_of(node).key(node, &inputs, env).ok()? {
            Key::Action { action, .. } => Some(*action),
            Key::Unread { .. } => None,
        }
    }

    /// Takes into account that earlier nodes may restore the missing blobs of a result.
    fn restored(&self, node: &Node, env: &Env<'_>, assessment: Assessment) -> Result<Known, StepError> {
        let comes_back = |blob: &BlobDigest| {
            let runs = self.nodes.values().filter(|known| known.verdict == Verdict::Miss);
            let mut outcomes = runs.filter_map(|known| known.outcome.as_ref());
            outcomes.any(|outcome| outcome.result.outputs.values().any(|output| output == blob))
        };
        let is_restored = !assessment.missing.is_empty() && assessment.missing.iter().all(comes_back);
        let Some(outcome) = assessment.expected.clone().filter(|_| is_restored) else {
            return Ok(known_of(env, assessment));
        };
        let decision = plan::with_result(node, &outcome, &self.outcomes, env)?;
        Ok(known_of(env, Assessment { decision, ..assessment }))
    }

    /// Reads the user's files of a node. A source is inspected as in a build, since only that tells what later steps
    /// depend on; of other files only the digests are wanted.
    fn read(&self, node: &Node, env: &Env<'_>) -> Result<(), StepError> {
        let kind = step::kind_of(node);
        if matches!(node.id, NodeId::Source(_)) {
            let work = env.context(&node.id, &self.outcomes);
            return kind.run(node, &self.outcomes, env, &work).map(|_| ());
        }
        if let Key::Unread { paths, .. } = kind.key(node, &self.outcomes, env)? {
            for path in &paths {
                SourceFile::read(env.store, path, &|_| {})?;
            }
        }
        Ok(())
    }
}

fn known_of(env: &Env<'_>, assessment: Assessment) -> Known {
    let mut known = Known::new(Verdict::Hit);
    if let Some((action, files)) = assessment.action {
        known.action = Some(*action);
        known.files = env.named(&files);
    }
    known.missing = assessment.missing;
    match assessment.decision {
        Decision::Hit(outcome) => known.outcome = Some(Arc::new(outcome)),
        Decision::Write(reason) => {
            known.verdict = Verdict::Write;
            known.reason = Some(reason);
            known.outcome = assessment.expected.map(Arc::new);
        }
        Decision::Miss(reason) => {
            known.verdict = Verdict::Miss;
            known.reason = Some(reason);
            known.outcome = assessment.expected.map(Arc::new);
        }
    }
    known
}
