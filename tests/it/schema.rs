//! What is kept on disk: documents against `cache-schema/*.json`, and keys against the golden vectors in
//! `cache-schema/vectors/`. `FORGE_BLESS=1 cargo test --test it schema` writes the vectors anew, after the version that the
//! failure names was raised.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use forge::action;
use forge::action::Action;
use forge::action::MetricsRow;
use forge::action::RowOverlap;
use forge::digest::ActionDigest;
use forge::digest::BlobDigest;
use forge::digest::Fingerprint;
use forge::gguf::Metadata;
use forge::gguf::Value as GgufValue;
use forge::method;
use forge::method::MethodDocument;
use forge::policy::Family;
use forge::policy::Fuse;
use forge::policy::Ranking;
use forge::tensor_type::TensorType;
use forge::vocab::Chunking;
use forge::vocab::MergeMode;
use forge::vocab::Severity;
use forge::work::IndexedTensor;
use forge::work::compute_of;
use forge::work::encode;
use forge::work::encode_metadata;
use forge::work::slice_bytes;
use serde_json::Value;
use serde_json::json;

use crate::support::Forge;
use crate::support::project;

/// Every step kind, small.
const RECIPE: &str = r#"
schema = 1
name = "sample"
description = "every kind of step"

[source.model]
path = "tiny.gguf"

[source.foreign]
path = "foreign.gguf"
kind = "imatrix"

[corpus.prose]
files = ["calibration-prose.txt"]

[corpus.held-out]
files = ["held-out.txt"]

[imatrix.prose]
corpus = "prose"
context = 64
chunks = 2

[imatrix.foreign]
source = "foreign"

[imatrix.both]
merge = ["prose", "foreign"]
mode = "mean"

[moments.general]
corpus = "prose"
context = 64
chunks = 4
block = 2
held_out = 4

[imatrix.diagonal]
moments = "general"

[policy.refined]
method = "mix"
imatrix = "diagonal"
mix = "Q4_K_M"
rounding = "refined"
moments = "general"

[promote.refined]
policy = "refined"

[policy.mix]
method = "mix"
imatrix = "both"
mix = ["Q2_K", "Q4_K_M"]

[policy.rules]
method = "manual"
rules = [
  { match = 'attn_v\.weight$', type = "Q8_0" },
  { match = 'no-such-tensor', type = "Q6_K" },
]
otherwise = "Q5_0"

[policy.importance]
method = "ashq1"
imatrix = "both"
budget = "6 bpw"

[policy.dense]
method = "density"
imatrix = "both"
base = "Q4_K"
promotion = "Q8_0"
budget = "6 bpw"

[policy.guess]
method = "prior"
budget = "6 bpw"

[policy.boosted]
method = "boost"
imatrix = "prose"
base = "Q4_K"
promotion = "Q6_K"
layers = "auto:1"
ranking = "contrast"
baseline = "both"

[policy.squares]
method = "error"
imatrix = "both"
types = ["Q4_K", "Q8_0"]
probes = 0
budget = "6 bpw"

[policy.predicted]
method = "fisher"
imatrix = "diagonal"
corpus = "prose"
context = 64
chunks = 2
corrections = 0
types = ["Q4_K", "Q8_0"]
budget = "6 bpw"
rounding = "refined"
moments = "general"

[promote.mix]
policy = "mix"

[promote.rules]
policy = "rules"

[eval.quality]
corpus = "held-out"
context = 64
chunks = 2

[eval.alone]
corpus = "held-out"
context = 64
chunks = 2
candidates = ["rules"]
kld = false

[gate.sane]
candidates = ["mix-Q4_K_M"]
require = ["kld_mean < baseline", "bytes <= 6 MiB"]
baseline = "mix-Q2_K"
"#;

/// Outputs of actions that are documents, and their schemas.
const DOCUMENTS: &[(&str, &str, &str)] = &[
    ("corpus", "corpus", "corpus.v1"),
    ("eval", "figures", "figures.v1"),
    ("gate", "verdict", "gate.v1"),
    ("gradients", "index", "gradients.v1"),
    ("inspect-model", "compute", "model-compute.v1"),
    ("inspect-model", "model", "model-index.v1"),
    ("inspect-model", "shape", "model-shape.v1"),
    ("join", "coverage", "coverage.v1"),
    ("join", "join", "join.v1"),
    ("join", "slices", "slices.v1"),
    ("metrics", "json", "metrics.v1"),
    ("moments", "index", "moments.v1"),
    ("overlap", "overlap", "overlap.v1"),
    ("policy", "certificate", "certificate.v2"),
    ("policy", "policy", "policy.v1"),
    ("promote", "assembly", "assembly.v1"),
    ("promote", "compute", "model-compute.v1"),
    ("refined-tensor", "report", "refined.v1"),
    ("tensor-error", "errors", "tensor-errors.v1"),
    ("tensor-loss", "loss", "tensor-losses.v1"),
    ("weight-inputs", "inputs", "weight-inputs.v1"),
];

/// Documents of older versions that are still read.
const OLDER: &[(&str, &str)] = &[
    (
        "certificate.v1",
        r#"{"schema":"forge.certificate.v1","problem":{"unit_exponent":0,"capacities":[{"name":"file","constant":1}],"groups":[]},"answers":[],"digest":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"}"#,
    ),
    (
        "loans.v1",
        r#"{"schema":1,"path":"/models/out.gguf","file":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3","dev":1,"ino":2,"size":3,"mtime_ns":4,"ctime_ns":5,"loans":[{"bytes":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3","start":0}]}"#,
    ),
    (
        "tombstone.v1",
        r#"{"schema":1,"kind":"tensor","document":"{}","outputs":{"tensor":"6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85:3"},"facts":{"a":"b"},"cost_ms":7,"last_used":8,"removed":9,"why":"room"}"#,
    ),
];

