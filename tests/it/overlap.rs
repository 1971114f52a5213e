//! Evaluations on text that candidates were calibrated on: refused by the content of the texts before anything runs, or allowed by
//! the recipe and marked.

use serde_json::Value as Json;

use crate::small_model;
use crate::small_model::RECIPE;
use crate::support::Forge;
use crate::support::Run;

/// Words that no two seeds have in common.
fn words(seed: usize, count: usize) -> Vec<String> {
    (0..count)
        .map(|at| format!("w{seed}x{}", at * 7919 % 100_003))
        .collect()
}

fn text(seed: usize, count: usize) -> String {
    words(seed, count).join(" ")
}

/// A project whose texts have nothing in common. Its model is not needed for what is refused.
fn project() -> Forge {
    let forge = small_model::project();
    forge.write("prose.txt", text(1, 1000));
    forge.write("code.txt", text(2, 1000));
    forge.write("held-out.txt", text(3, 1000));
    forge
}

fn edited(recipe: &str, from: &str, to: &str) -> String {
    assert!(recipe.contains(from), "{from}");
    recipe.replace(from, to)
}

/// The events of a build that say that something ran.
fn started(events: &[Json]) -> Vec<&Json> {
    let ran = |event: &&Json| event["reason"] == "step-started" || event["reason"] == "action-finished";
    events.iter().filter(ran).collect()
}

/// Asserts that `check`, `plan` and `build` refuse a recipe before anything runs, with one error for each of these lists of words.
fn assert_refused(forge: &Forge, errors: &[&[&str]]) {
    for command in ["check", "plan"] {
        let run = forge
            .run(&[command, "--message-format", "json", "recipe.toml"])
            .status(1);
        assert_errors(&run, errors, command);
    }
    let run = small_model::build_of(forge).status(1);
    assert_errors(&run, errors, "build");
    assert!(started(&run.json_lines()).is_empty(), "{}", run.stdout);
    let outputs = std::fs::read_dir(forge.path(small_model::OUT)).map_or(0, Iterator::count);
    assert_eq!(outputs, 0);
    assert!(small_model::sharded(forge.store(), "actions-v1").is_empty());
}

fn assert_errors(run: &Run, errors: &[&[&str]], command: &str) {
    let lines = run.json_lines();
    let found: Vec<&Json> = lines
        .iter()
        .filter(|line| line["code"] == "recipe::eval-on-calibration")
        .collect();
    assert_eq!(found.len(), errors.len(), "{command}: {}{}", run.stdout, run.stderr);
    for (found, words) in found.iter().zip(errors) {
        assert_eq!(
            (&found["level"], &found["file"]),
            (&"error".into(), &"recipe.toml".into())
        );
        let text = found["rendered"].as_str().unwrap();
        let whole = [
            found["causes"].to_string(),
            found["message"].to_string(),
            text.to_owned(),
        ]
        .concat();
        for word in *words {
            assert!(whole.contains(word), "{command}: {word} is not in {whole}");
        }
        for way_out in ["evaluate on text", "`allow_overlap = true` in `[eval.quality]`"] {
            assert!(found["hints"].to_string().contains(way_out), "{command}: {text}");
        }
    }
}

#[test]
fn one_corpus_for_both_is_refused() {
    let forge = project();
    forge.recipe(&edited(RECIPE, "corpus = \"held-out\"", "corpus = \"calibration\""));
    assert_refused(
        &forge,
        &[&[
            "the corpus `calibration`",
            "the imatrix of `small-Q4_0` and `small-Q8_0`",
        ]],
    );
    // That is known without the texts.
    std::fs::remove_file(forge.path("prose.txt")).unwrap();
    let run = forge
        .run(&["check", "--message-format", "json", "recipe.toml"])
        .status(1);
    assert_errors(&run, &[&["the corpus `calibration`"]], "check");
}

#[test]
fn one_file_in_two_corpora_is_refused() {
    let forge = project();
    forge.recipe(&edited(
        RECIPE,
        "[\"held-out.txt\"]",
        "[\"held-out.txt\", \"prose.txt\"]",
    ));
    assert_refused(
        &forge,
        &[&["`held-out` overlaps with `calibration`", "both contain `prose.txt`"]],
    );
}

#[test]
fn a_copy_of_a_file_is_refused() {
    let forge = project();
    forge.write("copy.txt", text(1, 1000));
    forge.recipe(&edited(RECIPE, "[\"held-out.txt\"]", "[\"copy.txt\"]"));
    assert_refused(&forge, &[&["`copy.txt` has the same content as `prose.txt`"]]);
}

