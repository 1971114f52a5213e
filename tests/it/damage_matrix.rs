//! Every kind of file in the store, damaged in every way that a disk, a person or another program can. After each: the
//! next build succeeds with the right outputs, nothing hangs, nothing outside the store is touched, what stood in the way
//! is kept in the quarantine, and the store is whole again by itself or by `forge cache verify`.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use forge::digest::Hash;
use forge::store::Store;
use forge::store::StoreError;

use crate::quick_project;
use crate::quick_project::candidates;
use crate::small_model::Random;
use crate::small_model::names;
use crate::small_model::number_from;
use crate::small_model::sharded;
use crate::support::Forge;
use crate::support::Run;

/// No command here takes more than a moment.
const LONG: Duration = Duration::from_secs(30);
/// What an intruding directory holds: somebody's file, which must not be lost.
const PRECIOUS: &str = "precious.txt";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    Flip,
    Truncate,
    Delete,
    Directory,
    Pipe,
    /// To a file outside the store with the very bytes that the store's file had.
    Link,
    DanglingLink,
    Socket,
    /// Has no effect for the superuser.
    NoMode,
    Swap,
}

const DAMAGES: [Damage; 10] = [
    Damage::Flip,
    Damage::Truncate,
    Damage::Delete,
    Damage::Directory,
    Damage::Pipe,
    Damage::Link,
    Damage::DanglingLink,
    Damage::Socket,
    Damage::NoMode,
    Damage::Swap,
];

/// The kinds of files in a store, in groups that have little to do with each other: each is damaged as a whole, which takes a
/// third of the time. `FORGE_TEST_DAMAGES=1` tries kind by kind.
const KINDS: [&[&str]; 6] = [
    &["layout", "stat entry", "pin"],
    &["CACHEDIR.TAG", "blob", "event"],
    &["result", "last note", "temporary"],
    &["run record", "engine", "index"],
    &["fresh note", "lock", "failed"],
    &["earlier note", "tombstone", "lease"],
];

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let all = names(folder).into_iter().map(|name| folder.join(name));
    all.filter(|path| path.is_file()).collect()
}

fn files_of(store: &Path, kind: &str) -> Vec<PathBuf> {
    let all_in = |directory: &str| sharded(store, directory).into_values().collect();
    match kind {
        "blob" => all_in("cas-v1"),
        "result" => all_in("actions-v1"),
        "stat entry" => all_in("stat-v1"),
        "tombstone" => all_in("tombstones-v1"),
        "last note" => files_in(&store.join("runs-v1/last")),
        "earlier note" => files_in(&store.join("runs-v1/earlier")),
        "fresh note" => files_in(&store.join("runs-v1/fresh")),
        "run record" => files_in(&store.join("runs-v1")),
        "engine" => files_in(&store.join("runs-v1/engines")),
        "failed" => files_in(&store.join("runs-v1/failed/20261127T000000-1-a")),
        "index" => files_in(&store.join("borrowed-v1")),
        "pin" => files_in(&store.join("manifests-v1")),
        "event" => files_in(&store.join("events-v1")),
        "lease" => files_in(&store.join("leases")),
        "lock" => files_in(&store.join("locks")),
        "temporary" => files_in(&store.join("tmp")),
        _ => vec![store.join(kind)],
    }
}

fn sealed(kind: &str, name: &str, document: &str) -> String {
    let body = format!("forge-{kind} 1 {name}\n{document}\n");
    format!("{body}{}\n", Hash::of(body.as_bytes()))
}

