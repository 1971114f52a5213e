//! What a build and its worker process say to each other: one JSON document a line.

use serde::Deserialize;
use serde::Serialize;

use crate::observer::Unit;
use crate::timing::speeds;
use crate::work::ActionOutputs;
use crate::work::Counted;
use crate::work::Located;
use crate::work::MeasureSpeeds;
use crate::work::Reported;
use crate::work::TokenCount;

/// What a worker is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(super) enum Request {
    /// What the actions that follow belong to, and where their files are.
    Begin {
        /// The step.
        step: String,
        /// Where files are.
        located: Box<Located>,
    },
    /// Run an action. The answer is [`Answer::ActionOutputs`] or [`Answer::Failed`].
    Run {
        /// Its document.
        action: String,
    },
    /// Prepare for actions. The answer is [`Answer::Order`] or [`Answer::Failed`].
    Prepare {
        /// Their documents.
        actions: Vec<String>,
    },
    /// Count the chunks of texts. The answer is [`Answer::Counted`] or [`Answer::Failed`].
    Count(Box<TokenCount>),
    /// Measure the speed of the machine. The answer is [`Answer::Measured`] or [`Answer::Failed`].
    Measure(MeasureSpeeds),
    /// Stop what is running. There is no answer but that of what stops.
    Cancel,
    /// Free the memory of models that are loaded to have tensors replaced. There is no answer.
    Release,
}

/// What a worker answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub(super) enum Answer {
    /// An action was run.
    ActionOutputs(ActionOutputs),
    /// The order in which to run actions.
    Order {
        /// Their numbers.
        order: Vec<usize>,
    },
    /// Chunks were counted.
    Counted(Counted),
    /// The speed was measured.
    Measured(speeds::Document),
    /// It failed.
    Failed(Box<Reported>),
    /// So much more is done.
    Progress {
        /// Of what.
        unit: Unit,
        /// How much.
        by: u64,
    },
    /// Something that is as it should be.
    Note {
        /// What.
        message: String,
    },
    /// Something that a user should know.
    Warning {
        /// What.
        message: String,
    },
    /// The engine logged lines.
    Log {
        /// The lines.
        lines: Vec<String>,
    },
}
