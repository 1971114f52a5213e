//! `forge why`: every kind of change has its root cause and the steps that follow, and what it says agrees with what the
//! build then does.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::PathBuf;

use forge::action::Action;
use forge::digest::Fingerprint;
use forge::gguf::Value as GgufValue;
use forge::store::StepRecord;
use forge::store::Store;
use serde_json::Value;
use serde_json::json;

use crate::small_model;
use crate::small_model::InMemory;
use crate::small_model::RECIPE;
use crate::support::Forge;

const PROMOTE: &str = "promote.small@Q4_0";

/// A project that was built.
fn built() -> Forge {
    let forge = small_model::project();
    let _ = small_model::build_of(&forge).success();
    forge
}

fn messages(forge: &Forge, args: &[&str]) -> Vec<Value> {
    let mut all = vec!["why", "--message-format", "json"];
    all.extend(args);
    forge.run(&all).success().json_lines()
}

/// The answer about one step.
fn why(forge: &Forge, args: &[&str]) -> Value {
    let lines = messages(forge, args);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!(lines[0]["reason"], "why");
    lines[0]["answer"].clone()
}

fn overview(forge: &Forge) -> Value {
    let lines = messages(forge, &[]);
    assert_eq!((lines.len(), &lines[0]["reason"]), (1, &json!("why-recipe")));
    lines[0]["answer"].clone()
}

/// The causes of an overview: where, what kind, and how many steps follow.
fn causes(overview: &Value) -> Vec<(String, String, usize)> {
    let causes = overview["causes"].as_array().unwrap().iter();
    causes
        .map(|cause| {
            (
                cause["root"]["step"].as_str().unwrap_or("-").to_owned(),
                cause["root"]["cause"].as_str().unwrap().to_owned(),
                cause["follows"].as_array().unwrap().len(),
            )
        })
        .collect()
}

fn cause(step: &str, kind: &str, follows: usize) -> (String, String, usize) {
    (step.to_owned(), kind.to_owned(), follows)
}

fn verdicts(overview: &Value) -> BTreeMap<String, String> {
    let steps = overview["steps"].as_array().unwrap().iter();
    steps
        .map(|step| {
            let text = |field: &str| step[field].as_str().unwrap().to_owned();
            (text("step"), text("verdict"))
        })
        .collect()
}

/// The steps that a build ran, and those that it found done.
fn outcomes(forge: &Forge) -> BTreeMap<String, String> {
    let run = small_model::build_of(forge).success();
    let mut outcomes = BTreeMap::new();
    for event in run.json_lines() {
        if event["reason"] == "step-finished" {
            let text = |field: &str| event[field].as_str().unwrap().to_owned();
            outcomes.insert(text("step"), text("outcome"));
        }
    }
    outcomes.retain(|step, _| !step.starts_with("source."));
    outcomes
}

/// Holds what was said against what the build then does: a miss runs, a hit does not, and what is unknown is left to
/// the build, which then says of every such step that it ran or not.
fn assert_agrees(forge: &Forge, what: &str) -> (Value, BTreeMap<String, String>) {
    let said = overview(forge);
    let verdicts = verdicts(&said);
    let outcomes = outcomes(forge);
    assert_eq!(
        verdicts.keys().collect::<Vec<_>>(),
        outcomes.keys().collect::<Vec<_>>(),
        "{what}"
    );
    for (step, verdict) in &verdicts {
        let outcome = &outcomes[step];
        match verdict.as_str() {
            "miss" => assert_eq!(outcome, "ran", "{what}: {step}"),
            "hit" => assert_eq!(outcome, "hit", "{what}: {step}"),
            "write" => assert_eq!(outcome, "wrote", "{what}: {step}"),
            "unknown" => assert!(outcome == "ran" || outcome == "hit", "{what}: {step}"),
            other => panic!("{what}: {step} {other}"),
        }
    }
    let runs = verdicts.values().any(|verdict| verdict == "miss");
    assert_eq!(runs, outcomes.values().any(|outcome| outcome == "ran"), "{what}");
    (said, outcomes)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect()
}

fn detail<'a>(root: &'a Value, name: &str) -> &'a Value {
    let details = root["details"].as_array().unwrap();
    details
        .iter()
        .find(|detail| detail["name"] == name)
        .unwrap_or_else(|| panic!("no `{name}` in {root:#}"))
}

fn store(forge: &Forge) -> Store {
    Store::open(forge.store()).unwrap()
}

