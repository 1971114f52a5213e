//! The repeatability check finds, names and records actions that are not deterministic.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use forge::action;
use forge::action::Action;
use forge::action::ActionResult;
use forge::digest::ActionDigest;
use forge::engine::Cancel;
use forge::engine::Engines;
use forge::engine::Role;
use forge::observer::Silent;
use forge::store::Committed;
use forge::store::Store;
use forge::store::StoreEvent;
use forge::work::Context;
use forge::work::IndexedTensor;
use forge::work::Located;
use forge::work::Machine;
use forge::work::ModelIndex;
use forge::work::Models;
use forge::work::RepeatCheck;
use forge::work::SourceFile;
use forge::work::StepError;

use crate::one_layer_project::build_well;
use crate::one_layer_project::manifest;
use crate::one_layer_project::project;
use crate::second_engine::Renamed;
use crate::second_engine::engines;
use crate::support::Forge;

/// A model's tensors, and engines one of which gives `change`d bytes.
struct Setup {
    forge: Forge,
    store: Store,
    engines: Engines,
    located: Located,
    tensors: Vec<IndexedTensor>,
}

impl Setup {
    fn new(change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static) -> Self {
        let forge = project();
        build_well(&forge, &["recipe.toml", "source.model"]);
        let store = Store::open(forge.store()).unwrap();
        let file = SourceFile::known(&store, &forge.path("model.gguf")).unwrap().unwrap();
        let inspect = Action::InspectModel(action::InspectModel {
            files: vec![file.digest],
            index: forge::work::INDEX,
        });
        let result = store.lookup(&inspect.digest()).unwrap().unwrap();
        let mut located = Located::default();
        located.add(&result, std::slice::from_ref(&file));
        let index = result.output(action::InspectModel::MODEL.as_str()).unwrap();
        let index: ModelIndex = forge::work::decode(&store, "model index", index).unwrap();
        Self {
            forge,
            store,
            engines: engines(Renamed::changing(change)),
            located,
            tensors: index.tensors,
        }
    }

    fn machine(&self, models: &'static Models, repeat: Option<Arc<RepeatCheck>>) -> Machine<'_> {
        Machine {
            store: &self.store,
            observer: &Silent,
            cancel: Cancel::new(),
            engines: &self.engines,
            workers: None,
            models,
            repeat,
            failed: None,
            forecast: None,
            memory: None,
        }
    }

    /// The action that quantizes a tensor with the engine that changes bytes.
    fn action(&self, tensor: &str) -> Action {
        let tensor = self.tensors.iter().find(|known| known.name == tensor).unwrap();
        Action::Tensor(action::Tensor {
            source: tensor.bytes,
            from: tensor.ty.name().to_owned(),
            dims: tensor.dims.clone(),
            to: "Q8_0".to_owned(),
            weights: None,
            quantizer: self.engines.fingerprint(Renamed::NAME, Role::Quantizer).unwrap(),
        })
    }
}

fn models() -> &'static Models {
    Box::leak(Box::default())
}

