//! `forge clean`: stale outputs are named, and only what forge wrote is removed.

use std::collections::BTreeSet;
use std::path::Path;

use forge::store::Store;
use serde_json::Value as Json;

use crate::one_layer_project;
use crate::quick_project::assert_clean;
use crate::quick_project::build_well;
use crate::quick_project::first;
use crate::quick_project::project;
use crate::small_model::names;
use crate::support::Forge;
use crate::support::Run;
use crate::support::ran;

/// The project, built, and then with `promote.c0` renamed to `promote.new`, built again.
fn renamed() -> (Forge, Vec<Json>) {
    let forge = project();
    build_well(&forge, "out/moment");
    forge.recipe(&first().replace("[promote.c0]", "[promote.new]"));
    let events = build_well(&forge, "out/moment");
    (forge, events)
}

fn files(forge: &Forge) -> BTreeSet<String> {
    names(&forge.path("out/moment")).into_iter().collect()
}

fn clean(forge: &Forge, args: &[&str]) -> Run {
    let mut all = vec!["clean"];
    all.extend(args);
    forge.run(&all)
}

fn lines(forge: &Forge, args: &[&str]) -> Vec<Json> {
    let mut all = vec!["--message-format", "json"];
    all.extend(args);
    let mut lines = clean(forge, &all).success().json_lines();
    lines.retain(|line| line["reason"] != "diagnostic");
    lines
}

/// The names of the files in a line.
fn listed(line: &Json) -> Vec<String> {
    let files = line["files"].as_array().unwrap().iter();
    files
        .map(|file| {
            let path = Path::new(file["path"].as_str().unwrap());
            path.file_name().unwrap().to_str().unwrap().to_owned()
        })
        .collect()
}

const STALE: [&str; 2] = ["c0.gguf", "c0.gguf.manifest.json"];

#[test]
fn a_build_names_what_a_renamed_step_left_and_clean_removes_it() {
    let (forge, events) = renamed();
    let stale = events.iter().find(|event| event["reason"] == "stale-outputs").unwrap();
    assert_eq!(listed(stale), STALE);
    // Also a build that has nothing to do, however often.
    for _ in 0..2 {
        let run = forge.run(&["build", "-j", "1"]).success();
        let expected = "2 files in out/moment are no longer made by this recipe (";
        assert!(run.stderr.contains(expected), "{}", run.stderr);
        let expected = "): c0.gguf and c0.gguf.manifest.json; `forge clean --stale` removes them";
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    }
    let before = files(&forge);
    let run = clean(&forge, &["--stale", "--dry-run"]).success();
    assert!(run.stdout.contains("to remove: 2 files"), "{}", run.stdout);
    assert_eq!(files(&forge), before);

    let lines = lines(&forge, &["--stale", "--yes"]);
    assert_eq!(listed(&lines[0]), STALE);
    assert_eq!(
        (&lines[0]["reason"], &lines[1]["reason"]),
        (&"clean-plan".into(), &"cleaned".into())
    );
    assert_eq!(
        (&lines[1]["files"], &lines[1]["bytes"]),
        (&2.into(), &lines[0]["bytes"])
    );
    let stale: BTreeSet<String> = STALE.map(str::to_owned).into();
    assert_eq!(files(&forge), &before - &stale);
    let run = forge.run(&["build", "-j", "1"]).success();
    assert!(!run.stderr.contains("no longer made"), "{}", run.stderr);
    let run = clean(&forge, &["--stale", "--yes"]).success();
    assert!(run.stderr.contains("nothing in it is stale"), "{}", run.stderr);

    // Without `--stale` all that forge wrote goes, and the next build makes it again.
    forge.write("out/moment/mine.txt", "mine");
    assert!(
        clean(&forge, &["--yes"])
            .success()
            .stdout
            .contains("to remove: 4 files")
    );
    assert_eq!(files(&forge), BTreeSet::from(["mine.txt".to_owned()]));
    build_well(&forge, "out/moment");
    assert_clean(&forge, "a clean");
}

