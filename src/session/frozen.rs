//! `--frozen`: compares sources and engines with those of the lock file. If there is none, compares them with the manifests in
//! the output folder and with the record of the last build.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde_json::Value;

use super::Session;
use super::SessionError;
use super::lock::Files;
use super::lock::Lock;
use super::lock::LockDifference;
use super::lock::LockError;
use super::lock::LockedEngine;
use super::lock::engine_differences;
use super::lock::file_differences;
use super::lock::locked_engine;
use super::lock::readers;
use crate::action::role;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Identity;
use crate::fs;
use crate::graph::Graph;
use crate::graph::Node;
use crate::graph::NodeId;
use crate::manifest;
use crate::manifest::Manifest;
use crate::observer::Observer;
use crate::observer::Silent;
use crate::recipe::StepId;
use crate::scheduler;
use crate::scheduler::Report;
use crate::step;
use crate::step::promote;
use crate::store::ReadFile;
use crate::vocab::EngineRole;

/// The maximum length of an action's document.
const ACTION_CAP: u64 = 16 << 20;

/// The name of the record of the last build, which covers what no manifest does.
const LAST_BUILD: &str = "the last build";

/// Returns the names of sources and steps; an evaluation has one name for all its candidates.
fn names_of(graph: &Graph) -> BTreeSet<String> {
    let name = |node: &Node| match node.work.step() {
        Some(step) => step.id.to_string(),
        None => node.id.to_string(),
    };
    graph.nodes().map(name).collect()
}

