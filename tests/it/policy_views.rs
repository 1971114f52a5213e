//! What policies chose, seen: tables of types, how two differ, and the chart.

use forge::gguf::Model;
use forge::policy::Table;
use serde_json::Value;

use crate::one_layer_project::Gguf;
use crate::one_layer_project::build_well;
use crate::one_layer_project::manifest;
use crate::one_layer_project::output_of;
use crate::one_layer_project::project;
use crate::support::Forge;

/// Two mixes, and a policy at two budgets; all are measured.
const RECIPE: &str = r#"schema = 1
name = "small"

[source.model]
path = "model.gguf"

[corpus.held-out]
files = ["held-out.txt"]

[policy.mix]
method = "mix"
mix = ["Q4_0", "Q8_0"]

[policy.guess]
method = "prior"
budget = ["6 bpw", "7 bpw"]
fuse = ["attention"]
types = ["Q3_K", "Q4_K", "Q6_K", "Q8_0"]

[promote.tiny]
policy = "mix"

[promote.best]
policy = "guess"

[eval.quality]
corpus = "held-out"
chunks = 2
context = 64
block = 1
"#;

/// The example's first layer three times over, so that there is something to see by layer.
fn layers() -> Vec<u8> {
    let mut model = Gguf::small();
    let first: Vec<_> = model
        .tensors
        .iter()
        .filter(|(spec, _)| spec.name.starts_with("blk.0."))
        .cloned()
        .collect();
    for layer in ["blk.1.", "blk.2."] {
        for (spec, bytes) in &first {
            let mut spec = spec.clone();
            spec.name = spec.name.replace("blk.0.", layer);
            model.tensors.push((spec, bytes.clone()));
        }
    }
    model.set("qwen3.block_count", forge::gguf::Value::U32(3));
    model.bytes()
}

fn built() -> Forge {
    let forge = project();
    forge.write("model.gguf", layers()).recipe(RECIPE);
    build_well(&forge, &[]);
    forge
}

