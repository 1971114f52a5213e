//! Another program changes an output while forge writes it and measures it: `strace` stops the build at each system call
//! that touches the output, the test changes, cuts or replaces the file (and puts its mtime back), and the build goes on.
//! Whatever the moment, figures are right or refused, and the next build finds the change. `FORGE_TEST_FAULTS=all` tries
//! every kind of change at every call, in some minutes; by default some calls get one kind each.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use crate::one_layer_project::furnish;
use crate::support::Forge;
use crate::support::Run;

/// How many calls of a kind are tried by default.
const SAMPLE: usize = 12;

/// No build takes longer, also under strace.
const LIMIT: Duration = Duration::from_mins(1);

/// A candidate with its figures; the imatrix and the reference's log-probabilities are in the store already.
fn recipe(mix: &str) -> String {
    format!(
        r#"schema = 1
name = "faults"
[source.model]
path = "model.gguf"
[corpus.held-out]
files = ["held-out.txt"]
[policy.p]
method = "mix"
mix = "{mix}"
[promote.p]
policy = "p"
[eval.quality]
corpus = "held-out"
chunks = 2
context = 64
block = 1
"#
    )
}

/// What another program does to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// One byte of a tensor becomes another.
    Edit,
    /// Half of the file is gone.
    Cut,
    /// Another file, with one byte changed, takes its place.
    Replace,
}

const FAULTS: [Fault; 3] = [Fault::Edit, Fault::Cut, Fault::Replace];

/// Applies a fault to a file, and gives it the mtime that it had.
fn apply(fault: Fault, path: &Path) {
    let Ok(before) = std::fs::metadata(path) else { return };
    if before.len() < 64 {
        return;
    }
    let put_back = |file: &std::fs::File| {
        let times = std::fs::FileTimes::new().set_modified(before.modified().unwrap());
        file.set_times(times).unwrap();
    };
    let place = before.len() * 3 / 4;
    let flip = |file: &std::fs::File| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        // Not the highest bit of a scale's exponent: numbers stay finite, so only bytes tell.
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    };
    match fault {
        Fault::Edit => {
            let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
            flip(&file);
            put_back(&file);
        }
        Fault::Cut => {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(before.len() / 2).unwrap();
            put_back(&file);
        }
        Fault::Replace => {
            let other = path.with_extension("other");
            std::fs::copy(path, &other).unwrap();
            let file = std::fs::File::options().read(true).write(true).open(&other).unwrap();
            flip(&file);
            put_back(&file);
            std::fs::rename(&other, path).unwrap();
        }
    }
}

struct Project {
    forge: Forge,
    /// A store that knows everything but the candidate and its figures.
    base: PathBuf,
}

impl Project {
    fn new() -> Self {
        let forge = Forge::new();
        furnish(&forge);
        let base = forge.path("base");
        forge.recipe(&recipe("Q8_0"));
        let _ = forge
            .with_store(&base)
            .run(&["build", "--out", "other", "-j", "1"])
            .success();
        forge.recipe(&recipe("Q4_0"));
        Self { forge, base }
    }

    /// Returns the project with a copy of the base store, and an output folder, both new.
    fn case(&self, name: &str) -> (Forge, PathBuf) {
        let store = self.forge.path(&format!("store-{name}"));
        let copied = Command::new("cp").arg("-a").arg(&self.base).arg(&store).status();
        assert!(copied.unwrap().success());
        (self.forge.with_store(&store), self.forge.path(&format!("out-{name}")))
    }

    fn build(project: &Forge, out: &Path) -> Command {
        project.command(&["build", "--out", out.to_str().unwrap(), "-j", "1"])
    }
}

/// Which calls the build is stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    /// Those that touch the output under its name.
    OfOutput,
    /// Those that commit files, wherever they are.
    OfCommits,
}

impl Calls {
    fn filter(self) -> &'static str {
        match self {
            Self::OfOutput => "%file,%desc",
            Self::OfCommits => "rename,renameat,renameat2,fsync,fdatasync,fchmod,utimensat",
        }
    }
}

