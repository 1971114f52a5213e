//! What the program says to programs, line by line against `cache-schema/message.v3.json`, and its help.

use std::collections::BTreeSet;
use std::sync::Mutex;

use forge::digest::ActionDigest;
use forge::observer::Event;
use forge::observer::Phase;
use forge::observer::Unit;
use serde_json::Value as Json;

use crate::one_layer_project::RECIPE;
use crate::one_layer_project::edited;
use crate::one_layer_project::project;
use crate::support;
use crate::support::Forge;
use crate::support::Run;

fn schema() -> Json {
    let text = std::fs::read_to_string(support::project().join("cache-schema/message.v3.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Validates lines with the schema, and records which kinds of lines occurred.
struct LineChecker {
    validator: jsonschema::Validator,
    seen: Mutex<BTreeSet<String>>,
}

impl LineChecker {
    fn new() -> Self {
        let schema = schema();
        assert!(jsonschema::draft202012::meta::is_valid(&schema));
        Self {
            validator: jsonschema::draft202012::new(&schema).unwrap(),
            seen: Mutex::default(),
        }
    }

    fn line(&self, line: &Json) {
        let errors: Vec<String> = self
            .validator
            .iter_errors(line)
            .map(|error| error.to_string())
            .collect();
        assert!(errors.is_empty(), "{line}: {errors:#?}");
        self.seen
            .lock()
            .unwrap()
            .insert(line["reason"].as_str().unwrap().to_owned());
    }

    /// Runs a verb; every line of stdout must be one of the schema, and stderr empty.
    fn run(&self, forge: &Forge, status: i32, args: &[&str]) -> Vec<Json> {
        let mut all = args.to_vec();
        all.extend(["--message-format", "json"]);
        let run = forge.run(&all).status(status);
        assert_eq!(run.stderr, "", "{args:?}");
        let lines = run.json_lines();
        assert!(!lines.is_empty(), "{args:?}");
        for line in &lines {
            self.line(line);
        }
        lines
    }
}

fn reasons(lines: &[Json]) -> Vec<&str> {
    lines.iter().map(|line| line["reason"].as_str().unwrap()).collect()
}

#[test]
fn every_line_is_one_of_the_schema() {
    let checker = LineChecker::new();
    let forge = project();
    let build = ["build", "-j", "1"];

    checker.run(&forge, 0, &["plan"]);
    checker.run(&forge, 1, &["plan", "--check"]);
    let lines = checker.run(&forge, 0, &build);
    assert_eq!(reasons(&lines)[0], "build-started");
    assert_eq!(*reasons(&lines).last().unwrap(), "build-finished");
    let lines = checker.run(&forge, 0, &build);
    assert_eq!(lines.last().unwrap()["ran"], 0);
    assert!(
        checker
            .run(&forge, 0, &["plan", "--check"])
            .iter()
            .all(|line| line["reason"] == "plan-finished" || line["status"] == "hit")
    );
    // A candidate that the recipe no longer makes.
    forge.recipe(&RECIPE.replace("[promote.b]", "[promote.c]"));
    assert!(reasons(&checker.run(&forge, 0, &build)).contains(&"stale-outputs"));
    let lines = checker.run(&forge, 0, &["clean", "--stale", "--yes"]);
    assert_eq!(reasons(&lines), ["clean-plan", "cleaned"]);
    forge.recipe(RECIPE);
    checker.run(&forge, 0, &build);
    assert_eq!(checker.run(&forge, 0, &["check"])[0]["file"], "recipe.toml");
    assert_eq!(checker.run(&forge, 0, &["engine"]).len(), 2);
    checker.run(&forge, 0, &["init", "new"]);
    assert!(forge.path("new/recipe.toml").exists());
    // Once more is refused.
    let lines = checker.run(&forge, 1, &["init", "new"]);
    assert_eq!(lines[0]["code"], "init::exists");

    // An imatrix of too few tokens.
    forge.recipe(&format!(
        "{RECIPE}\n[join.few]\nimatrix = \"general\"\nmin_count = 100000\n"
    ));
    let lines = checker.run(&forge, 0, &build);
    assert!(reasons(&lines).contains(&"warning"), "{lines:#?}");

    // A gate that is not met, a text that is none, a source that is none.
    forge.recipe(&format!("{RECIPE}\n[gate.good]\nrequire = [\"bytes < 1\"]\n"));
    let lines = checker.run(&forge, 1, &build);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["reason"], &last["level"]),
        (&"diagnostic".into(), &"error".into())
    );
    assert!(last["causes"].as_array().unwrap().len() == 2, "{last}");
    forge.write("prose.txt", b"\xff").recipe(RECIPE);
    let lines = checker.run(&forge, 1, &["build", "-j", "1", "--keep-going"]);
    assert!(lines.iter().any(|line| line["outcome"] == "skipped"));
    assert!(lines.iter().any(|line| line["outcome"] == "failed"));
    assert!(!lines.last().unwrap()["hints"].as_array().unwrap().is_empty());
    std::fs::remove_file(forge.path("prose.txt")).unwrap();
    let lines = checker.run(&forge, 1, &["plan"]);
    assert!(lines.iter().any(|line| line["status"] == "failed"), "{lines:#?}");
    let lines = checker.run(&forge, 1, &build);
    assert!(lines.iter().any(|line| line["code"] == "build::problem"), "{lines:#?}");

    // A certificate that is true, and one that is not.
    let certificate = crate::certificate::sample().to_string();
    forge.write("certificate.json", &certificate);
    let lines = checker.run(&forge, 0, &["policy", "check", "certificate.json"]);
    assert_eq!(
        lines
            .iter()
            .map(|line| line["verdict"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["optimal", "below-minimum", "optimal", "gap"]
    );
    forge.write(
        "certificate.json",
        certificate.replacen("\"constant\":4096", "\"constant\":4097", 1),
    );
    let lines = checker.run(&forge, 1, &["policy", "check", "certificate.json"]);
    assert_eq!(lines[0]["code"], "policy::certificate");

    let lines = checker.run(&forge, 0, &["policy", "groups", "model.gguf"]);
    assert!(
        lines
            .iter()
            .all(|line| line["floors"].is_null() && line["grouping"] == "alone")
    );
    let lines = checker.run(
        &forge,
        0,
        &["policy", "groups", "--show-floors", "--fuse", "attention", "model.gguf"],
    );
    let fused = lines.iter().find(|line| line["grouping"] == "fused").unwrap();
    assert_eq!(fused["name"], "blk.0.{attn_k,attn_q,attn_v}.weight");
    assert_eq!(fused["floors"]["blk.0.attn_k.weight"]["floor"], "Q4_K");

    // Types of any model, and the figures of the build above.
    let lines = checker.run(&forge, 0, &["policy", "show", "model.gguf"]);
    assert_eq!(lines[0]["classes"][0]["class"], "token_embd");
    let lines = checker.run(&forge, 0, &["policy", "show", "out/small/b.gguf"]);
    assert_eq!(lines[0]["tensors"][0]["why"]["kind"], "mix");
    let lines = checker.run(&forge, 0, &["policy", "diff", "model.gguf", "out/small/b.gguf"]);
    assert_eq!(lines[0]["diff"]["kind"], "policy");
    let lines = checker.run(
        &forge,
        0,
        &["policy", "chart", "--svg", "chart.svg", "out/small/metrics.json"],
    );
    assert_eq!(lines[0]["series"].as_array().unwrap().len(), 2);
    let lines = checker.run(&forge, 2, &["policy", "show", "nothing"]);
    assert_eq!(lines[0]["code"], "usage::no-such-candidate");

    // Recipes with errors: each has its place. One with a warning, too.
    forge.recipe(&edited(
        &edited(RECIPE, "chunks = 4", "chunk = 4"),
        "\"Q4_K_M\"",
        "\"Q4_K_Z\"",
    ));
    for verb in ["build", "plan", "check", "show", "graph"] {
        let lines = checker.run(&forge, 1, &[verb]);
        assert_eq!(reasons(&lines), ["diagnostic", "diagnostic"], "{verb}");
        for line in &lines {
            assert_eq!(line["file"], "recipe.toml", "{verb}");
            assert!(line["line"].as_u64().unwrap() > 10, "{verb}");
        }
    }
    let unused = format!("{RECIPE}\n[corpus.unused]\nfiles = [\"code.txt\"]\n");
    forge.recipe(&unused);
    let lines = checker.run(&forge, 0, &["check", "--no-files"]);
    assert_eq!(lines.last().unwrap()["reason"], "checked");

    // What is wrong with the command line or the machine.
    forge.write("prose.txt", "text").recipe(RECIPE);
    for (status, code, args) in [
        (2, "usage", &["build", "--bogus"][..]),
        (2, "usage", &["build", "-j", "0"]),
        (2, "usage", &["bild"]),
        (2, "usage::no-such-step", &["build", "recipe.toml", "promote.nobody"]),
        (1, "recipe::unreadable", &["check", "nothing.toml"]),
    ] {
        let lines = checker.run(&forge, status, args);
        assert_eq!(lines[0]["code"], code, "{args:?}");
    }
    forge.write("file", "in the way");
    let lines = checker.run(&forge, 3, &["build", "--cache-dir", "file/store"]);
    assert_eq!(lines[0]["code"], "environment::store");
    forge.write("prose.txt", crate::one_layer_project::text("calibration-prose.txt"));
    let lines = checker.run(&forge, 3, &["build", "--out", "file/out"]);
    assert!(
        lines.iter().any(|line| line["code"] == "environment::output"),
        "{lines:#?}"
    );
    forge.write("forge.toml", "nonsense = 1\n");
    let lines = checker.run(&forge, 3, &["build"]);
    assert!(
        lines[0]["file"].as_str().unwrap().ends_with("forge.toml"),
        "{}",
        lines[0]
    );

    // The store.
    let other = crate::quick_project::project();
    checker.run(&other, 0, &["build", "-j", "1", "--out", "out"]);
    for args in [
        &["cache", "dir"][..],
        &["cache", "size"],
        &["cache", "list"],
        &["cache", "pin", "out/c0.gguf"],
        &["cache", "pin"],
        &["cache", "unpin", "c0.gguf"],
        &["cache", "verify"],
        &["cache", "clean"],
        &["cache", "gc", "--dry-run"],
    ] {
        checker.run(&other, 0, args);
    }
    let lines = checker.run(&other, 2, &["cache", "gc", "--max-size", "0B", "--also-newest"]);
    assert_eq!(lines.last().unwrap()["code"], "usage::unconfirmed");
    let blobs = crate::small_model::sharded(other.store(), "cas-v1");
    for path in blobs.into_values().chain(
        crate::small_model::sharded(other.store(), "actions-v1")
            .into_values()
            .take(1),
    ) {
        crate::crash::damage(&path, crate::crash::Damage::Flip, &mut crate::small_model::Random(4));
    }
    let lines = checker.run(&other, 1, &["cache", "verify"]);
    assert!(lines.len() > 10);
    checker.run(&other, 0, &["build", "-j", "1", "--out", "out"]);
    let lines = checker.run(
        &other,
        0,
        &["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"],
    );
    assert_eq!(lines.last().unwrap()["reason"], "cache-gc");
    assert_eq!(
        checker.run(&other, 1, &["cache", "unpin", "c0.gguf"])[0]["code"],
        "cache::not-pinned"
    );
    std::fs::remove_file(forge.path("forge.toml")).unwrap();

    // What is on record, and what differs.
    checker.run(&forge, 0, &["log"]);
    checker.run(&forge, 0, &["log", "show"]);
    let steps = checker.run(&forge, 0, &["log", "show"])[0]["record"]["steps"].clone();
    let step = steps[0]["step"].as_str().unwrap();
    checker.run(&forge, 0, &["log", "show", "last", step]);
    checker.run(&forge, 2, &["log", "show", "nothing"]);
    checker.run(&forge, 0, &["why"]);
    checker.run(&forge, 0, &["why", "imatrix.general"]);
    checker.run(&forge, 2, &["why", "imatrix.nobody"]);
    checker.run(&forge, 0, &["table", "--columns", "candidate,kld", "--sort", "-kld"]);
    checker.run(&forge, 2, &["table", "nothing.json"]);
    checker.run(&forge, 0, &["diff", "recipe.toml", "recipe.toml"]);
    checker.run(&forge, 2, &["diff", "recipe.toml", "prose.txt", "recipe.toml"]);

    // Locks, records and signatures.
    forge.write("prose.txt", crate::one_layer_project::text("calibration-prose.txt"));
    checker.run(&forge, 0, &build);
    checker.run(&forge, 0, &["lock"]);
    checker.run(&forge, 0, &["lock", "--check"]);
    checker.run(&forge, 0, &["build", "--frozen"]);
    checker.run(&forge, 0, &["key", "new", "key"]);
    checker.run(&forge, 0, &["key", "show", "key.pub"]);
    checker.run(&forge, 0, &["sign", "out/small/a.gguf", "--key", "key"]);
    checker.run(&forge, 0, &["bundle", "out/small/a.gguf", "-o", "a.intoto.jsonl"]);
    checker.run(&forge, 0, &["verify", "--key", "key.pub", "out/small/a.gguf"]);
    checker.run(&forge, 1, &["verify", "--key", "key.pub"]);
    let lines = checker.run(&forge, 0, &["check", "--twice", "policy.a"]);
    assert_eq!(lines.last().unwrap()["actions"], 1);
    let lines = checker.run(&forge, 0, &["reproduce", "-j", "1", "out/small/a.gguf"]);
    assert_eq!(lines.last().unwrap()["verdict"], "identical");
    forge.write("prose.txt", "another text").write("model.gguf", "none");
    let lines = checker.run(&forge, 3, &["reproduce", "out/small/a.gguf"]);
    assert_eq!(reasons(&lines), ["missing", "missing", "diagnostic"]);
    checker.run(&forge, 1, &["lock", "--check"]);

    // What takes an engine that is not deterministic, or another one.
    let differing = Event::Nondeterminism {
        step: "promote.a".to_owned(),
        kind: "tensor",
        key: ActionDigest::of(b"action"),
        part: "blk.0.attn_k.weight".to_owned(),
        output: "tensor".to_owned(),
        at: Some(7),
        kept: Some("a".to_owned()),
        differing: None,
    };
    let mut line = serde_json::to_value(&differing).unwrap();
    line["schema"] = 3.into();
    checker.line(&line);

    // What takes two builds at once to see.
    let waiting = Event::Waiting {
        step: "imatrix.general".to_owned(),
        key: ActionDigest::of(b"action"),
        holder: "process 7".to_owned(),
    };
    let mut line = serde_json::to_value(&waiting).unwrap();
    line["schema"] = 3.into();
    checker.line(&line);

    // What takes a step of hours to see.
    let metrics = std::fs::read(forge.path("out/small/metrics.json")).unwrap();
    let partial = Event::PartialTable {
        step: "metrics.all".to_owned(),
        done: 1,
        total: 2,
        table: serde_json::from_slice(&metrics).unwrap(),
    };
    let mut line = serde_json::to_value(&partial).unwrap();
    line["schema"] = 3.into();
    checker.line(&line);

    // What takes a search, and a build that is worth measuring the machine for.
    for event in [
        Event::MeasuringSpeeds,
        Event::PhaseStarted {
            step: "policy.best".to_owned(),
            phase: Phase::Screen,
            what: "first measurements".to_owned(),
            work: 16.5,
            is_final: true,
        },
        Event::Progress {
            step: "policy.best".to_owned(),
            unit: Unit::Chunks,
            done: 1,
            total: 16,
            phase: Some(Phase::Screen),
            fraction: Some(0.06),
            left_ms: Some(1000),
            build_left_ms: Some(2000),
        },
    ] {
        let mut line = serde_json::to_value(&event).unwrap();
        line["schema"] = 3.into();
        checker.line(&line);
    }

    let known: BTreeSet<String> = schema()["properties"]["reason"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| reason.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        *checker.seen.lock().unwrap(),
        known,
        "every line of the schema was seen"
    );
}

#[test]
fn the_schema_rejects_invalid_messages() {
    let checker = LineChecker::new();
    let good = serde_json::json!({ "schema": 3, "reason": "checked", "file": "recipe.toml" });
    checker.line(&good);
    let edits: [fn(&mut Json); 6] = [
        |line| line["schema"] = 1.into(),
        |line| line["reason"] = "chequed".into(),
        |line| line["file"] = 7.into(),
        |line| line["more"] = 7.into(),
        |line| {
            line.as_object_mut().unwrap().remove("file");
        },
        |line| {
            *line =
                serde_json::json!({ "schema": 3, "reason": "plan-step", "step": "a.b", "status": "hit", "key": null });
        },
    ];
    for edit in edits {
        let mut line = good.clone();
        edit(&mut line);
        assert!(!checker.validator.is_valid(&line), "{line}");
    }
}

/// Everything that can be said to a verb, and that its help must tell.
const HELP: &[(&[&str], &[&str])] = &[
    (
        &["--help"],
        &[
            "init",
            "check",
            "show",
            "plan",
            "build",
            "why",
            "table",
            "diff",
            "log",
            "graph",
            "policy",
            "engine",
            "schema",
            "lock",
            "reproduce",
            "verify",
            "sign",
            "key",
            "bundle",
            "--directory",
            "--cache-dir",
            "--quiet",
            "--verbose",
            "--color",
            "--no-progress",
            "--message-format",
            "--version",
            "FORGE_CACHE_DIR",
            "FORGE_COLOR",
            "NO_COLOR",
            "forge init",
            "forge build",
            "0  success",
            "1  error in the recipe",
            "2  usage",
            "3  error in the environment",
            "130 after SIGINT",
            "143 after SIGTERM",
            "129 after SIGHUP",
        ],
    ),
    (
        &["build", "--help"],
        &[
            "[RECIPE]",
            "[STEP]...",
            "--out <DIR>",
            "-j, --jobs <N>",
            "-k, --keep-going",
            "--frozen",
            "--lock <FILE>",
            "--sign <KEY>",
            "--trace <FILE>",
            "recipe.toml",
            "promote.small",
            "eval.quality",
            "out/<recipe name>/",
            "--cache-dir",
            "--message-format",
        ],
    ),
    (
        &["why", "--help"],
        &[
            "[STEP]",
            "[TENSOR]",
            "--recipe <RECIPE>",
            "--no-read",
            "--out <DIR>",
            "promote.small",
            "ffn_down",
            "forge why -f",
        ],
    ),
    (
        &["table", "--help"],
        &[
            "[RECIPE|FILE|MANIFEST]...",
            "--columns <NAME,...>",
            "--sort <[-]NAME>",
            "--format",
            "text",
            "markdown",
            "csv",
            "json",
            "--out <DIR>",
            "historical",
        ],
    ),
    (
        &["diff", "--help"],
        &[
            "--exit-code",
            "--format",
            "text",
            "json",
            "markdown",
            "--rows <N>",
            "--git",
            "git config diff.forge.command",
        ],
    ),
    (&["log", "--help"], &["show", "-n, --number <N>"]),
    (&["log", "show", "--help"], &["[RUN]", "[STEP]", "last"]),
    (
        &["plan", "--help"],
        &["[RECIPE]", "[STEP]...", "--check", "--out <DIR>", "-j, --jobs <N>"],
    ),
    (
        &["init", "--help"],
        &["[DIR]", "--model", "--corpus", "--held-out", "--name", "recipe.toml"],
    ),
    (
        &["check", "--help"],
        &["[RECIPE|MANIFEST]...", "--twice", "STEP", "-f, --recipe"],
    ),
    (
        &["lock", "--help"],
        &["[RECIPE]", "--check", "--lock <FILE>", "--frozen"],
    ),
    (
        &["reproduce", "--help"],
        &[
            "<MANIFEST|GGUF|STEP>",
            "--search <DIR>",
            "--any-engine",
            "--store <DIR>",
            "--resume",
            "--out <DIR>",
            "identical",
            "with 3",
        ],
    ),
    (
        &["verify", "--help"],
        &[
            "[PATH|RECIPE|DIR|STEP]...",
            "--key <PUB>",
            "--out <DIR>",
            "sha256",
            "with 1",
        ],
    ),
    (
        &["sign", "--help"],
        &["[PATH|RECIPE|DIR|STEP]...", "--key <KEY>", "openssl", "DSSE"],
    ),
    (&["key", "--help"], &["new", "show", "0600"]),
    (
        &["bundle", "--help"],
        &["-o, --output <FILE>", "--format", "sigstore", "in-toto"],
    ),
    (&["show", "--help"], &["--format", "toml", "json"]),
    (
        &["policy", "--help"],
        &["check", "groups", "export", "import", "show", "diff", "chart"],
    ),
    (
        &["policy", "export", "--help"],
        &[
            "<CANDIDATE>",
            "--format",
            "tensors",
            "rules",
            "forgequant",
            "--tensor-type-file",
        ],
    ),
    (
        &["policy", "import", "--help"],
        &["<FILE>", "--name <NAME>", "--format", "forgequant"],
    ),
    (
        &["policy", "show", "--help"],
        &[
            "<CANDIDATE|POLICY|GGUF>",
            "--by",
            "class",
            "layer",
            "tensor",
            "-f, --recipe <RECIPE>",
            "--out <DIR>",
        ],
    ),
    (
        &["policy", "diff", "--help"],
        &["<A>", "<B>", "--exit-code", "--format", "--rows <N>", "markdown"],
    ),
    (
        &["policy", "chart", "--help"],
        &[
            "[RECIPE|METRICS]...",
            "--eval <NAME>",
            "--svg <FILE>",
            "--ascii",
            "--width <N>",
            "--height <N>",
        ],
    ),
    (
        &["policy", "groups", "--help"],
        &["<MODEL>", "--imatrix <FILE>", "--fuse <RULE>", "--show-floors", "--qat"],
    ),
    (
        &["policy", "check", "--help"],
        &["<CERTIFICATE>...", "--states <N>", "Exit status 1"],
    ),
    (&["graph", "--help"], &["--format", "dot", "mermaid", "json"]),
];

#[test]
fn help_lists_every_word() {
    let forge = Forge::new();
    for (args, words) in HELP {
        let run = forge.run(args).success();
        assert_eq!(run.stderr, "");
        for word in *words {
            assert!(
                run.stdout.contains(word),
                "{args:?} does not tell `{word}`:\n{}",
                run.stdout
            );
        }
        for line in run.stdout.lines() {
            assert!(line.chars().count() <= 100, "{args:?}: {line}");
        }
    }
    let short = forge.run(&["-h"]).success();
    assert!(
        short.stdout.contains("Build quantized language models"),
        "{}",
        short.stdout
    );
    let Run { stdout, .. } = forge.run(&["--version"]).success();
    assert_eq!(stdout, format!("forge {}\n", env!("CARGO_PKG_VERSION")));
    let nothing = forge.run(&[]).status(2);
    assert!(nothing.stderr.contains("Usage: forge"), "{}", nothing.stderr);
}
