//! The actions that failed in a build, so that each can be run again alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use super::Located;
use super::locked;
use crate::action::Action;
use crate::fs;

/// An action that failed, and the files that it may read.
#[derive(Debug, Clone)]
pub struct FailedAction {
    /// The action's document.
    pub document: Vec<u8>,
    /// The sources and candidates that the step knows by their digests, as absolute paths.
    pub files: Vec<PathBuf>,
}

/// The first action that failed in each step.
#[derive(Debug, Default)]
pub struct FailedActions(Mutex<BTreeMap<String, FailedAction>>);

impl FailedActions {
    /// Removes and returns the action that failed in a step.
    pub fn take(&self, step: &str) -> Option<FailedAction> {
        locked(&self.0).remove(step)
    }
}

impl FailedActions {
    /// Adds an action that failed in a step. The first of a step is kept: an action that runs others fails after them.
    pub(super) fn add(&self, step: &str, action: &Action, located: &Located) {
        let mut failed = locked(&self.0);
        failed.entry(step.to_owned()).or_insert_with(|| FailedAction {
            document: action.document(),
            files: located.files().map(|file| fs::absolute(&file.path)).collect(),
        });
    }
}
