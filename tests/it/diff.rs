//! `forge diff`: recipes, manifests, candidates, imatrices, policies; for people, for programs, and for git.

use std::process::Command;

use forge::gguf::Value as GgufValue;
use forge::store::Store;
use serde_json::Value;
use serde_json::json;

use crate::small_model;
use crate::small_model::InMemory;
use crate::small_model::RECIPE;
use crate::support::Forge;
use crate::support::Run;

fn diff(forge: &Forge, args: &[&str]) -> Value {
    let mut all = vec!["diff", "--format", "json"];
    all.extend(args);
    let run = forge.run(&all).success();
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {}", run.stdout))
}

fn part<'a>(diff: &'a Value, name: &str) -> &'a Value {
    let parts = diff["parts"].as_array().unwrap();
    parts
        .iter()
        .find(|part| part["name"] == name)
        .unwrap_or_else(|| panic!("no part `{name}` in {diff:#}"))
}

fn counts(diff: &Value, name: &str) -> [u64; 4] {
    let part = part(diff, name);
    ["added", "removed", "changed", "same"].map(|count| part[count].as_u64().unwrap())
}

fn rows(diff: &Value, name: &str) -> Vec<String> {
    let rows = part(diff, name)["rows"].as_array().unwrap().iter();
    rows.map(|row| row["what"].as_str().unwrap().to_owned()).collect()
}

/// A blob of a step's result, as a file.
fn output(forge: &Forge, step: &str, name: &str, to: &str) {
    let store = Store::open(forge.store()).unwrap();
    let last = store.last("small", step).unwrap();
    let result = store.lookup(&last.action).unwrap().unwrap();
    forge.write(to, store.read(&result.output(name).unwrap(), 1 << 30).unwrap());
}

#[test]
fn equal_things_say_nothing_and_exit_with_0() {
    let forge = small_model::project();
    forge.write(
        "same.toml",
        format!(
            "# only a comment\n{}",
            RECIPE.replace("context = 64", "context   =   64")
        ),
    );
    let _ = small_model::build_of(&forge).success();
    std::fs::copy(forge.path("small.gguf"), forge.path("copy.gguf")).unwrap();
    output(&forge, "imatrix.general", "imatrix", "imatrix.gguf");
    output(&forge, "policy.mix@Q4_0", "policy", "policy.json");
    for (a, b) in [
        ("recipe.toml", "same.toml"),
        ("small.gguf", "copy.gguf"),
        ("out/small/small-Q4_0.gguf", "out/small/small-Q4_0.gguf"),
        ("imatrix.gguf", "imatrix.gguf"),
        ("policy.json", "policy.json"),
        (
            "out/small/small-Q4_0.gguf.manifest.json",
            "out/small/small-Q4_0.gguf.manifest.json",
        ),
    ] {
        for format in ["text", "markdown"] {
            let run = forge.run(&["diff", "--exit-code", "--format", format, a, b]).success();
            assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""), "{a}");
        }
        assert_eq!(diff(&forge, &["--exit-code", a, b])["differ"], false, "{a}");
    }
}

