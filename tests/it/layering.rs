//! The rules of the architecture (`docs/architecture.md`), checked on the text of `src/`: which module may name which, that no two
//! files import each other, and which modules may use files, the process and `unsafe`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use regex::Regex;

use crate::support::project;

/// What a module may name.
enum Names {
    /// These, all of them above it in the list.
    Only(&'static [&'static str]),
    /// Everything above it in the list.
    All,
}

/// The modules, lowest first.
const LAYERS: &[(&str, Names)] = &[
    ("digest", Names::Only(&[])),
    ("fs", Names::Only(&[])),
    ("vocab", Names::Only(&[])),
    ("observer", Names::Only(&["digest", "vocab"])),
    ("prose", Names::Only(&[])),
    ("sign", Names::Only(&["fs"])),
    ("text", Names::Only(&[])),
    ("tensor_type", Names::Only(&["prose"])),
    ("mix", Names::Only(&["prose", "tensor_type"])),
    ("gguf", Names::Only(&["fs", "tensor_type"])),
    ("imatrix", Names::Only(&["gguf", "tensor_type", "vocab"])),
    ("moments", Names::Only(&[])),
    ("fisher", Names::Only(&[])),
    ("rounding", Names::Only(&["moments", "tensor_type"])),
    ("container", Names::Only(&["fs", "gguf", "tensor_type"])),
    ("content", Names::Only(&["container", "fs"])),
    ("quantity", Names::Only(&["prose"])),
    ("requirement", Names::Only(&["prose", "quantity"])),
    (
        "engine",
        Names::Only(&[
            "digest",
            "fisher",
            "fs",
            "gguf",
            "imatrix",
            "moments",
            "rounding",
            "tensor_type",
            "vocab",
        ]),
    ),
    (
        "syntax",
        Names::Only(&["mix", "prose", "quantity", "requirement", "tensor_type", "text"]),
    ),
    ("figures", Names::Only(&[])),
    ("overlap", Names::Only(&[])),
    // The checker of certificates shares nothing with the solver that writes them.
    ("allocation", Names::Only(&[])),
    ("certificate", Names::Only(&[])),
    (
        "policy",
        Names::Only(&["allocation", "gguf", "mix", "prose", "tensor_type"]),
    ),
    (
        "method",
        Names::Only(&[
            "allocation",
            "container",
            "digest",
            "engine",
            "mix",
            "policy",
            "quantity",
            "syntax",
            "tensor_type",
            "vocab",
        ]),
    ),
    (
        "recipe",
        Names::Only(&["method", "prose", "quantity", "requirement", "syntax", "text", "vocab"]),
    ),
    (
        "settings",
        Names::Only(&["engine", "prose", "quantity", "recipe", "syntax", "text"]),
    ),
    ("report", Names::Only(&["figures", "prose", "requirement"])),
    ("action", Names::Only(&["digest", "method", "vocab"])),
    ("store", Names::Only(&["action", "digest", "fs"])),
    ("runs", Names::Only(&["digest", "store", "vocab"])),
    ("graph", Names::Only(&["recipe"])),
    (
        "timing",
        Names::Only(&[
            "digest",
            "engine",
            "figures",
            "fs",
            "gguf",
            "moments",
            "observer",
            "policy",
            "tensor_type",
        ]),
    ),
    (
        "work",
        Names::Only(&[
            "container",
            "action",
            "allocation",
            "digest",
            "engine",
            "figures",
            "fisher",
            "fs",
            "gguf",
            "imatrix",
            "method",
            "moments",
            "observer",
            "overlap",
            "policy",
            "prose",
            "report",
            "requirement",
            "rounding",
            "store",
            "tensor_type",
            "timing",
            "vocab",
        ]),
    ),
    (
        "step",
        Names::Only(&[
            "container",
            "content",
            "action",
            "allocation",
            "digest",
            "engine",
            "figures",
            "fisher",
            "fs",
            "gguf",
            "graph",
            "imatrix",
            "method",
            "moments",
            "observer",
            "policy",
            "prose",
            "recipe",
            "report",
            "requirement",
            "rounding",
            "store",
            "tensor_type",
            "timing",
            "work",
            "vocab",
        ]),
    ),
    (
        "plan",
        Names::Only(&[
            "action",
            "digest",
            "fs",
            "graph",
            "observer",
            "prose",
            "report",
            "requirement",
            "step",
            "store",
            "vocab",
            "work",
        ]),
    ),
    ("manifest", Names::Only(&["action", "digest"])),
    (
        "verify",
        Names::Only(&[
            "container",
            "action",
            "digest",
            "engine",
            "fs",
            "gguf",
            "graph",
            "manifest",
            "prose",
            "recipe",
            "requirement",
            "sign",
            "step",
            "tensor_type",
            "text",
            "work",
        ]),
    ),
    (
        "scheduler",
        Names::Only(&[
            "action",
            "digest",
            "graph",
            "observer",
            "plan",
            "prose",
            "report",
            "requirement",
            "step",
            "store",
            "timing",
            "vocab",
            "work",
        ]),
    ),
    (
        "why",
        Names::Only(&[
            "container",
            "action",
            "digest",
            "engine",
            "gguf",
            "graph",
            "plan",
            "prose",
            "report",
            "requirement",
            "runs",
            "scheduler",
            "step",
            "store",
            "vocab",
            "work",
        ]),
    ),
    (
        "diff",
        Names::Only(&[
            "container",
            "content",
            "action",
            "digest",
            "engine",
            "figures",
            "fs",
            "gguf",
            "imatrix",
            "manifest",
            "policy",
            "prose",
            "recipe",
            "report",
            "requirement",
            "step",
            "store",
            "tensor_type",
            "work",
        ]),
    ),
    ("session", Names::All),
    ("cli", Names::All),
];

