//! Every field of every action document has a role, and what asks for roles names causes rightly, also for `measured`
//! policies, whose documents have engines, versions and inputs below `method`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;

use forge::action::Action;
use forge::action::KINDS;
use forge::action::Policy;
use forge::action::role;
use forge::action::role::Origin;
use forge::digest::BlobDigest;
use forge::engine::Identity;
use forge::manifest::Manifest;
use forge::method::MethodDocument;
use forge::store::StepRecord;
use forge::store::Store;
use serde_json::Value as Json;

use crate::one_layer_project::build_well;
use crate::one_layer_project::furnish;
use crate::reproduce::reseal;
use crate::small_model;
use crate::support::Forge;
use crate::support::project;

/// A measured policy without an imatrix: nothing but the policy itself names the evaluator.
const MEASURED: &str = r#"schema = 1
name = "small"
[source.model]
path = "model.gguf"
[corpus.calibration]
files = ["prose.txt"]
[policy.p]
method = "measured"
corpus = "calibration"
context = 64
chunks = 2
block = 1
screen = 1
refine = 0
types = ["Q4_K", "Q8_0"]
budget = "7 bpw"
[promote.p]
policy = "p"
"#;

struct Built {
    forge: Forge,
    manifest: PathBuf,
}

impl Built {
    fn new() -> Self {
        let forge = Forge::new();
        furnish(&forge);
        forge.recipe(MEASURED);
        let _ = build_well(&forge, &[]);
        Self {
            manifest: forge.path("out/small/p.gguf.manifest.json"),
            forge,
        }
    }

    fn manifest(&self) -> Manifest {
        Manifest::parse(&std::fs::read(&self.manifest).unwrap()).unwrap()
    }

    fn write_manifest(&self, manifest: &Manifest) {
        std::fs::write(&self.manifest, manifest.to_bytes().unwrap()).unwrap();
    }

    /// Makes the store's record say that the policy was last made by another action, and has the result of today's go away.
    fn was_made_by(&self, change: impl FnOnce(&mut Policy)) {
        let store = Store::open(self.forge.store()).unwrap();
        let last = store.last("small", "policy.p").unwrap();
        let action = Action::parse(&store.read(&last.document, 1 << 20).unwrap()).unwrap();
        let Action::Policy(mut policy) = action else {
            panic!("not a policy");
        };
        change(&mut policy);
        let action = Action::Policy(policy);
        let results = small_model::sharded(self.forge.store(), "actions-v1");
        std::fs::remove_file(&results[&last.action.to_string()]).unwrap();
        let former = StepRecord {
            action: action.digest(),
            document: store.put(&action.document()).unwrap(),
            manifest: None,
            ..last
        };
        store.note_last(&former).unwrap();
    }

    /// Returns the root causes that `forge why policy.p` names: cause and sentence.
    fn roots(&self) -> Vec<(String, String)> {
        let run = self
            .forge
            .run(&["why", "policy.p", "--message-format", "json"])
            .success();
        let answer = run.json_lines().remove(0)["answer"].clone();
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        let roots = answer["roots"].as_array().unwrap().iter();
        roots.map(|root| (text(&root["cause"]), text(&root["what"]))).collect()
    }
}

/// An evaluator of another compiler.
fn other_evaluator() -> Identity {
    let mut identity = crate::support::identity(forge::engine::Role::Evaluator);
    identity
        .facts
        .insert("c compiler".to_owned(), "an older compiler".to_owned());
    identity
}

fn method_of(record: &mut Json) -> &mut Json {
    &mut record["inputs"]["method"]
}

