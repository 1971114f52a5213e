//! Root causes in detail: which file, which tensors and keys of it, which field of the recipe, which fact of an engine.

use std::collections::BTreeMap;

use super::Why;
use super::answer::Detail;
use super::answer::Root;
use super::answer::RootKind;
use super::survey::Known;
use crate::action::ActionResult;
use crate::action::InspectModel;
use crate::action::difference::Difference;
use crate::container::Metadata;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Identity;
use crate::graph::NodeId;
use crate::prose;
use crate::store::ReadFile;
use crate::store::StepRecord;
use crate::work::ModelIndex;
use crate::work::decode;
use crate::work::decode_metadata;

/// So many tensors and keys of a model are named.
const MOST: usize = 20;
/// A value longer than this is cut.
const LONGEST: usize = 60;

impl Why<'_> {
    #[expect(clippy::unused_self, reason = "reads as the others")]
    pub(super) fn root(&self, step: &str, cause: RootKind, what: String) -> Root {
        Root {
            step: Some(step.to_owned()),
            cause,
            what,
            details: Vec::new(),
        }
    }

    /// The recipe, or forge itself, says something else.
    pub(super) fn root_of_fields(&self, step: &str, cause: RootKind, differences: &[&Difference]) -> Root {
        let names: Vec<&str> = differences
            .iter()
            .map(|difference| difference.field.trim_start_matches("inputs."))
            .collect();
        let what = match cause {
            RootKind::Forge => format!("this version of forge has a different {}", prose::names(&names, 3)),
            _ => format!("the recipe changed {}", prose::names(&names, 3)),
        };
        let details = differences.iter().zip(names).map(|(difference, name)| Detail {
            name: name.to_owned(),
            before: non_null(difference.before.as_deref()),
            after: non_null(difference.after.as_deref()),
        });
        Root {
            details: details.collect(),
            ..self.root(step, cause, what)
        }
    }

    /// The recipe names other steps as inputs.
    pub(super) fn root_of_inputs(&self, id: &NodeId, before: &StepRecord) -> Root {
        let now: Vec<String> = self.graph.inputs(id).iter().map(ToString::to_string).collect();
        let gone = before.inputs.keys().filter(|input| !now.contains(input));
        let come = now.iter().filter(|input| !before.inputs.contains_key(*input));
        let details = gone
            .map(|input| Detail {
                name: "input".to_owned(),
                before: Some(input.clone()),
                after: None,
            })
            .chain(come.map(|input| Detail {
                name: "input".to_owned(),
                before: None,
                after: Some(input.clone()),
            }));
        Root {
            details: details.collect(),
            ..self.root(
                &id.to_string(),
                RootKind::Recipe,
                "the recipe changed its inputs".to_owned(),
            )
        }
    }

    /// The engine is another: its facts, where both identities are on record.
    pub(super) fn root_of_engine(&self, difference: &Difference) -> Root {
        let identity = |value: &Option<String>| -> Option<Identity> {
            let fingerprint: Fingerprint = value.as_deref()?.trim_matches('"').parse().ok()?;
            if let Some(own) = self.env.machine.engines.identity_of(&fingerprint) {
                return Some(own.clone());
            }
            serde_json::from_slice(&self.env.store.engine(&fingerprint)?).ok()
        };
        let (before, after) = (identity(&difference.before), identity(&difference.after));
        let role = after
            .as_ref()
            .or(before.as_ref())
            .map_or("engine", |identity| identity.role.as_str());
        let (what, details) = match (&before, &after) {
            (Some(before), Some(after)) => {
                let details = facts(before, after);
                let names: Vec<&str> = details.iter().map(|detail| detail.name.as_str()).collect();
                (format!("the {role} has changed: {}", prose::names(&names, 3)), details)
            }
            _ => (
                format!("the {role} has changed, and the identity of the earlier one is not recorded"),
                vec![Detail {
                    name: "fingerprint".to_owned(),
                    before: difference
                        .before
                        .as_deref()
                        .map(|text| text.trim_matches('"').to_owned()),
                    after: difference
                        .after
                        .as_deref()
                        .map(|text| text.trim_matches('"').to_owned()),
                }],
            ),
        };
        Root {
            step: None,
            cause: RootKind::Engine,
            what,
            details,
        }
    }

    /// A file of the user's is another.
    pub(super) fn root_of_source(&self, id: &NodeId, before: &StepRecord, known: &Known) -> Root {
        let mut details = files(&before.files, &known.files);
        let names: Vec<&str> = details.iter().map(|detail| detail.name.as_str()).collect();
        let what = if names.is_empty() {
            "the order of its files changed".to_owned()
        } else {
            format!("{} changed", prose::names(&names, 3))
        };
        if let Some(result) = self.result(before)
            && let Some(now) = &known.outcome
        {
            details.extend(self.inside(&result, &now.result));
        }
        Root {
            details,
            ..self.root(&id.to_string(), RootKind::Source, what)
        }
    }

    /// Returns the result of a step's record, whole or not, or what is left of one that was removed.
    fn result(&self, record: &StepRecord) -> Option<BTreeMap<String, BlobDigest>> {
        let kept = self.env.store.lookup_shallow(&record.action).ok().flatten();
        let left = || self.env.store.tombstone(&record.action);
        kept.map(|result| result.outputs)
            .or_else(|| left().map(|left| left.outputs))
    }

    /// Compares two models by the documents of their inspection: tensors, and keys of the metadata. A document that is no
    /// longer there tells nothing.
    fn inside(&self, before: &BTreeMap<String, BlobDigest>, now: &ActionResult) -> Vec<Detail> {
        const METADATA: &str = InspectModel::METADATA.as_str();
        const INDEX: &str = InspectModel::MODEL.as_str();
        let mut details = Vec::new();
        let metadata =
            |digest: Option<&BlobDigest>| -> Option<Metadata> { decode_metadata(self.env.store, *digest?).ok() };
        let index = |digest: Option<&BlobDigest>| -> Option<ModelIndex> {
            decode(self.env.store, "model index", *digest?).ok()
        };
        if let (Some(old), Some(new)) = (metadata(before.get(METADATA)), metadata(now.outputs.get(METADATA))) {
            details.extend(keys(&old, &new));
        }
        if let (Some(old), Some(new)) = (index(before.get(INDEX)), index(now.outputs.get(INDEX))) {
            details.extend(tensors(&old, &new));
        }
        let more = details.len().saturating_sub(MOST);
        if more > 0 {
            details.truncate(MOST);
            details.push(Detail {
                name: format!("{more} more"),
                before: None,
                after: None,
            });
        }
        details
    }
}

