//! Why a step runs, or when and why it ran last. The answer is a comparison of the action that would run with what the
//! step did last: field by field, and where a field is the digest of what a step before made, on down to the source, the
//! line of the recipe or the engine that began it (`docs/why.md`).

mod answer;
mod roots;
mod survey;
mod tensor;
mod trace;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::action::difference::Difference;
use crate::action::role::Origin;
use crate::digest::ActionDigest;
use crate::graph::Graph;
use crate::graph::NodeId;
use crate::plan;
use crate::plan::Reason;
use crate::runs;
use crate::runs::Began;
use crate::runs::Change;
use crate::runs::Ran;
use crate::scheduler;
use crate::step::Env;
use crate::step::StepError;
use crate::vocab::verdict::Verdict;

pub use answer::Answer;
pub use answer::Compared;
pub use answer::Detail;
pub use answer::Field;
pub use answer::Overview;
pub use answer::Root;
pub use answer::RootKind;
pub use answer::Tree;
pub use survey::ReadFiles;
pub use tensor::TensorError;

use survey::Known;
use survey::Survey;

/// How the causes came to a node, and the root causes.
type Explained = (Tree, Vec<Root>);

/// What a build would do about every node, and why.
pub struct Why<'a> {
    graph: &'a Graph,
    env: &'a Env<'a>,
    survey: Survey,
    /// What was explained already: many steps have the same causes.
    explained: RefCell<BTreeMap<NodeId, Arc<Explained>>>,
}

impl<'a> Why<'a> {
    /// Finds out what a build would do about every node. Reads source files with an unknown digest if `read` allows it, and only
    /// those that the `wanted` nodes need. The store keeps the digests, so that the build does not read the files again.
    ///
    /// # Errors
    ///
    /// [`StepError::Stopped`] if the user stopped it while a file was read.
    pub fn new(graph: &'a Graph, env: &'a Env<'a>, wanted: &[NodeId], read: ReadFiles) -> Result<Self, StepError> {
        let survey = Survey::of(graph, env, wanted, read)?;
        Ok(Self {
            graph,
            env,
            survey,
            explained: RefCell::default(),
        })
    }

    /// Returns what a build would do about everything: every root cause with the steps that follow from it.
    pub fn overview(&self) -> Overview {
        let mut overview = Overview::new(self.env.recipe.clone());
        for node in self.graph.nodes() {
            let step = node.id.to_string();
            let is_step = node.id.is_step();
            let verdict = self.known(&node.id).verdict;
            if is_step {
                overview.steps.push((step.clone(), verdict));
            }
            if !verdict.may_run() {
                continue;
            }
            for root in &self.explain(&node.id).1 {
                let at = overview.causes.iter().position(|(known, _)| known.is_same(root));
                let at = at.unwrap_or_else(|| {
                    overview.causes.push((root.clone(), Vec::new()));
                    overview.causes.len() - 1
                });
                if is_step && root.step.as_deref() != Some(step.as_str()) {
                    overview.causes[at].1.push(step.clone());
                }
            }
        }
        overview
    }

    /// Returns what a build would do about a node, and why.
    pub fn step(&self, id: &NodeId) -> Answer {
        let known = self.known(id);
        let (tree, roots) = (*self.explain(id)).clone();
        let mut answer = Answer::new(&self.env.recipe, id.to_string(), known.verdict, tree);
        answer.key = known.key().map(|key| key.to_string());
        answer.why = self.sentence(id, known);
        if known.verdict == Verdict::Hit {
            answer.last_ran = known.key().and_then(|key| self.last_ran(id, &key));
        }
        self.compare(id, known, &mut answer);
        answer.follows = self.follows(&roots);
        answer.roots = roots;
        answer
    }

    /// Returns when and why an action of a node ran last, with the steps before it that ran then for reasons of their own.
    fn last_ran(&self, id: &NodeId, key: &ActionDigest) -> Option<Ran> {
        let (mut ran, run) = runs::last_ran(self.env.store, key)?;
        let before: BTreeSet<String> = self
            .graph
            .only(std::slice::from_ref(id))
            .nodes()
            .map(|node| node.id.to_string())
            .collect();
        for step in run.steps {
            let Some(why) = step
                .why
                .filter(|_| step.step != ran.step && before.contains(&step.step))
            else {
                continue;
            };
            let kind = step.actions.last().map_or("", |action| action.kind.as_str());
            let own = |change: &Change| {
                let difference = Difference {
                    field: change.field.clone(),
                    before: change.before.clone(),
                    after: change.after.clone(),
                };
                difference.origin(kind) != Origin::Input
            };
            if step.changes.is_empty() || step.changes.iter().any(own) {
                ran.began.push(Began {
                    step: step.step,
                    why,
                    changes: step.changes.into_iter().filter(own).collect(),
                });
            }
        }
        Some(ran)
    }

