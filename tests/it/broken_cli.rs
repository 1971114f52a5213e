//! Broken recipes and broken files, as the program meets them: exit status 1, a sentence, no panic, bounded memory.

use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::broken_formats::broken_gguf_files;
use crate::broken_formats::broken_imatrix_files;
use crate::one_layer_project::BARE;
use crate::one_layer_project::assert_store_whole;
use crate::one_layer_project::build_well;
use crate::one_layer_project::edited;
use crate::one_layer_project::furnish;
use crate::one_layer_project::in_parallel;
use crate::support::Forge;
use crate::support::Run;
use crate::support::project;

/// More address space than the program and its threads take, and far less than broken files claim.
const KIB: u64 = 3 << 20;

/// Runs the program with an address space of [`KIB`].
fn bounded(forge: &Forge, args: &[&str]) -> Run {
    let program = forge.command(&[]).get_program().to_owned();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("ulimit -v {KIB}; exec \"$0\" \"$@\"")])
        .arg(program)
        .args(args)
        .current_dir(forge.dir())
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", forge.dir())
        .env("FORGE_CACHE_DIR", forge.store())
        .stdin(Stdio::null());
    Run::of(command.output().unwrap())
}

#[test]
fn every_invalid_recipe_is_refused_by_name() {
    let folder = project().join("tests/fixtures/recipes/invalid");
    let mut recipes: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    recipes.sort();
    assert!(recipes.len() > 50, "{}", recipes.len());
    let forge = Forge::new();
    in_parallel(&recipes, |path| {
        let path = path.to_str().unwrap();
        let run = bounded(&forge, &["check", path]);
        assert_eq!(run.status, Some(1), "{path}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{path}");
        assert!(!run.stderr.contains("panicked"), "{path}: {}", run.stderr);
        assert!(run.stderr.contains(path), "{path}: {}", run.stderr);
        assert!(run.stderr.contains("error"), "{path}: {}", run.stderr);
        // A build refuses it with the same words, before it touches the store.
        let build = bounded(&forge, &["build", path]);
        assert_eq!(build.status, Some(1), "{path}: {}", build.stderr);
        assert!(!build.stderr.contains("panicked"), "{path}: {}", build.stderr);
        let first = run.stderr.lines().next().unwrap();
        assert!(build.stderr.contains(first), "{path}: {}", build.stderr);
    });
    assert!(!forge.store().exists());
}

/// A broken file: its name, the recipe that uses it, and what must be said.
type Case = (&'static str, String, &'static str);

#[test]
fn every_broken_file_fails_a_build_with_its_reason_and_the_store_stays_good() {
    let forge = Forge::new();
    furnish(&forge);
    let mut cases: Vec<Case> = Vec::new();
    for (name, bytes, expected) in broken_gguf_files() {
        forge.write(&format!("{name}.gguf"), bytes);
        let recipe = edited(BARE, "\"model.gguf\"", &format!("\"{name}.gguf\""));
        cases.push((name, recipe, expected));
    }
    for (name, bytes, expected) in broken_imatrix_files() {
        forge.write(&format!("{name}.dat"), bytes);
        let source = format!("[source.old]\npath = \"{name}.dat\"\nkind = \"imatrix\"\n\n[source.model]");
        let recipe = edited(BARE, "[source.model]", &source);
        let recipe = edited(&recipe, "method = \"mix\"", "method = \"mix\"\nimatrix = \"old\"");
        // A model is recognized before the reader of imatrix files sees it.
        let expected = if name == "i-model" {
            "is a GGUF model, but the recipe uses it as an imatrix"
        } else {
            expected
        };
        cases.push((name, format!("{recipe}\n[imatrix.old]\nsource = \"old\"\n"), expected));
    }
    assert!(cases.len() >= 90, "{}", cases.len());
    forge.recipe(BARE);
    let _run = bounded(&forge, &["build", "-j", "1"]).success();
    let whole = std::fs::read(forge.path("out/bare/p.gguf")).unwrap();
    in_parallel(&cases, |(name, recipe, expected)| {
        let file = format!("{name}.toml");
        forge.write(&file, recipe);
        let out = format!("out/{name}");
        let run = bounded(&forge, &["build", "-j", "1", "--out", &out, &file]);
        assert_eq!(run.status, Some(1), "{name}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{name}: {}", run.stderr);
        assert!(
            run.stderr.contains(expected),
            "{name}: `{expected}` is not in: {}",
            run.stderr
        );
        assert!(run.stderr.contains(&format!("{name}.")), "{name}: {}", run.stderr);
        assert!(!forge.path(&out).join("p.gguf").exists(), "{name}");
        let plan = bounded(&forge, &["plan", "--out", &out, &file]);
        assert!(!plan.stderr.contains("panicked"), "{name}: {}", plan.stderr);
        assert!(matches!(plan.status, Some(0 | 1)), "{name}: {}", plan.stderr);
    });
    assert_store_whole(forge.store());
    build_well(&forge, &[]).assert_idle();
    std::fs::remove_file(forge.path("out/bare/p.gguf")).unwrap();
    build_well(&forge, &[]);
    assert_eq!(std::fs::read(forge.path("out/bare/p.gguf")).unwrap(), whole);
}