fn blob_path(forge: &Forge, digest: &str) -> PathBuf {
    let hash = digest.split(':').next().unwrap();
    forge.store().join("cas-v1").join(&hash[..2]).join(&hash[2..])
}

#[test]
fn a_comment_changes_nothing_and_cached_steps_show_when_and_why_they_ran() {
    let forge = built();
    forge.recipe(&format!("# a comment\n{RECIPE}"));
    let (said, _) = assert_agrees(&forge, "a comment");
    assert_eq!(causes(&said), []);
    let answer = why(&forge, &[PROMOTE]);
    assert_eq!(answer["verdict"], "hit");
    assert_eq!(answer["roots"], json!([]));
    let ran = &answer["last_ran"];
    assert_eq!(ran["step"], PROMOTE);
    assert_eq!(ran["why"], "it has not run for this recipe yet");
    let shown = forge.run(&["why", PROMOTE]).success().stdout;
    assert!(
        shown.contains(&format!("run {}", ran["run"].as_str().unwrap())),
        "{shown}"
    );
    assert_eq!(forge.run(&["why"]).success().stdout, "why: nothing to do (11 hit)\n");
}

#[test]
fn a_chat_template_leads_to_the_key_in_the_file() {
    let forge = built();
    let mut model = InMemory::small();
    model
        .metadata
        .set("tokenizer.chat_template", &GgufValue::String(b"{{ another }}".to_vec()))
        .unwrap();
    model.write(&forge.path("small.gguf"));
    let answer = why(&forge, &[PROMOTE]);
    assert_eq!(answer["verdict"], "miss");
    let roots = answer["roots"].as_array().unwrap();
    assert_eq!(roots.len(), 1, "{answer:#}");
    assert_eq!(
        (&roots[0]["step"], &roots[0]["cause"]),
        (&json!("source.model"), &json!("source"))
    );
    let template = detail(&roots[0], "metadata tokenizer.chat_template");
    assert_eq!(template["after"], "\"{{ another }}\"");
    assert!(detail(&roots[0], "small.gguf")["before"].is_string());
    assert!(
        roots[0]["details"]
            .as_array()
            .unwrap()
            .iter()
            .all(|detail| !detail["name"].as_str().unwrap().starts_with("tensor ")),
        "no tensor changed"
    );
    // Both candidates run; their figures and the table may.
    let (said, outcomes) = assert_agrees(&forge, "a chat template");
    assert_eq!(causes(&said), [cause("source.model", "source", 5)]);
    assert_eq!(outcomes["eval.quality/small-Q4_0"], "hit", "early cutoff");
    assert_eq!(outcomes["imatrix.general"], "hit");
}

#[test]
fn a_tensor_of_the_source_is_named_and_so_are_those_made_of_it() {
    let forge = built();
    let mut model = InMemory::small();
    model.change(&mut small_model::Random(7));
    model.write(&forge.path("small.gguf"));
    let answer = why(&forge, &["join.general"]);
    assert_eq!(answer["verdict"], "unknown");
    let root = &answer["roots"][0];
    assert_eq!(
        (&root["step"], &root["cause"]),
        (&json!("source.model"), &json!("source"))
    );
    let tensors: Vec<&str> = root["details"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|detail| detail["name"].as_str().unwrap().strip_prefix("tensor "))
        .collect();
    assert_eq!(tensors.len(), 1, "{root:#}");
    assert_eq!(root["details"].as_array().unwrap().len(), 2, "the file, and the tensor");
    let (said, _) = assert_agrees(&forge, "a tensor");
    // All but the corpora.
    assert_eq!(causes(&said), [cause("source.model", "source", 9)]);
}

