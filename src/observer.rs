//! What a build tells while it runs. The terminal, the JSON lines and the run's record all listen to the same events.

mod phase;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::digest::ActionDigest;
use crate::digest::BlobDigest;
use crate::vocab::verdict::StepOutcome;

pub use phase::Phase;

/// What a progress counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Bytes of a source that are hashed.
    BytesHashed,
    /// Bytes of tensors that are quantized.
    BytesQuantized,
    /// Bytes of tensors whose codes are refined.
    BytesRefined,
    /// Bytes of tensors that are compared with their quantized bytes.
    BytesCompared,
    /// Bytes of a file that is written.
    BytesWritten,
    /// Chunks of tokens that a model reads.
    Chunks,
    /// Chunks of tokens that the reference reads first.
    ReferenceChunks,
    /// Tensors.
    Tensors,
}

/// How an action came to its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionOutcome {
    /// It ran here.
    Ran,
    /// Its result was there.
    Hit,
    /// Another build ran it while this one waited.
    Waited,
}

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildOutcome {
    /// Everything is up to date.
    Done,
    /// The recipe or a step is at fault.
    Failed,
    /// The machine is.
    Environment,
    /// The user stopped it.
    Stopped,
}

/// A field of an action's document that is not what it was when the step ran last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its path, as `inputs.policy`.
    pub field: String,
    /// The value before, as JSON; nothing where the field was not there.
    pub before: Option<String>,
    /// The value now.
    pub after: Option<String>,
}

/// A file in the output folder.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutputFile {
    /// The step that it belongs to.
    pub step: String,
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The number of weights of a candidate.
    pub weights: Option<u64>,
    /// The manifest beside a candidate.
    pub manifest: Option<String>,
}

/// A duration in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Time {
    /// The most likely one.
    pub likely_ms: u64,
    /// It is shorter one of twenty times.
    pub least_ms: u64,
    /// It is longer one of twenty times.
    pub most_ms: u64,
}

/// How long a step is expected to take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    /// The step.
    pub step: String,
    /// All of it.
    pub time: Time,
    /// Its phases, in order.
    pub phases: Vec<PhaseTime>,
}

/// How long a phase of a step is expected to take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// How much of it there is: bytes, or chunks times the share of the model that is computed.
    pub work: f64,
    /// How long it takes.
    pub time: Time,
}

/// A file in the output folder that forge wrote and that the recipe no longer makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaleFile {
    /// Its path.
    pub path: String,
    /// Its size.
    pub bytes: u64,
}

