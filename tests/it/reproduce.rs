//! `forge reproduce`: candidates made again from their manifests alone, and what is said where that cannot be.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use forge::action::Action;
use forge::digest::BlobDigest;
use forge::manifest::Manifest;
use forge::tensor_type::TensorType;
use forge::work::AssembledTensor;
use forge::work::Assembly;
use forge::work::From;
use forge::work::IndexedTensor;
use forge::work::compute_of;
use serde_json::Value as Json;

use crate::one_layer_project::build_well;
use crate::one_layer_project::furnish;
use crate::one_layer_project::manifest;
use crate::one_layer_project::output_of;
use crate::one_layer_project::project;
use crate::support::Forge;
use crate::support::Run;
use crate::support::quickstart;

/// Every kind of step that leads to candidates: corpora by patterns and in folders by patterns, imatrices collected,
/// imported and merged, mixes, sweeps, rules; the sources in a recipe that this one extends.
const BASE: &str = r#"schema = 1
[source.model]
path = "../models/model.gguf"
[source.foreign]
path = "../foreign.gguf"
kind = "imatrix"
[corpus.prose]
files = ["../texts/*.txt"]
[corpus.held-out]
files = ["../held-out.txt"]
"#;
const FULL: &str = r#"schema = 1
name = "full"
extends = "shared/base.toml"
[corpus.code]
files = ["more/*/code.txt", "texts/b.txt"]
chunking = "joined"
[imatrix.prose]
corpus = "prose"
context = 64
chunks = 3
block = 2
[imatrix.code]
corpus = "code"
context = 64
chunks = 2
[imatrix.old]
source = "foreign"
[imatrix.all]
merge = ["prose", "code", "old"]
mode = "mean"
[policy.mix]
imatrix = "all"
method = "mix"
mix = ["Q4_K_M", "IQ4_XS"]
[policy.rules]
imatrix = "prose"
method = "manual"
rules = [{ match = '^token_embd\.weight$', type = "Q8_0" }, { match = "ffn_down", type = "keep" }]
otherwise = "Q4_K"
[policy.plain]
method = "mix"
mix = "Q8_0"
[promote.tiny]
policy = "mix"
[promote.rules]
policy = "rules"
[promote.plain]
policy = "plain"
[eval.quality]
corpus = "held-out"
chunks = 2
context = 64
candidates = ["plain"]
"#;

/// A project with [`FULL`], built; its foreign imatrix is one that another recipe collected.
fn full() -> Forge {
    let forge = project();
    build_well(&forge, &[]);
    let imatrix = output_of(
        &forge,
        &manifest(&forge.path("out/small/a.gguf")),
        "imatrix.general",
        "imatrix",
    );
    let model = std::fs::read(forge.path("model.gguf")).unwrap();
    let (prose, code) = (
        crate::one_layer_project::text("calibration-prose.txt"),
        crate::one_layer_project::text("calibration-code.txt"),
    );
    forge
        .write("foreign.gguf", imatrix)
        .write("models/model.gguf", model)
        .write("texts/a.txt", &prose)
        .write("texts/b.txt", prose.to_uppercase())
        .write("more/here/code.txt", &code)
        .write("shared/base.toml", BASE)
        .recipe(FULL);
    build_well(&forge, &[]);
    forge
}

/// All that a folder holds, by path.
fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(&path).unwrap_or_default());
            }
        }
    }
    files
}

/// A place that knows nothing of where candidates were built: manifests in one folder, sources under other names in
/// another, made in the reverse order; an empty folder for what is temporary.
struct Elsewhere {
    forge: Forge,
}

impl Elsewhere {
    fn new(sources: &[PathBuf], manifests: &[PathBuf]) -> Self {
        let forge = Forge::new();
        for folder in ["manifests", "attic/deep/down", "tmp", "here"] {
            std::fs::create_dir_all(forge.path(folder)).unwrap();
        }
        for (at, source) in sources.iter().enumerate().rev() {
            let folder = if at % 2 == 0 { "attic" } else { "attic/deep/down" };
            std::fs::copy(source, forge.path(&format!("{folder}/{at}.old"))).unwrap();
        }
        for manifest in manifests {
            let name = manifest.file_name().unwrap().to_str().unwrap();
            std::fs::copy(manifest, forge.path(&format!("manifests/{name}"))).unwrap();
        }
        Self { forge }
    }

