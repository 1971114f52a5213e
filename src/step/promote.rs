//! `[promote.NAME]`: a candidate. One action for each tensor, and one that assembles them; the file is written straight
//! from the tensors in the store, and is not stored a second time.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::action;
use crate::action::Action;
use crate::action::ImatrixCollect;
use crate::action::InspectModel;
use crate::action::Join;
use crate::action::Policy;
use crate::container;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::engine::Capability;
use crate::engine::Role;
use crate::fs;
use crate::graph::Node;
use crate::graph::Work;
use crate::method::rounding::RoundingDocument;
use crate::observer::Phase;
use crate::observer::Unit;
use crate::policy::Choice;
use crate::prose;
use crate::recipe::model::SourceName;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::at;
use crate::step::key_of;
use crate::step::likely_types;
use crate::step::output;
use crate::step::policy;
use crate::step::refining;
use crate::step::space::Headers;
use crate::step::wrong_kind;
use crate::timing::Amounts;
use crate::timing::Operation;
use crate::timing::PhaseWork;
use crate::work::Assembly;
use crate::work::Context;
use crate::work::Draft;
use crate::work::decode;
use crate::work::quantized_already;
use crate::work::write_again;

/// The version of the candidate's header: increase it when the header changes.
const WRITER: u32 = 1;

/// A candidate.
pub struct Promote;

/// The inputs of a candidate.
struct Parts<'i> {
    id: &'i StepId,
    allow_requantize: bool,
    model: &'i Outcome,
    policy: &'i Outcome,
    join: Option<&'i Outcome>,
    rounding: Option<RoundingDocument>,
}

impl<'i> Parts<'i> {
    fn of(node: &'i Node, inputs: &'i Inputs) -> Result<Self, StepError> {
        let Work::Promote { step, policy } = &node.work else {
            return Err(wrong_kind(node));
        };
        let StepBody::Promote(promote) = &step.body else {
            return Err(wrong_kind(node));
        };
        Ok(Self {
            id: &step.id,
            allow_requantize: promote.allow_requantize,
            model: inputs.source(&policy.model)?,
            policy: inputs.step(&promote.policy)?,
            join: policy.join.as_ref().map(|join| inputs.step(join)).transpose()?,
            rounding: policy::rounding_of(policy, inputs)?,
        })
    }

    fn action(&self, node: &Node, env: &Env<'_>) -> Result<action::Promote, StepError> {
        let mut facts = BTreeMap::new();
        if let Some(join) = self.join {
            facts.insert(Join::DATASET.as_str().to_owned(), join.fact(Join::DATASET)?);
            for fact in [Join::ENTRIES, Join::CHUNKS] {
                facts.insert(fact.as_str().to_owned(), join.fact(fact)?.to_string());
            }
        }
        let file_type = self.policy.fact(Policy::FILE_TYPE)?;
        facts.insert(Policy::FILE_TYPE.as_str().to_owned(), file_type);
        Ok(action::Promote {
            model: self.model.output(InspectModel::MODEL)?,
            metadata: self.model.output(InspectModel::METADATA)?,
            policy: self.policy.output(Policy::POLICY)?,
            slices: self.join.map(|join| join.output(Join::SLICES)).transpose()?,
            imatrix: facts,
            allow_requantize: self.allow_requantize,
            quantizer: env.fingerprint(&node.engine, Role::Quantizer)?,
            writer: WRITER,
            rounding: self.rounding,
        })
    }

    fn imatrix(&self) -> Result<Option<BlobDigest>, StepError> {
        self.join.map(|join| join.output(ImatrixCollect::IMATRIX)).transpose()
    }
}

/// Computes the layout of the candidate of a node.
fn draft_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Draft, StepError> {
    let parts = Parts::of(node, inputs)?;
    Draft::load(env.store, &parts.action(node, env)?, parts.imatrix()?)
}

/// Says of each tensor of a candidate whether it was quantized before.
fn quantized(draft: &Draft, env: &Env<'_>) -> Vec<bool> {
    let actions = draft.choices().map(|(tensor, choice)| draft.action(tensor, choice));
    let is_known = |action: Action| matches!(env.store.lookup_shallow(&action.digest()), Ok(Some(_)));
    actions.map(|action| action.is_some_and(is_known)).collect()
}

