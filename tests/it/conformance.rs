//! What build tools do with the cases that caches get wrong: forge beside make, ninja, DVC and Snakemake, each with the
//! same edits to a project of one step. forge must pass every row; of the others the table says what they did.
//!
//! `FORGE_INCUMBENTS_BIN` names the folder of their programs (`tests/peers/install-incumbents.sh` installs and prints it).
//! Without it the test says `SKIPPED` for them, and still holds forge to every row. `docs/conformance.md` has the table;
//! `FORGE_BLESS=1` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use nix::sys::signal::Signal;

use crate::one_layer_project;
use crate::one_layer_project::corrupt_quietly;
use crate::support::Forge;
use crate::support::project;

/// The step of the others: letters become capitals, half a file at a time, with a rest between if `slow` is there.
const STEP: &str = "#!/bin/sh\nset -e\necho run >> runs\nhead -c 1000 \"$1\" | tr a-z A-Z > \"$2\"\n\
                    if [ -e slow ]; then sleep 2; fi\ntail -c +1001 \"$1\" | tr a-z A-Z >> \"$2\"\n";

/// A tool with a project of one step in a folder of its own.
struct Tool {
    name: &'static str,
    forge: Forge,
    /// The command that builds; forge's own if there is none.
    command: Option<Vec<String>>,
}

impl Tool {
    fn forge() -> Self {
        let forge = Forge::new();
        one_layer_project::furnish(&forge);
        forge.recipe(one_layer_project::BARE);
        Self {
            name: "forge",
            forge,
            command: None,
        }
    }

    /// Makes the project of another tool. `bin` is where pip's tools are.
    fn other(name: &'static str, bin: &Path) -> Self {
        let forge = Forge::new();
        forge
            .write("in.txt", one_layer_project::text("held-out.txt"))
            .write("step.sh", STEP);
        let program = |name: &str| bin.join(name).display().to_string();
        let command: Vec<String> = match name {
            "make" => {
                forge.write("Makefile", "out.txt: in.txt\n\tsh step.sh in.txt out.txt\n");
                vec!["make".into()]
            }
            "ninja" => {
                let rule = "rule up\n  command = sh step.sh $in $out\nbuild out.txt: up in.txt\n";
                forge.write("build.ninja", rule);
                vec![program("ninja")]
            }
            "Snakemake" => {
                let rule = "rule up:\n    input: \"in.txt\"\n    output: \"out.txt\"\n    shell: \"sh step.sh {input} {output}\"\n";
                forge.write("Snakefile", rule);
                let words = ["--cores", "1", "--rerun-incomplete", "--nolock"];
                let words = words.into_iter().map(String::from);
                std::iter::once(program("snakemake")).chain(words).collect()
            }
            _ => {
                let stage =
                    "stages:\n  up:\n    cmd: sh step.sh in.txt out.txt\n    deps: [in.txt]\n    outs: [out.txt]\n";
                forge.write("dvc.yaml", stage);
                let mut init = Self::start(&forge, &[program("dvc"), "init".into(), "--no-scm".into()]);
                assert!(init.output().unwrap().status.success(), "dvc init");
                vec![program("dvc"), "repro".into()]
            }
        };
        Self {
            name,
            forge,
            command: Some(command),
        }
    }

    fn start(forge: &Forge, words: &[String]) -> Command {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(forge.dir());
        command.env("HOME", forge.dir()).env("DVC_NO_ANALYTICS", "1");
        command.stdin(Stdio::null());
        command
    }

    fn build_command(&self) -> Command {
        match &self.command {
            Some(words) => Self::start(&self.forge, words),
            None => self.forge.command(&["build", "-j", "1"]),
        }
    }

    /// Builds; what it says is not asked, only what it leaves.
    fn build(&self) -> bool {
        self.build_command().output().unwrap().status.success()
    }

    fn input(&self) -> PathBuf {
        let name = if self.command.is_some() { "in.txt" } else { "model.gguf" };
        self.forge.path(name)
    }

    fn output(&self) -> PathBuf {
        let name = if self.command.is_some() {
            "out.txt"
        } else {
            "out/bare/p.gguf"
        };
        self.forge.path(name)
    }

    /// A byte of the input that decides a byte of the output.
    fn place(&self) -> u64 {
        match self.command {
            Some(_) => 500,
            None => std::fs::metadata(self.input()).unwrap().len() - 1000,
        }
    }

