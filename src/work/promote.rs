//! A candidate, assembled from its tensors. The file is written straight from the store and the source; it is not stored
//! a second time.

use super::ActionOutputs;
use super::CandidateFile;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::draft::Draft;
use super::draft::Written;
use super::locked;
use super::metrics::probed;
use super::model_documents::compute_of;
use crate::action::Promote;
use crate::fs;

impl Work for Promote {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().with_index(&self.model)?.files.clone())
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let draft = Draft::load(context.store(), self, context.imatrix())?;
        context.check_cancel()?;
        draft.check_requantize(self.allow_requantize)?;
        let written = write(context, &draft)?;
        let located = context.located();
        let model = located.with_index(&self.model)?;
        let store = context.store();
        let mut made = ActionOutputs::default();
        made.output(Self::HEADER, store.put(draft.layout.header())?);
        let compute = compute_of(model.hyperparameters, &written.tensors);
        made.output(Self::COMPUTE, store.put(&encode(&compute)?)?);
        made.output(Self::ASSEMBLY, store.put(&encode(&written.assembly)?)?);
        made.output(Self::HYPERPARAMETERS, model.hyperparameters);
        made.output(Self::TOKENIZER, model.tokenizer);
        made.fact(Self::FILE, written.assembly.file);
        made.fact(Self::SHA256, &written.assembly.sha256);
        let weights = |dims: &[u64]| dims.iter().product::<u64>();
        let elements: u64 = written.tensors.iter().map(|tensor| weights(&tensor.dims)).sum();
        made.fact(Self::ELEMENTS, elements);
        made.fact(Self::TENSORS, draft.table.choices.len());
        if let Some(probed) = draft.table.probed_loss.as_ref().and_then(probed) {
            made.fact(Self::PROBED, probed);
        }
        let quantized = draft.choices().filter(|(_, choice)| choice.from != choice.to);
        made.fact(Self::QUANTIZED, quantized.count());
        if let Some(temp) = written.temp {
            *locked(&context.candidate) = CandidateFile::Written(temp);
        }
        Ok(made)
    }
}

fn write(context: &Context<'_>, draft: &Draft) -> Result<Written, StepError> {
    let folder = match &*locked(&context.candidate) {
        CandidateFile::In(folder) => Some(folder.clone()),
        // It was written before, when the action ran the first time.
        CandidateFile::Nowhere | CandidateFile::Written(_) => None,
    };
    draft.write(context, folder.as_deref())
}

/// Writes the file of a candidate whose result is known, under a temporary name in a folder.
///
/// # Errors
///
/// [`StepError::Document`] if it is not the file that the result names; errors of quantizing and writing.
pub fn write_again(
    context: &Context<'_>,
    promote: &Promote,
    expected: &crate::digest::BlobDigest,
    folder: &std::path::Path,
) -> Result<fs::TempFile, StepError> {
    let draft = Draft::load(context.store(), promote, context.imatrix())?;
    let written = draft.write(context, Some(folder))?;
    if written.assembly.file != *expected {
        return Err(StepError::Document {
            what: "record of this candidate",
            problem: format!("it says {expected}, but its tensors make {}", written.assembly.file),
        });
    }
    for file in promote.reads(context)? {
        file.check_unchanged()?;
    }
    written
        .temp
        .ok_or_else(|| StepError::input("the candidate was not written"))
}