/// Returns the candidate that a node writes, if it writes one.
pub fn candidate(node: &Node) -> Option<&StepId> {
    match &node.work {
        Work::Promote { step, .. } => Some(&step.id),
        _ => None,
    }
}

/// Returns the policy of the candidate that a step writes, if it writes one.
pub fn policy_of(step: &Step) -> Option<&StepId> {
    match &step.body {
        StepBody::Promote(promote) => Some(&promote.policy),
        _ => None,
    }
}

/// Returns whether a candidate's file exists; true if that cannot be determined.
pub(super) fn is_there(candidate: &StepId, env: &Env<'_>) -> bool {
    output::is_there(env, &file_name(candidate))
}

/// Returns the file name of a candidate.
pub fn file_name(id: &StepId) -> String {
    container::file_name(&id.label())
}

/// Returns the file name of the manifest beside a candidate.
pub fn manifest_name(id: &StepId) -> String {
    format!("{}.manifest.json", file_name(id))
}

impl Kind for Promote {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        let action = Parts::of(node, inputs)?.action(node, env)?;
        Ok(key_of(Action::Promote(action)))
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let expected = file_digest(outcome)?;
        let path = output::path(env, &file_name(candidate(node).ok_or_else(|| wrong_kind(node))?))?;
        let found = output::intact(env, &path, &expected)?;
        if found.is_some() && env.store.is_leased() {
            // The manifest needs the results that the candidate was made of, too.
            let assembly: Assembly = decode(env.store, "assembly", outcome.output(action::Promote::ASSEMBLY)?)?;
            env.store
                .use_results(assembly.tensors.iter().filter_map(|tensor| tensor.action))?;
        }
        if let Some(file) = &found
            && env.store.is_leased()
            && !env.store.has_index(&path, &file.stamp, &expected)?
        {
            // It was moved or touched, or it is older than borrowing. If another process holds the lock, the next build does this.
            if let Some(_lock) = env.store.lock_output(&path, &mut |_| {}, &|| true)? {
                borrow(outcome, file, env)?;
            }
        }
        outcome.files = found.into_iter().collect();
        Ok(!outcome.files.is_empty())
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let draft = draft_of(node, inputs, env)?;
        let mut estimate = Estimate {
            unit: "tensor",
            writes: draft.layout.file_len(),
            outputs: draft.layout.file_len(),
            ..Estimate::default()
        };
        for (tensor, choice) in draft.choices() {
            let Some(action) = draft.action(tensor, choice) else {
                estimate.reads += tensor.bytes.len;
                continue;
            };
            estimate.parts += 1;
            if env.store.lookup(&action.digest())?.is_none() {
                estimate.missing += 1;
                estimate.reads += tensor.bytes.len;
                // A refined tensor is quantized without refinement first.
                let copies = if matches!(action, Action::RefinedTensor(_)) {
                    2
                } else {
                    1
                };
                estimate.writes += copies * choice.bytes;
                estimate.temporary += copies * choice.bytes;
            }
        }
        Ok(estimate)
    }

    fn check(&self, node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> Result<(), StepError> {
        let Work::Promote { step, policy } = &node.work else {
            return Err(wrong_kind(node));
        };
        let StepBody::Promote(promote) = &step.body else {
            return Err(wrong_kind(node));
        };
        let again = match headers.of(&policy.model, env) {
            Some(header) if !promote.allow_requantize => policy::requantized(policy, header),
            _ => Vec::new(),
        };
        if again.is_empty() {
            Ok(())
        } else {
            Err(at(&step.origin, &quantized_already(&again)))
        }
    }

    fn output_names(&self, node: &Node, _outcome: Option<&Outcome>, _only_table: bool) -> Vec<String> {
        candidate(node).into_iter().map(file_name).collect()
    }

    /// A tensor that the store borrowed from the missing file must be quantized again.
    fn estimate_writing(
        &self,
        node: &Node,
        _outcome: &Outcome,
        inputs: &Inputs,
        env: &Env<'_>,
    ) -> Result<Estimate, StepError> {
        self.estimate(node, inputs, env)
    }

    fn needs(&self, node: &Node) -> Vec<Capability> {
        let is_refined = matches!(&node.work, Work::Promote { policy, .. } if policy.rounding.is_some());
        let refine = is_refined.then_some(Capability::Refine);
        std::iter::once(Capability::Quantize).chain(refine).collect()
    }

    fn phases(&self, node: &Node, known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> Vec<PhaseWork> {
        let Work::Promote { step, policy } = &node.work else {
            return Vec::new();
        };
        // What the store has of its tensors is known if all before it is.
        let draft = draft_of(node, known, env).ok();
        let quantized: Vec<bool> = draft.map(|draft| quantized(&draft, env)).unwrap_or_default();
        let types = likely_types::of_candidate(&step.id, known, env, headers);
        let Some(facts) = headers.of(&policy.model, env).and_then(|header| header.facts.as_ref()) else {
            return Vec::new();
        };
        let mut changed = Vec::new();
        let (mut amounts, mut read, mut written) = (Amounts::default(), 0, 0);
        for (at, tensor) in facts.tensors.iter().enumerate() {
            let to = types
                .as_ref()
                .and_then(|types| types.get(at))
                .copied()
                .unwrap_or(tensor.ty);
            let bytes = to.tensor_bytes(&tensor.dims).unwrap_or_default();
            written += bytes;
            if to == tensor.ty || quantized.get(at) == Some(&true) {
                continue;
            }
            read += tensor.ty.tensor_bytes(&tensor.dims).unwrap_or_default();
            changed.push((at, to));
            amounts.add(Operation::Quantize(to), tensor.dims.iter().product::<u64>());
            amounts.add(Operation::Hash, bytes);
            amounts.add(Operation::Commit, 1_u64);
        }
        let quantizing = PhaseWork::new(Phase::Quantize, read as f64, amounts);
        let refining = policy.rounding.as_ref().map(|_| refining::phase(facts, changed));
        let writing = PhaseWork::new(Phase::Write, written as f64, Amounts::of(Operation::Write, written));
        std::iter::once(quantizing).chain(refining).chain([writing]).collect()
    }

    fn memory(&self, node: &Node, known: &Inputs, env: &Env<'_>, headers: &mut Headers<'_>) -> u64 {
        let Work::Promote { step, policy } = &node.work else {
            return 0;
        };
        let types = likely_types::of_candidate(&step.id, known, env, headers);
        let header = headers.of(&policy.model, env);
        let facts = header.and_then(|header| header.facts.as_ref());
        match (facts, types, &policy.rounding) {
            (Some(facts), Some(types), Some(_)) => refining::memory(facts, &types),
            _ => 0,
        }
    }

    fn model<'n>(&self, node: &'n Node) -> Option<&'n SourceName> {
        match &node.work {
            Work::Promote { policy, .. } => Some(&policy.model),
            _ => None,
        }
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Disk
    }

    /// From the header of the model and the policy. `None` if the candidate's file exists: it may have the right content.
    fn minimum_output_bytes(&self, node: &Node, env: &Env<'_>, headers: &mut Headers<'_>) -> Option<u64> {
        let Work::Promote { step, policy } = &node.work else {
            return None;
        };
        if is_there(&step.id, env) {
            return None;
        }
        policy::minimum_bytes(policy, headers.of(&policy.model, env)?)
    }

    fn is_wanted(&self) -> bool {
        true
    }

    fn run(&self, node: &Node, inputs: &Inputs, env: &Env<'_>, work: &Context<'_>) -> Result<Outcome, StepError> {
        let parts = Parts::of(node, inputs)?;
        let promote = parts.action(node, env)?;
        work.use_imatrix(parts.imatrix()?);
        let action = Action::Promote(promote.clone());
        let path = output::path(env, &file_name(parts.id))?;
        fs::create_dir_all(&env.out)?;
        // Before the action's own lock: a build that waits here finds the file when it gets on.
        let _lock = output::lock(work, &path, action.digest())?;
        work.write_candidate_in(&env.out);
        let performed = work.perform(&action)?;
        let mut outcome = Outcome::of(performed, Vec::new());
        let expected = file_digest(&outcome)?;
        let file = match (work.take_candidate(), output::intact(env, &path, &expected)?) {
            (None, Some(file)) => {
                if !env.store.has_index(&path, &file.stamp, &expected)? {
                    borrow(&outcome, &file, env)?;
                }
                file
            }
            // The result was known, but the file is not there: it is assembled again.
            (None, None) => name_file(
                env,
                work,
                &outcome,
                &path,
                write_again(work, &promote, &expected, &env.out)?,
            )?,
            (Some(written), _) => name_file(env, work, &outcome, &path, written)?,
        };
        outcome.files = vec![file];
        outcome.ran |= work.counts().0 > 0;
        outcome.wrote = work.has_written();
        Ok(outcome)
    }

    fn summary(&self, outcome: &Outcome) -> String {
        match (file_digest(outcome), outcome.fact(action::Promote::ELEMENTS)) {
            (Ok(file), Ok(elements)) if elements > 0 => prose::size(file.len, elements),
            _ => String::new(),
        }
    }
}

