//! A manifest against itself: every key from its document, every output from what it is made of, every source that a
//! document names among the sources, the recipe from its text.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde_json::Value;

use crate::action;
use crate::action::Action;
use crate::action::role;
use crate::action::role::OutputOf;
use crate::action::role::Role;
use crate::container;
use crate::digest::BlobDigest;
use crate::digest::Hash;
use crate::engine::Identity;
use crate::graph::Graph;
use crate::graph::NodeId;
use crate::manifest::ActionRecord;
use crate::manifest::Manifest;
use crate::manifest::Resource;
use crate::recipe;
use crate::recipe::Calibration;
use crate::recipe::Recipe;
use crate::recipe::StepBody;
use crate::recipe::StepId;
use crate::step;
use crate::step::promote;
use crate::tensor_type::TensorType;
use crate::text::Source;
use crate::verify::Part;
use crate::verify::Problem;
use crate::work::AssembledTensor;
use crate::work::Assembly;
use crate::work::From;
use crate::work::IndexedTensor;
use crate::work::compute_of;

/// What a manifest says of its output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// BLAKE3 and length of the file.
    pub file: Option<BlobDigest>,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: Option<String>,
    /// What stands before the tensors and their padding.
    pub header: Option<BlobDigest>,
    /// The tensors, in the file's order.
    pub tensors: Vec<TensorFact>,
}

/// What a manifest says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorFact {
    /// The name.
    pub name: String,
    /// The type, in ggml's spelling.
    pub ty: String,
    /// The dimensions, the row length first.
    pub dims: Vec<u64>,
    /// Where it begins in the file.
    pub start: u64,
    /// Its bytes; nothing if the manifest's text is no digest.
    pub bytes: Option<BlobDigest>,
}

/// Problems of a manifest while they are gathered.
struct Check<'m> {
    manifest: &'m Manifest,
    problems: Vec<Problem>,
}

/// Holds a manifest against itself; `bytes` are its file's. Returns what it says of its output, and all that is wrong.
pub fn check(manifest: &Manifest, bytes: &[u8]) -> (Facts, Vec<Problem>) {
    let mut check = Check {
        manifest,
        problems: Vec::new(),
    };
    check.form(bytes);
    let mut facts = check.subject();
    let actions = check.actions();
    check.engines(&actions);
    let sources = check.sources(&actions);
    check.links(&actions);
    facts.tensors = check.tensors(&actions);
    check.promote(&actions, &mut facts);
    check.recipe(&sources);
    check.nondeterminism(&actions);
    (facts, check.problems)
}

