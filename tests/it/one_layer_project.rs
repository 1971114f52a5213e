//! A project that builds in a second: the example's model cut to one layer, some paragraphs of its texts, two candidates.
//! One thread a build: the tests run beside each other.

#![allow(dead_code, reason = "every theme uses its own part")]

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::OnceLock;

use forge::gguf::DEFAULT_ALIGNMENT;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::gguf::TensorSpec;
use forge::gguf::Value;
use serde_json::Value as Json;

use crate::support::Forge;
use crate::support::Run;
use crate::support::quickstart;

/// Two candidates, one with types by hand; both are measured.
pub(crate) const RECIPE: &str = r#"schema = 1
name = "small"

[source.model]
path = "model.gguf"

[corpus.calibration]
files = ["prose.txt"]

[corpus.held-out]
files = ["held-out.txt"]

[imatrix.general]
corpus = "calibration"
chunks = 4
context = 64
block = 2

[policy.a]
imatrix = "general"
method = "manual"
rules = [{ match = '^token_embd\.weight$', type = "Q8_0" }, { match = "ffn_down", type = "Q6_K" }]
otherwise = "Q4_K"

[policy.b]
imatrix = "general"
method = "mix"
mix = "Q4_K_M"

[promote.a]
policy = "a"

[promote.b]
policy = "b"

[eval.quality]
corpus = "held-out"
chunks = 2
context = 64
block = 1
"#;

/// One candidate, no imatrix, no evaluation: what is left is the model.
pub(crate) const BARE: &str = r#"schema = 1
name = "bare"

[source.model]
path = "model.gguf"

[policy.p]
method = "mix"
mix = "Q4_K_M"

[promote.p]
policy = "p"
"#;

/// A GGUF file in memory.
#[derive(Clone)]
pub(crate) struct Gguf {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Vec<(TensorSpec, Vec<u8>)>,
}

impl Gguf {
    pub(crate) fn read(path: &Path) -> Self {
        let model = Model::open(path).unwrap();
        let tensors = model.tensors().iter().map(|tensor| {
            let mut bytes = vec![0; tensor.info.len as usize];
            model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
            (TensorSpec::from(&tensor.info), bytes)
        });
        Self {
            metadata: model.metadata().clone(),
            tensors: tensors.collect(),
        }
    }

    /// The example's model with its first layer only, and a chat template.
    pub(crate) fn small() -> Self {
        static SMALL: OnceLock<Gguf> = OnceLock::new();
        let made = SMALL.get_or_init(|| {
            let mut model = Self::read(&quickstart().join("tiny.gguf"));
            model
                .tensors
                .retain(|(spec, _)| !spec.name.starts_with("blk.") || spec.name.starts_with("blk.0."));
            model.set("qwen3.block_count", Value::U32(1));
            model.set("tokenizer.chat_template", Value::String(b"{{ first }}".to_vec()));
            model
        });
        made.clone()
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.metadata.set(key, &value).unwrap();
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let specs: Vec<TensorSpec> = self.tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let layout = Layout::new(&self.metadata, &specs, DEFAULT_ALIGNMENT).unwrap();
        let mut out = Vec::new();
        layout
            .write(&mut out, &mut |index, out| out.write_all(&self.tensors[index].1))
            .unwrap();
        out
    }

    /// Cuts the model after `at` tensors, as `llama-gguf-split` does: the first part has all metadata.
    pub(crate) fn halves(&self, at: usize) -> [Vec<u8>; 2] {
        let part = |number: u16, mut metadata: Metadata, tensors: &[(TensorSpec, Vec<u8>)]| {
            metadata.set("split.no", &Value::U16(number)).unwrap();
            metadata.set("split.count", &Value::U16(2)).unwrap();
            let count = i32::try_from(self.tensors.len()).unwrap();
            metadata.set("split.tensors.count", &Value::I32(count)).unwrap();
            let tensors = tensors.to_vec();
            Self { metadata, tensors }.bytes()
        };
        [
            part(0, self.metadata.clone(), &self.tensors[..at]),
            part(1, Metadata::new(), &self.tensors[at..]),
        ]
    }
}

