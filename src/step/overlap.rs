//! What the text of an evaluation has in common with texts that candidates were calibrated on.

use crate::action::RowOverlap;
use crate::graph::AllowedOverlaps;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::SourceFile;
use crate::step::StepError;
use crate::work::Context;
use crate::work::overlap;
use crate::work::overlap::Document;

/// Returns what two corpora have in common: from the store, or else by reading them. Nothing is written.
///
/// # Errors
///
/// Errors of the store and of reading the files.
pub fn compare(env: &Env<'_>, evaluation: &[SourceFile], calibration: &[SourceFile]) -> Result<Document, StepError> {
    if let Some(known) = Document::known(env.store, &overlap::action_of(evaluation, calibration))? {
        return Ok(known);
    }
    let check = || {
        if env.machine.cancel.is_cancelled() {
            Err(StepError::Stopped)
        } else {
            Ok(())
        }
    };
    Document::compare(evaluation, calibration, &check)
}

/// Compares all texts of rows that are allowed to overlap, and keeps the results in the store.
pub(super) fn perform_all<'a>(
    allowed: impl Iterator<Item = &'a AllowedOverlaps>,
    inputs: &Inputs,
    work: &Context<'_>,
) -> Result<(), StepError> {
    for AllowedOverlaps {
        corpus, calibration, ..
    } in allowed
    {
        for other in calibration {
            let action = overlap::action_of(&inputs.step(corpus)?.files, &inputs.step(other)?.files);
            work.perform_part(&format!("overlap with {}", other.label()), &action)?;
        }
    }
    Ok(())
}

/// Returns the marks of a row.
pub(super) fn marks(
    allowed: Option<&AllowedOverlaps>,
    inputs: &Inputs,
    env: &Env<'_>,
) -> Result<Vec<RowOverlap>, StepError> {
    let mut marks = Vec::new();
    if let Some(AllowedOverlaps {
        corpus,
        context,
        calibration,
    }) = allowed
    {
        for other in calibration {
            let found = compare(env, &inputs.step(corpus)?.files, &inputs.step(other)?.files)?;
            marks.extend(found.mark(other.label(), *context));
        }
    }
    Ok(marks)
}