/// What only some places may have in their code: a pattern, where it may stand (prefixes of paths), and the way out.
const RESERVED: &[(&str, &[&str], &str)] = &[
    (
        r"\bstd\s*::\s*fs\b|\bstd\s*::\s*\{[^}]*\bfs\b|\bstd\s*::\s*os\s*::\s*unix\s*::\s*fs\b|\brustix\s*::\s*fs\b|\bmemmap2\b|\breflink_copy\b|\btempfile\s*::",
        &["fs/"],
        "files are the business of `crate::fs`",
    ),
    (
        r"\.\s*(is_file|is_dir|read_dir|canonicalize|symlink_metadata|try_exists)\s*\(\s*\)",
        &["fs/"],
        "files are the business of `crate::fs`",
    ),
    (
        r"\bunsafe\b",
        &["fs/", "engine/embedded/"],
        "`unsafe` stays in the map of files and in the calls of llama.cpp",
    ),
    (
        r"\b(e?print(ln)?|dbg)\s*!",
        &["cli/"],
        "only `cli` prints: return the text, or tell the observer",
    ),
    (
        r"\b(stdout|stderr|stdin)\s*\(\s*\)|\banstream\b",
        &["cli/"],
        "only `cli` prints: return the text, or tell the observer",
    ),
    (
        r"\bprocess\s*::\s*(exit|abort)\b",
        &["cli/"],
        "only `cli` ends the process: return an error",
    ),
    (
        r"\benv\s*::\s*(vars?|vars?_os|args|args_os|current_dir|current_exe|set_var|remove_var|temp_dir|home_dir)\b",
        &["cli/"],
        "only `cli` looks at the environment: take a setting",
    ),
];

/// Returns the text with comments and the insides of strings and characters blanked, line breaks kept.
fn code_of(text: &str) -> String {
    let pattern = Regex::new(
        r#"(?xs) //[^\n]* | /\*.*?\*/ | b?r\#\#".*?"\#\# | b?r\#".*?"\# | b?r".*?" | b?"(?:\\.|[^"\\])*" | b?'(?:\\.[^']*|[^'\\])' "#,
    );
    let blank = |found: &regex::Captures<'_>| -> String {
        let kept = |c: char| if c == '\n' { '\n' } else { ' ' };
        found[0].chars().map(kept).collect()
    };
    pattern.unwrap().replace_all(text, blank).into_owned()
}