#[test]
fn the_type_of_one_tensor_leads_to_the_line_of_the_recipe() {
    let forge = small_model::project();
    let manual = |ty: &str| {
        RECIPE.replace(
            "method = \"mix\"\nimatrix = \"general\"\nmix = [\"Q4_0\", \"Q8_0\"]",
            &format!(
                "method = \"manual\"\nimatrix = \"general\"\nrules = [{{ match = 'blk\\.0\\.ffn_down', type = \"{ty}\" }}]\n\
                 otherwise = \"Q8_0\""
            ),
        )
    };
    let _ = small_model::build_of(forge.recipe(&manual("Q4_0"))).success();
    let _ = forge.recipe(&manual("Q5_0"));
    let answer = why(&forge, &["promote.small", "blk.0.ffn_down"]);
    assert_eq!(answer["verdict"], "unknown", "its policy runs first");
    assert_eq!(answer["roots"][0]["step"], "policy.mix");
    assert_eq!(answer["roots"][0]["cause"], "recipe");
    let target = detail(&answer["roots"][0], "method.rules.0.target");
    assert_eq!(
        (&target["before"], &target["after"]),
        (&json!("\"Q4_0\""), &json!("\"Q5_0\""))
    );
    // Once the policy is built, the answer for the tensor is known.
    let _ = forge.run(&["build", "-j", "1", "recipe.toml", "policy.mix"]).success();
    let answer = why(&forge, &["promote.small", "blk.0.ffn_down.weight"]);
    assert_eq!(answer["verdict"], "miss");
    assert_eq!(answer["fields"].as_array().unwrap().len(), 1, "{answer:#}");
    assert_eq!(answer["fields"][0]["field"], "inputs.to");
    assert_eq!(answer["fields"][0]["from"], "policy.mix");
    assert_eq!(answer["roots"][0]["step"], "policy.mix", "{answer:#}");
    let other = why(&forge, &["promote.small", "blk.0.ffn_up"]);
    assert_eq!(other["verdict"], "hit");
    assert_eq!(why(&forge, &["promote.small", "output_norm"])["verdict"], "copied");
    let (said, outcomes) = assert_agrees(&forge, "one type");
    assert_eq!(causes(&said), [cause("policy.mix", "recipe", 3)]);
    assert_eq!(outcomes["promote.small"], "ran");
    let unknown = forge.run(&["why", "promote.small", "blk.0.ffn_dwn"]).status(2);
    assert!(
        unknown.stderr.contains("did you mean `blk.0.ffn_down.weight`?"),
        "{}",
        unknown.stderr
    );
    let _ = forge.run(&["why", "policy.mix", "blk.0.ffn_down"]).status(2);
}

#[test]
fn an_edited_text_leads_to_the_file_and_is_read_once() {
    let forge = built();
    forge.write(
        "prose.txt",
        "Other words, and enough of them to fill some chunks. ".repeat(60),
    );
    let unread = why(&forge, &["--no-read", "imatrix.general"]);
    assert_eq!(unread["roots"][0]["cause"], "unread");
    let answer = why(&forge, &["imatrix.general"]);
    assert_eq!(answer["verdict"], "unknown");
    assert_eq!(answer["roots"][0]["step"], "corpus.calibration");
    assert_eq!(answer["roots"][0]["cause"], "source");
    let file = detail(&answer["roots"][0], "prose.txt");
    assert!(file["before"].as_str().unwrap().contains("3.9"), "{file}");
    assert_eq!(
        names(&answer["follows"]),
        [
            "imatrix.general",
            "join.general",
            "policy.mix@Q4_0",
            "policy.mix@Q8_0",
            "promote.small@Q4_0",
            "promote.small@Q8_0",
            "eval.quality/small-Q4_0",
            "eval.quality/small-Q8_0",
            "metrics.all"
        ]
    );
    let (said, _) = assert_agrees(&forge, "a text");
    assert_eq!(causes(&said), [cause("corpus.calibration", "source", 9)]);
}

#[test]
fn a_changed_engine_is_explained_by_its_properties() {
    let forge = built();
    let store = store(&forge);
    // What an earlier engine would have left: an action with its fingerprint, and its identity.
    let mut identity = crate::support::identity(forge::engine::Role::Quantizer);
    let now = identity.facts["c compiler"].clone();
    identity
        .facts
        .insert("c compiler".to_owned(), "an older compiler".to_owned());
    let former: Fingerprint = identity.fingerprint();
    store.note_engine(&former, &identity.document()).unwrap();
    for step in ["promote.small@Q4_0", "promote.small@Q8_0"] {
        let last = store.last("small", step).unwrap();
        let Action::Promote(mut promote) = Action::parse(&store.read(&last.document, 1 << 20).unwrap()).unwrap() else {
            panic!("not a promote action");
        };
        promote.quantizer = former;
        let action = Action::Promote(promote);
        // The result of today's engine is not there in that world.
        std::fs::remove_file(
            small_model::sharded(forge.store(), "actions-v1")
                .remove(&last.action.to_string())
                .unwrap(),
        )
        .unwrap();
        store
            .note_last(&StepRecord {
                action: action.digest(),
                document: store.put(&action.document()).unwrap(),
                manifest: None,
                ..last
            })
            .unwrap();
    }
    let answer = why(&forge, &[PROMOTE]);
    assert_eq!(answer["roots"].as_array().unwrap().len(), 1, "{answer:#}");
    let root = &answer["roots"][0];
    assert_eq!((&root["cause"], &root["step"]), (&json!("engine"), &Value::Null));
    assert_eq!(root["what"], "the quantizer has changed: `c compiler`");
    assert_eq!(
        root["details"],
        json!([{ "name": "c compiler", "before": "an older compiler", "after": now }])
    );
    let (said, _) = assert_agrees(&forge, "another engine");
    assert_eq!(causes(&said), [cause("-", "engine", 5)]);
}

