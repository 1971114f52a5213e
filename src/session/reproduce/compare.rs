//! Two manifests of one candidate: the same file, the same tensors, or where their histories diverge.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use serde_json::Value;

use crate::action::Action;
use crate::action::difference;
use crate::action::difference::Difference;
use crate::action::role::Origin;
use crate::graph::Graph;
use crate::manifest::ActionRecord;
use crate::manifest::Manifest;
use crate::manifest::TensorRecord;

/// How a candidate that was made again compares with the first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// The verdict.
    pub verdict: Verdict,
    /// The digest that the manifest has, as `blake3`.
    pub before: String,
    /// That of the file that was made.
    pub after: String,
    /// The first action, from the sources on, in which the histories differ; nothing where the files are identical.
    pub divergence: Option<Divergence>,
}

/// How much is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte.
    Identical,
    /// Every tensor, at least.
    SameTensors,
    /// Not even that: the tensors that differ.
    Different(Vec<TensorDifference>),
}

impl Verdict {
    /// Returns the word for it.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::SameTensors => "same-tensors",
            Self::Different(_) => "different",
        }
    }
}

/// A tensor that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// In what: `only before`, `only now`, `type`, `dimensions`, `bytes`.
    pub what: &'static str,
    /// What the manifest says.
    pub before: String,
    /// What was made.
    pub after: String,
}

/// Where two histories diverge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Divergence {
    /// The step, or `tensor NAME`.
    pub place: String,
    /// The action's kind.
    pub kind: String,
    /// The key before and now.
    pub keys: (String, String),
    /// The inputs that differ, engines apart; then that is why.
    pub inputs: Vec<Difference>,
    /// Whether another engine did it.
    pub other_engine: bool,
    /// The outputs that differ.
    pub outputs: Vec<String>,
}

/// Compares a candidate's manifest with that of the candidate that was made again. `graph` has the steps that lead to it.
pub fn compare(before: &Manifest, after: &Manifest, graph: &Graph) -> Comparison {
    let digest = |manifest: &Manifest| {
        let subject = manifest.subject.first();
        subject
            .and_then(|subject| subject.digest.get("blake3").cloned())
            .unwrap_or_default()
    };
    let (old, new) = (digest(before), digest(after));
    let tensors = tensor_differences(&before.predicate.forge.tensors, &after.predicate.forge.tensors);
    let verdict = if old == new {
        Verdict::Identical
    } else if tensors.is_empty() {
        Verdict::SameTensors
    } else {
        Verdict::Different(tensors)
    };
    let divergence = match verdict {
        Verdict::Identical => None,
        _ => divergence(before, after, graph),
    };
    Comparison {
        verdict,
        before: old,
        after: new,
        divergence,
    }
}

fn tensor_differences(before: &[TensorRecord], after: &[TensorRecord]) -> Vec<TensorDifference> {
    let by_name = |tensors: &[TensorRecord]| -> BTreeMap<String, TensorRecord> {
        let named = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone()));
        named.collect()
    };
    let (old, new) = (by_name(before), by_name(after));
    let mut reported = BTreeSet::new();
    let mut differences = Vec::new();
    for name in before.iter().chain(after).map(|tensor| &tensor.name) {
        if !reported.insert(name) {
            continue;
        }
        let (what, before, after) = match (old.get(name), new.get(name)) {
            (Some(old), None) => ("only before", old.ty.clone(), String::new()),
            (None, Some(new)) => ("only now", String::new(), new.ty.clone()),
            (Some(old), Some(new)) if old.ty != new.ty => ("type", old.ty.clone(), new.ty.clone()),
            (Some(old), Some(new)) if old.dims != new.dims => {
                ("dimensions", format!("{:?}", old.dims), format!("{:?}", new.dims))
            }
            (Some(old), Some(new)) if old.bytes != new.bytes => ("bytes", old.bytes.clone(), new.bytes.clone()),
            _ => continue,
        };
        differences.push(TensorDifference {
            name: name.clone(),
            what,
            before,
            after,
        });
    }
    differences
}

/// An action of a history, with its key.
type Keyed<'m> = (&'m String, &'m ActionRecord);

/// Walks both histories from the sources on: the steps in the graph's order, before the last one its tensors.
fn divergence(before: &Manifest, after: &Manifest, graph: &Graph) -> Option<Divergence> {
    let step = &before.predicate.build_definition.external_parameters.step;
    let nodes = graph.nodes().map(|node| node.id.to_string());
    let steps: Vec<String> = nodes.filter(|node| node != step).collect();
    for node in &steps {
        let (old, new) = (of_step(before, node), of_step(after, node));
        // Two steps may share an action, which is then listed under one of their names.
        let old = old.or_else(|| new.and_then(|(key, _)| before.predicate.forge.actions.get_key_value(key)));
        let new = new.or_else(|| old.and_then(|(key, _)| after.predicate.forge.actions.get_key_value(key)));
        if let (Some(old), Some(new)) = (old, new)
            && let Some(divergence) = compare_actions(node.clone(), old, new)
        {
            return Some(divergence);
        }
    }
    let tensors = after.predicate.forge.tensors.iter();
    let made_again: HashMap<&str, &TensorRecord> = tensors.map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for tensor in &before.predicate.forge.tensors {
        let again = made_again.get(tensor.name.as_str());
        if let (Some(old), Some(new)) = (
            of_tensor(before, tensor),
            again.and_then(|again| of_tensor(after, again)),
        ) && let Some(divergence) = compare_actions(format!("tensor {}", tensor.name), old, new)
        {
            return Some(divergence);
        }
    }
    compare_actions(step.clone(), of_step(before, step)?, of_step(after, step)?)
}

fn of_step<'m>(manifest: &'m Manifest, step: &str) -> Option<Keyed<'m>> {
    let mut actions = manifest.predicate.forge.actions.iter();
    actions.find(|(_, record)| record.step.as_deref() == Some(step))
}

fn of_tensor<'m>(manifest: &'m Manifest, tensor: &TensorRecord) -> Option<Keyed<'m>> {
    manifest.predicate.forge.actions.get_key_value(tensor.action.as_ref()?)
}

/// Says in what an action differs: inputs, or outputs of the same inputs. Another engine alone is no difference: what it
/// gave may be the same.
fn compare_actions(place: String, (old_key, old): Keyed<'_>, (new_key, new): Keyed<'_>) -> Option<Divergence> {
    let parse = |record: &ActionRecord| Action::parse(record.document.to_string().as_bytes()).ok();
    let mut inputs = match (parse(old), parse(new)) {
        (Some(old), Some(new)) => difference::differences(&old, &new),
        _ => Vec::new(),
    };
    let kind = old
        .document
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    let engine = |difference: &Difference| difference.origin(&kind) == Origin::Engine;
    let other_engine = inputs.iter().any(engine);
    inputs.retain(|difference| !engine(difference));
    let names: BTreeSet<&String> = old.outputs.keys().chain(new.outputs.keys()).collect();
    let differs = |name: &&&String| old.outputs.get(**name) != new.outputs.get(**name);
    let outputs: Vec<String> = names.iter().filter(differs).map(|name| (**name).clone()).collect();
    if inputs.is_empty() && outputs.is_empty() {
        return None;
    }
    Some(Divergence {
        place,
        kind,
        keys: (old_key.clone(), new_key.clone()),
        inputs,
        other_engine,
        outputs,
    })
}