/// Moves a complete temporary file to the path of the candidate.
fn name_file(
    env: &Env<'_>,
    work: &Context<'_>,
    outcome: &Outcome,
    path: &std::path::Path,
    written: fs::TempFile,
) -> Result<SourceFile, StepError> {
    let expected = file_digest(outcome)?;
    let assembly: Assembly = decode(env.store, "assembly", outcome.output(action::Promote::ASSEMBLY)?)?;
    let borrowed = assembly.borrowed_blobs();
    let unnamed = fs::Stamp::of_file(written.file(), written.path())?;
    env.store.prepare_borrow(path, &unnamed, &expected, &borrowed)?;
    let copied_back = env.store.copy_back(path, &borrowed)?;
    let named = written.persist(path, fs::Durability::Synced)?;
    drop(copied_back);
    fs::settle(named.file(), path)?;
    let read = Cell::new(0);
    work.expect(Unit::BytesHashed, expected.len);
    let stamp = env.store.confirm(&named, &expected, &|len| {
        work.advance(Unit::BytesHashed, len - read.replace(len));
        !work.cancel().is_cancelled()
    })?;
    work.note_written();
    let file = output::written(work, path, &expected, stamp);
    env.store.borrow(path, &file.stamp, &expected, &borrowed)?;
    Ok(file)
}

