//! Manifests beside candidates: complete or not there, and written again where they are not.

use forge::digest::ActionDigest;
use forge::manifest::Manifest;
use forge::store::GcOptions;
use forge::store::StepRecord;
use forge::store::Store;
use serde_json::Value as Json;
use std::path::PathBuf;
use std::time::Duration;

use crate::one_layer_project::BARE;
use crate::one_layer_project::build_well;
use crate::one_layer_project::furnish;
use crate::one_layer_project::manifest;
use crate::support::Forge;

/// A built project with one candidate.
struct Built {
    forge: Forge,
    output: PathBuf,
    manifest: PathBuf,
}

impl Built {
    fn new() -> Self {
        let forge = Forge::new();
        furnish(&forge);
        forge.recipe(BARE);
        let _ = build_well(&forge, &[]);
        Self {
            output: forge.path("out/bare/p.gguf"),
            manifest: forge.path("out/bare/p.gguf.manifest.json"),
            forge,
        }
    }

    /// Returns the keys of the actions that quantized the candidate's tensors.
    fn tensor_keys(&self) -> Vec<ActionDigest> {
        let manifest = manifest(&self.output);
        let tensors = manifest["predicate"]["forge"]["tensors"].as_array().unwrap();
        let keys = tensors.iter().filter_map(|tensor| tensor["action"].as_str());
        keys.map(|key| key.parse().unwrap()).collect()
    }

    /// Removes the store's result of an action.
    fn remove_result(&self, key: &ActionDigest) {
        let name = key.to_string();
        let path = self.forge.store().join("actions-v1").join(&name[..2]).join(&name[2..]);
        std::fs::remove_file(path).unwrap();
    }

    /// Asserts that the manifest is good and the candidate can be made again from it.
    fn assert_good(&self) {
        let _ = self.forge.run(&["verify", "out/bare/p.gguf.manifest.json"]).success();
        let reproduced = self
            .forge
            .run(&["reproduce", "out/bare/p.gguf.manifest.json"])
            .success();
        let text = format!("{}{}", reproduced.stdout, reproduced.stderr);
        assert!(text.contains("identical"), "{text}");
    }

    /// Asserts that the plan names the manifest as the only work, and that the build writes it and nothing else.
    fn assert_written_again(&self) {
        let plan = self.forge.run(&["plan"]).success().stdout;
        assert!(plan.contains("write    promote.p"), "{plan}");
        assert!(
            plan.contains("only `p.gguf.manifest.json`: its manifest is missing, was edited or is incomplete"),
            "{plan}"
        );
        assert!(plan.contains("1 write, 0 miss"), "{plan}");
        let _ = self.forge.run(&["plan", "--check"]).status(1);
        let run = self.forge.run(&["build"]).success();
        assert!(
            run.stderr.contains("forge: 1 wrote, nothing else to do"),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("p.gguf.manifest.json\n"), "{}", run.stderr);
        let plan = self.forge.run(&["plan", "--check"]).success().stdout;
        assert!(plan.contains("nothing to do"), "{plan}");
        self.assert_good();
    }
}

#[test]
fn a_missing_or_edited_manifest_is_planned_and_written_again() {
    let built = Built::new();
    built.assert_good();
    let whole = std::fs::read(&built.manifest).unwrap();
    std::fs::remove_file(&built.manifest).unwrap();
    built.assert_written_again();
    let text = String::from_utf8(whole).unwrap();
    std::fs::write(&built.manifest, text.replace("\"ran\": true", "\"ran\": false")).unwrap();
    built.assert_written_again();
}

#[test]
fn a_tensor_whose_result_is_gone_stays_in_the_manifest() {
    let built = Built::new();
    let keys = built.tensor_keys();
    assert!(keys.len() > 2, "{keys:?}");
    built.remove_result(&keys[0]);
    std::fs::remove_file(&built.manifest).unwrap();
    built.assert_written_again();
    let record = &manifest(&built.output)["predicate"]["forge"]["actions"][keys[0].to_string()];
    assert_eq!(record["cost_ms"], Json::Null, "what it took is not known any more");
    assert_eq!(record["ran"], false);
    assert!(record["outputs"]["tensor"].is_string());
}