/// One line of JSON.
fn json(forge: &Forge, args: &[&str]) -> Value {
    let mut all = args.to_vec();
    all.extend(["--message-format", "json"]);
    forge.run(&all).success().json_lines().remove(0)
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

#[test]
fn types_are_shown_for_policies_candidates_and_files() {
    let forge = built();
    let candidate = "out/small/best-6bpw.gguf";
    let of_manifest = manifest(&forge.path(candidate));
    let table = output_of(&forge, &of_manifest, "policy.guess@6bpw", "policy");
    forge.write("policy.json", &table);
    let table: Table = serde_json::from_slice(&table).unwrap();
    let model = Model::open(&forge.path(candidate)).unwrap();

    let shown = json(&forge, &["policy", "show", "best-6bpw"]);
    for other in [
        "promote.best@6bpw",
        "policy.guess@6bpw",
        "guess-6bpw",
        "policy.json",
        candidate,
        "out/small/best-6bpw.gguf.manifest.json",
    ] {
        let mut of_other = json(&forge, &["policy", "show", other]);
        of_other["of"] = shown["of"].clone();
        if other == "policy.json" {
            // A table of types has no header.
            for size in ["file_bytes", "bpw"] {
                assert!(of_other[size].is_null());
                of_other[size] = shown[size].clone();
            }
        }
        assert_eq!(of_other, shown, "{other}");
    }
    let tensors = shown["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), model.tensors().len());
    for (tensor, of_file) in tensors.iter().zip(model.tensors()) {
        assert_eq!(tensor["tensor"], of_file.info.name.as_str());
        assert_eq!(tensor["to"], of_file.info.ty.name());
        assert_eq!(tensor["bytes"], of_file.info.len);
        let elements: u64 = of_file.info.dims.iter().product();
        assert_eq!(tensor["elements"], elements, "{tensor}");
    }
    // Shares of losses sum up to what is predicted of the whole, however they are taken together.
    let predicted: f64 = table.predicted_loss.unwrap().parse().unwrap();
    let sum = |list: &str| -> f64 {
        let sums = shown[list].as_array().unwrap().iter();
        sums.filter_map(|one| one["sum"]["predicted_loss"].as_f64()).sum()
    };
    assert!(
        near(sum("classes"), predicted) && near(sum("layers"), predicted),
        "{shown}"
    );
    assert!(near(shown["sum"]["predicted_loss"].as_f64().unwrap(), predicted));

    // Without its manifest it is a file like any other: types, and nothing else.
    std::fs::copy(forge.path(candidate), forge.path("elsewhere.gguf")).unwrap();
    let plain = json(&forge, &["policy", "show", "elsewhere.gguf"]);
    assert!(plain["predicted_loss"].is_null());
    for (tensor, known) in plain["tensors"].as_array().unwrap().iter().zip(tensors) {
        assert_eq!((&tensor["to"], &tensor["bytes"]), (&known["to"], &known["bytes"]));
        assert!(tensor["from"].is_null());
        assert_eq!(
            tensor["why"].is_null(),
            known["why"]["kind"] != "never_quantized",
            "{tensor}"
        );
    }
    // The manifest of another file is not used either.
    std::fs::copy(forge.path("out/small/tiny-Q4_0.gguf"), forge.path(candidate)).unwrap();
    let replaced = json(&forge, &["policy", "show", candidate]);
    assert!(replaced["predicted_loss"].is_null(), "{replaced}");
}

#[test]
fn types_are_readable_in_80_columns_without_colours_in_a_pipe() {
    let forge = built();
    for by in ["class", "layer", "tensor"] {
        let run = forge.run(&["policy", "show", "--by", by, "best-6bpw"]).success();
        assert!(!run.stdout.contains('\x1b'), "{}", run.stdout);
        for line in run.stdout.lines() {
            assert!(line.chars().count() <= 80 && line == line.trim_end(), "{line:?}");
        }
        let coloured = forge
            .run(&["--color", "always", "policy", "show", "--by", by, "best-6bpw"])
            .success();
        assert!(coloured.stdout.contains("\x1b["), "{}", coloured.stdout);
    }
    let by_layer = forge
        .run(&["policy", "show", "--by", "layer", "tiny-Q4_0"])
        .success()
        .stdout;
    let rows: Vec<&str> = by_layer
        .lines()
        .filter(|line| line.trim_start().starts_with(['0', '1', '2']))
        .collect();
    assert_eq!(rows.len(), 3, "a row a layer: {by_layer}");
    assert_eq!(rows[0].matches("Q4_0").count(), 7, "a column a class: {by_layer}");
    let by_tensor = forge
        .run(&["policy", "show", "--by", "tensor", "best-6bpw"])
        .success()
        .stdout;
    assert!(by_tensor.contains("solved, 3 in one"), "{by_tensor}");
    assert!(
        by_tensor
            .lines()
            .any(|line| line.starts_with("blk.2.ffn_norm.weight") && line.ends_with("one dimension"))
    );

    let several = forge.run(&["policy", "show", "best"]).status(2);
    assert!(
        several.stderr.contains("`best-6bpw` and `best-7bpw`"),
        "{}",
        several.stderr
    );
    let none = forge.run(&["policy", "show", "best-6pbw"]).status(2);
    assert!(none.stderr.contains("did you mean `best-6bpw`?"), "{}", none.stderr);
    let recipe = forge.run(&["policy", "show", "recipe.toml"]).status(2);
    assert!(
        recipe.stderr.contains("is a recipe, which has no tensors"),
        "{}",
        recipe.stderr
    );
    let fresh = forge.with_store(&forge.path("other-store"));
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    let missing = fresh.run(&["policy", "show", "best-6bpw"]).status(1);
    assert!(
        missing.stderr.contains("forge build recipe.toml promote.best@6bpw"),
        "{}",
        missing.stderr
    );
}

#[test]
fn two_policies_differ_by_class_by_layer_and_by_tensor() {
    let forge = built();
    let diff = |a: &str, b: &str| -> Value {
        let run = forge.run(&["policy", "diff", "--format", "json", a, b]).success();
        serde_json::from_str(&run.stdout).unwrap()
    };
    let found = diff("best-6bpw", "best-7bpw");
    let part = |name: &str| -> Value {
        let parts = found["parts"].as_array().unwrap();
        parts.iter().find(|part| part["name"] == name).unwrap().clone()
    };
    let effects = |name: &str| -> f64 {
        let rows = part(name)["rows"].as_array().unwrap().clone();
        rows.iter().map(|row| row["effect"].as_f64().unwrap()).sum()
    };
    let of = |name: &str| json(&forge, &["policy", "show", name]);
    let (six, seven) = (of("best-6bpw"), of("best-7bpw"));
    let bytes = |shown: &Value| shown["sum"]["bytes"].as_f64().unwrap();
    let by = bytes(&seven) - bytes(&six);
    assert!(by > 0.0);
    for name in ["classes", "layers", "tensors"] {
        assert!(near(effects(name), by), "{name}: {found:#}");
    }
    let noted = part("classes")["rows"][0]["note"].as_str().unwrap().to_owned();
    assert!(
        noted.contains("predicted loss -") && noted.contains("tensor"),
        "{noted}"
    );
    let losses = |shown: &Value| shown["sum"]["predicted_loss"].as_f64().unwrap();
    assert!(losses(&seven) < losses(&six));

    // Exit status and forms are those of `forge diff`.
    let _ = forge
        .run(&["policy", "diff", "--exit-code", "best-6bpw", "best-7bpw"])
        .status(1);
    let same = forge
        .run(&["policy", "diff", "--exit-code", "best-6bpw", "out/small/best-6bpw.gguf"])
        .success();
    assert_eq!(same.stdout, "");
    let few = forge
        .run(&[
            "policy",
            "diff",
            "--rows",
            "1",
            "--format",
            "markdown",
            "best-6bpw",
            "tiny-Q4_0",
        ])
        .success();
    assert!(few.stdout.contains("**layers**:"), "{}", few.stdout);
    // Of a file that somebody else wrote it is not known why: types are compared alone.
    std::fs::copy(forge.path("out/small/best-6bpw.gguf"), forge.path("elsewhere.gguf")).unwrap();
    let found = diff("best-6bpw", "elsewhere.gguf");
    let tensors = found["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|part| part["name"] == "tensors");
    assert_eq!(tensors.unwrap()["changed"], 0, "{found:#}");
}

#[test]
fn the_chart_has_mixes_as_marks_and_policies_as_lines() {
    let forge = built();
    let chart = json(&forge, &["policy", "chart"]);
    let series = chart["series"].as_array().unwrap();
    let of = |at: usize| {
        (
            series[at]["name"].as_str().unwrap(),
            series[at]["mixes"].as_bool().unwrap(),
        )
    };
    assert_eq!([of(0), of(1)], [("tiny (mix)", true), ("best (prior)", false)]);
    let metrics: Value = serde_json::from_slice(&std::fs::read(forge.path("out/small/metrics.json")).unwrap()).unwrap();
    let rows = metrics["rows"].as_array().unwrap();
    let points: Vec<&Value> = series
        .iter()
        .flat_map(|one| one["points"].as_array().unwrap())
        .collect();
    assert_eq!(points.len(), rows.len());
    for point in &points {
        let row = rows.iter().find(|row| row["candidate"] == point["candidate"]).unwrap();
        assert_eq!(
            (&point["loss"], &point["ci95"]),
            (&row["kld_mean"], &row["kld_mean_ci95"])
        );
        assert_eq!((&point["bytes"], &point["front"]), (&row["bytes"], &row["pareto"]));
    }
    // What was predicted is what the policy's table says.
    let predicted = series[1]["points"][0]["predicted"].as_f64().unwrap();
    let shown = json(&forge, &["policy", "show", "best-6bpw"]);
    let of_table: f64 = shown["predicted_loss"].as_str().unwrap().parse().unwrap();
    assert!(near(predicted, of_table), "{predicted} {of_table}");
    assert!(series[0]["points"][0]["predicted"].is_null());

    // The terminal, by itself in Unicode, and in ASCII where the locale has nothing else.
    let text = forge.run(&["policy", "chart"]).success().stdout;
    assert!(
        text.contains('●') && text.contains('◆') && text.contains("6bpw"),
        "{text}"
    );
    for env in [("LANG", "C"), ("LC_ALL", "de_DE.ISO-8859-1")] {
        let mut command = forge.command(&["policy", "chart"]);
        command.env(env.0, env.1);
        let plain = crate::support::Run::of(command.output().unwrap()).success().stdout;
        assert!(plain.is_ascii(), "{plain}");
    }
    assert!(forge.run(&["policy", "chart", "--ascii"]).success().stdout.is_ascii());

    // The picture; of the table alone, too, where names tell what is a mix.
    let run = forge.run(&["policy", "chart", "--svg", "front.svg"]).success();
    assert_eq!(run.stdout, "");
    let svg = std::fs::read_to_string(forge.path("front.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    for name in ["Q4_0", "Q8_0", "6bpw", "7bpw", "best (prior)"] {
        assert!(svg.contains(name), "{name}");
    }
    std::fs::copy(forge.path("out/small/metrics.json"), forge.path("only.json")).unwrap();
    let alone = json(&forge, &["policy", "chart", "only.json"]);
    assert_eq!(alone["series"][0]["name"], "tiny");
    assert_eq!(alone["series"][0]["mixes"], true);
    // The same candidates twice are there once.
    let twice = json(&forge, &["policy", "chart", "out/small/metrics.json", "only.json"]);
    let count = twice["series"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["points"].as_array().unwrap().len());
    assert_eq!(count.sum::<usize>(), rows.len());

    // What cannot be drawn.
    let run = forge.run(&["policy", "chart", "--eval", "speed"]).status(2);
    assert!(
        run.stderr
            .contains("there is no evaluation `speed`; there are `quality`"),
        "{}",
        run.stderr
    );
    let run = forge.run(&["policy", "chart", "gone.json"]).status(2);
    assert!(run.stderr.contains("gone.json"), "{}", run.stderr);
    forge.write("other.json", "{}");
    let run = forge.run(&["policy", "chart", "other.json"]).status(1);
    assert!(run.stderr.contains("is not a table of metrics"), "{}", run.stderr);
    forge.write("new.toml", RECIPE.replace("name = \"small\"", "name = \"new\""));
    let run = forge.run(&["policy", "chart", "new.toml"]).status(1);
    assert!(run.stderr.contains("forge build new.toml"), "{}", run.stderr);
}

#[test]
fn policies_that_differ_in_nothing_but_their_budgets_are_one_line() {
    let forge = project();
    let alone = RECIPE.find("[policy.guess]").unwrap()..RECIPE.find("[eval.quality]").unwrap();
    let sections = [
        ("guess-small", "6 bpw", ""),
        ("guess-large", "7 bpw", ""),
        ("other", "7 bpw", "types = [\"Q4_K\", \"Q8_0\"]\n"),
    ]
    .map(|(name, budget, types)| {
        format!(
            "[policy.{name}]\nmethod = \"prior\"\nbudget = \"{budget}\"\n{types}[promote.{name}]\npolicy = \"{name}\"\n"
        )
    });
    let mut recipe = RECIPE.to_owned();
    recipe.replace_range(
        alone,
        &format!("[promote.tiny]\npolicy = \"mix\"\n{}", sections.concat()),
    );
    forge.write("model.gguf", layers()).recipe(&recipe);
    build_well(&forge, &[]);
    let lines = |forge: &Forge| -> Vec<(String, Vec<String>)> {
        let chart = json(forge, &["policy", "chart"]);
        let series = chart["series"].as_array().unwrap().iter().map(|one| {
            let labels = one["points"].as_array().unwrap().iter();
            let labels = labels.map(|point| point["label"].as_str().unwrap().to_owned());
            (one["name"].as_str().unwrap().to_owned(), labels.collect())
        });
        series.collect()
    };
    let said = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(ToString::to_string).collect());
    assert_eq!(
        lines(&forge),
        [
            said("tiny (mix)", &["Q4_0", "Q8_0"]),
            said("guess (prior)", &["small", "large"]),
            said("other (prior)", &["other"]),
        ]
    );
    // Names that have nothing in common: the method's.
    let recipe = recipe.replace("guess-small", "small").replace("guess-large", "large");
    forge.recipe(&recipe);
    build_well(&forge, &[]);
    assert_eq!(
        lines(&forge)[1..],
        [said("prior", &["small", "large"]), said("other (prior)", &["other"])]
    );
}

#[test]
fn a_candidate_is_labelled_by_its_own_policy_even_if_its_budget_is_the_size_of_another() {
    let forge = project();
    let recipe = RECIPE.replace("budget = [\"6 bpw\", \"7 bpw\"]", "budget = { candidate = \"tiny\" }");
    forge.write("model.gguf", layers()).recipe(&recipe);
    build_well(&forge, &[]);
    for mix in ["Q4_0", "Q8_0"] {
        let made = manifest(&forge.path(&format!("out/small/best-{mix}.gguf")));
        let actions = made["predicate"]["forge"]["actions"].as_object().unwrap().values();
        let policies = actions.filter(|action| action["outputs"].get("policy").is_some());
        assert_eq!(policies.count(), 2, "its own, and the mix whose size it may have");
        let by_file = json(&forge, &["policy", "show", &format!("out/small/best-{mix}.gguf")]);
        let by_manifest = json(
            &forge,
            &["policy", "show", &format!("out/small/best-{mix}.gguf.manifest.json")],
        );
        assert!(by_file["predicted_loss"].is_string(), "{by_file}");
        assert_eq!(by_file["tensors"], by_manifest["tensors"]);
        assert_eq!(by_file["predicted_loss"], by_manifest["predicted_loss"]);
    }
    let chart = json(&forge, &["policy", "chart"]);
    let series: Vec<_> = chart["series"].as_array().unwrap().iter().collect();
    assert_eq!(series.len(), 2, "{chart:#}");
    assert_eq!(
        (&series[1]["name"], series[1]["points"].as_array().unwrap().len()),
        (&"best (prior)".into(), 2)
    );
}

#[test]
#[cfg(target_os = "linux")]
fn a_failed_write_to_stdout_is_an_error() {
    let forge = project();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = forge.command(&["policy", "export", "model.gguf"]);
    let output = command.stdout(full).output().unwrap();
    let run = crate::support::Run::of(output).status(3);
    assert!(run.stderr.contains("the output is incomplete"), "{}", run.stderr);
    // A reader that went away is none of our business.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = forge.command(&["policy", "export", "model.gguf"]);
    let _ = crate::support::Run::of(command.stdout(writer).output().unwrap()).success();
}

#[test]
fn what_a_policy_chose_before_its_recipe_changed_is_not_shown_as_its_choice() {
    let forge = project();
    forge.write("model.gguf", layers()).recipe(RECIPE);
    build_well(&forge, &["recipe.toml", "policy.guess"]);
    let shown = json(&forge, &["policy", "show", "guess-6bpw"]);
    assert!(shown["predicted_loss"].is_string(), "{shown}");
    forge.recipe(&RECIPE.replace("types = [\"Q3_K\", ", "types = ["));
    let run = forge.run(&["policy", "show", "guess-6bpw"]).status(1);
    assert!(
        run.stderr.contains("has not been built as `recipe.toml` defines it"),
        "{}",
        run.stderr
    );
    // Warnings of the recipe are said once, though a plan is made of it, too.
    forge.recipe(&format!("{RECIPE}[corpus.spare]\nfiles = [\"held-out.txt\"]\n"));
    let run = forge
        .run(&["policy", "show", "guess-6bpw", "--message-format", "json"])
        .success();
    let said: Vec<Value> = run.json_lines().iter().map(|line| line["reason"].clone()).collect();
    assert_eq!(said, ["diagnostic", "types"]);
    assert_eq!(run.json_lines().last().unwrap(), &shown);
}

#[test]
fn candidates_are_exported_by_name_file_or_manifest() {
    let forge = built();
    let export = |of: &str| forge.run(&["policy", "export", of]).success().stdout;
    let by_file = export("out/small/best-6bpw.gguf");
    assert!(by_file.contains("=q"), "{by_file}");
    assert_eq!(export("best-6bpw"), by_file);
    assert_eq!(export("out/small/best-6bpw.gguf.manifest.json"), by_file);
    let run = forge.run(&["policy", "export", "best-6bwp"]).status(2);
    assert!(run.stderr.contains("did you mean `best-6bpw`?"), "{}", run.stderr);
    let run = forge.run(&["policy", "check", "gone.json"]).status(2);
    assert!(run.stderr.contains("there is no such file"), "{}", run.stderr);
}

#[test]
fn a_candidate_has_one_size_everywhere() {
    let forge = project();
    forge.write("model.gguf", layers()).recipe(RECIPE);
    let built = forge.run(&["build", "-j", "1"]).success();
    let file = std::fs::metadata(forge.path("out/small/best-6bpw.gguf")).unwrap().len();
    let shown = json(&forge, &["policy", "show", "best-6bpw"]);
    let weights = shown["sum"]["elements"].as_u64().unwrap();
    let size = forge::prose::size(file, weights);
    let step = built
        .stderr
        .lines()
        .find(|line| line.contains("promote.best@6bpw"))
        .unwrap();
    assert!(step.contains(&size), "{size}: {step}");
    let policy = built
        .stderr
        .lines()
        .find(|line| line.contains("policy.guess@6bpw"))
        .unwrap();
    assert!(!policy.contains("iB") && !policy.contains("bpw,"), "{policy}");
    // Of the file, of the manifest, and of the policy, also before there is a file.
    assert_eq!(shown["file_bytes"], file);
    let bpw = shown["bpw"].as_f64().unwrap();
    let metrics: Value = serde_json::from_slice(&std::fs::read(forge.path("out/small/metrics.json")).unwrap()).unwrap();
    let rows = metrics["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["candidate"] == "best-6bpw").unwrap();
    assert_eq!((row["bytes"].as_u64(), row["bpw"].as_f64()), (Some(file), Some(bpw)));
    let head = |of: &str| {
        let run = forge.run(&["policy", "show", of]).success();
        run.stdout.lines().next().unwrap().to_owned()
    };
    for of in [
        "best-6bpw",
        "guess-6bpw",
        "out/small/best-6bpw.gguf",
        "out/small/best-6bpw.gguf.manifest.json",
    ] {
        assert!(head(of).starts_with(&format!("{of}: {size}, ")), "{size}: {}", head(of));
    }
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    assert!(
        head("best-6bpw").starts_with(&format!("best-6bpw: {size}, ")),
        "{}",
        head("best-6bpw")
    );
}

#[test]
fn a_solved_policy_in_a_new_folder_only_writes_its_certificate() {
    let forge = project();
    forge.write("model.gguf", layers()).recipe(RECIPE);
    let built = forge.run(&["build", "-j", "1"]).success().stderr;
    assert!(built.contains("  out/small/guess-6bpw.certificate.json  "), "{built}");
    let plan = forge.run(&["plan", "--out", "new"]).success().stdout;
    let line = plan.lines().find(|line| line.contains("policy.guess@6bpw")).unwrap();
    assert!(line.starts_with("write    policy.guess@6bpw"), "{line}");
    assert!(line.contains("only `guess-6bpw.certificate.json` ("), "{line}");
    assert!(line.ends_with("KiB): a file is not in the output folder"), "{line}");
    forge.write("out/small/guess-6bpw.certificate.json", "{}");
    let plan = forge.run(&["plan"]).success().stdout;
    let line = plan.lines().find(|line| line.contains("policy.guess@6bpw")).unwrap();
    assert!(line.ends_with("a file in the output folder was changed"), "{line}");
}