/// Places of documents at which a field that is missing, or one too many, must be refused, and the fields that may miss.
const STRICT: &[(&str, &str, &[&str])] = &[
    ("action-result.v1", "", &[]),
    ("action.v1", "", &[]),
    ("action.v1", "/inputs", &[]),
    ("assembly.v1", "", &[]),
    ("assembly.v1", "/tensors/0", &[]),
    ("certificate.v2", "", &[]),
    ("certificate.v2", "/answers/0", &[]),
    ("certificate.v2", "/answers/0/multipliers", &[]),
    ("certificate.v2", "/problem", &[]),
    ("certificate.v2", "/problem/groups/0/options/0", &[]),
    ("corpus.v1", "", &[]),
    ("coverage.v1", "", &[]),
    ("envelope.v1", "", &[]),
    ("envelope.v1", "/signatures/0", &[]),
    ("figures.v1", "", &[]),
    ("figures.v1", "/chunks/0", &[]),
    ("figures.v1", "/ppl", &[]),
    ("diff.v1", "", &[]),
    ("diff.v1", "/comparisons/0", &[]),
    ("diff.v1", "/parts/0", &[]),
    ("earlier.v1", "", &[]),
    ("earlier.v1", "/records/0", &[]),
    ("gate.v1", "", &[]),
    ("gate.v1", "/checks/0", &[]),
    ("graph.v1", "", &[]),
    ("graph.v1", "/nodes/0", &[]),
    ("join.v1", "", &[]),
    ("join.v1", "/matched/blk.0.attn_k.weight", &[]),
    ("last.v1", "", &[]),
    ("machine.v1", "", &[]),
    ("machine.v1", "/speeds", &[]),
    ("borrowed.v2", "", &[]),
    ("borrowed.v2", "/blobs/0", &[]),
    ("loans.v1", "", &[]),
    ("loans.v1", "/loans/0", &[]),
    ("lock.v2", "", &["source", "step"]),
    ("lock.v2", "/engine/quantizer", &[]),
    ("lock.v2", "/source/0", &[]),
    ("manifest.v1", "", &[]),
    ("manifest.v1", "/predicate", &[]),
    ("manifest.v1", "/predicate/buildDefinition", &[]),
    ("manifest.v1", "/predicate/buildDefinition/externalParameters", &[]),
    ("manifest.v1", "/predicate/forge", &[]),
    ("manifest.v1", "/predicate/forge/tensors/0", &[]),
    ("manifest.v1", "/predicate/runDetails/metadata", &[]),
    ("manifest.v1", "/subject/0", &["annotations"]),
    ("metrics.v1", "", &[]),
    ("metrics.v1", "/rows/0", &[]),
    ("model-compute.v1", "", &[]),
    ("model-compute.v1", "/tensors/0", &[]),
    ("model-index.v1", "", &[]),
    ("model-index.v1", "/tensors/0", &[]),
    ("model-shape.v1", "", &[]),
    ("model-shape.v1", "/tensors/0", &[]),
    ("overlap.v1", "", &[]),
    ("overlap.v1", "/common", &[]),
    ("pin.v1", "", &[]),
    ("policy.v1", "", &["warnings", "predicted_loss"]),
    ("policy.v1", "/choices/0", &["instead_of"]),
    ("policy.v1", "/choices/0/why", &["loss"]),
    ("slices.v1", "", &[]),
    ("table.v1", "", &[]),
    ("table.v1", "/evidence/0", &[]),
    ("tensor-errors.v1", "", &[]),
    ("tombstone.v1", "", &[]),
    ("tombstone.v2", "", &[]),
    ("why.v2", "", &[]),
];

fn folder() -> PathBuf {
    project().join("cache-schema")
}

