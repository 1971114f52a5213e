//! What can go wrong while a step or one of its actions runs, as data.

use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::container::OpenError;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::EngineError;
use crate::engine::Role;
use crate::fs::PathError;
use crate::method::MethodError;
use crate::report::gate::Check;
use crate::store::ErrorClass as StoreClass;
use crate::store::StoreError;

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The recipe, its sources, or what a step found: exit status 1.
    Step,
    /// The machine: exit status 3.
    Environment,
    /// The user stopped the build.
    Stopped,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The build was stopped.
    #[error("stopped")]
    Stopped,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be read or written.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A model file is not what it should be.
    #[error(transparent)]
    Model(#[from] OpenError),
    /// The engine failed.
    #[error("{what}: {source}")]
    Engine {
        /// What it was to do.
        what: String,
        /// Why it failed.
        source: EngineError,
    },
    /// A source changed while it was read or used.
    #[error("`{}` changed while it was being used; nothing made from it was kept", path.display())]
    SourceChanged {
        /// The file.
        path: PathBuf,
    },
    /// An input is not what the step needs.
    #[error("{what}")]
    Input {
        /// What was found, and what was expected.
        what: String,
        /// The way out.
        hint: Option<String>,
    },
    /// The disk has too little free space.
    #[error("`{}` has {found} bytes of free disk space, and {needed} are needed", path.display())]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// How many bytes are needed.
        needed: u64,
        /// How many there are.
        found: u64,
    },
    /// The system gives no memory for what a file holds.
    #[error("{what}")]
    NoMemory {
        /// What was read, and how much memory it takes.
        what: String,
    },
    /// A requirement is not met.
    #[error("{failed} of {all} requirements are not met")]
    Gate {
        /// How many are not met.
        failed: usize,
        /// How many there are.
        all: usize,
        /// Those that are not.
        unmet: Vec<Check>,
    },
    /// A document names something by digest, and no file is known to have it.
    #[error("no {what} {digest} is known")]
    NotLocated {
        /// What it is.
        what: &'static str,
        /// The digest.
        digest: BlobDigest,
    },
    /// A document names an engine that is not here.
    #[error("no {} here has the fingerprint {fingerprint}", role.as_str())]
    NoEngine {
        /// The role.
        role: Role,
        /// The fingerprint.
        fingerprint: Fingerprint,
    },
    /// There is no engine with this name.
    #[error("there is no engine `{name}`")]
    UnknownEngine {
        /// The name.
        name: String,
    },
    /// The worker process of an engine ended while it was working.
    #[error("the engine's process {how} while it was {what}")]
    WorkerEnded {
        /// How it ended, as in "was ended by signal 6 (SIGABRT)".
        how: String,
        /// What it was doing.
        what: String,
        /// The last lines that it printed.
        log: Vec<String>,
    },
    /// What failed in a worker process.
    #[error("{}", .0.message)]
    Reported(Box<Reported>),
    /// A document in the store cannot be read.
    #[error("the store's {what} cannot be read: {problem}")]
    Document {
        /// What it is.
        what: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// An error as a worker process reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Who can do something about it.
    pub class: Class,
    /// What happened.
    pub message: String,
    /// The way out.
    pub hint: Option<String>,
    /// What the engine logged last.
    pub log: Vec<String>,
    /// The file that changed while it was used, if that is what happened.
    pub changed: Option<std::ffi::OsString>,
    /// Blobs that were lost from the store.
    pub lost: Vec<BlobDigest>,
}

impl From<&StepError> for Reported {
    fn from(error: &StepError) -> Self {
        Self {
            class: error.class(),
            message: error.to_string(),
            hint: error.hint(),
            log: error.log().to_vec(),
            changed: match error {
                StepError::SourceChanged { path } => Some(path.clone().into_os_string()),
                _ => None,
            },
            lost: error.lost(),
        }
    }
}