    /// Reproduces from another folder, with another umask and time zone, and only this folder for what is temporary.
    fn reproduce(&self, name: &str, args: &[&str]) -> Run {
        let program = self.forge.command(&[]).get_program().to_owned();
        let manifest = format!("../manifests/{name}");
        let mut command = Command::new("sh");
        command
            .args(["-c", "umask 077; exec \"$0\" reproduce -j 1 \"$@\""])
            .arg(program)
            .arg(manifest)
            .args(args)
            .current_dir(self.forge.path("here"))
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.forge.path("here"))
            .env("TMPDIR", self.forge.path("tmp"))
            .env("TZ", "Pacific/Kiritimati")
            .env("LC_ALL", "tr_TR.UTF-8");
        Run::of(command.output().unwrap())
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.forge.path("manifests").join(name)
    }
}

/// The manifests in an output folder.
fn manifests_in(out: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(".manifest.json"))
        .collect();
    found.sort();
    found
}

fn sources_of(forge: &Forge) -> Vec<PathBuf> {
    [
        "models/model.gguf",
        "foreign.gguf",
        "texts/a.txt",
        "texts/b.txt",
        "more/here/code.txt",
    ]
    .map(|name| forge.path(name))
    .into()
}

#[test]
fn every_candidate_is_made_again_from_its_manifest_alone() {
    let built = full();
    let manifests = manifests_in(&built.path("out/full"));
    assert_eq!(manifests.len(), 4);
    let elsewhere = Elsewhere::new(&sources_of(&built), &manifests);
    let before = tree(elsewhere.forge.dir());
    for path in &manifests {
        let name = path.file_name().unwrap().to_str().unwrap();
        let run = elsewhere.reproduce(name, &["--search", "../attic"]).success();
        assert!(
            run.stdout.contains("\nidentical: blake3 "),
            "{}\n{}",
            run.stdout,
            run.stderr
        );
        assert!(!run.stdout.contains("missing"), "{}", run.stdout);
        assert!(
            run.stderr.contains("forge: ") && !run.stderr.contains("not a full"),
            "{}",
            run.stderr
        );
        assert!(
            !run.stderr.contains("eval"),
            "only what leads to the candidate: {}",
            run.stderr
        );
    }
    assert!(before == tree(elsewhere.forge.dir()), "nothing is left behind");
}

#[test]
fn a_split_model_is_found_by_its_parts_and_a_candidate_stays_where_it_is_asked_for() {
    let forge = Forge::new();
    furnish(&forge);
    let [first, second] = crate::one_layer_project::Gguf::small().halves(4);
    forge
        .write("split/m-00001-of-00002.gguf", first)
        .write("split/m-00002-of-00002.gguf", second)
        .recipe(&crate::one_layer_project::BARE.replace("model.gguf", "split/m-00001-of-00002.gguf"));
    build_well(&forge, &[]);
    let parts = ["split/m-00002-of-00002.gguf", "split/m-00001-of-00002.gguf"].map(|name| forge.path(name));
    let elsewhere = Elsewhere::new(&parts, &manifests_in(&forge.path("out/bare")));
    let name = "p.gguf.manifest.json";
    let args = ["--search", "../attic", "--out", "../kept", "--store", "../store"];
    let run = elsewhere.reproduce(name, &args).success();
    assert!(run.stdout.contains("identical"), "{}", run.stdout);
    let kept = elsewhere.forge.path("kept/p.gguf");
    assert_eq!(
        std::fs::read(&kept).unwrap(),
        std::fs::read(forge.path("out/bare/p.gguf")).unwrap()
    );
    let run = elsewhere.forge.run(&["verify", kept.to_str().unwrap()]).success();
    assert!(run.stdout.starts_with("good"), "{}", run.stdout);
    // Nothing is overwritten, and what is in a store already is not taken for work done now.
    let again = elsewhere.reproduce(name, &args).status(2);
    assert!(again.stderr.contains("kept/p.gguf"), "{}", again.stderr);
    let args = ["--search", "../attic", "--store", "../store"];
    let again = elsewhere.reproduce(name, &args).status(2);
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    let args = ["--search", "../attic", "--store", "../store", "--resume"];
    let again = elsewhere.reproduce(name, &args).success();
    assert!(again.stderr.contains("not a full reproduction"), "{}", again.stderr);
    // In the folder of its recipe, no option is needed, and a candidate can be named instead of its manifest.
    let run = forge.run(&["reproduce", "out/bare/p.gguf"]).success();
    assert!(run.stdout.contains("identical"), "{}", run.stdout);
}

