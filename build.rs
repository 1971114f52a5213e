//! Records how the linked engine was compiled, for its fingerprint: `src/engine/identity.rs` reads the variables that are
//! set here. Nothing is compiled here.
#![allow(clippy::disallowed_methods, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=Cargo.lock");
    for name in ["CC", "CXX", "CFLAGS", "CXXFLAGS", "DEP_LLAMA_GGML_CMAKE_DIR"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let set = |name: &str, value: &str| println!("cargo::rustc-env=FORGE_ENGINE_{name}={}", one_line(value));
    let variable = |name: &str| env::var(name).unwrap_or_default();

    let (version, checksum) = locked("llama-cpp-sys-2");
    set("CRATE", &version);
    set("CRATE_CHECKSUM", &checksum);
    set("TARGET", &variable("TARGET"));
    let cache = cmake_build().and_then(|build| Some((cmake_cache(&build)?, build)));
    let compiler = |language: &str, fallback: &str| {
        let found = cache.as_ref().and_then(|(_, build)| cmake_compiler(build, language));
        found.unwrap_or_else(|| compiler_version(fallback))
    };
    set("CC", &compiler("C", "cc"));
    set("CXX", &compiler("CXX", "c++"));
    let entries = cache.map(|(entries, _)| entries).unwrap_or_default();
    let entry = |name: &str| entries.get(name).cloned().unwrap_or_default();
    let profile = entry("CMAKE_BUILD_TYPE");
    let flags = |language: &str| {
        format!(
            "{} {}",
            entry(&format!("CMAKE_{language}_FLAGS")),
            entry(&format!("CMAKE_{language}_FLAGS_{}", profile.to_uppercase()))
        )
    };
    if entries.is_empty() {
        set("CFLAGS", &variable("CFLAGS"));
        set("CXXFLAGS", &variable("CXXFLAGS"));
    } else {
        set("CFLAGS", &flags("C"));
        set("CXXFLAGS", &flags("CXX"));
    }
    let options: Vec<String> = entries
        .iter()
        .filter(|(name, value)| name.starts_with("GGML_") && !value.is_empty() && value.as_str() != "OFF")
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    set("OPTIONS", &options.join(" "));

    // What the processor must have: what rustc was told, and what ggml's kernels were built for.
    let mut features: Vec<String> = variable("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .filter(|feature| !feature.is_empty())
        .map(str::to_owned)
        .collect();
    if variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
        let kernels = [
            ("GGML_SSE42", "sse4.2"),
            ("GGML_AVX", "avx"),
            ("GGML_AVX2", "avx2"),
            ("GGML_BMI2", "bmi2"),
            ("GGML_FMA", "fma"),
            ("GGML_F16C", "f16c"),
        ];
        let on = |option: &str| entries.get(option).is_some_and(|value| value == "ON");
        features.extend(
            kernels
                .into_iter()
                .filter(|(option, _)| on(option))
                .map(|(_, feature)| feature.to_owned()),
        );
    }
    features.sort();
    features.dedup();
    set("CPU", &features.join(","));
}

/// Returns the locked version and checksum of a package. A build without a lock file has neither.
fn locked(package: &str) -> (String, String) {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let text = fs::read_to_string(root.join("Cargo.lock")).unwrap_or_default();
    let entry = text
        .split("[[package]]")
        .find(|entry| field(entry, "name").as_deref() == Some(package));
    let get = |name| {
        entry
            .and_then(|entry| field(entry, name))
            .unwrap_or_else(|| "unknown".to_owned())
    };
    (get("version"), get("checksum"))
}

/// Returns a `name = "value"` of one entry of a lock file.
fn field(entry: &str, name: &str) -> Option<String> {
    entry.lines().find_map(|line| {
        let (key, value) = line.split_once(" = ")?;
        (key == name).then(|| value.trim_matches('"').to_owned())
    })
}

/// Returns the folder in which llama.cpp was configured, which lies beside what the engine's crate installed.
fn cmake_build() -> Option<PathBuf> {
    let installed = PathBuf::from(env::var("DEP_LLAMA_GGML_CMAKE_DIR").ok()?);
    installed
        .ancestors()
        .map(|folder| folder.join("build"))
        .find(|build| build.join("CMakeCache.txt").is_file())
}

/// Returns what CMake was configured with, but for paths and what it found out itself.
fn cmake_cache(build: &Path) -> Option<BTreeMap<String, String>> {
    let text = fs::read_to_string(build.join("CMakeCache.txt")).ok()?;
    let entry = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let (kind, value) = rest.split_once('=')?;
        matches!(kind, "BOOL" | "STRING").then(|| (name.to_owned(), value.trim().to_owned()))
    };
    Some(
        text.lines()
            .filter_map(entry)
            .filter(|(name, _)| !name.contains("_INSTALL_"))
            .collect(),
    )
}

/// Returns the name and version of the compiler that CMake chose for a language, as `GNU 12.2.0`.
fn cmake_compiler(build: &Path, language: &str) -> Option<String> {
    let file = format!("CMake{language}Compiler.cmake");
    let folders = fs::read_dir(build.join("CMakeFiles")).ok()?;
    let path = folders
        .flatten()
        .map(|folder| folder.path().join(&file))
        .find(|path| path.is_file())?;
    let text = fs::read_to_string(path).ok()?;
    let get = |name: &str| {
        let start = format!("set(CMAKE_{language}_COMPILER_{name} \"");
        text.lines()
            .find_map(|line| Some(line.strip_prefix(&start)?.strip_suffix("\")")?.to_owned()))
    };
    Some(format!("{} {}", get("ID")?, get("VERSION")?))
}

/// Returns the first line that the compiler says of its version.
fn compiler_version(fallback: &str) -> String {
    let variable = if fallback == "cc" { "CC" } else { "CXX" };
    let program = env::var(variable).unwrap_or_else(|_| fallback.to_owned());
    let output = Command::new(program).arg("--version").output();
    let text = output
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

/// Joins words with single blanks, so that a value is one line.
fn one_line(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}
