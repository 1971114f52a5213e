//! Recipes, steps and outputs are given in the same way to every verb; variables and settings follow one rule.

use crate::small_model;
use crate::support::Forge;
use crate::support::Run;

/// A project with a second, smaller recipe in `other.toml`.
fn project() -> Forge {
    let forge = small_model::project();
    let text = std::fs::read_to_string(forge.path("recipe.toml")).unwrap();
    let name = text
        .lines()
        .find(|line| line.starts_with("name = "))
        .unwrap()
        .to_owned();
    forge.write("other.toml", text.replace(&name, "name = \"other\""));
    forge
}

const CANDIDATE: &str = "promote.small@Q8_0";

#[test]
fn a_step_without_a_recipe_is_one_of_the_recipe_in_the_current_folder() {
    let forge = project();
    let _ = forge.run(&["build", "-j", "1", CANDIDATE]).success();
    assert!(forge.path("out/small/small-Q8_0.gguf").exists());
    assert!(!forge.path("out/small/small-Q4_0.gguf").exists());
    // The same words in every form, with every verb.
    for verb in ["plan", "build", "why"] {
        for words in [
            &["recipe.toml", CANDIDATE][..],
            &[CANDIDATE],
            &["-f", "recipe.toml", CANDIDATE],
            &["--recipe", "recipe.toml", CANDIDATE],
        ] {
            let run = forge.run(&[&[verb], words].concat()).success();
            let said = [run.stdout, run.stderr].concat();
            let expected = match verb {
                "plan" => "hit      promote.small@Q8_0",
                "build" => "nothing to do",
                _ => "hit  promote.small@Q8_0",
            };
            assert!(said.contains(expected), "{verb} {words:?}: {said}");
        }
        let missing = forge.run(&[verb, "promote.nobody"]).status(2);
        assert!(
            missing.stderr.contains("no step `promote.nobody`"),
            "{}",
            missing.stderr
        );
        let run = forge.run(&[verb, "gone.toml"]).status(1);
        assert!(
            run.stderr.contains("can't read the recipe `gone.toml`"),
            "{}",
            run.stderr
        );
        let run = forge.run(&[verb, "recipe.toml", "other.toml"]).status(2);
        assert!(
            run.stderr.contains("`other.toml` is a recipe, not a step"),
            "{}",
            run.stderr
        );
        let run = forge.run(&[verb, "-f", "other.toml", "recipe.toml"]).status(2);
        assert!(
            run.stderr.contains("`recipe.toml` is a recipe, not a step"),
            "{}",
            run.stderr
        );
    }
    // A folder with the name of a step is no recipe.
    std::fs::create_dir(forge.path("small")).unwrap();
    let run = forge.run(&["plan", "small"]).success();
    assert!(run.stdout.contains("promote.small@Q8_0"), "{}", run.stdout);
    let run = forge.run(&["why", CANDIDATE, "blk.0.attn_k", "more"]).status(2);
    assert!(run.stderr.contains("more"), "{}", run.stderr);
}

#[test]
fn every_verb_that_reads_a_recipe_takes_the_option() {
    let forge = project();
    let shown = forge.run(&["show", "-f", "other.toml"]).success().stdout;
    assert!(shown.contains("name = \"other\""), "{shown}");
    assert_eq!(forge.run(&["show", "other.toml"]).success().stdout, shown);
    let graph = forge.run(&["graph", "--recipe", "other.toml"]).success().stdout;
    assert_eq!(forge.run(&["graph", "other.toml"]).success().stdout, graph);
    let checked = forge
        .run(&["check", "-f", "other.toml", "recipe.toml"])
        .success()
        .stdout;
    assert!(
        checked.contains("ok: other.toml") && checked.contains("ok: recipe.toml"),
        "{checked}"
    );
    let _ = forge.run(&["lock", "-f", "other.toml"]).success();
    assert!(forge.path("other.lock").exists());
    let _ = forge.run(&["lock", "--check", "other.toml"]).success();
    let planned = forge.run(&["plan", "-f", "other.toml"]).success().stdout;
    assert!(planned.contains("promote.small"), "{planned}");
    let run = forge.run(&["verify", "-f", "other.toml"]).status(1);
    assert!(run.stdout.contains("out/other/small-Q8_0.gguf"), "{}", run.stdout);
    let run = forge
        .run(&["policy", "show", "small-Q8_0", "-f", "other.toml"])
        .status(1);
    assert!(run.stderr.contains("forge build other.toml"), "{}", run.stderr);
    let run = forge.run(&["policy", "chart", "-f", "other.toml"]).status(1);
    assert!(run.stderr.contains("forge build other.toml"), "{}", run.stderr);
    for verb in ["show", "graph", "lock"] {
        let run = forge.run(&[verb, CANDIDATE]).status(2);
        assert!(
            run.stderr.contains(&format!("`forge {verb}` takes no steps")),
            "{}",
            run.stderr
        );
        let _ = forge.run(&[verb, "-f", "other.toml", "recipe.toml"]).status(2);
    }
}

