//! The reference's log-probabilities of a block of chunks.

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::scoring::failed;
use super::scoring::up_to;
use crate::action::ReferenceBlock;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::EngineError;
use crate::engine::Scorer;
use crate::figures;
use crate::observer::Unit;

impl Work for ReferenceBlock {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(context.located().model(&self.model)?.files.clone())
    }

    fn evaluator(&self) -> Option<Fingerprint> {
        Some(self.engine)
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let block = Block::load(context.store(), self.tokens, self.context)?;
        let located = context.located();
        let digest = context.with_model(self.engine, located.model(&self.model)?, self.context, |model| {
            compute(context, model, &block, self.context)
        })?;
        let mut made = ActionOutputs::default();
        made.output(Self::REFERENCE, digest);
        Ok(made)
    }
}

fn compute(
    context: &Context<'_>,
    scorer: &mut (impl Scorer + ?Sized),
    block: &Block,
    length: u32,
) -> Result<BlobDigest, StepError> {
    let positions = figures::scored_positions(length as usize).map_err(failed)?;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let broken = |error: std::io::Error| StepError::input(format!("the reference's log-probabilities: {error}"));
    let writer = context.store().writer()?;
    let vocabulary = count(scorer.vocabulary_size());
    let mut rows =
        figures::ReferenceWriter::new(writer, vocabulary, 0, count(block.chunks.len()), count(positions.len()))
            .map_err(broken)?;
    for chunk in &block.chunks {
        scorer
            .logits(chunk, positions.start, context.cancel(), &mut |start, all| {
                for logits in up_to(positions.end, start, all) {
                    rows.row(logits)
                        .map_err(|error| EngineError::Consumer(Box::new(error)))?;
                }
                Ok(())
            })
            .map_err(StepError::engine("computing the reference's log-probabilities"))?;
        context.advance(Unit::ReferenceChunks, 1);
    }
    Ok(rows.finish().map_err(broken)?.commit()?)
}
