//! The size limit of a store: what counts, what goes first, and what is said when it cannot be held.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use forge::action::ActionResult;
use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::store::StepRecord;
use forge::store::Store;
use serde_json::Value;

use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::build_well;
use crate::quick_project::ran;
use crate::small_model::committed;
use crate::small_model::sharded;
use crate::support::Forge;

fn json(forge: &Forge, args: &[&str]) -> Vec<Value> {
    let mut all = args.to_vec();
    all.extend(["--message-format", "json"]);
    forge.run(&all).success().json_lines()
}

/// The space that the store takes, as `forge cache size` counts it.
fn space(forge: &Forge) -> u64 {
    json(forge, &["cache", "size"])[0]["total"]["disk_bytes"]
        .as_u64()
        .unwrap()
}

/// Asserts that a plan names all that is kept, and that the plan came true within 1 %.
fn assert_true(forge: &Forge, plan: &Value) {
    let kept = plan["remaining"].as_object().unwrap().values();
    let kept: u64 = kept.map(|space| space.as_u64().unwrap()).sum();
    let after = plan["after"].as_u64().unwrap();
    assert_eq!(kept, after, "{plan}");
    let space = space(forge);
    assert!(
        space.abs_diff(after) <= after / 100 + 4096,
        "{space} instead of {after}: {plan}"
    );
}

fn groups<'p>(plan: &'p Value, field: &str) -> BTreeSet<&'p str> {
    let groups = plan["groups"].as_array().unwrap().iter();
    groups.map(|group| group[field].as_str().unwrap()).collect()
}

