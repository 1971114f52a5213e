//! Killed processes, other processes, other users. The test program runs itself again as the other process.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use forge::digest::BlobDigest;
use forge::store::Committed;
use forge::store::ErrorClass;
use forge::store::Store;

use super::Place;
use super::assert_all_blobs_whole;
use super::files_under;
use super::key;
use super::result_of;
use super::skip;

const ROLE: &str = "FORGE_TEST_STORE_ROLE";
const ROOT: &str = "FORGE_TEST_STORE_ROOT";
/// Before every line that a child means for its parent; the test harness prints lines of its own.
const MARK: &str = "child says: ";

fn command(role: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::crash::child", "--nocapture", "--test-threads=1"]);
    command
        .env(ROLE, role)
        .env(ROOT, root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

/// A child and what it says, killed when dropped.
struct Other(Child, BufReader<ChildStdout>);

impl Other {
    fn start(role: &str, root: &Path) -> Self {
        Self::spawn(command(role, root)).unwrap()
    }

    fn spawn(mut command: Command) -> std::io::Result<Self> {
        let mut child = command.spawn()?;
        let said = BufReader::new(child.stdout.take().unwrap());
        Ok(Self(child, said))
    }

    /// The next thing it says; `None` once it has ended.
    fn says(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.1.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some((_, said)) = line.trim_end().split_once(MARK) {
                return Some(said.to_owned());
            }
        }
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // One write, so that no line is torn but by the kill.
    out.write_all(format!("\n{MARK}{text}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// Waits for the parent to let go, or to kill.
fn wait() {
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

/// What the child does; in the parent's own run this is no test.
#[test]
#[allow(clippy::disallowed_methods)]
fn child() {
    let (Ok(role), Ok(root)) = (std::env::var(ROLE), std::env::var(ROOT)) else {
        return;
    };
    let root = Path::new(&root);
    match role.as_str() {
        "write" => {
            let store = Store::open(root).unwrap();
            let round = std::process::id();
            for count in 0.. {
                let name = format!("{round} {count}");
                let mut writer = store.writer().unwrap();
                for piece in pieces(&name) {
                    writer.write_all(&piece).unwrap();
                }
                let mut result = result_of(&store, &name, name.as_bytes());
                result.outputs.insert("large".to_owned(), writer.commit().unwrap());
                store.commit(&key(&name), &result).unwrap();
                say(&name);
            }
        }
        "half" => {
            let store = Store::open(root).unwrap();
            let mut writer = store.writer().unwrap();
            writer.write_all(&vec![1; 3 << 20]).unwrap();
            let scratch = store.scratch().unwrap();
            std::fs::write(scratch.path().join("part"), b"half of an output").unwrap();
            say("half");
            wait();
        }
        "hold" => {
            let store = Store::open(root).unwrap();
            let _lock = store.lock_action(&key("a"), &mut |_| {}, &|| false).unwrap();
            let _lease = store.lease().unwrap();
            say("held");
            wait();
        }
        "build" => {
            let store = Store::open(root).unwrap();
            build_together(&store, 4);
            say("built");
        }
        "umask" => {
            rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
            let store = Store::open(root).unwrap();
            let result = result_of(&store, "a", b"bytes");
            store.commit(&key("a"), &result).unwrap();
            store
                .materialize(&result.outputs["out"], &root.with_extension("out"))
                .unwrap();
            say("done");
        }
        "refused" => {
            let error = Store::open(root).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Permission, "{error}");
            assert!(error.to_string().contains(&*root.to_string_lossy()), "{error}");
            say("refused");
        }
        "read only" => {
            let store = Store::open(root).unwrap();
            let result = store.lookup(&key("a")).unwrap().unwrap();
            assert_eq!(store.read(&result.outputs["out"], 99).unwrap(), b"bytes");
            assert_eq!(
                store.put(b"bytes").unwrap(),
                result.outputs["out"],
                "what is there need not be written"
            );
            let error = store.put(b"others").unwrap_err();
            assert_eq!(error.class(), ErrorClass::Permission, "{error}");
            assert!(!store.has(&BlobDigest::of(b"others")));
            let error = store.lock_action(&key("b"), &mut |_| {}, &|| false).unwrap_err();
            assert_eq!(error.class(), ErrorClass::Permission, "{error}");
            say("read");
        }
        other => panic!("no role {other}"),
    }
}

/// A blob of about 1.5 MB that is derived from its name.
fn pieces(name: &str) -> impl Iterator<Item = Vec<u8>> {
    (0..24_u8).map(move |at| name.bytes().map(|byte| byte ^ at).cycle().take(65_537).collect())
}

#[test]
fn a_killed_writer_loses_no_committed_result_and_damages_nothing() {
    let place = Place::new();
    let mut committed = Vec::new();
    for round in 0..10 {
        let mut other = Other::start("write", place.store.root());
        // Another moment each time: after so many commits, the kill lands somewhere in the next one.
        for _ in 0..=(round * 3 % 7) {
            committed.push(other.says().unwrap());
        }
        other.kill();
        // It may have committed more before the kill came through.
        while let Some(said) = other.says() {
            committed.push(said);
        }
        let store = Store::open(place.store.root()).unwrap();
        assert!(
            files_under(&store.root().join("tmp")).is_empty(),
            "what it was writing is swept"
        );
        for name in &committed {
            let result = store.lookup(&key(name)).unwrap().expect(name);
            assert_eq!(store.read(&result.outputs["out"], 999).unwrap(), name.as_bytes());
            let large: Vec<u8> = pieces(name).flatten().collect();
            assert!(store.read(&result.outputs["large"], u64::MAX).unwrap() == large);
        }
        assert!(assert_all_blobs_whole(store.root()) >= committed.len() * 2);
        assert!(files_under(&store.root().join("quarantine")).is_empty());
    }
    assert!(committed.len() >= 30);
}

#[test]
fn files_of_live_processes_are_kept_and_those_of_dead_ones_are_removed() {
    let place = Place::new();
    let tmp = place.store.root().join("tmp");
    let mut other = Other::start("half", place.store.root());
    assert_eq!(other.says().as_deref(), Some("half"));
    let half = files_under(&tmp);
    assert_eq!(half.len(), 3, "a lock, half a blob, half an output: {half:?}");
    Store::open(place.store.root()).unwrap();
    assert_eq!(files_under(&tmp), half, "it lives");
    other.kill();
    assert_eq!(files_under(&tmp), half, "nobody has looked yet");
    let store = Store::open(place.store.root()).unwrap();
    assert!(std::fs::read_dir(&tmp).unwrap().next().is_none());
    assert_eq!(assert_all_blobs_whole(store.root()), 0);
}

#[test]
fn truncated_files_of_any_kind_do_not_stop_the_sweep() {
    let place = Place::new();
    let tmp = place.store.root().join("tmp");
    std::fs::create_dir_all(tmp.join(".forge-1-2-3/deep/down")).unwrap();
    std::fs::write(tmp.join(".forge-1-2-3/deep/down/file"), b"half").unwrap();
    std::fs::write(tmp.join(".forge-4-5-6.lock"), b"").unwrap();
    std::os::unix::fs::symlink("/", tmp.join(".forge-7-8-9")).unwrap();
    let store = Store::open(place.store.root()).unwrap();
    assert!(!tmp.join(".forge-1-2-3").exists() && !tmp.join(".forge-4-5-6.lock").exists());
    assert!(Path::new("/").exists(), "links are not followed");
    store.put(b"works").unwrap();
}

#[test]
fn a_killed_process_releases_its_lock_and_waiting_reports_its_holder() {
    let place = Place::new();
    let mut other = Other::start("hold", place.store.root());
    assert_eq!(other.says().as_deref(), Some("held"));
    assert_eq!(place.store.live_leases().unwrap(), 1, "its lease");
    let mut reported = Vec::new();
    let pid = other.0.id();
    let lock = place
        .store
        .lock_action(
            &key("a"),
            &mut |holder| {
                reported.push(holder.clone());
                other.kill();
            },
            &|| false,
        )
        .unwrap();
    assert_eq!(reported.len(), 1);
    assert_eq!(reported[0].pid, Some(pid));
    assert!(reported[0].to_string().contains(&pid.to_string()));
    drop(lock);
    assert_eq!(place.store.live_leases().unwrap(), 0, "the lease died with it");
}

/// Builds one action from many threads. Whoever gets to run it runs until somebody has waited for it.
fn build_together(store: &Store, threads: usize) {
    let beside = |name: &str| store.root().with_extension(name);
    let note = |name: &str| {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(beside(name))
            .unwrap();
        file.write_all(b"x").unwrap();
    };
    let key = key("a");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if store.lookup(&key).unwrap().is_some() {
                    return note("adopted");
                }
                let said = AtomicU32::new(0);
                let mut on_wait = |_: &forge::store::Holder| {
                    assert_eq!(said.fetch_add(1, Ordering::SeqCst), 0, "said once");
                    note("waited");
                };
                let _lock = store.lock_action(&key, &mut on_wait, &|| false).unwrap();
                if store.lookup(&key).unwrap().is_some() {
                    return note("adopted");
                }
                note("ran");
                while !beside("waited").exists() {
                    std::thread::yield_now();
                }
                let result = result_of(store, "a", b"made once");
                assert_eq!(store.commit(&key, &result).unwrap(), Committed::New);
            });
        }
    });
}

