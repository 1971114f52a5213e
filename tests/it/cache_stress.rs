//! Builders, a collector and a checker on one store at the same time. `FORGE_TEST_STRESS_SECONDS` (10) says for how long,
//! `FORGE_TEST_SEED` (1) with which random numbers.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::candidates;
use crate::small_model::Random;
use crate::small_model::number_from;
use crate::support::Forge;
use crate::support::Run;

const BUILDERS: usize = 8;
const RECIPES: usize = 16;
/// How many of them are built at a time, and for how long.
const AT_ONCE: usize = 3;
const SPELL: Duration = Duration::from_millis(700);

#[test]
fn builds_collection_and_checks_run_concurrently_without_damage() {
    let time = Duration::from_secs(number_from("FORGE_TEST_STRESS_SECONDS", 10) as u64);
    let seed = number_from("FORGE_TEST_SEED", 1) as u64;
    let forge = Forge::new();
    quick_project::write_model(&forge, 32);
    // More than are built at any time, so that there is always something that nobody has used for a while.
    let types = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"];
    let mut random = Random(seed);
    let recipes: Vec<(String, String)> = (0..RECIPES)
        .map(|number| {
            let mut candidate = || [0; 4].map(|_| random.pick(&types));
            let text = quick_project::recipe("moment", &[candidate(), candidate()]);
            (format!("{number}.toml"), text)
        })
        .collect();
    let mut right = Vec::new();
    for (name, text) in &recipes {
        forge.write(name, text);
        let store = tempfile::tempdir().unwrap();
        let alone = forge.with_store(&store.path().join("store"));
        let out = format!("right-{name}");
        let _ = Run::of(
            crate::small_model::build(&alone, &[name.as_str(), "--out", &out])
                .output()
                .unwrap(),
        )
        .success();
        right.push(candidates(&forge.path(&out)));
    }
    let (stop, builds, collections, checks) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let collected = AtomicUsize::new(0);
    let started = Instant::now();
    std::thread::scope(|scope| {
        // A failure in one thread ends the others.
        struct Stop<'s>(&'s AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        for number in 0..BUILDERS {
            let (forge, recipes, right, stop, builds) = (&forge, &recipes, &right, &stop, &builds);
            scope.spawn(move || {
                let _stop = Stop(stop);
                let mut random = Random(seed * 1000 + number as u64);
                while !stop.load(Ordering::Relaxed) {
                    let spell = (started.elapsed().as_millis() / SPELL.as_millis()) as usize;
                    let which = (spell * AT_ONCE + random.below(AT_ONCE)) % recipes.len();
                    // Some share a folder.
                    let out = format!("out-{}", random.below(BUILDERS));
                    let mut command = crate::small_model::build(forge, &[recipes[which].0.as_str(), "--out", &out]);
                    let run = Run::of(command.output().unwrap());
                    assert_eq!(run.status, Some(0), "{}{}", run.stdout, run.stderr);
                    for event in run.json_lines() {
                        let lost = event["reason"] == "warning"
                            && event["message"].as_str().unwrap().ends_with("forge makes it again");
                        assert!(!lost, "a blob went missing: {event}");
                    }
                    builds.fetch_add(1, Ordering::Relaxed);
                }
                // The last word on a folder is a build of which nobody disturbs the outputs.
                let out = format!("last-{number}");
                let which = number % recipes.len();
                let _ = Run::of(
                    crate::small_model::build(forge, &[recipes[which].0.as_str(), "--out", &out])
                        .output()
                        .unwrap(),
                )
                .success();
                assert!(candidates(&forge.path(&out)) == right[which]);
            });
        }
        scope.spawn(|| {
            let _stop = Stop(&stop);
            let mut random = Random(seed);
            while !stop.load(Ordering::Relaxed) {
                let args: &[&str] = if random.below(2) == 0 {
                    &[
                        "cache",
                        "gc",
                        "--max-size",
                        "0B",
                        "--also-newest",
                        "--yes",
                        "--message-format",
                        "json",
                    ]
                } else {
                    &["cache", "gc", "--older-than", "1s", "--yes", "--message-format", "json"]
                };
                let run = forge.run(args).success();
                for line in run.json_lines() {
                    if line["reason"] == "cache-gc" {
                        let results = line["results"].as_u64().unwrap() as usize;
                        collected.fetch_add(results, Ordering::Relaxed);
                    }
                }
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let _stop = Stop(&stop);
            while !stop.load(Ordering::Relaxed) {
                assert_clean(&forge, "while others build and collect");
                checks.fetch_add(1, Ordering::Relaxed);
            }
        });
        while started.elapsed() < time && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_clean(&forge, "at the end");
    for number in 0..BUILDERS {
        let out = forge.path(&format!("out-{number}"));
        if out.exists() {
            // Two recipes in one folder at once: each file is one of theirs, whole.
            for found in candidates(&out) {
                assert!(
                    right.iter().flatten().any(|known| *known == found),
                    "out-{number}: {}",
                    found.0
                );
            }
        }
    }
    let (builds, collections, checks, collected) = (
        builds.into_inner(),
        collections.into_inner(),
        checks.into_inner(),
        collected.into_inner(),
    );
    eprintln!("{builds} builds, {collections} collections of {collected} results, {checks} checks in {time:?}");
    assert!(builds >= BUILDERS && collections > 1 && checks > 0);
    assert!(
        collected > 0,
        "the collector never found anything to collect: nothing was shown"
    );
}

/// What is no damage: outputs that the store borrows from, deleted or replaced, builds that are killed, results that are collected.
#[test]
fn verify_reports_no_damage_while_outputs_are_deleted_and_builds_are_killed() {
    let time = Duration::from_secs(number_from("FORGE_TEST_STRESS_SECONDS", 5) as u64);
    let seed = number_from("FORGE_TEST_SEED", 1) as u64;
    let forge = Forge::new();
    quick_project::write_model(&forge, 32);
    forge.write("0.toml", quick_project::first());
    forge.write("1.toml", quick_project::second());
    let stop = AtomicBool::new(false);
    let (builds, kills, collections, checks) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let blamed = std::sync::Mutex::new(Vec::new());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (forge, stop, builds, kills) = (&forge, &stop, &builds, &kills);
            scope.spawn(move || {
                let mut random = Random(seed * 1000 + number);
                let out = format!("out-{number}");
                while !stop.load(Ordering::Relaxed) {
                    let recipe = format!("{}.toml", random.below(2));
                    let mut child = crate::small_model::build(forge, &[recipe.as_str(), "--out", &out])
                        .stdout(std::process::Stdio::null())
                        .stderr(std::process::Stdio::null())
                        .spawn()
                        .unwrap();
                    if random.below(3) == 0 {
                        std::thread::sleep(Duration::from_millis(random.below(100) as u64));
                        child.kill().unwrap();
                        kills.fetch_add(1, Ordering::Relaxed);
                        child.wait().unwrap();
                    } else {
                        assert!(child.wait().unwrap().success());
                        builds.fetch_add(1, Ordering::Relaxed);
                    }
                    if random.below(3) == 0 {
                        std::fs::remove_dir_all(forge.path(&out)).ok();
                    }
                }
            });
        }
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = forge.run(&["cache", "gc", "--older-than", "0s", "--yes"]).success();
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (run, lines) = quick_project::verify(&forge);
                if run.status != Some(0) {
                    blamed.lock().unwrap().push(format!("{lines:?}{}", run.stderr));
                }
                checks.fetch_add(1, Ordering::Relaxed);
            }
        });
        while started.elapsed() < time {
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{builds:?} builds, {kills:?} kills, {collections:?} collections, {checks:?} checks");
    let blamed = blamed.into_inner().unwrap();
    assert!(
        blamed.is_empty(),
        "{} of {checks:?} checks:\n{}",
        blamed.len(),
        blamed.join("\n")
    );
    assert!(builds.into_inner() > 0 && collections.into_inner() > 0 && checks.into_inner() > 0);
}
