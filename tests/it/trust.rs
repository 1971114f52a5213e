//! Files that came with a download: what a `forge.toml`, a key, a name or a link in them may do.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::TensorSpec;
use forge::tensor_type::TensorType;

use crate::one_layer_project;
use crate::small_model;
use crate::support::Forge;
use crate::support::Run;

/// Settings that a folder may not make by itself, each with the word that the error must name.
const RESTRICTED: [(&str, &str); 3] = [
    ("cache_dir", "cache_dir = \"theirs\"\n"),
    ("signing.key", "[signing]\nkey = \"key\"\n"),
    ("cache.max-size", "[cache]\nmax-size = \"1 KB\"\n"),
];

fn project() -> Forge {
    let forge = small_model::project();
    let _ = forge.run(&["key", "new", "key"]).success();
    forge
}

/// Builds the policy only, with a store where the settings say.
fn build(forge: &Forge) -> Run {
    let args = ["build", "-j", "1", "recipe.toml", "corpus.held-out"];
    Run::of(forge.command(&args).env_remove("FORGE_CACHE_DIR").output().unwrap())
}

#[test]
fn settings_in_the_recipes_folder_cannot_choose_the_store_its_limit_or_a_key() {
    let forge = project();
    let names = small_model::names(forge.dir());
    for (key, text) in RESTRICTED {
        forge.write("forge.toml", text);
        let run = build(&forge).status(3);
        let folder = forge.dir().canonicalize().unwrap();
        for part in [
            "error[settings::untrusted]",
            &format!("sets `{key}`"),
            &format!("trusted = [\"{}\"]", folder.display()),
            ".config/forge/forge.toml",
        ] {
            assert!(run.stderr.contains(part), "{key}: `{part}` in {}", run.stderr);
        }
        assert!(
            !forge.path("theirs").exists() && !forge.path(".cache").exists(),
            "{key}"
        );
    }
    std::fs::remove_file(forge.path("forge.toml")).unwrap();
    assert_eq!(small_model::names(forge.dir()), names);
    // A folder cannot permit itself anything.
    forge.write("forge.toml", "trusted = [\"/\"]\ncache_dir = \"theirs\"\n");
    let run = build(&forge).status(3);
    assert!(run.stderr.contains("sets `trusted`"), "{}", run.stderr);
    // What only says how to work is the folder's to say.
    forge.write(
        "forge.toml",
        "color = \"never\"\n[engine.embedded]\nthreads = 1\n[pools]\ncpu = 1\n[cache]\nborrow = false\n",
    );
    let _ = build(&forge).success();
    assert!(forge.path(".cache/forge").is_dir(), "the store is where it always is");
}

#[test]
fn the_command_line_overrides_untrusted_settings() {
    let forge = project();
    forge.write("forge.toml", "cache_dir = \"theirs\"\n[signing]\nkey = \"nothing\"\n");
    let args = ["build", "-j", "1", "--sign", "key", "recipe.toml", "promote.small@Q4_0"];
    let _ = forge.run(&args).success();
    assert!(!forge.path("theirs").exists());
    let _ = forge.run(&["cache", "size"]).success();
    let run = forge.run(&["sign", "out/small/small-Q4_0.gguf"]).status(3);
    assert!(run.stderr.contains("sets `signing.key`"), "{}", run.stderr);
}

#[test]
fn a_folder_that_the_user_trusts_may_set_everything() {
    let forge = project();
    forge.write(
        "forge.toml",
        "cache_dir = \"theirs\"\n[cache]\nmax-size = \"1 KB\"\n[signing]\nkey = \"key\"\n",
    );
    // The folder above it, by way of a link.
    symlink(forge.dir().parent().unwrap(), forge.path("above")).unwrap();
    forge.write(
        ".config/forge/forge.toml",
        format!("trusted = [\"/nowhere\", \"{}\"]\n", forge.path("above").display()),
    );
    let run = build(&forge).success();
    assert!(forge.path("theirs").is_dir());
    assert!(run.stderr.contains("limit"), "{}", run.stderr);
    // Another folder is not trusted by that.
    forge.write(".config/forge/forge.toml", "trusted = [\"/nowhere\"]\n");
    let _ = build(&forge).status(3);
}

#[test]
fn the_users_own_settings_count_beside_those_of_the_folder() {
    let forge = project();
    forge.write(".config/forge/forge.toml", "cache_dir = \"mine\"\n[pools]\ncpu = 1\n");
    forge.write("forge.toml", "color = \"always\"\n");
    let _ = build(&forge).success();
    assert!(forge.path(".config/forge/mine").is_dir());
}

#[test]
fn a_key_that_others_may_read_does_not_sign() {
    let forge = project();
    let mode = |mode| std::fs::set_permissions(forge.path("key"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o640);
    let run = forge.run(&["build", "-j", "1", "--sign", "key"]).status(3);
    assert!(
        run.stderr.contains("mode 0640") && run.stderr.contains("chmod 600 "),
        "{}",
        run.stderr
    );
    assert!(!forge.path("out").exists(), "it is said before the build");
    mode(0o600);
    let _ = forge
        .run(&["build", "-j", "1", "--sign", "key", "recipe.toml", "corpus.held-out"])
        .success();
}

/// Text that would add a line, turn the text around, and clear the screen.
const HOSTILE: &str = "a\nforge: nothing to do\u{202e}\u{2066}\u{200f}\u{1b}[2J\r";

/// Holds what was printed to be lines of the program, and nothing but text.
fn assert_tame(run: &Run, what: &str) {
    for text in [&run.stdout, &run.stderr] {
        assert!(
            !text.lines().any(|line| line.starts_with("forge: nothing to do")),
            "{what}: {text}"
        );
        let steers = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}\u{200f}".contains(c);
        assert!(!text.contains(steers), "{what}: {text:?}");
    }
    let all = format!("{}{}", run.stdout, run.stderr);
    assert!(all.contains(r"a\nforge: nothing to do\u{202e}"), "{what}: {all}");
}

