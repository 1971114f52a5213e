//! A model that is made small so that many builds take little time, and what tests of stores ask of a build.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use forge::digest::BlobDigest;
use forge::gguf::Layout;
use forge::gguf::Metadata;
use forge::gguf::Model;
use forge::gguf::TensorSpec;
use forge::gguf::Value;

use crate::support::Forge;
use crate::support::Run;
use crate::support::quickstart;

/// A recipe for the small model with one of everything that runs: one collected imatrix, two candidates, one table.
pub(crate) const RECIPE: &str = r#"
schema = 1
name = "small"
[source.model]
path = "small.gguf"
[corpus.calibration]
files = ["prose.txt"]
[corpus.held-out]
files = ["held-out.txt"]
[imatrix.general]
corpus = "calibration"
context = 64
chunks = 4
block = 2
[policy.mix]
method = "mix"
imatrix = "general"
mix = ["Q4_0", "Q8_0"]
[promote.small]
policy = "mix"
[eval.quality]
candidates = ["small"]
reference = "model"
corpus = "held-out"
context = 64
chunks = 2
block = 1
"#;

/// Where [`RECIPE`] puts its outputs.
pub(crate) const OUT: &str = "out/small";

/// A model with its tensors in memory.
pub(crate) struct InMemory {
    pub(crate) metadata: Metadata,
    tensors: Vec<(TensorSpec, Vec<u8>)>,
    alignment: u64,
}

impl InMemory {
    /// The example's model with its first layer only.
    pub(crate) fn small() -> Self {
        let model = Model::open(&quickstart().join("tiny.gguf")).unwrap();
        let mut metadata = model.metadata().clone();
        let architecture = metadata.get_str("general.architecture").unwrap().to_owned();
        metadata
            .set(&format!("{architecture}.block_count"), &Value::U32(1))
            .unwrap();
        let kept = model.tensors().iter().filter(|tensor| {
            let name = &tensor.info.name;
            !name.starts_with("blk.") || name.starts_with("blk.0.")
        });
        let tensors = kept
            .map(|tensor| {
                let mut bytes = vec![0; usize::try_from(tensor.info.len).unwrap()];
                model.read_tensor_at(tensor, 0, &mut bytes).unwrap();
                (TensorSpec::from(&tensor.info), bytes)
            })
            .collect();
        Self {
            metadata,
            tensors,
            alignment: model.alignment(),
        }
    }

    /// Changes the last bit of a number of a tensor of 16-bit floats, which makes it another number and never NaN.
    pub(crate) fn change(&mut self, random: &mut Random) {
        let wide: Vec<usize> = (0..self.tensors.len())
            .filter(|&index| self.tensors[index].0.dims.len() > 1)
            .collect();
        let bytes = &mut self.tensors[wide[random.below(wide.len())]].1;
        let at = random.below(bytes.len() / 2) * 2;
        bytes[at] ^= 1;
    }

