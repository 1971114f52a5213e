//! From a step that runs down to what began it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Explained;
use super::Why;
use super::answer::Field;
use super::answer::Root;
use super::answer::RootKind;
use super::answer::Tree;
use super::survey::Known;
use crate::action::Action;
use crate::action::difference;
use crate::action::difference::Difference;
use crate::action::role::Origin;
use crate::digest::ActionDigest;
use crate::graph::NodeId;
use crate::plan;
use crate::plan::Reason;
use crate::prose;
use crate::store::StepRecord;
use crate::vocab::verdict::Verdict;

/// Steps depend on each other less deeply than this; what is deeper is a record that names itself.
const DEEPEST: usize = 64;

impl Why<'_> {
    /// Returns how a node's causes came to it, and the root causes.
    pub(super) fn explain(&self, id: &NodeId) -> Arc<Explained> {
        if let Some(known) = self.explained.borrow().get(id) {
            return Arc::clone(known);
        }
        let mut roots = Vec::new();
        let tree = self.explained(id, &mut roots, 0);
        let found = Arc::new((tree, roots));
        self.explained.borrow_mut().insert(id.clone(), Arc::clone(&found));
        found
    }

    fn explained(&self, id: &NodeId, roots: &mut Vec<Root>, depth: usize) -> Tree {
        let known = self.known(id);
        let step = id.to_string();
        let mut tree = Tree {
            step: step.clone(),
            what: self.sentence(id, known),
            causes: Vec::new(),
        };
        if depth > DEEPEST {
            return tree;
        }
        if !known.waits.is_empty() {
            tree.what = super::waiting(&known.waits);
            for wait in known
                .waits
                .iter()
                .filter(|wait| self.known(wait).verdict != Verdict::Hit)
            {
                tree.causes.push(self.explained(wait, roots, depth + 1));
            }
            self.own_changes(&step, known, roots);
            return tree;
        }
        let reason = match (known.verdict, &known.reason) {
            (Verdict::Failed, _) => {
                push(roots, self.root(&step, RootKind::Error, tree.what.clone()));
                return tree;
            }
            // A source has nothing to run: that it was read is all there is to it.
            (Verdict::Hit, _) if matches!(id, NodeId::Source(_)) => {
                let last = self.env.store.last(&self.env.recipe, &step);
                return match last.filter(|last| known.key().is_some_and(|key| key != last.action)) {
                    Some(last) => self.changed(id, &last, roots, depth),
                    None => tree,
                };
            }
            (_, Some(reason)) => reason,
            _ => return tree,
        };
        match reason {
            Reason::Changed(_) => {
                if let Some(last) = self.env.store.last(&self.env.recipe, &step) {
                    return self.changed(id, &last, roots, depth);
                }
            }
            // Nobody asks why a check makes it again.
            Reason::Again | Reason::ManifestGone => {}
            Reason::New => push(roots, self.root(&step, RootKind::New, tree.what.clone())),
            Reason::Unread { .. } => push(roots, self.root(&step, RootKind::Unread, tree.what.clone())),
            Reason::OutputGone | Reason::OutputChanged => {
                let renamed = self.same_action(id, known).is_some();
                let cause = if renamed { RootKind::New } else { RootKind::Output };
                push(roots, self.root(&step, cause, tree.what.clone()));
            }
            Reason::Unmet(_) => push(roots, self.root(&step, RootKind::Gate, tree.what.clone())),
            Reason::Incomplete => push(roots, Self::lost(&step, known)),
            Reason::Forgotten => {
                let collected = known.key().and_then(|key| self.removed(&key)).is_some();
                let cause = if collected {
                    RootKind::Collected
                } else {
                    RootKind::Forgotten
                };
                push(roots, self.root(&step, cause, tree.what.clone()));
            }
        }
        tree
    }

    /// Finds what is certain to differ in a node that waits: all but what the steps before make.
    fn own_changes(&self, step: &str, known: &Known, roots: &mut Vec<Root>) {
        let last = self.env.store.last(&self.env.recipe, step);
        let before = last.and_then(|last| plan::document_of(self.env.store, &last));
        let (Some(before), Some(now)) = (before, &known.provisional) else {
            return;
        };
        let differences = difference::differences(&before, now);
        let of = |origin: Origin| -> Vec<&Difference> {
            let all = differences.iter();
            all.filter(|difference| difference.origin(now.kind()) == origin)
                .collect()
        };
        for (origin, cause) in [(Origin::Recipe, RootKind::Recipe), (Origin::Forge, RootKind::Forge)] {
            let fields = of(origin);
            if !fields.is_empty() {
                push(roots, self.root_of_fields(step, cause, &fields));
            }
        }
        for difference in of(Origin::Engine) {
            push(roots, self.root_of_engine(difference));
        }
    }

    /// Compares what a node does now with what it did at a time, and follows what differs down to its roots.
    pub(super) fn changed(&self, id: &NodeId, before: &StepRecord, roots: &mut Vec<Root>, depth: usize) -> Tree {
        let known = self.known(id);
        let step = id.to_string();
        let leaf = |what: String| Tree {
            step: step.clone(),
            what,
            causes: Vec::new(),
        };
        let Some(now) = &known.action else {
            return self.explained(id, roots, depth + 1);
        };
        let Some(action) = plan::document_of(self.env.store, before) else {
            let what = "what it did before is no longer recorded".to_owned();
            push(roots, self.root(&step, RootKind::Unrecorded, what.clone()));
            return leaf(what);
        };
        let differences = difference::differences(&action, now);
        let mut names: Vec<&str> = differences
            .iter()
            .map(|difference| difference.field.trim_start_matches("inputs."))
            .collect();
        names.dedup();
        let mut tree = leaf(format!("{} changed", prose::names(&names, 3)));
        let mut inputs: BTreeMap<NodeId, Option<ActionDigest>> = BTreeMap::new();
        let mut of_recipe = Vec::new();
        let mut of_forge = Vec::new();
        let mut of_source = false;
        for difference in &differences {
            match difference.origin(now.kind()) {
                Origin::Source => of_source = true,
                Origin::Recipe => of_recipe.push(difference),
                Origin::Forge => of_forge.push(difference),
                Origin::Engine => push(roots, self.root_of_engine(difference)),
                Origin::Input => match self.made_by(id, before, difference) {
                    Some(input) => {
                        let key = before.inputs.get(&input.to_string()).copied();
                        inputs.insert(input, key);
                    }
                    None => of_recipe.push(difference),
                },
            }
        }
        if of_source {
            push(roots, self.root_of_source(id, before, known));
        }
        if !of_recipe.is_empty() {
            push(roots, self.root_of_fields(&step, RootKind::Recipe, &of_recipe));
        }
        if !of_forge.is_empty() {
            push(roots, self.root_of_fields(&step, RootKind::Forge, &of_forge));
        }
        for (input, key) in inputs {
            if let Some(cause) = self.input(id, before, &input, key, roots, depth) {
                tree.causes.push(cause);
            }
        }
        tree
    }

    /// Explains an input that is not what it was.
    pub(super) fn input(
        &self,
        id: &NodeId,
        before: &StepRecord,
        input: &NodeId,
        key: Option<ActionDigest>,
        roots: &mut Vec<Root>,
        depth: usize,
    ) -> Option<Tree> {
        let known = self.known(input);
        let Some(key) = key else {
            push(roots, self.root_of_inputs(id, before));
            return None;
        };
        if depth > DEEPEST {
            return None;
        }
        if known.key() == Some(key) {
            // The same action, and other outputs: it ran again and gave something else.
            let what = "its result differs from the one before, although nothing that it depends on changed".to_owned();
            push(roots, self.root(&input.to_string(), RootKind::Unrecorded, what));
            return None;
        }
        if let Some(record) = self.record(input, &key) {
            return Some(self.changed(input, &record, roots, depth + 1));
        }
        let what = "what it did before is no longer recorded".to_owned();
        push(roots, self.root(&input.to_string(), RootKind::Unrecorded, what.clone()));
        Some(Tree {
            step: input.to_string(),
            what,
            causes: Vec::new(),
        })
    }

    /// Returns the record of a node at the time of an action.
    fn record(&self, id: &NodeId, key: &ActionDigest) -> Option<StepRecord> {
        let (recipe, step) = (&self.env.recipe, id.to_string());
        let last = self.env.store.last(recipe, &step).into_iter();
        last.chain(self.env.store.earlier(recipe, &step))
            .find(|record| record.action == *key)
    }

    /// Returns the node that made what stands in a field: the one that gives the new value, else the one that gave the old.
    pub(super) fn made_by(&self, id: &NodeId, before: &StepRecord, difference: &Difference) -> Option<NodeId> {
        let plain = |value: &Option<String>| value.as_ref().map(|value| value.trim_matches('"').to_owned());
        let (old, new) = (plain(&difference.before), plain(&difference.after));
        let inputs = self.graph.inputs(id);
        let gives = |input: &&&NodeId| {
            let outcome = self.known(input).outcome.as_ref();
            new.as_ref()
                .zip(outcome)
                .is_some_and(|(value, outcome)| names(&outcome.result, value))
        };
        let changed = |input: &&&NodeId| before.inputs.get(&input.to_string()).copied() != self.known(input).key();
        let gave = |input: &&&NodeId| {
            let key = before.inputs.get(&input.to_string());
            let result = key.and_then(|key| self.env.store.lookup_shallow(key).ok().flatten());
            old.as_ref()
                .zip(result)
                .is_some_and(|(value, result)| names(&result, value))
        };
        let found = inputs
            .iter()
            .find(|input| changed(input) && gives(input))
            .or_else(|| inputs.iter().find(|input| changed(input) && gave(input)))
            .or_else(|| inputs.iter().find(|input| gives(input)))
            .or_else(|| inputs.iter().find(changed));
        found.map(|input| (*input).clone())
    }

    /// Returns the fields in which two actions of a node differ, each with the step that made it.
    pub(super) fn fields(&self, id: &NodeId, record: &StepRecord, before: &Action, now: &Action) -> Vec<Field> {
        let same_step = record.step == id.to_string() && record.recipe == self.env.recipe;
        difference::differences(before, now)
            .into_iter()
            .map(|difference| {
                let origin = difference.origin(now.kind());
                let from = (origin == Origin::Input && same_step)
                    .then(|| self.made_by(id, record, &difference))
                    .flatten();
                Field {
                    field: difference.field,
                    before: difference.before,
                    after: difference.after,
                    origin,
                    from: from.map(|from| from.to_string()),
                }
            })
            .collect()
    }

    /// Returns the action on record that is most like one: of the same kind of step, with the fewest fields that differ,
    /// the latest of these.
    pub(super) fn nearest(&self, id: &NodeId, action: &Action) -> Option<(StepRecord, Action)> {
        let prefix = format!("{}.", id.kind());
        let records = self.env.store.all_last().unwrap_or_default().into_iter();
        let like = records
            .filter(|last| last.step.starts_with(&prefix))
            .filter_map(|last| {
                let before = plan::document_of(self.env.store, &last)?;
                let differ = difference::differences(&before, action).len();
                (before.kind() == action.kind()).then_some((differ, last, before))
            });
        // The latest stand first, and of equals the first is taken.
        like.min_by_key(|(differ, ..)| *differ)
            .map(|(_, last, before)| (last, before))
    }

    fn lost(step: &str, known: &Known) -> Root {
        let missing: Vec<String> = known.missing.iter().map(|blob| blob.hash.short()).collect();
        let what = if missing.is_empty() {
            "its result was damaged in the store".to_owned()
        } else {
            let blobs = if missing.len() == 1 { "a blob" } else { "blobs" };
            format!("its result lacks {blobs} in the store: {}", prose::names(&missing, 3))
        };
        Root {
            step: Some(step.to_owned()),
            cause: RootKind::Lost,
            what,
            details: Vec::new(),
        }
    }
}

/// Returns whether a value is among the outputs and facts of a result.
fn names(result: &crate::action::ActionResult, value: &str) -> bool {
    let output = result.outputs.values().any(|output| output.to_string() == value);
    output || result.facts.values().any(|fact| fact == value)
}

/// Adds a root cause once.
pub(super) fn push(roots: &mut Vec<Root>, root: Root) {
    if !roots.iter().any(|known| known.is_same(&root)) {
        roots.push(root);
    }
}
