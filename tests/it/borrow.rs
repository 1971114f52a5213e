//! Nothing is stored twice: which blobs the store borrows from outputs, and what happens when outputs are changed, moved or deleted.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::build_well;
use crate::quick_project::candidates;
use crate::quick_project::project;
use crate::quick_project::ran;
use crate::support::Forge;
use crate::support::ran as ran_of;

/// Lengths and blocks of all files under a folder.
fn usage(folder: &Path) -> (u64, u64) {
    let (mut bytes, mut blocks) = (0, 0);
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = std::fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            let (more, more_blocks) = usage(&path);
            bytes += more;
            blocks += more_blocks;
        } else {
            bytes += facts.len();
            blocks += facts.blocks() * 512;
        }
    }
    (bytes, blocks)
}

/// How many tensors the store keeps itself.
fn own_tensors(forge: &Forge) -> usize {
    let run = forge
        .run(&["cache", "list", "--kind", "tensor", "--message-format", "json"])
        .success();
    let tensors = run.json_lines();
    assert!(!tensors.is_empty() && tensors.iter().all(|tensor| tensor["whole"] == true));
    tensors.iter().filter(|tensor| tensor["borrowed_bytes"] == 0).count()
}

#[test]
fn six_candidates_take_the_space_of_the_outputs() {
    let forge = Forge::new();
    // Large enough for the block that every small file takes not to be what is measured.
    quick_project::write_model(&forge, 16_384);
    let types = ["Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1", "Q4_K"];
    let candidates_types: Vec<[&str; 4]> = types.iter().map(|ty| [*ty; 4]).collect();
    forge.recipe(&quick_project::recipe("six", &candidates_types));
    let events = build_well(&forge, "out");
    assert_eq!(ran_of(&events, "tensor"), 24);
    let (store, store_blocks) = usage(forge.store());
    let (out, out_blocks) = usage(&forge.path("out"));
    let ratio = (store + out) as f64 / out as f64;
    let ratio_blocks = (store_blocks + out_blocks) as f64 / out_blocks as f64;
    eprintln!("six candidates: {out} bytes of outputs, {store} of store: {ratio:.3}; in blocks {ratio_blocks:.3}");
    assert!(ratio <= 1.1, "{ratio}");
    assert!(ratio_blocks <= 1.1, "{ratio_blocks}");
    assert_eq!(own_tensors(&forge), 0);
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
    assert_clean(&forge, "six candidates");
}

#[test]
fn deleting_an_output_loses_only_blobs_that_no_other_file_contains() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    assert_eq!(own_tensors(&forge), 0);
    // The two have three tensors in common.
    std::fs::remove_file(forge.path("out/c0.gguf")).unwrap();
    assert_clean(&forge, "an output is gone: that is no damage");
    let events = build_well(&forge, "out");
    assert_eq!(ran_of(&events, "tensor"), 1);
    assert!(candidates(&forge.path("out")) == before);
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    let events = build_well(&forge, "out");
    assert_eq!(ran_of(&events, "tensor"), 5);
    assert_eq!(ran_of(&events, "inspect-model") + ran_of(&events, "policy"), 0);
    assert!(candidates(&forge.path("out")) == before);
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
}

#[test]
fn no_wrong_bytes_are_borrowed_from_an_output_that_was_edited() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    let path = forge.path("out/c0.gguf");
    let old = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    // Every byte of its tensors, in place, and the time put back.
    let half = bytes.len() / 2;
    bytes[half..].iter_mut().for_each(|byte| *byte ^= 0x55);
    {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_modified(old).unwrap();
    }
    // Another recipe wants the same tensors, at another place.
    let other = forge.sibling();
    std::fs::copy(forge.path("model.gguf"), other.path("model.gguf")).unwrap();
    other.recipe(&quick_project::first());
    build_well(&other, "out");
    assert!(candidates(&other.path("out")) == before);
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(&forge, "an edit");
}

#[test]
fn an_output_that_was_only_touched_is_read_and_borrowed_from_again() {
    let forge = project();
    build_well(&forge, "out");
    for name in ["c0.gguf", "c1.gguf"] {
        let file = std::fs::File::open(forge.path("out").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(99))
            .unwrap();
    }
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
    // The store borrows from them again: a build to a second place quantizes nothing.
    let events = build_well(&forge, "second");
    assert_eq!(ran_of(&events, "tensor"), 0);
    assert!(candidates(&forge.path("second")) == candidates(&forge.path("out")));
    assert_clean(&forge, "a touch");
}

#[test]
fn outputs_that_moved_are_borrowed_from_where_they_are() {
    let forge = project();
    build_well(&forge, "out");
    std::fs::rename(forge.path("out"), forge.path("moved")).unwrap();
    assert_eq!(ran(&build_well(&forge, "moved")), BTreeSet::new());
    let events = build_well(&forge, "out");
    assert_eq!(ran_of(&events, "tensor"), 0);
    assert!(candidates(&forge.path("out")) == candidates(&forge.path("moved")));
    // Two places hold them now: one may go.
    std::fs::remove_dir_all(forge.path("moved")).unwrap();
    let events = build_well(&forge, "third");
    assert_eq!(ran_of(&events, "tensor"), 0);
    assert_clean(&forge, "a move");
}

