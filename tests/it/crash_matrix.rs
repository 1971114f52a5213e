//! Killed at every call: `strace` kills the program, or lets a call fail, at each file-system call of a build, of a build
//! that replaces outputs, and of a collection. After each: the next build succeeds, `forge cache verify` is clean, nothing
//! committed is lost, nothing broken is accepted. `FORGE_TEST_KILLS` (0: a sample) says at how many calls for each kind of
//! them, `FORGE_TEST_SEED` (1) which ones are in the sample. `TMPDIR=/dev/shm FORGE_TEST_KILLS=100000` tries every call, in minutes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::quick_project;
use crate::quick_project::assert_clean;
use crate::quick_project::candidates;
use crate::quick_project::ran;
use crate::small_model;
use crate::small_model::Random;
use crate::small_model::SmallDisk;
use crate::small_model::committed;
use crate::small_model::number_from;
use crate::support::Forge;
use crate::support::Run;

/// Every call by which the program changes a file system or waits for it.
const CALLS: [&str; 20] = [
    "openat",
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "fchmod",
    "fchmodat",
    "chmod",
    "utimensat",
    "flock",
];

/// What is done to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    /// This one and all later ones fail.
    NoSpace,
    /// This one fails.
    Broken,
}

/// Runs a command under strace with a fault in the n-th call of a kind of each thread. Returns its exit status.
fn run_with(command: &Command, call: &str, number: usize, fault: Fault) -> Run {
    let how = match fault {
        Fault::Kill => format!("inject={call}:signal=KILL:when={number}"),
        Fault::NoSpace => format!("inject={call}:error=ENOSPC:when={number}+"),
        Fault::Broken => format!("inject={call}:error=EIO:when={number}"),
    };
    let filter = format!("trace={call}");
    let mut traced = under_strace(command, &["-e", &filter, "-e", &how, "-o", "/dev/null"]);
    Run::of(traced.output().unwrap())
}

fn under_strace(command: &Command, args: &[&str]) -> Command {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq"]).args(args);
    traced.arg(command.get_program()).args(command.get_args());
    traced.env_clear().stdin(std::process::Stdio::null());
    if let Some(directory) = command.get_current_dir() {
        traced.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            traced.env(name, value);
        }
    }
    traced
}

/// Returns how often the busiest thread of a command makes each call; nothing where a process may not be traced.
fn counts(command: &Command, log: &Path) -> Option<BTreeMap<String, usize>> {
    let filter = format!("trace={}", CALLS.join(","));
    let log_name = log.to_str().unwrap();
    let output = under_strace(command, &["-e", &filter, "-o", log_name]).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: strace does not start");
        return None;
    };
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("ptrace"), "{errors}");
        eprintln!("SKIPPED: a process may not be traced here: {errors}");
        return None;
    }
    let mut by_thread: BTreeMap<(String, String), usize> = BTreeMap::new();
    for line in std::fs::read_to_string(log).unwrap().lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(rest)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some(call) = CALLS.iter().find(|call| rest.starts_with(&format!("{call}("))) {
            *by_thread.entry(((*call).to_owned(), thread.to_owned())).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((call, _), count) in by_thread {
        let known = most.entry(call).or_insert(0);
        *known = count.max(*known);
    }
    Some(most)
}

/// Returns the calls to put a fault in: at most `sample` numbers of each kind, or as many as `FORGE_TEST_KILLS` says.
fn chosen(counts: &BTreeMap<String, usize>, calls: &[&str], sample: usize) -> Vec<(String, usize)> {
    let most = match number_from("FORGE_TEST_KILLS", 0) {
        0 => sample,
        number => number,
    };
    let mut random = Random(number_from("FORGE_TEST_SEED", 1) as u64);
    let mut all = Vec::new();
    for (call, count) in counts.iter().filter(|(call, _)| calls.contains(&call.as_str())) {
        let mut numbers: BTreeSet<usize> = (1..=*count).collect();
        while numbers.len() > most {
            let at = random.below(numbers.len());
            let number = *numbers.iter().nth(at).unwrap();
            numbers.remove(&number);
        }
        all.extend(numbers.into_iter().map(|number| (call.clone(), number)));
    }
    assert!(!all.is_empty());
    all
}

/// A store that is made, and empty, to start from.
fn fresh(forge: &Forge) -> (tempfile::TempDir, Forge) {
    let dir = tempfile::tempdir().unwrap();
    let project = forge.with_store(&dir.path().join("store"));
    (dir, project)
}