#[test]
fn an_action_with_a_different_second_result_is_found() {
    let runs = Arc::new(AtomicU8::new(0));
    let counted = Arc::clone(&runs);
    let setup = Setup::new(move |bytes| bytes[700] = counted.fetch_add(1, Ordering::Relaxed));
    let check = Arc::new(RepeatCheck::new(BTreeSet::from(["promote.a".to_owned()])));
    let machine = setup.machine(models(), Some(Arc::clone(&check)));
    let context = Context::new("promote.a", &machine, setup.located.clone());
    let action = setup.action("blk.0.attn_q.weight");
    let first = context.perform_part("attn_q", &action).unwrap();
    assert_eq!((runs.load(Ordering::Relaxed), check.repeated()), (2, 1));
    let found = check.differences();
    let [output] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(
        (output.step.as_str(), output.kind, output.part.as_str()),
        ("promote.a", "tensor", "attn_q")
    );
    assert_eq!(
        (output.output.as_str(), output.at, output.key),
        ("tensor", Some(700), action.digest())
    );
    let kept = first.output(action::Tensor::TENSOR).unwrap();
    assert_eq!(output.kept, Some(kept.to_string()));
    // The first result stays, and the store has the difference on record.
    let store = &setup.store;
    assert_eq!(store.lookup(&action.digest()).unwrap().unwrap(), first.result);
    let events = store.events().unwrap();
    let [StoreEvent::Nondeterminism { key, kept, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((key, kept), (&action.digest(), &first.result));
    // Once for each action, however often it is needed.
    context.perform(&action).unwrap();
    assert_eq!((runs.load(Ordering::Relaxed), check.repeated()), (2, 1));
}

#[test]
fn a_stored_result_is_repeated_once_and_other_steps_do_not_run() {
    let runs = Arc::new(AtomicU8::new(0));
    let counted = Arc::clone(&runs);
    let setup = Setup::new(move |bytes| {
        // One that is run a fourth time fails: the bytes are too few.
        if counted.fetch_add(1, Ordering::Relaxed) == 3 {
            bytes.pop();
        }
    });
    let count = || runs.load(Ordering::Relaxed);
    let action = setup.action("blk.0.attn_k.weight");
    let plain = setup.machine(models(), None);
    let perform = |machine: &Machine<'_>, step: &str, action: &Action| {
        Context::new(step, machine, setup.located.clone())
            .perform(action)
            .map(drop)
    };
    perform(&plain, "promote.a", &action).unwrap();
    assert_eq!(count(), 1);
    let check = Arc::new(RepeatCheck::new(BTreeSet::from(["promote.a".to_owned()])));
    let machine = setup.machine(models(), Some(Arc::clone(&check)));
    perform(&machine, "promote.b", &action).unwrap();
    assert_eq!((count(), check.repeated()), (1, 0));
    perform(&machine, "promote.a", &action).unwrap();
    assert_eq!((count(), check.repeated()), (2, 1));
    assert_eq!(check.differences(), []);
    assert_eq!(setup.store.events().unwrap(), []);
    // An action that fails the second time fails.
    let failed = perform(&machine, "promote.a", &setup.action("blk.0.attn_v.weight"));
    assert!(matches!(failed, Err(StepError::Input { .. })), "{failed:?}");
    drop(setup.forge);
}

fn written(folder: &Path) -> BTreeMap<String, (SystemTime, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let modified = entry.metadata().unwrap().modified().unwrap();
            (name, (modified, std::fs::read(entry.path()).unwrap()))
        })
        .collect()
}

#[test]
fn every_action_of_a_recipe_is_deterministic_and_outputs_are_not_touched() {
    let forge = project();
    // In an empty store each runs twice.
    let run = forge.run(&["check", "--twice", "-j", "1"]).success();
    assert!(run.stderr.contains("twice: all results are equal"), "{}", run.stderr);
    assert!(!forge.path("out/small/a.gguf").exists());
    build_well(&forge, &[]);
    let before = written(&forge.path("out/small"));
    let run = forge
        .run(&["check", "recipe.toml", "--twice", "-j", "1", "--message-format", "json"])
        .success();
    let lines = run.json_lines();
    let last = lines.last().unwrap();
    let built = build_well(&forge, &[]);
    built.assert_idle();
    assert_eq!((&last["reason"], &last["differ"]), (&"twice".into(), &0.into()));
    // As many as the store has results: every action of the recipe, but for the comparison of its texts, which is no step.
    let results = crate::small_model::committed(forge.store()).len() - 1;
    assert_eq!(last["actions"], results);
    assert!(before == written(&forge.path("out/small")));
    // One step: its own actions and parts only.
    let run = forge
        .run(&[
            "check",
            "--twice",
            "imatrix.general",
            "-j",
            "1",
            "--message-format",
            "json",
        ])
        .success();
    // Two blocks of chunks, the tokens of one text, and their sum.
    assert_eq!(run.json_lines().last().unwrap()["actions"], 4);
    let run = forge.run(&["check", "--twice", "promote.nobody"]).status(2);
    assert!(run.stderr.contains("promote.nobody"), "{}", run.stderr);
    let run = forge.run(&["check", "--twice", "other.toml"]).status(1);
    assert!(
        run.stderr.contains("can't read the recipe `other.toml`"),
        "{}",
        run.stderr
    );
}

