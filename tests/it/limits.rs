//! What the system limits or sends: file sizes, memory, signals, and paths that are not text.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::one_layer_project;
use crate::small_model;
use crate::support::Forge;
use crate::support::Run;

/// Runs the program under limits of a shell, as `ulimit -f 8`.
fn limited(forge: &Forge, limit: &str, args: &[&str]) -> Run {
    let command = forge.command(args);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{limit}; exec \"$0\" \"$@\"")])
        .arg(command.get_program())
        .args(args)
        .current_dir(forge.dir())
        .env_clear()
        .envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let run = Run::of(shell.output().unwrap());
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    run
}

#[test]
fn a_limit_on_file_size_is_an_error_that_names_it_and_loses_nothing() {
    let forge = Forge::new();
    one_layer_project::furnish(&forge);
    forge.recipe(one_layer_project::BARE);
    // In blocks of 512 bytes: too little for a document, for a block of digests, and for the output.
    for blocks in [1, 16, 400] {
        let run = limited(&forge, &format!("ulimit -f {blocks}"), &["build", "-j", "1"]).status(3);
        let limit = format!("the limit of this process, {} bytes (`ulimit -f`)", blocks * 512);
        assert!(run.stderr.contains(&limit), "{}", run.stderr);
        assert!(run.stderr.contains("cannot write `"), "{}", run.stderr);
        assert!(run.stderr.contains("hint: raise the limit"), "{}", run.stderr);
        assert!(!forge.path("out/bare/p.gguf").exists());
    }
    let _ = forge.run(&["build", "-j", "1"]).success();
    let (clean, _) = small_model::build_clean(&forge, &[]);
    let [found, expected] = [forge.path("out/bare"), clean.path().join("out")].map(|out| out.join("p.gguf"));
    assert!(
        std::fs::read(found).unwrap() == std::fs::read(expected).unwrap(),
        "another file than without a limit"
    );
    let _ = forge.run(&["verify"]).success();
}

#[test]
fn an_imatrix_that_memory_does_not_hold_is_an_error() {
    let forge = small_model::project();
    let file = std::fs::File::create(forge.path("large.imatrix")).unwrap();
    file.set_len(3 << 29).unwrap();
    forge.recipe(
        "schema = 1\nname = \"a\"\n[source.large]\npath = \"large.imatrix\"\n[imatrix.i]\nsource = \"large\"\n\
         [policy.p]\nmethod = \"mix\"\nmix = \"Q4_0\"\nimatrix = \"i\"\n[source.model]\npath = \"small.gguf\"\n\
         [promote.p]\npolicy = \"p\"\n",
    );
    let args = ["build", "-j", "1", "recipe.toml", "imatrix.i"];
    let run = limited(&forge, "ulimit -v 1048576", &args).status(3);
    assert!(
        run.stderr.contains("not enough memory for its 1610612736 bytes"),
        "{}",
        run.stderr
    );
}

/// Starts a build and returns when it has begun to write.
fn started(mut command: Command, forge: &Forge) -> small_model::Going {
    command.env("FORGE_NO_PROGRESS", "1");
    let going = small_model::Going::start(command);
    let deadline = Instant::now() + Duration::from_mins(2);
    while !forge.store().is_dir() || small_model::committed(forge.store()).len() < 3 {
        assert!(Instant::now() < deadline, "nothing is written");
        std::thread::sleep(Duration::from_millis(2));
    }
    going
}

fn pid(going: &small_model::Going) -> Pid {
    Pid::from_raw(going.child.id().cast_signed())
}