#[test]
fn going_back_to_an_earlier_recipe_quantizes_nothing_again() {
    let forge = project();
    let mut known = ran(&build_well(&forge, "out"));
    let first = candidates(&forge.path("out"));
    forge.recipe(&quick_project::second());
    let events = build_well(&forge, "out");
    assert!(ran(&events).is_disjoint(&known));
    known.extend(ran(&events));
    assert_eq!(ran_of(&events, "tensor"), 4);
    let second = candidates(&forge.path("out"));
    for (text, expected) in [(quick_project::first(), &first), (quick_project::second(), &second)] {
        forge.recipe(&text);
        let events = build_well(&forge, "out");
        assert_eq!(ran(&events), BTreeSet::new());
        assert!(candidates(&forge.path("out")) == *expected);
        assert_clean(&forge, "a change of recipe");
    }
}

#[test]
fn with_borrow_off_the_store_keeps_all_tensors() {
    let forge = project();
    forge.write("forge.toml", "[cache]\nborrow = false\n");
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    assert_eq!(own_tensors(&forge), 5);
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    let events = build_well(&forge, "out");
    assert_eq!(ran(&events), BTreeSet::new());
    assert!(candidates(&forge.path("out")) == before);
}

/// Returns the offset of a blob in an output that no other output contains.
fn only_in(forge: &Forge, path: &Path) -> usize {
    let folder = forge.store().join("borrowed-v1");
    let mut starts = BTreeMap::new();
    let mut elsewhere = BTreeSet::new();
    for name in crate::small_model::names(&folder) {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let index: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        for blob in index["blobs"].as_array().unwrap() {
            let bytes = blob["bytes"].as_str().unwrap().to_owned();
            if index["path"].as_str() == path.to_str() {
                starts.insert(bytes, blob["start"].as_u64().unwrap() as usize);
            } else {
                elsewhere.insert(bytes);
            }
        }
    }
    starts.retain(|bytes, _| !elsewhere.contains(bytes));
    *starts.values().next().unwrap()
}

#[test]
fn a_borrowed_blob_with_wrong_bytes_is_made_again_in_the_build_that_reads_it() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    // The bytes change and the stamp does not, as when a disk fails: the store gets the new stamp.
    let path = forge.path("out/c0.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = only_in(&forge, &path);
    bytes[at] ^= 1;
    crate::cache_flips::write_keeping_stamps(&forge, &path, &bytes);
    let run = crate::support::Run::of(quick_project::build(&forge, "second").output().unwrap()).success();
    assert!(candidates(&forge.path("second")) == before);
    let warned = run.json_lines().iter().any(|event| {
        event["reason"] == "warning" && event["message"].as_str().unwrap().contains("does not hold it any more")
    });
    assert!(warned, "{}", run.stdout);
    // The next build of the first folder repairs it.
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(&forge, "a rotten output");
}

/// Writes the indexes of borrowed blobs and the tombstones of a store as version 1 of forge wrote them.
fn as_version_1(forge: &Forge) -> (usize, usize) {
    let rewrite = |path: &Path, kind: &str, edit: &dyn Fn(&str) -> String| {
        let text = std::fs::read_to_string(path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let name = lines[0].strip_prefix(&format!("forge-{kind} 2 ")).unwrap();
        let document = edit(lines[1]).replacen("\"schema\":2", "\"schema\":1", 1);
        let body = format!("forge-{kind} 1 {name}\n{document}\n");
        let sum = forge::digest::Hash::of(body.as_bytes());
        std::fs::write(path, format!("{body}{sum}\n")).unwrap();
    };
    let folder = forge.store().join("borrowed-v1");
    let indexes = crate::small_model::names(&folder);
    for name in &indexes {
        rewrite(&folder.join(name), "loans", &|document| {
            document.replacen("\"blobs\":", "\"loans\":", 1)
        });
    }
    let tombstones = crate::small_model::sharded(forge.store(), "tombstones-v1");
    for path in tombstones.values() {
        rewrite(path, "tombstone", &|document| {
            document.replacen("\"why\":\"size\"", "\"why\":\"room\"", 1)
        });
    }
    (indexes.len(), tombstones.len())
}

#[test]
fn a_store_with_indexes_and_tombstones_of_version_1_works_as_before() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    let (indexes, _) = as_version_1(&forge);
    assert_eq!(indexes, before.len());
    assert_clean(&forge, "indexes of version 1");
    let events = build_well(&forge, "second");
    assert_eq!(
        ran_of(&events, "tensor"),
        0,
        "the tensors are borrowed from the first outputs"
    );
    assert!(candidates(&forge.path("second")) == before);
    let _ = forge
        .run(&["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"])
        .success();
    let (_, tombstones) = as_version_1(&forge);
    assert!(tombstones > 0);
    assert_clean(&forge, "tombstones of version 1");
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(&forge, "after the next build");
}