fn load(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The schemas, by name, and one document of each that was found good.
struct Schemas {
    validators: BTreeMap<String, jsonschema::Validator>,
    samples: BTreeMap<String, Value>,
}

impl Schemas {
    fn load() -> Self {
        let mut validators = BTreeMap::new();
        for entry in std::fs::read_dir(folder()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let schema = load(&path);
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                assert!(
                    jsonschema::draft202012::meta::is_valid(&schema),
                    "{name} is no JSON Schema"
                );
                let validator = jsonschema::draft202012::new(&schema);
                validators.insert(
                    name.clone(),
                    validator.unwrap_or_else(|error| panic!("{name}: {error}")),
                );
            }
        }
        Self {
            validators,
            samples: BTreeMap::new(),
        }
    }

    fn good(&mut self, name: &str, document: &Value) {
        let validator = &self.validators[name];
        let errors: Vec<String> = validator
            .iter_errors(document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{name}: {errors:#?}\n{document:#}");
        self.samples.entry(name.to_owned()).or_insert_with(|| document.clone());
    }
}

fn hex_name(path: &Path) -> String {
    let folder = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    format!("{folder}{}", path.file_name().unwrap().to_str().unwrap())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// Opens a sealed file as `cache-schema/README.md` tells it, and returns its kind, name and document.
fn unseal(path: &Path) -> (String, String, Value) {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.split('\n').collect();
    assert_eq!(
        (lines.len(), lines[3]),
        (4, ""),
        "{}: three lines, each ended",
        path.display()
    );
    let sum = forge::digest::Hash::of(format!("{}\n{}\n", lines[0], lines[1]).as_bytes());
    assert_eq!(lines[2], sum.to_string(), "{}", path.display());
    let head: Vec<&str> = lines[0].split(' ').collect();
    let kind = head[0].strip_prefix("forge-").unwrap().to_owned();
    let version = if matches!(kind.as_str(), "loans" | "tombstone") {
        "2"
    } else {
        "1"
    };
    assert_eq!((head.len(), head[1]), (3, version), "{}", path.display());
    (kind, head[2].to_owned(), serde_json::from_str(lines[1]).unwrap())
}

#[test]
fn every_document_of_a_build_is_what_its_schema_says() {
    let forge = Forge::with_example();
    // An imatrix of an earlier build is a foreign file to this one.
    let first = forge.sibling();
    std::fs::copy(forge.path("tiny.gguf"), first.path("tiny.gguf")).unwrap();
    std::fs::copy(forge.path("calibration-code.txt"), first.path("code.txt")).unwrap();
    first.recipe(
        "schema = 1\nname = \"first\"\n[source.model]\npath = \"tiny.gguf\"\n[corpus.code]\nfiles = [\"code.txt\"]\n\
         [imatrix.code]\ncorpus = \"code\"\ncontext = 64\nchunks = 2\n",
    );
    let _ = first.run(&["build"]).success();
    let cas = |digest: &str| {
        let (hash, length) = digest.split_once(':').unwrap();
        let bytes = std::fs::read(forge.store().join("cas-v1").join(&hash[..2]).join(&hash[2..])).unwrap();
        assert_eq!(bytes.len().to_string(), length);
        assert_eq!(BlobDigest::of(&bytes).to_string(), digest);
        bytes
    };
    let results = || -> Vec<(String, Value, Value)> {
        let files = files_below(&forge.store().join("actions-v1")).into_iter();
        let read = files.map(|path| {
            let (kind, name, result) = unseal(&path);
            assert_eq!((kind.as_str(), &name), ("result", &hex_name(&path)));
            let document = cas(result["action"].as_str().unwrap());
            assert_eq!(
                ActionDigest::of(&document).to_string(),
                name,
                "a result is stored under its action's key"
            );
            (name, serde_json::from_slice(&document).unwrap(), result)
        });
        read.collect()
    };
    let (_, _, collected) = results()
        .into_iter()
        .find(|(_, action, _)| action["kind"] == "imatrix-collect")
        .unwrap();
    forge.write("foreign.gguf", cas(collected["outputs"]["imatrix"].as_str().unwrap()));
    // Built twice, so that there is something before what was done last.
    let _ = forge.recipe(&RECIPE.replace("Q8_0", "Q5_1")).run(&["build"]).success();
    let manifests_before: Vec<String> = files_below(&forge.path("out/sample"))
        .into_iter()
        .filter(|path| path.to_string_lossy().ends_with(".manifest.json"))
        .map(|path| BlobDigest::of(&std::fs::read(path).unwrap()).to_string())
        .collect();
    let _ = forge.recipe(RECIPE).run(&["build"]).success();

    let mut schemas = Schemas::load();
    let mut seen: BTreeSet<String> = manifests_before.into_iter().collect();
    let mut kinds = BTreeSet::new();
    let mut outputs = BTreeSet::new();
    for (_, action, result) in results() {
        schemas.good("action-result.v1", &result);
        schemas.good("action.v1", &action);
        let kind = action["kind"].as_str().unwrap().to_owned();
        seen.insert(result["action"].as_str().unwrap().to_owned());
        for (name, digest) in result["outputs"].as_object().unwrap() {
            let digest = digest.as_str().unwrap();
            if let Some((_, _, schema)) = DOCUMENTS.iter().find(|(of, output, _)| *of == kind && output == name) {
                schemas.good(schema, &serde_json::from_slice(&cas(digest)).unwrap());
                seen.insert(digest.to_owned());
                outputs.insert((kind.clone(), name.clone()));
            }
        }
        kinds.insert(kind);
    }
    let expected: BTreeSet<String> = samples().iter().map(|(_, action)| action.kind().to_owned()).collect();
    assert_eq!(kinds, expected, "the build runs every kind of action");
    assert_eq!(outputs.len(), DOCUMENTS.len(), "{outputs:?}");

    let mut manifests = 0;
    for path in files_below(&forge.path("out/sample")) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name.ends_with(".manifest.json") {
            let manifest = load(&path);
            schemas.good("manifest.v1", &manifest);
            let forge_part = &manifest["predicate"]["forge"];
            for (key, record) in forge_part["actions"].as_object().unwrap() {
                schemas.good("action.v1", &record["document"]);
                let action: Action = Action::parse(record["document"].to_string().as_bytes()).unwrap();
                assert_eq!(
                    action.digest().to_string(),
                    *key,
                    "documents in manifests can be keyed again"
                );
            }
            for engine in forge_part["engines"].as_object().unwrap().values() {
                schemas.good("engine.v1", engine);
            }
            seen.insert(BlobDigest::of(&std::fs::read(&path).unwrap()).to_string());
            manifests += 1;
        } else if name == "metrics.json" {
            schemas.good("metrics.v1", &load(&path));
        }
    }
    assert_eq!(manifests, 4);

    for path in files_below(&forge.store().join("cas-v1")) {
        let bytes = std::fs::read(&path).unwrap();
        if bytes.starts_with(b"{") && serde_json::from_slice::<Value>(&bytes).is_ok() {
            let digest = BlobDigest::of(&bytes).to_string();
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            assert!(seen.contains(&digest), "a document that no schema is for: {start}");
        }
    }

    for path in files_below(&forge.store().join("runs-v1")) {
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            for line in std::fs::read_to_string(&path).unwrap().lines() {
                schemas.good("run.v2", &serde_json::from_str(line).unwrap());
            }
        } else {
            let (kind, name, document) = unseal(&path);
            if kind == "engine" {
                let bytes =
                    serde_json::to_vec(&serde_json::from_value::<forge::engine::Identity>(document.clone()).unwrap());
                assert_eq!(forge::digest::Fingerprint::of(&bytes.unwrap()).to_string(), name);
                schemas.good("engine.v1", &document);
                continue;
            }
            if kind == "machine" {
                schemas.good("machine.v1", &document);
                continue;
            }
            let last = if kind == "earlier" {
                schemas.good("earlier.v1", &document);
                document["records"][0].clone()
            } else {
                assert_eq!(kind, "last");
                document
            };
            let place = format!(
                "{}\n{}",
                last["recipe"].as_str().unwrap(),
                last["step"].as_str().unwrap()
            );
            assert_eq!(name, forge::digest::Hash::of(place.as_bytes()).to_string());
            schemas.good("last.v1", &last);
        }
    }
    let indexes = files_below(&forge.store().join("borrowed-v1"));
    assert_eq!(indexes.len(), 4, "one for each candidate");
    for path in indexes {
        let (kind, name, index) = unseal(&path);
        assert_eq!(
            (kind.as_str(), name.as_str()),
            ("loans", path.file_name().unwrap().to_str().unwrap())
        );
        schemas.good("borrowed.v2", &index);
    }
    let _ = forge.run(&["cache", "pin", "out/sample/rules.gguf"]).success();
    for path in files_below(&forge.store().join("manifests-v1")) {
        let (kind, name, pin) = unseal(&path);
        assert_eq!(
            (kind.as_str(), name.as_str()),
            ("pin", path.file_name().unwrap().to_str().unwrap())
        );
        schemas.good("pin.v1", &pin);
    }
    for args in [
        ["why"].as_slice(),
        &["why", "promote.rules"],
        &["why", "promote.rules", "blk.0.attn_v"],
        &["why", "-f", "edited.toml", "promote.mix"],
    ] {
        forge.write("edited.toml", RECIPE.replace("chunks = 2", "chunks = 3"));
        let run = forge.run(&[args, &["--message-format", "json"]].concat()).success();
        // The recipe has a warning, too.
        let lines = run.json_lines();
        let answers: Vec<&Value> = lines.iter().filter(|line| line["reason"] != "diagnostic").collect();
        assert!(!answers.is_empty(), "{args:?}");
        for line in answers {
            schemas.good("why.v2", &line["answer"]);
        }
    }
    for (a, b) in [
        ("recipe.toml", "edited.toml"),
        ("out/sample/mix-Q2_K.gguf", "out/sample/mix-Q4_K_M.gguf"),
        (
            "out/sample/mix-Q2_K.gguf.manifest.json",
            "out/sample/rules.gguf.manifest.json",
        ),
    ] {
        let run = forge.run(&["diff", "--format", "json", a, b]).success();
        schemas.good("diff.v1", &serde_json::from_str(&run.stdout).unwrap());
    }
    for args in [
        ["table", "--format", "json"].as_slice(),
        &["table", "--format", "json", "--columns", "kld,front"],
    ] {
        schemas.good(
            "table.v1",
            &serde_json::from_str(&forge.run(args).success().stdout).unwrap(),
        );
    }
    let _ = forge
        .run(&["cache", "gc", "--max-size", "0B", "--also-newest", "--yes"])
        .success();
    for path in files_below(&forge.store().join("tombstones-v1")) {
        let (kind, name, tombstone) = unseal(&path);
        assert_eq!((kind.as_str(), &name), ("tombstone", &hex_name(&path)));
        schemas.good("tombstone.v2", &tombstone);
        let document = tombstone["document"].as_str().unwrap();
        assert_eq!(ActionDigest::of(document.as_bytes()).to_string(), name);
    }
    let _ = forge.run(&["key", "new", "key"]).success();
    let _ = forge.run(&["sign", "out/sample/rules.gguf", "--key", "key"]).success();
    schemas.good(
        "envelope.v1",
        &load(&forge.path("out/sample/rules.gguf.manifest.json.sig.json")),
    );
    let _ = forge.run(&["lock"]).success();
    let lock: toml::Value = toml::from_str(&std::fs::read_to_string(forge.path("recipe.lock")).unwrap()).unwrap();
    schemas.good("lock.v2", &serde_json::to_value(lock).unwrap());
    let run = forge.run(&["graph", "--format", "json"]).success();
    schemas.good("graph.v1", &serde_json::from_str(&run.stdout).unwrap());
    assert!(
        ["run.v2", "last.v1", "earlier.v1"]
            .iter()
            .all(|name| schemas.samples.contains_key(*name))
    );
    for (name, document) in OLDER {
        schemas.good(name, &serde_json::from_str(document).unwrap());
    }
    refuses_what_is_not_so(&schemas);
}

/// Takes fields away, and adds one, at every place of [`STRICT`].
fn refuses_what_is_not_so(schemas: &Schemas) {
    for (name, place, optional) in STRICT {
        let sample = &schemas.samples[*name];
        let validator = &schemas.validators[*name];
        let at = |document: &mut Value| -> serde_json::Map<String, Value> {
            let found = document
                .pointer(place)
                .unwrap_or_else(|| panic!("{name}: nothing at `{place}`"));
            found.as_object().unwrap().clone()
        };
        let fields = at(&mut sample.clone());
        assert!(!fields.is_empty());
        for field in fields.keys() {
            let mut changed = sample.clone();
            changed
                .pointer_mut(place)
                .unwrap()
                .as_object_mut()
                .unwrap()
                .remove(field);
            let may = optional.contains(&field.as_str());
            assert_eq!(validator.is_valid(&changed), may, "{name}: without `{place}/{field}`");
        }
        let mut changed = sample.clone();
        let object = changed.pointer_mut(place).unwrap().as_object_mut().unwrap();
        object.insert("a field that nobody knows".to_owned(), Value::Null);
        assert!(!validator.is_valid(&changed), "{name}: with a field more at `{place}`");
        if let Some(schema) = sample.get("schema").filter(|_| place.is_empty()) {
            let mut changed = sample.clone();
            changed["schema"] = schema
                .as_u64()
                .map_or_else(|| json!("another.v2"), |version| json!(version + 1));
            assert!(!validator.is_valid(&changed), "{name}: of another version");
        }
    }
}

fn blob(text: &str) -> BlobDigest {
    BlobDigest::of(text.as_bytes())
}

/// An action of every kind, and of every form of those that have several. Engines here are made up.
fn samples() -> Vec<(&'static str, Action)> {
    let quantizer = Fingerprint::of(b"a quantizer");
    let engine = Fingerprint::of(b"an evaluator");
    let (model, tokenizer, tokens) = (blob("a model"), blob("a tokenizer"), blob("tokens"));
    let row = |candidate: &str| MetricsRow {
        eval: "quality".to_owned(),
        candidate: candidate.to_owned(),
        file: blob(candidate),
        elements: 5_771_264,
        figures: blob("figures"),
        probed: (candidate == "a").then(|| "10000000000,1000000000,16,512".to_owned()),
        engine,
        overlaps: (candidate == "large")
            .then(|| RowOverlap {
                corpus: "prose".to_owned(),
                same_files: 1,
                share: 1000,
                passage: None,
            })
            .into_iter()
            .collect(),
    };
    let promote = action::Promote {
        model: blob("an index"),
        metadata: blob("metadata"),
        policy: blob("a table"),
        slices: Some(blob("slices")),
        imatrix: [
            ("file_type", "15"),
            ("dataset", "prose"),
            ("entries", "42"),
            ("chunks", "64"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        allow_requantize: false,
        quantizer,
        writer: 1,
        rounding: None,
    };
    let reference = Action::ReferenceBlock(action::ReferenceBlock {
        model,
        tokens,
        context: 512,
        codec: 1,
        engine,
    });
    let policy = |coverage, method| {
        Action::Policy(action::Policy {
            shape: blob("a shape"),
            coverage,
            method,
            rules: 1,
        })
    };
    let tensor = |to: &str, weights| {
        Action::Tensor(action::Tensor {
            source: blob("rows"),
            from: "BF16".to_owned(),
            dims: vec![256, 768],
            to: to.to_owned(),
            weights,
            quantizer,
        })
    };
    let eval = |reference, chunks| {
        Action::Eval(action::Eval {
            candidate: blob("a candidate"),
            reference,
            tokenizer,
            corpus: blob("a corpus"),
            context: 512,
            chunks,
            block: 8,
            bootstrap: 1000,
            seed: u64::MAX,
            codec: 1,
            engine,
        })
    };
    vec![
        (
            "inspect-model",
            Action::InspectModel(action::InspectModel {
                files: vec![blob("first shard"), blob("second shard")],
                index: 1,
            }),
        ),
        (
            "corpus",
            Action::Corpus(action::Corpus {
                texts: vec![blob("abc")],
                chunking: Chunking::PerFile,
                parse_special: false,
            }),
        ),
        (
            "corpus, joined",
            Action::Corpus(action::Corpus {
                texts: vec![blob("abc"), blob("")],
                chunking: Chunking::Joined,
                parse_special: true,
            }),
        ),
        (
            "tokens",
            Action::Tokens(action::Tokens {
                texts: vec![blob("abc")],
                tokenizer,
                parse_special: false,
                engine,
            }),
        ),
        (
            "imatrix-block",
            Action::ImatrixBlock(action::ImatrixBlock {
                model,
                tokens,
                context: 512,
                process_output: false,
                engine,
            }),
        ),
        (
            "imatrix-collect",
            Action::ImatrixCollect(action::ImatrixCollect {
                model,
                tokenizer,
                corpus: blob("a corpus"),
                dataset: "größe".to_owned(),
                context: 512,
                chunks: None,
                block: 8,
                process_output: true,
                engine,
            }),
        ),
        (
            "imatrix-merge",
            Action::ImatrixMerge(action::ImatrixMerge {
                imatrices: vec![blob("one"), blob("two")],
                mode: MergeMode::Mean,
                weights: vec![1_000_000, 250_000],
            }),
        ),
        (
            "imatrix-import",
            Action::ImatrixImport(action::ImatrixImport { file: blob("a file") }),
        ),
        (
            "imatrix-moments",
            Action::ImatrixMoments(action::ImatrixMoments {
                moments: blob("second moments"),
                process_output: false,
            }),
        ),
        (
            "weight-inputs",
            Action::WeightInputs(action::WeightInputs {
                model,
                context: 64,
                engine,
            }),
        ),
        (
            "moments-block",
            Action::MomentsBlock(action::MomentsBlock {
                model,
                tokens,
                context: 64,
                input: "a".to_owned(),
                engine,
                form: 1,
            }),
        ),
        (
            "moments-sum",
            Action::MomentsSum(action::MomentsSum {
                parts: vec![blob("1"), blob("2")],
            }),
        ),
        (
            "moments",
            Action::Moments(action::Moments {
                model,
                shape: blob("shape"),
                tokenizer,
                corpus: blob("corpus"),
                dataset: "calibration".to_owned(),
                context: 64,
                chunks: Some(4),
                block: 2,
                held_out: 8,
                engine,
                form: 1,
            }),
        ),
        (
            "refined-tensor",
            Action::RefinedTensor(action::RefinedTensor {
                source: blob("source"),
                from: "F16".to_owned(),
                dims: vec![256, 4],
                to: "Q4_K".to_owned(),
                weights: Some(blob("weights")),
                moments: blob("second moments"),
                validation: Some(blob("validation")),
                damping: 10_000,
                version: 1,
                quantizer: engine,
            }),
        ),
        (
            "join",
            Action::Join(action::Join {
                shape: blob("a shape"),
                imatrix: blob("an imatrix"),
                missing: Severity::Warn,
                unrouted: Severity::Fail,
                min_count: 1,
            }),
        ),
        (
            "policy, mix",
            policy(
                Some(blob("coverage")),
                MethodDocument::Mix(Box::new(method::mix::Document {
                    mix: "Q4_K_M".to_owned(),
                    pure: false,
                    output_type: Some("Q8_0".to_owned()),
                    embedding_type: None,
                    keep: vec![r"^blk\.0\.".to_owned()],
                })),
            ),
        ),
        (
            "policy, manual",
            policy(
                None,
                MethodDocument::Manual(Box::new(method::manual::Document {
                    rules: vec![method::RuleDocument {
                        pattern: r"attn_v\.weight$".to_owned(),
                        target: "Q6_K".to_owned(),
                    }],
                    otherwise: Some("keep".to_owned()),
                })),
            ),
        ),
        (
            "policy, ashq1",
            policy(
                Some(blob("coverage")),
                MethodDocument::Ashq1(Box::new(method::ashq1::Document {
                    imatrix: blob("an imatrix"),
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: Some("prose".to_owned()),
                    },
                    budget: method::BudgetDocument::MillionthsOfBits { number: 4_500_000 },
                    depth: false,
                    free: true,
                    qat: false,
                    floors: vec![method::RuleDocument {
                        pattern: "ffn_down".to_owned(),
                        target: "Q5_K".to_owned(),
                    }],
                    ceilings: Vec::new(),
                    keep: Vec::new(),
                })),
            ),
        ),
        (
            "policy, density",
            policy(
                Some(blob("coverage")),
                MethodDocument::Density(Box::new(method::density::Document {
                    imatrix: blob("an imatrix"),
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: Some("prose".to_owned()),
                    },
                    budget: method::BudgetDocument::MillionthsOfBits { number: 5_500_000 },
                    base: "Q4_K".to_owned(),
                    promotion: "Q8_0".to_owned(),
                    anchors: true,
                    keep: Vec::new(),
                })),
            ),
        ),
        (
            "policy, prior",
            policy(
                None,
                MethodDocument::Prior(Box::new(method::prior::Document {
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: None,
                    },
                    budget: method::BudgetDocument::Bytes { number: 5_976_883_200 },
                    constraints: method::ConstraintsDocument {
                        types: vec!["Q4_K".to_owned(), "F16".to_owned()],
                        fuse: vec![Fuse::Attention],
                        floors: Vec::new(),
                        ceilings: vec![method::RuleDocument {
                            pattern: "ffn_".to_owned(),
                            target: "Q5_K".to_owned(),
                        }],
                        keep: Vec::new(),
                        devices: vec![method::DeviceDocument {
                            name: "gpu0".to_owned(),
                            tensors: vec![r"blk\.[0-3]\.".to_owned()],
                            memory: 25_769_803_776,
                            reserve: 0,
                            cache: Some(method::CacheDocument {
                                context: 8192,
                                ty: "F16".to_owned(),
                            }),
                        }],
                    },
                    states: 20_000_000,
                    solver: 1,
                })),
            ),
        ),
        (
            "policy, measured",
            policy(
                Some(blob("coverage")),
                MethodDocument::Measured(Box::new(method::measured::Document {
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: Some("prose".to_owned()),
                    },
                    budget: method::BudgetDocument::MillionthsOfBits { number: 4_500_000 },
                    model: blob("a model"),
                    imatrix: Some(blob("imatrix")),
                    corpus: blob("a corpus"),
                    tokenizer: blob("a tokenizer"),
                    context: 512,
                    chunks: 16,
                    block: 8,
                    screen: 4,
                    max_probes: None,
                    refine: 3,
                    rounding: None,
                    constraints: method::ConstraintsDocument {
                        types: vec!["IQ3_XXS".to_owned(), "Q4_K".to_owned()],
                        fuse: Vec::new(),
                        floors: Vec::new(),
                        ceilings: Vec::new(),
                        keep: Vec::new(),
                        devices: Vec::new(),
                    },
                    states: 20_000_000,
                    solver: 1,
                    form: 1,
                    quantizer,
                    evaluator: engine,
                })),
            ),
        ),
        (
            "policy, fisher",
            policy(
                Some(blob("coverage")),
                MethodDocument::Fisher(Box::new(method::fisher::Document {
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: Some("prose".to_owned()),
                    },
                    budget: method::BudgetDocument::MillionthsOfBits { number: 4_500_000 },
                    model: blob("a model"),
                    imatrix: Some(blob("imatrix")),
                    corpus: blob("a corpus"),
                    tokenizer: blob("a tokenizer"),
                    context: 512,
                    chunks: 16,
                    block: 8,
                    probes: 8,
                    corrections: 1,
                    rounding: Some(method::rounding::RoundingDocument::new(blob("second moments"))),
                    constraints: method::ConstraintsDocument {
                        types: vec!["IQ3_XXS".to_owned(), "Q4_K".to_owned()],
                        fuse: Vec::new(),
                        floors: Vec::new(),
                        ceilings: Vec::new(),
                        keep: Vec::new(),
                        devices: Vec::new(),
                    },
                    states: 20_000_000,
                    solver: 1,
                    quantizer,
                    evaluator: engine,
                })),
            ),
        ),
        (
            "gradients-block",
            Action::GradientsBlock(action::GradientsBlock {
                model,
                tokens,
                context: 64,
                engine,
                form: 1,
            }),
        ),
        (
            "gradients",
            Action::Gradients(action::Gradients {
                model,
                tokenizer,
                corpus: blob("corpus"),
                context: 64,
                chunks: 4,
                block: 2,
                engine,
                form: 1,
            }),
        ),
        (
            "tensor-loss",
            Action::TensorLoss(action::TensorLoss {
                tensor: tensor("Q4_K", Some(blob("importances"))).digest(),
                factors: Some(blob("factors")),
                moments: None,
                quantizer,
                form: 1,
            }),
        ),
        (
            "policy, boost of listed layers",
            policy(
                None,
                MethodDocument::Boost(Box::new(method::boost::Document {
                    base: method::boost::BaseDocument::Mix {
                        mix: "Q4_K_M".to_owned(),
                    },
                    layers: method::boost::LayersDocument::Listed { layers: vec![0, 7] },
                    families: vec![Family::Down],
                    promotion: "Q6_K".to_owned(),
                    keep: vec!["^output".to_owned()],
                })),
            ),
        ),
        (
            "policy, boost of ranked layers",
            policy(
                Some(blob("coverage")),
                MethodDocument::Boost(Box::new(method::boost::Document {
                    base: method::boost::BaseDocument::Type { to: "Q4_K".to_owned() },
                    layers: method::boost::LayersDocument::Ranked {
                        count: 6,
                        ranking: Ranking::Contrast,
                        imatrix: blob("an imatrix"),
                        baseline: Some(blob("an imatrix of other texts")),
                    },
                    families: vec![Family::Gate, Family::Up, Family::Down],
                    promotion: "Q6_K".to_owned(),
                    keep: Vec::new(),
                })),
            ),
        ),
        (
            "policy, error",
            policy(
                Some(blob("coverage")),
                MethodDocument::Error(Box::new(method::error::Document {
                    header: method::HeaderDocument {
                        metadata: blob("metadata"),
                        dataset: Some("prose".to_owned()),
                    },
                    budget: method::BudgetDocument::MillionthsOfBits { number: 4_500_000 },
                    model: blob("a model"),
                    imatrix: Some(blob("an imatrix")),
                    probes: Some(method::error::ProbesDocument {
                        count: 1,
                        corpus: blob("a corpus"),
                        tokenizer: blob("a tokenizer"),
                        context: 512,
                        chunks: 16,
                        block: 8,
                        evaluator: engine,
                    }),
                    rounding: None,
                    constraints: method::ConstraintsDocument {
                        types: vec!["IQ3_XXS".to_owned(), "Q4_K".to_owned()],
                        fuse: Vec::new(),
                        floors: Vec::new(),
                        ceilings: Vec::new(),
                        keep: Vec::new(),
                        devices: Vec::new(),
                    },
                    states: 20_000_000,
                    solver: 1,
                    form: 1,
                    quantizer,
                })),
            ),
        ),
        (
            "tensor-error",
            Action::TensorError(action::TensorError {
                tensor: tensor("Q4_K", Some(blob("importances"))).digest(),
                weights: Some(blob("importances")),
                quantizer,
                form: 1,
            }),
        ),
        ("tensor", tensor("Q4_K", Some(blob("importances")))),
        ("tensor, without importances", tensor("Q8_0", None)),
        ("promote", Action::Promote(promote.clone())),
        ("reference-block", reference.clone()),
        (
            "promote, refined",
            Action::Promote(action::Promote {
                rounding: Some(method::rounding::RoundingDocument::new(blob("second moments"))),
                ..promote.clone()
            }),
        ),
        (
            "eval-block",
            Action::EvalBlock(action::EvalBlock {
                candidate: blob("a candidate"),
                reference: Some(reference.digest()),
                tokens,
                context: 512,
                codec: 1,
                engine,
            }),
        ),
        ("eval", eval(Some(model), Some(32))),
        ("eval, perplexity only", eval(None, None)),
        (
            "overlap",
            Action::Overlap(action::Overlap {
                evaluation: vec![blob("held-out")],
                calibration: vec![blob("one"), blob("two")],
                rules: 1,
            }),
        ),
        (
            "metrics",
            Action::Metrics(action::Metrics {
                recipe: "tiny".to_owned(),
                rows: vec![row("small"), row("large")],
                table: 1,
            }),
        ),
        (
            "gate",
            Action::Gate(action::Gate {
                rows: vec![row("large")],
                baseline: vec![row("small")],
                require: vec!["kld_mean < 1.1 * baseline".to_owned()],
                confidence: 950_000,
                bootstrap: 10_000,
                seed: 0,
            }),
        ),
    ]
}