#[test]
fn diff_and_reproduce_take_steps_that_write_candidates() {
    let forge = project();
    let _ = forge.run(&["build", "-j", "1", "promote.small"]).success();
    let [q4, q8] = ["out/small/small-Q4_0.gguf", "out/small/small-Q8_0.gguf"];
    let by_file = forge.run(&["diff", "--format", "json", q4, q8]).success().stdout;
    let by_step = forge
        .run(&["diff", "--format", "json", "promote.small@Q4_0", "promote.small@Q8_0"])
        .success()
        .stdout;
    let named = |text: &str| text.replace(q4, "promote.small@Q4_0").replace(q8, "promote.small@Q8_0");
    assert_eq!(named(&by_file), by_step);
    for (args, expected) in [
        (
            &["diff", "promote.small", "promote.small@Q8_0"][..],
            "means 2 candidates",
        ),
        (&["diff", "promote.nobody", q8], "no such candidate"),
        (
            &["diff", "-f", "other.toml", CANDIDATE, CANDIDATE],
            "out/other/small-Q8_0.gguf",
        ),
        (&["reproduce", "promote.small"], "means 2 candidates"),
    ] {
        let run = forge.run(args).status(2);
        assert!(run.stderr.contains(expected), "{args:?}: {}", run.stderr);
    }
    let run = forge.run(&["reproduce", "-j", "1", CANDIDATE]).success();
    let said = [run.stdout, run.stderr].concat();
    assert!(said.contains("identical"), "{said}");
}

#[test]
fn outputs_are_given_in_the_same_way_to_verify_sign_and_bundle() {
    let forge = project();
    let _ = forge.run(&["build", "-j", "1", CANDIDATE]).success();
    let _ = forge.run(&["key", "new", "me.key"]).success();
    let good = |run: Run| assert!(run.stderr.contains("1 good, 0 bad"), "{} {}", run.stdout, run.stderr);
    good(forge.run(&["verify", CANDIDATE]).success());
    good(forge.run(&["verify", "small-Q8_0", "-f", "recipe.toml"]).success());
    good(forge.run(&["verify", "out"]).success());
    // The other candidate has no manifest yet: nothing is signed.
    let run = forge.run(&["sign", "recipe.toml", "--key", "me.key"]).status(1);
    assert!(run.stderr.contains("small-Q4_0.gguf.manifest.json"), "{}", run.stderr);
    let signature = forge.path("out/small/small-Q8_0.gguf.manifest.json.sig.json");
    assert!(!signature.exists());
    // A folder means the manifests in it; models without one are skipped.
    let run = forge.run(&["sign", ".", "--key", "me.key"]).success();
    assert!(signature.exists(), "{}", run.stderr);
    assert_eq!(run.stderr.matches("signed by").count(), 1, "{}", run.stderr);
    good(forge.run(&["verify", "out", "--key", "me.key.pub"]).success());
    let _ = forge.run(&["sign", CANDIDATE, "--key", "me.key"]).success();
    let _ = forge.run(&["bundle", "out", "-o", "bundle.jsonl"]).success();
    let bundle = std::fs::read_to_string(forge.path("bundle.jsonl")).unwrap();
    assert_eq!(bundle.lines().count(), 1);
    std::fs::create_dir(forge.path("empty")).unwrap();
    for verb in [
        &["sign", "empty", "--key", "me.key"][..],
        &["verify", "empty"],
        &["bundle", "empty", "-o", "b"],
    ] {
        let run = forge.run(verb).status(1);
        assert!(run.stderr.contains("`empty` contains no candidate"), "{}", run.stderr);
    }
    for (step, expected) in [
        ("promote.smal@Q8_0", "did you mean"),
        ("imatrix.general", "`imatrix.general` writes no candidate"),
    ] {
        let run = forge.run(&["verify", step]).status(2);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    }
}

