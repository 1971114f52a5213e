//! How builds run, and how they ended.

use crate::cli::Exit;
use crate::cli::diagnostic::Diagnostic;
use crate::observer::BuildOutcome;
use crate::scheduler;
use crate::scheduler::Report;
use crate::settings::PoolSettings;
use crate::step::Class;
use crate::step::StepError;

/// Returns how a build runs on this machine. With `jobs`, no more steps run at once than that, whatever the pools allow.
pub(super) fn options(pools: &PoolSettings, jobs: Option<u16>) -> scheduler::Options {
    let defaults = scheduler::Options::default();
    scheduler::Options {
        models: pools.model.map_or(defaults.models, |models| models as usize),
        disk: pools.disk.map_or(defaults.disk, |disk| disk as usize),
        steps: jobs.map_or(defaults.steps, usize::from),
        ..defaults
    }
}

/// Returns the exit status for how a build ended.
pub(super) fn exit_of(report: &Report) -> Exit {
    match report.outcome() {
        BuildOutcome::Done => Exit::Done,
        BuildOutcome::Failed => Exit::Recipe,
        BuildOutcome::Environment => Exit::Environment,
        BuildOutcome::Stopped => Exit::Stopped,
    }
}

pub(super) fn explain(step: &str, error: &StepError) -> Diagnostic {
    let mut diagnostic = Diagnostic::error(format!("step `{step}` failed: {error}"));
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        // The message of an engine's error is part of the step's.
        if !diagnostic.message.contains(&cause.to_string()) {
            diagnostic = diagnostic.caused_by(cause.to_string());
        }
        source = cause.source();
    }
    let lines = error.log().iter().map(|line| format!("the engine's log: {line}"));
    diagnostic = lines.fold(diagnostic, Diagnostic::caused_by);
    if let StepError::Gate { unmet, .. } = error {
        let lines = unmet
            .iter()
            .map(|check| format!("`{}` {}", check.candidate, check.shown()));
        diagnostic = lines.fold(diagnostic, Diagnostic::caused_by);
    }
    if let Some(hint) = error.hint() {
        diagnostic = diagnostic.hint(hint);
    }
    diagnostic.code(match error.class() {
        Class::Environment => "environment::step",
        _ => "build::step",
    })
}