#[test]
fn without_a_terminal_nothing_is_removed_unless_yes_is_given() {
    let (forge, _) = renamed();
    let before = files(&forge);
    let run = clean(&forge, &["--stale"]).status(2);
    assert!(run.stderr.contains("usage::unconfirmed"), "{}", run.stderr);
    assert_eq!(files(&forge), before);
}

#[test]
fn an_edited_file_and_a_foreign_one_with_the_name_stay() {
    for foreign in [false, true] {
        let (forge, _) = renamed();
        let path = forge.path("out/moment/c0.gguf");
        let old = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        if foreign {
            bytes = b"another program's".to_vec();
        } else {
            *bytes.last_mut().unwrap() ^= 1;
        }
        std::fs::write(&path, &bytes).unwrap();
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(old)
            .unwrap();
        let before = files(&forge);
        let run = forge.run(&["build", "-j", "1"]).success();
        assert!(!run.stderr.contains("no longer made"), "{}", run.stderr);
        for scope in [&["--stale", "--yes"][..], &["--yes"]] {
            let run = clean(&forge, scope).success();
            assert!(
                run.stderr.contains("its content is not what its manifest says"),
                "{}",
                run.stderr
            );
        }
        let left: BTreeSet<String> = STALE.map(str::to_owned).into();
        assert_eq!(files(&forge), left, "{before:?}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn files_of_another_recipe_and_edited_manifests_stay() {
    let (forge, _) = renamed();
    // Another recipe writes into the same folder.
    forge.write(
        "other.toml",
        first()
            .replace("\"moment\"", "\"other\"")
            .replace("promote.c", "promote.d"),
    );
    let _ = forge
        .run(&["build", "other.toml", "--out", "out/moment", "-j", "1"])
        .success();
    // The store's record proves a candidate whose manifest is gone; an edited manifest proves nothing.
    let manifest = forge.path("out/moment/new.gguf.manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text + "\n").unwrap();
    std::fs::remove_file(forge.path("out/moment/c1.gguf.manifest.json")).unwrap();
    let lines = lines(&forge, &["--yes"]);
    assert_eq!(listed(&lines[0]), ["c0.gguf", "c0.gguf.manifest.json", "c1.gguf"]);
    let left = files(&forge);
    for name in ["d0.gguf", "d0.gguf.manifest.json", "d1.gguf", "new.gguf.manifest.json"] {
        assert!(left.contains(name), "{name}: {left:?}");
    }
}

#[test]
fn a_file_that_a_build_uses_stays() {
    let (forge, _) = renamed();
    let before = files(&forge);
    let store = Store::open(forge.store()).unwrap();
    let path = forge.path("out/moment/c0.gguf");
    let lock = store.lock_output(&path, &mut |_| {}, &|| true).unwrap().unwrap();
    let run = clean(&forge, &["--stale", "--yes"]).status(3);
    assert!(run.stderr.contains("a build is using it"), "{}", run.stderr);
    assert_eq!(files(&forge), before);
    drop(lock);
    let _ = clean(&forge, &["--stale", "--yes"]).success();
    assert!(!path.exists());
}

#[test]
fn tensors_that_only_the_removed_files_contain_are_named_or_kept() {
    for keep in [false, true] {
        let forge = project();
        build_well(&forge, "out/moment");
        // The two candidates have three of four tensors in common.
        forge.recipe(&first().replace("[promote.c0]\npolicy = \"p0\"", ""));
        build_well(&forge, "out/moment");
        let mut args = vec!["--stale", "--yes"];
        args.extend(keep.then_some("--keep-tensors"));
        let lines = lines(&forge, &args);
        assert_eq!(lines[0]["only_here"]["tensors"], 1, "{}", lines[0]);
        assert_eq!(
            lines[0]["only_here"]["names"],
            serde_json::json!(["blk.0.attn_q.weight"])
        );
        forge.recipe(&first());
        let events = build_well(&forge, "out/moment");
        assert_eq!(ran(&events, "tensor"), usize::from(!keep));
        // All of them: those that two stale candidates have in common, too.
        let run = clean(&forge, &["--dry-run"]).success();
        assert!(run.stdout.contains("5 tensors"), "{}", run.stdout);
        assert!(run.stdout.contains("`--keep-tensors`"), "{}", run.stdout);
        args.remove(0);
        let _ = clean(&forge, &args).success();
        assert_eq!(files(&forge), BTreeSet::new());
        let events = build_well(&forge, "out/moment");
        assert_eq!(ran(&events, "tensor"), if keep { 0 } else { 5 });
        assert_clean(&forge, "a clean");
    }
}

#[test]
fn an_interrupted_clean_is_continued() {
    let (forge, _) = renamed();
    std::fs::remove_file(forge.path("out/moment/c0.gguf")).unwrap();
    let lines = lines(&forge, &["--stale", "--yes"]);
    assert_eq!(listed(&lines[0]), STALE[1..]);
    assert!(!forge.path("out/moment/c0.gguf.manifest.json").exists());
}

#[test]
fn tables_and_signatures_are_removed_with_what_they_belong_to() {
    let forge = one_layer_project::project();
    let tables = "\n[metrics.first]\n\n[metrics.second]\n";
    forge.recipe(&format!("{}{tables}", one_layer_project::RECIPE));
    let _ = forge.run(&["key", "new", "key"]).success();
    let _ = forge.run(&["build", "-j", "1", "--sign", "key"]).success();
    assert!(forge.path("out/small/metrics-first.json").exists());
    let without = one_layer_project::RECIPE.replace("[promote.b]", "[promote.c]");
    forge.recipe(&without);
    let run = forge.run(&["build", "-j", "1"]).success();
    assert!(run.stderr.contains("7 files in out/small"), "{}", run.stderr);
    let found = &lines(&forge, &["--stale", "--dry-run"])[0];
    let expected = [
        "b.gguf",
        "b.gguf.manifest.json.sig.json",
        "b.gguf.manifest.json",
        "metrics-first.json",
        "metrics-first.md",
        "metrics-second.json",
        "metrics-second.md",
    ];
    assert_eq!(listed(found), expected);
}

#[test]
fn verify_says_good_stale_bad_and_missing_apart() {
    let (forge, _) = renamed();
    for args in [&["verify"][..], &["verify", "out/moment"], &["verify", "out"]] {
        let run = forge.run(args).success();
        assert!(
            run.stdout.contains("stale out/moment/c0.gguf  "),
            "{args:?}: {}",
            run.stdout
        );
        assert!(
            run.stderr.ends_with("forge: 2 good, 0 bad, 1 stale\n"),
            "{}",
            run.stderr
        );
    }
    let path = forge.path("out/moment/c1.gguf");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    std::fs::remove_file(forge.path("out/moment/new.gguf")).unwrap();
    let run = forge.run(&["verify"]).status(1);
    assert!(run.stdout.contains("BAD   out/moment/c1.gguf\n"), "{}", run.stdout);
    assert!(run.stdout.contains("MISSING out/moment/new.gguf\n"), "{}", run.stdout);
    assert!(
        run.stderr.ends_with("forge: 0 good, 1 bad, 1 missing, 1 stale\n"),
        "{}",
        run.stderr
    );
    // A wanted candidate without any file, and a stale one without its file.
    std::fs::remove_file(forge.path("out/moment/new.gguf.manifest.json")).unwrap();
    std::fs::remove_file(forge.path("out/moment/c0.gguf")).unwrap();
    let run = forge.run(&["verify", "--message-format", "json"]).status(1);
    let verdicts: Vec<String> = run
        .json_lines()
        .iter()
        .map(|line| line["verdict"].to_string())
        .collect();
    assert_eq!(verdicts, ["\"missing\"", "\"bad\"", "\"missing\""]);
}