fn set_age(path: &Path, age: Duration) {
    let file = File::open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

/// A manifest with just what the store looks at, so long that it takes about `bytes`.
fn manifest(output: &str, bytes: usize) -> Vec<u8> {
    let manifest = serde_json::json!({
        "subject": [{ "name": output }],
        "predicate": { "forge": { "actions": {} } },
        "padding": output.chars().cycle().take(bytes).collect::<String>(),
    });
    manifest.to_string().into_bytes()
}

/// Leaves the record of a run that wrote a manifest, as a build would.
fn leave_run(store: &Store, number: usize, bytes: usize, age: Duration) -> BlobDigest {
    let manifest = store.put(&manifest(&format!("run-{number}.gguf"), bytes)).unwrap();
    let mut run = store.start_run(&format!("20260101T{number:06}Z-1")).unwrap();
    let lines = format!(
        "{{\"reason\":\"run-started\",\"schema\":1,\"at_ms\":0,\"command\":[]}}\n\
         {{\"at_ms\":1,\"reason\":\"output-written\",\"step\":\"promote.a\",\"path\":\"a.gguf.manifest.json\",\"digest\":\"{manifest}\"}}\n"
    );
    run.append(lines.as_bytes()).unwrap();
    let path = store.root().join("runs-v1").join(format!("{}.jsonl", run.id()));
    drop(run);
    set_age(&path, age);
    manifest
}

/// Commits a result with an output of so many bytes.
fn leave_result(store: &Store, name: &str, bytes: usize, cost_ms: u64) -> ActionDigest {
    let document = format!("{{\"schema\":1,\"kind\":\"tensor\",\"inputs\":{{\"name\":\"{name}\"}}}}");
    let blob: Vec<u8> = name.bytes().cycle().take(bytes).collect();
    let result = ActionResult {
        schema: 1,
        action: store.put(document.as_bytes()).unwrap(),
        outputs: [("out".to_owned(), store.put(&blob).unwrap())].into(),
        cost_ms,
        facts: BTreeMap::default(),
    };
    let key = ActionDigest::of(document.as_bytes());
    store.commit(&key, &result).unwrap();
    key
}

#[test]
fn old_manifests_are_removed_before_results_and_pinned_ones_never() {
    const RUNS: usize = 150;
    let forge = Forge::new();
    let store = Store::open(forge.store()).unwrap();
    let results: BTreeSet<String> = (0..4)
        .map(|number| leave_result(&store, &format!("result-{number}"), 400_000, 1).to_string())
        .collect();
    let manifests: Vec<BlobDigest> = (0..RUNS)
        .map(|number| {
            leave_run(
                &store,
                number,
                100_000,
                Duration::from_secs((RUNS - number) as u64 * 60),
            )
        })
        .collect();
    forge.write("old.json", manifest("run-3.gguf", 100_000));
    let _ = forge.run(&["cache", "pin", "old.json"]).success();
    assert!(space(&forge) > 15 << 20);

    let dry = forge
        .run(&["cache", "gc", "--also-newest", "--max-size", "4MB", "--dry-run"])
        .success();
    assert!(
        dry.stdout.contains("runs") && dry.stdout.contains("no build needs it"),
        "{}",
        dry.stdout
    );
    let plan = json(&forge, &["cache", "gc", "--also-newest", "--max-size", "4MB", "--yes"]);
    assert_eq!(groups(&plan[0], "cause"), BTreeSet::from(["records"]), "{}", plan[0]);
    assert_eq!(groups(&plan[0], "kind"), BTreeSet::from(["runs"]), "{}", plan[0]);
    assert_true(&forge, &plan[0]);
    assert_eq!(committed(forge.store()), results, "no result had to go");
    let space = space(&forge);
    assert!(space <= 4_000_000, "{space}");
    // The oldest went, nothing more than needed, and each with its manifest.
    let runs = store.runs().unwrap();
    assert_eq!(runs.last().unwrap(), &format!("20260101T{:06}Z-1", RUNS - 1));
    assert!(
        runs.len() > 10 && space > 3_800_000,
        "{} runs, {space} bytes",
        runs.len()
    );
    for (number, digest) in manifests.iter().enumerate() {
        let expected = number == 3 || number >= RUNS - runs.len();
        assert_eq!(store.has(digest), expected, "manifest of run {number}");
    }
    assert_clean(&forge, "after a collection");

    // Without a pin it goes like any other.
    let _ = forge.run(&["cache", "unpin", "run-3.gguf"]).success();
    let _ = json(&forge, &["cache", "gc", "--max-size", "3500KB", "--yes"]);
    assert!(!store.has(&manifests[3]));
    assert_eq!(committed(forge.store()), results);
}

#[test]
fn the_minimum_of_records_is_kept_and_reported() {
    let forge = Forge::new();
    let store = Store::open(forge.store()).unwrap();
    leave_result(&store, "result", 100_000, 1);
    for number in 0..10 {
        leave_run(&store, number, 400_000, Duration::from_secs(60 * (10 - number as u64)));
    }
    let run = forge
        .run(&["cache", "gc", "--also-newest", "--max-size", "10KB", "--yes"])
        .success();
    assert_eq!(committed(forge.store()), BTreeSet::new());
    assert_eq!(
        store.runs().unwrap().len(),
        1,
        "the newest run explains what happened last"
    );
    let said = run.stderr;
    assert!(
        said.contains("more than the limit of") && said.contains("KiB for records of runs"),
        "{said}"
    );
    // What is not there is not blamed, and no way is named that does not help.
    for absent in ["pinned", "newest", "running", "result"] {
        assert!(!said.contains(&format!("of {absent}")), "{said}");
    }
    assert!(
        !said.contains("--also-newest") && said.contains("raise the limit"),
        "{said}"
    );
}

#[test]
fn notes_of_removed_results_and_abandoned_recipes_count_against_the_limit() {
    let forge = Forge::new();
    let store = Store::open(forge.store()).unwrap();
    for number in 0..150_u64 {
        let action = leave_result(&store, &format!("result-{number}"), 100, number);
        let document = store.lookup(&action).unwrap().unwrap().action;
        let manifest = store.put(&manifest(&format!("{number}.gguf"), 20_000)).unwrap();
        let last = StepRecord {
            recipe: format!("recipe-{number}"),
            step: "promote.a".to_owned(),
            action,
            document,
            manifest: Some(manifest),
            manifest_checked: false,
            inputs: BTreeMap::default(),
            files: Vec::new(),
        };
        store.note_last(&last).unwrap();
    }
    let gc = |more: &[&str]| {
        let mut all = vec!["cache", "gc", "--max-size", "1MB", "--yes"];
        all.extend(more);
        let plan = json(&forge, &all).remove(0);
        assert_true(&forge, &plan);
        plan
    };
    // The newest outputs of 150 recipes: they stay, and the plan says that it is they.
    let plan = gc(&[]);
    assert_eq!(plan["kept"]["newest"], 150);
    assert_eq!(committed(forge.store()).len(), 150);
    assert!(
        plan["remaining"]["newest"].as_u64() > plan["remaining"]["notes"].as_u64(),
        "{plan}"
    );
    let plan = gc(&["--also-newest"]);
    let space = space(&forge);
    assert!(space <= 1_000_000, "{space}: {plan}");
    assert!(groups(&plan, "kind").contains("last"), "{plan}");
    let tombstones = sharded(forge.store(), "tombstones-v1").len();
    assert!((1..=64).contains(&tombstones), "{tombstones}");
}

#[test]
fn the_record_of_an_active_run_is_kept() {
    let forge = Forge::new();
    let store = Store::open(forge.store()).unwrap();
    let mut going = store.start_run("20260101T000000Z-1").unwrap();
    going.append(b"{\"reason\":\"run-started\"}\n").unwrap();
    let path = forge.store().join("runs-v1/20260101T000000Z-1.jsonl");
    // A clock may have been set back; the lock says that the run lives.
    set_age(&path, Duration::from_hours(1));
    leave_run(&store, 7, 100, Duration::from_mins(30));
    let _ = json(&forge, &["cache", "gc", "--older-than", "0s", "--yes"]);
    assert_eq!(store.runs().unwrap(), ["20260101T000000Z-1"]);
    drop(going);
    let _ = json(&forge, &["cache", "gc", "--older-than", "0s", "--yes"]);
    assert!(!path.exists());
}

#[test]
fn files_of_failed_steps_count_against_the_limit_and_are_removed() {
    let forge = Forge::new();
    let store = Store::open(forge.store()).unwrap();
    for number in 0..6 {
        let folder = store
            .failed_folder(&format!("20260101T00000{number}Z-1"), "eval.a")
            .unwrap();
        store
            .write_failed_file(&folder, "log.txt", &vec![b'x'; 300_000])
            .unwrap();
        set_age(&folder, Duration::from_secs(60 * (10 - number)));
    }
    let plan = json(&forge, &["cache", "gc", "--max-size", "1MB", "--yes"]).remove(0);
    assert!(plan["before"].as_u64().unwrap() > 1_800_000, "{plan}");
    assert_true(&forge, &plan);
    let space = space(&forge);
    assert!(space <= 1_000_000, "{space}");
    assert_eq!(
        std::fs::read_dir(forge.store().join("runs-v1/failed")).unwrap().count(),
        3
    );
}

#[test]
fn the_limit_of_the_settings_is_held_over_many_builds_that_change_the_recipe() {
    const LIMIT: u64 = 1_000_000;
    const TYPES: [&str; 5] = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];
    let forge = quick_project::project();
    forge.write(
        ".config/forge/forge.toml",
        format!("[cache]\nmax-size = \"{LIMIT} B\"\nborrow = false\n"),
    );
    let mut largest = 0;
    for number in 0..40 {
        let ty = |place: usize| TYPES[(number / 5_usize.pow(place as u32 % 3) + place) % 5];
        let types = [[ty(0), ty(1), ty(2), ty(3)], [ty(3), ty(2), ty(1), ty(0)]];
        forge.recipe(&quick_project::recipe("moment", &types));
        let run = forge.run(&["build", "--out", "out"]).success();
        assert!(
            !run.stderr.contains("more than the limit"),
            "build {number}: {}",
            run.stderr
        );
        largest = largest.max(space(&forge));
        assert_eq!(
            ran(&build_well(&forge, "out")),
            BTreeSet::new(),
            "the newest results stay"
        );
    }
    assert!(largest <= LIMIT + LIMIT / 10, "{largest}");
    assert!(largest > LIMIT / 2, "{largest}: the limit was never near");
    assert_clean(&forge, "after 40 builds");
    for name in ["out/c0.gguf", "out/c1.gguf"] {
        let _ = forge.run(&["verify", name]).success();
    }
}
