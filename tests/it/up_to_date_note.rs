//! The note of a build that found everything done: used while nothing has changed, and never after anything has.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use forge::session::BuildRequest;
use forge::session::nothing_to_do;

use crate::one_layer_project;
use crate::one_layer_project::build_well;
use crate::one_layer_project::corrupt_quietly;
use crate::one_layer_project::edited;
use crate::support::Forge;

/// A recipe with one of everything that a note looks at, in two files.
fn project() -> Forge {
    let forge = Forge::new();
    one_layer_project::furnish(&forge);
    let recipe = edited(
        one_layer_project::RECIPE,
        r#"files = ["prose.txt"]"#,
        r#"files = ["pro*.txt"]"#,
    );
    let recipe = edited(&recipe, "schema = 1\n", "schema = 1\nextends = \"base.toml\"\n");
    let source = "[source.model]\npath = \"model.gguf\"\n";
    let base = format!("schema = 1\n{source}");
    forge.write("base.toml", base).recipe(&edited(&recipe, source, ""));
    forge
}

fn request(forge: &Forge) -> BuildRequest {
    BuildRequest {
        recipe: forge.path("recipe.toml"),
        out: None,
        steps: Vec::new(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_forge")),
        engines: forge::engine::Engines::new(1, &forge::engine::EngineSettings::new()),
    }
}

fn answer(forge: &Forge) -> Option<usize> {
    nothing_to_do(forge.store(), &request(forge)).map(|found| found.steps)
}

type Change = fn(&Forge);

/// Returns where the store keeps what the record of some step has a hash of in this field.
fn of_a_step(forge: &Forge, field: &str, directory: &str) -> PathBuf {
    let mut records = std::fs::read_dir(forge.store().join("runs-v1/last")).unwrap();
    let record = std::fs::read_to_string(records.next().unwrap().unwrap().path()).unwrap();
    let hash = record.split(&format!("\"{field}\":\"")).nth(1).unwrap();
    forge.store().join(directory).join(&hash[..2]).join(&hash[2..64])
}

fn blob_of_a_step(forge: &Forge) -> PathBuf {
    of_a_step(forge, "document", "cas-v1")
}

fn result_of_a_step(forge: &Forge) -> PathBuf {
    of_a_step(forge, "action", "actions-v1")
}

/// What a build must look into, each by itself.
const CHANGES: &[(&str, Change)] = &[
    ("a source edited in place, size and time put back", |forge| {
        corrupt_quietly(&forge.path("model.gguf"), 20_000);
    }),
    ("a text edited in place, size and time put back", |forge| {
        corrupt_quietly(&forge.path("held-out.txt"), 7);
    }),
    ("one more file that a pattern matches", |forge| {
        forge.write("prose-2.txt", "More of it.");
    }),
    ("a comment in the recipe", |forge| {
        let text = std::fs::read_to_string(forge.path("recipe.toml")).unwrap();
        forge.recipe(&format!("{text}# a comment\n"));
    }),
    ("a comment in what the recipe extends", |forge| {
        let text = std::fs::read_to_string(forge.path("base.toml")).unwrap();
        forge.write("base.toml", format!("{text}# a comment\n"));
    }),
    ("a candidate edited in place, size and time put back", |forge| {
        corrupt_quietly(&forge.path("out/small/a.gguf"), 20_000);
    }),
    ("a candidate gone", |forge| {
        std::fs::remove_file(forge.path("out/small/b.gguf")).unwrap();
    }),
    ("a manifest gone", |forge| {
        std::fs::remove_file(forge.path("out/small/a.gguf.manifest.json")).unwrap();
    }),
    ("a table edited", |forge| {
        forge.write("out/small/metrics.md", "nothing");
    }),
    ("a blob of a step gone", |forge| {
        std::fs::remove_file(blob_of_a_step(forge)).unwrap();
    }),
    ("a result replaced by another file with the same bytes", |forge| {
        let result = result_of_a_step(forge);
        let copy = forge.path("copy");
        std::fs::copy(&result, &copy).unwrap();
        std::fs::rename(copy, result).unwrap();
    }),
    (
        "a file of the store cut short in a folder that changed meanwhile",
        |forge| {
            let blob = blob_of_a_step(forge);
            std::fs::set_permissions(&blob, PermissionsExt::from_mode(0o644)).unwrap();
            std::fs::OpenOptions::new()
                .write(true)
                .open(&blob)
                .unwrap()
                .set_len(1)
                .unwrap();
            std::fs::write(blob.with_file_name("new"), b"").unwrap();
        },
    ),
    ("a source gone", |forge| {
        std::fs::remove_file(forge.path("model.gguf")).unwrap();
    }),
];

#[test]
fn the_note_is_used_only_while_nothing_has_changed() {
    let projects: Vec<(&str, Change, Forge)> = CHANGES
        .iter()
        .map(|(what, change)| (*what, *change, project()))
        .collect();
    one_layer_project::in_parallel(&projects, |(what, _, forge)| {
        build_well(forge, &[]);
        assert_eq!(answer(forge), None, "{what}: a build that ran something notes nothing");
    });
    for (_, _, forge) in &projects {
        forge.settle();
    }
    one_layer_project::in_parallel(&projects, |(what, change, forge)| {
        let steps = build_well(forge, &[]).events.last().unwrap()["hit"].as_u64();
        assert_eq!(answer(forge).map(|steps| steps as u64), steps, "{what}");
        let said = forge.run(&["build"]).success().stderr;
        assert!(
            said.contains(&format!("nothing to do ({} hit)", steps.unwrap())),
            "{said}"
        );
        let other = |change: &dyn Fn(&mut BuildRequest)| {
            let mut request = request(forge);
            change(&mut request);
            nothing_to_do(forge.store(), &request)
        };
        assert_eq!(other(&|request| request.steps = vec!["promote.a".to_owned()]), None);
        assert_eq!(other(&|request| request.out = Some(forge.path("elsewhere"))), None);
        assert_eq!(other(&|request| request.program = forge.path("base.toml")), None);
        assert_eq!(other(&|request| request.recipe = forge.path("base.toml")), None);

        change(forge);
        assert_eq!(answer(forge), None, "{what}");
    });
}

#[test]
fn additions_to_the_store_do_not_invalidate_the_note() {
    let forge = project();
    build_well(&forge, &[]);
    forge.settle();
    build_well(&forge, &[]);
    let steps = answer(&forge);
    assert!(steps.is_some());
    for directory in ["cas-v1", "actions-v1"] {
        for shard in std::fs::read_dir(forge.store().join(directory)).unwrap() {
            std::fs::write(shard.unwrap().path().join("new"), b"").unwrap();
        }
    }
    assert_eq!(answer(&forge), steps);
    // Then every file is looked at.
    let blob = blob_of_a_step(&forge);
    std::fs::set_permissions(&blob, PermissionsExt::from_mode(0o644)).unwrap();
    assert_eq!(answer(&forge), None, "its ctime");
}

#[test]
fn a_damaged_note_is_ignored() {
    let forge = project();
    build_well(&forge, &[]);
    forge.settle();
    build_well(&forge, &[]);
    assert!(answer(&forge).is_some());
    let folder = forge.store().join("runs-v1/fresh");
    let note = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&note).unwrap();
    for at in (0..whole.len()).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 4;
        std::fs::write(&note, bytes).unwrap();
        assert_eq!(answer(&forge), None, "byte {at}");
    }
    std::fs::write(&note, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(answer(&forge), None);
    std::fs::write(&note, whole).unwrap();
    assert!(answer(&forge).is_some());
}

#[test]
fn failed_gates_and_recipes_with_warnings_write_no_note() {
    let gated = project();
    let text = std::fs::read_to_string(gated.path("recipe.toml")).unwrap();
    gated.recipe(&format!(
        "{text}\n[gate.strict]\nrequire = [\"kld_mean < 0.0000001\"]\n"
    ));
    let warned = project();
    warned.recipe(&format!("{text}\n[policy.unused]\nmethod = \"mix\"\nmix = \"Q4_0\"\n"));
    for _ in 0..2 {
        let _ = one_layer_project::build(&gated, &[]).run.status(1);
        build_well(&warned, &[]);
        gated.settle();
        warned.settle();
    }
    assert_eq!(one_layer_project::build(&gated, &[]).run.status, Some(1));
    assert_eq!(answer(&gated), None);
    let said = warned.run(&["build"]).success().stderr;
    assert!(said.contains("unused"), "{said}");
    assert_eq!(answer(&warned), None);
}
