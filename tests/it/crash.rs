//! Builds that are killed, and stores that are damaged. `FORGE_TEST_KILLS` (25) says how often a build is killed,
//! `FORGE_TEST_SEED` (1) with which random numbers.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::small_model;
use crate::small_model::Random;
use crate::small_model::assert_same_products;
use crate::small_model::assert_store_tidy;
use crate::small_model::committed;
use crate::small_model::keys;
use crate::small_model::names;
use crate::small_model::number_from;
use crate::small_model::sharded;
use crate::support::Forge;
use crate::support::Run;

/// When a build is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// As soon as it has printed so many lines.
    Lines(usize),
    /// When so much time has passed since its start.
    Time(Duration),
}

/// Starts a build, kills it, and returns what it had printed, or `None` if it ended before.
fn killed_at(forge: &Forge, moment: Moment) -> Option<Vec<serde_json::Value>> {
    let mut command = small_model::build(forge, &[]);
    let started = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    match moment {
        Moment::Lines(count) => {
            for _ in 0..count {
                out.read_line(&mut text).unwrap();
            }
        }
        // No synchronisation: any moment is as good as another. What it prints meanwhile fits into the pipe.
        Moment::Time(time) => std::thread::sleep(time.saturating_sub(started.elapsed())),
    }
    child.kill().unwrap();
    out.read_to_string(&mut text).unwrap();
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    let status = child.wait().unwrap();
    if status.signal().is_none() {
        assert_eq!(status.code(), Some(0), "it failed by itself: {text}{errors}");
        return None;
    }
    // The last line may be a part of one.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Some(whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[test]
fn a_killed_build_continues_without_repeating_actions() {
    let kills = number_from("FORGE_TEST_KILLS", 25);
    let mut random = Random(number_from("FORGE_TEST_SEED", 1) as u64);
    let forge = small_model::project();
    let started = Instant::now();
    let (clean, undisturbed) = small_model::build_clean(&forge, &[]);
    let time = started.elapsed();
    let lines = undisturbed.stdout.lines().count();
    // The guard between calibration and evaluation keeps a result, too, and is no step.
    let every_key = committed(&clean.path().join("store"));
    let ran: BTreeSet<String> = keys(&undisturbed.json_lines(), "ran").into_iter().collect();
    assert!(ran.is_subset(&every_key) && every_key.len() == ran.len() + 1);

    let (mut killed, mut phases) = (0, BTreeSet::new());
    while killed < kills {
        let store = tempfile::tempdir().unwrap();
        let out = forge.path(small_model::OUT);
        if out.exists() {
            std::fs::remove_dir_all(&out).unwrap();
        }
        let project = forge.with_store(store.path());
        // Keys that had a result after a kill, and those that ran since.
        let mut done = BTreeSet::new();
        let mut ran_ever = Vec::new();
        // Some builds are killed once, others again and again as they go on.
        for _ in 0..=random.below(4) {
            let moment = if random.below(2) == 0 {
                Moment::Lines(random.below(lines))
            } else {
                Moment::Time(time.mul_f64(random.below(1000) as f64 / 1000.0))
            };
            let Some(events) = killed_at(&project, moment) else {
                break;
            };
            killed += 1;
            phases.insert(events.last().map(|event| event["step"].to_string()));
            let ran = keys(&events, "ran");
            for key in &ran {
                assert!(!done.contains(key), "{key} ran again after a kill at {moment:?}");
            }
            done = committed(store.path());
            for key in &ran {
                assert!(done.contains(key), "{key} is said to have run, and has no result");
            }
            ran_ever.extend(ran);
        }
        let events = Run::of(small_model::build(&project, &[]).output().unwrap())
            .success()
            .json_lines();
        for key in keys(&events, "ran") {
            assert!(!done.contains(&key), "{key} ran again");
            ran_ever.push(key);
        }
        let once: BTreeSet<String> = ran_ever.iter().cloned().collect();
        assert_eq!(once.len(), ran_ever.len(), "an action ran twice");
        assert_eq!(committed(store.path()), every_key);
        assert_same_products(&out, &clean.path().join("out"), "after kills");
        assert_eq!(names(&out), names(&clean.path().join("out")), "litter");
        assert_store_tidy(store.path());
        let last = Run::of(small_model::build(&project, &[]).output().unwrap()).success();
        assert_eq!(keys(&last.json_lines(), "ran"), [""; 0]);
    }
    assert!(phases.len() > 5 || kills < 25, "the moments are not spread: {phases:?}");
}

#[test]
fn temporary_files_of_killed_builds_are_removed_and_user_files_are_kept() {
    let forge = small_model::project();
    let litter = format!("{}/.forge-4242-7-0123456789abcdef", small_model::OUT);
    forge.write(&litter, "half a candidate");
    let mine = [".forge-4242-7-notes", "notes.gguf", ".forge-x"].map(|name| format!("{}/{name}", small_model::OUT));
    for name in &mine {
        forge.write(name, "mine");
    }
    let _ = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    assert!(!forge.path(&litter).exists());
    for name in &mine {
        assert_eq!(std::fs::read_to_string(forge.path(name)).unwrap(), "mine");
    }
}

/// What can happen to a file on a disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Damage {
    Flip,
    Truncate,
    Delete,
}