/// Returns code without the items that stand under `#[cfg(test)]`, line breaks kept, and the names of test modules that
/// are files of their own.
fn without_tests(code: &str) -> (String, Vec<String>) {
    let marker = Regex::new(r"#\[cfg\(test\)\]").unwrap();
    let module =
        Regex::new(r"^#\[cfg\(test\)\](?:\s*#\[[^\]]*\])*\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;").unwrap();
    let mut rest = code.to_owned();
    let mut files = Vec::new();
    while let Some(found) = marker.find(&rest) {
        let start = found.start();
        if let Some(name) = module.captures(&rest[start..]) {
            files.push(name[1].to_owned());
        }
        let mut depth = 0_usize;
        let mut end = rest.len();
        for (at, c) in rest[found.end()..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 && matches!(c, '}' | ';') {
                end = found.end() + at + 1;
                break;
            }
        }
        let blank: String = rest[start..end]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        rest.replace_range(start..end, &blank);
    }
    (rest, files)
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// How many modules deep the contents of a file are: 0 at the root.
fn depth_of(path: &str) -> usize {
    let parts = path.matches('/').count();
    match path.rsplit('/').next() {
        Some("lib.rs" | "main.rs") if parts == 0 => 0,
        Some("mod.rs") => parts,
        _ => parts + 1,
    }
}

/// Returns what is wrong with a file of `src/`: its path below `src/`, its text, whether it is a test as a whole.
fn problems_of(path: &str, text: &str, is_test: bool) -> Vec<String> {
    let code = code_of(text);
    let (plain, _) = without_tests(&code);
    let plain = if is_test { String::new() } else { plain };
    let mut problems = Vec::new();
    let mut say = |line: usize, what: String| problems.push(format!("src/{path}:{line}: {what}"));

    let first = path.split('/').next().unwrap_or_default();
    let module = first.strip_suffix(".rs").unwrap_or(first);
    let root = matches!(path, "lib.rs" | "main.rs");
    let place = LAYERS.iter().position(|(name, _)| *name == module);
    if place.is_none() && !root {
        say(
            1,
            format!("`{module}` has no place in the table of `tests/it/layering.rs`"),
        );
    }
    for found in Regex::new(r"\bcrate\s*::\s*(\{|\w+)").unwrap().captures_iter(&code) {
        let (line, named) = (line_of(&code, found.get(0).unwrap().start()), &found[1]);
        if named == "{" {
            say(line, "one path a line: `use crate::{` hides what is named".to_owned());
        } else if let Some(place) = place
            && named != module
        {
            let above = LAYERS[..place].iter().any(|(name, _)| *name == named);
            let allowed = match &LAYERS[place].1 {
                Names::All => above,
                Names::Only(names) => names.contains(&named),
            };
            if !allowed {
                say(line, format!("`{module}` must not name `{named}`"));
            }
        }
    }
    for found in Regex::new(r"\bsuper(?:\s*::\s*super)*\s*::").unwrap().find_iter(&plain) {
        if found.as_str().matches("super").count() >= depth_of(path) {
            let line = line_of(&plain, found.start());
            say(line, "`super` reaches the root: write `crate::`".to_owned());
        }
    }
    for (pattern, places, way_out) in RESERVED {
        if places.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        for found in Regex::new(pattern).unwrap().find_iter(&plain) {
            say(
                line_of(&plain, found.start()),
                format!("`{}`: {way_out}", found.as_str()),
            );
        }
    }
    problems
}

/// Returns every file below `src/`, by its path there, with its text and whether it is a test as a whole.
fn sources() -> Vec<(String, String, bool)> {
    let src = project().join("src");
    let mut files = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&src).unwrap().to_str().unwrap().replace('\\', "/");
                files.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort();
    let mut tests = BTreeSet::new();
    for (path, text) in &files {
        let folder = match path.rsplit_once('/') {
            _ if matches!(path.as_str(), "lib.rs" | "main.rs") => String::new(),
            Some((folder, "mod.rs")) => format!("{folder}/"),
            _ => format!("{}/", path.strip_suffix(".rs").unwrap()),
        };
        for name in without_tests(&code_of(text)).1 {
            tests.insert(format!("{folder}{name}"));
        }
    }
    let is_test = |path: &str| {
        tests
            .iter()
            .any(|test| path == format!("{test}.rs") || path.starts_with(&format!("{test}/")))
    };
    files
        .into_iter()
        .map(|(path, text)| {
            let test = is_test(&path);
            (path, text, test)
        })
        .collect()
}