    pub(crate) fn write(&self, path: &Path) {
        let specs: Vec<TensorSpec> = self.tensors.iter().map(|(spec, _)| spec.clone()).collect();
        let layout = Layout::new(&self.metadata, &specs, self.alignment).unwrap();
        let mut bytes = Vec::new();
        layout
            .write(&mut bytes, &mut |index, out: &mut dyn Write| -> io::Result<()> {
                out.write_all(&self.tensors[index].1)
            })
            .unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A project with the small model, two texts to calibrate on and one to measure on, and [`RECIPE`].
pub(crate) fn project() -> Forge {
    let forge = Forge::new();
    fill(&forge);
    forge
}

/// Puts into a folder what [`project`] has.
pub(crate) fn fill(forge: &Forge) {
    InMemory::small().write(&forge.path("small.gguf"));
    for (from, to) in [
        ("calibration-prose.txt", "prose.txt"),
        ("calibration-code.txt", "code.txt"),
        ("held-out.txt", "held-out.txt"),
    ] {
        let text = std::fs::read_to_string(quickstart().join(from)).unwrap();
        let start: String = text.chars().take(4000).collect();
        forge.write(to, start);
    }
    forge.recipe(RECIPE);
}

/// A disk with little space, while it lives.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Makes a folder of that name and mounts a disk of that size (`3m`) there; `None`, and a word about it, where that is not
    /// allowed.
    pub(crate) fn mount(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            Some(Self(path.to_owned()))
        } else {
            eprintln!("SKIPPED: no file system can be mounted here");
            None
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The command of a build in one thread (the engine's threads spin where processors are few) that tells its events.
pub(crate) fn build(forge: &Forge, args: &[&str]) -> Command {
    let mut all = vec!["build", "-j", "1", "--message-format", "json"];
    all.extend(args);
    forge.command(&all)
}

/// Runs that build.
pub(crate) fn build_of(forge: &Forge) -> Run {
    Run::of(build(forge, &[]).output().unwrap())
}

/// The same build with a store and an output folder of its own.
pub(crate) fn build_clean(forge: &Forge, args: &[&str]) -> (tempfile::TempDir, Run) {
    let clean = tempfile::tempdir().unwrap();
    let out = clean.path().join("out");
    let mut all = vec!["--out", out.to_str().unwrap()];
    all.extend(args);
    let mut command = build(forge, &all);
    command.env("FORGE_CACHE_DIR", clean.path().join("store"));
    let run = Run::of(command.output().unwrap()).success();
    (clean, run)
}

/// A build that goes on beside the test; killed when dropped.
pub(crate) struct Going {
    pub(crate) child: Child,
    out: Option<std::thread::JoinHandle<String>>,
    err: Option<std::thread::JoinHandle<String>>,
}

impl Going {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = reader(child.stdout.take().unwrap());
        let err = reader(child.stderr.take().unwrap());
        Self {
            child,
            out: Some(out),
            err: Some(err),
        }
    }

    /// Waits for the end. A build that hangs fails the test instead of hanging it.
    pub(crate) fn end(mut self) -> Run {
        const LONG: Duration = Duration::from_mins(5);
        let started = std::time::Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < LONG, "the build hangs");
            std::thread::sleep(Duration::from_millis(5));
        };
        Run {
            status: status.code(),
            stdout: self.out.take().unwrap().join().unwrap(),
            stderr: self.err.take().unwrap().join().unwrap(),
        }
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn reader(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        from.read_to_end(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    })
}

/// The keys of actions that ended in a certain way, in the order of the events.
pub(crate) fn keys(events: &[serde_json::Value], outcome: &str) -> Vec<String> {
    events
        .iter()
        .filter(|event| event["reason"] == "action-finished" && event["outcome"] == outcome)
        .map(|event| event["key"].as_str().unwrap().to_owned())
        .collect()
}

/// What a user gets that must not depend on how it came about: candidates and tables, by file name.
pub(crate) fn products(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let is_product = |name: &str| {
        Path::new(name).extension().is_some_and(|extension| extension == "gguf") || name.starts_with("metrics")
    };
    names(out)
        .into_iter()
        .filter(|name| is_product(name))
        .map(|name| (name.clone(), std::fs::read(out.join(name)).unwrap()))
        .collect()
}

/// Asserts that a folder has the products of another one, without printing them. It may have older ones besides: a
/// candidate that is no longer in the recipe stays where it is.
pub(crate) fn assert_same_products(found: &Path, expected: &Path, what: &str) {
    let (found, expected) = (products(found), products(expected));
    assert!(expected.contains_key("metrics.json"), "{what}: nothing was built");
    for (name, bytes) in &expected {
        assert!(found.get(name) == Some(bytes), "{what}: `{name}` is another");
    }
}

/// All names in a folder.
pub(crate) fn names(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The files of one of the store's sharded directories, by what their place says they are.
pub(crate) fn sharded(store: &Path, directory: &str) -> BTreeMap<String, PathBuf> {
    let mut files = BTreeMap::new();
    let Ok(shards) = std::fs::read_dir(store.join(directory)) else {
        return files;
    };
    for shard in shards {
        let shard = shard.unwrap().path();
        let first = shard.file_name().unwrap().to_str().unwrap().to_owned();
        for rest in names(&shard) {
            files.insert(format!("{first}{rest}"), shard.join(&rest));
        }
    }
    files
}

/// The keys of the actions that have a result.
pub(crate) fn committed(store: &Path) -> BTreeSet<String> {
    sharded(store, "actions-v1").into_keys().collect()
}

/// Asserts that every blob is what its name says, and that nothing is left of those who wrote them.
pub(crate) fn assert_store_tidy(store: &Path) {
    for (name, path) in sharded(store, "cas-v1") {
        let found = BlobDigest::of(&std::fs::read(&path).unwrap());
        assert_eq!(found.hash.to_string(), name, "a blob is not what its name says");
    }
    assert_eq!(names(&store.join("tmp")), BTreeSet::new(), "somebody's leavings");
}

/// Random numbers that are the same in every run (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `bound - 1`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// A whole number from the environment.
pub(crate) fn number_from(name: &str, otherwise: usize) -> usize {
    std::env::var(name)
        .ok()
        .map_or(otherwise, |text| text.parse().expect("a whole number"))
}