/// Returns the first paragraphs of one of the example's texts.
pub(crate) fn text(name: &str) -> String {
    let whole = std::fs::read_to_string(quickstart().join(name)).unwrap();
    whole.chars().take(2000).collect()
}

/// Writes the small model and its texts into a project.
pub(crate) fn furnish(forge: &Forge) {
    forge
        .write("model.gguf", Gguf::small().bytes())
        .write("prose.txt", text("calibration-prose.txt"))
        .write("code.txt", text("calibration-code.txt"))
        .write("held-out.txt", text("held-out.txt"));
}

/// Makes the small project with [`RECIPE`].
pub(crate) fn project() -> Forge {
    let forge = Forge::new();
    furnish(&forge);
    forge.recipe(RECIPE);
    forge
}

/// Replaces a part of a text that is there once.
pub(crate) fn edited(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "`{from}` is there once");
    text.replace(from, to)
}

/// Overwrites a byte in place and puts size and modification time back: what build systems do not see.
pub(crate) fn corrupt_quietly(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    // Letters stay letters, so that a text stays one.
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(file.metadata().unwrap().modified().unwrap(), modified);
}

/// A build and its events.
pub(crate) struct Built {
    pub(crate) run: Run,
    pub(crate) events: Vec<Json>,
}

/// Builds with one thread.
pub(crate) fn build(forge: &Forge, args: &[&str]) -> Built {
    let mut all = vec!["-j", "1"];
    all.extend(args);
    let (run, events) = forge.build_events(&all);
    Built { run, events }
}

/// Builds, and shows everything if it does not succeed.
pub(crate) fn build_well(forge: &Forge, args: &[&str]) -> Built {
    let Built { run, events } = build(forge, args);
    Built {
        run: run.success(),
        events,
    }
}

fn field(event: &Json, name: &str) -> String {
    event[name].as_str().unwrap_or_default().to_owned()
}

impl Built {
    pub(crate) fn of(&self, reason: &str) -> impl Iterator<Item = &Json> {
        self.events.iter().filter(move |event| event["reason"] == reason)
    }

    /// The kinds of the actions that ran, with how many of each.
    pub(crate) fn ran(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for event in self.of("action-finished").filter(|event| event["outcome"] == "ran") {
            *counts.entry(field(event, "kind")).or_default() += 1;
        }
        counts
    }

    pub(crate) fn ran_of(&self, kind: &str) -> usize {
        self.ran().get(kind).copied().unwrap_or(0)
    }

    pub(crate) fn hits_of(&self, kind: &str) -> usize {
        self.of("action-finished")
            .filter(|event| event["outcome"] == "hit" && event["kind"] == kind)
            .count()
    }

    /// Every reported key, with kind and step.
    pub(crate) fn keys(&self) -> BTreeSet<(String, String, String)> {
        self.of("action-finished")
            .map(|event| (field(event, "step"), field(event, "kind"), field(event, "key")))
            .collect()
    }

    /// How each step ended.
    pub(crate) fn steps(&self) -> BTreeMap<String, String> {
        self.of("step-finished")
            .map(|event| (field(event, "step"), field(event, "outcome")))
            .collect()
    }

    pub(crate) fn started(&self) -> BTreeSet<String> {
        self.of("step-started").map(|event| field(event, "step")).collect()
    }

    pub(crate) fn written(&self) -> BTreeSet<String> {
        self.of("output-written")
            .map(|event| {
                let path = field(event, "path");
                Path::new(&path).file_name().unwrap().to_str().unwrap().to_owned()
            })
            .collect()
    }

    /// The messages of all diagnostics, with hints and causes.
    pub(crate) fn diagnostics(&self) -> String {
        self.of("diagnostic").map(|event| field(event, "rendered")).collect()
    }