#[test]
fn recipes_differ_by_what_they_mean() {
    let forge = small_model::project();
    forge.write(
        "other.toml",
        RECIPE
            .replace("mix = [\"Q4_0\", \"Q8_0\"]", "mix = [\"Q4_0\", \"Q5_0\"]")
            .replace("chunks = 4", "chunks = 5")
            .replace("name = \"small\"", "name = \"other\""),
    );
    let found = diff(&forge, &["recipe.toml", "other.toml"]);
    assert_eq!(found["kind"], "recipe");
    assert_eq!(rows(&found, "candidates"), ["small-Q8_0", "small-Q5_0"]);
    assert_eq!(counts(&found, "candidates"), [1, 1, 0, 1]);
    let run = forge
        .run(&["diff", "--exit-code", "recipe.toml", "other.toml"])
        .status(1);
    insta::assert_snapshot!(run.stdout, @r"
    --- recipe.toml
    +++ other.toml
    recipe: 1 changed, 2 unchanged
      ~ name: small -> other
    candidates: 1 added, 1 removed, 1 unchanged
      - small-Q8_0: policy.mix@Q8_0
      + small-Q5_0: policy.mix@Q5_0
    steps: 2 added, 2 removed, 2 changed, 6 unchanged
      ~ eval.quality: candidates.1: promote.small@Q8_0 -> promote.small@Q5_0
      ~ imatrix.general: chunks: 4 -> 5
      - policy.mix@Q8_0
      - promote.small@Q8_0
      + policy.mix@Q5_0
      + promote.small@Q5_0
    ");
    let run = forge
        .run(&[
            "diff",
            "--format",
            "markdown",
            "--rows",
            "1",
            "recipe.toml",
            "other.toml",
        ])
        .success();
    insta::assert_snapshot!(run.stdout, @r"
    ### `recipe.toml` and `other.toml`

    **recipe**: 1 changed, 2 unchanged

    | | what | before | after | |
    |---|---|---|---|---|
    | changed | name | small | other |  |

    **candidates**: 1 added, 1 removed, 1 unchanged

    | | what | before | after | |
    |---|---|---|---|---|
    | removed | small-Q8_0 | policy.mix@Q8_0 |  |  |

    and 1 more

    **steps**: 2 added, 2 removed, 2 changed, 6 unchanged

    | | what | before | after | |
    |---|---|---|---|---|
    | changed | eval.quality: candidates.1 | promote.small@Q8_0 | promote.small@Q5_0 |  |

    and 5 more
    ");
}

#[test]
fn candidates_differ_by_types_bytes_and_figures_of_the_same_chunks() {
    let forge = small_model::project();
    let _ = small_model::build_of(&forge).success();
    let (a, b) = ("out/small/small-Q4_0.gguf", "out/small/small-Q8_0.gguf");
    let found = diff(&forge, &[a, b]);
    assert_eq!(found["kind"], "candidate");
    let types = part(&found, "types")["rows"].as_array().unwrap();
    assert!(
        types
            .iter()
            .any(|row| row["before"] == "Q4_0" && row["after"] == "Q8_0"),
        "{types:#?}"
    );
    let tensors = part(&found, "tensors")["rows"].as_array().unwrap();
    let effects: Vec<f64> = tensors
        .iter()
        .map(|row| row["effect"].as_f64().unwrap().abs())
        .collect();
    assert!(effects.is_sorted_by(|a, b| a >= b), "{effects:?}");
    assert_eq!(rows(&found, "metadata"), ["general.file_type"]);
    let figures = part(&found, "figures")["rows"].as_array().unwrap();
    assert!(figures.len() >= 2, "{figures:#?}");
    assert_eq!(figures[0]["what"], "mean KLD, eval.quality of small");
    let paired = &figures[0]["paired"];
    let value = paired["value"].as_f64().unwrap();
    let by = |row: &str| figures[0][row].as_str().unwrap().parse::<f64>().unwrap();
    assert!((value - (by("after") - by("before"))).abs() < 2e-6, "{figures:#?}");
    let low = paired["ci95"][0].as_f64().unwrap();
    let high = paired["ci95"][1].as_f64().unwrap();
    assert!(low <= value && value <= high);
    assert!(value < 0.0, "eight bits are nearer to the reference than four");

    // The same without the store's knowledge: the files are read, and everything but figures is the same.
    std::fs::copy(forge.path(a), forge.path("a.gguf")).unwrap();
    std::fs::copy(forge.path(b), forge.path("b.gguf")).unwrap();
    let elsewhere = forge.with_store(&forge.path("no-store"));
    let read = diff(&elsewhere, &["a.gguf", "b.gguf"]);
    assert!(!forge.path("no-store").exists(), "nothing is made for a look");
    for name in ["file", "metadata", "types", "tensors"] {
        assert_eq!(part(&read, name), part(&found, name), "{name}");
    }
    // With the store, copies are known by what is in them.
    let copies = diff(&forge, &["a.gguf", "b.gguf"]);
    assert_eq!(part(&copies, "figures"), part(&found, "figures"));

    // One tensor's bytes, one key.
    let mut model = InMemory::small();
    model.change(&mut small_model::Random(3));
    model
        .metadata
        .set("general.name", &GgufValue::String(b"other".to_vec()))
        .unwrap();
    model.write(&forge.path("changed.gguf"));
    let found = diff(&forge, &["small.gguf", "changed.gguf"]);
    assert_eq!(counts(&found, "types")[2], 0);
    assert_eq!(counts(&found, "tensors")[2], 1);
    assert_eq!(part(&found, "tensors")["rows"][0]["note"], "different bytes");
    assert_eq!(rows(&found, "metadata"), ["general.name"]);
}

#[test]
fn manifests_policies_and_imatrices() {
    let forge = small_model::project();
    let _ = small_model::build_of(&forge).success();
    for (step, name, to) in [
        ("imatrix.general", "imatrix", "before.gguf"),
        ("policy.mix@Q4_0", "policy", "q4.json"),
        ("policy.mix@Q8_0", "policy", "q8.json"),
    ] {
        output(&forge, step, name, to);
    }
    let manifest = "out/small/small-Q4_0.gguf.manifest.json";
    std::fs::copy(forge.path(manifest), forge.path("before.json")).unwrap();
    forge.recipe(&RECIPE.replace("chunks = 4\nblock = 2", "chunks = 6\nblock = 2"));
    let _ = small_model::build_of(&forge).success();
    output(&forge, "imatrix.general", "imatrix", "after.gguf");

    let found = diff(&forge, &["before.gguf", "after.gguf"]);
    assert_eq!(found["kind"], "imatrix");
    assert_eq!(rows(&found, "imatrix"), ["chunks"]);
    let entries = part(&found, "entries")["rows"].as_array().unwrap();
    assert!(!entries.is_empty());
    for entry in entries {
        assert!(entry["note"].as_str().unwrap().contains("correlation 0.9"), "{entry}");
        // Half as many chunks more.
        let effect = entry["effect"].as_f64().unwrap();
        assert!(effect > 0.3 && effect < 0.8, "{entry}");
    }

    let found = diff(&forge, &["q4.json", "q8.json"]);
    assert_eq!(found["kind"], "policy");
    assert!(
        rows(&found, "types")
            .iter()
            .all(|row| row.ends_with("tensors") || row.ends_with("tensor"))
    );
    assert!(
        part(&found, "tensors")["rows"][0]["before"] == "Q6_K (mix embedding)",
        "{found:#}"
    );

    let found = diff(&forge, &["before.json", manifest]);
    assert_eq!(found["kind"], "manifest");
    assert_eq!(rows(&found, "steps"), ["imatrix.general: chunks"]);
    assert_eq!(counts(&found, "inputs")[2], 0);
    assert_eq!(counts(&found, "engines"), [0, 0, 0, 2]);
    assert!(
        rows(&found, "actions").contains(&"imatrix.general: inputs.chunks".to_owned()),
        "{found:#}"
    );
    assert!(counts(&found, "tensors")[2] > 0);
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let forge = small_model::project();
    forge
        .write("data.json", "{\"schema\": \"other.v1\"}")
        .write("torn.gguf", b"GGUF\x03\0\0\0");
    forge
        .write("old.dat", b"\x01\0\0\0\x05\0\0\0blk.0\xff\xff\xff\xff")
        .write("noise.bin", [0xff_u8, 0, 3, 7].repeat(99))
        .write("bad.toml", "schema = 9\n");
    for (a, b, status, words) in [
        (
            "recipe.toml",
            "small.gguf",
            2,
            "`recipe.toml` is a recipe, and `small.gguf` is a candidate",
        ),
        ("data.json", "data.json", 2, "a JSON document of schema `other.v1`"),
        (
            "noise.bin",
            "noise.bin",
            2,
            "is not a recipe, table of figures, manifest, candidate, imatrix or policy",
        ),
        ("torn.gguf", "torn.gguf", 1, "torn.gguf"),
        ("old.dat", "old.dat", 2, "it cannot be read as a legacy imatrix"),
        ("gone.toml", "recipe.toml", 2, "gone.toml"),
        ("bad.toml", "recipe.toml", 1, "bad.toml"),
    ] {
        let run = forge.run(&["diff", a, b]).status(status);
        assert!(run.stderr.contains(words), "{a}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{a}");
    }
    let _ = forge.run(&["diff", "recipe.toml"]).status(2);
    let _ = forge
        .run(&["diff", "recipe.toml", "recipe.toml", "recipe.toml"])
        .status(2);
}

/// Where git may be.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn git(forge: &Forge, args: &[&str]) -> Run {
    let mut command = Command::new("git");
    command.args([
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "init.defaultBranch=main",
    ]);
    command.args(args).current_dir(forge.dir()).env_clear();
    command.env("PATH", PATH).env("HOME", forge.dir());
    command
        .env("FORGE_CACHE_DIR", forge.store())
        .env("GIT_CONFIG_NOSYSTEM", "1");
    Run::of(command.output().unwrap()).success()
}

#[test]
fn git_uses_it_as_its_diff_driver() {
    let forge = Forge::new();
    forge.recipe(&format!(
        "extends = \"base.toml\"\n{}",
        &RECIPE.replace("[source.model]\npath = \"small.gguf\"\n", "")
    ));
    forge.write(
        "base.toml",
        "schema = 1\nname = \"base\"\n[source.model]\npath = \"small.gguf\"\n",
    );
    forge.write(".gitattributes", "recipe.toml diff=forge\nnew.toml diff=forge\n");
    let _ = git(&forge, &["init", "-q"]);
    let command = format!("{} diff --git", env!("CARGO_BIN_EXE_forge"));
    let _ = git(&forge, &["config", "diff.forge.command", &command]);
    let _ = git(&forge, &["add", "."]);
    let _ = git(&forge, &["commit", "-qm", "first"]);
    let text = std::fs::read_to_string(forge.path("recipe.toml")).unwrap();
    forge.recipe(&format!("# a comment\n{text}"));
    assert_eq!(git(&forge, &["diff"]).stdout, "", "a comment is no difference");
    forge.recipe(&text.replace("chunks = 4", "chunks = 7"));
    let said = git(&forge, &["diff"]).stdout;
    assert_eq!(
        said,
        "--- a/recipe.toml\n+++ b/recipe.toml\nsteps: 1 changed, 9 unchanged\n  ~ imatrix.general: chunks: 4 -> 7\n"
    );
    let _ = git(&forge, &["commit", "-qam", "second"]);
    std::fs::rename(forge.path("recipe.toml"), forge.path("new.toml")).unwrap();
    let _ = git(&forge, &["add", "-A"]);
    let said = git(&forge, &["diff", "--cached", "--no-renames"]).stdout;
    assert!(said.contains("deleted: a/recipe.toml was a recipe\n"), "{said}");
    assert!(said.contains("new: b/new.toml is a recipe\n"), "{said}");
    // What cannot be read is said, and git goes on.
    forge.write("new.toml", "schema = 9\n");
    let run = git(&forge, &["diff"]);
    assert!(run.stdout.contains("cannot be compared"), "{}", run.stdout);
    let log = git(&forge, &["log", "-p", "--ext-diff", "--format=%s"]).stdout;
    assert!(log.contains("chunks: 4 -> 7"), "{log}");
    let few = forge.run(&["diff", "--git", "a", "b"]).status(2);
    assert!(few.stderr.contains("seven arguments"), "{}", few.stderr);
}

#[test]
fn a_line_of_json_messages_contains_the_same_document() {
    let forge = small_model::project();
    forge.write("other.toml", RECIPE.replace("chunks = 4", "chunks = 5"));
    let run = forge
        .run(&["diff", "--message-format", "json", "recipe.toml", "other.toml"])
        .success();
    let line = &run.json_lines()[0];
    assert_eq!(line["reason"], "diff");
    assert_eq!(line["diff"], diff(&forge, &["recipe.toml", "other.toml"]));
    assert_eq!(line["diff"]["parts"][3]["rows"][0]["before"], json!("4"));
}

/// The comparisons of a difference: candidate, verdict, and why there is none.
fn verdicts(diff: &Value) -> Vec<[&str; 3]> {
    let comparisons = diff["comparisons"].as_array().unwrap().iter();
    comparisons
        .map(|of| ["candidate", "verdict", "unpaired"].map(|field| of[field].as_str().unwrap_or_default()))
        .collect()
}

/// Finer types by hand instead of the mix `Q4_0`, for the same candidate.
fn finer() -> String {
    RECIPE
        .replace(
            "[policy.mix]\nmethod = \"mix\"\nimatrix = \"general\"\nmix = [\"Q4_0\", \"Q8_0\"]\n",
            "[policy.mix]\nmethod = \"manual\"\nimatrix = \"general\"\nrules = [{ match = 'ffn_down', type = \"Q8_0\" }]\notherwise = \"Q8_0\"\n",
        )
        .replace("chunks = 2\nblock = 1", "chunks = 4\nblock = 1")
}

/// The mix alone, so that the candidate has the name that it has in [`finer`].
fn coarser() -> String {
    RECIPE
        .replace("mix = [\"Q4_0\", \"Q8_0\"]", "mix = \"Q4_0\"")
        .replace("chunks = 2\nblock = 1", "chunks = 4\nblock = 1")
}

#[test]
fn did_this_change_make_it_better_is_one_command() {
    let forge = small_model::project().env("PATH", PATH);
    forge.recipe(&coarser());
    let _ = git(&forge, &["init", "-q"]);
    let _ = git(&forge, &["add", "recipe.toml"]);
    let _ = git(&forge, &["commit", "-qm", "first"]);
    let pair = ["HEAD:recipe.toml", "recipe.toml"];
    let equal = forge.run(&["diff", "--exit-code", pair[0], pair[1]]).success();
    assert_eq!(equal.stdout, "", "nothing changed");
    forge.recipe(&finer());

    // Nothing was built: the recipes differ, and there is no store.
    let found = diff(&forge, &pair);
    assert_eq!(verdicts(&found), [] as [[&str; 3]; 0]);
    assert!(!forge.store().exists(), "nothing is made for a look");

    // The new one is built, the old one never was.
    let _ = small_model::build_of(&forge).success();
    let found = diff(&forge, &pair);
    assert_eq!(verdicts(&found), [["small", "unknown", "first-missing"]]);
    let said = forge.run(&["diff", pair[0], pair[1]]).success().stdout;
    assert!(
        said.contains("the store has no figures of `HEAD:recipe.toml`: it was never built"),
        "{said}"
    );
    assert!(said.contains("git worktree add DIR HEAD"), "{said}");

    // Both were built, into one folder: the old candidate is gone, its figures are not.
    forge.recipe(&coarser());
    let _ = small_model::build_of(&forge).success();
    forge.recipe(&finer());
    let _ = small_model::build_of(&forge).success();
    let found = diff(&forge, &pair);
    assert_eq!(verdicts(&found), [["small", "better", ""]]);
    let comparison = &found["comparisons"][0];
    assert_eq!(
        (&comparison["figure"], &comparison["chunks"]),
        (&json!("mean KLD"), &json!(4))
    );
    let value = |of: &Value| of.as_f64().unwrap();
    let by = value(&comparison["after"]) - value(&comparison["before"]);
    assert!(
        (value(&comparison["paired"]["value"]) - by).abs() < 1e-9,
        "{comparison:#}"
    );
    assert!(value(&comparison["paired"]["ci95"][1]) < 0.0, "{comparison:#}");
    assert_eq!(rows(&found, "figures")[0], "mean KLD, quality of small");
    let said = forge.run(&["diff", pair[0], pair[1]]).success().stdout;
    let last = said.lines().last().unwrap();
    assert!(
        last.starts_with("`small` is better in `quality`: mean KLD 0.0"),
        "{said}"
    );
    assert!(last.ends_with("paired on 4 chunks)"), "{said}");
    assert_eq!(verdicts(&diff(&forge, &[pair[1], pair[0]])), [["small", "worse", ""]]);
    let markdown = forge
        .run(&["diff", "--format", "markdown", pair[0], pair[1]])
        .success()
        .stdout;
    assert!(markdown.contains("\n`small` is better in `quality`"), "{markdown}");

    // More chunks of the same text: those that both have are paired.
    forge.recipe(&finer().replace("chunks = 4\nblock = 1", "chunks = 6\nblock = 2"));
    let _ = small_model::build_of(&forge).success();
    let found = diff(&forge, &pair);
    assert_eq!(found["comparisons"][0]["chunks"], 4);
    assert_eq!(verdicts(&found), [["small", "better", ""]]);
    // A comment and another name of the recipe change no figure.
    forge.recipe(&coarser().replace("name = \"small\"", "name = \"other\""));
    assert_eq!(verdicts(&diff(&forge, &pair)), [["small", "same", ""]]);
    // Other chunks are not compared.
    forge.recipe(&finer().replace(
        "context = 64\nchunks = 4\nblock = 1",
        "context = 32\nchunks = 4\nblock = 1",
    ));
    let _ = small_model::build_of(&forge).success();
    assert_eq!(verdicts(&diff(&forge, &pair)), [["small", "unknown", "other-text"]]);
    let said = forge.run(&["diff", pair[0], pair[1]]).success().stdout;
    assert!(said.contains("historical"), "{said}");
}

#[test]
fn tables_of_figures_are_compared_candidate_by_candidate() {
    let forge = small_model::project().env("PATH", PATH);
    forge.recipe(&coarser());
    let _ = small_model::build_of(&forge).success();
    std::fs::copy(forge.path("out/small/metrics.json"), forge.path("old.json")).unwrap();
    forge.recipe(&finer());
    let _ = small_model::build_of(&forge).success();
    let new = "out/small/metrics.json";
    let found = diff(&forge, &["old.json", new]);
    assert_eq!(found["kind"], "metrics");
    assert_eq!(counts(&found, "candidates"), [0, 0, 1, 0]);
    assert_eq!(verdicts(&found), [["small", "better", ""]]);
    let equal = forge.run(&["diff", "--exit-code", new, new]).success();
    assert_eq!(equal.stdout, "");
    // Without the store, there are only the tables.
    let elsewhere = forge.with_store(&forge.path("no-store"));
    let found = diff(&elsewhere, &["old.json", new]);
    assert_eq!(verdicts(&found), [["small", "unknown", "both-missing"]]);
    assert_eq!(counts(&found, "candidates"), [0, 0, 1, 0]);
    // Another engine's figures are historical, and never paired.
    let text = std::fs::read_to_string(forge.path("old.json")).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["rows"][0]["fingerprint"] = "e".repeat(64).into();
    forge.write("other.json", other.to_string());
    let said = forge.run(&["diff", "other.json", new]).success().stdout;
    assert!(said.contains("historical: measured by another engine"), "{said}");
    assert!(!said.contains("is better"), "{said}");
    let kinds = forge.run(&["diff", "old.json", "recipe.toml"]).status(2);
    assert!(
        kinds.stderr.contains("`old.json` is a table of figures"),
        "{}",
        kinds.stderr
    );
}

#[test]
fn files_of_git_revisions() {
    let forge = small_model::project().env("PATH", PATH);
    let sub = "sub/recipe.toml";
    let base = "schema = 1\nname = \"base\"\n[source.model]\npath = \"small.gguf\"\n";
    forge
        .write("sub/base.toml", base)
        .write("data.json", "{\"schema\": \"policy.x\"}");
    let source = "[source.model]\npath = \"small.gguf\"\n";
    forge.write(sub, format!("extends = \"base.toml\"\n{}", RECIPE.replace(source, "")));
    let _ = git(&forge, &["init", "-q"]);
    let _ = git(&forge, &["add", "."]);
    let _ = git(&forge, &["commit", "-qm", "first"]);
    // What it extends is read in that revision, not in the working tree.
    forge.write("sub/base.toml", base.replace("small.gguf", "large.gguf"));
    let found = diff(&forge, &["HEAD:sub/recipe.toml", sub]);
    assert_eq!(rows(&found, "sources"), ["source.model: path"]);
    assert_eq!(part(&found, "sources")["rows"][0]["before"], "small.gguf");
    // From a folder of the repository, its own files come first, then those from the root.
    for word in ["HEAD:recipe.toml", "HEAD:sub/recipe.toml", "HEAD:./recipe.toml"] {
        let run = forge
            .run(&["-C", "sub", "diff", "--exit-code", word, "recipe.toml"])
            .status(1);
        assert!(
            run.stdout.contains("small.gguf -> large.gguf"),
            "{word}: {}",
            run.stdout
        );
    }
    let other = git(&forge, &["rev-parse", "HEAD"]).stdout;
    let word = format!("{}:{sub}", other.trim());
    assert_eq!(diff(&forge, &[&word, "HEAD:sub/recipe.toml"])["differ"], false);
    for (word, words) in [
        ("HEAD~7:recipe.toml", "HEAD~7"),
        ("HEAD:gone.toml", "gone.toml"),
        ("nonsense:recipe.toml", "nonsense"),
    ] {
        let run = forge.run(&["diff", word, sub]).status(2);
        assert!(run.stderr.contains("cannot be read from git"), "{word}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{word}: {}", run.stderr);
    }
    // A file whose name has a colon is a file; a recipe with errors is one of that revision.
    std::fs::copy(forge.path(sub), forge.path("sub/HEAD:recipe.toml")).unwrap();
    assert_eq!(diff(&forge, &["sub/HEAD:recipe.toml", sub])["differ"], false);
    forge.write("sub/base.toml", "schema = 9\n");
    let _ = git(&forge, &["commit", "-qam", "broken"]);
    let run = forge
        .run(&["diff", "HEAD:sub/recipe.toml", "HEAD~1:sub/recipe.toml"])
        .status(1);
    assert!(run.stderr.contains("HEAD:sub/base.toml"), "{}", run.stderr);
    let outside = Forge::new().env("PATH", PATH);
    outside.recipe(RECIPE);
    let run = outside.run(&["diff", "HEAD:recipe.toml", "recipe.toml"]).status(2);
    assert!(run.stderr.contains("not a git repository"), "{}", run.stderr);
}
