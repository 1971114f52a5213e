//! `forge build` as users meet it: what runs again after an edit, and what does not.

use std::collections::BTreeMap;
use std::io::BufRead as _;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use forge::gguf::Model;
use forge::gguf::Value;
use forge::imatrix::Imatrix;
use forge::imatrix::Weight;
use forge::vocab::MergeMode;

use crate::one_layer_project::BARE;
use crate::one_layer_project::Gguf;
use crate::one_layer_project::RECIPE;
use crate::one_layer_project::assert_store_whole;
use crate::one_layer_project::build;
use crate::one_layer_project::build_well;
use crate::one_layer_project::corrupt_quietly;
use crate::one_layer_project::edited;
use crate::one_layer_project::furnish;
use crate::one_layer_project::manifest;
use crate::one_layer_project::output_of;
use crate::one_layer_project::plan;
use crate::one_layer_project::project;
use crate::one_layer_project::text;
use crate::support::Forge;
use crate::support::Run;

#[test]
fn a_second_build_has_nothing_to_do() {
    let forge = project();
    let first = build_well(&forge, &[]);
    assert_eq!(first.ran_of("inspect-model"), 1);
    assert_eq!(first.ran_of("imatrix-block"), 2);
    assert_eq!(first.ran_of("promote"), 2);
    assert_eq!(first.ran_of("eval"), 2);
    build_well(&forge, &[]).assert_idle();
    let run = forge.run(&["build"]).success();
    assert!(run.stderr.contains("nothing to do"), "{}", run.stderr);
}

/// Runs a build under strace and returns the lines that it writes; nothing where a process may not be traced.
fn traced(forge: &Forge, name: &str) -> Option<String> {
    let log = forge.path(name);
    let program = forge.command(&[]).get_program().to_owned();
    let mut command = Command::new("strace");
    command
        .args([
            "-f",
            "-y",
            "-e",
            "trace=openat,open,read,pread64,preadv,readv,mmap,sendfile,copy_file_range",
        ])
        .arg("-o")
        .arg(&log)
        .arg(program)
        .args(["build", "-j", "1"])
        .current_dir(forge.dir())
        .env("FORGE_CACHE_DIR", forge.store())
        .stdin(Stdio::null());
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: strace does not start: {error}");
            return None;
        }
    };
    let run = Run::of(output);
    if run.status != Some(0) && (run.stderr.contains("ptrace") || run.stderr.contains("PTRACE")) {
        eprintln!("SKIPPED: a process may not be traced here: {}", run.stderr);
        return None;
    }
    let _run = run.success();
    Some(std::fs::read_to_string(log).unwrap())
}

#[test]
fn a_build_with_nothing_to_do_reads_no_byte_of_a_source() {
    let forge = Forge::new();
    furnish(&forge);
    forge.recipe(RECIPE);
    let sources = ["model.gguf", "prose.txt", "held-out.txt"];
    let Some(first) = traced(&forge, "first.log") else {
        return;
    };
    for source in sources {
        let path = format!("/{source}>");
        let read = first.lines().any(|line| line.contains("read") && line.contains(&path));
        assert!(read, "the first build reads {source}, and strace shows it");
    }
    let Some(second) = traced(&forge, "second.log") else {
        return;
    };
    assert!(second.contains("recipe.toml"), "strace shows the recipe being read");
    for source in sources {
        let touched: Vec<&str> = second.lines().filter(|line| line.contains(source)).collect();
        assert!(touched.is_empty(), "{touched:#?}");
    }
}

#[test]
fn one_type_changed_by_hand_quantizes_one_tensor() {
    let forge = project();
    build_well(&forge, &[]);
    let stamp = |name: &str| {
        let facts = std::fs::metadata(forge.path("out/small").join(name)).unwrap();
        (facts.ino(), facts.mtime(), facts.mtime_nsec())
    };
    let before = (stamp("a.gguf"), stamp("b.gguf"));
    forge.recipe(&edited(
        RECIPE,
        r#""ffn_down", type = "Q6_K""#,
        r#""ffn_down", type = "Q5_K""#,
    ));
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran_of("tensor"), 1);
    assert_eq!(built.ran_of("promote"), 1);
    assert_eq!(
        built.ran_of("imatrix-block") + built.ran_of("imatrix-collect") + built.ran_of("join"),
        0
    );
    let steps = built.steps();
    assert_eq!(steps["promote.a"], "ran");
    for step in [
        "policy.b",
        "promote.b",
        "eval.quality/b",
        "imatrix.general",
        "source.model",
    ] {
        assert_eq!(steps[step], "hit", "{step}");
    }
    assert_eq!(stamp("b.gguf"), before.1);
    assert_ne!(stamp("a.gguf").0, before.0.0);
    let model = Model::open(&forge.path("out/small/a.gguf")).unwrap();
    assert_eq!(model.tensor("blk.0.ffn_down.weight").unwrap().info.ty.name(), "Q5_K");
}