#[test]
fn every_field_of_every_document_has_a_role() {
    let text = std::fs::read_to_string(project().join("cache-schema/vectors/actions.json")).unwrap();
    let vectors: Json = serde_json::from_str(&text).unwrap();
    let mut documents = Vec::new();
    gather(&vectors, &mut documents);
    let mut kinds = BTreeSet::new();
    let mut methods = BTreeSet::new();
    for document in &documents {
        // What the vectors leave out, the type writes.
        let action = Action::parse(document.to_string().as_bytes()).unwrap();
        let document: Json = serde_json::from_slice(&action.document()).unwrap();
        kinds.insert(action.kind());
        if let Action::Policy(_) = &action {
            methods.insert(document["inputs"]["method"]["name"].as_str().unwrap().to_owned());
        }
        let leaves = role::leaves(&document);
        assert!(!leaves.is_empty());
        for leaf in leaves {
            let role = leaf
                .role
                .unwrap_or_else(|| panic!("{}: `{}` has no role", action.kind(), leaf.path));
            let at = role::role_at(action.kind(), &format!("inputs.{}", leaf.path));
            assert_eq!(
                at.map(role::Role::origin),
                Some(role.origin()),
                "{}: {}",
                action.kind(),
                leaf.path
            );
            let text = leaf.value.as_str().unwrap_or_default();
            // A digest is never what the recipe says.
            if text.parse::<BlobDigest>().is_ok() {
                assert_ne!(role.origin(), Origin::Recipe, "{}: {}", action.kind(), leaf.path);
            }
        }
        // Declared fields are those that the document has, and those that are written only where a recipe asks for them.
        let mut declared: BTreeSet<&str> = role::fields_of(action.kind())
            .unwrap()
            .iter()
            .map(|field| field.name)
            .collect();
        let written = document["inputs"]
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        if action.kind() == "promote" && document["inputs"]["rounding"].is_null() {
            assert!(declared.remove("rounding"));
        }
        assert_eq!(declared, written, "{}", action.kind());
    }
    let all: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(kinds, all, "the vectors have a document of every kind");
    assert_eq!(methods.len(), 9, "and of every method: {methods:?}");
}

/// Gathers all action documents in a JSON value, also those that are written as text.
fn gather(value: &Json, found: &mut Vec<Json>) {
    match value {
        Json::Object(map) if map.contains_key("kind") && map.contains_key("inputs") => found.push(value.clone()),
        Json::Object(map) => map.values().for_each(|value| gather(value, found)),
        Json::Array(values) => values.iter().for_each(|value| gather(value, found)),
        Json::String(text) if text.starts_with("{\"schema\"") => {
            gather(&serde_json::from_str(text).unwrap(), found);
        }
        _ => {}
    }
}

#[test]
fn a_run_names_outputs_as_they_are_declared() {
    let built = Built::new();
    let outputs: BTreeMap<&str, &[&str]> = KINDS.iter().map(|kind| (kind.name, kind.outputs)).collect();
    let store = Store::open(built.forge.store()).unwrap();
    let mut seen = BTreeSet::new();
    for key in small_model::sharded(built.forge.store(), "actions-v1").keys() {
        let result = store.lookup_shallow(&key.parse().unwrap()).unwrap().unwrap();
        let action = Action::parse(&store.read(&result.action, 1 << 20).unwrap()).unwrap();
        seen.insert(action.kind());
        for output in result.outputs.keys() {
            let declared = outputs[action.kind()].contains(&output.as_str());
            assert!(declared, "{}: `{output}` is not declared", action.kind());
        }
    }
    for kind in [
        "inspect-model",
        "corpus",
        "policy",
        "tensor",
        "tensor-error",
        "eval-block",
        "promote",
    ] {
        assert!(seen.contains(kind), "{kind} is not among {seen:?}");
    }
}

#[test]
fn why_names_another_evaluator_and_another_solver_of_a_measured_policy() {
    let built = Built::new();
    let former = other_evaluator();
    let store = Store::open(built.forge.store()).unwrap();
    store.note_engine(&former.fingerprint(), &former.document()).unwrap();
    built.was_made_by(|policy| {
        let MethodDocument::Measured(measured) = &mut policy.method else {
            panic!("not measured");
        };
        measured.evaluator = former.fingerprint();
    });
    assert_eq!(
        built.roots(),
        [(
            "engine".to_owned(),
            "the evaluator has changed: `c compiler`".to_owned()
        )]
    );

    let built = Built::new();
    built.was_made_by(|policy| {
        let MethodDocument::Measured(measured) = &mut policy.method else {
            panic!("not measured");
        };
        measured.solver += 1;
    });
    let roots = built.roots();
    assert_eq!(roots.len(), 1, "{roots:?}");
    assert_eq!(roots[0].0, "forge", "{roots:?}");
}