/// The actions that could be read, by key.
type Actions<'m> = BTreeMap<&'m str, (Action, &'m ActionRecord)>;

fn digest_of(resource: &Resource) -> Option<BlobDigest> {
    let hash: Hash = resource.digest.get("blake3")?.parse().ok()?;
    let len = resource.annotations.get("bytes")?;
    // Through the text, so that `007` is no number.
    format!("{hash}:{len}").parse().ok()
}

impl<'m> Check<'m> {
    fn say(&mut self, place: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem::new(Part::Manifest, place, what));
    }

    /// The file is what forge writes of its contents: no field twice, nothing between the fields.
    fn form(&mut self, bytes: &[u8]) {
        let written = self.manifest.to_bytes().unwrap_or_default();
        if written == bytes {
            return;
        }
        let at = bytes.iter().zip(&written).take_while(|(a, b)| a == b).count();
        let line = bytes[..at].split(|byte| *byte == b'\n').count();
        self.say(
            "",
            format!("it is not as forge writes it from byte {at} (line {line}) on: it was edited or reformatted"),
        );
    }

    fn subject(&mut self) -> Facts {
        let mut facts = Facts::default();
        let manifest = self.manifest;
        let [subject] = &manifest.subject[..] else {
            let found = manifest.subject.len();
            self.say("subject", format!("it has {found} entries instead of one output"));
            return facts;
        };
        facts.file = digest_of(subject);
        if facts.file.is_none() {
            self.say("subject[0]", "it has no blake3 of 64 digits with a number of bytes");
        }
        facts.sha256 = subject.digest.get("sha256").cloned();
        if facts.sha256.as_ref().is_none_or(|sum| sum.parse::<Hash>().is_err()) {
            self.say("subject[0].digest.sha256", "it is not a SHA-256 of 64 lowercase digits");
        }
        let known = |names: Vec<&String>, expected: &[&str]| names.iter().all(|name| expected.contains(&name.as_str()));
        if !known(subject.digest.keys().collect(), &["blake3", "sha256"])
            || !known(subject.annotations.keys().collect(), &["bytes"])
        {
            self.say("subject[0]", "it has fields other than blake3, sha256 and bytes");
        }
        let step = &manifest.predicate.build_definition.external_parameters.step;
        let label = step
            .parse::<recipe::StepId>()
            .map(|id| container::file_name(&id.label()));
        match label {
            Ok(name) if name == subject.name => {}
            Ok(name) => {
                let found = short(&subject.name);
                self.say(
                    "subject[0].name",
                    format!("it is `{found}`, but `{}` writes `{name}`", short(step)),
                );
            }
            Err(_) => self.say(
                "predicate.buildDefinition.externalParameters.step",
                format!("`{}` is not a step", short(step)),
            ),
        }
        facts
    }

    fn actions(&mut self) -> Actions<'m> {
        let manifest = self.manifest;
        let mut actions = Actions::new();
        for (key, record) in &manifest.predicate.forge.actions {
            let place = format!("predicate.forge.actions[{}]", short(key));
            let text = record.document.to_string();
            let action = match Action::parse(text.as_bytes()) {
                Ok(action) => action,
                Err(error) => {
                    self.say(format!("{place}.document"), error.to_string());
                    continue;
                }
            };
            let document = action.document();
            // A field that actions do not have is no part of the key, so it would go unnoticed there.
            if serde_json::from_slice::<Value>(&document).ok().as_ref() != Some(&record.document) {
                self.say(
                    format!("{place}.document"),
                    "it has fields that an action of this kind does not have",
                );
            }
            let found = action.digest().to_string();
            if found != *key {
                self.say(format!("{place}.document"), format!("its key is {found}"));
            }
            for (name, digest) in &record.outputs {
                if digest.parse::<BlobDigest>().is_err() {
                    self.say(format!("{place}.outputs.{}", short(name)), "it is not a digest");
                }
            }
            actions.insert(key, (action, record));
        }
        actions
    }

    fn engines(&mut self, actions: &Actions<'_>) {
        let manifest = self.manifest;
        let engines = &manifest.predicate.forge.engines;
        for (fingerprint, document) in engines {
            let identity: Option<Identity> = serde_json::from_value(document.clone()).ok();
            let found = identity.map(|identity| identity.fingerprint().to_string());
            if found.as_ref() != Some(fingerprint) {
                let what = found.map_or_else(
                    || "it is not the identity of an engine".to_owned(),
                    |found| format!("its fingerprint is {found}"),
                );
                self.say(format!("predicate.forge.engines[{}]", short(fingerprint)), what);
            }
        }
        for (key, (_, record)) in actions {
            for (field, role, named) in role::engines_in(&record.document) {
                let what = match engines.get(named) {
                    None => format!("{} is not among the engines", short(named)),
                    Some(engine) if engine["role"] != role.as_str() => {
                        format!("{} is not an engine with the role {}", short(named), role.as_str())
                    }
                    Some(_) => continue,
                };
                self.say(
                    format!("predicate.forge.actions[{}].document.inputs.{field}", short(key)),
                    what,
                );
            }
        }
    }

    /// Holds what documents name as sources against the list of them, both ways. Returns the nodes that have sources.
    fn sources(&mut self, actions: &Actions<'_>) -> BTreeSet<String> {
        let manifest = self.manifest;
        let mut listed = BTreeSet::new();
        let mut nodes = BTreeSet::new();
        for (at, source) in manifest
            .predicate
            .build_definition
            .resolved_dependencies
            .iter()
            .enumerate()
        {
            let place = format!("predicate.buildDefinition.resolvedDependencies[{at}]");
            if !is_file_name(&source.name) {
                self.say(
                    format!("{place}.name"),
                    format!("`{}` is not a file name", short(&source.name)),
                );
            }
            match digest_of(source) {
                Some(digest) => {
                    listed.insert(digest.to_string());
                }
                None => self.say(place.clone(), "it has no blake3 of 64 digits with a number of bytes"),
            }
            match source.annotations.get("node") {
                Some(node) => {
                    nodes.insert(node.clone());
                }
                None => self.say(place, "it does not name its node"),
            }
        }
        let mut named = BTreeSet::new();
        for (key, (_, record)) in actions {
            for leaf in role::leaves(&record.document) {
                let (Some(Role::Source), Some(digest)) = (leaf.role, leaf.value.as_str()) else {
                    continue;
                };
                named.insert(digest.to_owned());
                if !listed.contains(digest) {
                    let place = format!("predicate.forge.actions[{}].document.inputs.{}", short(key), leaf.path);
                    self.say(place, format!("{} is not among the sources", short(digest)));
                }
            }
        }
        for digest in listed.difference(&named) {
            let what = format!("no action reads {}", short(digest));
            self.say("predicate.buildDefinition.resolvedDependencies", what);
        }
        nodes
    }

    fn links(&mut self, actions: &Actions<'_>) {
        let mut made: BTreeSet<(&str, &str, &str)> = BTreeSet::new();
        for (action, record) in actions.values() {
            for (name, digest) in &record.outputs {
                made.insert((action.kind(), name, digest));
            }
        }
        for (key, (_, record)) in actions {
            for leaf in role::leaves(&record.document) {
                let (Some(Role::Input(outputs)), Some(digest)) = (leaf.role, leaf.value.as_str()) else {
                    continue;
                };
                let is_made = |of: &OutputOf| made.contains(&(of.kind, of.output, digest));
                if !outputs.iter().any(is_made) {
                    let place = format!("predicate.forge.actions[{}].document.inputs.{}", short(key), leaf.path);
                    self.say(place, format!("no action of the manifest outputs {}", short(digest)));
                }
            }
        }
    }

    fn tensors(&mut self, actions: &Actions<'_>) -> Vec<TensorFact> {
        let manifest = self.manifest;
        let mut facts = Vec::new();
        let mut used = BTreeSet::new();
        let mut names = BTreeSet::new();
        for (at, tensor) in manifest.predicate.forge.tensors.iter().enumerate() {
            let place = format!("predicate.forge.tensors[{at}]");
            if !names.insert(&tensor.name) {
                self.say(
                    format!("{place}.name"),
                    format!("`{}` occurs twice", short(&tensor.name)),
                );
            }
            let bytes: Option<BlobDigest> = tensor.bytes.parse().ok();
            if bytes.is_none() {
                self.say(format!("{place}.bytes"), "it is not a digest");
            }
            if let Some(key) = &tensor.action {
                used.insert(key.as_str());
                match actions
                    .get(key.as_str())
                    .map(|(action, record)| (quantizes(action), record))
                {
                    Some((Some(action), record)) => {
                        if record.outputs.get("tensor") != Some(&tensor.bytes) {
                            self.say(format!("{place}.bytes"), "it is not the output of its action");
                        }
                        if action.to != tensor.ty {
                            let what = format!(
                                "it is {}, but its action makes {}",
                                short(&tensor.ty),
                                short(&action.to)
                            );
                            self.say(format!("{place}.type"), what);
                        }
                        if action.dims != tensor.dims {
                            self.say(format!("{place}.dims"), "they are not those of its action");
                        }
                    }
                    Some(_) => self.say(format!("{place}.action"), "that action does not quantize a tensor"),
                    None => self.say(
                        format!("{place}.action"),
                        format!("{} is not among the actions", short(key)),
                    ),
                }
            }
            facts.push(TensorFact {
                name: tensor.name.clone(),
                ty: tensor.ty.clone(),
                dims: tensor.dims.clone(),
                start: tensor.start,
                bytes,
            });
        }
        for (key, (action, _)) in actions {
            if quantizes(action).is_some() && !used.contains(key) {
                let what = "no tensor of the manifest is its output";
                self.say(format!("predicate.forge.actions[{}]", short(key)), what);
            }
        }
        facts
    }

    /// The action that made the output: its documents are made anew of what else the manifest says.
    fn promote(&mut self, actions: &Actions<'_>, facts: &mut Facts) {
        let manifest = self.manifest;
        let forge = &manifest.predicate.forge;
        let step = &manifest.predicate.build_definition.external_parameters.step;
        let Some((Action::Promote(_), record)) = actions.get(forge.action.as_str()) else {
            let what = "it is not the key of an action that assembles a candidate";
            return self.say("predicate.forge.action", what);
        };
        if record.step.as_ref() != Some(step) {
            let what = format!("it belongs to a step other than `{}`", short(step));
            self.say("predicate.forge.action", what);
        }
        let output = |name: &str| {
            record
                .outputs
                .get(name)
                .and_then(|digest| digest.parse::<BlobDigest>().ok())
        };
        facts.header = output("header");
        let mut indexed = Vec::new();
        let mut assembled = Vec::new();
        for (tensor, fact) in forge.tensors.iter().zip(&facts.tensors) {
            let (Some(ty), Some(bytes)) = (TensorType::from_name(&tensor.ty), fact.bytes) else {
                let what = format!(
                    "`{}`: its type is unknown, or its digest is not a digest",
                    short(&tensor.name)
                );
                return self.say("predicate.forge.tensors", what);
            };
            let action = match tensor.action.as_deref().map(str::parse) {
                None => None,
                Some(Ok(action)) => Some(action),
                // Said where the tensor's action was looked for.
                Some(Err(_)) => return,
            };
            indexed.push(IndexedTensor {
                name: tensor.name.clone(),
                ty,
                dims: tensor.dims.clone(),
                shard: 0,
                start: tensor.start,
                bytes,
            });
            assembled.push(AssembledTensor {
                name: tensor.name.clone(),
                ty,
                dims: tensor.dims.clone(),
                start: tensor.start,
                bytes,
                from: if action.is_some() { From::Store } else { From::Source },
                action,
            });
        }
        let (Some(file), Some(header), Some(sha256)) = (facts.file, facts.header, facts.sha256.clone()) else {
            return;
        };
        let assembly = Assembly {
            schema: crate::work::INDEX,
            file,
            sha256,
            header,
            tensors: assembled,
        };
        let digest = |document: Result<Vec<u8>, _>| document.ok().map(|bytes| BlobDigest::of(&bytes));
        if digest(serde_json::to_vec(&assembly)) != output("assembly") {
            self.say(
                "predicate.forge.tensors",
                "the tensors or the subject's digests differ from those in the assembly's record",
            );
        }
        let made = output("hyperparameters").map(|digest| compute_of(digest, &indexed));
        if made.and_then(|compute| digest(serde_json::to_vec(&compute))) != output("compute") {
            let what = "the tensors are not those that the candidate computes with";
            self.say("predicate.forge.tensors", what);
        }
    }

    /// Checks that overlaps are of evaluations that allow them, and of texts that the candidate was calibrated on.
    fn overlaps(&mut self, recipe: &Recipe, candidate: &StepId) {
        let manifest = self.manifest;
        let texts = Calibration::of(recipe).texts(candidate);
        for overlap in &manifest.predicate.forge.overlaps {
            let is_allowed = recipe.steps.iter().any(|step| match &step.body {
                StepBody::Eval(eval) => {
                    eval.allow_overlap
                        && step.id.label() == overlap.eval
                        && eval.corpus.label() == overlap.corpus
                        && eval.candidates.contains(candidate)
                }
                _ => false,
            });
            if !is_allowed || !texts.keys().any(|text| text.label() == overlap.calibration) {
                let what = format!("the recipe allows no overlap of `{}`", short(&overlap.eval));
                self.say("predicate.forge.overlaps", what);
            }
        }
    }

    fn recipe(&mut self, sources: &BTreeSet<String>) {
        let manifest = self.manifest;
        let parameters = &manifest.predicate.build_definition.external_parameters;
        let place = "predicate.buildDefinition.externalParameters.recipeToml";
        let parsed = match recipe::parse_alone(&Source::new("recipeToml", parameters.recipe_toml.as_str())) {
            Ok(parsed) => parsed.recipe,
            Err(errors) => {
                let first = errors.first().map(ToString::to_string).unwrap_or_default();
                return self.say(place, format!("it is not a valid recipe: {first}"));
            }
        };
        // Another version may print its defaults in other words.
        let versions = &manifest.predicate.run_details.builder.version;
        if versions
            .get("forge")
            .is_some_and(|version| version == env!("CARGO_PKG_VERSION"))
        {
            if parsed.to_toml() != parameters.recipe_toml {
                self.say(place, "it is not as forge writes it: it was edited");
            }
            if serde_json::to_value(&parsed).ok().as_ref() != Some(&parameters.recipe) {
                let what = "it differs from recipeToml";
                self.say("predicate.buildDefinition.externalParameters.recipe", what);
            }
        }
        let graph = match Graph::of(&parsed) {
            Ok(graph) => graph,
            Err(error) => return self.say(place, error.to_string()),
        };
        let wanted = graph.nodes().find(|node| node.id.to_string() == parameters.step);
        let Some(candidate) = wanted.and_then(promote::candidate) else {
            let what = format!("the recipe has no candidate `{}`", short(&parameters.step));
            return self.say("predicate.buildDefinition.externalParameters.step", what);
        };
        self.overlaps(&parsed, candidate);
        let graph = graph.only(&[NodeId::Step(candidate.clone())]);
        let nodes: BTreeSet<String> = graph.nodes().map(|node| node.id.to_string()).collect();
        let readers: BTreeSet<String> = graph
            .nodes()
            .filter(|node| step::reads_files(node))
            .map(|node| node.id.to_string())
            .collect();
        for (key, record) in &manifest.predicate.forge.actions {
            if let Some(step) = record.step.as_ref().filter(|step| !nodes.contains(*step)) {
                let what = format!("`{}` is not a step that leads to the output", short(step));
                self.say(format!("predicate.forge.actions[{}].step", short(key)), what);
            }
        }
        if *sources != readers {
            let name = |names: Vec<&String>| names.first().map(|name| short(name)).unwrap_or_default();
            let (more, less) = (
                name(sources.difference(&readers).collect()),
                name(readers.difference(sources).collect()),
            );
            let what = if less.is_empty() {
                format!("the recipe reads no files for `{more}`")
            } else {
                format!("no source is listed for `{less}`")
            };
            self.say("predicate.buildDefinition.resolvedDependencies", what);
        }
    }

    fn nondeterminism(&mut self, actions: &Actions<'_>) {
        let manifest = self.manifest;
        for (at, event) in manifest.predicate.forge.nondeterminism.iter().enumerate() {
            let kept = actions.get(event.action.as_str()).map(|(_, record)| &record.outputs);
            if kept != Some(&event.kept) {
                let place = format!("predicate.forge.nondeterminism[{at}]");
                self.say(
                    place,
                    "the result that was kept is not that of an action of the manifest",
                );
            }
        }
    }
}

/// Says whether a text can be the name of a file in a folder: no path, not empty, no NUL.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// What somebody else wrote, cut to a length that a line can bear.
fn short(text: &str) -> String {
    const MOST: usize = 80;
    let mut cut: String = text.chars().take(MOST).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// Returns what an action quantizes, whether or not it refines codes; `None` of any other action.
fn quantizes(action: &Action) -> Option<action::Tensor> {
    match action {
        Action::Tensor(tensor) => Some(tensor.clone()),
        Action::RefinedTensor(refined) => Some(refined.plain()),
        _ => None,
    }
}