/// Damages a file past its read-only mode.
pub(crate) fn damage(path: &Path, how: Damage, random: &mut Random) {
    let mut bytes = std::fs::read(path).unwrap();
    match how {
        Damage::Delete => return std::fs::remove_file(path).unwrap(),
        // The smallest blob there is has a byte, as all of these have.
        Damage::Flip => {
            let at = random.below(bytes.len());
            bytes[at] ^= 1 << random.below(8);
        }
        Damage::Truncate => bytes.truncate(random.below(bytes.len())),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .unwrap();
    file.write_all(&bytes).unwrap();
}

/// Everything in the store is damaged at once, and the outputs are gone: nothing but the sources is right.
fn all_damaged(how: Damage) {
    let mut random = Random(7);
    let forge = small_model::project();
    let before = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    let ran: BTreeSet<String> = keys(&before.json_lines(), "ran").into_iter().collect();
    let out = forge.path(small_model::OUT);
    let (products, all_names) = (small_model::products(&out), names(&out));
    let blobs: BTreeMap<_, _> = sharded(forge.store(), "cas-v1");
    assert!(blobs.len() > 50);
    for path in blobs.values() {
        damage(path, how, &mut random);
    }
    std::fs::remove_dir_all(&out).unwrap();
    let run = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    let again: BTreeSet<String> = keys(&run.json_lines(), "ran").into_iter().collect();
    assert!(again.is_subset(&ran), "the same actions, no others");
    assert!(small_model::products(&out) == products, "{how:?}: the outputs differ");
    assert_eq!(names(&out), all_names);
    let warnings: Vec<_> = run.json_lines();
    let reported = warnings
        .iter()
        .filter(|event| event["reason"] == "warning")
        .filter_map(|event| event["message"].as_str())
        .filter(|message| message.contains("was damaged") && message.ends_with("forge makes it again"))
        .count();
    match how {
        // A wrong length is found by the lookup and repaired without a message. Other damage is found by reading and reported.
        Damage::Flip => assert!(reported > 10, "{reported}"),
        Damage::Truncate | Damage::Delete => assert_eq!(again, ran),
    }
    let last = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    assert_eq!(keys(&last.json_lines(), "ran"), [""; 0]);
}

#[test]
fn a_build_recomputes_blobs_with_flipped_bits() {
    all_damaged(Damage::Flip);
}

#[test]
fn a_build_recomputes_truncated_blobs() {
    all_damaged(Damage::Truncate);
}

#[test]
fn a_build_recomputes_missing_blobs() {
    all_damaged(Damage::Delete);
}

#[test]
fn lost_documents_that_only_the_manifest_reads_are_recomputed() {
    let forge = small_model::project();
    let _ = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    let out = forge.path(small_model::OUT);
    let products = small_model::products(&out);
    let manifest = out.join("small-Q4_0.gguf.manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    // Action documents are the blobs that begin so.
    let mut documents = 0;
    for path in sharded(forge.store(), "cas-v1").values() {
        let bytes = std::fs::read(path).unwrap();
        if bytes.starts_with(br#"{"schema":1,"kind":"tensor""#) {
            damage(path, Damage::Flip, &mut Random(documents));
            documents += 1;
        }
    }
    assert!(documents > 3, "{documents}");
    std::fs::remove_file(&manifest).unwrap();
    let _ = Run::of(small_model::build(&forge, &[]).output().unwrap()).success();
    assert!(small_model::products(&out) == products);
    let parts = |text: &str| -> serde_json::Value {
        let all: serde_json::Value = serde_json::from_str(text).unwrap();
        all["predicate"].clone()
    };
    let (before, after) = (parts(&text), parts(&std::fs::read_to_string(&manifest).unwrap()));
    assert_eq!(before["buildDefinition"], after["buildDefinition"]);
}
