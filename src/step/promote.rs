//! `[promote.NAME]`: a candidate. One action for each tensor, and one that assembles them; the file is written straight
//! from the tensors in the store, and is not stored a second time.

mod assembly;
mod draft;
pub(in crate::step) mod parts;
mod single;

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::action;
use crate::action::Action;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs;
use crate::graph::Node;
use crate::observer::Unit;
use crate::recipe::model::StepId;
use crate::report::words;
use crate::step::Env;
use crate::step::Estimate;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::key_of;
use crate::step::metrics;
use crate::step::model::compute_of;
use crate::step::model::decode;
use crate::step::model::encode;
use crate::step::output;
use crate::step::source_file::SourceFile;

pub use assembly::AssembledTensor;
pub use assembly::Assembly;
pub use assembly::From;
pub use single::PlannedTensor;
pub use single::planned_tensors;

use draft::Draft;
use draft::Parts;
use draft::promote;

/// The version of what is written around the tensors: raise it when a candidate's header changes.
const WRITER: u32 = 1;

/// A candidate.
pub struct Promote;

impl Promote {
    fn action(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
        let (_, promote) = promote(node)?;
        let parts = Parts::of(node, inputs)?;
        let facts = parts.join.map(|join| {
            let fact = |name: &str| (name.to_owned(), join.fact(name).to_owned());
            BTreeMap::from([fact("dataset"), fact("entries"), fact("chunks")])
        });
        let mut said = facts.unwrap_or_default();
        said.insert("file_type".to_owned(), parts.policy.fact("file_type").to_owned());
        Ok(Action::Promote(action::Promote {
            model: parts.model.output("model")?,
            metadata: parts.model.output("metadata")?,
            policy: parts.policy.output("policy")?,
            slices: parts.join.map(|join| join.output("slices")).transpose()?,
            imatrix: said,
            allow_requantize: promote.allow_requantize,
            quantizer: env.quantizer.fingerprint(),
            writer: WRITER,
        }))
    }
}

fn file_name(id: &StepId) -> String {
    format!("{}.gguf", id.label())
}

/// Returns the file name of the manifest beside a candidate.
pub fn manifest_name(id: &StepId) -> String {
    format!("{}.manifest.json", file_name(id))
}

