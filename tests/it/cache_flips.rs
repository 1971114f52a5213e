//! A flipped bit anywhere in a store, or in an output that it borrows from, is found, named, quarantined and made again.

use std::path::Path;
use std::path::PathBuf;

use forge::digest::Hash;

use crate::crash::Damage;
use crate::crash::damage;
use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::build_well;
use crate::quick_project::candidates;
use crate::quick_project::project;
use crate::quick_project::verify;
use crate::small_model::Random;
use crate::small_model::names;
use crate::small_model::sharded;
use crate::support::Forge;

/// Changes an output's bytes as a failing disk would: no stamp shows it. Nobody can set a file's ctime, so instead the
/// store's indexes and stat entries are written anew for the file's new stamp.
pub(crate) fn write_keeping_stamps(forge: &Forge, path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::MetadataExt as _;
    let stamp = |path: &Path| {
        let facts = std::fs::metadata(path).unwrap();
        let ns = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
        (
            facts.dev(),
            facts.ino(),
            facts.len(),
            ns(facts.mtime(), facts.mtime_nsec()),
            ns(facts.ctime(), facts.ctime_nsec()),
        )
    };
    let before = stamp(path);
    std::fs::write(path, bytes).unwrap();
    let after = stamp(path);
    assert_eq!((before.0, before.1, before.2), (after.0, after.1, after.2));
    let sealed = |kind: &str, version: u64, name: &str, document: &str| {
        let body = format!("forge-{kind} {version} {name}\n{document}\n");
        format!("{body}{}\n", Hash::of(body.as_bytes()))
    };
    let document_of = |path: &Path| {
        std::fs::read_to_string(path)
            .unwrap()
            .lines()
            .nth(1)
            .unwrap()
            .to_owned()
    };
    let mut done = 0;
    for (name, file) in sharded(forge.store(), "stat-v1") {
        let (dev, ino, size, mtime, ctime) = before;
        let facts = format!("{dev} {ino} {size} {mtime} {ctime} ");
        if let Some(digest) = document_of(&file).strip_prefix(&facts) {
            let (dev, ino, size, mtime, ctime) = after;
            let document = format!("{dev} {ino} {size} {mtime} {ctime} {digest}");
            std::fs::write(&file, sealed("stat", 1, &name, &document)).unwrap();
            done += 1;
        }
    }
    let folder = forge.store().join("borrowed-v1");
    for name in names(&folder) {
        let mut index: serde_json::Value = serde_json::from_str(&document_of(&folder.join(&name))).unwrap();
        if index["path"] == path.to_str().unwrap() && index["ctime_ns"] == before.4 {
            index["mtime_ns"] = after.3.into();
            index["ctime_ns"] = after.4.into();
            let (dev, ino, size, mtime, ctime) = after;
            let file = index["file"].as_str().unwrap();
            let stamp = Hash::of(format!("{dev} {ino} {size} {mtime} {ctime} {file}").as_bytes()).to_string();
            let new = format!("{}-{}", &name[..32], &stamp[..32]);
            // The fields in the order that the schema lists.
            let text = any_order(&index);
            std::fs::write(folder.join(&new), sealed("loans", 2, &new, &text)).unwrap();
            std::fs::remove_file(folder.join(&name)).unwrap();
            done += 1;
        }
    }
    assert_eq!(done, 2, "a stat entry and a index");
}

fn any_order(index: &serde_json::Value) -> String {
    // A reader takes the fields in any order.
    index.to_string()
}