#[test]
fn an_action_runs_once_among_many_threads_and_processes() {
    let place = Place::new();
    let mut others: Vec<_> = (0..4).map(|_| Other::start("build", place.store.root())).collect();
    build_together(&place.store, 16);
    for other in &mut others {
        assert_eq!(other.says().as_deref(), Some("built"));
        assert!(other.0.wait().unwrap().success());
    }
    let count = |name: &str| {
        std::fs::metadata(place.store.root().with_extension(name))
            .unwrap()
            .len()
    };
    assert_eq!(count("ran"), 1);
    assert_eq!(count("adopted"), 31);
    assert!(count("waited") >= 1);
    assert!(place.store.lookup(&key("a")).unwrap().is_some());
    assert_eq!(place.store.events().unwrap(), []);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("store");
    let mut other = Other::start("umask", &root);
    assert_eq!(other.says().as_deref(), Some("done"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o7777;
    for directory in ["cas-v1", "actions-v1"] {
        let directory = root.join(directory);
        assert_eq!(mode(&directory), 0o755);
        let files = files_under(&directory);
        assert!(!files.is_empty());
        for file in files {
            assert_eq!(
                (mode(&file), mode(file.parent().unwrap())),
                (0o444, 0o755),
                "{}",
                file.display()
            );
        }
    }
    assert_eq!(mode(&root), 0o755);
    assert_eq!(
        mode(&root.with_extension("out")),
        0o600,
        "an output is the user's own file: their umask holds"
    );
}

/// Starts a child that no permission check lets through: another user if this one is root.
fn start_unprivileged(role: &str, root: &Path, closed: &Path) -> Option<Other> {
    let mut command = command(role, root);
    if std::fs::metadata(closed).unwrap().uid() == 0 {
        command.uid(65534).gid(65534);
    }
    std::fs::set_permissions(closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    match Other::spawn(command) {
        Ok(other) => Some(other),
        Err(error) => {
            skip(&format!(
                "no other user can run this test program ({error}): EACCES is untested"
            ));
            None
        }
    }
}

#[test]
fn a_store_without_write_permission_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    // `tempfile` makes directories that others may not enter.
    if let Some(mut other) = start_unprivileged("refused", &dir.path().join("store"), dir.path()) {
        assert_eq!(other.says().as_deref(), Some("refused"));
    }
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_store_that_may_only_be_read_serves_its_hits() {
    let place = Place::new();
    let result = result_of(&place.store, "a", b"bytes");
    place.store.commit(&key("a"), &result).unwrap();
    let root = place.store.root().to_owned();
    let closed = ["tmp", "locks"].map(|name| root.join(name));
    std::fs::set_permissions(place.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    drop(place.store);
    std::fs::set_permissions(&closed[1], std::fs::Permissions::from_mode(0o555)).unwrap();
    if let Some(mut other) = start_unprivileged("read only", &root, &closed[0]) {
        assert_eq!(other.says().as_deref(), Some("read"));
    }
    for path in closed {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}
