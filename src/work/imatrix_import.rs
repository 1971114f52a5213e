//! A foreign imatrix, of either form.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::imatrix;
use super::imatrix::IMATRIX_CAP;
use crate::action::ImatrixImport;
use crate::fs;
use crate::imatrix::Imatrix;

/// How many tokens a chunk of a legacy file is taken to have had, for the file does not say: what `llama-imatrix` assumes
/// by default. A power of two, so that no importance changes; it matters only where imatrices are added up.
const LEGACY_CHUNK: u32 = 512;

impl Work for ImatrixImport {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(vec![context.located().file(&self.file)?.clone()])
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let located = context.located();
        let file = located.file(&self.file)?;
        let bytes = fs::read_open(&file.open()?, &file.path, IMATRIX_CAP)?;
        let imatrix = Imatrix::parse(&bytes).map_err(|error| {
            let what = format!("`{}`: {error}", file.path.display());
            if error.is_no_memory() {
                StepError::NoMemory { what }
            } else {
                StepError::input(what)
            }
        })?;
        if imatrix.chunk_size == 0 {
            context.note(format!(
                "`{}` does not say how many tokens its chunks had; they count as {LEGACY_CHUNK} each",
                file.path.display()
            ));
        }
        imatrix::save(context.store(), &imatrix.with_chunk_size(LEGACY_CHUNK))
    }
}