/// Returns the command under strace, which logs the calls, and stops the program at the `number`-th of each thread if one
/// is given.
fn under_strace(command: &Command, calls: Calls, output: &Path, log: &Path, number: Option<usize>) -> Command {
    let filter = calls.filter();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", &format!("trace={filter}")]);
    if calls == Calls::OfOutput {
        traced.arg("-P").arg(output);
    }
    if let Some(number) = number {
        traced.args(["-e", &format!("inject={filter}:signal=STOP:when={number}")]);
    }
    traced.arg("-o").arg(log);
    traced.arg(command.get_program()).args(command.get_args());
    traced.env_clear().stdin(Stdio::null());
    traced.current_dir(command.get_current_dir().unwrap());
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    traced
}

/// Returns how many such calls the busiest thread makes; nothing where a process may not be traced.
fn count_calls(project: &Project, calls: Calls) -> Option<usize> {
    let (forge, out) = project.case("count");
    let log = project.forge.path("count.log");
    let output = under_strace(&Project::build(&forge, &out), calls, &out.join("p.gguf"), &log, None).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED: strace does not start");
        return None;
    };
    let run = Run::of(output);
    if run.status != Some(0) {
        assert!(run.stderr.contains("ptrace"), "{}", run.stderr);
        eprintln!("SKIPPED: a process may not be traced here: {}", run.stderr);
        return None;
    }
    let log = std::fs::read_to_string(log).unwrap();
    let mut threads: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log.lines() {
        let (thread, call) = line.split_once(' ').unwrap();
        if !call.trim_start().starts_with(['-', '+', '<']) {
            *threads.entry(thread).or_default() += 1;
        }
    }
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::remove_dir_all(forge.store()).unwrap();
    threads.into_values().max()
}

/// Returns the processes that descend from a process.
fn descendants(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut pending = vec![process];
    while let Some(parent) = pending.pop() {
        // Each thread of a process has children of its own. A process that has ended meanwhile has none.
        let threads = std::fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten();
        for thread in threads {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            let children = children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap());
            pending.extend(children);
        }
        if parent != process {
            found.push(parent);
        }
    }
    found
}