    /// Returns what the output should be: what a build from nothing makes of the input of now.
    fn expected(&self) -> Vec<u8> {
        if self.command.is_some() {
            return std::fs::read(self.input()).unwrap().to_ascii_uppercase();
        }
        let (store, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clean = self.forge.with_store(&store.path().join("store"));
        let out_text = out.path().display().to_string();
        let _ = clean.run(&["build", "-j", "1", "--out", &out_text]).success();
        std::fs::read(out.path().join("p.gguf")).unwrap()
    }

    /// Returns the folder with the objects of the tool's cache, if it has one by default.
    fn objects(&self) -> Option<PathBuf> {
        match self.name {
            "forge" => Some(self.forge.store().join("cas-v1")),
            "DVC" => Some(self.forge.path(".dvc/cache/files")),
            _ => None,
        }
    }

    fn is_right(&self) -> bool {
        std::fs::read(self.output()).ok() == Some(self.expected())
    }

    /// Starts a build in a process group of its own and returns when it is in the middle of the step.
    fn start_and_wait_for_the_middle(&self) -> std::process::Child {
        let mut command = self.build_command();
        command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while Instant::now() < deadline && child.try_wait().unwrap().is_none() {
            let is_there = if self.command.is_some() {
                std::fs::metadata(self.output()).is_ok_and(|facts| facts.len() == 1000)
            } else {
                // The source was hashed, and the first tensors are being quantized.
                let store = self.forge.store();
                store.is_dir() && crate::small_model::committed(store).len() > 3
            };
            if is_there {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child
    }

    /// How often the step ran.
    fn runs(&self) -> usize {
        match self.command {
            Some(_) => std::fs::read_to_string(self.forge.path("runs"))
                .unwrap_or_default()
                .lines()
                .count(),
            None => crate::small_model::committed(self.forge.store()).len(),
        }
    }
}

/// A row of the table: what is done to a project, and whether the tool came out right; nothing if it has no such thing.
struct Row {
    name: &'static str,
    what: &'static str,
    play: fn(&Tool) -> Option<bool>,
}

/// No build of these projects takes longer, unless it waits for what never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a command in a process group of its own; one that does not end is killed with all that it started. Returns its
/// status, and what it said on stderr.
fn run_patiently(mut command: Command) -> Option<(bool, String)> {
    let log = tempfile::NamedTempFile::new().unwrap();
    command
        .stdout(Stdio::null())
        .stderr(log.reopen().unwrap())
        .process_group(0);
    let mut child = command.spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            let said = std::fs::read(log.path()).unwrap();
            return Some((status.success(), String::from_utf8_lossy(&said).into_owned()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    signal_group(&child, Signal::SIGKILL);
    child.wait().unwrap();
    None
}

fn signal_group(child: &std::process::Child, signal: Signal) {
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Changes a byte of a file as soon as it is there with all its bytes, and puts its modification time back.
fn tamper_when_written(path: &Path, len: u64, at: u64) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if std::fs::metadata(path).is_ok_and(|facts| facts.len() == len) {
            return corrupt_quietly(path, at);
        }
        std::hint::spin_loop();
    }
    panic!("`{}` was never written", path.display());
}

/// Replaces every file below a folder by a folder of the same name.
fn replace_files_by_folders(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            replace_files_by_folders(&path);
        } else {
            std::fs::remove_file(&path).unwrap();
            std::fs::create_dir(&path).unwrap();
        }
    }
}

fn second(at: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(at)
}

const ROWS: &[Row] = &[
    Row {
        name: "edit in place",
        what: "a byte of the input is changed after a build; size and modification time are put back",
        play: |tool| {
            assert!(tool.build() && tool.is_right());
            corrupt_quietly(&tool.input(), tool.place());
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "edit within a tick",
        what: "the input is written, built and written again within one tick of a clock of whole seconds, as coarse file systems have",
        play: |tool| {
            let tick = second(1_700_000_000);
            let set = || {
                let file = std::fs::File::options().write(true).open(tool.input()).unwrap();
                file.set_modified(tick).unwrap();
            };
            set();
            assert!(tool.build() && tool.is_right());
            corrupt_quietly(&tool.input(), tool.place());
            set();
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "edit while it runs",
        what: "the input is changed while the step runs, after it was read there; then the tool is run again",
        play: |tool| {
            tool.forge.write("slow", "");
            let mut child = tool.start_and_wait_for_the_middle();
            corrupt_quietly(&tool.input(), tool.place());
            let now = std::fs::File::options().write(true).open(tool.input()).unwrap();
            now.set_modified(SystemTime::now()).unwrap();
            child.wait().unwrap();
            std::fs::remove_file(tool.forge.path("slow")).unwrap();
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "output tampered with",
        what: "a byte of the output is changed; size and modification time are put back",
        play: |tool| {
            assert!(tool.build() && tool.is_right());
            corrupt_quietly(&tool.output(), tool.place().min(900));
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "killed",
        what: "the tool and all that it started are killed (`kill -9`) in the middle of the step; then it is run again",
        play: |tool| {
            tool.forge.write("slow", "");
            let mut child = tool.start_and_wait_for_the_middle();
            signal_group(&child, Signal::SIGKILL);
            child.wait().unwrap();
            std::fs::remove_file(tool.forge.path("slow")).unwrap();
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "touched",
        what: "the input gets a new modification time and the same bytes: nothing needs to run",
        play: |tool| {
            assert!(tool.build() && tool.is_right());
            let runs = tool.runs();
            let file = std::fs::File::options().write(true).open(tool.input()).unwrap();
            file.set_modified(SystemTime::now() + Duration::from_secs(5)).unwrap();
            Some(tool.build() && tool.is_right() && tool.runs() == runs)
        },
    },
    Row {
        name: "output changed as it is written",
        what: "another program changes a byte of the output as soon as it is there, and puts the modification time back; then the tool is run again",
        play: |tool| {
            let (output, at) = (tool.output(), tool.place().min(900));
            let len = tool.expected().len() as u64;
            std::thread::scope(|scope| {
                scope.spawn(|| tamper_when_written(&output, len, at));
                // It may notice at once, or with the next build.
                tool.build();
            });
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "output replaced",
        what: "another file is renamed to the output, with the same size and modification time and one byte changed",
        play: |tool| {
            assert!(tool.build() && tool.is_right());
            let other = tool.output().with_extension("other");
            let modified = std::fs::metadata(tool.output()).unwrap().modified().unwrap();
            std::fs::write(&other, std::fs::read(tool.output()).unwrap()).unwrap();
            corrupt_quietly(&other, tool.place().min(900));
            let file = std::fs::File::options().write(true).open(&other).unwrap();
            file.set_modified(modified).unwrap();
            std::fs::rename(&other, tool.output()).unwrap();
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "output truncated",
        what: "the output is cut to half its length; its modification time is put back",
        play: |tool| {
            assert!(tool.build() && tool.is_right());
            let file = std::fs::File::options().write(true).open(tool.output()).unwrap();
            let facts = file.metadata().unwrap();
            file.set_len(facts.len() / 2).unwrap();
            file.set_modified(facts.modified().unwrap()).unwrap();
            Some(tool.build() && tool.is_right())
        },
    },
    Row {
        name: "cache object is a folder",
        what: "every object in the tool's cache is replaced by a folder of the same name, and the output is deleted; then the tool is run again",
        play: |tool| {
            let objects = tool.objects()?;
            assert!(tool.build() && tool.is_right());
            replace_files_by_folders(&objects);
            std::fs::remove_file(tool.output()).unwrap();
            let run = run_patiently(tool.build_command());
            Some(run.is_some_and(|(done, _)| done) && tool.is_right())
        },
    },
    Row {
        name: "input is a pipe",
        what: "the input is a named pipe that nobody writes to: the tool must end, with an error",
        play: |tool| {
            std::fs::remove_file(tool.input()).unwrap();
            nix::unistd::mkfifo(&tool.input(), nix::sys::stat::Mode::S_IRWXU).unwrap();
            let run = run_patiently(tool.build_command());
            Some(run.is_some_and(|(done, said)| !done && !is_crash(&said)))
        },
    },
    Row {
        name: "folder's name is not UTF-8",
        what: "the project lies in a folder whose name is not UTF-8: the tool builds there, or says why it does not (a panic or a traceback is no answer)",
        play: |tool| {
            let expected = tool.expected();
            let folder = tool.forge.dir().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
            std::fs::create_dir(&folder).unwrap();
            let copied = Command::new("sh")
                .args(["-c", "for file in * .[!.]*; do [ \"$file\" -ef \"$0\" ] || [ ! -e \"$file\" ] || cp -R \"$file\" \"$0\"; done"])
                .arg(&folder)
                .current_dir(tool.forge.dir())
                .status();
            assert!(copied.unwrap().success());
            let mut command = tool.build_command();
            command.current_dir(&folder);
            let (done, said) = run_patiently(command)?;
            let output = tool.output();
            let output = folder.join(output.strip_prefix(tool.forge.dir()).unwrap());
            let is_right = std::fs::read(output).ok() == Some(expected);
            Some(if done {
                is_right
            } else {
                !said.is_empty() && !is_crash(&said)
            })
        },
    },
    Row {
        name: "file size limit",
        what: "the step may write 512 bytes to a file (`ulimit -f 1`): the tool fails, and is right without the limit",
        play: |tool| {
            let command = tool.build_command();
            let mut limited = Command::new("sh");
            limited
                .args(["-c", "ulimit -f 1; exec \"$0\" \"$@\""])
                .arg(command.get_program());
            limited
                .args(command.get_args())
                .current_dir(tool.forge.dir())
                .env_clear();
            limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            if tool.command.is_some() {
                limited.envs(std::env::vars_os()).env("HOME", tool.forge.dir());
            }
            let (done, said) = run_patiently(limited)?;
            Some(!done && !is_crash(&said) && tool.build() && tool.is_right())
        },
    },
];

/// Whether a program fell over, rather than said what is wrong.
fn is_crash(said: &str) -> bool {
    said.contains("panicked at") || said.contains("Traceback (most recent call last)")
}

#[test]
fn forge_passes_every_row_and_the_table_says_what_the_others_do() {
    let bin = std::env::var_os("FORGE_INCUMBENTS_BIN").map(PathBuf::from);
    let others: &[&str] = if bin.is_some() {
        &["make", "ninja", "DVC", "Snakemake"]
    } else {
        eprintln!("SKIPPED: FORGE_INCUMBENTS_BIN is not set, so forge is not compared with other build tools");
        &[]
    };
    let bin = bin.unwrap_or_default();
    let mut cells: Vec<(usize, &'static str)> = Vec::new();
    for row in 0..ROWS.len() {
        cells.extend(
            std::iter::once("forge")
                .chain(others.iter().copied())
                .map(|name| (row, name)),
        );
    }
    let passed = std::sync::Mutex::new(BTreeMap::new());
    one_layer_project::in_parallel(&cells, |&(row, name)| {
        let tool = match name {
            "forge" => Tool::forge(),
            name => Tool::other(name, &bin),
        };
        let right = (ROWS[row].play)(&tool);
        passed.lock().unwrap().insert((row, tool.name), right);
    });
    let passed = passed.into_inner().unwrap();
    let mut table = String::from("| | forge |");
    for name in others {
        write!(table, " {name} |").unwrap();
    }
    writeln!(table, "\n|{}", "---|".repeat(others.len() + 2)).unwrap();
    for (row, Row { name, what, .. }) in ROWS.iter().enumerate() {
        write!(table, "| **{name}**: {what} |").unwrap();
        for tool in std::iter::once("forge").chain(others.iter().copied()) {
            let cell = match passed[&(row, tool)] {
                Some(true) => "right",
                Some(false) => "wrong",
                None => "has none",
            };
            write!(table, " {cell} |").unwrap();
        }
        table.push('\n');
    }
    eprintln!("{table}");
    for (row, Row { name, .. }) in ROWS.iter().enumerate() {
        assert_eq!(passed[&(row, "forge")], Some(true), "forge fails `{name}`");
    }
    if others.is_empty() {
        return;
    }
    let page = project().join("docs/conformance.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (start, end) = ("<!-- table -->\n", "<!-- end -->");
    let (head, rest) = text.split_once(start).unwrap();
    let (pictured, tail) = rest.split_once(end).unwrap();
    if std::env::var_os("FORGE_BLESS").is_some() {
        std::fs::write(&page, format!("{head}{start}{table}{end}{tail}")).unwrap();
    } else {
        assert_eq!(
            pictured, table,
            "docs/conformance.md says something else; FORGE_BLESS=1 writes it anew"
        );
    }
}