    /// Asserts that nothing at all was done.
    pub(crate) fn assert_idle(&self) {
        assert_eq!(self.ran(), BTreeMap::new());
        assert_eq!(self.started(), BTreeSet::new());
        assert_eq!(self.written(), BTreeSet::new());
        assert!(
            self.steps().values().all(|outcome| outcome == "hit"),
            "{:?}",
            self.steps()
        );
        assert!(!self.steps().is_empty());
    }
}

/// Plans; the status and key of each node.
pub(crate) fn plan(forge: &Forge, args: &[&str]) -> (Run, BTreeMap<String, (String, Option<String>)>) {
    let mut all = vec!["plan", "--message-format", "json"];
    all.extend(args);
    let run = forge.run(&all);
    let entries = run
        .json_lines()
        .iter()
        .filter(|line| line["reason"] == "plan-step")
        .map(|line| {
            let key = line["key"].as_str().map(str::to_owned);
            (field(line, "step"), (field(line, "status"), key))
        })
        .collect();
    (run, entries)
}

/// Plans; all that is said of one node.
pub(crate) fn planned(forge: &Forge, step: &str) -> Json {
    let run = forge.run(&["plan", "--message-format", "json"]).success();
    let lines = run.json_lines();
    let line = lines.into_iter().find(|line| line["step"] == step);
    line.unwrap_or_else(|| panic!("no `{step}` in {}", run.stdout))
}

/// Reads the manifest beside an output.
pub(crate) fn manifest(output: &Path) -> Json {
    let path = format!("{}.manifest.json", output.display());
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Returns the bytes of an output of a step's action, by way of a candidate's manifest.
pub(crate) fn output_of(forge: &Forge, manifest: &Json, step: &str, output: &str) -> Vec<u8> {
    let actions = manifest["predicate"]["forge"]["actions"].as_object().unwrap();
    let record = actions.values().find(|record| record["step"] == step).unwrap();
    let digest = record["outputs"][output].as_str().unwrap();
    let hash = digest.split(':').next().unwrap();
    let path = forge.store().join("cas-v1").join(&hash[..2]).join(&hash[2..]);
    std::fs::read(path).unwrap()
}

/// Asserts that every blob of a store is what its name says.
pub(crate) fn assert_store_whole(store: &Path) {
    let mut blobs = 0;
    for folder in std::fs::read_dir(store.join("cas-v1")).unwrap() {
        let folder = folder.unwrap();
        for file in std::fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let name = format!(
                "{}{}",
                folder.file_name().to_string_lossy(),
                file.file_name().to_string_lossy()
            );
            let bytes = std::fs::read(file.path()).unwrap();
            assert_eq!(forge::digest::Hash::of(&bytes).to_string(), name);
            blobs += 1;
        }
    }
    assert!(blobs > 0, "the store has blobs");
}

/// Runs `work` for every item on a few threads.
pub(crate) fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Builds an imatrix of the project's model on its prose and returns its file. The project's recipe is replaced.
pub(crate) fn collected_imatrix(forge: &Forge) -> Vec<u8> {
    forge.recipe(
        "schema = 1\nname = \"first\"\n[source.model]\npath = \"model.gguf\"\n[corpus.prose]\nfiles = [\"prose.txt\"]\n\
         [imatrix.one]\ncorpus = \"prose\"\nchunks = 3\ncontext = 64\n",
    );
    let events = build_well(forge, &[]).events;
    let collected = events
        .iter()
        .find(|event| event["reason"] == "action-finished" && event["kind"] == "imatrix-collect");
    let key = collected.unwrap()["key"].as_str().unwrap().parse().unwrap();
    let store = forge::store::Store::open(forge.store()).unwrap();
    let imatrix = store.lookup(&key).unwrap().unwrap().outputs["imatrix"];
    store.read(&imatrix, 1 << 30).unwrap()
}