#[test]
fn the_table_is_ordered_so_that_no_module_needs_itself() {
    for (place, (module, names)) in LAYERS.iter().enumerate() {
        assert!(
            LAYERS[..place].iter().all(|(other, _)| other != module),
            "`{module}` stands twice"
        );
        if let Names::Only(names) = names {
            for name in *names {
                assert!(
                    LAYERS[..place].iter().any(|(above, _)| above == name),
                    "`{module}` may name `{name}`, which does not stand above it"
                );
            }
        }
    }
}

#[test]
fn the_table_and_the_library_have_the_same_modules() {
    let lib = std::fs::read_to_string(project().join("src/lib.rs")).unwrap();
    let pattern = Regex::new(r"(?m)^pub mod (\w+);").unwrap();
    let there: Vec<String> = pattern.captures_iter(&lib).map(|found| found[1].to_owned()).collect();
    let table: Vec<&str> = LAYERS.iter().map(|(module, _)| *module).collect();
    assert_eq!(
        there, table,
        "src/lib.rs declares the modules in the order of the table"
    );
}

#[test]
fn every_source_keeps_to_the_rules() {
    let sources = sources();
    assert!(sources.len() > 80, "only {} files found", sources.len());
    let problems: Vec<String> = sources
        .iter()
        .flat_map(|(path, text, is_test)| problems_of(path, text, *is_test))
        .collect();
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

#[test]
fn only_the_file_system_and_the_engine_allow_unsafe() {
    let allow = Regex::new(r"allow\(\s*unsafe_code").unwrap();
    let places: BTreeSet<String> = sources()
        .iter()
        .filter(|(_, text, _)| allow.is_match(&code_of(text)))
        .map(|(path, _, _)| path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned())
        .collect();
    assert!(!places.is_empty());
    for place in &places {
        assert!(
            place == "fs" || place.starts_with("engine/embedded") || place == "engine",
            "{place}"
        );
    }
}

/// The first words of each problem, without the place.
fn found(path: &str, text: &str) -> Vec<String> {
    let problems = problems_of(path, text, false);
    let place = Regex::new(r"^src/[^ ]+: ").unwrap();
    problems
        .iter()
        .map(|problem| place.replace(problem, "").into_owned())
        .collect()
}

#[test]
fn the_checker_finds_what_it_looks_for() {
    let one = |path: &str, text: &str, expected: &str| {
        let found = found(path, text);
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert!(found[0].contains(expected), "{text}: {found:?}");
    };
    one(
        "digest.rs",
        "use crate::store::Store;",
        "`digest` must not name `store`",
    );
    one(
        "recipe/read.rs",
        "fn f() { crate::fs::open(p); }",
        "`recipe` must not name `fs`",
    );
    one(
        "store/mod.rs",
        "#[cfg(test)]\nmod tests { use crate::step::X; }",
        "must not name `step`",
    );
    one("cli/mod.rs", "use crate::{fs, text};", "one path a line");
    one("novel.rs", "", "`novel` has no place");
    one("step/mod.rs", "use super::cli;", "`super` reaches the root");
    one("step/eval.rs", "use super::super::cli;", "`super` reaches the root");
    one("store/mod.rs", "use std::fs::File;", "business of `crate::fs`");
    one("store/mod.rs", "use std::{io, fs};", "business of `crate::fs`");
    one("store/mod.rs", "fn f() { path.is_file(); }", "business of `crate::fs`");
    one("store/mod.rs", "fn f() { unsafe { g() } }", "`unsafe` stays");
    one("store/mod.rs", "fn f() { println!(\"a\"); }", "only `cli` prints");
    one("main.rs", "fn f() { eprint!(\"a\"); }", "only `cli` prints");
    one("store/mod.rs", "fn f() { std::process::exit(1); }", "only `cli` ends");
    one("store/mod.rs", "fn f() { std::env::var(\"A\"); }", "only `cli` looks");
}

#[test]
fn the_checker_accepts_valid_code() {
    for (path, text) in [
        ("store/mod.rs", "use crate::digest::Hash; use crate::store::sealed;"),
        ("store/mod.rs", "// crate::cli, std::fs, unsafe\n/* println!() */"),
        (
            "store/mod.rs",
            "const A: &str = \"std::fs unsafe crate::cli\"; const B: &str = r#\"\"unsafe\"\"#;",
        ),
        (
            "store/mod.rs",
            "#[cfg(test)]\nmod tests { fn f() { std::fs::read(p); if a { } } }",
        ),
        ("store/mod.rs", "fn f<'a>(a: &'a str) -> char { '\"' }\nfn g() {}"),
        ("store/sealed.rs", "use super::Store; pub(super) fn f() {}"),
        ("fs/map.rs", "fn f() { unsafe { std::fs::read(p) } }"),
        (
            "cli/mod.rs",
            "fn f() { println!(\"a\"); std::env::args(); std::process::exit(1); }",
        ),
        (
            "engine/embedded/sys.rs",
            "fn f() { unsafe { g() }; std::env::consts::OS; }",
        ),
    ] {
        assert_eq!(found(path, text), [""; 0], "{text}");
    }
    let after = "#[cfg(test)]\nmod tests { fn f() {} }\nfn g() { unsafe { h() } }";
    assert_eq!(
        problems_of("store/mod.rs", after, false).len(),
        1,
        "what follows a test counts"
    );
    assert_eq!(
        problems_of("store/tests.rs", "fn f() { std::fs::read(p); }", true),
        [""; 0]
    );
}

/// Returns a path of modules, as `store::gc`, for a file below `src/`.
fn module_of(path: &str) -> String {
    let path = path.strip_suffix(".rs").unwrap();
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if matches!(path, "lib" | "main") {
        String::new()
    } else {
        path.replace('/', "::")
    }
}

/// The files of a program by their module, and the names that `use` gives to items of other modules.
struct Files<'a> {
    /// Each module's file, with its code.
    modules: BTreeMap<String, (&'a str, String)>,
    /// By module and name: the path of the item.
    used: BTreeMap<(String, String), String>,
}

impl<'a> Files<'a> {
    fn new(sources: &'a [(String, String, bool)]) -> Self {
        let own = sources.iter().filter(|(_, _, is_test)| !is_test);
        let modules: BTreeMap<String, (&str, String)> = own
            .map(|(path, text, _)| (module_of(path), (path.as_str(), without_tests(&code_of(text)).0)))
            .collect();
        let pattern = Regex::new(r"\buse\s+([\w:]+)(?:\s+as\s+(\w+))?\s*;").unwrap();
        let mut used = BTreeMap::new();
        for (module, (_, code)) in &modules {
            for found in pattern.captures_iter(code) {
                let path = &found[1];
                let name = found
                    .get(2)
                    .map_or(path.rsplit("::").next().unwrap(), |name| name.as_str());
                used.insert((module.clone(), name.to_owned()), path.to_owned());
            }
        }
        Self { modules, used }
    }

    /// Returns the file that defines what a path names in a module; nothing for paths of other crates.
    fn defines(&self, module: &str, path: &str) -> Option<&'a str> {
        let mut at = module.to_owned();
        let mut names = path.split("::").map(str::trim).peekable();
        match *names.peek()? {
            "crate" => at.clear(),
            "self" | "super" => {}
            first if self.modules.contains_key(&inside(module, first)) => {}
            _ => return None,
        }
        for name in names {
            match name {
                "crate" | "self" => {}
                "super" => at = at.rsplit_once("::").map_or("", |(parent, _)| parent).to_owned(),
                name if self.modules.contains_key(&inside(&at, name)) => at = inside(&at, name),
                name => {
                    if let Some(path) = self.used.get(&(at.clone(), name.to_owned())) {
                        return self.defines(&at, path);
                    }
                    break;
                }
            }
        }
        self.modules.get(&at).map(|(path, _)| *path)
    }

    /// Returns, for each file, the files that define what it names. The files below a module's own file are left out: it declares
    /// them, so it names them in any case.
    fn imports(&self) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let pattern = Regex::new(r"(pub(?:\([^)]*\))?\s+use\s+)?\b(\w+(?:\s*::\s*\w+)+)").unwrap();
        let of_module = |(module, (file, code)): (&String, &(&'a str, String))| {
            // A re-export names an item for others; the module itself need not use it.
            let named = pattern.captures_iter(code).filter(|found| found.get(1).is_none());
            let files = named.filter_map(|found| self.defines(module, &found[2]));
            let below = format!("{module}::");
            let files = files.filter(|other| module.is_empty() || !module_of(other).starts_with(&below));
            (*file, files.filter(|other| other != file).collect())
        };
        self.modules.iter().map(of_module).collect()
    }
}

