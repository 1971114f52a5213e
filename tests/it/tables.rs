//! `forge table`, and the table that every build shows: also one with nothing to do, and one whose gate fails.

use std::path::Path;

use serde_json::Value;

use crate::small_model;
use crate::small_model::RECIPE;
use crate::support::Forge;
use crate::support::Run;

/// The lines of a text that begin with a candidate's name.
fn rows(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.starts_with("small-Q")).collect()
}

fn build(forge: &Forge) -> Run {
    forge.run(&["build", "-j", "1", "--no-progress"])
}

fn table(forge: &Forge, args: &[&str]) -> Run {
    let mut all = vec!["table"];
    all.extend(args);
    forge.run(&all)
}

fn json(forge: &Forge, args: &[&str]) -> Value {
    let mut all = vec!["--format", "json"];
    all.extend(args);
    serde_json::from_str(&table(forge, &all).success().stdout).unwrap()
}

fn names<'v>(document: &'v Value, field: &str) -> Vec<&'v str> {
    let rows = document["rows"].as_array().unwrap().iter();
    rows.map(|row| row[field].as_str().unwrap()).collect()
}

#[test]
fn the_table_of_the_last_build_is_printed_again_in_every_form() {
    let forge = small_model::project();
    let none = table(&forge, &[]).status(1);
    assert!(none.stderr.contains("`small` has no table yet"), "{}", none.stderr);
    assert!(
        none.stderr.contains("build it: `forge build recipe.toml`"),
        "{}",
        none.stderr
    );
    assert!(!forge.store().exists(), "nothing is made for a look");

    let built = build(&forge).success();
    assert_eq!(rows(&built.stdout).len(), 2, "{}", built.stdout);
    assert!(
        built.stdout.contains("no other candidate is both smaller and better"),
        "{}",
        built.stdout
    );
    assert_eq!(table(&forge, &[]).success().stdout, built.stdout);

    // The second build makes the note that the third one uses; each shows the table.
    for _ in 0..3 {
        forge.settle();
        let again = build(&forge).success();
        assert_eq!(again.stdout, built.stdout, "{}", again.stderr);
        assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    }

    // Without sources and outputs: the store has it. Without the store: the output folder has it.
    std::fs::remove_file(forge.path("small.gguf")).unwrap();
    let elsewhere = forge.with_store(&forge.path("no-store"));
    assert_eq!(table(&elsewhere, &[]).success().stdout, built.stdout);
    std::fs::remove_dir_all(forge.path("out")).unwrap();
    assert_eq!(table(&forge, &[]).success().stdout, built.stdout);
    let none = table(&elsewhere, &[]).status(1);
    assert!(none.stderr.contains("has no table yet"), "{}", none.stderr);

    let csv = table(&forge, &["--format", "csv", "--columns", "candidate,size,kld"]).success();
    let lines: Vec<&str> = csv.stdout.lines().collect();
    assert_eq!(
        lines[0],
        "candidate,bytes,kld_mean,kld_mean_ci95_low,kld_mean_ci95_high,historical"
    );
    assert_eq!(lines.len(), 3);
    assert!(
        lines[1].starts_with("small-Q4_0,") && lines[1].ends_with(",false"),
        "{}",
        lines[1]
    );
    let whole = json(&forge, &[]);
    assert_eq!(whole["schema"], "forge.table.v1");
    assert_eq!(names(&whole, "recipe"), ["small", "small"]);
    assert!(whole["rows"][0]["kld_mean_ci95"].is_array());
    assert_eq!(
        names(&json(&forge, &["--sort", "kld"]), "candidate"),
        ["small-Q8_0", "small-Q4_0"]
    );
    assert_eq!(
        names(&json(&forge, &["--sort", "-kld"]), "candidate"),
        ["small-Q4_0", "small-Q8_0"]
    );
    assert_eq!(
        names(&json(&forge, &["--sort=size"]), "candidate"),
        ["small-Q4_0", "small-Q8_0"]
    );
    let markdown = table(&forge, &["--format", "markdown", "--columns", "candidate,bpw"]).success();
    assert!(
        markdown
            .stdout
            .starts_with("# small\n\n## quality\n\n| candidate  |   bpw |\n"),
        "{}",
        markdown.stdout
    );
    let line = &table(&forge, &["--message-format", "json"]).success().json_lines()[0];
    assert_eq!((&line["reason"], &line["step"]), (&"table".into(), &Value::Null));
    assert_eq!(line["table"], whole);
}

#[test]
fn events_of_a_build_have_the_table_before_the_end() {
    let forge = small_model::project();
    for _ in 0..2 {
        let events = small_model::build_of(&forge).success().json_lines();
        let [.., table, end] = events.as_slice() else {
            panic!("{events:#?}")
        };
        assert_eq!(
            (&table["reason"], &end["reason"]),
            (&"table".into(), &"build-finished".into())
        );
        assert_eq!(table["step"], "metrics.all");
        assert_eq!(table["table"], json(&forge, &[]));
    }
}

