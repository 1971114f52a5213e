//! `forge cache` as users meet it.

use std::collections::BTreeSet;
use std::time::Duration;
use std::time::SystemTime;

use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::build_well;
use crate::quick_project::candidates;
use crate::quick_project::project;
use crate::quick_project::ran;
use crate::small_model;
use crate::small_model::committed;
use crate::small_model::sharded;
use crate::support::Forge;
use crate::support::ran as ran_of;

/// Makes everything in the store look as if it had last been used so long ago.
fn age(forge: &Forge, days: u64) {
    let then = SystemTime::now() - Duration::from_secs(days * 86_400);
    for directory in ["actions-v1", "cas-v1"] {
        for path in sharded(forge.store(), directory).into_values() {
            std::fs::File::open(path).unwrap().set_modified(then).unwrap();
        }
    }
    // Notes of builds with nothing to do say that results were used.
    let notes = std::fs::read_dir(forge.store().join("runs-v1/fresh"));
    for note in notes.into_iter().flatten() {
        let note = std::fs::File::open(note.unwrap().path()).unwrap();
        note.set_modified(then).unwrap();
    }
}

fn json(forge: &Forge, args: &[&str]) -> Vec<serde_json::Value> {
    let mut all = args.to_vec();
    all.extend(["--message-format", "json"]);
    forge.run(&all).success().json_lines()
}

