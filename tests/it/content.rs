//! Files are recognized by their content, whatever their names.

use crate::one_layer_project::build_well;
use crate::one_layer_project::collected_imatrix;
use crate::one_layer_project::project;
use crate::support::Forge;

/// A project with an imatrix under names that models have, and a model under a name that imatrices have.
fn oddly_named() -> Forge {
    let forge = project();
    let imatrix = collected_imatrix(&forge);
    for name in ["imatrix_unsloth.gguf_file", "X-imatrix.gguf"] {
        forge.write(name, &imatrix);
    }
    std::fs::copy(forge.path("model.gguf"), forge.path("model.imatrix.dat")).unwrap();
    forge
}

fn recipe(model: &str, imatrix: &str) -> String {
    format!(
        "schema = 1\nname = \"odd\"\n[source.m]\npath = \"{model}\"\n[source.i]\npath = \"{imatrix}\"\n\
         [imatrix.i]\nsource = \"i\"\n[policy.p]\nmethod = \"mix\"\nmix = \"Q4_K_M\"\nimatrix = \"i\"\n[promote.p]\npolicy = \"p\"\n"
    )
}

#[test]
fn sources_are_what_is_in_them() {
    let forge = oddly_named();
    for (model, imatrix) in [
        ("model.imatrix.dat", "imatrix_unsloth.gguf_file"),
        ("model.gguf", "X-imatrix.gguf"),
    ] {
        forge.recipe(&recipe(model, imatrix));
        let _ = forge.run(&["check"]).success();
        let _ = forge.run(&["plan"]).success();
        build_well(&forge, &[]);
    }
    let diff = forge
        .run(&["diff", "imatrix_unsloth.gguf_file", "X-imatrix.gguf"])
        .success();
    assert!(!diff.stdout.contains("candidate"), "{}", diff.stdout);
    let shown = forge.run(&["policy", "show", "./model.imatrix.dat"]).success();
    assert!(shown.stdout.contains("token_embd"), "{}", shown.stdout);
}

#[test]
fn a_source_of_another_kind_is_reported_with_its_kind() {
    let forge = oddly_named();
    let mut safetensors = 64_u64.to_le_bytes().to_vec();
    safetensors.extend(b"{\"__metadata__\":{\"format\":\"pt\"}}                              ");
    forge.write("model.safetensors.gguf", &safetensors);
    let model = std::fs::read(forge.path("model.gguf")).unwrap();
    forge.write("cut.gguf", &model[..1000]);
    for (source, used, expected) in [
        (
            "X-imatrix.gguf",
            "model.imatrix.dat",
            "an imatrix (GGUF), but the recipe uses it as a model",
        ),
        (
            "model.safetensors.gguf",
            "X-imatrix.gguf",
            "a safetensors model, but the recipe uses it as a model",
        ),
        ("prose.txt", "X-imatrix.gguf", "not a GGUF file"),
        (
            "model.gguf",
            "model.imatrix.dat",
            "a GGUF model, but the recipe uses it as an imatrix",
        ),
        ("cut.gguf", "X-imatrix.gguf", "cut.gguf"),
    ] {
        forge.recipe(&recipe(source, used));
        let run = forge.run(&["build"]).status(1);
        assert!(run.stderr.contains(expected), "{source}: {}", run.stderr);
        assert!(!forge.path("out/odd/p.gguf").exists());
    }
}

#[test]
fn recipes_and_manifests_need_no_extension() {
    let forge = oddly_named();
    forge.recipe(&recipe("model.gguf", "X-imatrix.gguf"));
    build_well(&forge, &[]);
    std::fs::copy(forge.path("recipe.toml"), forge.path("recipe.txt")).unwrap();
    let run = forge.run(&["verify", "recipe.txt"]).success();
    assert!(run.stderr.contains("1 good"), "{} {}", run.stdout, run.stderr);
    let why = forge.run(&["why", "recipe.txt"]).success();
    assert!(why.stdout.contains("why: nothing to do (4 hit)"), "{}", why.stdout);
}