#[test]
fn deleted_outputs_and_lost_blobs_are_reported() {
    let forge = built();
    std::fs::remove_file(forge.path("out/small/small-Q4_0.gguf")).unwrap();
    let answer = why(&forge, &[PROMOTE]);
    assert_eq!(
        (&answer["verdict"], &answer["roots"][0]["cause"]),
        (&json!("miss"), &json!("output"))
    );
    assert_eq!(answer["follows"], json!([]), "its figures are known");
    let (said, _) = assert_agrees(&forge, "a deleted output");
    assert_eq!(causes(&said), [cause(PROMOTE, "output", 0)]);

    let last = store(&forge).last("small", "imatrix.general").unwrap();
    let result = store(&forge).lookup(&last.action).unwrap().unwrap();
    let imatrix = result.output("imatrix").unwrap();
    std::fs::remove_file(blob_path(&forge, &imatrix.to_string())).unwrap();
    let answer = why(&forge, &["imatrix.general"]);
    assert_eq!(answer["roots"][0]["cause"], "lost");
    assert!(
        answer["roots"][0]["what"]
            .as_str()
            .unwrap()
            .contains(&imatrix.hash.short()),
        "{answer:#}"
    );
    let (said, outcomes) = assert_agrees(&forge, "a lost blob");
    assert_eq!(causes(&said)[0].1, "lost");
    assert_eq!(outcomes["promote.small@Q8_0"], "hit");
}

#[test]
fn a_result_that_no_longer_exists_is_reported_as_lost() {
    let forge = built();
    let last = store(&forge).last("small", "join.general").unwrap();
    let result = small_model::sharded(forge.store(), "actions-v1")
        .remove(&last.action.to_string())
        .unwrap();
    std::fs::remove_file(result).unwrap();
    let answer = why(&forge, &["join.general"]);
    assert_eq!(answer["roots"][0]["cause"], "forgotten");
    assert_eq!(answer["fields"], json!([]));
    assert_agrees(&forge, "a result that is gone");
}

#[test]
fn a_collected_result_has_its_time_and_its_outputs_are_still_known() {
    let forge = built();
    let last = store(&forge).last("small", "join.general").unwrap();
    let key = last.action.to_string();
    let result = store(&forge).lookup(&last.action).unwrap().unwrap();
    // As garbage collection of an earlier version left it.
    let place = small_model::sharded(forge.store(), "actions-v1").remove(&key).unwrap();
    std::fs::remove_file(place).unwrap();
    let note = json!({
        "schema": 1, "kind": "join", "document": null, "outputs": result.outputs, "facts": result.facts, "cost_ms": 5,
        "last_used": 1_792_000_000_u64, "removed": 1_793_000_000_u64, "why": "room",
    });
    let body = format!("forge-tombstone 1 {key}\n{note}\n");
    let sum = forge::digest::Hash::of(body.as_bytes());
    let folder = forge.store().join("tombstones-v1").join(&key[..2]);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join(&key[2..]), format!("{body}{sum}\n")).unwrap();
    let answer = why(&forge, &["join.general"]);
    assert_eq!(answer["roots"][0]["cause"], "collected");
    assert_eq!(
        answer["why"],
        "its result was removed from the store on 2026-10-26T07:33:20Z to save disk space"
    );
    let (said, _) = assert_agrees(&forge, "a collected result");
    assert_eq!(causes(&said), [cause("join.general", "collected", 0)]);
}

