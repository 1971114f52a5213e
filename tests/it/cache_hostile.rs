//! A store that came from elsewhere, with links, pipes and names that lead out of it: nothing outside is written or removed,
//! and nothing hangs.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use std::time::SystemTime;

use forge::digest::Hash;

use crate::quick_project;
use crate::quick_project::build_well;
use crate::quick_project::candidates;
use crate::quick_project::project;
use crate::small_model::Going;
use crate::small_model::sharded;
use crate::support::Forge;

/// Everything under a folder: path, bytes, and when it changed.
fn picture(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let facts = std::fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            all.extend(picture(&path));
        } else {
            all.insert(path.clone(), (std::fs::read(&path).unwrap(), facts.modified().unwrap()));
        }
    }
    all
}

/// A folder outside the store that looks as much like a part of one as can be.
fn outside(forge: &Forge) -> PathBuf {
    let outside = forge.path("outside");
    std::fs::create_dir_all(outside.join("shard")).unwrap();
    for name in ["precious", "sweep", "gc"] {
        std::fs::write(outside.join(name), b"precious").unwrap();
    }
    let blob = Hash::of(b"somebody's blob").to_string();
    std::fs::write(outside.join("shard").join(&blob[2..]), b"somebody's blob").unwrap();
    let mut old = vec![outside.clone()];
    while let Some(folder) = old.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                old.push(path);
            } else {
                let file = std::fs::File::open(&path).unwrap();
                file.set_modified(SystemTime::now() - Duration::from_hours(400 * 24))
                    .unwrap();
            }
        }
    }
    outside
}

/// Runs every verb that writes or removes. None of them may hang; each may refuse.
fn run_all(forge: &Forge) -> Vec<(String, Option<i32>, String)> {
    let commands: [&[&str]; 7] = [
        &["cache", "verify", "-j", "1"],
        &[
            "cache",
            "gc",
            "--max-size",
            "0B",
            "--older-than",
            "0s",
            "--also-newest",
            "--yes",
        ],
        &["cache", "size"],
        &["build", "-j", "1", "--out", "out"],
        &["cache", "clean"],
        &["cache", "list"],
        &["cache", "clean", "--all", "--yes"],
    ];
    commands
        .iter()
        .map(|args| {
            let run = Going::start(forge.command(args)).end();
            assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
            (args.join(" "), run.status, run.stderr)
        })
        .collect()
}

fn replace_with_link(path: &Path, to: &Path) {
    let facts = std::fs::symlink_metadata(path).ok();
    match facts {
        Some(facts) if facts.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Some(_) => std::fs::remove_file(path).unwrap(),
        None => {}
    }
    symlink(to, path).unwrap();
}

#[test]
fn a_link_in_place_of_any_directory_is_refused_and_not_followed() {
    for name in [
        "cas-v1",
        "actions-v1",
        "manifests-v1",
        "runs-v1",
        "runs-v1/last",
        "stat-v1",
        "events-v1",
        "tombstones-v1",
        "borrowed-v1",
        "tmp",
        "locks",
        "leases",
        "quarantine",
        "cas-v1/00",
        "actions-v1/7f",
        "stat-v1/00",
        "tombstones-v1/00",
    ] {
        let forge = project();
        build_well(&forge, "out");
        let outside = outside(&forge);
        std::fs::create_dir_all(forge.store().join(name).parent().unwrap()).unwrap();
        replace_with_link(&forge.store().join(name), &outside.join("shard"));
        let before = picture(&outside);
        for (command, status, stderr) in run_all(&forge) {
            assert_eq!(status, Some(3), "{name}: {command}: {stderr}");
            assert!(stderr.contains("lead out of the store"), "{name}: {command}: {stderr}");
        }
        assert_eq!(picture(&outside), before, "{name}");
    }
}

#[test]
fn links_and_pipes_in_place_of_files_are_not_followed_and_nothing_hangs() {
    let forge = project();
    build_well(&forge, "out");
    let expected = candidates(&forge.path("out"));
    let outside = outside(&forge);
    let before = picture(&outside);
    let precious = outside.join("precious");
    let mut turn = 0;
    for directory in ["cas-v1", "actions-v1", "stat-v1"] {
        for path in sharded(forge.store(), directory).into_values() {
            turn += 1;
            match turn % 3 {
                0 => replace_with_link(&path, &precious),
                1 => {
                    std::fs::remove_file(&path).unwrap();
                    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
                }
                _ => {}
            }
        }
    }
    for folder in ["runs-v1/last", "borrowed-v1"] {
        for name in crate::small_model::names(&forge.store().join(folder)) {
            replace_with_link(&forge.store().join(folder).join(name), &precious);
        }
    }
    for name in ["sweep", "sweep-gate", "gc", "replace-00", "replace-7f"] {
        replace_with_link(&forge.store().join("locks").join(name), &outside.join("made-by-forge"));
    }
    replace_with_link(
        &forge.store().join("tmp/.forge-1-2-3.lock"),
        &outside.join("made-by-forge"),
    );
    replace_with_link(&forge.store().join("leases/.forge-1-2-3"), &precious);
    run_all(&forge);
    assert_eq!(picture(&outside), before);
    // The locks apart, which nothing can do without, the store mends itself.
    let forge = project();
    build_well(&forge, "out");
    let outside = self::outside(&forge);
    for directory in ["cas-v1", "actions-v1"] {
        for path in sharded(forge.store(), directory).into_values().step_by(2) {
            replace_with_link(&path, &outside.join("precious"));
        }
    }
    build_well(&forge, "out");
    assert!(candidates(&forge.path("out")) == expected);
    let (run, _) = quick_project::verify(&forge);
    assert!(matches!(run.status, Some(0 | 1)), "{}", run.stderr);
    quick_project::assert_clean(&forge, "checked twice");
}

