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
