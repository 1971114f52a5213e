//! A project that builds in a moment, for tests that build hundreds of times: a model of a few rows, candidates with types
//! by hand, no engine to start.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use crate::one_layer_project::Gguf;
use crate::small_model::keys;
use crate::support::Forge;
use crate::support::Run;

/// The tensors of the model.
pub(crate) const TENSORS: [&str; 4] = [
    "token_embd.weight",
    "blk.0.attn_q.weight",
    "blk.0.ffn_down.weight",
    "blk.0.ffn_up.weight",
];

/// A recipe with one candidate for each list of types, one type for each tensor.
pub(crate) fn recipe(name: &str, candidates: &[[&str; 4]]) -> String {
    let mut text = format!("schema = 1\nname = \"{name}\"\n[source.model]\npath = \"model.gguf\"\n");
    for (number, types) in candidates.iter().enumerate() {
        let rules: Vec<String> = TENSORS
            .iter()
            .zip(types)
            .map(|(tensor, ty)| format!("{{ match = '^{}$', type = \"{ty}\" }}", tensor.replace('.', "\\.")))
            .collect();
        let section = format!(
            "[policy.p{number}]\nmethod = \"manual\"\nrules = [{}]\notherwise = \"keep\"\n[promote.c{number}]\npolicy = \"p{number}\"\n",
            rules.join(", ")
        );
        text.push_str(&section);
    }
    text
}

/// The first recipe of [`project`].
pub(crate) fn first() -> String {
    recipe(
        "moment",
        &[["Q8_0", "Q4_0", "Q4_0", "Q5_0"], ["Q8_0", "Q5_1", "Q4_0", "Q5_0"]],
    )
}

/// Another recipe for the same outputs: some tensors are the same, others are not.
pub(crate) fn second() -> String {
    recipe(
        "moment",
        &[["Q8_0", "Q4_1", "Q4_0", "Q5_0"], ["Q5_0", "Q5_1", "Q4_1", "Q8_0"]],
    )
}

/// Gives a project a model whose tensors have so many rows of 256 numbers: a link to one that all tests share, so that
/// its stamp is old and no build waits until it is.
pub(crate) fn write_model(forge: &Forge, rows: usize) {
    static MADE: Mutex<BTreeMap<usize, PathBuf>> = Mutex::new(BTreeMap::new());
    let path = {
        let mut made = MADE.lock().unwrap();
        made.entry(rows).or_insert_with(|| make_model(rows)).clone()
    };
    let link = forge.path("model.gguf");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(path, link).unwrap();
}

fn make_model(rows: usize) -> PathBuf {
    let mut model = Gguf::small();
    let all = std::mem::take(&mut model.tensors);
    model.tensors = all
        .into_iter()
        .filter(|(spec, _)| TENSORS.contains(&spec.name.as_str()) || spec.name == "output_norm.weight")
        .map(|(mut spec, bytes)| {
            if spec.dims.len() < 2 {
                return (spec, bytes);
            }
            spec.dims = vec![256, rows as u64];
            let bytes: Vec<u8> = bytes.iter().copied().cycle().take(rows * 512).collect();
            // Different rows in every tensor, whatever the model's are; the exponent's highest bit is cleared, so that
            // none is infinite.
            let pairs = bytes.chunks_exact(2).enumerate();
            let bytes = pairs
                .flat_map(|(at, pair)| [pair[0] ^ (at as u8) ^ spec.name.len() as u8, pair[1] & 0xbf])
                .collect();
            (spec, bytes)
        })
        .collect();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rows");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("{rows}.gguf"));
    let bytes = model.bytes();
    if std::fs::read(&path).is_ok_and(|there| there == bytes) {
        return path;
    }
    let temporary = folder.join(format!("{rows}-{}", std::process::id()));
    std::fs::write(&temporary, bytes).unwrap();
    std::fs::rename(&temporary, &path).unwrap();
    path
}

/// A project with a model of a few rows and the first recipe.
pub(crate) fn project() -> Forge {
    let forge = Forge::new();
    write_model(&forge, 32);
    forge.recipe(&first());
    forge
}

/// The command of a build into a folder.
pub(crate) fn build(forge: &Forge, out: &str) -> Command {
    crate::small_model::build(forge, &["--out", out])
}

/// Builds, and returns the run and its events.
pub(crate) fn build_well(forge: &Forge, out: &str) -> Vec<serde_json::Value> {
    Run::of(build(forge, out).output().unwrap()).success().json_lines()
}

/// Returns the keys of the actions that ran.
pub(crate) fn ran(events: &[serde_json::Value]) -> BTreeSet<String> {
    keys(events, "ran").into_iter().collect()
}

/// Returns the bytes of the candidates in a folder.
pub(crate) fn candidates(out: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = crate::small_model::names(out)
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "gguf"))
        .map(|name| (name.clone(), std::fs::read(out.join(&name)).unwrap()))
        .collect();
    found.sort();
    found
}

/// Checks the store, and returns the lines for programs.
pub(crate) fn verify(forge: &Forge) -> (Run, Vec<serde_json::Value>) {
    let run = forge.run(&["cache", "verify", "-j", "1", "--message-format", "json"]);
    let lines = run.json_lines();
    (run, lines)
}

/// Asserts that a check of the store finds nothing.
pub(crate) fn assert_clean(forge: &Forge, what: &str) {
    let (run, _) = verify(forge);
    assert_eq!(run.status, Some(0), "{what}: {}{}", run.stdout, run.stderr);
}
