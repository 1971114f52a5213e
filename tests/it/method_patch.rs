//! The patch of `docs/architecture.md`, "Adding a method": a method is one file and two lines.

use std::path::Path;
use std::process::Command;

use crate::support::project as root;

/// Returns the patch.
fn patch() -> String {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let (_, section) = page.split_once("### Adding a method").unwrap();
    let (_, patch) = section.split_once("```diff\n").unwrap();
    patch.split_once("```").unwrap().0.to_owned()
}

/// Copies a file or folder of the source.
fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}

#[test]
fn a_method_is_one_file_and_two_lines() {
    let patch = patch();
    let (mut file, mut added) = (String::new(), Vec::new());
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("+++ b/") {
            name.clone_into(&mut file);
        } else if let Some(line) = line.strip_prefix('+') {
            added.push((file.clone(), line.to_owned()));
        } else {
            assert!(!line.starts_with('-') || line.starts_with("--- "), "{line}");
        }
    }
    let (new, others): (Vec<_>, Vec<_>) = added.iter().partition(|(file, _)| file == "src/method/uniform.rs");
    assert!(!new.is_empty());
    let others: Vec<_> = others.iter().map(|(file, line)| (file.as_str(), line.trim())).collect();
    assert_eq!(
        others,
        [
            ("src/method/list.rs", "Uniform = uniform,"),
            ("src/method/mod.rs", "pub mod uniform;")
        ]
    );

    let copied = tempfile::tempdir().unwrap();
    // The tests are named in the manifest.
    std::fs::create_dir_all(copied.path().join("tests")).unwrap();
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        ".cargo",
        "build.rs",
        "src",
        "recipes",
        "benches",
        "tests/it",
    ] {
        copy(&root().join(name), &copied.path().join(name));
    }
    std::fs::write(copied.path().join("method.patch"), patch).unwrap();
    let applied = Command::new("git")
        .args(["apply", "--whitespace=error-all", "method.patch"])
        .current_dir(copied.path())
        .env("GIT_CEILING_DIRECTORIES", copied.path())
        .output()
        .unwrap();
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));

    // Compiling takes a minute: only CI does it, where the lints have compiled what forge depends on.
    if std::env::var_os("FORGE_TEST_PATCH").is_none() {
        return;
    }
    let target = Path::new(env!("CARGO_BIN_EXE_forge")).ancestors().nth(2).unwrap();
    let checked = Command::new(env!("CARGO"))
        .args(["check", "--lib", "--quiet", "--offline", "--target-dir"])
        .arg(target)
        .current_dir(copied.path())
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