#[test]
fn dir_size_and_list_describe_the_store() {
    let forge = project();
    let run = forge.run(&["cache", "dir"]).success();
    assert_eq!(run.stdout.trim(), forge.store().to_str().unwrap());
    assert!(!forge.store().exists(), "saying where it is makes no store");
    build_well(&forge, "out");
    let size = &json(&forge, &["cache", "size"])[0];
    let parts: u64 = ["blobs", "parts"]
        .iter()
        .flat_map(|part| size[part].as_object().unwrap().values())
        .map(|part| part["bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(size["total"]["bytes"], parts);
    assert_eq!(size["borrowed"]["files"], 8, "two outputs of four tensors");
    assert!(size["blobs"]["promote"]["bytes"].as_u64().unwrap() > 0, "{size}");
    let text = forge.run(&["cache", "size"]).success().stdout;
    assert!(text.contains("total") && text.contains("from outputs"), "{text}");

    let all = json(&forge, &["cache", "list"]);
    assert_eq!(all.len(), committed(forge.store()).len());
    let tensors = json(&forge, &["cache", "list", "--kind", "tensor"]);
    assert_eq!(tensors.len(), 5);
    for tensor in &tensors {
        assert_eq!(tensor["bytes"], tensor["borrowed_bytes"]);
        assert!(tensor["name"].as_str().unwrap().starts_with("tensor `"), "{tensor}");
        assert_eq!(tensor["whole"], true);
    }
    let sizes: Vec<u64> = tensors.iter().map(|tensor| tensor["bytes"].as_u64().unwrap()).collect();
    assert!(sizes.is_sorted_by(|a, b| a >= b));
    assert_eq!(json(&forge, &["cache", "list", "--older-than", "1h"]).len(), 0);
    assert_eq!(
        json(&forge, &["cache", "list", "--limit", "2", "--sort", "cost"]).len(),
        2
    );
    assert_eq!(json(&forge, &["cache", "list", "--larger-than", "1GB"]).len(), 0);
    let text = forge.run(&["cache", "list", "--kind", "promote"]).success();
    assert!(
        text.stdout.contains("`promote.c0` of recipe `moment`"),
        "{}",
        text.stdout
    );
    assert!(text.stderr.contains("2 of"), "{}", text.stderr);
    let _ = forge.run(&["cache", "list", "--larger-than", "1 parsec"]).status(2);
    let _ = forge.run(&["cache", "gc", "--older-than", "a while"]).status(2);
    let _ = forge.run(&["cache", "verify", "--sample", "5 bpw"]).status(2);
}

#[test]
fn gc_shows_its_plan_and_asks_first() {
    let forge = project();
    build_well(&forge, "out");
    let before = committed(forge.store());
    let run = forge.run(&["cache", "gc"]).success();
    assert!(run.stdout.contains("there is nothing to remove"), "{}", run.stdout);
    let args = ["cache", "gc", "--max-size", "0B", "--also-newest"];
    let run = forge.run(&args).status(2);
    assert!(
        run.stdout.contains("to remove:") && run.stdout.contains("tensor"),
        "{}",
        run.stdout
    );
    assert!(run.stderr.contains("--yes"), "{}", run.stderr);
    let mut dry = args.to_vec();
    dry.push("--dry-run");
    let _ = forge.run(&dry).success();
    assert_eq!(committed(forge.store()), before);
    let mut yes = args.to_vec();
    yes.push("--yes");
    let run = forge.run(&yes).success();
    assert!(run.stderr.contains(" removed, "), "{}", run.stderr);
    assert_eq!(committed(forge.store()), BTreeSet::new());
    // What the last records name is kept: they explain.
    assert!(sharded(forge.store(), "cas-v1").len() <= 2 * 7);
    assert_eq!(
        sharded(forge.store(), "tombstones-v1")
            .into_keys()
            .collect::<BTreeSet<_>>(),
        before
    );
    assert_clean(&forge, "after a collection");
    // Everything can be made again, and what is made again is no longer buried.
    let out = candidates(&forge.path("out"));
    let events = build_well(&forge, "out");
    assert_eq!(ran_of(&events, "tensor"), 5);
    assert!(candidates(&forge.path("out")) == out);
    assert!(sharded(forge.store(), "tombstones-v1").is_empty());
}

#[test]
fn a_removed_result_leaves_a_tombstone() {
    let forge = project();
    build_well(&forge, "out");
    let _ = json(&forge, &["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"]);
    let store = forge::store::Store::open(forge.store()).unwrap();
    let mut tensors = 0;
    for name in sharded(forge.store(), "tombstones-v1").into_keys() {
        let key = name.parse::<forge::digest::ActionDigest>().unwrap();
        let tombstone = store.tombstone(&key).unwrap();
        let document = tombstone.document.unwrap();
        assert_eq!(forge::digest::ActionDigest::of(document.as_bytes()), key);
        assert_eq!(tombstone.why, forge::store::RemovalReason::Size);
        assert!(tombstone.removed >= tombstone.last_used);
        assert!(!tombstone.outputs.is_empty());
        tensors += usize::from(tombstone.kind.as_deref() == Some("tensor"));
    }
    assert_eq!(tensors, 5);
    let absent = forge::digest::ActionDigest::of(b"never");
    assert_eq!(store.tombstone(&absent), None);
}

#[test]
fn the_newest_outputs_and_pins_are_kept_and_old_results_are_removed() {
    let forge = project();
    build_well(&forge, "out");
    let first = committed(forge.store());
    let _ = forge.run(&["cache", "pin", "out/c0.gguf"]).success();
    forge.recipe(&quick_project::second());
    build_well(&forge, "out");
    let both = committed(forge.store());
    assert!(first.is_subset(&both) && first.len() < both.len());
    // The second recipe's results are the newest; of the first, the pinned candidate's stay.
    let plan = json(&forge, &["cache", "gc", "--max-size", "0B", "--yes"]);
    assert!(plan[0]["kept"]["pinned"].as_u64().unwrap() > 0);
    let left = committed(forge.store());
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
    let gone: BTreeSet<&String> = first.difference(&left).collect();
    assert!(!gone.is_empty(), "the other candidate's tensor and assembly");
    forge.recipe(&quick_project::first());
    let events = build_well(&forge, "out");
    let c0: Vec<_> = events
        .iter()
        .filter(|event| event["reason"] == "step-finished" && event["step"] == "promote.c0")
        .collect();
    // Its file is assembled again, of tensors that are all there.
    assert_eq!(c0[0]["outcome"], "wrote", "{c0:?}");
    assert_eq!(c0[0]["ran"], 0, "{c0:?}");
    assert_clean(&forge, "after a collection");

    // Nothing was used for long but the pinned one, which is asked for by nobody.
    age(&forge, 40);
    let kept = forge.run(&["cache", "gc", "--older-than", "60d", "--yes"]).success();
    assert!(kept.stdout.contains("there is nothing to remove"), "{}", kept.stdout);
    let _ = json(&forge, &["cache", "gc", "--older-than", "30d", "--yes"]);
    let left = committed(forge.store());
    assert!(!left.is_empty() && left.len() < first.len());
    let _ = forge.run(&["cache", "unpin", "c0.gguf"]).success();
    let _ = json(&forge, &["cache", "gc", "--older-than", "30d", "--yes"]);
    assert_eq!(committed(forge.store()), BTreeSet::new());
    build_well(&forge, "out");
}

#[test]
fn results_with_the_least_work_per_byte_are_removed_first_until_the_limit_is_met() {
    let forge = Forge::new();
    forge.recipe("");
    let store = forge::store::Store::open(forge.store()).unwrap();
    let put = |name: &str, kind: &str, bytes: usize, cost_ms: u64| {
        let document = format!("{{\"schema\":1,\"kind\":\"{kind}\",\"inputs\":{{\"name\":\"{name}\"}}}}");
        let blob: Vec<u8> = name.bytes().cycle().take(bytes).collect();
        let result = forge::action::ActionResult {
            schema: 1,
            action: store.put(document.as_bytes()).unwrap(),
            outputs: [("out".to_owned(), store.put(&blob).unwrap())].into(),
            cost_ms,
            facts: std::collections::BTreeMap::default(),
        };
        let key = forge::digest::ActionDigest::of(document.as_bytes());
        store.commit(&key, &result).unwrap();
        key.to_string()
    };
    let dear = put("dear", "imatrix-block", 400_000, 3_600_000);
    let middle = put("middle", "tensor", 400_000, 5_000);
    let cheap = put("cheap", "tensor", 400_000, 10);
    // Dearer than all of them, but it is what goes first.
    let reference = put("reference", "reference-block", 400_000, 7_200_000);
    let keys = |names: &[&String]| names.iter().map(|name| (*name).clone()).collect::<BTreeSet<String>>();
    let gc = |limit: &str| json(&forge, &["cache", "gc", "--max-size", limit, "--yes"]);
    let done = gc("10MB");
    assert_eq!(done.len(), 1, "nothing to do: {done:?}");
    let plan = gc("1400KB");
    assert_eq!(plan[0]["groups"][0]["kind"], "reference-block");
    assert_eq!(committed(forge.store()), keys(&[&dear, &middle, &cheap]));
    gc("1000KB");
    assert_eq!(committed(forge.store()), keys(&[&dear, &middle]));
    let plan = gc("500KB");
    assert_eq!(plan[0]["groups"][0]["cost_ms"], 5000);
    assert_eq!(committed(forge.store()), keys(&[&dear]));
    let space = json(&forge, &["cache", "size"])[0]["total"]["disk_bytes"]
        .as_u64()
        .unwrap();
    assert!(space <= 500_000, "{space}");
    let _ = reference;
    // A blob that nothing names goes without being asked for.
    store.put(&[7; 10_000]).unwrap();
    let plan = gc("500KB");
    assert_eq!(plan[0]["groups"][0]["cause"], "unreferenced");
    assert_eq!(committed(forge.store()), keys(&[&dear]));
}

#[test]
fn a_limit_in_the_settings_is_met_after_each_build() {
    let forge = project();
    forge.write(
        ".config/forge/forge.toml",
        "[cache]\nmax-size = \"1 KB\"\nborrow = false\n",
    );
    let run = forge.run(&["build", "--out", "out"]).success();
    assert!(run.stderr.contains("more than the limit"), "{}", run.stderr);
    assert!(run.stderr.contains("for the newest outputs"), "{}", run.stderr);
    assert_eq!(
        ran(&build_well(&forge, "out")),
        BTreeSet::new(),
        "what the newest outputs need is kept"
    );
    // A recipe that went leaves what nothing needs.
    forge.recipe(&quick_project::recipe("moment", &[["Q4_1"; 4]]));
    let before = committed(forge.store());
    let run = forge.run(&["build", "--out", "out"]).success();
    assert!(run.stderr.contains(" removed, "), "{}", run.stderr);
    let left = committed(forge.store());
    assert!(before.difference(&left).count() > 0);
    assert_clean(&forge, "a limit");
}

#[test]
fn nothing_that_a_live_build_uses_is_collected() {
    let forge = project();
    build_well(&forge, "out");
    age(&forge, 100);
    let store = forge::store::Store::open(forge.store()).unwrap();
    let lease = store.lease().unwrap();
    let mut used = BTreeSet::new();
    for (number, name) in committed(forge.store()).into_iter().enumerate() {
        if number % 2 == 0 {
            let key = name.parse().unwrap();
            assert!(store.lookup(&key).unwrap().is_some());
            used.insert(name);
        }
    }
    let fresh = store.put(b"put by a build that goes on").unwrap();
    let args = [
        "cache",
        "gc",
        "--max-size",
        "0B",
        "--older-than",
        "1d",
        "--also-newest",
        "--yes",
    ];
    let plan = json(&forge, &args);
    assert_eq!(plan[0]["kept"]["in_use"], used.len());
    assert_eq!(committed(forge.store()), used);
    assert!(store.has(&fresh));
    for name in &used {
        assert!(
            store.lookup(&name.parse().unwrap()).unwrap().is_some(),
            "with all its blobs"
        );
    }
    drop(lease);
    let _ = json(&forge, &args);
    assert!(!store.has(&fresh));
    assert_eq!(committed(forge.store()), BTreeSet::new());
}

#[test]
fn a_pin_reports_blobs_that_only_an_output_contains() {
    let forge = project();
    build_well(&forge, "out");
    let borrowed = |line: &serde_json::Value| line["borrowed"].as_u64().unwrap();
    let pinned = json(&forge, &["cache", "pin", "out/c0.gguf"]);
    let size = std::fs::metadata(forge.path("out/c0.gguf")).unwrap().len();
    let before = borrowed(&pinned[0]);
    assert!((1..size).contains(&before), "{pinned:?}");
    let said = forge.run(&["cache", "pin", "out/c0.gguf"]).success().stderr;
    let place = forge.path("out/c0.gguf");
    assert!(
        said.contains(&format!("are tensors in `{}`", place.display())),
        "{said}"
    );
    // What only that file contained is gone with it.
    std::fs::remove_file(&place).unwrap();
    let pinned = json(&forge, &["cache", "pin", "out/c0.gguf.manifest.json"]);
    assert!(borrowed(&pinned[0]) < before, "{pinned:?}");
    assert!(pinned[0]["missing"].as_u64().unwrap() > 0, "{pinned:?}");
    // A store that borrows nothing keeps all.
    let own = project();
    own.write("forge.toml", "[cache]\nborrow = false\n");
    build_well(&own, "out");
    assert_eq!(borrowed(&json(&own, &["cache", "pin", "out/c0.gguf"])[0]), 0);
    std::fs::remove_file(own.path("out/c0.gguf")).unwrap();
    let pinned = json(&own, &["cache", "pin", "out/c0.gguf.manifest.json"]);
    assert_eq!(pinned[0]["missing"], 0, "{pinned:?}");
}

#[test]
fn pins_are_listed_and_removed() {
    let forge = project();
    build_well(&forge, "out");
    assert!(
        forge
            .run(&["cache", "pin"])
            .success()
            .stderr
            .contains("nothing is pinned")
    );
    let run = forge
        .run(&["cache", "pin", "out/c0.gguf.manifest.json", "out/c1.gguf"])
        .success();
    assert!(run.stderr.contains("`c0.gguf` is pinned") && run.stderr.contains("`c1.gguf` is pinned"));
    let again = forge.run(&["cache", "pin", "out/c1.gguf"]).success();
    assert!(again.stderr.contains("was already pinned"), "{}", again.stderr);
    let listed = json(&forge, &["cache", "pin"]);
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0]["output"], "c0.gguf");
    let digits = &listed[1]["manifest"].as_str().unwrap()[..12];
    let _ = forge.run(&["cache", "unpin", digits]).success();
    let _ = forge.run(&["cache", "unpin", "out/c0.gguf"]).success();
    assert_eq!(json(&forge, &["cache", "pin"]).len(), 0);
    let _ = forge.run(&["cache", "unpin", "c0.gguf"]).status(1);
    // A run has manifests of all its outputs.
    let runs = small_model::names(&forge.store().join("runs-v1"));
    let run = runs.iter().find_map(|name| name.strip_suffix(".jsonl")).unwrap();
    assert_eq!(json(&forge, &["cache", "pin", run]).len(), 2);
    let _ = forge.run(&["cache", "pin", "recipe.toml"]).status(1);
    let _ = forge.run(&["cache", "pin", "../../etc/passwd"]).status(1);
    forge.write("no.json", "{\"subject\":[]}");
    let run = forge.run(&["cache", "pin", "no.json"]).status(1);
    assert!(run.stderr.contains("no manifest"), "{}", run.stderr);
}