#[test]
fn all_missing_files_are_listed_in_one_error() {
    let built = full();
    let manifests = manifests_in(&built.path("out/full"));
    let elsewhere = Elsewhere::new(&sources_of(&built), &manifests);
    let name = "tiny-Q4_K_M.gguf.manifest.json";
    std::fs::remove_file(elsewhere.forge.path("attic/0.old")).unwrap();
    // Of the right length and name, but other bytes.
    let text = std::fs::read(built.path("texts/a.txt")).unwrap();
    elsewhere
        .forge
        .write("manifests/a.txt", text.iter().rev().copied().collect::<Vec<u8>>());
    std::fs::remove_file(elsewhere.forge.path("attic/2.old")).unwrap();
    let text = std::fs::read_to_string(elsewhere.manifest(name)).unwrap();
    std::fs::write(elsewhere.manifest(name), with_other_engine(&text)).unwrap();
    let before = tree(elsewhere.forge.dir());

    let run = elsewhere.reproduce(name, &["--search", "../attic"]).status(3);
    let missing: Vec<&str> = run.stdout.lines().filter(|line| line.starts_with("missing")).collect();
    assert_eq!(missing.len(), 4, "{}", run.stdout);
    assert!(
        missing[0].contains("source.model") && missing[0].contains("model.gguf"),
        "{missing:?}"
    );
    assert!(
        missing[1].contains("a.txt") && missing[1].contains("has different content"),
        "{missing:?}"
    );
    assert!(
        missing[2].contains("evaluator") && missing[3].contains("quantizer"),
        "{missing:?}"
    );
    assert!(
        run.stdout.contains("c compiler: `a compiler of the moon`, here `"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.matches("found  ").count() >= 3, "{}", run.stdout);
    for word in ["4 things", "--search DIR", "--any-engine"] {
        assert!(run.stderr.contains(word), "{word}: {}", run.stderr);
    }
    // Another engine may be let pass, a source may not.
    let run = elsewhere
        .reproduce(name, &["--any-engine", "--search", "../attic"])
        .status(3);
    assert!(!run.stderr.contains("--any-engine"), "{}", run.stderr);
    let lines = elsewhere
        .reproduce(name, &["--message-format", "json"])
        .status(3)
        .json_lines();
    let whats: BTreeSet<&str> = lines.iter().filter_map(|line| line["what"].as_str()).collect();
    assert_eq!(whats, BTreeSet::from(["engine", "source"]));
    assert!(before == tree(elsewhere.forge.dir()), "nothing was written");

    std::fs::copy(built.path("models/model.gguf"), elsewhere.forge.path("attic/new")).unwrap();
    std::fs::copy(built.path("texts/a.txt"), elsewhere.forge.path("attic/text")).unwrap();
    let _ = elsewhere.reproduce(name, &["--search", "../attic"]).status(3);
    let run = elsewhere
        .reproduce(name, &["--any-engine", "--search", "../attic"])
        .success();
    assert!(run.stdout.contains("identical"), "{}", run.stdout);
}

/// Returns a manifest as another compiler's engine would have left it: fingerprints, keys and what holds keys follow.
fn with_other_engine(text: &str) -> String {
    let mut manifest: Json = serde_json::from_str(text).unwrap();
    let engines = manifest["predicate"]["forge"]["engines"].as_object_mut().unwrap();
    for identity in engines.values_mut() {
        identity["facts"]["c compiler"] = "a compiler of the moon".into();
    }
    let engines = engines.clone();
    let mut text = manifest.to_string();
    for (fingerprint, identity) in &engines {
        // In the order of the document.
        let facts = serde_json::to_string(&identity["facts"]).unwrap();
        let (engine, role) = (&identity["engine"], &identity["role"]);
        let document = format!("{{\"schema\":1,\"engine\":{engine},\"role\":{role},\"facts\":{facts}}}");
        let other = forge::digest::Fingerprint::of(document.as_bytes()).to_string();
        text = text.replace(fingerprint, &other);
    }
    let mut manifest: Manifest = serde_json::from_str(&text).unwrap();
    reseal(&mut manifest);
    String::from_utf8(manifest.to_bytes().unwrap()).unwrap()
}

/// Takes keys anew from documents, and makes the documents that hold keys or digests of tensors anew.
pub(crate) fn reseal(manifest: &mut Manifest) {
    let mut text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
    for (key, record) in &manifest.predicate.forge.actions {
        let action = Action::parse(record.document.to_string().as_bytes()).unwrap();
        text = text.replace(key, &action.digest().to_string());
    }
    *manifest = serde_json::from_str(&text).unwrap();
    let forge = &mut manifest.predicate.forge;
    let subject = &manifest.subject[0];
    let outputs = &mut forge.actions.get_mut(&forge.action).unwrap().outputs;
    let file = format!("{}:{}", subject.digest["blake3"], subject.annotations["bytes"]);
    let ty = |name: &str| TensorType::from_name(name).unwrap();
    let indexed = forge.tensors.iter().map(|tensor| IndexedTensor {
        name: tensor.name.clone(),
        ty: ty(&tensor.ty),
        dims: tensor.dims.clone(),
        shard: 0,
        start: tensor.start,
        bytes: tensor.bytes.parse().unwrap(),
    });
    let indexed: Vec<IndexedTensor> = indexed.collect();
    let assembled = forge.tensors.iter().map(|tensor| AssembledTensor {
        name: tensor.name.clone(),
        ty: ty(&tensor.ty),
        dims: tensor.dims.clone(),
        start: tensor.start,
        bytes: tensor.bytes.parse().unwrap(),
        from: if tensor.action.is_some() {
            From::Store
        } else {
            From::Source
        },
        action: tensor.action.as_ref().map(|key| key.parse().unwrap()),
    });
    let assembly = Assembly {
        schema: 1,
        file: file.parse().unwrap(),
        sha256: subject.digest["sha256"].clone(),
        header: outputs["header"].parse().unwrap(),
        tensors: assembled.collect(),
    };
    let compute = compute_of(outputs["hyperparameters"].parse().unwrap(), &indexed);
    let digest = |bytes: Vec<u8>| BlobDigest::of(&bytes).to_string();
    outputs.insert("assembly".to_owned(), digest(serde_json::to_vec(&assembly).unwrap()));
    outputs.insert("compute".to_owned(), digest(serde_json::to_vec(&compute).unwrap()));
}

/// Edits a manifest such that it does not contradict itself.
pub(crate) fn forged(path: &Path, edit: impl FnOnce(&mut Manifest)) -> Manifest {
    let mut manifest: Manifest = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut manifest);
    reseal(&mut manifest);
    manifest
}