#[test]
fn check_takes_manifests_and_explains_what_a_step_is_not() {
    let forge = project();
    let _ = forge.run(&["build", "-j", "1", CANDIDATE]).success();
    let candidate = "out/small/small-Q8_0.gguf";
    let manifest = format!("{candidate}.manifest.json");
    let run = forge.run(&["check", "recipe.toml", &manifest, candidate]).success();
    assert_eq!(
        run.stdout.matches(&format!("ok: {manifest} (")).count(),
        2,
        "{}",
        run.stdout
    );
    let lines = forge
        .run(&["check", &manifest, "--message-format", "json"])
        .success()
        .json_lines();
    assert_eq!(
        (&lines[0]["reason"], &lines[0]["file"]),
        (&"checked".into(), &manifest.as_str().into())
    );
    let text = std::fs::read_to_string(forge.path(&manifest)).unwrap();
    let wrong = text.replacen("\"bytes\":", "\"bytes\":1", 1);
    assert_ne!(text, wrong);
    forge.write(&manifest, wrong);
    let run = forge.run(&["check", &manifest]).status(1);
    assert!(run.stderr.contains("error[check::manifest]"), "{}", run.stderr);
    forge.write(&manifest, "{}");
    let _ = forge.run(&["check", &manifest]).status(1);
    let run = forge.run(&["check", "small.gguf"]).status(1);
    assert!(
        run.stderr.contains("there is no `small.gguf.manifest.json`"),
        "{}",
        run.stderr
    );
    let run = forge.run(&["check", CANDIDATE]).status(2);
    assert!(run.stderr.contains("checks whole recipes, not steps"), "{}", run.stderr);
    // With `--twice`, steps and a recipe may stand on either side.
    for words in [
        &["corpus.held-out", "--twice"][..],
        &["--twice", "corpus.held-out"],
        &["recipe.toml", "--twice", "corpus.held-out"],
        &["-f", "recipe.toml", "--twice", "corpus.held-out"],
        &["--twice", "recipe.toml", "corpus.held-out"],
    ] {
        let run = forge.run(&[&["check"], words, &["-j", "1"]].concat()).success();
        assert!(run.stderr.contains("ran 1 action twice"), "{words:?}: {}", run.stderr);
    }
    let run = forge.run(&["check", "recipe.toml", "other.toml", "--twice"]).status(2);
    assert!(run.stderr.contains("one recipe"), "{}", run.stderr);
}

fn cache_dir(forge: &Forge, store: Option<&str>, args: &[&str]) -> String {
    let mut command = forge.command(&[&["cache", "dir"], args].concat());
    match store {
        Some(store) => command.env("FORGE_CACHE_DIR", store),
        None => command.env_remove("FORGE_CACHE_DIR"),
    };
    Run::of(command.output().unwrap()).success().stdout.trim().to_owned()
}

