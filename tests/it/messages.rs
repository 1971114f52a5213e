//! What the program says to programs, line by line against `cache-schema/message.v1.json`, and its help.

use std::collections::BTreeSet;
use std::sync::Mutex;

use forge::digest::ActionDigest;
use forge::observer::Event;
use serde_json::Value as Json;

use crate::cut::RECIPE;
use crate::cut::edited;
use crate::cut::project;
use crate::support;
use crate::support::Forge;
use crate::support::Run;

fn schema() -> Json {
    let text = std::fs::read_to_string(support::project().join("cache-schema/message.v1.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Holds lines against the schema, and remembers which kinds of lines there were.
struct Judge {
    validator: jsonschema::Validator,
    seen: Mutex<BTreeSet<String>>,
}

impl Judge {
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
    let judge = Judge::new();
    let forge = project();
    let build = ["build", "-j", "1"];

    judge.run(&forge, 0, &["plan"]);
    judge.run(&forge, 1, &["plan", "--check"]);
    let lines = judge.run(&forge, 0, &build);
    assert_eq!(reasons(&lines)[0], "build-started");
    assert_eq!(*reasons(&lines).last().unwrap(), "build-finished");
    let lines = judge.run(&forge, 0, &build);
    assert_eq!(lines.last().unwrap()["ran"], 0);
    assert!(
        judge
            .run(&forge, 0, &["plan", "--check"])
            .iter()
            .all(|line| line["status"] == "hit")
    );
    assert_eq!(judge.run(&forge, 0, &["check"])[0]["file"], "recipe.toml");
    assert_eq!(judge.run(&forge, 0, &["engine"]).len(), 2);
    judge.run(&forge, 0, &["init", "new"]);
    // Once more is refused.
    let lines = judge.run(&forge, 1, &["init", "new"]);
    assert_eq!(lines[0]["code"], "init::exists");

    // An imatrix of too few tokens.
    forge.recipe(&format!(
        "{RECIPE}\n[join.few]\nimatrix = \"general\"\nmin_count = 100000\n"
    ));
    let lines = judge.run(&forge, 0, &build);
    assert!(reasons(&lines).contains(&"warning"), "{lines:#?}");

    // A gate that is not met, a text that is none, a source that is none.
    forge.recipe(&format!("{RECIPE}\n[gate.good]\nrequire = [\"bytes < 1\"]\n"));
    let lines = judge.run(&forge, 1, &build);
    let last = lines.last().unwrap();
    assert_eq!(
        (&last["reason"], &last["level"]),
        (&"diagnostic".into(), &"error".into())
    );
    assert!(last["causes"].as_array().unwrap().len() == 2, "{last}");
    forge.write("prose.txt", b"\xff").recipe(RECIPE);
    let lines = judge.run(&forge, 1, &["build", "-j", "1", "--keep-going"]);
    assert!(lines.iter().any(|line| line["outcome"] == "skipped"));
    assert!(lines.iter().any(|line| line["outcome"] == "failed"));
    assert!(!lines.last().unwrap()["hints"].as_array().unwrap().is_empty());
    std::fs::remove_file(forge.path("prose.txt")).unwrap();
    let lines = judge.run(&forge, 1, &["plan"]);
    assert!(lines.iter().any(|line| line["status"] == "error"), "{lines:#?}");
    assert_eq!(judge.run(&forge, 1, &build)[0]["code"], "build::source");

    // A certificate that is true, and one that is not.
    let certificate = crate::certificate::sample().to_string();
    forge.write("certificate.json", &certificate);
    let lines = judge.run(&forge, 0, &["policy", "check", "certificate.json"]);
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
    let lines = judge.run(&forge, 1, &["policy", "check", "certificate.json"]);
    assert_eq!(lines[0]["code"], "policy::certificate");

    let lines = judge.run(&forge, 0, &["policy", "groups", "model.gguf"]);
    assert!(
        lines
            .iter()
            .all(|line| line["floors"].is_null() && line["bond"] == "alone")
    );
    let lines = judge.run(
        &forge,
        0,
        &["policy", "groups", "--show-floors", "--fuse", "attention", "model.gguf"],
    );
    let fused = lines.iter().find(|line| line["bond"] == "fused").unwrap();
    assert_eq!(fused["name"], "blk.0.{attn_k,attn_q,attn_v}.weight");
    assert_eq!(fused["floors"]["blk.0.attn_k.weight"]["floor"], "Q4_K");

    // Recipes with errors: each has its place. One with a warning, too.
    forge.recipe(&edited(
        &edited(RECIPE, "chunks = 4", "chunk = 4"),
        "\"Q4_K_M\"",
        "\"Q4_K_Z\"",
    ));
    for verb in ["build", "plan", "check", "show", "graph"] {
        let lines = judge.run(&forge, 1, &[verb]);
        assert_eq!(reasons(&lines), ["diagnostic", "diagnostic"], "{verb}");
        for line in &lines {
            assert_eq!(line["file"], "recipe.toml", "{verb}");
            assert!(line["line"].as_u64().unwrap() > 10, "{verb}");
        }
    }
    let unused = format!("{RECIPE}\n[corpus.unused]\nfiles = [\"code.txt\"]\n");
    forge.recipe(&unused);
    let lines = judge.run(&forge, 0, &["check"]);
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
        let lines = judge.run(&forge, status, args);
        assert_eq!(lines[0]["code"], code, "{args:?}");
    }
    forge.write("file", "in the way");
    let lines = judge.run(&forge, 3, &["build", "--cache-dir", "file/store"]);
    assert_eq!(lines[0]["code"], "environment::store");
    let lines = judge.run(&forge, 3, &["build", "--out", "file/out"]);
    assert_eq!(lines[0]["code"], "environment::output");
    forge.write("forge.toml", "nonsense = 1\n");
    let lines = judge.run(&forge, 3, &["build"]);
    assert!(
        lines[0]["file"].as_str().unwrap().ends_with("forge.toml"),
        "{}",
        lines[0]
    );

    // What takes two builds at once to see.
    let waiting = Event::Waiting {
        step: "imatrix.general".to_owned(),
        key: ActionDigest::of(b"action"),
        holder: "process 7".to_owned(),
    };
    let mut line = serde_json::to_value(&waiting).unwrap();
    line["schema"] = 1.into();
    judge.line(&line);

    let known: BTreeSet<String> = schema()["properties"]["reason"]["enum"]
        .as_array()
        .unwrap()
        .iter()
        .map(|reason| reason.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(*judge.seen.lock().unwrap(), known, "every line of the schema was seen");
}

#[test]
fn the_schema_refuses_what_is_not_said() {
    let judge = Judge::new();
    let good = serde_json::json!({ "schema": 1, "reason": "checked", "file": "recipe.toml" });
    judge.line(&good);
    let edits: [fn(&mut Json); 6] = [
        |line| line["schema"] = 2.into(),
        |line| line["reason"] = "chequed".into(),
        |line| line["file"] = 7.into(),
        |line| line["more"] = 7.into(),
        |line| {
            line.as_object_mut().unwrap().remove("file");
        },
        |line| {
            *line =
                serde_json::json!({ "schema": 1, "reason": "plan-step", "step": "a.b", "status": "hit", "key": null });
        },
    ];
    for edit in edits {
        let mut line = good.clone();
        edit(&mut line);
        assert!(!judge.validator.is_valid(&line), "{line}");
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
            "graph",
            "policy",
            "engine",
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
            "forge build recipe.toml",
            "0 done",
            "1 the recipe",
            "2 usage",
            "3 environment",
            "130 stopped",
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
            "recipe.toml",
            "promote.small",
            "eval.quality",
            "out/<recipe name>/",
            "--cache-dir",
            "--message-format",
        ],
    ),
    (
        &["plan", "--help"],
        &["[RECIPE]", "[STEP]...", "--check", "--out <DIR>", "-j, --jobs <N>"],
    ),
    (
        &["init", "--help"],
        &["[DIR]", "--model", "--corpus", "--name", "recipe.toml"],
    ),
    (&["check", "--help"], &["[RECIPE]..."]),
    (&["show", "--help"], &["--format", "toml", "json"]),
    (&["policy", "--help"], &["check", "groups"]),
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
fn help_tells_every_word() {
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
