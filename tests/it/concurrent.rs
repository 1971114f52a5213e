//! Builds at the same time on one store.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::small_model;
use crate::small_model::Going;
use crate::small_model::assert_same_products;
use crate::small_model::assert_store_tidy;
use crate::small_model::keys;
use crate::small_model::names;
use crate::support::Forge;

/// Builds all at once, asserts that all succeed, and returns the events of each.
fn together(forge: &Forge, args: &[Vec<String>]) -> Vec<Vec<serde_json::Value>> {
    let going: Vec<Going> = args
        .iter()
        .map(|args| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Going::start(small_model::build(forge, &args))
        })
        .collect();
    going
        .into_iter()
        .map(|going| going.end().success().json_lines())
        .collect()
}

/// Asserts that every action ran in one of the builds only, and that those are `expected`.
fn assert_each_ran_once(builds: &[Vec<serde_json::Value>], expected: &BTreeSet<String>) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for key in builds.iter().flat_map(|events| keys(events, "ran")) {
        *count.entry(key).or_default() += 1;
    }
    let twice: Vec<_> = count.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
    assert_eq!(count.into_keys().collect::<BTreeSet<_>>(), *expected);
}

#[test]
fn four_builds_of_one_recipe_share_the_work() {
    let forge = small_model::project();
    let (clean, alone) = small_model::build_clean(&forge, &[]);
    let expected: BTreeSet<String> = keys(&alone.json_lines(), "ran").into_iter().collect();
    let outs = ["out-0", "out-1", "out-2", "out-3"];
    let args: Vec<Vec<String>> = outs.map(|out| vec!["--out".to_owned(), out.to_owned()]).into();
    let builds = together(&forge, &args);
    assert_each_ran_once(&builds, &expected);
    for out in outs {
        assert_same_products(&forge.path(out), &clean.path().join("out"), out);
        assert_eq!(names(&forge.path(out)), names(&clean.path().join("out")));
    }
    assert_store_tidy(forge.store());
}

#[test]
fn four_builds_into_one_folder_do_not_conflict() {
    let forge = small_model::project();
    let (clean, alone) = small_model::build_clean(&forge, &[]);
    let expected: BTreeSet<String> = keys(&alone.json_lines(), "ran").into_iter().collect();
    let builds = together(&forge, &vec![Vec::new(); 4]);
    assert_each_ran_once(&builds, &expected);
    let out = forge.path(small_model::OUT);
    assert_same_products(&out, &clean.path().join("out"), "one folder");
    assert_eq!(names(&out), names(&clean.path().join("out")));
    // Each product was written once: nobody replaced what another had found right.
    let mut written: BTreeMap<String, usize> = BTreeMap::new();
    for event in builds
        .iter()
        .flatten()
        .filter(|event| event["reason"] == "output-written")
    {
        *written.entry(event["path"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    written.retain(|path, _| !path.ends_with(".manifest.json"));
    assert_eq!(written.len(), 4, "{written:?}");
    assert!(written.values().all(|count| *count == 1), "{written:?}");
    assert_store_tidy(forge.store());
    let (run, events) = forge.build_events(&[]);
    let _ = run.success();
    assert!(events.iter().all(|event| event["reason"] != "output-written"));
}

#[test]
fn four_recipes_share_the_steps_that_are_the_same() {
    let forge = small_model::project();
    let mixes = [
        r#"["Q4_0", "Q8_0"]"#,
        r#"["Q8_0", "Q5_0"]"#,
        r#"["Q5_0", "Q4_0"]"#,
        r#"["Q5_1", "Q8_0"]"#,
    ];
    let mut args = Vec::new();
    for (number, mix) in mixes.iter().enumerate() {
        let recipe = small_model::RECIPE
            .replace(r#"["Q4_0", "Q8_0"]"#, mix)
            .replace(r#"name = "small""#, &format!(r#"name = "recipe-{number}""#));
        forge.write(&format!("recipe-{number}.toml"), recipe);
        args.push(vec![format!("recipe-{number}.toml")]);
    }
    let clean: Vec<_> = args
        .iter()
        .map(|args| small_model::build_clean(&forge, &[args[0].as_str()]))
        .collect();
    let alone: Vec<Vec<String>> = clean.iter().map(|(_, run)| keys(&run.json_lines(), "ran")).collect();
    let expected: BTreeSet<String> = alone.iter().flatten().cloned().collect();
    assert!(
        alone.iter().map(Vec::len).sum::<usize>() > expected.len() + 20,
        "nothing is shared"
    );
    let builds = together(&forge, &args);
    assert_each_ran_once(&builds, &expected);
    for (number, (clean, _)) in clean.iter().enumerate() {
        let name = format!("recipe-{number}");
        assert_same_products(&forge.path(&format!("out/{name}")), &clean.path().join("out"), &name);
    }
    assert_store_tidy(forge.store());
}

#[test]
fn candidates_that_need_the_same_tensors_at_once_do_not_hang() {
    let forge = small_model::project();
    // The same bytes under four names: all of them want every tensor at the same time.
    let mut recipe = small_model::RECIPE.replace(r#"mix = ["Q4_0", "Q8_0"]"#, r#"mix = "Q4_0""#);
    for name in ["b", "c", "d"] {
        recipe.extend(["[promote.", name, "]\npolicy = \"mix\"\n"]);
    }
    forge.recipe(&recipe);
    let events = Going::start(small_model::build(&forge, &[]))
        .end()
        .success()
        .json_lines();
    let ran = keys(&events, "ran");
    assert_eq!(ran.iter().collect::<BTreeSet<_>>().len(), ran.len());
    let products = small_model::products(&forge.path(small_model::OUT));
    for name in ["b.gguf", "c.gguf", "d.gguf"] {
        assert!(products[name] == products["small.gguf"], "{name}");
    }
}