    fn known(&self, id: &NodeId) -> &Known {
        self.survey.known(id)
    }

    fn sentence(&self, id: &NodeId, known: &Known) -> String {
        match (&known.error, &known.reason, known.waits.as_slice()) {
            (Some(error), ..) => error.to_string(),
            (None, Some(reason), _) => self.reason(id, known, reason),
            (None, None, []) => "its result is in the store".to_owned(),
            (None, None, waits) => {
                let unchanged = if waits.len() == 1 {
                    "the result of that is unchanged"
                } else {
                    "their results are unchanged"
                };
                format!("it {}, and runs unless {unchanged}", waiting(waits))
            }
        }
    }

    fn reason(&self, id: &NodeId, known: &Known, reason: &Reason) -> String {
        match reason {
            Reason::Forgotten => known.key().and_then(|key| self.removed(&key)),
            Reason::OutputGone => self
                .same_action(id, known)
                .map(|other| format!("it is new, but its result is that of `{other}`: only its files must be written")),
            _ => None,
        }
        .unwrap_or_else(|| scheduler::sentence(reason))
    }

    /// Returns the step that a step without a record shares its action with: it may have been renamed.
    fn same_action(&self, id: &NodeId, known: &Known) -> Option<String> {
        let store = self.env.store;
        if store.last(&self.env.recipe, &id.to_string()).is_some() {
            return None;
        }
        let key = known.key()?;
        let other = store
            .all_last()
            .unwrap_or_default()
            .into_iter()
            .find(|last| last.action == key)?;
        Some(if other.recipe == self.env.recipe {
            other.step
        } else {
            format!("{} of recipe {}", other.step, other.recipe)
        })
    }

    /// Says that a result once was there and was removed on purpose; nothing where no note of that is left.
    fn removed(&self, key: &ActionDigest) -> Option<String> {
        let tombstone = self.env.store.tombstone(key)?;
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(tombstone.removed);
        let why = match tombstone.why {
            crate::store::RemovalReason::Size => "to save disk space",
            crate::store::RemovalReason::Age => "because of its age",
            crate::store::RemovalReason::Incomplete => "because it was incomplete",
        };
        Some(format!(
            "its result was removed from the store on {} {why}",
            humantime::format_rfc3339_seconds(time)
        ))
    }

    /// Returns the steps that run, or may, for the same causes, other than those where the causes sit.
    fn follows(&self, roots: &[Root]) -> Vec<String> {
        let at: BTreeSet<&str> = roots.iter().filter_map(|root| root.step.as_deref()).collect();
        let mut follows = Vec::new();
        for node in self.graph.nodes() {
            let step = node.id.to_string();
            if !node.id.is_step() || at.contains(step.as_str()) {
                continue;
            }
            let runs = self.known(&node.id).verdict.may_run();
            if runs
                && self
                    .explain(&node.id)
                    .1
                    .iter()
                    .any(|root| roots.iter().any(|known| known.is_same(root)))
            {
                follows.push(step);
            }
        }
        follows
    }

    /// Fills in what the action was compared with, and the fields that differ.
    fn compare(&self, id: &NodeId, known: &Known, answer: &mut Answer) {
        let Some(action) = &known.action else { return };
        let step = id.to_string();
        let last = self.env.store.last(&self.env.recipe, &step);
        let before = match &last {
            Some(last) => plan::document_of(self.env.store, last).map(|action| (last.clone(), action)),
            None => self.nearest(id, action),
        };
        let Some((record, before)) = before else { return };
        answer.compared = Some(Compared {
            recipe: record.recipe.clone(),
            step: record.step.clone(),
            key: record.action.to_string(),
        });
        answer.fields = self.fields(id, &record, &before, action);
    }
}

fn waiting(waits: &[NodeId]) -> String {
    let names: Vec<String> = waits.iter().map(ToString::to_string).collect();
    format!("waits for {}", crate::prose::names(&names, 3))
}
