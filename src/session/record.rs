//! What a build leaves next to its outputs: a manifest for each candidate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::Value;

use super::Session;
use super::run::Run;
use super::run::rfc3339;
use crate::action;
use crate::action::Action;
use crate::action::ActionResult;
use crate::container;
use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::fs;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::manifest;
use crate::manifest::ActionRecord;
use crate::manifest::Manifest;
use crate::manifest::Nondeterminism;
use crate::manifest::Resource;
use crate::manifest::TensorRecord;
use crate::observer::Event;
use crate::recipe::StepId;
use crate::scheduler::Failure;
use crate::scheduler::Report;
use crate::sign;
use crate::step;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Outcome;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::step::output;
use crate::step::promote;
use crate::store::StepRecord;
use crate::store::StoreEvent;
use crate::store::Tombstone;
use crate::verify;
use crate::work::Assembly;
use crate::work::decode;

/// Writes the manifest of every candidate that has no good one of its action. Returns the nodes whose manifest was written, and what
/// failed.
pub(super) fn write_manifests(
    session: &Session,
    env: &Env<'_>,
    run: &Run<'_>,
    started: SystemTime,
    report: &Report,
) -> (Vec<NodeId>, Vec<Failure>) {
    let mut failures = Vec::new();
    let mut written = Vec::new();
    // Mostly there are none, and that is seen by one look into a folder. They only explain.
    let events = env.store.events().unwrap_or_default();
    for node in session.graph.nodes() {
        let Some(candidate) = promote::candidate(node) else {
            continue;
        };
        let Some(outcome) = report.outcomes.get(&node.id) else {
            continue;
        };
        match write_manifest(session, env, run, started, report, (candidate, outcome), &events) {
            Ok(wrote) => written.extend(wrote.then(|| node.id.clone())),
            Err(error) => failures.push(Failure {
                node: node.id.clone(),
                error,
            }),
        }
    }
    (written, failures)
}

/// Returns the manifest next to a candidate if it is there, unchanged since forge wrote it for this action, and good.
/// `events` are the store's.
pub(super) fn current_manifest(
    session: &Session,
    env: &Env<'_>,
    id: &StepId,
    outcome: &Outcome,
    events: &[StoreEvent],
) -> Result<Option<SourceFile>, StepError> {
    let path = output::path(env, &promote::manifest_name(id))?;
    let last = env.store.last(&env.recipe, &id.to_string());
    let Some(last) = last.filter(|last| last.action == outcome.key) else {
        return Ok(None);
    };
    let Some(known) = last.manifest else { return Ok(None) };
    let Some(file) = output::intact(env, &path, &known)? else {
        return Ok(None);
    };
    let overlaps = session.allowed_overlaps(env, id, false);
    if last.manifest_checked && events.is_empty() && overlaps.is_none() {
        return Ok(Some(file));
    }
    let Ok(bytes) = fs::read_small(&path, manifest::CAP) else {
        return Ok(None);
    };
    let manifest = Manifest::parse(&bytes).ok();
    let is_good = manifest.is_some_and(|manifest| {
        nondeterminism(&manifest, events) == manifest.predicate.forge.nondeterminism
            && overlaps.is_none_or(|overlaps| overlaps == manifest.predicate.forge.overlaps)
            && (last.manifest_checked || verify::check_document(&manifest, &bytes).1.is_empty())
    });
    Ok(is_good.then_some(file))
}

/// Returns whether what a node made has the record next to it that it should have.
pub(super) fn is_recorded(
    session: &Session,
    env: &Env<'_>,
    node: &Node,
    outcome: &Outcome,
    events: &[StoreEvent],
) -> Result<bool, StepError> {
    match promote::candidate(node) {
        Some(candidate) => Ok(current_manifest(session, env, candidate, outcome, events)?.is_some()),
        None => Ok(true),
    }
}