/// What must hold after a fault: the check is clean, the next build succeeds, what was committed did not run again, the
/// outputs are right, and nothing is left over.
fn assert_recovers(project: &Forge, out: &Path, expected: &[(String, Vec<u8>)], what: &str) {
    assert_clean(project, &format!("after {what}"));
    let done = committed(project.store());
    let run = Run::of(quick_project::build(project, out.to_str().unwrap()).output().unwrap());
    assert_eq!(run.status, Some(0), "after {what}: {}{}", run.stdout, run.stderr);
    let again: Vec<String> = ran(&run.json_lines())
        .into_iter()
        .filter(|key| done.contains(key))
        .collect();
    assert!(again.is_empty(), "after {what}: {again:?} ran again");
    assert!(candidates(out) == expected, "after {what}: the outputs are others");
    assert_clean(project, &format!("after the build after {what}"));
    let last = Run::of(quick_project::build(project, out.to_str().unwrap()).output().unwrap()).success();
    assert_eq!(
        ran(&last.json_lines()),
        BTreeSet::new(),
        "after {what}: something is left to do"
    );
    assert_eq!(
        small_model::names(&project.store().join("tmp")),
        BTreeSet::new(),
        "after {what}"
    );
    let litter: Vec<String> = small_model::names(out)
        .into_iter()
        .filter(|name| name.starts_with(".forge-"))
        .collect();
    assert!(litter.is_empty(), "after {what}: {litter:?}");
}

#[test]
fn a_build_killed_at_any_system_call_can_be_continued() {
    let forge = quick_project::project();
    let (_clean, project) = fresh(&forge);
    let out = forge.path("right");
    quick_project::build_well(&project, out.to_str().unwrap());
    let expected = candidates(&out);
    assert_eq!(expected.len(), 2);

    let (_counted, project) = fresh(&forge);
    let _ = project.run(&["cache", "size"]).success();
    let Some(counts) = counts(&quick_project::build(&project, "counted"), &forge.path("calls.log")) else {
        return;
    };
    let mut died = 0;
    let mut cases = 0;
    for (call, number) in chosen(&counts, &CALLS, 4) {
        let (_dir, project) = fresh(&forge);
        let _ = project.run(&["cache", "dir"]).success();
        let out = forge.path("killed");
        let _ = std::fs::remove_dir_all(&out);
        let run = run_with(
            &quick_project::build(&project, out.to_str().unwrap()),
            &call,
            number,
            Fault::Kill,
        );
        // Another order of the threads may make fewer calls: then it ended by itself.
        died += usize::from(run.status.is_none());
        cases += 1;
        assert_recovers(&project, &out, &expected, &format!("a kill at {call} {number}"));
    }
    assert!(died * 2 > cases, "only {died} of {cases} died");
    eprintln!("killed at {died} of {cases} calls; there are {counts:?}");
}

#[test]
fn a_build_that_replaces_outputs_loses_nothing_when_killed() {
    let forge = quick_project::project();
    let (_clean, project) = fresh(&forge);
    let mut expected = Vec::new();
    for (name, text) in [
        ("right-1", quick_project::first()),
        ("right-2", quick_project::second()),
    ] {
        forge.recipe(&text);
        quick_project::build_well(&project, name);
        expected.push(candidates(&forge.path(name)));
    }
    let prepare = || {
        let (dir, project) = fresh(&forge);
        let out = forge.path("replaced");
        let _ = std::fs::remove_dir_all(&out);
        forge.recipe(&quick_project::first());
        quick_project::build_well(&project, "replaced");
        forge.recipe(&quick_project::second());
        (dir, project)
    };
    let (_dir, project) = prepare();
    let Some(counts) = counts(&quick_project::build(&project, "replaced"), &forge.path("calls.log")) else {
        return;
    };
    let calls = ["fsync", "rename", "unlink", "openat"];
    for (call, number) in chosen(&counts, &calls, 4) {
        let (_dir, project) = prepare();
        let before = committed(project.store());
        let run = run_with(&quick_project::build(&project, "replaced"), &call, number, Fault::Kill);
        let what = format!("a kill at {call} {number} of a replacement ({:?})", run.status);
        let out = forge.path("replaced");
        assert_recovers(&project, &out, &expected[1], &what);
        // Back again: what the first build made is still known, though its outputs are gone.
        forge.recipe(&quick_project::first());
        let events = quick_project::build_well(&project, "replaced");
        let again: Vec<String> = ran(&events).into_iter().filter(|key| before.contains(key)).collect();
        assert!(again.is_empty(), "{what}: {again:?} ran again");
        assert!(candidates(&out) == expected[0], "{what}");
    }
}