#[test]
fn a_new_step_is_compared_with_the_nearest_and_a_renamed_recipe_finds_its_results() {
    let forge = built();
    forge.recipe(&RECIPE.replace("[\"Q4_0\", \"Q8_0\"]", "[\"Q4_0\", \"Q8_0\", \"Q5_0\"]"));
    let answer = why(&forge, &["policy.mix@Q5_0"]);
    assert_eq!(answer["roots"][0]["cause"], "new");
    assert!(
        answer["compared"]["step"].as_str().unwrap().starts_with("policy.mix@"),
        "{answer:#}"
    );
    assert_eq!(answer["fields"][0]["field"], "inputs.method.mix");
    let (said, _) = assert_agrees(&forge, "a new candidate");
    // The candidate, its figures, and the table with a row more.
    assert_eq!(causes(&said), [cause("policy.mix@Q5_0", "new", 3)]);

    forge.recipe(&RECIPE.replace("name = \"small\"", "name = \"renamed\""));
    let answer = why(&forge, &["policy.mix@Q4_0"]);
    assert_eq!(answer["verdict"], "hit");
    assert_eq!(answer["last_ran"]["recipe"], "small", "it ran for another recipe");
    let (said, outcomes) = assert_agrees(&forge, "a renamed recipe");
    let kinds: BTreeSet<String> = causes(&said).into_iter().map(|(_, kind, _)| kind).collect();
    assert_eq!(kinds, BTreeSet::from(["new".to_owned()]));
    assert_eq!(outcomes["imatrix.general"], "hit");
    assert_eq!(outcomes["metrics.all"], "ran", "the table bears the recipe's name");
}

#[test]
fn a_renamed_step_is_recognized_by_its_action() {
    let forge = built();
    forge.recipe(
        &RECIPE
            .replace("[promote.small]", "[promote.tiny]")
            .replace("candidates = [\"small\"]", "candidates = [\"tiny\"]"),
    );
    let answer = why(&forge, &["promote.tiny@Q4_0"]);
    assert_eq!(answer["roots"][0]["cause"], "new");
    assert_eq!(
        answer["why"],
        "it is new, but its result is that of `promote.small@Q4_0`: only its files must be written"
    );
    assert_eq!(why(&forge, &["eval.quality/tiny-Q4_0"])["verdict"], "hit");
    let (said, outcomes) = assert_agrees(&forge, "a renamed step");
    assert_eq!(
        causes(&said),
        [
            cause("promote.tiny@Q4_0", "new", 0),
            cause("promote.tiny@Q8_0", "new", 0),
            cause("metrics.all", "recipe", 0)
        ]
    );
    assert_eq!(outcomes["eval.quality/tiny-Q4_0"], "hit");
}

#[test]
fn two_changes_are_two_root_causes() {
    let forge = built();
    forge.recipe(&RECIPE.replace("chunks = 2\nblock = 1", "chunks = 3\nblock = 1"));
    let (said, _) = assert_agrees(&forge, "chunks");
    assert_eq!(
        causes(&said),
        [
            cause("eval.quality/small-Q4_0", "recipe", 1),
            cause("eval.quality/small-Q8_0", "recipe", 1)
        ]
    );
    assert_eq!(causes(&overview(&forge)), []);
    // What ran because of what, afterwards.
    let table = why(&forge, &["metrics.all"]);
    let began: Vec<&str> = table["last_ran"]["began"]
        .as_array()
        .unwrap()
        .iter()
        .map(|began| began["step"].as_str().unwrap())
        .collect();
    assert_eq!(began.len(), 2, "{table:#}");
    assert!(began.iter().all(|step| step.starts_with("eval.quality/")), "{began:?}");
    assert_eq!(
        table["last_ran"]["began"][0]["changes"],
        json!([{ "field": "inputs.chunks", "before": "2", "after": "3" }])
    );
    forge.recipe(&RECIPE.replace("chunks = 2\nblock = 1", "chunks = 4\nblock = 1\nbootstrap = 300"));
    let answer = why(&forge, &["eval.quality/small-Q8_0"]);
    let root = &answer["roots"][0];
    assert_eq!(detail(root, "bootstrap")["after"], "300");
    assert_eq!(detail(root, "chunks")["after"], "4");
}