/// Returns the actions that quantize the tensors of a candidate, by key.
///
/// # Errors
///
/// Errors of reading the documents of the model and the policy.
pub fn tensor_actions(
    node: &Node,
    inputs: &Inputs,
    env: &Env<'_>,
) -> Result<BTreeMap<ActionDigest, Action>, StepError> {
    let draft = draft_of(node, inputs, env)?;
    let actions = draft
        .choices()
        .filter_map(|(tensor, choice)| draft.action(tensor, choice));
    Ok(actions.map(|action| (action.digest(), action)).collect())
}

/// A tensor of a candidate: its type, and the action that quantizes it.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// The choice of the policy.
    pub choice: Choice,
    /// The action that quantizes it; `None` if its bytes are copied.
    pub action: Option<Action>,
}

/// Returns the tensors of a candidate, in the file's order.
///
/// # Errors
///
/// Errors of reading the documents of the model and the policy.
pub fn planned_tensors(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Vec<PlannedTensor>, StepError> {
    let draft = draft_of(node, inputs, env)?;
    let planned = draft.choices().map(|(tensor, choice)| PlannedTensor {
        choice: choice.clone(),
        action: draft.action(tensor, choice),
    });
    Ok(planned.collect())
}

/// Borrows the tensors of a candidate's file, so that the store does not keep a second copy.
fn borrow(outcome: &Outcome, file: &SourceFile, env: &Env<'_>) -> Result<(), StepError> {
    let assembly: Assembly = decode(env.store, "assembly", outcome.output(action::Promote::ASSEMBLY)?)?;
    env.store
        .borrow(&file.path, &file.stamp, &file.digest, &assembly.borrowed_blobs())?;
    Ok(())
}

/// Returns the digest of a candidate's file.
///
/// # Errors
///
/// [`StepError::Document`] if the result does not contain it.
pub fn file_digest(outcome: &Outcome) -> Result<BlobDigest, StepError> {
    outcome.fact(action::Promote::FILE)
}