#[test]
fn a_foreign_file_in_an_index_is_only_inspected_with_stat() {
    let forge = project();
    build_well(&forge, "out");
    let expected = candidates(&forge.path("out"));
    let outside = outside(&forge);
    let before = picture(&outside);
    // An index, whole and sealed, that says that a tensor lies in a device, a pipe, or a file of somebody else's.
    assert!(
        Command::new("mkfifo")
            .arg(forge.path("pipe"))
            .status()
            .unwrap()
            .success()
    );
    let folder = forge.store().join("borrowed-v1");
    let indexes: Vec<PathBuf> = crate::small_model::names(&folder)
        .into_iter()
        .map(|name| folder.join(name))
        .collect();
    let text = std::fs::read_to_string(&indexes[0]).unwrap();
    let index: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
    for path in [
        outside.join("precious"),
        PathBuf::from("/dev/zero"),
        forge.path("pipe"),
        PathBuf::from("../../../../etc/passwd"),
        PathBuf::from(""),
    ] {
        use std::os::unix::fs::MetadataExt as _;
        let mut index = index.clone();
        index["path"] = path.to_str().unwrap().into();
        let mut stamp = (0, 0, 0, 0, 0);
        if let Ok(facts) = std::fs::metadata(&path) {
            let ns = |seconds: i64, nanos: i64| seconds * 1_000_000_000 + nanos;
            stamp = (
                facts.dev(),
                facts.ino(),
                facts.len(),
                ns(facts.mtime(), facts.mtime_nsec()),
                ns(facts.ctime(), facts.ctime_nsec()),
            );
        }
        let (dev, ino, size, mtime, ctime) = stamp;
        index["dev"] = dev.into();
        index["ino"] = ino.into();
        index["size"] = size.into();
        index["mtime_ns"] = mtime.into();
        index["ctime_ns"] = ctime.into();
        let file = index["file"].as_str().unwrap();
        let prefix = Hash::of(path.to_str().unwrap().as_bytes()).to_string();
        let rest = Hash::of(format!("{dev} {ino} {size} {mtime} {ctime} {file}").as_bytes()).to_string();
        let name = format!("{}-{}", &prefix[..32], &rest[..32]);
        let body = format!("forge-loans 2 {name}\n{index}\n");
        std::fs::write(folder.join(&name), format!("{body}{}\n", Hash::of(body.as_bytes()))).unwrap();
    }
    for path in indexes {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    let built = Going::start(quick_project::build(&forge, "out")).end().success();
    assert!(!built.stdout.is_empty());
    assert!(candidates(&forge.path("out")) == expected);
    run_all(&forge);
    assert_eq!(picture(&outside), before);
}

#[test]
fn clean_all_removes_only_the_store() {
    let forge = project();
    build_well(&forge, "out");
    let outside = outside(&forge);
    let before = picture(&outside);
    std::fs::write(forge.store().join("notes.txt"), b"mine").unwrap();
    symlink(&outside, forge.store().join("a-link")).unwrap();
    let run = forge.run(&["cache", "clean", "--all"]).status(2);
    assert!(run.stderr.contains("--yes"), "{}", run.stderr);
    let run = forge.run(&["cache", "clean", "--all", "--yes"]).success();
    assert!(run.stderr.contains("notes.txt"), "{}", run.stderr);
    let left = crate::small_model::names(forge.store());
    assert_eq!(left.into_iter().collect::<Vec<_>>(), ["a-link", "notes.txt"]);
    assert_eq!(picture(&outside), before);
    // No store any more, and not to be taken for one.
    let _ = forge.run(&["cache", "clean", "--all", "--yes"]).status(3);
    let elsewhere = forge.with_store(&outside);
    let _ = elsewhere.run(&["cache", "clean", "--all", "--yes"]).status(3);
    assert_eq!(picture(&outside), before);
}