#[test]
fn a_full_or_failing_disk_leaves_the_store_consistent() {
    let forge = quick_project::project();
    let (_clean, project) = fresh(&forge);
    quick_project::build_well(&project, "right");
    let expected = candidates(&forge.path("right"));
    let (_counted, project) = fresh(&forge);
    let _ = project.run(&["cache", "size"]).success();
    let Some(counts) = counts(&quick_project::build(&project, "counted"), &forge.path("calls.log")) else {
        return;
    };
    let mut failed = 0;
    for fault in [Fault::NoSpace, Fault::Broken] {
        for (call, number) in chosen(&counts, &["write", "fsync", "rename", "openat"], 2) {
            let (_dir, project) = fresh(&forge);
            let _ = project.run(&["cache", "size"]).success();
            let out = forge.path("failed");
            let _ = std::fs::remove_dir_all(&out);
            let run = run_with(
                &quick_project::build(&project, out.to_str().unwrap()),
                &call,
                number,
                fault,
            );
            let what = format!("{fault:?} at {call} {number}");
            // A library that is not found ends the program before it is one; and a write may be one to the terminal.
            let known = [Some(0), Some(1), Some(3), Some(127)];
            assert!(
                known.contains(&run.status),
                "{what}: {:?} {}{}",
                run.status,
                run.stdout,
                run.stderr
            );
            assert!(!run.stderr.contains("panicked"), "{what}: {}", run.stderr);
            failed += usize::from(run.status != Some(0));
            assert_recovers(&project, &out, &expected, &what);
        }
    }
    assert!(failed > 5, "{failed}");
}

#[test]
fn a_garbage_collection_killed_at_any_call_leaves_the_store_consistent() {
    let forge = quick_project::project();
    let collect = |project: &Forge| project.command(&["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"]);
    let prepare = || {
        let (dir, project) = fresh(&forge);
        let out = forge.path("collected");
        let _ = std::fs::remove_dir_all(&out);
        quick_project::build_well(&project, "collected");
        (dir, project)
    };
    let (_dir, project) = prepare();
    let expected = candidates(&forge.path("collected"));
    let Some(counts) = counts(&collect(&project), &forge.path("calls.log")) else {
        return;
    };
    for (call, number) in chosen(&counts, &["rename", "unlink", "openat", "write"], 4) {
        let (_dir, project) = prepare();
        let run = run_with(&collect(&project), &call, number, Fault::Kill);
        let what = format!("a kill at {call} {number} of a collection ({:?})", run.status);
        assert_recovers(&project, &forge.path("collected"), &expected, &what);
        let again = Run::of(collect(&project).output().unwrap());
        assert_eq!(again.status, Some(0), "{what}: {}{}", again.stdout, again.stderr);
        assert_clean(&project, &what);
    }
}

#[test]
fn a_full_disk_is_reported_before_the_build_and_nothing_is_written() {
    let forge = quick_project::project();
    let mount = forge.path("small-disk");
    // As large as a store without anything in it, and a bit.
    let Some(_disk) = SmallDisk::mount(&mount, "3m") else {
        return;
    };
    quick_project::write_model(&forge, 16_384);
    let project = forge.with_store(&mount.join("store"));
    let run = project
        .run(&["build", "--out", mount.join("out").to_str().unwrap()])
        .status(3);
    assert!(run.stderr.contains("does not fit"), "{}", run.stderr);
    assert!(run.stderr.contains("forge cache gc"), "{}", run.stderr);
    assert!(run.stderr.contains("promote.c0"), "{}", run.stderr);
    // The size comes from the header: the model was not read yet.
    assert!(run.stderr.contains("not known yet"), "{}", run.stderr);
    assert!(committed(project.store()).is_empty());
    // The store has space enough, the outputs have not: the message names their place.
    let spacious = forge.with_store(&forge.path("spacious"));
    let run = spacious
        .run(&["build", "--out", mount.join("out").to_str().unwrap()])
        .status(3);
    assert!(run.stderr.contains("small-disk/out"), "{}", run.stderr);
    let (_, lines) = spacious.build_events(&["--out", mount.join("out").to_str().unwrap()]);
    assert_eq!(lines.last().unwrap()["code"], "environment::disk-space");
    // With so little space that the prediction's reserve does not matter, the disk fills while the build runs.
    let filler = mount.join("filler");
    let mut left = 40 << 20;
    while left > 4096 && std::fs::write(&filler, vec![1; left]).is_err() {
        left /= 2;
    }
    quick_project::write_model(&forge, 32);
    let full = project.run(&["build", "--out", mount.join("out").to_str().unwrap()]);
    assert_eq!(full.status, Some(3), "{}{}", full.stdout, full.stderr);
    assert!(!full.stderr.contains("panicked"), "{}", full.stderr);
    std::fs::remove_file(&filler).unwrap();
    let (_clean, clean) = fresh(&forge);
    quick_project::build_well(&clean, "elsewhere");
    let expected = candidates(&forge.path("elsewhere"));
    assert_recovers(&project, &mount.join("out"), &expected, "a full disk");
}
