//! Why a tensor of a candidate is quantized again.

use std::collections::BTreeMap;

use super::Answer;
use super::Compared;
use super::Why;
use super::answer::Detail;
use super::answer::Root;
use super::answer::RootKind;
use super::trace::push;
use crate::action::Action;
use crate::action::Promote;
use crate::action::difference;
use crate::action::role;
use crate::action::role::Origin;
use crate::action::role::Role;
use crate::digest::ActionDigest;
use crate::graph::NodeId;
use crate::step::StepError;
use crate::step::promote;
use crate::step::promote::PlannedTensor;
use crate::store::StepRecord;
use crate::vocab::verdict::Verdict;
use crate::work::Assembly;
use crate::work::decode;

/// A tensor that a candidate does not have.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// The step writes no candidate.
    #[error("`{step}` is not a candidate, so it has no tensors")]
    NoCandidate {
        /// The step.
        step: String,
    },
    /// No tensor has the name.
    #[error("the candidate of `{step}` has no tensor `{wanted}`")]
    NoSuchTensor {
        /// The step.
        step: String,
        /// What was asked for.
        wanted: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// Finding out why failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

impl Why<'_> {
    /// Returns why a tensor of a candidate is quantized, or when and why it was. The name may lack its `.weight`.
    pub fn tensor(&self, id: &NodeId, wanted: &str) -> Result<Answer, TensorError> {
        let step = id.to_string();
        let node = self.graph.node(id).filter(|node| promote::candidate(node).is_some());
        let Some(node) = node else {
            return Err(TensorError::NoCandidate { step });
        };
        let whole = self.step(id);
        if !self.known(id).waits.is_empty() || whole.verdict == Verdict::Failed {
            // Its inputs are not known yet, so the answer is that of the candidate.
            return Ok(Answer {
                tensor: Some(wanted.to_owned()),
                ..whole
            });
        }
        let planned = promote::planned_tensors(node, &self.survey.outcomes, self.env)?;
        let full = format!("{wanted}.weight");
        let find = |name: &str| planned.iter().find(|planned| planned.choice.tensor == name);
        let Some(planned) = find(wanted).or_else(|| find(&full)) else {
            return Err(TensorError::NoSuchTensor {
                step,
                wanted: wanted.to_owned(),
                known: planned.into_iter().map(|planned| planned.choice.tensor).collect(),
            });
        };
        Ok(self.explain_tensor(id, planned, whole))
    }

    fn explain_tensor(&self, id: &NodeId, planned: &PlannedTensor, whole: Answer) -> Answer {
        let name = &planned.choice.tensor;
        let mut answer = Answer {
            tensor: Some(name.clone()),
            compared: None,
            fields: Vec::new(),
            roots: Vec::new(),
            key: None,
            last_ran: None,
            ..whole
        };
        answer.tree.causes.clear();
        let Some(action) = &planned.action else {
            answer.verdict = Verdict::Copied;
            answer.why = format!("it stays {} as in the source: its bytes are copied", planned.choice.to);
            answer.tree.what.clone_from(&answer.why);
            answer.follows.clear();
            return answer;
        };
        let key = action.digest();
        answer.key = Some(key.to_string());
        let there = matches!(self.env.store.lookup(&key), Ok(Some(_)));
        let runs = answer.verdict == Verdict::Miss && !there;
        answer.verdict = if runs { Verdict::Miss } else { Verdict::Hit };
        let record = self.env.store.last(&self.env.recipe, &id.to_string());
        let before = record
            .as_ref()
            .and_then(|record| self.quantized(record, name))
            .map(|(key, before)| (record.clone(), key, before))
            .or_else(|| {
                let (record, key, before) = self.nearest_tensor(name, action)?;
                Some((Some(record), key, before))
            });
        if let Some((Some(record), before_key, before)) = before {
            answer.compared = Some(Compared {
                recipe: record.recipe.clone(),
                step: record.step.clone(),
                key: before_key.to_string(),
            });
            self.compare_tensor(id, &record, &before, action, &mut answer);
        } else if runs {
            let what = "no recorded candidate has this tensor".to_owned();
            push(&mut answer.roots, self.root(&id.to_string(), RootKind::New, what));
        }
        answer.why = match (answer.verdict, answer.fields.as_slice()) {
            (Verdict::Miss, []) => {
                let removed = self.removed(&key);
                let cause = if removed.is_some() {
                    RootKind::Collected
                } else {
                    RootKind::Forgotten
                };
                let what = removed.unwrap_or_else(|| "its bytes are no longer in the store".to_owned());
                push(&mut answer.roots, self.root(&id.to_string(), cause, what.clone()));
                what
            }
            (Verdict::Miss, fields) => {
                let names: Vec<&str> = fields
                    .iter()
                    .map(|field| field.field.trim_start_matches("inputs."))
                    .collect();
                format!("{} changed", crate::prose::names(&names, 3))
            }
            _ if there => "its bytes are in the store".to_owned(),
            _ => "the candidate exists, so none of its tensors is quantized again".to_owned(),
        };
        if answer.verdict == Verdict::Hit {
            answer.last_ran = self.last_ran(id, &key);
            answer.roots.clear();
        }
        answer.tree.what.clone_from(&answer.why);
        answer.follows = self.follows(&answer.roots);
        answer
    }

    fn compare_tensor(&self, id: &NodeId, record: &StepRecord, before: &Action, now: &Action, answer: &mut Answer) {
        let same_step = record.step == id.to_string() && record.recipe == self.env.recipe;
        let makers = self.makers(id);
        let mut causes: BTreeMap<NodeId, Option<ActionDigest>> = BTreeMap::new();
        for difference in difference::differences(before, now) {
            let origin = difference.origin("tensor");
            let field = difference.field.trim_start_matches("inputs.");
            let field = field.split('.').next().unwrap_or_default().to_owned();
            let from = makers.get(field.as_str());
            match (origin, from) {
                (Origin::Engine, _) => push(&mut answer.roots, self.root_of_engine(&difference)),
                (Origin::Input, Some(from)) if same_step => {
                    causes.insert(from.clone(), record.inputs.get(&from.to_string()).copied());
                }
                _ if same_step => {
                    let root = self.root_of_fields(&id.to_string(), RootKind::Recipe, &[&difference]);
                    push(&mut answer.roots, root);
                }
                _ => {}
            }
            answer.fields.push(super::Field {
                from: from.filter(|_| origin == Origin::Input).map(ToString::to_string),
                field: difference.field,
                before: difference.before,
                after: difference.after,
                origin,
            });
        }
        if !same_step && answer.verdict == Verdict::Miss {
            let details = answer.fields.iter().map(|field| Detail {
                name: field.field.trim_start_matches("inputs.").to_owned(),
                before: field.before.clone(),
                after: field.after.clone(),
            });
            let root = Root {
                details: details.collect(),
                ..self.root(
                    &id.to_string(),
                    RootKind::New,
                    format!("it is new; the nearest recorded one is of `{}`", record.step),
                )
            };
            push(&mut answer.roots, root);
        }
        for (input, key) in causes {
            let cause = self.input(id, record, &input, key, &mut answer.roots, 0);
            answer.tree.causes.extend(cause);
        }
    }

    /// Returns the nodes that the inputs of a tensor's action come from, by field.
    fn makers(&self, id: &NodeId) -> BTreeMap<&'static str, NodeId> {
        let mut makers = BTreeMap::new();
        for input in self.graph.inputs(id) {
            let Some(made_by) = self.known(input).action.as_ref().map(Action::kind) else {
                continue;
            };
            for field in role::fields_of("tensor").unwrap_or_default() {
                if let Role::PartOf(outputs) = field.role
                    && outputs.iter().any(|output| output.kind == made_by)
                {
                    makers.insert(field.name, input.clone());
                }
            }
        }
        makers
    }

    /// Returns the action that quantized a tensor of a candidate on record.
    fn quantized(&self, record: &StepRecord, name: &str) -> Option<(ActionDigest, Action)> {
        let store = self.env.store;
        let result = store.lookup_shallow(&record.action).ok().flatten()?;
        let assembly: Assembly = decode(self.env.store, "assembly", result.output(Promote::ASSEMBLY.as_str())?).ok()?;
        let tensor = assembly.tensors.iter().find(|tensor| tensor.name == name)?;
        let key = tensor.action?;
        let kept = store.lookup_shallow(&key).ok().flatten();
        let bytes = kept.and_then(|result| store.read(&result.action, 1 << 20).ok());
        let left = || store.tombstone(&key)?.document;
        let document = bytes.or_else(|| left().map(String::into_bytes))?;
        Some((key, Action::parse(&document).ok()?))
    }

    /// Returns the action most like one among those that quantized a tensor of that name for any candidate on record.
    fn nearest_tensor(&self, name: &str, action: &Action) -> Option<(StepRecord, ActionDigest, Action)> {
        let records = self.env.store.all_last().unwrap_or_default().into_iter();
        let candidates = records.filter(|record| record.step.starts_with("promote."));
        let like = candidates.filter_map(|record| {
            let (key, before) = self.quantized(&record, name)?;
            Some((difference::differences(&before, action).len(), record, key, before))
        });
        like.min_by_key(|(differ, ..)| *differ)
            .map(|(_, record, key, before)| (record, key, before))
    }
}