#[test]
fn most_of_a_text_in_another_order_is_refused() {
    let forge = project();
    let mut sentences: Vec<String> = words(1, 800).chunks(30).map(|words| words.join(" ")).collect();
    sentences.reverse();
    forge.write(
        "held-out.txt",
        format!("{}. {}", sentences.join(".\n"), text(3, 200)).to_uppercase(),
    );
    forge.recipe(RECIPE);
    assert_refused(&forge, &[&[" % of `held-out.txt` is also in `prose.txt`"]]);
}

#[test]
fn a_passage_as_long_as_a_chunk_is_refused() {
    let forge = project();
    let passage = words(1, 500)[300..360].join("  \n");
    forge.write("held-out.txt", format!("{} {passage} {}", text(3, 3000), text(4, 3000)));
    forge.recipe(RECIPE);
    let begins = format!("begins \\\"{}", words(1, 310)[300..].join(" "));
    assert_refused(
        &forge,
        &[&["`held-out.txt` and `prose.txt` share a passage of 60 words", &begins]],
    );
    // In chunks of more tokens, that is a quotation.
    forge.recipe(&edited(RECIPE, "context = 64\nchunks = 2", "context = 512\nchunks = 2"));
    let _ = forge.run(&["check"]).success();
}

#[test]
fn texts_behind_merged_imatrices_and_policies_count_and_all_are_reported() {
    let forge = project();
    forge.write("held-out.txt", text(2, 1000));
    let merged = "[corpus.code]\nfiles = [\"code.txt\"]\n[imatrix.code]\ncorpus = \"code\"\ncontext = 64\n\
                  [imatrix.both]\nmerge = [\"general\", \"code\"]\n[policy.mix]\n";
    let recipe = edited(RECIPE, "[policy.mix]\n", merged);
    let recipe = edited(&recipe, "imatrix = \"general\"\nmix", "imatrix = \"both\"\nmix");
    forge.recipe(&recipe);
    let by_imatrix: &[&str] = &["`held-out.txt` has the same content as `code.txt`", "the imatrix of"];
    assert_refused(&forge, &[by_imatrix]);
    let measured = "[corpus.more]\nfiles = [\"code.txt\"]\n[policy.best]\ncorpus = \"more\"\nbudget = \"6 bpw\"\n\
                    [promote.best]\npolicy = \"best\"\n[eval.quality]\n";
    let recipe = edited(&recipe, "[eval.quality]\n", measured);
    forge.recipe(&edited(&recipe, "[\"small\"]", "[\"small\", \"best\"]"));
    assert_refused(
        &forge,
        &[by_imatrix, &["`held-out` overlaps with `more`", "the policy of `best`"]],
    );
}

#[test]
fn texts_of_imported_imatrices_are_not_known() {
    let forge = project();
    forge.write("held-out.txt", text(1, 1000));
    let recipe = edited(
        RECIPE,
        "corpus = \"calibration\"\ncontext = 64\nchunks = 4\nblock = 2",
        "source = \"foreign\"",
    );
    forge.recipe(&format!("{recipe}\n[source.foreign]\npath = \"foreign.gguf\"\n"));
    // That the file is missing is all that is wrong.
    let run = forge.run(&["check"]).status(1);
    assert_eq!(run.stderr.matches("error[").count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("foreign.gguf"), "{}", run.stderr);
}

#[test]
fn unrelated_texts_of_one_kind_pass() {
    let forge = project();
    for name in ["calibration-prose.txt", "calibration-code.txt", "held-out.txt"] {
        std::fs::copy(crate::support::quickstart().join(name), forge.path(name)).unwrap();
    }
    let recipe = edited(RECIPE, "[\"prose.txt\"]", "[\"calibration-prose.txt\"]");
    forge.recipe(&recipe);
    let _ = forge.run(&["check"]).success();
    forge.recipe(&edited(&recipe, "calibration-prose", "calibration-code"));
    let _ = forge.run(&["check"]).success();
    // Two texts of one book, and two programs.
    for name in ["calibration-prose.txt", "calibration-code.txt"] {
        let text = std::fs::read_to_string(forge.path(name)).unwrap();
        let half = text.chars().take(text.chars().count() / 2).map(char::len_utf8).sum();
        let (one, other) = text.split_at(half);
        let forge = project();
        forge.write("prose.txt", one).write("held-out.txt", other);
        forge.recipe(RECIPE);
        let _ = forge.run(&["check"]).success();
    }
}

fn json_of(forge: &Forge, path: &str) -> Json {
    serde_json::from_slice(&std::fs::read(forge.path(path)).unwrap()).unwrap()
}