#[test]
fn figures_of_files_and_manifests_stand_side_by_side() {
    let forge = small_model::project();
    let _ = build(&forge).success();
    let metrics = "out/small/metrics.json";
    let manifest = "out/small/small-Q4_0.gguf.manifest.json";
    let only = json(&forge, &[manifest]);
    assert_eq!(names(&only, "candidate"), ["small-Q4_0"]);
    assert_eq!(
        json(&forge, &["out/small/small-Q4_0.gguf"]),
        only,
        "a candidate stands for its manifest"
    );
    // With another store, the table beside the manifest has them.
    let elsewhere = forge.with_store(&forge.path("no-store"));
    assert_eq!(json(&elsewhere, &[manifest]), only);

    // The same rows are listed once; those of another engine are historical, and not on the front.
    let text = std::fs::read_to_string(forge.path(metrics)).unwrap();
    let mut old: Value = serde_json::from_str(&text).unwrap();
    old["recipe"] = "old".into();
    for row in old["rows"].as_array_mut().unwrap() {
        row["fingerprint"] = "e".repeat(64).into();
        row["bytes"] = 1.into();
    }
    forge.write("old.json", old.to_string()).write("copy.json", &text);
    assert_eq!(
        json(&forge, &[metrics, "copy.json"])["rows"].as_array().unwrap().len(),
        2
    );
    let both = table(&forge, &["recipe.toml", "old.json"]).success().stdout;
    assert_eq!(
        both.lines().filter(|line| line.ends_with("  historical")).count(),
        2,
        "{both}"
    );
    assert!(both.contains("historical: measured by another engine"), "{both}");
    let both = json(&forge, &[metrics, "old.json"]);
    let flags = |field: &str| -> Vec<bool> {
        let rows = both["rows"].as_array().unwrap().iter();
        rows.map(|row| row[field].as_bool().unwrap()).collect()
    };
    assert_eq!(flags("historical"), [false, false, true, true]);
    assert_eq!(flags("pareto"), [true, true, false, false]);
}