/// Damages a file, asserts that a check finds and names it, and that all is well after the next build.
fn is_found(forge: &Forge, path: &Path, random: &mut Random, kind: &str, words: &[&str]) {
    let before = candidates(&forge.path("out"));
    damage(path, Damage::Flip, random);
    let (run, lines) = verify(forge);
    assert_eq!(run.status, Some(1), "{}: {}{}", path.display(), run.stdout, run.stderr);
    let found: Vec<&serde_json::Value> = lines.iter().filter(|line| line["reason"] == "cache-damage").collect();
    assert_eq!(found.len(), 1, "{}: {found:?}", path.display());
    assert_eq!(found[0]["damage"], kind, "{found:?}");
    let message = found[0]["message"].as_str().unwrap();
    for word in words {
        assert!(message.contains(word), "{message}: no `{word}`");
    }
    let moved = found[0]["moved_to"].as_str().unwrap();
    assert!(Path::new(moved).exists() && !path.exists(), "{moved}");
    assert_clean(forge, "what was found is quarantined");
    build_well(forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(forge, "after the next build");
}

fn files_in(forge: &Forge, directory: &str) -> Vec<PathBuf> {
    let folder = forge.store().join(directory);
    names(&folder).into_iter().map(|name| folder.join(name)).collect()
}

#[test]
fn a_flipped_bit_in_any_blob_is_found_and_named() {
    let forge = project();
    forge.write("forge.toml", "[cache]\nborrow = false\n");
    build_well(&forge, "out");
    let mut random = Random(3);
    let blobs: Vec<PathBuf> = sharded(forge.store(), "cas-v1").into_values().collect();
    let mut found = 0;
    for path in blobs {
        // A manifest that was written anew is another blob; the old one is nobody's then, and may be gone.
        if path.exists() {
            is_found(&forge, &path, &mut random, "blob", &["blob"]);
            found += 1;
        }
    }
    assert!(found > 20, "{found}");
}

#[test]
fn a_damaged_tensor_is_reported_by_its_name() {
    let forge = project();
    forge.write("forge.toml", "[cache]\nborrow = false\n");
    build_well(&forge, "out");
    // 32 rows of 256 numbers as Q5_0: 22 bytes for each 32 numbers.
    let q5_0 = |path: &&PathBuf| std::fs::metadata(path).unwrap().len() == 32 * 256 / 32 * 22;
    let blobs: Vec<PathBuf> = sharded(forge.store(), "cas-v1").into_values().collect();
    let path = blobs.iter().find(q5_0).unwrap();
    is_found(
        &forge,
        path,
        &mut Random(1),
        "blob",
        &["the tensor `blk.0.ffn_up.weight` as Q5_0 of `c", ".gguf`"],
    );
}

#[test]
fn a_flipped_bit_in_any_note_or_result_is_found_and_named() {
    let forge = project();
    build_well(&forge, "out");
    let _ = forge.run(&["cache", "pin", "out/c0.gguf"]).success();
    let mut random = Random(5);
    let mut results: Vec<PathBuf> = sharded(forge.store(), "actions-v1").into_values().collect();
    results.truncate(8);
    for path in results {
        is_found(&forge, &path, &mut random, "result", &["result"]);
    }
    for (directory, word) in [("runs-v1/last", "runs-v1"), ("manifests-v1", "manifests-v1")] {
        for path in files_in(&forge, directory) {
            is_found(&forge, &path, &mut random, "note", &[word]);
        }
    }
    build_well(&forge, "elsewhere");
    std::fs::remove_dir_all(forge.path("elsewhere")).unwrap();
    for path in files_in(&forge, "borrowed-v1") {
        if !path.exists() {
            continue;
        }
        is_found(&forge, &path, &mut random, "note", &["borrowed-v1"]);
        // What the index said is known again.
        let events = build_well(&forge, "elsewhere");
        assert_eq!(crate::support::ran(&events, "tensor"), 0);
        std::fs::remove_dir_all(forge.path("elsewhere")).unwrap();
    }
    let _ = forge
        .run(&["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"])
        .success();
    let tombstones: Vec<PathBuf> = sharded(forge.store(), "tombstones-v1").into_values().collect();
    assert!(!tombstones.is_empty());
    let before = candidates(&forge.path("out"));
    damage(&tombstones[0], Damage::Flip, &mut random);
    let (run, lines) = verify(&forge);
    assert_eq!(run.status, Some(1));
    assert_eq!(lines[0]["directory"], "tombstones-v1");
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
}

#[test]
fn a_flipped_bit_anywhere_in_an_output_is_found() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    let mut random = Random(9);
    for _ in 0..6 {
        let (name, whole) = &before[random.below(2)];
        let path = forge.path("out").join(name);
        let mut bytes = whole.clone();
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
        write_keeping_stamps(&forge, &path, &bytes);
        let (run, lines) = verify(&forge);
        assert_eq!(run.status, Some(1), "byte {at}: {}{}", run.stdout, run.stderr);
        let line = &lines[0];
        assert!(
            line["damage"] == "borrowed-blob" || line["damage"] == "output",
            "{line}"
        );
        assert_eq!(line["path"].as_str(), path.to_str());
        build_well(&forge, "out");
        assert!(candidates(&forge.path("out")) == before, "byte {at}");
        assert_clean(&forge, "after the next build");
    }
}

#[test]
fn repair_rebuilds_damaged_results() {
    let forge = project();
    build_well(&forge, "out");
    std::fs::rename(forge.path("out"), forge.path("kept")).unwrap();
    let _ = forge.run(&["build"]).success();
    let policy = sharded(forge.store(), "cas-v1")
        .into_values()
        .find(|path| std::fs::read(path).unwrap().starts_with(b"{\"schema\":1,\"method"))
        .or_else(|| sharded(forge.store(), "cas-v1").into_values().next())
        .unwrap();
    damage(&policy, Damage::Flip, &mut Random(2));
    let run = forge.run(&["cache", "verify", "--repair", "recipe.toml"]).status(1);
    assert!(run.stderr.contains("is damaged"), "{}", run.stderr);
    assert!(run.stderr.contains("ran"), "{}", run.stderr);
    assert_clean(&forge, "repaired");
    assert!(candidates(&forge.path("out/moment")) == candidates(&forge.path("kept")));
    let _ = quick_project::build_well(&forge, "kept");
}