/// A store with files of every kind, and the outputs that it borrows from.
fn prepared() -> (Forge, Vec<(String, Vec<u8>)>) {
    let forge = quick_project::project();
    forge.write("second.toml", quick_project::second());
    let second = ["build", "-j", "1", "second.toml", "--out", "other"];
    let _ = forge.run(&second).success();
    let all = ["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"];
    std::fs::remove_dir_all(forge.path("other")).unwrap();
    let _ = forge.run(&all).success();
    quick_project::build_well(&forge, "out");
    let _ = forge.run(&["cache", "pin", "out/c0.gguf"]).success();
    // A note of a build with nothing to do is written once all stamps are old enough.
    forge.settle();
    let _ = forge.run(&["build", "-j", "1", "--out", "out"]).success();
    let store = forge.store();
    let event = format!("{}-01234567", Hash::of(b"an action"));
    std::fs::write(store.join("events-v1").join(&event), sealed("event", &event, "{}")).unwrap();
    let failed = store.join("runs-v1/failed/20261127T000000-1-a");
    std::fs::create_dir_all(&failed).unwrap();
    std::fs::write(failed.join("error.txt"), "it failed\n").unwrap();
    std::fs::write(failed.join("repeat.sh"), "forge build\n").unwrap();
    for name in [".forge-1-2-0123456789abcdef", ".forge-1-3-0123456789abcdef"] {
        std::fs::write(store.join("leases").join(name), "{}\n").unwrap();
        std::fs::create_dir_all(store.join("tmp").join(name)).unwrap();
        std::fs::write(store.join("tmp").join(name).join("half"), "half").unwrap();
        std::fs::write(store.join("tmp").join(format!("{name}.lock")), "{}\n").unwrap();
    }
    let expected = candidates(&forge.path("out"));
    assert_eq!(expected.len(), 2);
    for kind in KINDS.into_iter().flatten() {
        assert!(!files_of(store, kind).is_empty(), "there is no {kind}");
    }
    (forge, expected)
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// Damages files; `outside` is a folder for what links lead to.
fn damage(files: &[PathBuf], damage: Damage, outside: &Path, random: &mut Random) {
    if damage == Damage::Swap {
        for pair in files.chunks_exact(2) {
            let between = outside.join("between");
            std::fs::rename(&pair[0], &between).unwrap();
            std::fs::rename(&pair[1], &pair[0]).unwrap();
            std::fs::rename(&between, &pair[1]).unwrap();
        }
        return;
    }
    for (number, path) in files.iter().enumerate() {
        let bytes = std::fs::read(path).unwrap();
        let rewrite = |bytes: &[u8]| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
            std::fs::write(path, bytes).unwrap();
        };
        match damage {
            Damage::Flip if bytes.is_empty() => {}
            Damage::Flip => {
                let mut bytes = bytes;
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
                rewrite(&bytes);
            }
            Damage::Truncate => rewrite(&bytes[..bytes.len() / 2]),
            Damage::Delete => remove(path),
            Damage::Directory => {
                remove(path);
                std::fs::create_dir(path).unwrap();
                std::fs::write(path.join(PRECIOUS), "precious").unwrap();
            }
            Damage::Pipe => {
                remove(path);
                assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
            }
            Damage::Link => {
                let target = outside.join(number.to_string());
                std::fs::rename(path, &target).unwrap();
                symlink(&target, path).unwrap();
            }
            Damage::DanglingLink => {
                remove(path);
                symlink(outside.join("none"), path).unwrap();
            }
            Damage::Socket => {
                remove(path);
                // The path of a socket is short; so is this one.
                let short = tempfile::tempdir().unwrap();
                drop(UnixListener::bind(short.path().join("s")).unwrap());
                let moved = Command::new("mv").arg(short.path().join("s")).arg(path).status();
                assert!(moved.unwrap().success());
            }
            Damage::NoMode => std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o0)).unwrap(),
            Damage::Swap => {}
        }
    }
}

