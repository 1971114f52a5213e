//! A model's logits on a block of chunks, scored.

use rayon::prelude::*;

use super::Context;
use super::StepError;
use super::blocks::Block;
use crate::digest::BlobDigest;
use crate::engine::EngineError;
use crate::engine::Scorer;
use crate::figures;
use crate::figures::FigureError;
use crate::figures::TokenBlock;
use crate::figures::TokenFigures;
use crate::observer::Unit;

/// The version of the figures' form: raise it when figures change.
pub const CODEC: u32 = 1;

/// Scores a model on a block: compared with the reference's log-probabilities, a blob of the store, if these are given.
pub(super) fn score(
    context: &Context<'_>,
    scorer: &mut dyn Scorer,
    block: &Block,
    length: u32,
    reference: Option<&BlobDigest>,
) -> Result<TokenBlock, StepError> {
    let positions = figures::scored_positions(length as usize).map_err(failed)?;
    let mapped = reference.map(|digest| context.store().map(digest)).transpose()?;
    let reference = mapped
        .as_ref()
        .map(|bytes| figures::ReferenceBlock::parse(bytes))
        .transpose()
        .map_err(failed)?;
    let mut measured = Vec::with_capacity(block.chunks.len() * positions.len());
    for (number, chunk) in block.chunks.iter().enumerate() {
        let scored = scorer.logits(chunk, positions.start, context.cancel(), &mut |start, rows| {
            let rows = up_to(positions.end, start, rows);
            let scored = rows.par_iter().enumerate().map(|(row, logits)| {
                let position = start + row;
                let token = chunk[position + 1];
                let Some(reference) = &reference else {
                    return figures::negative_log_likelihood(logits, token).map(|nll| TokenFigures {
                        nll: nll as f32,
                        nll_ref: nll as f32,
                        kld: 0.0,
                        dp: 0.0,
                        top1_same: true,
                    });
                };
                let row = reference.row(number as u32, (position - positions.start) as u32)?;
                figures::score(&row, logits, token)
            });
            let scored: Vec<Result<TokenFigures, FigureError>> = scored.collect();
            for scored in scored {
                measured.push(scored.map_err(|error| EngineError::Consumer(Box::new(error)))?);
            }
            Ok(())
        });
        scored.map_err(StepError::engine("measuring the candidate"))?;
        context.advance(Unit::Chunks, 1);
    }
    TokenBlock::new(0, positions.len() as u32, measured).map_err(failed)
}

/// Returns the rows of positions before `end`, of rows from `start` on.
pub(super) fn up_to<'a, 'l>(end: usize, start: usize, rows: &'a [&'l [f32]]) -> &'a [&'l [f32]] {
    &rows[..end.saturating_sub(start).min(rows.len())]
}

/// Returns the error of an evaluation that failed.
pub fn failed(error: FigureError) -> StepError {
    StepError::input(format!("the evaluation failed: {error}"))
}