#[test]
fn what_has_no_figures_is_said() {
    let forge = crate::quick_project::project();
    let run = table(&forge, &[]).status(1);
    assert!(run.stderr.contains("measures no candidate"), "{}", run.stderr);
    assert!(run.stderr.contains("[eval.NAME]"), "{}", run.stderr);
    crate::quick_project::build_well(&forge, "out");
    let run = table(&forge, &["out/c0.gguf.manifest.json"]).status(1);
    assert!(
        run.stderr.contains("there are no figures of the candidate"),
        "{}",
        run.stderr
    );
    forge.write("data.json", "{\"schema\": \"other.v1\"}");
    for (args, status, words) in [
        (&["gone.json"][..], 2, "gone.json"),
        (&["data.json"], 2, "neither figures"),
        (&["gone.toml"], 1, "can't read the recipe `gone.toml`"),
        (&["--columns", "kdl"], 2, "did you mean `kld`?"),
        (&["--columns", "candidate,nonsense"], 2, "there is no such column"),
        (&["--sort", "-kdl"], 2, "did you mean `kld`?"),
    ] {
        let run = table(&forge, args).status(status);
        assert!(run.stderr.contains(words), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
    }
}

#[test]
fn recipes_of_one_name_do_not_share_a_table() {
    let forge = small_model::project();
    let _ = build(&forge).success();
    let own = json(&forge, &[]);
    let other = forge.sibling();
    small_model::fill(&other);
    other.recipe(&RECIPE.replace("Q4_0", "Q5_0"));
    let _ = build(&other).success();
    assert_eq!(names(&json(&other, &[]), "candidate"), ["small-Q5_0", "small-Q8_0"]);
    assert_eq!(
        json(&forge, &[]),
        own,
        "the file in the output folder says which table is whose"
    );
}

#[test]
fn a_failed_gate_shows_the_table_and_is_named_with_its_figures() {
    let forge = small_model::project();
    forge.recipe(&format!(
        "{RECIPE}\n[gate.good]\ncandidates = [\"small-Q4_0\"]\nrequire = [\"kld_mean < 0.0000001\", \"bytes < 1 MiB\"]\n"
    ));
    for _ in 0..2 {
        let run = build(&forge).status(1);
        assert_eq!(rows(&run.stdout).len(), 2, "{}", run.stdout);
        assert!(
            run.stderr.contains("`small-Q4_0` kld_mean < 0.0000001 (is 0.0"),
            "{}",
            run.stderr
        );
        assert!(run.stderr.contains("bytes < 1 MiB (is "), "{}", run.stderr);
        assert!(run.stderr.contains(" MiB)"), "{}", run.stderr);
    }
    let kld = json(&forge, &[])["rows"][0]["kld_mean"].as_f64().unwrap();
    let plan = forge.run(&["plan"]).success().stdout;
    let line = plan.lines().find(|line| line.contains("gate.good")).unwrap();
    let said = line.split("failed last time: kld_mean < 0.0000001 (is ").nth(1);
    let said = said.unwrap_or_else(|| panic!("{line}"));
    let shown = said.split(')').next().unwrap();
    assert!(
        (shown.parse::<f64>().unwrap() / kld - 1.0).abs() < 0.01,
        "{line}: {kld}"
    );
    assert_eq!(shown.trim_start_matches(['0', '.']).len(), 3, "three digits: {line}");
    let why = forge.run(&["why", "gate.good"]).success().stdout;
    assert!(
        why.contains("miss  gate.good: failed last time: kld_mean < 0.0000001"),
        "{why}"
    );
    assert!(!why.contains("output folder"), "{why}");
    let why = forge.run(&["why"]).success().stdout;
    assert!(why.contains("gate.good: failed last time"), "{why}");
    let line = &forge
        .run(&["why", "--message-format", "json", "gate.good"])
        .success()
        .json_lines()[0];
    assert_eq!(line["answer"]["roots"][0]["cause"], "gate", "{line:#}");
}

#[test]
fn a_gate_that_fails_early_does_not_cost_the_table() {
    let forge = small_model::project();
    // The gate needs one small evaluation, the table another one, too.
    let quick = "[eval.quick]\ncandidates = [\"small-Q4_0\"]\nreference = \"model\"\ncorpus = \"held-out\"\ncontext = 32\nchunks = 2\n\
                 [metrics.quick]\nevals = [\"quick\"]\n[metrics.all]\n\
                 [gate.early]\nmetrics = \"quick\"\ncandidates = [\"small-Q4_0\"]\nrequire = [\"kld_mean < 0.0000001\"]\n";
    forge.recipe(&format!("{RECIPE}\n{quick}"));
    let run = build(&forge).status(1);
    assert!(
        forge.path("out/small/metrics-all.json").exists(),
        "{}{}",
        run.stdout,
        run.stderr
    );
    assert!(run.stdout.contains("small-Q8_0"), "{}", run.stdout);
}

#[test]
fn a_comparison_with_a_baseline_says_figures_and_interval() {
    let forge = small_model::project();
    forge.recipe(&format!(
        "{RECIPE}\n[gate.good]\ncandidates = [\"small-Q4_0\"]\nbaseline = \"small-Q8_0\"\nrequire = [\"kld_mean < baseline\"]\n"
    ));
    let run = build(&forge).status(1);
    let said = run.stderr.split("kld_mean < baseline (is 0.0").nth(1);
    let said = said.unwrap_or_else(|| panic!("{}", run.stderr));
    assert!(said.contains("the bound is 0.0"), "{said}");
    assert!(said.contains("interval of the paired difference"), "{said}");
}

/// Runs forge in a terminal of so many columns; nothing where there is no `script`.
fn in_terminal(forge: &Forge, columns: usize, args: &str) -> Option<String> {
    if !Path::new("/usr/bin/script").exists() {
        eprintln!("SKIPPED: there is no `script`");
        return None;
    }
    let program = forge.command(&[]).get_program().to_string_lossy().into_owned();
    let line = format!("stty cols {columns} rows 50; '{program}' {args}");
    let mut command = std::process::Command::new("/usr/bin/script");
    command.args(["-qec", &line, "/dev/null"]).current_dir(forge.dir());
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", forge.dir());
    command.env("FORGE_CACHE_DIR", forge.store()).env("NO_COLOR", "1");
    command.stdin(std::process::Stdio::null());
    Some(Run::of(command.output().unwrap()).success().stdout.replace('\r', ""))
}

#[test]
fn a_terminal_gets_lines_of_its_width_also_from_a_build_with_nothing_to_do() {
    let forge = small_model::project();
    for _ in 0..2 {
        let _ = build(&forge).success();
        forge.settle();
    }
    for columns in [60, 80, 140] {
        for args in [
            "table",
            "table --columns candidate,size,bpw,ppl,ppl_ci,kld,kld_ci,p99,top1",
            "build -q",
        ] {
            let Some(text) = in_terminal(&forge, columns, args) else {
                return;
            };
            let table: Vec<&str> = text.lines().filter(|line| !line.starts_with("forge:")).collect();
            assert!(
                table.iter().any(|line| line.starts_with("small-Q4_0  ")),
                "{args}: {text}"
            );
            for line in table {
                assert!(line.chars().count() <= columns, "{args}, {columns}: `{line}`");
            }
        }
    }
}
