//! `forge lock` and `forge build --frozen`: nothing is built where a source or an engine is another.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

use crate::one_layer_project::build_well;
use crate::one_layer_project::edited;
use crate::one_layer_project::project;
use crate::one_layer_project::text;
use crate::support::Forge;

/// The small project with a corpus of two texts, found by a pattern.
fn globbed() -> Forge {
    let forge = project();
    forge
        .write("texts/a.txt", text("calibration-prose.txt"))
        .write("texts/b.txt", text("calibration-code.txt"))
        .recipe(&edited(
            crate::one_layer_project::RECIPE,
            "[\"prose.txt\"]",
            "[\"texts/*.txt\"]",
        ));
    forge
}

/// When each file of a folder was last written.
fn times(folder: &Path) -> BTreeMap<String, SystemTime> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap);
    entries
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, entry.metadata().unwrap().modified().unwrap())
        })
        .collect()
}

#[test]
fn a_frozen_build_reports_all_differences_from_the_lock() {
    let forge = globbed();
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    assert!(
        run.stderr.contains("recipe.lock") && run.stderr.contains("`forge lock`"),
        "{}",
        run.stderr
    );
    assert!(!forge.path("out/small/a.gguf").exists());
    let run = forge.run(&["lock"]).success();
    assert!(run.stderr.contains("wrote recipe.lock: 4 files"), "{}", run.stderr);
    let lock = std::fs::read_to_string(forge.path("recipe.lock")).unwrap();
    assert!(
        !lock.contains(forge.dir().to_str().unwrap()),
        "nothing of this machine: {lock}"
    );
    let places: Vec<usize> = ["texts/a.txt", "texts/b.txt", "held-out.txt", "model.gguf"]
        .iter()
        .map(|name| lock.find(&format!("path = \"{name}\"")).unwrap())
        .collect();
    assert!(places.is_sorted(), "sorted by node and path: {lock}");
    let _ = forge.run(&["lock"]).success();
    assert_eq!(
        std::fs::read_to_string(forge.path("recipe.lock")).unwrap(),
        lock,
        "the same again"
    );
    let _ = forge.run(&["build", "--frozen", "-j", "1"]).success();
    let again = forge.run(&["build", "--frozen", "-j", "1"]).success();
    assert!(again.stderr.contains("nothing to do"), "{}", again.stderr);
    let run = forge.run(&["lock", "--check"]).success();
    assert!(run.stderr.starts_with("ok: 4 files"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(forge.path("recipe.lock")).unwrap(), lock);

    let before = times(&forge.path("out/small"));
    forge
        .write("texts/a.txt", format!("Changed. {}", text("calibration-prose.txt")))
        .write("texts/c.txt", "a third text");
    std::fs::remove_file(forge.path("texts/b.txt")).unwrap();
    let locked = lock
        .replace("\"GNU", "\"Moon")
        .replace("recipe = \"small\"", "recipe = \"other\"");
    forge.write("recipe.lock", &locked);
    for verb in [&["build", "--frozen", "-j", "1"][..], &["lock", "--check"]] {
        let run = forge.run(verb).status(1);
        for word in [
            "`texts/a.txt` of `corpus.calibration` is ",
            "`texts/b.txt` of `corpus.calibration` is no longer read",
            "`texts/c.txt` of `corpus.calibration` is new",
            "the quantizer's `c compiler` is `",
            "the evaluator's `c compiler` is `",
            "the lock file of recipe `other`",
            "nothing was built",
        ] {
            assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
        }
    }
    assert_eq!(times(&forge.path("out/small")), before, "nothing was built");
    // Without the word, the same is built.
    build_well(&forge, &[]);
    assert_ne!(times(&forge.path("out/small")), before);

    // Another file, and one that is none.
    let _ = forge.run(&["lock", "--lock", "locks/../recipe.lock"]).status(3);
    let _ = forge.run(&["lock", "--lock", "mine.lock"]).success();
    let _ = forge
        .run(&["build", "--frozen", "--lock", "mine.lock", "-j", "1"])
        .success();
    let run = forge.run(&["build", "--frozen", "--lock", "no.lock"]).status(1);
    assert!(run.stderr.contains("`no.lock`"), "{}", run.stderr);
    let run = forge.run(&["build", "--frozen", "--lock", "recipe.toml"]).status(1);
    assert!(run.stderr.contains("not a lock file"), "{}", run.stderr);
    let _ = forge.run(&["build", "--lock", "mine.lock"]).status(2);
    forge.write("new.lock", lock.replace("schema = 2", "schema = 3"));
    let run = forge.run(&["lock", "--check", "--lock", "new.lock"]).status(1);
    assert!(run.stderr.contains("schema 3"), "{}", run.stderr);
}

#[test]
fn a_recipe_that_differs_from_the_lock_is_refused_unless_only_inputs_count() {
    let forge = globbed();
    let _ = forge.run(&["lock"]).success();
    let recipe = std::fs::read_to_string(forge.path("recipe.toml")).unwrap();
    forge.recipe(&edited(&recipe, "otherwise = \"Q4_K\"", "otherwise = \"Q5_K\""));
    for verb in [
        &["build", "--frozen", "-j", "1"][..],
        &["build", "--frozen=all"],
        &["lock", "--check"],
    ] {
        let run = forge.run(verb).status(1);
        assert!(
            run.stderr
                .contains("recipe.lock: `policy.a` has other settings in the recipe"),
            "{verb:?}: {}",
            run.stderr
        );
        assert!(!forge.path("out/small/a.gguf").exists());
    }
    let _ = forge
        .run(&["build", "--frozen=inputs", "-j", "1", "recipe.toml", "promote.a"])
        .success();
    assert!(forge.path("out/small/a.gguf").exists());
    forge.recipe(&format!("{recipe}\n[promote.more]\npolicy = \"a\"\n"));
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    assert!(
        run.stderr.contains("`promote.more` is new in the recipe"),
        "{}",
        run.stderr
    );
    // Comments and white space are no settings.
    forge.recipe(&format!("# A comment\n{recipe}\n"));
    let _ = forge.run(&["lock", "--check"]).success();
    let _ = forge.run(&["build", "--frozen=some"]).status(2);
}

#[test]
fn a_part_of_a_recipe_is_compared_with_its_part_of_the_lock() {
    let forge = globbed();
    let _ = forge.run(&["lock"]).success();
    forge.write("held-out.txt", "another text to judge on");
    let _ = forge
        .run(&["build", "--frozen", "-j", "1", "recipe.toml", "promote.a"])
        .success();
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    assert!(
        run.stderr.contains("`held-out.txt` of `corpus.held-out`"),
        "{}",
        run.stderr
    );
}

#[test]
fn without_a_lock_the_manifests_in_the_output_folder_are_used() {
    let forge = globbed();
    build_well(&forge, &[]);
    let _ = forge.run(&["build", "--frozen", "-j", "1"]).success();
    std::fs::remove_file(forge.path("out/small/b.gguf")).unwrap();
    let _ = forge.run(&["build", "--frozen", "-j", "1"]).success();
    assert!(forge.path("out/small/b.gguf").exists());
    forge.write("texts/a.txt", text("held-out.txt"));
    std::fs::remove_file(forge.path("texts/b.txt")).unwrap();
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    for name in ["a.gguf.manifest.json", "b.gguf.manifest.json"] {
        assert!(
            run.stderr
                .contains(&format!("{name}: `a.txt` of `corpus.calibration` is ")),
            "{}",
            run.stderr
        );
        assert!(
            run.stderr
                .contains(&format!("{name}: `b.txt` of `corpus.calibration` is no longer")),
            "{}",
            run.stderr
        );
    }
    forge
        .write("texts/a.txt", text("calibration-prose.txt"))
        .write("texts/b.txt", text("calibration-code.txt"));
    let _ = forge.run(&["build", "--frozen", "-j", "1"]).success();
    std::fs::remove_file(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    assert!(run.stderr.contains("`promote.a` has no manifest"), "{}", run.stderr);
}

#[test]
fn without_a_lock_inputs_of_evaluations_are_compared_with_the_last_build() {
    let forge = globbed();
    build_well(&forge, &[]);
    let right = std::fs::read(forge.path("held-out.txt")).unwrap();
    forge.write("held-out.txt", text("calibration-code.txt"));
    let before = times(&forge.path("out/small"));
    // Looking does not make the file that is there now the one of the last build.
    let _ = forge.run(&["check", "--twice", "corpus.held-out", "-j", "1"]).success();
    for _ in 0..2 {
        let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
        let expected = "the last build: `held-out.txt` of `corpus.held-out` is ";
        assert!(run.stderr.contains(expected), "{}", run.stderr);
        assert_eq!(run.stderr.matches("error[").count(), 1, "{}", run.stderr);
    }
    assert_eq!(times(&forge.path("out/small")), before, "nothing was built");
    // Candidates alone do not read it.
    let candidate = ["build", "--frozen", "-j", "1", "recipe.toml", "promote.a"];
    let _ = forge.run(&candidate).success();
    forge.write("held-out.txt", right);
    let _ = forge.run(&["build", "--frozen", "-j", "1"]).success();
    // Nothing can be said where nothing is on record.
    std::fs::remove_dir_all(forge.store().join("runs-v1")).unwrap();
    let run = forge.run(&["build", "--frozen", "-j", "1"]).status(1);
    let expected = "no recorded build has read `corpus.held-out`";
    assert!(run.stderr.contains(expected), "{}", run.stderr);
}