fn other_digest(digest: &str) -> String {
    let (_, length) = digest.split_once(':').unwrap();
    format!("{}:{length}", forge::digest::Hash::of(digest.as_bytes()))
}

#[test]
fn reproduce_reports_the_first_difference() {
    let forge = project();
    build_well(&forge, &[]);
    let path = forge.path("out/small/a.gguf.manifest.json");
    let other_file = |manifest: &mut Manifest| {
        let hash = forge::digest::Hash::of(b"other").to_string();
        manifest.subject[0].digest.insert("blake3".to_owned(), hash);
    };
    let reproduce = |manifest: &Manifest| -> (Run, Json) {
        forge.write("out/small/m.json.manifest.json", manifest.to_bytes().unwrap());
        let run = forge
            .run(&["reproduce", "-j", "1", "out/small/m.json.manifest.json"])
            .status(1);
        let args = [
            "reproduce",
            "-j",
            "1",
            "out/small/m.json.manifest.json",
            "--message-format",
            "json",
        ];
        let lines = forge.run(&args).status(1).json_lines();
        (run, lines.last().unwrap().clone())
    };

    // The record says that a tensor had other bytes: then quantizing it was not deterministic.
    let manifest = forged(&path, |manifest| {
        other_file(manifest);
        let forge = &mut manifest.predicate.forge;
        let tensor = forge
            .tensors
            .iter_mut()
            .find(|tensor| tensor.name == "blk.0.attn_v.weight")
            .unwrap();
        tensor.bytes = other_digest(&tensor.bytes);
        let record = forge.actions.get_mut(tensor.action.as_ref().unwrap()).unwrap();
        record.outputs.insert("tensor".to_owned(), tensor.bytes.clone());
    });
    let (run, line) = reproduce(&manifest);
    assert!(run.stdout.contains("\n1 tensor differ"), "{}", run.stdout);
    assert!(
        run.stdout
            .contains("diverge at tensor blk.0.attn_v.weight (tensor): the same action"),
        "{}",
        run.stdout
    );
    assert_eq!(
        (&line["verdict"], &line["divergence"]["outputs"][0]),
        (&"different".into(), &"tensor".into())
    );
    assert_eq!(line["tensors"][0]["name"], "blk.0.attn_v.weight");
    assert_eq!(line["divergence"]["key_before"], line["divergence"]["key_after"]);

    // The record says that the imatrix was another: that comes before the tensors that it weighs.
    let manifest = forged(&path, |manifest| {
        other_file(manifest);
        let text = String::from_utf8(manifest.to_bytes().unwrap()).unwrap();
        let actions = &manifest.predicate.forge.actions;
        let record = actions
            .values()
            .find(|record| record.step.as_deref() == Some("imatrix.general"));
        let imatrix = &record.unwrap().outputs["imatrix"];
        *manifest = serde_json::from_str(&text.replace(imatrix, &other_digest(imatrix))).unwrap();
    });
    let (run, line) = reproduce(&manifest);
    assert!(
        run.stdout.contains("same tensors, different metadata"),
        "{}",
        run.stdout
    );
    assert!(
        run.stdout
            .contains("diverge at imatrix.general (imatrix-collect): the same action"),
        "{}",
        run.stdout
    );
    assert_eq!(
        (&line["verdict"], &line["divergence"]["place"]),
        (&"same-tensors".into(), &"imatrix.general".into())
    );

    // The record says that the model was read otherwise: the first action that does other work is named with its input.
    let manifest = forged(&path, |manifest| {
        other_file(manifest);
        for record in manifest.predicate.forge.actions.values_mut() {
            if record.document["kind"] == "imatrix-collect" {
                record.document["inputs"]["context"] = 128.into();
            }
        }
    });
    let (run, line) = reproduce(&manifest);
    assert!(
        run.stdout
            .contains("diverge at imatrix.general (imatrix-collect): its inputs differ"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("inputs.context: 128 -> 64"), "{}", run.stdout);
    assert_eq!(line["divergence"]["inputs"], serde_json::json!(["inputs.context"]));
}

#[test]
fn a_manifest_that_contradicts_itself_is_not_built() {
    let forge = project();
    build_well(&forge, &[]);
    let path = forge.path("out/small/a.gguf.manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"Q8_0\"", "\"Q6_K\"")).unwrap();
    let run = forge.run(&["reproduce", "out/small/a.gguf"]).status(1);
    assert!(run.stderr.contains("contradicts itself"), "{}", run.stderr);
    assert!(run.stderr.contains("document: its key is"), "{}", run.stderr);
    assert_eq!(run.stdout, "");
    let run = forge.run(&["reproduce", "out/small/nothing.gguf"]).status(1);
    assert!(run.stderr.contains("there is no such file"), "{}", run.stderr);
    let run = forge
        .run(&["reproduce", "out/small/b.gguf", "--search", "nowhere"])
        .status(2);
    assert!(run.stderr.contains("`nowhere`"), "{}", run.stderr);
}