/// Returns the key of the action that quantized a tensor of a candidate.
fn key_of(manifest: &serde_json::Value, tensor: &str) -> ActionDigest {
    let tensors = manifest["predicate"]["forge"]["tensors"].as_array().unwrap();
    let found = tensors.iter().find(|found| found["name"] == tensor).unwrap();
    found["action"].as_str().unwrap().parse().unwrap()
}

#[test]
fn differences_are_named_and_written_to_the_manifest() {
    let forge = project();
    build_well(&forge, &[]);
    let name = "blk.0.attn_k.weight";
    let key = key_of(&manifest(&forge.path("out/small/a.gguf")), name);
    let store = Store::open(forge.store()).unwrap();
    let good = store.lookup(&key).unwrap().unwrap();
    let mut bytes = store.read(&good.output("tensor").unwrap(), 1 << 30).unwrap();
    bytes[1234] ^= 4;
    let wrong = ActionResult {
        outputs: BTreeMap::from([("tensor".to_owned(), store.put(&bytes).unwrap())]),
        ..good.clone()
    };

    // Another time the tensor came out otherwise: the manifest tells from the next build on, and only this one changes.
    let before = written(&forge.path("out/small"));
    assert!(matches!(store.commit(&key, &wrong).unwrap(), Committed::Differs(_)));
    let built = build_well(&forge, &[]);
    let users: Vec<String> = ["a", "b"]
        .into_iter()
        .filter(|candidate| {
            before[&format!("{candidate}.gguf.manifest.json")]
                .1
                .windows(64)
                .any(|it| it == key.to_string().as_bytes())
        })
        .map(|candidate| format!("{candidate}.gguf.manifest.json"))
        .collect();
    assert_eq!(built.written(), users.into_iter().collect());
    let manifest = manifest(&forge.path("out/small/a.gguf"));
    let recorded = &manifest["predicate"]["forge"]["nondeterminism"];
    assert_eq!(recorded.as_array().unwrap().len(), 1);
    assert_eq!(recorded[0]["action"], key.to_string());
    assert_eq!(
        recorded[0]["kept"]["tensor"],
        good.output("tensor").unwrap().to_string()
    );
    assert_eq!(
        recorded[0]["differing"]["tensor"],
        wrong.output("tensor").unwrap().to_string()
    );
    let text = std::fs::read_to_string(crate::support::project().join("cache-schema/manifest.v1.json")).unwrap();
    let schema = jsonschema::draft202012::new(&serde_json::from_str(&text).unwrap()).unwrap();
    assert!(schema.is_valid(&manifest));
    let _ = forge.run(&["verify"]).success();
    build_well(&forge, &[]).assert_idle();

    // The store has the wrong one: made once more, the tensor is another, and the first byte that differs is named.
    let file = crate::small_model::sharded(forge.store(), "actions-v1")
        .remove(&key.to_string())
        .unwrap();
    std::fs::remove_file(file).unwrap();
    assert!(matches!(store.commit(&key, &wrong).unwrap(), Committed::New));
    let run = forge.run(&["check", "--twice", "promote.a", "-j", "1"]).status(1);
    let line = run.stdout.lines().find(|line| line.contains(name)).unwrap();
    for word in [
        "promote.a",
        name,
        "`tensor` of tensor",
        &key.to_string()[..8],
        "from byte 1234 on",
    ] {
        assert!(line.contains(word), "{word}: {line}");
    }
    // The candidate that was assembled of the right tensor does not come out of the wrong one, either.
    assert!(run.stderr.contains("did not"), "{}", run.stderr);
    let run = forge
        .run(&["check", "--twice", "promote.a", "-j", "1", "--message-format", "json"])
        .status(1);
    let lines = run.json_lines();
    let line = lines.iter().find(|line| line["reason"] == "nondeterminism").unwrap();
    assert_eq!((&line["part"], &line["at"]), (&name.into(), &1234.into()));
    assert!(
        lines
            .iter()
            .any(|line| line["reason"] == "twice" && line["differ"] == 2),
        "{lines:#?}"
    );
}