#[test]
fn a_manifest_that_contradicts_itself_is_written_again() {
    let built = Built::new();
    let good = std::fs::read(&built.manifest).unwrap();
    let key = built.tensor_keys()[0];
    // As earlier versions of forge wrote it when a tensor's result was gone, and noted it.
    let mut bad = Manifest::parse(&good).unwrap();
    bad.predicate.forge.actions.remove(&key.to_string()).unwrap();
    let bad = bad.to_bytes().unwrap();
    std::fs::write(&built.manifest, &bad).unwrap();
    let store = Store::open(built.forge.store()).unwrap();
    let last = store.last("bare", "promote.p").unwrap();
    assert!(last.manifest_checked);
    let noted = StepRecord {
        manifest: Some(store.put(&bad).unwrap()),
        manifest_checked: false,
        ..last
    };
    store.note_last(&noted).unwrap();
    let _ = built.forge.run(&["verify", "out/bare/p.gguf.manifest.json"]).status(1);
    built.assert_written_again();
}

#[test]
fn a_lease_keeps_the_results_that_a_cached_candidate_was_made_of() {
    let built = Built::new();
    let keys = built.tensor_keys();
    let options = GcOptions {
        older_than: Some(Duration::ZERO),
        also_newest: true,
        ..GcOptions::default()
    };
    let collected = |live: bool| {
        let store = Store::open(built.forge.store()).unwrap();
        let builder = Store::open(built.forge.store()).unwrap();
        let lease = live.then(|| builder.lease().unwrap());
        builder.use_results(keys.iter().copied()).unwrap();
        let plan = store.gc_plan(&options).unwrap();
        let results: u64 = plan.groups.values().map(|group| group.results).sum();
        let done = store.gc_run(plan, &|_, _| {}).unwrap();
        assert!(done.results <= results);
        drop(lease);
        keys.iter()
            .filter(|key| store.lookup_shallow(key).unwrap().is_none())
            .count()
    };
    assert_eq!(collected(true), 0, "a live build uses them");
    assert_eq!(collected(false), keys.len(), "nobody uses them any more");
}

#[test]
fn a_running_build_keeps_the_tensors_of_a_cached_candidate() {
    let built = Built::new();
    let keys = built.tensor_keys();
    // A second candidate, whose place this test has: the build waits for it after it found the first.
    let more = "[policy.q]\nmethod = \"mix\"\nmix = \"Q8_0\"\n[promote.q]\npolicy = \"q\"\n";
    built.forge.recipe(&format!("{BARE}{more}"));
    let store = Store::open(built.forge.store()).unwrap();
    let place = built.forge.path("out/bare/q.gguf");
    let held = store.lock_output(&place, &mut |_| {}, &|| false).unwrap().unwrap();
    let mut command = built.forge.command(&["build", "--message-format", "json", "-j", "1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut events = std::io::BufReader::new(child.stdout.take().unwrap());
    let (mut line, mut found, mut waits) = (String::new(), false, false);
    while !(found && waits) {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut events, &mut line).unwrap() > 0);
        found |= line.contains("step-finished") && line.contains("promote.p");
        waits |= line.contains("\"waiting\"") && line.contains("promote.q");
    }
    let leases = built.forge.store().join("leases");
    let noted: String = std::fs::read_dir(leases)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default())
        .collect();
    drop(held);
    let rest = std::io::read_to_string(events).unwrap();
    assert!(child.wait().unwrap().success(), "{rest}");
    for key in keys {
        assert!(noted.contains(&key.to_string()), "{key} is not in the lease");
    }
}