fn inside(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}::{name}")
    }
}

/// Returns the circles: files that import each other, directly or through others.
fn circles(sources: &[(String, String, bool)]) -> Vec<String> {
    let files = Files::new(sources);
    let imports = files.imports();
    let mut graph = petgraph::graphmap::DiGraphMap::<&str, ()>::new();
    for (file, others) in &imports {
        for other in others {
            graph.add_edge(file, other, ());
        }
    }
    let circles = petgraph::algo::tarjan_scc(&graph).into_iter();
    let mut circles: Vec<String> = circles
        .filter(|files| files.len() > 1)
        .map(|mut files| {
            files.sort_unstable();
            let inner = |file: &str| {
                let others = imports[file].iter().filter(|other| files.contains(other));
                others.copied().collect::<Vec<_>>().join(", ")
            };
            let lines = files.iter().map(|file| format!("  {file} imports {}", inner(file)));
            lines.collect::<Vec<_>>().join("\n")
        })
        .collect();
    circles.sort();
    circles
}

#[test]
fn no_two_files_import_each_other() {
    let circles = circles(&sources());
    assert!(
        circles.is_empty(),
        "{} circles:\n{}",
        circles.len(),
        circles.join("\n\n")
    );
}

#[test]
fn cycles_are_found_through_modules_and_reexports() {
    let found = |files: &[(&str, &str)]| {
        let files: Vec<(String, String, bool)> = files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), (*text).to_owned(), false))
            .collect();
        circles(&files).len()
    };
    let direct = [
        ("a/mod.rs", "mod b; mod c;"),
        ("a/b.rs", "use super::c::C;"),
        ("a/c.rs", "fn f() { super::b::g(); }"),
    ];
    assert_eq!(found(&direct), 1);
    let reexport = [
        ("a/mod.rs", "mod b; mod c; pub use b::B; pub use c::C;"),
        ("a/b.rs", "use super::C;"),
        ("a/c.rs", "use crate::a::B;"),
    ];
    assert_eq!(found(&reexport), 1);
    let fine = [
        ("a/mod.rs", "mod b; mod c; pub use b::B; use c::C; pub struct A(B, C);"),
        ("a/b.rs", "use super::A; use super::c::C;"),
        (
            "a/c.rs",
            "// use super::b::B;\nuse std::fmt::Display;\n#[cfg(test)]\nmod tests { use super::super::b::B; }",
        ),
    ];
    assert_eq!(found(&fine), 0);
}