impl From<Reported> for StepError {
    fn from(reported: Reported) -> Self {
        match reported.changed {
            _ if reported.class == Class::Stopped => Self::Stopped,
            Some(path) => Self::SourceChanged { path: path.into() },
            None => Self::Reported(Box::new(reported)),
        }
    }
}

impl From<MethodError> for StepError {
    fn from(error: MethodError) -> Self {
        Self::Input {
            what: error.what,
            hint: error.hint.map(str::to_owned),
        }
    }
}

impl StepError {
    /// Says that an input is not what the step needs.
    pub fn input(what: impl Into<String>) -> Self {
        Self::Input {
            what: what.into(),
            hint: None,
        }
    }

    /// Says that an input is not what the step needs, and the way out.
    pub fn input_hint(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Input {
            what: what.into(),
            hint: Some(hint.into()),
        }
    }

    /// Says more precisely what the engine was to do, if it failed.
    pub fn about(self, more: String) -> Self {
        match self {
            Self::Engine { source, .. } => Self::Engine { what: more, source },
            other => other,
        }
    }

    /// Wraps a failure of the engine.
    pub fn engine(what: impl Into<String>) -> impl FnOnce(EngineError) -> Self {
        let what = what.into();
        move |source| match source {
            EngineError::Cancelled => Self::Stopped,
            EngineError::FileCut { path } => Self::SourceChanged { path },
            source => Self::Engine { what, source },
        }
    }

    /// Returns what the engine logged last before it failed, line by line.
    pub fn log(&self) -> &[String] {
        match self {
            Self::Engine { source, .. } => source.log(),
            Self::WorkerEnded { log, .. } => log,
            Self::Reported(reported) => &reported.log,
            _ => &[],
        }
    }

    /// Returns the blobs that were lost from the store, if that is why the step failed.
    pub fn lost(&self) -> Vec<BlobDigest> {
        match self {
            Self::Store(error) => error.lost(),
            Self::Reported(reported) => reported.lost.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns who can do something about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Stopped => Class::Stopped,
            Self::Reported(reported) => reported.class,
            Self::Store(error) => match error.class() {
                StoreClass::Cancelled => Class::Stopped,
                StoreClass::SourceChanged => Class::Step,
                _ => Class::Environment,
            },
            // A source that is not there is the recipe's; a folder that cannot be made is the machine's.
            Self::Path(error) if error.is_not_found() && !error.operation.starts_with("create") => Class::Step,
            Self::Path(_)
            | Self::NoSpace { .. }
            | Self::NoMemory { .. }
            | Self::NoEngine { .. }
            | Self::Engine {
                source: EngineError::Processor { .. } | EngineError::Write { .. } | EngineError::Memory { .. },
                ..
            } => Class::Environment,
            _ => Class::Step,
        }
    }

    /// Returns the way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Input { hint, .. } => hint.clone(),
            Self::Reported(reported) => reported.hint.clone(),
            Self::NotLocated { .. } => Some("name the file with `--source FILE`".to_owned()),
            Self::NoEngine { .. } => Some(
                "run it with the program that made the action; `forge engine` prints the fingerprints of this one"
                    .to_owned(),
            ),
            Self::WorkerEnded { .. } => Some(
                "if the model file is intact, this is a bug in the engine; the last lines of its log are above"
                    .to_owned(),
            ),
            Self::Store(StoreError::OutputChanged { .. }) => {
                Some("let the other program finish, then build again: forge writes the file again".to_owned())
            }
            Self::SourceChanged { .. } => Some("run the build again when the file is complete".to_owned()),
            Self::Path(error) if error.is_permission() => {
                Some("check the permissions of the file and its folder".to_owned())
            }
            Self::Path(error) | Self::Store(StoreError::Path(error)) if error.is_over_size_limit() => Some(
                "raise the limit, for example with `ulimit -f unlimited`, and build again: finished results are kept"
                    .to_owned(),
            ),
            Self::Path(error) if error.is_disk_full() => {
                Some("free disk space, or choose another folder with `--out DIR` or `--cache-dir DIR`".to_owned())
            }
            _ => None,
        }
    }
}