/// Holds a vector file against what the program makes now; with `FORGE_BLESS=1`, writes it anew.
#[allow(
    clippy::disallowed_methods,
    reason = "whoever runs the test says that its vectors are to be written"
)]
fn compare(file: &str, made: &Value, what_to_raise: &str) {
    let path = folder().join("vectors").join(file);
    if std::env::var_os("FORGE_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("{made:#}\n")).unwrap();
        return;
    }
    let kept = load(&path);
    let (kept, made) = (kept["vectors"].as_array().unwrap(), made["vectors"].as_array().unwrap());
    for vector in made {
        let name = vector["name"].as_str().unwrap();
        let same = kept.iter().find(|kept| kept["name"] == *name);
        assert_eq!(
            same,
            Some(vector),
            "{file}, `{name}`: what is kept in people's caches would not be found again, or be taken for something else. \
             If that is meant: raise {what_to_raise}, then run this test with FORGE_BLESS=1"
        );
    }
    assert_eq!(kept.len(), made.len(), "{file} has vectors that nothing makes any more");
}

#[test]
fn keys_of_actions_do_not_drift() {
    let vectors: Vec<Value> = samples()
        .iter()
        .map(|(name, action)| {
            let document = String::from_utf8(action.document()).unwrap();
            json!({ "name": name, "document": document, "key": action.digest().to_string() })
        })
        .collect();
    compare(
        "actions.json",
        &json!({ "context": ActionDigest::CONTEXT, "vectors": vectors }),
        "`SCHEMA` in src/action/mod.rs",
    );
}

#[test]
fn action_vectors_hold_without_the_code_that_made_them() {
    let file = load(&folder().join("vectors/actions.json"));
    let schema = load(&folder().join("action.v1.json"));
    let mut schemas = Schemas::load();
    let context = file["context"].as_str().unwrap();
    let mut kinds = BTreeSet::new();
    for vector in file["vectors"].as_array().unwrap() {
        let document = vector["document"].as_str().unwrap();
        let key = blake3::Hash::from_bytes(blake3::derive_key(context, document.as_bytes()));
        assert_eq!(vector["key"], key.to_hex().as_str(), "{}", vector["name"]);
        let parsed: Value = serde_json::from_str(document).unwrap();
        schemas.good("action.v1", &parsed);
        let kind = parsed["kind"].as_str().unwrap().to_owned();
        // `required` lists the fields in canonical order.
        let fields = schema["$defs"][&kind]["required"].as_array().unwrap();
        let places: Vec<usize> = fields
            .iter()
            .map(|field| document.find(&format!("\"{}\":", field.as_str().unwrap())).unwrap())
            .collect();
        assert!(places.is_sorted(), "{kind}: {fields:?} is not the order of\n{document}");
        let again = Action::parse(document.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(again.document()).unwrap(),
            document,
            "it reads back the same"
        );
        kinds.insert(kind);
    }
    let known = schema["oneOf"].as_array().unwrap().iter();
    let known: BTreeSet<String> = known
        .map(|one| one["properties"]["kind"]["const"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, known, "a vector for every kind of the schema");
}

#[test]
fn digests_of_blobs_do_not_drift() {
    let vectors: Vec<Value> = ["", "abc", "größe\n"]
        .iter()
        .map(|text| json!({ "name": text, "text": text, "digest": blob(text).to_string() }))
        .collect();
    let versions = "the layout: `LAYOUT` and `CAS` in src/store/layout.rs, and the schemas of all that names blobs";
    compare("blobs.json", &json!({ "vectors": vectors }), versions);
}

#[test]
fn digests_of_importances_do_not_drift() {
    let vectors: Vec<Value> = [
        ("one column", vec![1.0_f32]),
        ("four columns", vec![0.0, 0.5, 1.25, 3e8]),
    ]
    .into_iter()
    .map(|(name, weights)| {
        let bytes = slice_bytes(&weights);
        let hex: String = bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(hex_digit)
            .collect();
        json!({ "name": name, "weights": weights, "bytes": hex, "digest": BlobDigest::of(&bytes).to_string() })
    })
    .collect();
    compare(
        "slices.json",
        &json!({ "vectors": vectors }),
        "`SCHEMA` in src/step/join.rs and in src/action/mod.rs",
    );
}

fn hex_digit(digit: u8) -> char {
    char::from_digit(u32::from(digit), 16).unwrap()
}

#[test]
fn documents_of_models_do_not_drift() {
    let mut metadata = Metadata::new();
    for (key, value) in [
        ("general.architecture", GgufValue::String(b"llama".to_vec())),
        ("llama.block_count", GgufValue::U32(1)),
        ("llama.rope.freq_base", GgufValue::F32(10_000.0)),
    ] {
        metadata.set(key, &value).unwrap();
    }
    let header = encode_metadata(&metadata).unwrap();
    let tensor = |name: &str, ty, dims: &[u64], bytes: &str| IndexedTensor {
        name: name.to_owned(),
        ty,
        dims: dims.to_vec(),
        shard: 0,
        start: 4096,
        bytes: blob(bytes),
    };
    let tensors = [
        tensor("token_embd.weight", TensorType::BF16, &[256, 32], "embeddings"),
        tensor("blk.0.attn_q.weight", TensorType::Q4_K, &[256, 256], "queries"),
    ];
    let compute = encode(&compute_of(BlobDigest::of(&header), &tensors)).unwrap();
    let mut schemas = Schemas::load();
    schemas.good("model-compute.v1", &serde_json::from_slice(&compute).unwrap());
    let vectors = json!([
        { "name": "hyperparameters", "digest": BlobDigest::of(&header).to_string() },
        {
            "name": "compute",
            "document": String::from_utf8(compute.clone()).unwrap(),
            "digest": BlobDigest::of(&compute).to_string(),
        },
    ]);
    compare(
        "models.json",
        &json!({ "vectors": vectors }),
        "`INDEX` in src/step/model.rs",
    );
}

#[test]
fn the_worked_example_of_the_contract_works() {
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    let line = text.lines().find(|line| line.contains("b3sum --derive-key"));
    let line = line.expect("cache-schema/README.md shows how a key is made");
    let document = line.split('\'').nth(3).unwrap();
    let context = line.split('\'').nth(5).unwrap();
    let key = text.lines().skip_while(|other| *other != line).nth(1).unwrap();
    let key = key.split_whitespace().next().unwrap();
    assert_eq!(context, ActionDigest::CONTEXT);
    assert_eq!(key, ActionDigest::of(document.as_bytes()).to_string());
    let vectors = load(&folder().join("vectors/actions.json"));
    let known = vectors["vectors"].as_array().unwrap().iter();
    assert!(
        known
            .into_iter()
            .any(|vector| vector["document"] == document && vector["key"] == key),
        "the example is one of the vectors"
    );
}

#[test]
fn the_contract_names_every_schema() {
    let text = std::fs::read_to_string(folder().join("README.md")).unwrap();
    for name in Schemas::load().validators.keys() {
        assert!(
            text.contains(&format!("{name}.json")),
            "cache-schema/README.md does not name {name}.json"
        );
    }
}

#[test]
fn the_readme_names_the_file_of_each_version_number() {
    let page = std::fs::read_to_string(project().join("cache-schema/README.md")).unwrap();
    let row = regex::Regex::new(r"(?m)^\| ((?:`[A-Z_]+`(?:, )?)+) \| ((?:`src/[^`]+`(?:, )?)+) \|").unwrap();
    let words =
        |cell: &str| -> Vec<String> { cell.split(", ").map(|word| word.trim_matches('`').to_owned()).collect() };
    let mut checked = 0;
    for found in row.captures_iter(&page) {
        let texts = words(&found[2]).into_iter().map(|file| {
            let text = std::fs::read_to_string(project().join(&file));
            (text.unwrap_or_else(|error| panic!("{file}: {error}")), file)
        });
        let texts: Vec<(String, String)> = texts.collect();
        let constants = words(&found[1]);
        let has = |text: &str, name: &str| text.contains(&format!("const {name}: "));
        for (text, file) in &texts {
            assert!(
                constants.iter().any(|name| has(text, name)),
                "{file} has none of {constants:?}"
            );
        }
        for name in &constants {
            assert!(texts.iter().any(|(text, _)| has(text, name)), "{name}");
            checked += 1;
        }
    }
    assert!(checked >= 15, "{checked}");
}