/// Returns a value, shortened; `None` for a field that is null.
fn non_null(value: Option<&str>) -> Option<String> {
    value.filter(|value| *value != "null").map(cut)
}

fn cut(value: &str) -> String {
    if value.chars().count() <= LONGEST {
        return value.to_owned();
    }
    format!("{}...", value.chars().take(LONGEST).collect::<String>())
}

fn facts(before: &Identity, after: &Identity) -> Vec<Detail> {
    let names = before
        .facts
        .keys()
        .chain(after.facts.keys().filter(|name| !before.facts.contains_key(*name)));
    let differ = names.filter(|name| before.facts.get(*name) != after.facts.get(*name));
    differ
        .map(|name| Detail {
            name: name.clone(),
            before: before.facts.get(name).cloned(),
            after: after.facts.get(name).cloned(),
        })
        .collect()
}

fn digest(digest: &BlobDigest) -> String {
    format!("{} ({})", digest.hash.short(), prose::bytes(digest.len))
}

fn files(before: &[ReadFile], now: &[ReadFile]) -> Vec<Detail> {
    let of = |files: &[ReadFile], path: &str| files.iter().find(|file| file.path == path).map(|file| file.digest);
    let paths = before
        .iter()
        .chain(now.iter().filter(|file| of(before, &file.path).is_none()));
    paths
        .map(|file| (&file.path, of(before, &file.path), of(now, &file.path)))
        .filter(|(_, old, new)| old != new)
        .map(|(path, old, new)| Detail {
            name: path.clone(),
            before: old.as_ref().map(digest),
            after: new.as_ref().map(digest),
        })
        .collect()
}

fn keys(old: &Metadata, new: &Metadata) -> Vec<Detail> {
    let names = old
        .iter()
        .map(crate::gguf::Entry::key)
        .chain(new.iter().map(crate::gguf::Entry::key).filter(|key| !old.contains(key)));
    let show = |metadata: &Metadata, key: &str| metadata.get(key).map(crate::gguf::Entry::shown);
    names
        .filter(|key| match (old.get(key), new.get(key)) {
            (Some(a), Some(b)) => (a.value_type(), a.raw()) != (b.value_type(), b.raw()),
            _ => true,
        })
        .map(|key| Detail {
            name: format!("metadata {key}"),
            before: show(old, key).as_deref().map(cut),
            after: show(new, key).as_deref().map(cut),
        })
        .collect()
}

fn tensors(old: &ModelIndex, new: &ModelIndex) -> Vec<Detail> {
    let by_name = |index: &ModelIndex| -> BTreeMap<String, (String, BlobDigest)> {
        let tensors = index.tensors.iter().map(|tensor| {
            let shape = format!("{} {:?}", tensor.ty, tensor.dims);
            (tensor.name.clone(), (shape, tensor.bytes))
        });
        tensors.collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    let show =
        |tensor: Option<&(String, BlobDigest)>| tensor.map(|(shape, bytes)| format!("{shape}, {}", bytes.hash.short()));
    names
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| Detail {
            name: format!("tensor {name}"),
            before: show(old.get(name)),
            after: show(new.get(name)),
        })
        .collect()
}