#[test]
fn each_signal_that_stops_a_build_has_its_own_exit_status() {
    for (signal, status) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGINT, 130)] {
        let forge = small_model::project();
        let going = started(small_model::build(&forge, &[]), &forge);
        kill(pid(&going), signal).unwrap();
        let run = going.end().status(status);
        assert!(run.stdout.contains("build-finished"), "{signal}: it stopped cleanly");
        let _ = small_model::build_of(&forge).success();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_signal_that_the_caller_ignores_stays_ignored() {
    let forge = small_model::project();
    let build = small_model::build(&forge, &[]);
    let mut nohup = Command::new("sh");
    nohup
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(build.get_program())
        .args(build.get_args())
        .current_dir(forge.dir())
        .env_clear()
        .envs(build.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let going = started(nohup, &forge);
    kill(pid(&going), Signal::SIGHUP).unwrap();
    let _ = going.end().success();
}

#[test]
fn switches_in_the_environment_take_the_usual_words() {
    let forge = Forge::new();
    crate::one_layer_project::furnish(&forge);
    for value in ["1", "true", "yes", "on", "0", "false", "no", "off", "TRUE"] {
        let mut command = forge.command(&["init", value]);
        let run = Run::of(command.env("FORGE_NO_PROGRESS", value).output().unwrap()).success();
        assert!(run.stderr.contains("wrote"), "{}", run.stderr);
    }
    let mut command = forge.command(&["init", "other"]);
    let run = Run::of(command.env("FORGE_NO_PROGRESS", "perhaps").output().unwrap()).status(2);
    assert!(run.stderr.contains("perhaps"), "{}", run.stderr);
}

fn odd(text: &[u8]) -> OsString {
    OsStr::from_bytes(text).to_owned()
}

/// Runs the program; it must end by itself, whatever it says.
fn ended(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

#[test]
fn a_path_that_is_not_utf8_is_refused_before_anything_is_written() {
    let forge = small_model::project();
    let odd_folder = forge.dir().join(odd(b"caf\xe9"));
    std::fs::create_dir(&odd_folder).unwrap();
    std::fs::copy(forge.path("recipe.toml"), odd_folder.join("recipe.toml")).unwrap();
    let before = names(forge.dir());
    let refused = |command: &mut Command, what: &str| {
        let (status, said) = ended(command);
        assert_eq!(status, Some(2), "{what}: {said}");
        assert!(said.contains(what) && said.contains("UTF-8"), "{what}: {said}");
        assert_eq!(names(forge.dir()), before, "{what}");
    };
    let build = || small_build(&forge);
    refused(build().arg("--out").arg(odd(b"o\xff")), "the output folder");
    refused(build().arg("--cache-dir").arg(odd(b"s\xff")), "the store");
    refused(build().env("FORGE_CACHE_DIR", odd(b"s\xff")), "the store");
    refused(build().current_dir(&odd_folder), "the recipe's folder");
    refused(build().arg("-C").arg(odd(b"caf\xe9")), "the recipe's folder");
    refused(build().arg(odd(b"r\xff.toml")), "invalid UTF-8");
    refused(forge.command(&["check"]).arg(odd(b"r\xff.toml")), "invalid UTF-8");
    let home = forge.dir().join(odd(b"home\xff"));
    refused(build().env_remove("FORGE_CACHE_DIR").env("HOME", &home), "the store");
    assert!(names(&odd_folder).len() == 1 && !home.exists());
    // The bytes are shown, not replaced.
    let (_, said) = ended(build().arg("--out").arg(odd(b"o\xff")));
    assert!(said.contains(r"/o\xff`"), "{said}");
}

fn names(folder: &Path) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

fn small_build(forge: &Forge) -> Command {
    forge.command(&["build", "-j", "1"])
}

#[test]
fn a_command_line_that_is_not_utf8_is_on_record_byte_by_byte() {
    let forge = small_model::project();
    let (status, said) = ended(small_build(&forge).arg("--trace").arg(odd(b"trace\xff.json")));
    assert_eq!(status, Some(0), "{said}");
    assert!(forge.dir().join(odd(b"trace\xff.json")).exists());
    let run = forge.run(&["log", "show"]).success();
    assert!(run.stdout.contains(r"--trace trace\xff.json"), "{}", run.stdout);
}

#[test]
fn a_text_with_a_name_that_is_not_utf8_is_an_error() {
    let forge = small_model::project();
    std::fs::create_dir(forge.path("texts")).unwrap();
    std::fs::copy(forge.path("prose.txt"), forge.path("texts/a.txt")).unwrap();
    let text = forge.path("texts").join(odd(b"b\xff.txt"));
    std::fs::copy(forge.path("code.txt"), &text).unwrap();
    forge.recipe(&small_model::RECIPE.replace("\"prose.txt\"", "\"texts/*.txt\""));
    for verb in ["build", "plan"] {
        let (status, said) = ended(&mut forge.command(&[verb]));
        assert_eq!(status, Some(1), "{verb}: {said}");
        assert!(
            said.contains("is not UTF-8") && said.contains("recipe.toml:7"),
            "{verb}: {said}"
        );
    }
    std::fs::rename(text, forge.path("texts/b.txt")).unwrap();
    let _ = forge
        .run(&["build", "-j", "1", "recipe.toml", "corpus.calibration"])
        .success();
}