impl Session {
    /// Returns how the sources, the engines and the recipe differ from a lock file. Steps that are not in this session do not count.
    pub fn differs_from_lock(
        &self,
        lock: &Lock,
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<Vec<LockDifference>, LockError> {
        let found = self.lock(options, observer)?;
        let whole = Graph::of(&self.recipe).map_err(SessionError::from)?;
        let here: BTreeSet<String> = names_of(&self.graph);
        let all: BTreeSet<String> = names_of(&whole);
        // A step of the lock that the recipe no longer has counts; a step that is not in this session does not.
        let mut nodes: BTreeSet<String> = lock.source.iter().map(|source| source.node.clone()).collect();
        nodes.extend(lock.step.keys().cloned());
        nodes.retain(|node| !all.contains(node));
        nodes.extend(here);
        Ok(lock.differences(&found, Some(&nodes)))
    }

    /// Returns how the sources and engines differ from those in the manifests of the output folder, each with the name of the
    /// manifest. Manifests do not have files that only evaluations read: these are compared with the store's records of the
    /// steps, under the name `the last build`.
    ///
    /// # Errors
    ///
    /// [`LockError::Nothing`] if there is no manifest at all.
    pub fn differs_from_manifests(
        &self,
        options: scheduler::Options,
        observer: &dyn Observer,
    ) -> Result<Vec<(String, LockDifference)>, LockError> {
        let mut manifests = BTreeMap::new();
        let candidates: Vec<(&Node, &StepId)> = self.candidates().collect();
        for (node, id) in &candidates {
            let name = promote::manifest_name(id);
            match fs::read_small(&self.settings.out.join(&name), manifest::CAP) {
                Ok(bytes) => {
                    let manifest =
                        Manifest::parse(&bytes).map_err(|error| LockError::Malformed(format!("`{name}`: {error}")))?;
                    manifests.insert(node.id.clone(), (name, manifest));
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        if manifests.is_empty() {
            return Err(LockError::Nothing);
        }
        let report = self.read_sources(options, observer)?;
        let mut differences = Vec::new();
        for (node, _) in candidates {
            let Some((name, manifest)) = manifests.get(&node.id) else {
                let candidate = node.id.to_string();
                differences.push((String::new(), LockDifference::NoManifest { candidate }));
                continue;
            };
            let found = Self::files_read(&self.graph.only(std::slice::from_ref(&node.id)), &report);
            let found = engine_differences(
                &engines_of(manifest, &self.recipe.engine.name),
                &self.engines_used(manifest),
            )
            .into_iter()
            .chain(file_differences(&files_of(manifest), &found, &|_| true));
            differences.extend(found.map(|difference| (name.clone(), difference)));
        }
        let found = self.differs_from_record(&report).into_iter();
        differences.extend(found.map(|difference| (LAST_BUILD.to_owned(), difference)));
        Ok(differences)
    }

    /// Returns how the evaluator, and the files that no candidate is made of, differ from the record of the last build.
    fn differs_from_record(&self, report: &Report) -> Vec<LockDifference> {
        let candidates: Vec<NodeId> = self.candidates().map(|(node, _)| node.id.clone()).collect();
        let in_manifests = self.graph.only(&candidates);
        let silent = Silent;
        let env = self.env(&silent);
        let (mut before, mut now) = (Files::new(), Files::new());
        let mut differences = Vec::new();
        for node in readers(&self.graph).filter(|node| in_manifests.node(&node.id).is_none()) {
            let name = node.id.to_string();
            let Some(last) = self.store.last(&self.recipe.name, &name) else {
                differences.push(LockDifference::NoRecord { node: name });
                continue;
            };
            let files = |read: Vec<ReadFile>| {
                let named = read.into_iter().map(|file| ((name.clone(), file.path), file.digest));
                named.collect::<Files>()
            };
            before.extend(files(last.files));
            let read = report.outcomes.get(&node.id).map(|outcome| env.named(&outcome.files));
            now.extend(files(read.unwrap_or_default()));
        }
        differences.extend(file_differences(&before, &now, &|_| true));
        differences.extend(self.evaluator_differences(&in_manifests));
        differences
    }

    /// Returns how the evaluator differs from the one that made the figures on record. Manifests name an engine that calibrated,
    /// but not one that only evaluated. `in_manifests` has the steps that manifests describe.
    fn evaluator_differences(&self, in_manifests: &Graph) -> Vec<LockDifference> {
        let now = self.locked_engines();
        let evaluates = |name: &str| name.rsplit('.').next() == Some(EngineRole::Evaluator.as_str());
        let now: BTreeMap<String, LockedEngine> = now.into_iter().filter(|(name, _)| evaluates(name)).collect();
        let is_now = |engine: &Fingerprint| {
            let fingerprint = engine.to_string();
            now.values().any(|known| known.fingerprint == fingerprint)
        };
        let not_in_manifests = self.graph.nodes().filter(|node| in_manifests.node(&node.id).is_none());
        let documents = not_in_manifests
            .filter(|node| !step::needs(node).is_empty())
            .filter_map(|node| {
                let last = self.store.last(&self.recipe.name, &node.id.to_string())?;
                let document = self.store.read(&last.document, ACTION_CAP).ok()?;
                serde_json::from_slice::<Value>(&document).ok()
            });
        let evaluators = |document: Value| -> Vec<Fingerprint> {
            let engines = role::engines_in(&document).into_iter();
            let evaluators = engines.filter(|(_, role, _)| *role == EngineRole::Evaluator);
            evaluators
                .filter_map(|(_, _, fingerprint)| fingerprint.parse().ok())
                .collect()
        };
        let others: BTreeSet<Fingerprint> = documents
            .flat_map(evaluators)
            .filter(|engine| !is_now(engine))
            .collect();
        let identity_of = |engine: &Fingerprint| serde_json::from_slice::<Identity>(&self.store.engine(engine)?).ok();
        let differences = others.iter().flat_map(|engine| {
            let (name, before) = match identity_of(engine) {
                Some(identity) => locked_engine(&identity, &self.recipe.engine.name),
                None => (
                    EngineRole::Evaluator.as_str().to_owned(),
                    LockedEngine {
                        fingerprint: engine.to_string(),
                        facts: BTreeMap::new(),
                    },
                ),
            };
            let same = now.get(&name).or(now.values().next()).cloned();
            let same: BTreeMap<String, LockedEngine> = same.map(|same| (name.clone(), same)).into_iter().collect();
            engine_differences(&BTreeMap::from([(name, before)]), &same)
        });
        differences.collect()
    }

    fn candidates(&self) -> impl Iterator<Item = (&Node, &StepId)> {
        let nodes = self.graph.nodes();
        nodes.filter_map(|node| Some((node, promote::candidate(node)?)))
    }

    /// Returns this program's engines, as far as a manifest's actions name one for the same use.
    fn engines_used(&self, manifest: &Manifest) -> BTreeMap<String, LockedEngine> {
        let used = engines_of(manifest, &self.recipe.engine.name);
        let engines = self.locked_engines().into_iter();
        engines.filter(|(name, _)| used.contains_key(name)).collect()
    }

    fn files_read(graph: &Graph, report: &Report) -> Files {
        let mut files = Files::new();
        for node in readers(graph) {
            let read = report.outcomes.get(&node.id).map(|outcome| &outcome.files);
            for file in read.into_iter().flatten() {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                insert(&mut files, node.id.to_string(), &name, file.digest);
            }
        }
        files
    }
}

/// Adds a file under its name. A further file of the same name gets a number.
fn insert(files: &mut Files, node: String, name: &str, digest: BlobDigest) {
    let mut key = (node, name.to_owned());
    let mut count = 1;
    while files.contains_key(&key) {
        count += 1;
        key.1 = format!("{name} ({count})");
    }
    files.insert(key, digest);
}

fn files_of(manifest: &Manifest) -> Files {
    let mut files = Files::new();
    for source in &manifest.predicate.build_definition.resolved_dependencies {
        let hash = source.digest.get("blake3").and_then(|hash| hash.parse().ok());
        let len = source.annotations.get("bytes").and_then(|len| len.parse().ok());
        if let (Some(hash), Some(len)) = (hash, len) {
            let node = source.annotations.get("node").cloned().unwrap_or_default();
            insert(&mut files, node, &source.name, BlobDigest { hash, len });
        }
    }
    files
}

/// Returns the engines that a manifest's actions name, by what they are used for.
fn engines_of(manifest: &Manifest, main: &str) -> BTreeMap<String, LockedEngine> {
    let used = super::reproduce::engines_used(manifest);
    used.iter().map(|identity| locked_engine(identity, main)).collect()
}