/// The whole example: a minute and more. `FORGE_TEST_QUICKSTART=1` runs it.
#[test]
fn every_candidate_of_the_quickstart_is_made_again() {
    if std::env::var_os("FORGE_TEST_QUICKSTART").is_none() {
        eprintln!("skipped: FORGE_TEST_QUICKSTART=1 builds the whole example, and each of its candidates again");
        return;
    }
    let forge = Forge::with_example();
    std::fs::copy(quickstart().join("recipe.toml"), forge.path("recipe.toml")).unwrap();
    let _ = forge.run(&["build"]).success();
    let manifests = manifests_in(&forge.path("out/quickstart"));
    assert_eq!(manifests.len(), 7);
    let sources = ["tiny.gguf", "calibration-prose.txt", "calibration-code.txt"].map(|name| forge.path(name));
    let elsewhere = Elsewhere::new(&sources, &manifests);
    for path in &manifests {
        let name = path.file_name().unwrap().to_str().unwrap();
        let started = std::time::Instant::now();
        let run = elsewhere.reproduce(name, &["--search", "../attic"]).success();
        assert!(
            run.stdout.contains("\nidentical: blake3 "),
            "{}\n{}",
            run.stdout,
            run.stderr
        );
        eprintln!("{name}: identical in {:.1} s", started.elapsed().as_secs_f64());
    }
}