/// Runs a command that must end soon.
fn run(mut command: Command) -> Run {
    use std::process::Stdio;
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > LONG {
            child.kill().unwrap();
            panic!("it hangs: {command:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Run::of(child.wait_with_output().unwrap())
}

/// Everything in a folder that is neither a file nor a directory, and every directory that holds somebody's file.
fn intruders(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        let facts = std::fs::symlink_metadata(&path).unwrap();
        if facts.is_dir() {
            if path.join(PRECIOUS).exists() {
                found.push(path.clone());
            }
            found.extend(intruders(&path));
        } else if !facts.is_file() {
            found.push(path);
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

/// One case of the matrix; returns what is wrong.
fn try_case(forge: &Forge, expected: &[(String, Vec<u8>)], kinds: &[&str], how: Damage) -> Result<(), String> {
    let case = tempfile::tempdir().unwrap();
    let outside = case.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let store = case.path().join("store");
    copy(forge.store(), &store);
    let project = forge.with_store(&store);
    let mut random = Random(how as u64);
    for kind in kinds {
        let outside = outside.join(kind);
        std::fs::create_dir(&outside).unwrap();
        damage(&files_of(&store, kind), how, &outside, &mut random);
    }
    let linked: Vec<(PathBuf, Vec<u8>)> = kinds
        .iter()
        .flat_map(|kind| files_in(&outside.join(kind)))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let odd = intruders(&store).len();
    let out = case.path().join("out");
    let check = |what: &str, run: &Run, allowed: &[i32]| {
        if run.status.is_some_and(|status| allowed.contains(&status)) && !run.stderr.contains("panicked") {
            return Ok(());
        }
        Err(format!("{what}: {:?}\n{}{}", run.status, run.stdout, run.stderr))
    };
    if kinds.contains(&"fresh note") {
        let built = run(project.command(&["build", "-j", "1", "--out", "out"]));
        check("a build with nothing to do", &built, &[0])?;
    }
    if kinds.contains(&"tombstone") {
        let other = case.path().join("other");
        let args = ["build", "-j", "1", "second.toml", "--out", other.to_str().unwrap()];
        check("a build of what was collected", &run(project.command(&args)), &[0])?;
    }
    let built = run(project.command(&["build", "-j", "1", "--out", out.to_str().unwrap()]));
    check("the build", &built, &[0])?;
    if candidates(&out) != expected {
        return Err("the outputs are wrong".to_owned());
    }
    let verify = ["cache", "verify", "-j", "1"];
    check("the check", &run(project.command(&verify)), &[0, 1])?;
    check("the second check", &run(project.command(&verify)), &[0])?;
    let quarantine = store.join("quarantine");
    let left: Vec<PathBuf> = intruders(&store)
        .into_iter()
        .filter(|path| !path.starts_with(&quarantine))
        .collect();
    // What steps failed with is there for people; the store does not read it.
    if left.iter().any(|path| !path.starts_with(store.join("runs-v1/failed"))) {
        return Err(format!("still in the way: {left:?}"));
    }
    let kept = intruders(&store).len();
    if how == Damage::Directory && kept != odd {
        return Err(format!("of {odd} directories {kept} are left"));
    }
    for (path, bytes) in &linked {
        if std::fs::read(path).ok().as_ref() != Some(bytes) {
            return Err(format!("`{}` was changed", path.display()));
        }
    }
    if odd > 0 {
        check("a collection", &run(project.command(&["cache", "gc", "--yes"])), &[0])?;
        check("a look at the runs", &run(project.command(&["log"])), &[0])?;
        check("cleaning", &run(project.command(&["cache", "clean"])), &[0])?;
        if !names(&quarantine).is_empty() {
            return Err("the quarantine is not empty".to_owned());
        }
    }
    Ok(())
}

#[test]
fn builds_are_correct_and_repair_the_store_after_any_damage() {
    let (forge, expected) = prepared();
    let kinds: Vec<&[&str]> = match number_from("FORGE_TEST_DAMAGES", 0) {
        0 => KINDS.to_vec(),
        _ => KINDS.iter().flat_map(|kinds| kinds.chunks(1)).collect(),
    };
    let cases: Vec<(&[&str], Damage)> = kinds
        .into_iter()
        .flat_map(|kinds| DAMAGES.map(|damage| (kinds, damage)))
        .collect();
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                while let Some((kinds, how)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(problem) = try_case(&forge, &expected, kinds, *how) {
                        wrong.lock().unwrap().push(format!("{kinds:?}, {how:?}: {problem}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(
        wrong.is_empty(),
        "{} of {} cases:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_file_in_place_of_a_directory_is_quarantined() {
    let (forge, expected) = prepared();
    let directories: BTreeSet<&str> = BTreeSet::from([
        "runs-v1",
        "runs-v1/last",
        "runs-v1/fresh",
        "runs-v1/engines",
        "runs-v1/failed",
        "stat-v1",
        "events-v1",
        "tombstones-v1",
        "borrowed-v1",
        "manifests-v1",
        "tmp",
        "locks",
        "leases",
        "quarantine",
        "cas-v1",
        "cas-v1/ab",
        "actions-v1/7f",
    ]);
    for directory in directories {
        let case = tempfile::tempdir().unwrap();
        let store = case.path().join("store");
        copy(forge.store(), &store);
        let path = store.join(directory);
        std::fs::remove_dir_all(&path).ok();
        std::fs::write(&path, "precious").unwrap();
        let project = forge.with_store(&store);
        let out = case.path().join("out");
        let built = run(project.command(&["build", "-j", "1", "--out", out.to_str().unwrap()]));
        assert_eq!(built.status, Some(0), "{directory}: {}", built.stderr);
        assert!(candidates(&out) == expected, "{directory}");
        assert!(path.is_dir(), "{directory}");
        let kept = files_in(&store.join("quarantine"));
        let kept = kept.iter().filter(|path| std::fs::read(path).unwrap() == b"precious");
        assert_eq!(kept.count(), 1, "{directory}");
    }
}

#[test]
fn a_damaged_layout_is_rewritten_and_a_newer_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    drop(Store::open(&root).unwrap());
    let layout = root.join("layout");
    let whole = std::fs::read(&layout).unwrap();
    assert_eq!(whole, b"forge-store 1\n");
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            std::fs::write(&layout, &flipped).unwrap();
            let opened = Store::open(&root).map(drop);
            assert!(opened.is_ok(), "byte {at}, bit {bit}: {opened:?}");
            assert_eq!(std::fs::read(&layout).unwrap(), whole, "byte {at}, bit {bit}");
        }
    }
    for newer in ["forge-store 2\n", "forge-store 17\n", "forge-store 12\n"] {
        std::fs::write(&layout, newer).unwrap();
        let error = Store::open(&root).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::Newer { .. }), "{newer}: {error}");
        assert_eq!(std::fs::read_to_string(&layout).unwrap(), newer, "it stays as it is");
    }
    // A folder with a file of that name is no store.
    for with in [None, Some("cas-v1")] {
        let other = tempfile::tempdir().unwrap();
        std::fs::write(other.path().join("layout"), "the garden's\n").unwrap();
        if let Some(with) = with {
            std::fs::create_dir(other.path().join(with)).unwrap();
        }
        let error = Store::open(other.path()).map(drop).unwrap_err();
        assert!(matches!(error, StoreError::NotAStore { .. }), "{error}");
        assert_eq!(std::fs::read(other.path().join("layout")).unwrap(), b"the garden's\n");
    }
}

#[test]
fn verify_and_clean_work_on_a_store_whose_layout_is_damaged() {
    for verb in [
        &["cache", "verify"][..],
        &["cache", "clean"],
        &["cache", "clean", "--all", "--yes"],
    ] {
        let forge = quick_project::project();
        quick_project::build_well(&forge, "out");
        std::fs::write(forge.store().join("layout"), "forge-sto\0e 1\n").unwrap();
        let status = run(forge.command(verb)).status;
        assert!(matches!(status, Some(0)), "{verb:?}: {status:?}");
        quick_project::build_well(&forge, "out");
        quick_project::assert_clean(&forge, "after the next build");
    }
}

#[test]
fn only_the_user_may_write_to_the_store_with_any_umask() {
    use std::os::unix::fs::MetadataExt as _;
    let forge = quick_project::project();
    forge.write("failing.toml", quick_project::first().replace("Q4_0", "Q4_K"));
    for recipe in ["recipe.toml", "failing.toml"] {
        let command = forge.command(&["build", "-j", "1", recipe, "--out", "out"]);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "umask 000 && exec \"$0\" \"$@\""])
            .arg(command.get_program());
        shell.args(command.get_args()).current_dir(forge.dir()).env_clear();
        shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let built = Run::of(shell.output().unwrap());
        assert!(matches!(built.status, Some(0 | 1)), "{}", built.stderr);
    }
    let mut folders = vec![forge.store().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for name in names(&folder) {
            let path = folder.join(name);
            let facts = std::fs::symlink_metadata(&path).unwrap();
            assert_eq!(facts.mode() & 0o022, 0, "`{}`: {:o}", path.display(), facts.mode());
            files += usize::from(facts.is_file());
            if facts.is_dir() {
                folders.push(path);
            }
        }
    }
    assert!(files > 30, "{files}");
}

#[test]
fn temporary_engine_files_of_killed_builds_are_removed_and_are_not_damage() {
    let forge = quick_project::project();
    quick_project::build_well(&forge, "out");
    let engines = forge.store().join("runs-v1/engines");
    let before = names(&engines);
    for name in [".forge-1-2-0123456789abcdef", ".forge-1-3-0123456789abcdef"] {
        std::fs::write(engines.join(name), "half of an engi").unwrap();
    }
    quick_project::assert_clean(&forge, "with the leftovers of killed builds");
    assert_eq!(names(&engines), before);
}

#[test]
fn inputs_that_are_not_regular_files_are_errors_and_do_not_block() {
    for name in ["forge.toml", "recipe.toml", "base.toml", "text.txt", "model.gguf"] {
        for (how, words) in [
            (Damage::Pipe, "a named pipe"),
            (Damage::Socket, "a socket"),
            (Damage::Directory, "a directory"),
        ] {
            let forge = quick_project::project();
            forge.write("text.txt", "some text to measure on\n");
            forge.write("forge.toml", "");
            forge.write("base.toml", quick_project::first());
            let corpus = "[corpus.texts]\nfiles = [\"text.txt\"]\n";
            forge.recipe(&format!(
                "schema = 1\nname = \"moment\"\nextends = \"base.toml\"\n{corpus}"
            ));
            let path = forge.path(name);
            damage(std::slice::from_ref(&path), how, forge.dir(), &mut Random(1));
            let built = run(forge.command(&["build", "-j", "1", "--out", "out"]));
            assert!(matches!(built.status, Some(1 | 3)), "{name}: {}", built.stderr);
            let words = format!("it is {words}, not a regular file");
            assert!(built.stderr.contains(&words), "{name}: {}", built.stderr);
            assert!(built.stderr.contains(name), "{name}: {}", built.stderr);
        }
    }
}