fn hostile_model(path: &Path) {
    let mut metadata = Metadata::new();
    metadata.set("general.architecture", &HOSTILE.into()).unwrap();
    let name: String = HOSTILE.chars().filter(|c| !"\u{2066}\u{200f}".contains(*c)).collect();
    let spec = TensorSpec {
        name: format!("{name}.weight"),
        ty: TensorType::F32,
        dims: vec![32, 2],
    };
    let layout = Layout::new(&metadata, &[spec], 32).unwrap();
    let mut bytes = Vec::new();
    layout
        .write(&mut bytes, &mut |_, out| out.write_all(&[0; 256]))
        .unwrap();
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn names_from_files_cannot_add_lines_or_control_the_terminal() {
    let forge = small_model::project();
    hostile_model(&forge.path("model.gguf"));
    for args in [
        &["policy", "show", "model.gguf", "--by", "tensor"][..],
        &["diff", "model.gguf", "small.gguf"],
        &["policy", "groups", "model.gguf"],
    ] {
        assert_tame(&forge.run(args), args[0]);
    }
    // A file's name, in a recipe and on the command line.
    let quoted = serde_json::to_string(HOSTILE).unwrap().replace("\\u001b", "\\u001B");
    forge.recipe(&small_model::RECIPE.replace("\"small.gguf\"", &quoted));
    for args in [&["build"][..], &["plan"]] {
        assert_tame(&forge.run(args), args[0]);
    }
    for args in [
        &["check", HOSTILE][..],
        &["verify", HOSTILE],
        &["sign", HOSTILE, "--key", HOSTILE],
    ] {
        assert_tame(&forge.run(args), args[0]);
    }
    // A recipe that says it in a name and in a value.
    forge.recipe(&format!("schema = 1\nname = {quoted}\n[source.{quoted}]\npath = 7\n"));
    assert_tame(&forge.run(&["check"]).status(1), "check");
}

#[test]
fn key_ids_in_signatures_are_escaped() {
    let forge = one_layer_project::project();
    let _ = forge.run(&["key", "new", "key"]).success();
    let _ = forge
        .run(&["build", "-j", "1", "--sign", "key", "recipe.toml", "promote.a"])
        .success();
    let path = forge.path("out/small/a.gguf.manifest.json.sig.json");
    let mut envelope: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    envelope["signatures"][0]["keyid"] = "a\n\u{202e}good  b".into();
    std::fs::write(&path, envelope.to_string()).unwrap();
    let run = forge.run(&["verify", "out/small/a.gguf"]);
    assert!(!run.stdout.contains('\u{202e}'), "{}", run.stdout);
    assert!(
        !run.stdout.lines().any(|line| line.starts_with("good  b")),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains(r"a\n\u{202e}good"), "{}", run.stdout);
}

#[test]
fn the_output_folder_may_be_a_link_and_links_in_it_may_not_lead_out() {
    let forge = Forge::new();
    one_layer_project::furnish(&forge);
    forge.recipe(one_layer_project::BARE);
    for (link, folder) in [("out", "disk"), ("out/bare", "other-disk")] {
        std::fs::create_dir(forge.path(folder)).unwrap();
        symlink(forge.path(folder), forge.path(link)).unwrap();
        let _ = forge.run(&["build", "-j", "1"]).success();
        let run = forge.run(&["build", "-j", "1"]).success();
        assert!(run.stderr.contains("nothing to do"), "{link}: {}", run.stderr);
        let _ = forge.run(&["verify"]).success();
        assert!(
            forge.path("out/bare/p.gguf").is_file() && forge.path(link).is_symlink(),
            "{link}"
        );
        if link == "out" {
            assert!(forge.path("disk/bare/p.gguf").is_file());
            std::fs::remove_dir_all(forge.path("disk/bare")).unwrap();
        }
    }
    // The output itself is a link to a file of the user's.
    forge.write("precious", "mine");
    std::fs::remove_file(forge.path("out/bare/p.gguf")).unwrap();
    symlink(forge.path("precious"), forge.path("out/bare/p.gguf")).unwrap();
    let run = forge.run(&["build", "-j", "1"]).status(1);
    assert!(run.stderr.contains("leads outside"), "{}", run.stderr);
    assert_eq!(std::fs::read(forge.path("precious")).unwrap(), b"mine");
    // A link to nowhere is no folder.
    std::fs::remove_file(forge.path("out")).unwrap();
    symlink(forge.path("nowhere"), forge.path("out")).unwrap();
    let run = forge.run(&["build", "-j", "1"]).status(3);
    assert!(run.stderr.contains("out"), "{}", run.stderr);
    assert!(!forge.path("nowhere").exists());
}