#[test]
fn a_change_in_a_waiting_step_is_a_root_cause_too() {
    let forge = built();
    forge.write(
        "prose.txt",
        "Other words, and enough of them to fill some chunks. ".repeat(60),
    );
    forge.recipe(&RECIPE.replace("chunks = 4", "chunks = 3"));
    let answer = why(&forge, &["imatrix.general"]);
    assert_eq!(answer["verdict"], "unknown");
    let roots: Vec<(&str, &str)> = answer["roots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|root| (root["step"].as_str().unwrap(), root["cause"].as_str().unwrap()))
        .collect();
    assert_eq!(roots, [("corpus.calibration", "source"), ("imatrix.general", "recipe")]);
    assert_eq!(detail(&answer["roots"][1], "chunks")["after"], "3");
    assert_agrees(&forge, "two places, one after the other");
}

/// Whatever is done to a project, what is said before a build is what the build does.
#[test]
fn why_agrees_with_the_build_after_any_edit() {
    let forge = built();
    let mut random = small_model::Random(20_261_121);
    let (mut chunks, mut kinds, mut words) = (4, 0, 0);
    for round in 0..12 {
        let what = random.below(7);
        match what {
            0 => {
                words += 1;
                forge.write(
                    "held-out.txt",
                    format!("{words} other words to measure on. ").repeat(150),
                );
            }
            1 => {
                let mut model = InMemory::small();
                let name = format!("round {round}").into_bytes();
                model.metadata.set("general.name", &GgufValue::String(name)).unwrap();
                model.write(&forge.path("small.gguf"));
            }
            2 => {
                let mut model = InMemory::small();
                model.change(&mut random);
                model.write(&forge.path("small.gguf"));
            }
            3 => chunks = 3 + random.below(4),
            4 => kinds = random.below(3),
            5 => {
                let outputs: Vec<String> = small_model::names(&forge.path(small_model::OUT)).into_iter().collect();
                let name = &outputs[random.below(outputs.len())];
                std::fs::remove_file(forge.path(small_model::OUT).join(name)).unwrap();
            }
            _ => {
                let files = small_model::sharded(forge.store(), random.pick(&["cas-v1", "actions-v1"]));
                let paths: Vec<_> = files.values().collect();
                std::fs::remove_file(paths[random.below(paths.len())]).unwrap();
            }
        }
        let mix = ["[\"Q4_0\", \"Q8_0\"]", "[\"Q4_0\"]", "[\"Q5_0\", \"Q8_0\"]"][kinds];
        forge.recipe(
            &RECIPE
                .replace("chunks = 4", &format!("chunks = {chunks}"))
                .replace("[\"Q4_0\", \"Q8_0\"]", mix),
        );
        assert_agrees(&forge, &format!("round {round}, edit {what}"));
    }
    assert_eq!(causes(&overview(&forge)), []);
}

#[test]
fn the_text_output() {
    let forge = built();
    forge.recipe(&RECIPE.replace(
        "mix = [\"Q4_0\", \"Q8_0\"]",
        "mix = [\"Q4_0\", \"Q8_0\"]\nembedding_type = \"Q8_0\"",
    ));
    let shown = forge.run(&["why", PROMOTE]).success().stdout;
    insta::assert_snapshot!(shown, @r#"
    unknown  promote.small@Q4_0: it waits for `policy.mix@Q4_0`, and runs unless the result of that is unchanged

    because
      policy.mix@Q4_0: the recipe changed `method.embedding_type`
        method.embedding_type: new, "Q8_0"
    and 3 steps follow: promote.small@Q4_0, eval.quality/small-Q4_0, metrics.all

    how this leads to promote.small@Q4_0
      policy.mix@Q4_0: `method.embedding_type` changed
    "#);
    let shown = forge.run(&["why"]).success().stdout;
    insta::assert_snapshot!(shown, @r#"
    policy.mix@Q4_0: the recipe changed `method.embedding_type`
        method.embedding_type: new, "Q8_0"
      and 3 steps follow: promote.small@Q4_0, eval.quality/small-Q4_0, metrics.all
    policy.mix@Q8_0: the recipe changed `method.embedding_type`
        method.embedding_type: new, "Q8_0"
      and 3 steps follow: promote.small@Q8_0, eval.quality/small-Q8_0, metrics.all
    why: 11 steps: 4 hit, 2 miss, 5 unknown
    "#);
    let short = forge.run(&["why", PROMOTE]).success().stdout;
    assert_eq!(forge.run(&["why", "recipe.toml", PROMOTE]).success().stdout, short);
    assert_eq!(
        forge.run(&["why", "-f", "recipe.toml", PROMOTE]).success().stdout,
        short
    );
    let run = forge.run(&["why", "promote.smal"]).status(2);
    assert!(run.stderr.contains("did you mean `promote.small"), "{}", run.stderr);
}