#[test]
fn verify_reads_a_sample_and_finds_missing_blobs() {
    let forge = project();
    forge.write("forge.toml", "[cache]\nborrow = false\n");
    build_well(&forge, "out");
    let all = json(&forge, &["cache", "verify"]);
    assert_eq!(all[0]["bytes"], all[0]["all_bytes"]);
    assert_eq!(all[0]["blobs"], sharded(forge.store(), "cas-v1").len());
    let part = json(&forge, &["cache", "verify", "--sample", "20%"]);
    let share = part[0]["bytes"].as_u64().unwrap() as f64 / part[0]["all_bytes"].as_u64().unwrap() as f64;
    assert!((0.01..0.9).contains(&share), "{share}");
    let some = json(&forge, &["cache", "verify", "--sample", "1B"]);
    assert_eq!(some[0]["blobs"], 1);
    // A blob that is gone without a word.
    let tensor = sharded(forge.store(), "cas-v1")
        .into_values()
        .find(|path| std::fs::metadata(path).unwrap().len() == 32 * 256 / 32 * 34)
        .unwrap();
    std::fs::remove_file(&tensor).unwrap();
    let run = forge.run(&["cache", "verify"]).status(1);
    assert!(
        run.stderr
            .contains("is missing: the tensor `token_embd.weight` as Q8_0"),
        "{}",
        run.stderr
    );
    assert_clean(&forge, "it was reported once");
    build_well(&forge, "out");
}

#[test]
fn clean_removes_leftovers_only() {
    let forge = project();
    build_well(&forge, "out");
    let before = committed(forge.store());
    std::fs::write(forge.store().join("quarantine/damaged"), vec![1; 5000]).unwrap();
    let done = json(&forge, &["cache", "clean"]);
    assert_eq!((&done[0]["files"], &done[0]["disk_bytes"]), (&1.into(), &8192.into()));
    assert_eq!(committed(forge.store()), before);
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
    let store = forge::store::Store::open(forge.store()).unwrap();
    let lease = store.lease().unwrap();
    let run = forge.run(&["cache", "clean", "--all", "--yes"]).status(3);
    assert!(run.stderr.contains("use this store now"), "{}", run.stderr);
    drop(lease);
    drop(store);
    let _ = forge.run(&["cache", "clean", "--all", "--yes"]).success();
    assert!(!forge.store().exists());
    build_well(&forge, "out");
}