fn write_manifest(
    session: &Session,
    env: &Env<'_>,
    run: &Run<'_>,
    started: SystemTime,
    report: &Report,
    (candidate, outcome): (&StepId, &Outcome),
    events: &[StoreEvent],
) -> Result<bool, StepError> {
    // Most often it is there; a lock is only for writing it.
    if current_manifest(session, env, candidate, outcome, events)?.is_some() {
        return Ok(false);
    }
    let path = output::path(env, &promote::manifest_name(candidate))?;
    let _lock = env.store.lock_output(&path, &mut |_| {}, &|| false)?;
    if current_manifest(session, env, candidate, outcome, events)?.is_some() {
        return Ok(false);
    }
    let mut manifest = manifest_of(session, env, run, started, report, candidate, outcome)?;
    manifest.predicate.forge.nondeterminism = nondeterminism(&manifest, events);
    let bytes = manifest.to_bytes().map_err(|error| document("manifest", error))?;
    // A manifest that contradicts itself proves nothing: it is not written.
    if let Some(problem) = verify::check_document(&manifest, &bytes).1.into_iter().next() {
        return Err(StepError::input_hint(
            format!(
                "no manifest was written, because it would be wrong: {}: {}",
                problem.place, problem.what
            ),
            "check the store with `forge cache verify`, then build again",
        ));
    }
    let digest = env.store.put(&bytes)?;
    env.store.materialize(&digest, &path)?;
    let signatures = path.with_file_name(format!("{}{}", promote::manifest_name(candidate), sign::SUFFIX));
    if fs::exists(&signatures).unwrap_or(false) {
        env.machine.observer.event(&Event::Warning {
            step: candidate.to_string(),
            message: format!(
                "`{}` signs an earlier manifest; sign the new one, too",
                signatures.display()
            ),
        });
    }
    env.machine.observer.event(&Event::OutputWritten {
        step: candidate.to_string(),
        path: path.display().to_string(),
        digest,
    });
    // Without the note the next build writes the manifest again: that it cannot be written fails nothing.
    let _ = env.store.note_last(&StepRecord {
        recipe: env.recipe.clone(),
        step: candidate.to_string(),
        action: outcome.key,
        document: outcome.result.action,
        manifest: Some(digest),
        manifest_checked: true,
        inputs: inputs_of(session, report, &NodeId::Step(candidate.clone())).keys(),
        files: Vec::new(),
    });
    Ok(true)
}

/// Returns the events of a manifest's actions, in order.
fn nondeterminism(manifest: &Manifest, events: &[StoreEvent]) -> Vec<Nondeterminism> {
    let outputs = |result: &ActionResult| -> BTreeMap<String, String> {
        let outputs = result.outputs.iter();
        outputs
            .map(|(name, digest)| (name.clone(), digest.to_string()))
            .collect()
    };
    let mut found: Vec<Nondeterminism> = events
        .iter()
        .filter_map(|event| {
            let StoreEvent::Nondeterminism { key, kept, differing } = event;
            let action = key.to_string();
            let record = manifest.predicate.forge.actions.get(&action)?;
            let kept = outputs(kept);
            // A result that has given way since is not what the candidate is made of.
            (record.outputs == kept).then(|| Nondeterminism {
                action,
                kept,
                differing: outputs(differing),
            })
        })
        .collect();
    found.sort();
    found
}

fn document(what: &'static str, error: impl ToString) -> StepError {
    StepError::Document {
        what,
        problem: error.to_string(),
    }
}

