//! A build checks before it begins that the disk has space for the reference's log-probabilities.

use std::collections::BTreeSet;

use forge::figures::size_of_reference;
use forge::prose;

use crate::small_model;
use crate::small_model::RECIPE;
use crate::small_model::SmallDisk;
use crate::small_model::committed;
use crate::support::Forge;
use crate::support::quickstart;

/// Tokens that the small model knows.
const VOCABULARY: u64 = 4096;
/// Positions that are scored in a chunk of 64 tokens.
const POSITIONS: u64 = 31;

fn with_chunks(chunks: Option<u64>) -> String {
    let chunks = chunks.map_or_else(String::new, |chunks| format!("chunks = {chunks}\n"));
    let text = RECIPE.replace("chunks = 2\nblock = 1", &format!("{chunks}block = 1"));
    assert_ne!(text, RECIPE);
    text
}

/// Returns a project with a store on a small disk, which goes first, and the length of the text that it measures on.
fn on_a_small_disk() -> Option<(Forge, SmallDisk, u64)> {
    let forge = small_model::project();
    let text = std::fs::read(quickstart().join("held-out.txt")).unwrap();
    forge.write("held-out.txt", &text);
    let mount = forge.path("small-disk");
    let disk = SmallDisk::mount(&mount, "40m")?;
    let project = forge.with_store(&mount.join("store"));
    Some((project, disk, text.len() as u64))
}

#[test]
fn references_are_counted_before_the_first_step_and_exactly_once_the_tokens_are_known() {
    let Some((project, _disk, length)) = on_a_small_disk() else {
        return;
    };
    // All of the text: its length tells that it cannot fit.
    project.recipe(&with_chunks(None));
    let run = project.run(&["build", "-j", "1"]).status(3);
    assert!(run.stderr.contains("does not fit"), "{}", run.stderr);
    assert!(
        run.stderr.contains("`eval.quality/small-Q4_0` would write"),
        "{}",
        run.stderr
    );
    assert!(
        !run.stderr.contains("`eval.quality/small-Q8_0` would write"),
        "they share it: {}",
        run.stderr
    );
    let least = length / 8 / 64;
    let size = prose::bytes(size_of_reference(VOCABULARY, POSITIONS * least));
    assert!(run.stderr.contains(&size), "{size}: {}", run.stderr);
    assert_eq!(committed(project.store()), BTreeSet::new());
    // A part of it does.
    project.recipe(&with_chunks(Some(60)));
    let _ = project.run(&["build", "-j", "1"]).success();
    // More than that: now it is known what is there and what is not.
    project.recipe(&with_chunks(Some(260)));
    let before = committed(project.store());
    let run = project.run(&["build", "-j", "1"]).status(3);
    let size = prose::bytes(200 * size_of_reference(VOCABULARY, POSITIONS));
    // Of the table nobody can say.
    let sentence = format!("it would write {size} or more to the file system of");
    assert!(run.stderr.contains(&sentence), "{sentence}: {}", run.stderr);
    assert_eq!(committed(project.store()), before, "nothing ran");
    // What was measured needs none.
    project.recipe(&format!("{}bootstrap = 300\n", with_chunks(Some(60)).trim_start()));
    let _ = project.run(&["build", "-j", "1"]).success();
}

#[test]
fn a_measuring_policy_counts_its_references_too() {
    let Some((project, _disk, length)) = on_a_small_disk() else {
        return;
    };
    let (before, after) = RECIPE.split_once("[policy.mix]").unwrap();
    let (_, promote) = after.split_once("[promote.small]").unwrap();
    let promote = promote.split_once("[eval.quality]").unwrap().0;
    let with = |chunks: u64| {
        format!(
            "{before}[policy.mix]\nmethod = \"measured\"\nimatrix = \"general\"\ncorpus = \"held-out\"\ncontext = 64\nchunks = {chunks}\n\
             screen = 1\nblock = 1\nrefine = 0\ntypes = [\"Q8_0\"]\nbudget = \"12 bpw\"\n[promote.small]{promote}"
        )
    };
    let least = length / 8 / 64;
    let size = prose::bytes(size_of_reference(VOCABULARY, POSITIONS * least));
    project.recipe(&with(1_000_000));
    let run = project.run(&["build", "-j", "1"]).status(3);
    let sentence = format!("`policy.mix` would write {size}");
    assert!(run.stderr.contains(&sentence), "{sentence}: {}", run.stderr);
    assert_eq!(committed(project.store()), BTreeSet::new());
    project.recipe(&with(2));
    let _ = project.run(&["build", "-j", "1"]).success();
}