impl Kind for Promote {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(Self::action(node, inputs, env)?))
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        let (id, _) = promote(node)?;
        let expected = file_digest(outcome)?;
        let path = output::path(env, &file_name(id))?;
        let found = output::intact(env, &path, &expected)?;
        if found.is_some() && env.store.is_leased() {
            // The manifest needs the results that the candidate was made of, too.
            let assembly: Assembly = decode(env, "assembly", outcome.output("assembly")?)?;
            env.store
                .use_results(assembly.tensors.iter().filter_map(|tensor| tensor.action))?;
        }
        if let Some(file) = &found
            && env.store.is_leased()
            && !env.store.is_lender(&path, &file.stamp, &expected)?
        {
            // It was moved, or touched, or is older than lending. Not if somebody is at the place: the next build will do.
            if let Some(_lock) = env.store.lock_output(&path, &mut |_| {}, &|| true)? {
                lend(outcome, file, env)?;
            }
        }
        outcome.files = found.into_iter().collect();
        Ok(!outcome.files.is_empty())
    }

    fn estimate(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Estimate, StepError> {
        let draft = Draft::load(&Parts::of(node, inputs)?, env)?;
        let mut estimate = Estimate {
            unit: "tensor",
            writes: draft.layout.file_len(),
            outputs: draft.layout.file_len(),
            ..Estimate::default()
        };
        for (tensor, choice) in draft.tensors.index.tensors.iter().zip(&draft.table.choices) {
            if choice.from == choice.to {
                estimate.reads += tensor.bytes.len;
                continue;
            }
            estimate.parts += 1;
            if env
                .store
                .lookup(&draft.tensors.action(tensor, choice.to).digest())?
                .is_none()
            {
                estimate.missing += 1;
                estimate.reads += tensor.bytes.len;
                estimate.writes += choice.bytes;
                estimate.passing += choice.bytes;
            }
        }
        Ok(estimate)
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Disk
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let (id, step) = promote(node)?;
        let env = task.env;
        let action = Self::action(node, inputs, env)?;
        let draft = Draft::load(&Parts::of(node, inputs)?, env)?;
        task.check_cancel()?;
        draft.check_requantize(step)?;
        let path = output::path(env, &file_name(id))?;
        fs::create_dir_all(&env.out)?;
        // Before the action's own lock: whoever waits here finds the file when it gets on.
        let _lock = output::lock(task, &path, action.digest())?;
        let mut pending = None;
        let performed = task.perform(&action, &draft.tensors.model.files, |made| {
            let written = draft.write(task)?;
            let store = env.store;
            made.output("header", store.put(draft.layout.header())?);
            let hyperparameters = draft.tensors.model.output("hyperparameters")?;
            made.output(
                "compute",
                store.put(&encode(&compute_of(hyperparameters, &written.tensors))?)?,
            );
            made.output("assembly", store.put(&encode(&written.assembly)?)?);
            made.output("hyperparameters", hyperparameters);
            made.output("tokenizer", draft.tensors.model.output("tokenizer")?);
            made.fact("file", written.assembly.file);
            made.fact("sha256", &written.assembly.sha256);
            made.fact("elements", draft.tensors.model.fact("elements"));
            made.fact("tensors", draft.table.choices.len());
            if let Some(probed) = draft.table.probed_loss.as_ref().and_then(metrics::probed) {
                made.fact("probed", probed);
            }
            made.fact(
                "quantized",
                draft
                    .table
                    .choices
                    .iter()
                    .filter(|choice| choice.from != choice.to)
                    .count(),
            );
            pending = Some(written);
            Ok(())
        })?;
        let mut outcome = Outcome::of(performed, Vec::new());
        let expected = file_digest(&outcome)?;
        let file = match (pending, output::intact(env, &path, &expected)?) {
            (None, Some(file)) => {
                if !env.store.is_lender(&path, &file.stamp, &expected)? {
                    lend(&outcome, &file, env)?;
                }
                file
            }
            (pending, _) => {
                // The result was known, but the file is not there: assemble it again.
                let written = pending.map_or_else(|| draft.write(task), Ok)?;
                if written.assembly.file != expected {
                    return Err(StepError::Document {
                        what: "record of this candidate",
                        problem: format!("it says {expected}, but its tensors make {}", written.assembly.file),
                    });
                }
                for file in &draft.tensors.model.files {
                    file.check_unchanged()?;
                }
                let loans = written.assembly.loans();
                let unnamed = fs::Stamp::of_file(written.temp.file(), written.temp.path())?;
                env.store.promise_loans(&path, &unnamed, &expected, &loans)?;
                let reclaimed = env.store.reclaim(&path, &loans)?;
                let named = written.temp.persist(&path, fs::Durability::Synced)?;
                drop(reclaimed);
                fs::settle(named.file(), &path)?;
                let read = Cell::new(0);
                let stamp = env.store.confirm(&named, &expected, &|len| {
                    task.advance(Unit::BytesHashed, len - read.replace(len), expected.len);
                    !env.cancel.is_cancelled()
                })?;
                task.count_ran();
                let file = output::written(task, &path, &expected, stamp);
                env.store.lend(&path, &file.stamp, &expected, &loans)?;
                file
            }
        };
        outcome.files = vec![file];
        outcome.ran |= task.counts().0 > 0;
        Ok(outcome)
    }

    fn summary(&self, outcome: &Outcome) -> String {
        match (file_digest(outcome), outcome.number("elements")) {
            (Ok(file), Ok(elements)) if elements > 0 => {
                format!(
                    "{}, {:.3} bpw",
                    words::bytes(file.len),
                    file.len as f64 * 8.0 / elements as f64
                )
            }
            _ => String::new(),
        }
    }
}

/// Returns the actions that quantize the tensors of a candidate, by key.
pub fn tensor_actions(
    node: &Node,
    inputs: &Inputs,
    env: &Env<'_>,
) -> Result<BTreeMap<ActionDigest, Action>, StepError> {
    let draft = Draft::load(&Parts::of(node, inputs)?, env)?;
    let changed = draft
        .tensors
        .index
        .tensors
        .iter()
        .zip(&draft.table.choices)
        .filter(|(_, choice)| choice.from != choice.to);
    Ok(changed
        .map(|(tensor, choice)| draft.tensors.action(tensor, choice.to))
        .map(|action| (action.digest(), action))
        .collect())
}

/// Lets a candidate's file lend its tensors to the store, which need not keep them then.
fn lend(outcome: &Outcome, file: &SourceFile, env: &Env<'_>) -> Result<(), StepError> {
    let assembly: Assembly = decode(env, "assembly", outcome.output("assembly")?)?;
    env.store
        .lend(&file.path, &file.stamp, &file.digest, &assembly.loans())?;
    Ok(())
}

/// Returns the digest of a candidate's file.
pub fn file_digest(outcome: &Outcome) -> Result<BlobDigest, StepError> {
    let fact = outcome.fact("file");
    fact.parse().map_err(|_| StepError::Document {
        what: "action result",
        problem: format!("`{fact}` is no digest"),
    })
}