#[test]
fn the_evaluator_of_a_measured_policy_is_compared_with_manifests() {
    let built = Built::new();
    let _ = built.forge.run(&["build", "--frozen", "-j", "1"]).success();
    let mut manifest = built.manifest();
    let (now, former) = (
        crate::support::identity(forge::engine::Role::Evaluator),
        other_evaluator(),
    );
    let engines = &mut manifest.predicate.forge.engines;
    engines.remove(&now.fingerprint().to_string()).unwrap();
    engines.insert(
        former.fingerprint().to_string(),
        serde_json::from_slice(&former.document()).unwrap(),
    );
    for record in manifest.predicate.forge.actions.values_mut() {
        if record.document["kind"] == "policy" {
            method_of(&mut record.document)["evaluator"] = former.fingerprint().to_string().into();
        }
    }
    reseal(&mut manifest);
    built.write_manifest(&manifest);
    let _ = built.forge.run(&["verify", "out/small/p.gguf.manifest.json"]).success();

    let frozen = built.forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    let expected = "the evaluator's `c compiler` is `";
    assert!(frozen.stderr.contains(expected), "{}", frozen.stderr);
    let reproduced = built
        .forge
        .run(&["reproduce", "out/small/p.gguf.manifest.json"])
        .status(3);
    let text = format!("{}{}", reproduced.stdout, reproduced.stderr);
    assert!(text.contains("evaluator") && text.contains("--any-engine"), "{text}");
}

#[test]
fn an_input_of_a_method_that_no_action_produced_is_found() {
    let built = Built::new();
    let good = built.manifest();
    let other = BlobDigest::of(b"of another model").to_string();
    for field in ["corpus", "model", "tokenizer"] {
        let mut manifest = good.clone();
        for record in manifest.predicate.forge.actions.values_mut() {
            if record.document["kind"] == "policy" {
                method_of(&mut record.document)[field] = other.clone().into();
            }
        }
        reseal(&mut manifest);
        built.write_manifest(&manifest);
        let verified = built.forge.run(&["verify", "out/small/p.gguf.manifest.json"]).status(1);
        let (place, what) = (format!("inputs.method.{field}"), format!("outputs {}", &other[..60]));
        assert!(
            verified.stdout.contains(&place) && verified.stdout.contains(&what),
            "{field}: {}",
            verified.stdout
        );
    }
}

#[test]
fn an_imatrix_of_another_model_in_a_manifest_is_found() {
    let forge = Forge::new();
    furnish(&forge);
    let imatrix =
        "[imatrix.general]\ncorpus = \"calibration\"\nchunks = 2\ncontext = 64\n[policy.p]\nimatrix = \"general\"\n";
    forge.recipe(&MEASURED.replace("[policy.p]\n", imatrix));
    let _ = build_well(&forge, &[]);
    let path = forge.path("out/small/p.gguf.manifest.json");
    let mut manifest = Manifest::parse(&std::fs::read(&path).unwrap()).unwrap();
    let other = BlobDigest::of(b"an imatrix of another model").to_string();
    for record in manifest.predicate.forge.actions.values_mut() {
        if record.document["kind"] == "policy" {
            assert!(method_of(&mut record.document)["imatrix"].is_string());
            method_of(&mut record.document)["imatrix"] = other.clone().into();
        }
    }
    reseal(&mut manifest);
    std::fs::write(&path, manifest.to_bytes().unwrap()).unwrap();
    let verified = forge.run(&["verify", "out/small/p.gguf.manifest.json"]).status(1);
    assert!(verified.stdout.contains("inputs.method.imatrix"), "{}", verified.stdout);
    assert!(
        verified.stdout.contains("no action of the manifest outputs"),
        "{}",
        verified.stdout
    );
}