#[test]
fn an_overlap_that_is_allowed_is_marked_wherever_the_figures_are() {
    let forge = small_model::project();
    let allowed = edited(
        RECIPE,
        "corpus = \"held-out\"\n",
        "corpus = \"held-out\"\nallow_overlap = true\n",
    );
    let prose = std::fs::read_to_string(forge.path("prose.txt")).unwrap();
    forge.write("again.txt", &prose);
    forge.recipe(&edited(&allowed, "[\"held-out.txt\"]", "[\"again.txt\"]"));
    let _ = forge.run(&["check"]).success();
    let _ = forge.run(&["plan"]).success();
    let run = forge.run(&["build", "-j", "1"]).success();
    let markdown = std::fs::read_to_string(forge.path("out/small/metrics.md")).unwrap();
    for table in [&run.stdout, &markdown] {
        assert!(
            table.contains("\u{2020} not on held-out text: it overlaps with what `small-Q4_0` and `small-Q8_0` were calibrated on: \
                            `calibration` (1 file, 100.0 % of the text)"),
            "{table}"
        );
        let row = table
            .lines()
            .find(|line| line.contains("small-Q4_0") && !line.contains("not on"))
            .unwrap();
        assert!(row.matches('\u{2020}').count() >= 4, "{row}");
    }
    let metrics = json_of(&forge, "out/small/metrics.json");
    let mark = serde_json::json!([{
        "corpus": "calibration", "same_files": 1, "share": 1.0, "passage_words": null
    }]);
    for row in metrics["rows"].as_array().unwrap() {
        assert_eq!(row["overlaps"], mark);
    }
    let manifest = "out/small/small-Q4_0.gguf.manifest.json";
    let marked = json_of(&forge, manifest)["predicate"]["forge"]["overlaps"].clone();
    let expected = serde_json::json!([{
        "eval": "quality", "corpus": "held-out", "calibration": "calibration", "same_files": 1, "share": 1000, "passage": null
    }]);
    assert_eq!(marked, expected);

    // Nothing is left to do, and the documents hold.
    let _ = forge.run(&["plan", "--check"]).success();
    let run = forge.run(&["build", "-j", "1"]).success();
    assert!(run.stderr.contains("nothing to do"), "{}", run.stderr);
    let _ = forge.run(&["verify", "out/small/small-Q4_0.gguf"]).success();
    let _ = forge.run(&["why"]).success();
    let _ = forge.run(&["build", "-j", "1", "--frozen"]).success();

    // The mark goes with a candidate that is made again without the text of the evaluation.
    std::fs::rename(forge.path("again.txt"), forge.path("gone.txt")).unwrap();
    let _ = forge
        .run(&["reproduce", manifest, "--out", "reproduced", "-j", "1"])
        .success();
    let again = json_of(&forge, "reproduced/small-Q4_0.gguf.manifest.json");
    assert_eq!(again["predicate"]["forge"]["overlaps"], expected);

    // On other text, the marks go. So do those in the manifests, though the candidates stay.
    forge.recipe(&allowed);
    let _ = forge.run(&["build", "-j", "1"]).success();
    assert!(
        json_of(&forge, "out/small/metrics.json")["rows"][0]
            .get("overlaps")
            .is_none()
    );
    assert!(
        json_of(&forge, manifest)["predicate"]["forge"]
            .get("overlaps")
            .is_none()
    );
    let _ = forge.run(&["plan", "--check"]).success();
}

#[test]
fn a_build_with_nothing_to_do_reads_no_text() {
    let forge = small_model::project();
    forge.recipe(RECIPE);
    let _ = forge.run(&["build", "-j", "1"]).success();
    // What the guard found is no longer in the store, and the texts overlap by now as far as anybody knows.
    for key in small_model::sharded(forge.store(), "actions-v1").keys() {
        let store = forge::store::Store::open(forge.store()).unwrap();
        let result = store.lookup_shallow(&key.parse().unwrap()).unwrap().unwrap();
        let document = store.read(&result.action, 1 << 20).unwrap();
        if document.starts_with(b"{\"schema\":1,\"kind\":\"overlap\"") {
            std::fs::remove_file(forge.store().join("actions-v1").join(&key[..2]).join(&key[2..])).unwrap();
        }
    }
    let _ = forge.run(&["plan", "--check"]).success();
    let _ = forge.run(&["build", "-j", "1", "-v"]).success();
    let store = forge::store::Store::open(forge.store()).unwrap();
    for key in small_model::sharded(forge.store(), "actions-v1").keys() {
        let result = store.lookup_shallow(&key.parse().unwrap()).unwrap().unwrap();
        let document = store.read(&result.action, 1 << 20).unwrap();
        assert!(
            !document.starts_with(b"{\"schema\":1,\"kind\":\"overlap\""),
            "the texts were compared"
        );
    }
}