#[test]
fn another_chat_template_costs_a_header() {
    let forge = project();
    build_well(&forge, &[]);
    let before = Gguf::read(&forge.path("out/small/a.gguf"));
    let mut model = Gguf::small();
    model.set("tokenizer.chat_template", Value::String(b"{{ second }}".to_vec()));
    forge.write("model.gguf", model.bytes());
    let built = build_well(&forge, &[]);
    let ran = built.ran();
    for kind in [
        "tensor",
        "imatrix-block",
        "imatrix-collect",
        "tokens",
        "eval-block",
        "reference-block",
        "eval",
    ] {
        assert_eq!(ran.get(kind), None, "{kind}: {ran:?}");
    }
    assert_eq!(ran["inspect-model"], 1);
    assert_eq!(ran["promote"], 2);
    let after = Gguf::read(&forge.path("out/small/a.gguf"));
    assert_eq!(before.metadata.get_str("tokenizer.chat_template"), Some("{{ first }}"));
    assert_eq!(after.metadata.get_str("tokenizer.chat_template"), Some("{{ second }}"));
    assert_eq!(before.tensors, after.tensors);
}

#[test]
fn more_calibration_collects_only_new_blocks() {
    let forge = project();
    let more = edited(RECIPE, "chunks = 4", "chunks = 6");
    build_well(&forge, &["recipe.toml", "imatrix.general"]);
    forge.recipe(&more);
    let built = build_well(&forge, &["recipe.toml", "imatrix.general"]);
    assert_eq!((built.ran_of("imatrix-block"), built.hits_of("imatrix-block")), (1, 2));

    // Without a bound, a file more costs its own blocks: as many as it has where it is alone.
    let unbound = edited(RECIPE, "chunks = 4\n", "");
    forge.recipe(&unbound);
    let prose = build_well(&forge, &["recipe.toml", "imatrix.general"]);
    let prose = prose.ran_of("imatrix-block") + prose.hits_of("imatrix-block");
    let alone = Forge::new();
    furnish(&alone);
    alone.recipe(&edited(&unbound, r#"["prose.txt"]"#, r#"["code.txt"]"#));
    let code = build_well(&alone, &["recipe.toml", "imatrix.general"]).ran_of("imatrix-block");
    assert!(code > 1 && prose > 1);
    forge.recipe(&edited(&unbound, r#"["prose.txt"]"#, r#"["prose.txt", "code.txt"]"#));
    let built = build_well(&forge, &["recipe.toml", "imatrix.general"]);
    assert_eq!(
        (built.ran_of("imatrix-block"), built.hits_of("imatrix-block")),
        (code, prose)
    );
    assert_eq!(built.ran_of("tokens"), 1);
}

#[test]
fn a_missing_or_changed_output_is_restored() {
    let forge = project();
    build_well(&forge, &[]);
    let candidate = forge.path("out/small/a.gguf");
    let table = forge.path("out/small/metrics.json");
    let record = forge.path("out/small/a.gguf.manifest.json");
    let whole = std::fs::read(&candidate).unwrap();
    let rows = std::fs::read(&table).unwrap();

    std::fs::remove_file(&candidate).unwrap();
    let built = build_well(&forge, &[]);
    // What only it held is quantized again, and nothing else runs.
    assert_eq!(built.ran().into_keys().collect::<Vec<_>>(), ["tensor"]);
    assert!(built.written().contains("a.gguf"));
    assert!(!built.written().contains("b.gguf"));
    assert_eq!(std::fs::read(&candidate).unwrap(), whole);
    build_well(&forge, &[]).assert_idle();

    for (path, bytes) in [(&candidate, &whole), (&table, &rows)] {
        corrupt_quietly(path, bytes.len() as u64 - 4);
        assert_ne!(&std::fs::read(path).unwrap(), bytes);
        let built = build_well(&forge, &[]);
        let ran: Vec<_> = built.ran().into_keys().collect();
        assert_eq!(ran, if path == &candidate { vec!["tensor"] } else { vec![] });
        assert_eq!(&std::fs::read(path).unwrap(), bytes, "{}", path.display());
        build_well(&forge, &[]).assert_idle();
    }

    std::fs::remove_file(&record).unwrap();
    let built = build_well(&forge, &[]);
    assert_eq!(
        built.written().into_iter().collect::<Vec<_>>(),
        ["a.gguf.manifest.json"]
    );
    let subject = &manifest(&candidate)["subject"][0];
    assert_eq!(subject["name"], "a.gguf");
    assert_eq!(subject["digest"]["blake3"], forge::digest::Hash::of(&whole).to_string());
    build_well(&forge, &[]).assert_idle();
}

#[test]
fn a_split_model_makes_the_same_candidate() {
    let one = project();
    build_well(&one, &[]);
    let two = Forge::new();
    furnish(&two);
    std::fs::remove_file(two.path("model.gguf")).unwrap();
    let [first, second] = Gguf::small().halves(5);
    two.write("model-00001-of-00002.gguf", first)
        .write("model-00002-of-00002.gguf", second)
        .recipe(&edited(RECIPE, "model.gguf", "model-00001-of-00002.gguf"));
    build_well(&two, &[]);
    for name in ["a.gguf", "b.gguf", "metrics.json"] {
        let read = |forge: &Forge| std::fs::read(forge.path("out/small").join(name)).unwrap();
        assert_eq!(read(&one), read(&two), "{name}");
    }
    let digests = |forge: &Forge| manifest(&forge.path("out/small/a.gguf"))["predicate"]["forge"]["tensors"].clone();
    assert_eq!(digests(&one), digests(&two));
    build_well(&two, &[]).assert_idle();
    // The second part counts as the first does.
    corrupt_quietly(&two.path("model-00002-of-00002.gguf"), 4000);
    assert_eq!(build_well(&two, &[]).steps()["source.model"], "ran");
}

#[test]
fn requantizing_must_be_allowed_explicitly() {
    let forge = project();
    build_well(&forge, &["recipe.toml", "promote.a"]);
    let again = forge.sibling();
    again.write("model.gguf", std::fs::read(forge.path("out/small/a.gguf")).unwrap());
    let run = again.recipe(BARE).run(&["build", "-j", "1"]).status(1);
    assert!(run.stderr.contains("quantized already"), "{}", run.stderr);
    assert!(run.stderr.contains("allow_requantize = true"), "{}", run.stderr);
    assert!(!again.path("out/bare/p.gguf").exists());
    again.recipe(&edited(
        BARE,
        "policy = \"p\"",
        "policy = \"p\"\nallow_requantize = true",
    ));
    build_well(&again, &[]);
    assert!(again.path("out/bare/p.gguf").exists());
}

#[test]
fn a_gate_that_fails_fails_the_build_every_time() {
    let forge = project();
    let gate = |require: &str| format!("{RECIPE}\n[gate.good]\nrequire = [{require}]\n");
    forge.recipe(&gate(r#""bytes < 1 GiB", "kld_mean < 0.0000001""#));
    for _ in 0..2 {
        let run = forge.run(&["build", "-j", "1"]).status(1);
        assert!(run.stderr.contains("requirements are not met"), "{}", run.stderr);
        assert!(
            run.stderr.contains("`a`") && run.stderr.contains("`b`"),
            "evidence of each: {}",
            run.stderr
        );
        assert!(run.stderr.contains("0.0000001"), "{}", run.stderr);
        assert!(
            !run.stderr.contains("GiB"),
            "no evidence of what is met: {}",
            run.stderr
        );
    }
    assert!(forge.path("out/small/a.gguf").exists());
    forge.recipe(&gate(r#""bytes < 1 GiB", "kld_mean < 10""#));
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran().into_iter().collect::<Vec<_>>(), [("gate".to_owned(), 1)]);
    build_well(&forge, &[]).assert_idle();
}

#[test]
fn keep_going_builds_steps_that_do_not_need_a_failed_one() {
    let forge = project();
    forge.write("prose.txt", b"not \xff text").recipe(&edited(
        RECIPE,
        "[policy.b]\nimatrix = \"general\"",
        "[policy.b]",
    ));
    let built = build(&forge, &["--keep-going"]);
    assert_eq!(built.run.status, Some(1));
    let steps = built.steps();
    assert_eq!(steps["corpus.calibration"], "failed");
    for step in [
        "imatrix.general",
        "policy.a",
        "promote.a",
        "eval.quality/a",
        "metrics.all",
    ] {
        assert_eq!(steps[step], "skipped", "{step}");
    }
    assert_eq!(steps["promote.b"], "ran");
    assert_eq!(steps["eval.quality/b"], "ran");
    assert!(forge.path("out/small/b.gguf").exists());
    assert!(!forge.path("out/small/a.gguf").exists());
    assert!(
        built.diagnostics().contains("is not UTF-8: byte 4 is 0xff"),
        "{}",
        built.diagnostics()
    );
}

/// Asserts that the next build does what a plan says, node by node.
fn assert_plan_is_kept(forge: &Forge, state: &str) -> BTreeMap<String, String> {
    let (_run, planned) = plan(forge, &[]);
    let fresh = forge.run(&["plan", "--check"]).status;
    let built = build(forge, &[]);
    let (started, steps) = (built.started(), built.steps());
    assert_eq!(
        planned.keys().collect::<Vec<_>>(),
        steps.keys().collect::<Vec<_>>(),
        "{state}"
    );
    let keys = built.keys();
    for (node, (status, key)) in &planned {
        match status.as_str() {
            "hit" => {
                assert!(!started.contains(node), "{state}: {node} was a hit and ran");
                assert_eq!(steps[node], "hit", "{state}: {node}");
            }
            "miss" => {
                assert!(started.contains(node), "{state}: {node} was a miss and did not run");
                if let Some(key) = key {
                    let reported = keys.iter().any(|(step, _, found)| step == node && found == key);
                    assert!(reported || steps[node] == "failed", "{state}: {node} ran {key}");
                }
            }
            "write" => assert_eq!(steps[node], "wrote", "{state}: {node}"),
            "unknown" => {}
            other => assert_eq!(steps[node], "failed", "{state}: {node} is {other}"),
        }
    }
    let all_hit = planned.values().all(|(status, _)| status == "hit");
    assert_eq!(fresh, Some(i32::from(!all_hit)), "{state}: `plan --check`");
    planned.into_iter().map(|(node, (status, _))| (node, status)).collect()
}

#[test]
fn a_plan_says_what_a_build_does() {
    let forge = project();
    let fresh = assert_plan_is_kept(&forge, "fresh");
    assert_eq!(fresh["source.model"], "miss");
    assert_eq!(fresh["promote.a"], "unknown");
    let built = assert_plan_is_kept(&forge, "built");
    assert!(built.values().all(|status| status == "hit"), "{built:?}");
    forge.recipe(&edited(RECIPE, "otherwise = \"Q4_K\"", "otherwise = \"Q5_K\""));
    let policy = assert_plan_is_kept(&forge, "policy edited");
    assert_eq!(
        (policy["policy.a"].as_str(), policy["promote.a"].as_str()),
        ("miss", "unknown")
    );
    assert_eq!(policy["promote.b"], "hit");
    forge.recipe(RECIPE);
    // The store got the tensors back before the file was replaced.
    let back = assert_plan_is_kept(&forge, "policy put back");
    assert_eq!(
        (back["policy.a"].as_str(), back["promote.a"].as_str()),
        ("hit", "write")
    );
    forge.write("held-out.txt", format!("More. {}", text("held-out.txt")));
    let held_out = assert_plan_is_kept(&forge, "text edited");
    assert_eq!(
        (
            held_out["corpus.held-out"].as_str(),
            held_out["imatrix.general"].as_str()
        ),
        ("miss", "hit")
    );
    forge.write("prose.txt", text("calibration-prose.txt"));
    assert_eq!(
        assert_plan_is_kept(&forge, "text written again")["corpus.calibration"],
        "miss"
    );
    std::fs::remove_file(forge.path("out/small/b.gguf")).unwrap();
    assert_eq!(assert_plan_is_kept(&forge, "output gone")["promote.b"], "miss");
    std::fs::remove_file(forge.path("out/small/metrics.md")).unwrap();
    assert_eq!(assert_plan_is_kept(&forge, "table gone")["metrics.all"], "write");
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    assert_plan_is_kept(&forge, "outputs gone");
    forge.write("held-out.txt", b"\xff");
    for verb in ["plan", "build"] {
        let run = forge.run(&[verb]).status(1);
        assert!(run.stderr.contains("byte 0 is 0xff"), "{verb}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{verb}");
    }
}

#[test]
fn every_verb_counts_the_same_steps() {
    let forge = project();
    let number = |text: &str, word: &str| -> u64 {
        let before = text.split(word).next().unwrap();
        before
            .rsplit([' ', '('])
            .find(|part| !part.is_empty())
            .unwrap()
            .parse()
            .unwrap()
    };
    let count = |verb: &str| {
        let lines = forge.run(&[verb, "--message-format", "json"]).success();
        let lines: Vec<serde_json::Value> = lines
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let find = |reason: &str| lines.iter().find(|line| line["reason"] == reason).unwrap().clone();
        let words: &[&str] = match verb {
            "plan" => &["hit", "write", "miss", "unknown", "failed"],
            _ => &["ran", "wrote", "hit", "failed", "skipped"],
        };
        let end = find(&format!("{verb}-finished"));
        let sum: u64 = words.iter().map(|word| end[word].as_u64().unwrap()).sum();
        let steps = if verb == "plan" { end } else { find("build-started") };
        (sum, steps["steps"].as_u64().unwrap())
    };
    let check = forge.run(&["check"]).success();
    let steps = number(&[check.stdout, check.stderr].concat(), " steps");
    assert_eq!(number(&forge.run(&["plan"]).success().stdout, " steps:"), steps);
    assert_eq!(number(&forge.run(&["why"]).success().stdout, " steps:"), steps);
    for state in ["new", "built"] {
        assert_eq!(count("plan"), (steps, steps), "{state}");
        assert_eq!(count("build"), (steps, steps), "{state}");
    }
    for verb in ["plan", "build", "why"] {
        let run = forge.run(&[verb]).success();
        let said = [run.stdout, run.stderr].concat();
        assert!(said.contains(&format!("nothing to do ({steps} hit)")), "{verb}: {said}");
    }
}

#[test]
fn a_build_into_a_new_folder_only_writes_and_says_what_lies_where() {
    let forge = project();
    let first = forge.run(&["build", "-j", "1"]).success();
    let listed = |stderr: &str| -> Vec<String> {
        let lines = stderr.lines().skip_while(|line| !line.starts_with("outputs"));
        let rows = lines.skip(1).take_while(|line| line.starts_with("  "));
        rows.map(|row| row.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    let files = listed(&first.stderr);
    for file in [
        "out/small/a.gguf",
        "out/small/b.gguf",
        "out/small/metrics.json",
        "out/small/metrics.md",
    ] {
        assert!(files.iter().any(|listed| listed == file), "{file}: {}", first.stderr);
    }
    assert!(files.iter().all(|file| forge.path(file).exists()), "{files:?}");
    let again = forge.run(&["build"]).success();
    assert!(again.stderr.contains("; outputs in out/small\n"), "{}", again.stderr);
    assert!(!again.stderr.contains("outputs ("), "{}", again.stderr);
    std::fs::remove_file(forge.path("out/small/metrics.md")).unwrap();
    let quiet = forge.run(&["build", "--quiet"]).success().stderr;
    assert_eq!(quiet.lines().count(), 1, "{quiet}");
    assert!(
        quiet.starts_with("forge: 1 wrote, nothing else to do (10 hit) in "),
        "{quiet}"
    );

    // The store borrowed the tensors of the candidates, so their files can be written, and nothing else has to be done.
    let plan = forge.run(&["plan", "--out", "elsewhere"]).success().stdout;
    assert!(plan.contains("output folder: elsewhere (new)"), "{plan}");
    assert!(plan.contains(" 0 miss, 0 unknown"), "{plan}");
    let line = plan.lines().find(|line| line.contains("metrics.all")).unwrap();
    assert!(line.starts_with("write    metrics.all"), "{line}");
    assert!(line.contains("only `metrics.json` and `metrics.md`"), "{line}");
    assert!(line.contains("a file is not in the output folder"), "{line}");
    let _ = forge.run(&["plan", "--check", "--out", "elsewhere"]).status(1);
    let moved = build(&forge, &["--out", "elsewhere"]);
    let steps = moved.steps();
    for step in ["promote.a", "promote.b", "metrics.all"] {
        assert_eq!(steps[step], "wrote", "{steps:?}");
    }
    assert!(steps.values().all(|outcome| outcome != "ran"), "{steps:?}");
    let outputs = moved.events.iter().find(|line| line["reason"] == "outputs").unwrap();
    let files = outputs["files"].as_array().unwrap();
    assert_eq!(outputs["folder"], "elsewhere");
    assert_eq!(files[0]["path"], "elsewhere/a.gguf");
    assert_eq!(files[0]["manifest"], "elsewhere/a.gguf.manifest.json");
    assert_eq!(
        files[0]["bytes"],
        std::fs::metadata(forge.path("elsewhere/a.gguf")).unwrap().len()
    );
}

#[test]
fn a_plan_writes_nothing_beside_the_recipe() {
    let forge = project();
    let list = || {
        let mut names: Vec<_> = std::fs::read_dir(forge.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.retain(|name| name != "store");
        names.sort();
        names
    };
    let before = list();
    let _run = forge.run(&["plan"]).success();
    assert_eq!(list(), before);
}

/// A build that takes a while, in a child: `imatrix.general` of 60 blocks.
fn long_build(forge: &Forge) -> std::process::Child {
    let long = edited(
        RECIPE,
        "chunks = 4\ncontext = 64\nblock = 2",
        "chunks = 60\ncontext = 64\nblock = 1",
    );
    forge.recipe(&long);
    let prose = std::fs::read_to_string(crate::support::quickstart().join("calibration-prose.txt")).unwrap();
    forge.write("prose.txt", &prose[..40_000]);
    let mut command = forge.command(&[
        "build",
        "-j",
        "1",
        "--message-format",
        "json",
        "recipe.toml",
        "imatrix.general",
    ]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Returns lines up to the first that says so.
fn read_until(lines: &mut dyn Iterator<Item = std::io::Result<String>>, part: &str) -> Vec<String> {
    let mut read = Vec::new();
    for line in lines {
        read.push(line.unwrap());
        if read.last().unwrap().contains(part) {
            return read;
        }
    }
    panic!("the child never said `{part}`: {read:#?}");
}

const BLOCK_RAN: &str = r#""kind":"imatrix-block""#;

#[test]
fn ctrl_c_stops_a_build_and_the_next_one_continues() {
    let forge = project();
    let mut child = long_build(&forge);
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = read_until(&mut lines, BLOCK_RAN);
    let signal = Command::new("sh")
        .args(["-c", "kill -INT \"$0\"", &child.id().to_string()])
        .status();
    assert!(signal.unwrap().success());
    said.extend(lines.map(Result::unwrap));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{errors}");
    assert!(!errors.contains("panicked"), "{errors}");
    let done = said.iter().filter(|line| line.contains(BLOCK_RAN)).count();
    assert!((1..60).contains(&done), "{done} blocks ran before it stopped");
    assert!(said.iter().any(|line| line.contains("build-finished")), "{said:#?}");
    assert_store_whole(forge.store());
    let next = build_well(&forge, &["recipe.toml", "imatrix.general"]);
    assert_eq!(
        (next.hits_of("imatrix-block"), next.ran_of("imatrix-block")),
        (done, 60 - done)
    );
    assert_eq!(next.steps()["imatrix.general"], "ran");
    assert_store_whole(forge.store());
}

#[test]
fn a_source_that_changes_while_it_is_used_is_noticed() {
    let forge = project();
    let mut child = long_build(&forge);
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = read_until(&mut lines, BLOCK_RAN);
    let len = std::fs::metadata(forge.path("model.gguf")).unwrap().len();
    corrupt_quietly(&forge.path("model.gguf"), len - 4);
    said.extend(lines.map(Result::unwrap));
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said:#?}");
    assert!(
        said.last().unwrap().contains("changed while it was being used"),
        "{said:#?}"
    );
    // What was made before holds for the bytes of then: the next build uses none of it.
    let next = build_well(&forge, &["recipe.toml", "imatrix.general"]);
    assert_eq!((next.ran_of("inspect-model"), next.hits_of("imatrix-block")), (1, 0));
    assert_eq!(next.ran_of("imatrix-block"), 60);
}

#[test]
fn an_edit_with_restored_size_and_time_is_noticed() {
    let forge = project();
    build_well(&forge, &[]);
    let len = std::fs::metadata(forge.path("prose.txt")).unwrap().len();
    corrupt_quietly(&forge.path("prose.txt"), len - 10);
    let built = build_well(&forge, &[]);
    assert_eq!((built.ran_of("corpus"), built.ran_of("tokens")), (1, 1));
    let blocks = (built.ran_of("imatrix-block"), built.hits_of("imatrix-block"));
    assert_eq!(blocks, (0, 2), "the end of the text is in no block");
    corrupt_quietly(&forge.path("prose.txt"), 30);
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran_of("corpus"), 1);
    assert!(built.ran_of("imatrix-block") > 0);
    corrupt_quietly(&forge.path("model.gguf"), 200_000);
    assert_eq!(build_well(&forge, &[]).ran_of("inspect-model"), 1);
    build_well(&forge, &[]).assert_idle();
}

#[test]
fn a_recipe_extends_another_whose_paths_stay_its_own() {
    let forge = Forge::new();
    furnish(&forge);
    forge.write(
        "base/common.toml",
        edited(BARE, "path = \"model.gguf\"", "path = \"../model.gguf\""),
    );
    forge.recipe("schema = 1\nname = \"child\"\nextends = \"base/common.toml\"\n[policy.p]\nmix = \"Q6_K\"\n");
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran_of("promote"), 1);
    let model = Model::open(&forge.path("out/child/p.gguf")).unwrap();
    assert_eq!(model.tensor("blk.0.ffn_up.weight").unwrap().info.ty.name(), "Q6_K");
    forge.write(
        "base/common.toml",
        edited(BARE, "path = \"model.gguf\"", "path = \"../prose.txt\""),
    );
    let run = forge.run(&["build"]).status(1);
    assert!(run.stderr.contains("prose.txt"), "{}", run.stderr);
}

#[test]
fn a_sweep_shares_what_its_candidates_have_in_common() {
    let forge = Forge::new();
    furnish(&forge);
    forge.recipe(&edited(
        BARE,
        "mix = \"Q4_K_M\"",
        "mix = [\"Q4_K_S\", \"Q4_K_M\", \"Q8_0\"]",
    ));
    let built = build_well(&forge, &[]);
    assert_eq!(built.ran_of("promote"), 3);
    // One tensor is quantized once for each type that it has somewhere.
    let types = |name: &str| -> Vec<(String, String)> {
        let model = Model::open(&forge.path("out/bare").join(name)).unwrap();
        let tensors = model.tensors().iter();
        tensors
            .map(|tensor| (tensor.info.name.clone(), tensor.info.ty.name().to_owned()))
            .collect()
    };
    let mut pairs: Vec<_> = ["p-Q4_K_S.gguf", "p-Q4_K_M.gguf", "p-Q8_0.gguf"].map(types).concat();
    pairs.retain(|(name, ty)| !name.contains("norm") && ty != "F16" && ty != "F32");
    let all = pairs.len();
    pairs.sort();
    pairs.dedup();
    assert!(pairs.len() < all);
    assert_eq!(built.ran_of("tensor"), pairs.len());
    // A value more in the list makes one candidate more.
    forge.recipe(&edited(
        BARE,
        "mix = \"Q4_K_M\"",
        "mix = [\"Q4_K_S\", \"Q4_K_M\", \"Q8_0\", \"COPY\"]",
    ));
    let built = build_well(&forge, &[]);
    assert_eq!((built.ran_of("promote"), built.ran_of("tensor")), (1, 0));
}

#[test]
fn merged_imatrices_are_what_the_formula_says() {
    let mut recipe = edited(
        RECIPE,
        "[policy.b]\nimatrix = \"general\"",
        "[policy.b]\nimatrix = \"both\"",
    );
    recipe.push_str(
        "\n[corpus.code]\nfiles = [\"code.txt\"]\n[imatrix.code]\ncorpus = \"code\"\nchunks = 2\ncontext = 32\n\
         [imatrix.both]\nmerge = [\"general\", \"code\"]\nweights = [1, 0.5]\nmode = \"sum\"\n",
    );
    let forge = project();
    let half = Weight::from_millionths(500_000).unwrap();
    for (index, (word, mode, weights)) in [
        ("sum", MergeMode::Sum, [Weight::ONE, half]),
        ("mean", MergeMode::Mean, [Weight::ONE, half]),
        ("max", MergeMode::Max, [Weight::ONE, Weight::ONE]),
    ]
    .into_iter()
    .enumerate()
    {
        let merge = edited(&recipe, "mode = \"sum\"", &format!("mode = \"{word}\""));
        let written = if weights[1] == half { "[1, 0.5]" } else { "[1, 1]" };
        forge.recipe(&edited(&merge, "[1, 0.5]", written));
        let built = build_well(&forge, &["recipe.toml", "promote.b"]);
        assert_eq!(built.ran_of("imatrix-merge"), 1, "{word}");
        assert_eq!(
            built.ran_of("imatrix-collect"),
            if index == 0 { 2 } else { 0 },
            "{word}"
        );
        let record = manifest(&forge.path("out/small/b.gguf"));
        let read = |step: &str| Imatrix::parse(&output_of(&forge, &record, step, "imatrix")).unwrap();
        let (general, code, both) = (read("imatrix.general"), read("imatrix.code"), read("imatrix.both"));
        assert_eq!((general.chunk_count, code.chunk_count), (4, 2));
        let expected = Imatrix::merge(&[(&general, weights[0]), (&code, weights[1])], mode).unwrap();
        assert_eq!(both.entries, expected.imatrix.entries, "{word}");
        assert_ne!(both.entries, general.entries, "{word}");
    }
}

#[test]
fn a_foreign_imatrix_is_read_and_joined() {
    let forge = project();
    build_well(&forge, &["recipe.toml", "promote.b"]);
    let record = manifest(&forge.path("out/small/b.gguf"));
    let own = Imatrix::parse(&output_of(&forge, &record, "imatrix.general", "imatrix")).unwrap();
    let importing = edited(
        RECIPE,
        "corpus = \"calibration\"\nchunks = 4\ncontext = 64\nblock = 2",
        "source = \"old\"",
    );
    let importing = edited(
        &importing,
        "[source.model]",
        "[source.old]\npath = \"old.dat\"\nkind = \"imatrix\"\n\n[source.model]",
    );
    let foreign = forge.sibling();
    furnish(&foreign);
    foreign.write("old.dat", own.to_dat().unwrap()).recipe(&importing);
    let built = build_well(&foreign, &["recipe.toml", "promote.b"]);
    assert_eq!(built.ran_of("imatrix-import"), 1);
    assert_eq!(built.ran_of("imatrix-block"), 0);
    let count = |forge: &Forge| {
        let model = Model::open(&forge.path("out/small/b.gguf")).unwrap();
        let count = model.metadata().get_u64("quantize.imatrix.entries_count");
        count.unwrap()
    };
    assert_eq!(count(&foreign), own.entries.len() as u64);
    assert_eq!(count(&foreign), count(&forge));
    build_well(&foreign, &["recipe.toml", "promote.b"]).assert_idle();
    // The same statistics in the other form, under the same name: the tensors are the same.
    foreign.write("old.dat", own.to_gguf().unwrap());
    let built = build_well(&foreign, &["recipe.toml", "promote.b"]);
    assert_eq!(built.ran_of("imatrix-import"), 1);
    let bytes = |forge: &Forge| Gguf::read(&forge.path("out/small/b.gguf")).tensors;
    assert_eq!(built.ran_of("tensor"), 0);
    assert_eq!(bytes(&foreign), bytes(&forge));
}

#[test]
fn experts_that_no_token_reached_are_reported() {
    let Some(model) = std::env::var_os("FORGE_TEST_MOE") else {
        eprintln!("SKIPPED: FORGE_TEST_MOE names no model with experts");
        return;
    };
    let forge = Forge::new();
    furnish(&forge);
    std::fs::copy(Path::new(&model), forge.path("moe.gguf")).unwrap();
    let one = edited(RECIPE, "\"model.gguf\"", "\"moe.gguf\"");
    let one = edited(&one, "chunks = 4\ncontext = 64\nblock = 2", "chunks = 1\ncontext = 16");
    let few = edited(&one, "[policy.b]\nimatrix = \"general\"", "[policy.b]\njoin = \"few\"");
    let few = format!("{few}\n[join.few]\nimatrix = \"general\"\nmin_count = 1000\n");
    forge.recipe(&few);
    let built = build_well(&forge, &["recipe.toml", "eval.quality", "promote.b"]);
    assert_eq!(
        built.ran_of("join"),
        1,
        "a join that is written takes the place of the one that is not"
    );
    assert_eq!(built.steps()["eval.quality/b"], "ran");
    let warnings: Vec<String> = built.of("warning").map(ToString::to_string).collect();
    assert!(warnings.iter().all(|line| line.contains("join.few")), "{warnings:#?}");
    let experts = warnings.iter().any(|line| line.contains("exps"));
    assert!(
        experts,
        "sixteen tokens reach no expert a thousand times: {warnings:#?}"
    );
    forge.recipe(&edited(
        &few,
        "min_count = 1000",
        "min_count = 1000\nunrouted = \"fail\"",
    ));
    let run = forge.run(&["build", "-j", "1", "recipe.toml", "join.few"]).status(1);
    assert!(
        run.stderr.contains("exps") && run.stderr.contains("1000"),
        "{}",
        run.stderr
    );

    // A legacy file has one count for all experts of a tensor, and fits all the same.
    let record = manifest(&forge.path("out/small/b.gguf"));
    let own = Imatrix::parse(&output_of(&forge, &record, "imatrix.general", "imatrix")).unwrap();
    assert!(own.entries.values().any(|entry| entry.counts.len() > 1));
    forge.write("old.dat", own.to_dat().unwrap());
    let recipe = edited(
        BARE,
        "\"model.gguf\"",
        "\"moe.gguf\"\n[source.old]\npath = \"old.dat\"\nkind = \"imatrix\"",
    );
    let recipe = edited(&recipe, "method = \"mix\"", "method = \"mix\"\nimatrix = \"old\"");
    forge.recipe(&format!("{recipe}\n[imatrix.old]\nsource = \"old\"\n"));
    let built = build_well(&forge, &[]);
    assert_eq!((built.ran_of("imatrix-import"), built.ran_of("join")), (1, 1));
    assert!(forge.path("out/bare/p.gguf").exists());
}

#[test]
fn corpora_that_cannot_be_used_are_refused_with_a_way_out() {
    let cases: [(&[u8], &str, &str); 4] = [
        (b"fine so far \xff", "is not UTF-8: byte 12 is 0xff", "iconv"),
        (
            b"ends inside a character \xe2\x82",
            "is not UTF-8: byte 24 is 0xe2",
            "iconv",
        ),
        (b"", "all texts of the corpus are empty", ""),
        (b"A few words.", "is too short: ", "lower `context`"),
    ];
    let forge = project();
    for (text, expected, hint) in cases {
        forge.write("prose.txt", text);
        let run = forge
            .run(&["build", "-j", "1", "recipe.toml", "imatrix.general"])
            .status(1);
        assert!(run.stderr.contains(expected), "{expected}: {}", run.stderr);
        assert!(run.stderr.contains(hint), "{hint}: {}", run.stderr);
    }
    std::fs::remove_file(forge.path("prose.txt")).unwrap();
    let run = forge.run(&["build", "-j", "1"]).status(1);
    assert!(run.stderr.contains("no file matches `prose.txt`"), "{}", run.stderr);
    assert!(run.stderr.contains("recipe.toml:8"), "{}", run.stderr);
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    let forge = project();
    build_well(&forge, &[]);
    for args in [
        &["build"][..],
        &["build", "--message-format", "json"],
        &["build", "-v"],
        &["plan"],
        &["plan", "--message-format", "json"],
        &["graph"],
        &["show"],
        &["check"],
        &["engine"],
        &["--help"],
    ] {
        for closed in ["stdout", "stderr"] {
            let mut command = forge.command(args);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            if closed == "stdout" {
                command.stdout(writer);
            } else {
                command.stderr(writer);
            }
            let run = Run::of(command.output().unwrap());
            assert!(!run.stderr.contains("panicked"), "{args:?}: {}", run.stderr);
            assert_eq!(run.status, Some(0), "{args:?} with {closed} closed");
        }
    }
}

#[test]
fn paths_that_cannot_be_written_are_environment_errors() {
    let forge = project();
    // A file in the way, for tests may run as a user who may write everywhere.
    for out in ["model.gguf/out", "model.gguf"] {
        let run = forge.run(&["build", "-j", "1", "--out", out]).status(3);
        assert!(run.stderr.contains("model.gguf"), "{}", run.stderr);
        assert!(
            run.stderr.contains("hint: ") && run.stderr.contains("--out"),
            "{}",
            run.stderr
        );
        assert!(
            !run.stderr.contains("ran "),
            "reported before the work begins: {}",
            run.stderr
        );
    }
    let run = forge
        .run(&["build", "-j", "1", "--cache-dir", "model.gguf/store"])
        .status(3);
    assert!(
        run.stderr.contains("hint: ") && run.stderr.contains("--cache-dir"),
        "{}",
        run.stderr
    );
}

#[test]
fn unknown_steps_recipes_and_options_are_errors() {
    let forge = project();
    let run = forge.run(&["build", "recipe.toml", "promote.c"]).status(2);
    assert!(run.stderr.contains("no step `promote.c`"), "{}", run.stderr);
    assert!(run.stderr.contains("did you mean `promote."), "{}", run.stderr);
    let run = forge.run(&["plan", "recipe.toml", "promote.c"]).status(2);
    assert!(run.stderr.contains("no step `promote.c`"), "{}", run.stderr);
    let run = forge.run(&["build", "other.toml"]).status(1);
    assert!(
        run.stderr.contains("can't read the recipe `other.toml`"),
        "{}",
        run.stderr
    );
    let _run = forge.run(&["build", "--bogus"]).status(2);
    let _run = forge.run(&["build", "-j", "0"]).status(2);
    std::fs::remove_file(forge.path("model.gguf")).unwrap();
    let run = forge.run(&["build"]).status(1);
    assert!(
        run.stderr.contains("`source.model`") && run.stderr.contains("model.gguf"),
        "{}",
        run.stderr
    );
    assert!(!forge.path("out").exists());
}