#[test]
fn a_tilde_is_the_home_folder_in_variables_options_and_settings() {
    let forge = Forge::new();
    let home = forge.dir().to_str().unwrap().to_owned();
    let default = format!("{home}/.cache/forge");
    assert_eq!(cache_dir(&forge, None, &[]), default);
    assert_eq!(cache_dir(&forge, Some("~/big"), &[]), format!("{home}/big"));
    assert_eq!(cache_dir(&forge, Some("~"), &[]), home);
    assert_eq!(cache_dir(&forge, None, &["--cache-dir=~/big"]), format!("{home}/big"));
    // Only as the first component; other users' folders are not looked up.
    assert_eq!(cache_dir(&forge, Some("a/~"), &[]), "a/~");
    assert_eq!(cache_dir(&forge, Some("~nobody/x"), &[]), "~nobody/x");
    forge.write(".config/forge/forge.toml", "cache_dir = \"~/of-settings\"\n");
    assert_eq!(cache_dir(&forge, None, &[]), format!("{home}/of-settings"));
    // A trusted folder, and what its own file sets.
    forge.write(".config/forge/forge.toml", "trusted = [\"~/models\"]\n");
    forge.write(
        "models/forge.toml",
        "cache_dir = \"~/of-folder\"\n[signing]\nkey = \"~/me.key\"\n",
    );
    assert_eq!(cache_dir(&forge, None, &["-C", "models"]), format!("{home}/of-folder"));
    let run = forge
        .run(&["-C", "models", "sign", "none.gguf.manifest.json"])
        .status(3);
    assert!(run.stderr.contains(&format!("{home}/me.key")), "{}", run.stderr);
    let refused = forge.run(&["-C", ".config/forge", "cache", "dir"]);
    assert_eq!(refused.success().stdout.trim(), forge.store().to_str().unwrap());
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let forge = Forge::new();
    let home = forge.dir().to_str().unwrap();
    let default = format!("{home}/.cache/forge");
    assert_eq!(cache_dir(&forge, Some(""), &[]), default);
    for name in [
        "FORGE_COLOR",
        "FORGE_NO_PROGRESS",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "TMPDIR",
        "COLUMNS",
    ] {
        let mut command = forge.command(&["cache", "dir"]);
        let run = Run::of(command.env(name, "").env_remove("FORGE_CACHE_DIR").output().unwrap()).success();
        assert_eq!(run.stdout.trim(), default, "{name}");
        let mut help = forge.command(&["--help"]);
        let _ = Run::of(help.env(name, "").output().unwrap()).success();
    }
    // Without a home, the store is not put into the current folder.
    let mut command = forge.command(&["cache", "dir"]);
    let run = Run::of(command.env("HOME", "").env_remove("FORGE_CACHE_DIR").output().unwrap());
    assert!(!run.stdout.starts_with('.'), "{} {}", run.stdout, run.stderr);
    let mut command = forge.command(&["cache", "dir"]);
    let run = Run::of(command.env("FORGE_COLOR", "blue").output().unwrap()).status(2);
    assert!(run.stderr.contains("blue"), "{}", run.stderr);
}

#[test]
fn help_fits_into_narrow_and_wide_terminals() {
    let forge = Forge::new();
    let verbs = [
        "", "init", "check", "build", "why", "diff", "verify", "sign", "policy", "cache",
    ];
    for columns in ["60", "80", "140"] {
        let width: usize = columns.parse().unwrap();
        for verb in verbs {
            let args: &[&str] = if verb.is_empty() {
                &["--help"]
            } else {
                &[verb, "--help"]
            };
            let mut command = forge.command(args);
            let run = Run::of(command.env("COLUMNS", columns).output().unwrap()).success();
            for line in run.stdout.lines() {
                assert!(line.chars().count() <= width.min(100), "{columns} {verb}: {line}");
            }
            assert!(!run.stdout.contains('\u{1b}'), "colours in a pipe: {}", run.stdout);
        }
    }
    let help = forge.run(&["--help"]).success().stdout;
    for part in [
        "Build:\n",
        "Understand:\n",
        "Compare:\n",
        "Publish:\n",
        "Store:\n",
        "Exit status:\n",
        "docs/recipes.md",
    ] {
        assert!(help.contains(part), "`{part}` in {help}");
    }
    let build = forge.run(&["build", "--help"]).success().stdout;
    assert!(build.contains("Examples:\n  forge build\n"), "{build}");
    assert_eq!(forge.run(&["help"]).success().stdout, help);
}
