//! Nothing is stored twice: what outputs lend to the store, and what happens to it when they are changed, moved or gone.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::cache_small;
use crate::cache_small::assert_clean;
use crate::cache_small::build_well;
use crate::cache_small::candidates;
use crate::cache_small::project;
use crate::cache_small::ran;
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
fn six_candidates_take_the_room_of_the_outputs() {
    let forge = Forge::new();
    // Large enough for the block that every small file takes not to be what is measured.
    cache_small::write_model(&forge, 16_384);
    let types = ["Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1", "Q4_K"];
    let candidates_types: Vec<[&str; 4]> = types.iter().map(|ty| [*ty; 4]).collect();
    forge.recipe(&cache_small::recipe("six", &candidates_types));
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
fn deleting_an_output_costs_what_only_it_held() {
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
fn an_output_that_was_edited_never_lends_wrong_bytes() {
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
    other.recipe(&cache_small::first());
    build_well(&other, "out");
    assert!(candidates(&other.path("out")) == before);
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(&forge, "an edit");
}

#[test]
fn an_output_that_was_only_touched_is_read_and_lends_again() {
    let forge = project();
    build_well(&forge, "out");
    for name in ["c0.gguf", "c1.gguf"] {
        let file = std::fs::File::open(forge.path("out").join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(99))
            .unwrap();
    }
    assert_eq!(ran(&build_well(&forge, "out")), BTreeSet::new());
    // What they lend is there again: a second place is filled without work.
    let events = build_well(&forge, "second");
    assert_eq!(ran_of(&events, "tensor"), 0);
    assert!(candidates(&forge.path("second")) == candidates(&forge.path("out")));
    assert_clean(&forge, "a touch");
}

#[test]
fn outputs_that_moved_lend_from_where_they_are() {
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
    forge.recipe(&cache_small::second());
    let events = build_well(&forge, "out");
    assert!(ran(&events).is_disjoint(&known));
    known.extend(ran(&events));
    assert_eq!(ran_of(&events, "tensor"), 4);
    let second = candidates(&forge.path("out"));
    for (text, expected) in [(cache_small::first(), &first), (cache_small::second(), &second)] {
        forge.recipe(&text);
        let events = build_well(&forge, "out");
        assert_eq!(ran(&events), BTreeSet::new());
        assert!(candidates(&forge.path("out")) == *expected);
        assert_clean(&forge, "a change of recipe");
    }
}

#[test]
fn who_deletes_outputs_often_can_keep_all_in_the_store() {
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

/// Returns a place in an output whose bytes no other output lends.
fn only_in(forge: &Forge, path: &Path) -> usize {
    let folder = forge.store().join("borrowed-v1");
    let mut starts = BTreeMap::new();
    let mut elsewhere = BTreeSet::new();
    for name in crate::small::names(&folder) {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let book: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        for loan in book["loans"].as_array().unwrap() {
            let bytes = loan["bytes"].as_str().unwrap().to_owned();
            if book["path"].as_str() == path.to_str() {
                starts.insert(bytes, loan["start"].as_u64().unwrap() as usize);
            } else {
                elsewhere.insert(bytes);
            }
        }
    }
    starts.retain(|bytes, _| !elsewhere.contains(bytes));
    *starts.values().next().unwrap()
}

#[test]
fn a_blob_that_an_output_lends_wrongly_is_made_again_in_the_build_that_finds_it() {
    let forge = project();
    build_well(&forge, "out");
    let before = candidates(&forge.path("out"));
    // The bytes change and no stamp does, as when a disk fails: the store is told the new stamp.
    let path = forge.path("out/c0.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = only_in(&forge, &path);
    bytes[at] ^= 1;
    crate::cache_flips::write_keeping_stamps(&forge, &path, &bytes);
    let run = crate::support::Run::of(cache_small::build(&forge, "second").output().unwrap()).success();
    assert!(candidates(&forge.path("second")) == before);
    let told = run.json_lines().iter().any(|event| {
        event["reason"] == "warning" && event["message"].as_str().unwrap().contains("does not hold it any more")
    });
    assert!(told, "{}", run.stdout);
    // The first place is mended by its next build.
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == before);
    assert_clean(&forge, "a rotten output");
}
