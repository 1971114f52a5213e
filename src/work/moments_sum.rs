//! Second moments of blocks, added up.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use crate::action::MomentsSum;
use crate::engine::EngineError;
use crate::engine::QuantizeJob;
use crate::moments;
use crate::moments::MomentsError;
use crate::moments::MomentsFile;

/// Names what is wrong with second moments in the store.
pub(super) fn damaged(error: MomentsError) -> StepError {
    StepError::Document {
        what: "second moments",
        problem: error.to_string(),
    }
}

/// Refuses second moments of other inputs.
pub(super) fn check_shape(file: &MomentsFile<'_>, job: &QuantizeJob<'_>) -> Result<(), StepError> {
    if (file.columns() as u64, file.matrices() as u64) == (job.columns, job.matrices) {
        return Ok(());
    }
    Err(StepError::Document {
        what: "second moments",
        problem: format!(
            "they are of {} columns and {} matrices, and the tensor has {} and {}",
            file.columns(),
            file.matrices(),
            job.columns,
            job.matrices
        ),
    })
}

/// Names a failure to write second moments to the store.
pub(super) fn writing(source: std::io::Error) -> StepError {
    StepError::Engine {
        what: "writing second moments".to_owned(),
        source: EngineError::Write { source },
    }
}

impl Work for MomentsSum {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let maps = self.parts.iter().map(|part| store.map(part));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        let parts = maps.iter().map(|map| MomentsFile::parse(map));
        let parts = parts.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let mut writer = store.writer()?;
        let written = moments::add(&parts, &mut writer).map_err(damaged)?;
        written.map_err(writing)?;
        let mut made = ActionOutputs::default();
        made.output(Self::MOMENTS, writer.commit()?);
        Ok(made)
    }
}