/// Runs a build that is stopped at a call of each thread; `change` runs at each stop.
fn run_stopped(project: &Forge, out: &Path, calls: Calls, number: usize, change: &dyn Fn()) -> Run {
    let log = project.path("stopped.log");
    let _ = std::fs::remove_file(&log);
    let output = out.join("p.gguf");
    let child = under_strace(&Project::build(project, out), calls, &output, &log, Some(number))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let strace = child.id();
    let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
    let started = Instant::now();
    let mut stops = 0;
    while !waiting.is_finished() {
        assert!(started.elapsed() < LIMIT, "the build hangs");
        let seen = std::fs::read_to_string(&log).unwrap_or_default();
        // Every thread reports the stop of the process; that counts once.
        let stopped = seen.matches("--- SIGSTOP {").count();
        // Other processes of the build run on and write lines meanwhile.
        let is_stopped = seen
            .rsplit_once("--- SIGSTOP {")
            .is_some_and(|(_, after)| after.contains("stopped by SIGSTOP"));
        if stopped > stops && is_stopped {
            stops = stopped;
            change();
            // The stopped process may be a worker process of the build.
            for pid in descendants(strace) {
                let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Run::of(waiting.join().unwrap())
}

/// Changes the output at the calls, and returns how many changes were made and how many builds refused.
fn change_at(project: &Project, calls: Calls, right: &Path) -> Option<(usize, usize)> {
    let expected = std::fs::read(right.join("p.gguf")).unwrap();
    let figures = std::fs::read_to_string(right.join("metrics.json")).unwrap();
    let count = count_calls(project, calls)?;
    let all = std::env::var("FORGE_TEST_FAULTS").is_ok_and(|text| text == "all");
    let (mut cases, mut refused) = (0, 0);
    let step = if all { 1 } else { count.div_ceil(SAMPLE) };
    for number in (1..=count).step_by(step) {
        for (nth, fault) in FAULTS.into_iter().enumerate() {
            if !all && number / step % FAULTS.len() != nth {
                continue;
            }
            let what = format!("{fault:?} at call {number} of {count} {calls:?}");
            let (forge, out) = project.case("fault");
            // The file under its name, and before that under its temporary one.
            let change = || {
                for entry in std::fs::read_dir(&out).into_iter().flatten().flatten() {
                    let name = entry.file_name().into_string().unwrap();
                    if name == "p.gguf" || name.starts_with(".forge-") {
                        apply(fault, &entry.path());
                    }
                }
            };
            let run = run_stopped(&forge, &out, calls, number, &change);
            cases += 1;
            match run.status {
                Some(0) => {}
                Some(1) => {
                    refused += 1;
                    let named = run.stderr.contains("changed") && run.stderr.contains("p.gguf");
                    assert!(named, "{what}: {}", run.stderr);
                }
                status => panic!("{what}: ended with {status:?}: {}", run.stderr),
            }
            let measured = std::fs::read_to_string(out.join("metrics.json")).ok();
            assert!(
                measured.is_none_or(|measured| measured == figures),
                "{what}: wrong figures"
            );
            let again = Run::of(Project::build(&forge, &out).output().unwrap());
            assert_eq!(again.status, Some(0), "{what}, the next build: {}", again.stderr);
            assert!(
                std::fs::read(out.join("p.gguf")).unwrap() == expected,
                "{what}: the changed output was accepted: {}",
                again.stderr
            );
            assert_eq!(
                std::fs::read_to_string(out.join("metrics.json")).unwrap(),
                figures,
                "{what}: wrong figures after the next build"
            );
            let verified = forge.run(&["verify", out.to_str().unwrap()]);
            assert_eq!(
                verified.status,
                Some(0),
                "{what}: {}{}",
                verified.stdout,
                verified.stderr
            );
            std::fs::remove_dir_all(&out).unwrap();
            std::fs::remove_dir_all(forge.store()).unwrap();
        }
    }
    eprintln!("{cases} changes at {count} calls {calls:?}, {refused} builds refused");
    Some((cases, refused))
}

#[test]
fn an_output_changed_at_any_call_is_never_accepted() {
    let project = Project::new();
    let (clean, right) = project.case("right");
    let _ = Run::of(Project::build(&clean, &right).output().unwrap()).success();
    for calls in [Calls::OfOutput, Calls::OfCommits] {
        let Some((_, refused)) = change_at(&project, calls, &right) else {
            return;
        };
        assert!(refused > 0, "{calls:?}: no change was made while it mattered");
    }
}

#[test]
fn a_candidate_truncated_during_evaluation_is_an_error_of_the_step() {
    let project = Project::new();
    let (forge, out) = project.case("cut");
    // One action computes many chunks, so that the model is in use when it is cut.
    forge.recipe(&recipe("Q4_0").replace(
        "chunks = 2\ncontext = 64\nblock = 1",
        "chunks = 200\ncontext = 64\nblock = 200",
    ));
    forge.write(
        "held-out.txt",
        "It was the best of times, it was the worst of times. ".repeat(2000),
    );
    let mut command = Project::build(&forge, &out);
    command.args(["--message-format", "json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    // Until some chunks of the candidate are done.
    while !(line.contains("\"progress\"") && line.contains("\"chunks\"")) {
        line.clear();
        let read = std::io::BufRead::read_line(&mut events, &mut line).unwrap();
        assert!(read > 0, "the build ended before it computed");
    }
    let model = std::fs::File::options().write(true).open(out.join("p.gguf")).unwrap();
    model.set_len(4096).unwrap();
    let rest = std::io::read_to_string(&mut events).unwrap();
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!(run.status, Some(1), "{}{rest}", run.stderr);
    assert!(rest.contains("p.gguf` changed while it was being used"), "{rest}");
}