fn manifest_of(
    session: &Session,
    env: &Env<'_>,
    run: &Run<'_>,
    started: SystemTime,
    report: &Report,
    candidate: &StepId,
    outcome: &Outcome,
) -> Result<Manifest, StepError> {
    let id = NodeId::Step(candidate.clone());
    let assembly: Assembly = decode(env.store, "assembly", outcome.output(action::Promote::ASSEMBLY)?)?;
    let mut actions = BTreeMap::new();
    let mut sources = Vec::new();
    let ancestors = session.graph.only(std::slice::from_ref(&id));
    for node in ancestors.nodes() {
        let Some(outcome) = report.outcomes.get(&node.id) else {
            continue;
        };
        let again = || {
            let key = step::kind_of(node).key(node, &inputs_of(session, report, &node.id), env)?;
            Ok(match key {
                Key::Action { action, .. } => Some(*action),
                Key::Unread { .. } => None,
            })
        };
        let step = Some(node.id.to_string());
        let record = record_of(env, run, outcome.key, &outcome.result, step, again)?;
        actions.insert(outcome.key.to_string(), record);
        // What else has files has them of these.
        if step::reads_files(node) {
            for file in &outcome.files {
                let file_name = file.path.file_name().map(|name| name.to_string_lossy().into_owned());
                sources.push(Resource {
                    name: file_name.unwrap_or_default(),
                    digest: BTreeMap::from([("blake3".to_owned(), file.digest.hash.to_string())]),
                    annotations: BTreeMap::from([
                        ("bytes".to_owned(), file.digest.len.to_string()),
                        ("node".to_owned(), node.id.to_string()),
                    ]),
                });
            }
        }
    }
    let mut tensors = Vec::with_capacity(assembly.tensors.len());
    let mut planned = None;
    for tensor in &assembly.tensors {
        if let Some(key) = tensor.action {
            let again = || -> Result<Option<Action>, StepError> {
                let actions = if let Some(actions) = &planned {
                    actions
                } else {
                    let node = session
                        .graph
                        .node(&id)
                        .ok_or_else(|| document("graph", "it lost a node"))?;
                    let inputs = inputs_of(session, report, &node.id);
                    planned.insert(promote::tensor_actions(node, &inputs, env)?)
                };
                Ok(actions.get(&key).cloned())
            };
            let record = match env.store.lookup_shallow(&key)? {
                Some(result) => record_of(env, run, key, &result, None, again)?,
                None => record_of_lost(env, key, tensor.bytes, again)?,
            };
            actions.insert(key.to_string(), record);
        }
        tensors.push(TensorRecord {
            name: tensor.name.clone(),
            ty: tensor.ty.name().to_owned(),
            dims: tensor.dims.clone(),
            start: tensor.start,
            bytes: tensor.bytes.to_string(),
            action: tensor.action.map(|action| action.to_string()),
        });
    }
    let digest = BTreeMap::from([
        ("blake3".to_owned(), assembly.file.hash.to_string()),
        ("sha256".to_owned(), assembly.sha256.clone()),
    ]);
    let identity = |identity: &crate::engine::Identity| {
        let value = serde_json::from_slice(&identity.document()).unwrap_or(Value::Null);
        (identity.fingerprint().to_string(), value)
    };
    Ok(Manifest {
        statement_type: manifest::STATEMENT_TYPE.to_owned(),
        subject: vec![Resource {
            name: container::file_name(&candidate.label()),
            digest,
            annotations: BTreeMap::from([("bytes".to_owned(), assembly.file.len.to_string())]),
        }],
        predicate_type: manifest::PREDICATE_TYPE.to_owned(),
        predicate: manifest::Predicate {
            build_definition: manifest::BuildDefinition {
                build_type: manifest::BUILD_TYPE.to_owned(),
                external_parameters: manifest::ExternalParameters {
                    recipe: serde_json::to_value(&session.recipe).map_err(|error| document("recipe", error))?,
                    recipe_toml: session.recipe.to_toml(),
                    step: id.to_string(),
                },
                resolved_dependencies: sources,
            },
            run_details: manifest::RunDetails {
                builder: manifest::Builder {
                    id: manifest::BUILDER_ID.to_owned(),
                    version: BTreeMap::from([("forge".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]),
                },
                metadata: manifest::RunMetadata {
                    invocation_id: run.id(),
                    started_on: rfc3339(started),
                    finished_on: rfc3339(SystemTime::now()),
                },
            },
            forge: manifest::Forge {
                schema: manifest::SCHEMA.to_owned(),
                command: session.settings.command.clone(),
                engines: session.identities(&ancestors).into_iter().map(identity).collect(),
                action: outcome.key.to_string(),
                actions,
                tensors,
                nondeterminism: Vec::new(),
                overlaps: session.allowed_overlaps(env, candidate, true).unwrap_or_default(),
            },
        },
    })
}

/// Returns what a node was made of.
fn inputs_of(session: &Session, report: &Report, node: &NodeId) -> Inputs {
    let mut inputs = Inputs::default();
    for id in session.graph.inputs(node) {
        if let Some(outcome) = report.outcomes.get(id) {
            inputs.insert(id.clone(), Arc::clone(outcome));
        }
    }
    inputs
}

/// Returns the record of a tensor's action whose result is gone from the store: the candidate's assembly says what it gave.
/// Its cost is known only if a collector removed it and left a note.
fn record_of_lost(
    env: &Env<'_>,
    key: ActionDigest,
    bytes: BlobDigest,
    again: impl FnOnce() -> Result<Option<Action>, StepError>,
) -> Result<ActionRecord, StepError> {
    let action = again()?.filter(|action| action.digest() == key);
    let action =
        action.ok_or_else(|| document("action", format!("{key} made a tensor, and its document is missing")))?;
    let outputs = BTreeMap::from([(action::Tensor::TENSOR.as_str().to_owned(), bytes.to_string())]);
    let left = env.store.tombstone(&key);
    let is_same = |left: &Tombstone| left.outputs.get(action::Tensor::TENSOR.as_str()) == Some(&bytes);
    Ok(ActionRecord {
        step: None,
        document: serde_json::from_slice(&action.document()).map_err(|error| document("action", error))?,
        outputs,
        cost_ms: left.filter(is_same).map(|left| left.cost_ms),
        ran: false,
    })
}

fn record_of(
    env: &Env<'_>,
    run: &Run<'_>,
    key: ActionDigest,
    result: &ActionResult,
    step: Option<String>,
    again: impl FnOnce() -> Result<Option<Action>, StepError>,
) -> Result<ActionRecord, StepError> {
    let bytes = match env.store.read(&result.action, 16 << 20) {
        // A lost document of an action is derived again: nothing but this record needs it.
        Err(error) if !error.lost().is_empty() => {
            let Some(action) = again()? else {
                return Err(error.into());
            };
            let bytes = action.document();
            env.store.put(&bytes)?;
            bytes
        }
        read => read?,
    };
    let action = Action::parse(&bytes).map_err(|error| document("action", error))?;
    if action.digest() != key {
        return Err(document("action", format!("the document of {key} is another's")));
    }
    Ok(ActionRecord {
        step,
        document: serde_json::from_slice(&bytes).map_err(|error| document("action", error))?,
        outputs: result
            .outputs
            .iter()
            .map(|(name, digest)| (name.clone(), digest.to_string()))
            .collect(),
        cost_ms: Some(result.cost_ms),
        ran: run.has_run(&key),
    })
}