/// One event of a build.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Event {
    /// A build begins.
    BuildStarted {
        /// The recipe's name.
        recipe: String,
        /// How many steps it has.
        steps: usize,
        /// The engine's fingerprint.
        engine: String,
    },
    /// A step begins to run.
    StepStarted {
        /// The step.
        step: String,
        /// Why it is not a hit.
        why: String,
        /// What of its action is not what it was, if that is why.
        changes: Vec<FieldChange>,
    },
    /// A step is so far.
    Progress {
        /// The step.
        step: String,
        /// What is counted.
        unit: Unit,
        /// How much is done.
        done: u64,
        /// How much there is to do.
        total: u64,
        /// The phase of the step.
        #[serde(skip_serializing_if = "Option::is_none")]
        phase: Option<Phase>,
        /// The share of the phase's work that is done: chunks of which only a part is computed count less. 0 to 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        fraction: Option<f64>,
        /// How long the step still takes, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        left_ms: Option<u64>,
        /// How long the build still takes, in milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        build_left_ms: Option<u64>,
    },
    /// The speed of this machine is measured, which takes a few seconds.
    MeasuringSpeeds,
    /// How long a build and its steps are expected to take. Comes before the first step starts.
    Estimated {
        /// The steps that are expected to run.
        steps: Vec<StepTime>,
        /// All of them.
        time: Time,
    },
    /// A named phase of a step begins.
    PhaseStarted {
        /// The step.
        step: String,
        /// The phase.
        phase: Phase,
        /// What is done in it, for people.
        what: String,
        /// How much work it has now, in the unit of the estimate.
        work: f64,
        /// Whether it has no more than expected before.
        is_final: bool,
    },
    /// An action has its result.
    ActionFinished {
        /// The step that it belongs to.
        step: String,
        /// Its kind.
        kind: &'static str,
        /// Its key.
        key: ActionDigest,
        /// How it came to its result.
        outcome: ActionOutcome,
        /// How long it took when it ran, in milliseconds.
        cost_ms: u64,
        /// How many bytes it made, all outputs together.
        bytes: u64,
    },
    /// An action that ran twice gave something else the second time.
    Nondeterminism {
        /// The step that it belongs to.
        step: String,
        /// Its kind.
        kind: &'static str,
        /// Its key.
        key: ActionDigest,
        /// Which part of the step it is, as a tensor's name; empty for the step itself.
        part: String,
        /// The output that differs, or the fact.
        output: String,
        /// The first byte that differs, where both have such an output.
        at: Option<u64>,
        /// What the store keeps: a digest, or a fact's text.
        kept: Option<String>,
        /// What it was the other time.
        differing: Option<String>,
    },
    /// An action is being run by another build; this one waits.
    Waiting {
        /// The step that waits.
        step: String,
        /// The action's key.
        key: ActionDigest,
        /// Who runs it.
        holder: String,
    },
    /// Something a user should know.
    Warning {
        /// The step that it is about.
        step: String,
        /// What.
        message: String,
    },
    /// Something worth knowing, which is as it should be.
    Note {
        /// The step that it is about.
        step: String,
        /// What.
        message: String,
    },
    /// A table of candidates has no more rows before a long step ends. Nothing of it is stored.
    PartialTable {
        /// The step of the table.
        step: String,
        /// The number of rows.
        done: usize,
        /// The number of rows of the complete table.
        total: usize,
        /// The rows, in the form of `metrics.json`.
        table: Value,
    },
    /// A file was written.
    OutputWritten {
        /// The step that it belongs to.
        step: String,
        /// Where.
        path: String,
        /// What.
        digest: BlobDigest,
    },
    /// What the engine said while a step ran was kept.
    StepLog {
        /// The step.
        step: String,
        /// The lines, as a blob.
        log: BlobDigest,
        /// How many lines.
        lines: u64,
    },
    /// What a failed step left behind was kept.
    StepKept {
        /// The step.
        step: String,
        /// The folder.
        path: String,
    },
    /// A step ended.
    StepFinished {
        /// The step.
        step: String,
        /// How.
        outcome: StepOutcome,
        /// Its actions that ran.
        ran: u64,
        /// Its actions whose result was in the store.
        hit: u64,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
        /// What came of it, in a few words.
        summary: String,
    },
    /// A table of candidates is up to date.
    Table {
        /// The step that made it.
        step: String,
        /// The table: `forge.table.v1`.
        table: serde_json::Value,
    },
    /// What lies in the output folder after a build.
    Outputs {
        /// The output folder.
        folder: String,
        /// Its files: the candidates first.
        files: Vec<OutputFile>,
    },
    /// The output folder contains files that the recipe no longer makes.
    StaleOutputs {
        /// The output folder.
        folder: String,
        /// The files.
        files: Vec<StaleFile>,
    },
    /// The build ended.
    BuildFinished {
        /// Steps that ran.
        ran: usize,
        /// Steps of which only files were written to the output folder.
        wrote: usize,
        /// Steps whose result was in the store.
        hit: usize,
        /// Steps that failed.
        failed: usize,
        /// Steps that waited for one that failed.
        skipped: usize,
        /// How long it took, in milliseconds.
        elapsed_ms: u64,
        /// How it ended.
        outcome: BuildOutcome,
    },
}

/// Listens to a build. Called from several threads.
pub trait Observer: Sync {
    /// Takes note of an event.
    fn event(&self, event: &Event);
}

/// Listens to nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _event: &Event) {}
}

/// Lets two listen.
pub struct Both<'a>(pub &'a dyn Observer, pub &'a dyn Observer);

impl Observer for Both<'_> {
    fn event(&self, event: &Event) {
        self.0.event(event);
        self.1.event(event);
    }
}
