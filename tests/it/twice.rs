//! Actions that run twice: what is not deterministic is found, named and recorded.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use forge::action;
use forge::action::Action;
use forge::action::ActionResult;
use forge::action::Chunking;
use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::engine::Cancel;
use forge::observer::Silent;
use forge::step::Env;
use forge::step::StepError;
use forge::step::Task;
use forge::step::Twice;
use forge::store::Committed;
use forge::store::Store;
use forge::store::StoreEvent;

use crate::cut::build_well;
use crate::cut::manifest;
use crate::cut::project;

fn corpus(text: &str) -> Action {
    Action::Corpus(action::Corpus {
        texts: vec![BlobDigest::of(text.as_bytes())],
        chunking: Chunking::PerFile,
        parse_special: false,
    })
}

fn env<'e>(store: &'e Store, folder: &Path, twice: Option<Arc<Twice>>) -> Env<'e> {
    Env {
        store,
        observer: &Silent,
        cancel: Cancel::new(),
        threads: 1,
        quantizer: forge::engine::quantizer(),
        evaluator: forge::engine::evaluator(),
        recipe: "test".to_owned(),
        only_table: true,
        folder: folder.to_owned(),
        out: folder.to_owned(),
        placed: BTreeMap::new(),
        twice,
    }
}

#[test]
fn an_action_that_gives_something_else_the_second_time_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let twice = Arc::new(Twice::of(BTreeSet::from(["corpus.a".to_owned()])));
    let env = env(&store, dir.path(), Some(Arc::clone(&twice)));
    let task = Task::new("corpus.a", &env);
    let runs = Cell::new(0_u8);
    let fickle = |made: &mut forge::step::Made| -> Result<(), StepError> {
        runs.set(runs.get() + 1);
        let mut bytes = vec![7; 100_000];
        bytes[70_000] = runs.get();
        made.output("corpus", store.put(&bytes)?);
        made.output("same", store.put(b"same")?);
        made.fact("run", runs.get());
        Ok(())
    };
    let action = corpus("fickle");
    let first = task.perform_part("text 3", &action, &[], fickle).unwrap();
    assert_eq!((runs.get(), twice.again()), (2, 1));
    let found = twice.differences();
    assert_eq!(found.len(), 2, "{found:#?}");
    let output = &found[0];
    assert_eq!(
        (output.step.as_str(), output.kind, output.part.as_str()),
        ("corpus.a", "corpus", "text 3")
    );
    assert_eq!(
        (output.output.as_str(), output.at, output.key),
        ("corpus", Some(70_000), action.digest())
    );
    assert_eq!(
        output.kept,
        first.result.output("corpus").map(|digest| digest.to_string())
    );
    assert_eq!(
        (found[1].output.as_str(), found[1].kept.as_deref(), found[1].at),
        ("run", Some("1"), None)
    );
    // The first result stays, and the store has it on record.
    assert_eq!(store.lookup(&action.digest()).unwrap().unwrap(), first.result);
    let events = store.events().unwrap();
    let [StoreEvent::Nondeterminism { key, kept, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!((key, kept), (&action.digest(), &first.result));
    // Once for each action, however often it is needed.
    task.perform(&action, &[], fickle).unwrap();
    assert_eq!((runs.get(), twice.again()), (2, 1));
    // One whose outputs have another length, or are not there.
    let longer = |made: &mut forge::step::Made| -> Result<(), StepError> {
        runs.set(runs.get() + 1);
        let bytes = vec![1; usize::from(runs.get())];
        made.output("corpus", store.put(&bytes)?);
        if runs.get().is_multiple_of(2) {
            made.output("more", store.put(b"more")?);
        }
        Ok(())
    };
    task.perform(&corpus("longer"), &[], longer).unwrap();
    let found = twice.differences();
    let at = |output: &str| {
        found
            .iter()
            .find(|it| it.key == corpus("longer").digest() && it.output == output)
            .unwrap()
            .at
    };
    assert_eq!((at("corpus"), at("more")), (Some(3), None));
}

#[test]
fn a_result_that_is_there_is_made_once_more_and_other_steps_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store")).unwrap();
    let runs = Cell::new(0);
    let steady = |made: &mut forge::step::Made| -> Result<(), StepError> {
        runs.set(runs.get() + 1);
        made.output("corpus", store.put(b"steady")?);
        Ok(())
    };
    let plain = env(&store, dir.path(), None);
    Task::new("corpus.a", &plain)
        .perform(&corpus("steady"), &[], steady)
        .unwrap();
    assert_eq!(runs.get(), 1);
    let twice = Arc::new(Twice::of(BTreeSet::from(["corpus.a".to_owned()])));
    let env = env(&store, dir.path(), Some(Arc::clone(&twice)));
    Task::new("corpus.b", &env)
        .perform(&corpus("steady"), &[], steady)
        .unwrap();
    assert_eq!((runs.get(), twice.again()), (1, 0));
    Task::new("corpus.a", &env)
        .perform(&corpus("steady"), &[], steady)
        .unwrap();
    assert_eq!((runs.get(), twice.again()), (2, 1));
    assert_eq!(twice.differences(), []);
    assert_eq!(store.events().unwrap(), []);
    // An action that fails the second time fails.
    let fails = Cell::new(false);
    let failing = |made: &mut forge::step::Made| -> Result<(), StepError> {
        made.output("corpus", store.put(b"a")?);
        if fails.replace(true) {
            Err(StepError::input("no"))
        } else {
            Ok(())
        }
    };
    let failed = Task::new("corpus.a", &env).perform(&corpus("fails"), &[], failing);
    assert!(matches!(failed, Err(StepError::Input { .. })));
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
fn every_action_of_a_recipe_gives_the_same_twice_and_outputs_are_not_touched() {
    let forge = project();
    // In an empty store each runs twice.
    let run = forge.run(&["check", "--twice", "-j", "1"]).success();
    assert!(run.stderr.contains("twice: all gave the same"), "{}", run.stderr);
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
    // As many as the store has results: every action of the recipe.
    let results = crate::small::committed(forge.store()).len();
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
    let run = forge.run(&["check", "--twice", "other.toml"]).status(2);
    assert!(run.stderr.contains("forge check other.toml --twice"), "{}", run.stderr);
}

/// Returns the key of the action that quantized a tensor of a candidate.
fn key_of(manifest: &serde_json::Value, tensor: &str) -> ActionDigest {
    let tensors = manifest["predicate"]["forge"]["tensors"].as_array().unwrap();
    let found = tensors.iter().find(|found| found["name"] == tensor).unwrap();
    found["action"].as_str().unwrap().parse().unwrap()
}

#[test]
fn what_differs_is_named_and_stands_in_the_manifest() {
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
    let told = manifest(&forge.path("out/small/a.gguf"));
    let recorded = &told["predicate"]["forge"]["nondeterminism"];
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
    assert!(schema.is_valid(&told));
    let _ = forge.run(&["verify"]).success();
    build_well(&forge, &[]).assert_idle();

    // The store has the wrong one: made once more, the tensor is another, and the first byte that differs is named.
    let file = crate::small::sharded(forge.store(), "actions-v1")
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
    let told = lines.iter().find(|line| line["reason"] == "nondeterminism").unwrap();
    assert_eq!((&told["part"], &told["at"]), (&name.into(), &1234.into()));
    assert!(
        lines
            .iter()
            .any(|line| line["reason"] == "twice" && line["differ"] == 2),
        "{lines:#?}"
    );
}
