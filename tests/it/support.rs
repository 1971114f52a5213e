//! Runs the program in a folder of its own: `Forge::new().recipe("...").run(["build"]).success()`. Hermetic: no
//! environment but what is given, its own store, nothing outside the folder.

#![allow(dead_code, reason = "every theme uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;

/// The folder of the project.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The example's folder: model, texts, recipe.
pub(crate) fn quickstart() -> PathBuf {
    project().join("examples/quickstart")
}

/// A project of a user: a folder with a recipe, and a store.
pub(crate) struct Forge {
    dir: Arc<tempfile::TempDir>,
    store: PathBuf,
    env: BTreeMap<String, String>,
}

/// A run of the program.
#[must_use]
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Forge {
    /// Makes an empty project with an empty store.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        Self {
            dir: Arc::new(dir),
            store,
            env: BTreeMap::new(),
        }
    }

    /// Makes a project with the example's model and texts in it.
    pub(crate) fn with_example() -> Self {
        let forge = Self::new();
        for name in [
            "tiny.gguf",
            "calibration-prose.txt",
            "calibration-code.txt",
            "held-out.txt",
        ] {
            std::fs::copy(quickstart().join(name), forge.path(name)).unwrap();
        }
        forge
    }

    /// Makes a second project beside this one that uses the same store.
    pub(crate) fn sibling(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            dir: Arc::new(dir),
            store: self.store.clone(),
            env: self.env.clone(),
        }
    }

    /// Makes a view of this project that uses another store.
    pub(crate) fn with_store(&self, store: &Path) -> Self {
        Self {
            dir: Arc::clone(&self.dir),
            store: store.to_owned(),
            env: self.env.clone(),
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        self
    }

    pub(crate) fn recipe(&self, text: &str) -> &Self {
        self.write("recipe.toml", text)
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Returns the command, for tests that start it themselves.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forge"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .stdin(Stdio::null());
        command
            .env("FORGE_CACHE_DIR", &self.store)
            .env("HOME", self.dir.path())
            .env("PATH", "/usr/bin:/bin");
        command.envs(&self.env);
        command
    }

    /// Waits until a later change of any file of the project shows in its stamp: milliseconds on most file systems.
    pub(crate) fn settle(&self) {
        let path = self.path(".clock");
        let file = std::fs::File::create(&path).unwrap();
        let (stamp, now) = forge::fs::settle(&file, &path).unwrap();
        assert!(stamp.is_settled(&now), "the clock of the file system stands still");
        std::fs::remove_file(&path).unwrap();
    }

    pub(crate) fn run(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    /// Builds and returns the events of the build, one JSON object each.
    pub(crate) fn build_events(&self, args: &[&str]) -> (Run, Vec<serde_json::Value>) {
        let mut all = vec!["build", "--message-format", "json"];
        all.extend(args);
        let run = self.run(&all);
        let events = run.json_lines();
        (run, events)
    }
}

impl Run {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            status: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Asserts the exit status, and shows everything if it is another.
    pub(crate) fn status(self, expected: i32) -> Self {
        assert_eq!(
            self.status,
            Some(expected),
            "\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }

    pub(crate) fn success(self) -> Self {
        self.status(0)
    }

    pub(crate) fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .collect()
    }
}

/// Counts the actions of a kind that ran, in the events of a build.
pub(crate) fn ran(events: &[serde_json::Value], kind: &str) -> usize {
    events
        .iter()
        .filter(|event| event["reason"] == "action-finished" && event["kind"] == kind && event["outcome"] == "ran")
        .count()
}

/// Returns a small mixture of experts: the model that `FORGE_TEST_MOE` names, or one made of the example's. Each layer's
/// feed-forward became four experts (its rows turned by some, so that they differ), two of them active for each token by
/// a router of fixed pseudo-random numbers. It has not learned anything as a mixture; its mathematics are those of one.
#[expect(clippy::disallowed_methods, reason = "a test is configured by its environment")]
pub(crate) fn moe_model() -> PathBuf {
    static MADE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    if let Some(path) = std::env::var_os("FORGE_TEST_MOE") {
        return PathBuf::from(path);
    }
    MADE.get_or_init(|| {
        let dir = tempfile::Builder::new()
            .prefix("forge-moe")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap()
            .keep();
        let path = dir.join("tiny-moe.gguf");
        std::fs::write(&path, moe_of(&quickstart().join("tiny.gguf"))).unwrap();
        path
    })
    .clone()
}

const EXPERTS: u64 = 4;

/// Makes a mixture of experts of a dense qwen3 model in F16.
fn moe_of(dense: &Path) -> Vec<u8> {
    use forge::gguf::Layout;
    use forge::gguf::Metadata;
    use forge::gguf::Model;
    use forge::gguf::TensorSpec;
    use forge::gguf::Value;
    use forge::tensor_type::TensorType;
    use std::io::Read as _;

    let model = Model::open(dense).unwrap();
    let mut metadata = Metadata::new();
    for entry in model.metadata() {
        let key = entry.key().replace("qwen3.", "qwen3moe.");
        metadata.set(&key, &entry.value()).unwrap();
    }
    metadata
        .set("general.architecture", &Value::String(b"qwen3moe".to_vec()))
        .unwrap();
    metadata
        .set("qwen3moe.expert_count", &Value::U32(EXPERTS as u32))
        .unwrap();
    metadata.set("qwen3moe.expert_used_count", &Value::U32(2)).unwrap();
    let width = model.metadata().get_u32("qwen3.feed_forward_length").unwrap();
    metadata
        .set("qwen3moe.expert_feed_forward_length", &Value::U32(width))
        .unwrap();
    let mut specs = Vec::new();
    let mut bytes: Vec<Vec<u8>> = Vec::new();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for tensor in model.tensors() {
        let info = &tensor.info;
        let mut data = Vec::new();
        model.tensor_reader(tensor).read_to_end(&mut data).unwrap();
        let part = ["ffn_gate.", "ffn_up.", "ffn_down."]
            .into_iter()
            .find(|part| info.name.contains(part));
        let Some(part) = part else {
            specs.push(TensorSpec::from(info));
            bytes.push(data);
            continue;
        };
        if part == "ffn_gate." {
            let router = (0..info.dims[0] * EXPERTS).flat_map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                ((state >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
            });
            bytes.push(router.collect());
            let name = info.name.replace("ffn_gate.", "ffn_gate_inp.");
            specs.push(TensorSpec {
                name,
                ty: TensorType::F32,
                dims: vec![info.dims[0], EXPERTS],
            });
        }
        let row = data.len() / info.dims[1] as usize;
        let mut experts = Vec::new();
        for expert in 0..EXPERTS as usize {
            let mut turned = data.clone();
            turned.rotate_left(expert * 5 * row);
            experts.extend(turned);
        }
        bytes.push(experts);
        let name = info.name.replace(part, &part.replace('.', "_exps."));
        specs.push(TensorSpec {
            name,
            ty: info.ty,
            dims: vec![info.dims[0], info.dims[1], EXPERTS],
        });
    }
    let layout = Layout::new(&metadata, &specs, model.alignment()).unwrap();
    let mut file = Vec::new();
    layout
        .write(&mut file, &mut |index, out| out.write_all(&bytes[index]))
        .unwrap();
    file
}

/// Returns the identity of the embedded engine in a role.
pub(crate) fn identity(role: forge::engine::Role) -> forge::engine::Identity {
    let engines = forge::engine::Engines::new(1, &forge::engine::EngineSettings::new());
    engines.identity(forge::engine::default_engine(), role).unwrap().clone()
}
