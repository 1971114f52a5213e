//! Blocks of chunks, measured against a reference: the reference's log-probabilities, and what comes of comparing with them.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::action::Action;
use crate::action::EvalBlock;
use crate::action::ReferenceBlock;
use crate::digest::BlobDigest;
use crate::engine::EachLogits;
use crate::engine::EngineError;
use crate::engine::LoadedModel;
use crate::figures;
use crate::figures::FigureError;
use crate::figures::TokenBlock;
use crate::figures::TokenFigures;
use crate::observer::Event;
use crate::observer::Unit;
use crate::report::words;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::eval::CODEC;
use crate::step::imatrix::load_model;
use crate::step::tokens::Block;

/// A model that others are measured against.
pub struct Reference<'r, 't> {
    /// Who measures.
    pub task: &'r Task<'t>,
    /// The model.
    pub model: &'r Outcome,
    /// Tokens of a chunk.
    pub context: u32,
}

/// Computes a chunk's logits from a position on.
pub type Compute<'a> = dyn FnMut(&[i32], usize, &mut EachLogits<'_>) -> Result<(), EngineError> + 'a;

impl Reference<'_, '_> {
    /// Returns the action that computes a block's log-probabilities.
    pub fn action(&self, block: &Block) -> Result<Action, StepError> {
        Ok(Action::ReferenceBlock(ReferenceBlock {
            model: self.model.output("compute")?,
            tokens: block.digest,
            context: self.context,
            codec: CODEC,
            engine: self.task.env.evaluator.fingerprint(),
        }))
    }

    /// Returns the action that measures a model, named by all that decides what it computes, on a block; `compared` with the
    /// reference or by itself.
    pub fn block_action(&self, candidate: BlobDigest, block: &Block, compared: bool) -> Result<Action, StepError> {
        let reference = if compared {
            Some(self.action(block)?.digest())
        } else {
            None
        };
        Ok(Action::EvalBlock(EvalBlock {
            candidate,
            reference,
            tokens: block.digest,
            context: self.context,
            codec: CODEC,
            engine: self.task.env.evaluator.fingerprint(),
        }))
    }

    /// Returns the reference's log-probabilities of blocks, computing those that are not there.
    pub fn compute(&self, blocks: &[&Block]) -> Result<BTreeMap<BlobDigest, BlobDigest>, StepError> {
        let task = self.task;
        let mut loaded: Option<LoadedModel> = None;
        let mut found = BTreeMap::new();
        let total = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        for (at, block) in blocks.iter().enumerate() {
            let part = format!("block {at}");
            let performed = task.perform_part(&part, &self.action(block)?, &self.model.files, |made| {
                let model = match &mut loaded {
                    Some(model) => model,
                    none => {
                        let model = none.insert(load_model(task.env, self.model, self.context)?);
                        self.check_room(model, blocks)?;
                        model
                    }
                };
                made.output("reference", self.reference_block(model, block, total)?);
                Ok(())
            })?;
            found.insert(block.digest, Outcome::of(performed, Vec::new()).output("reference")?);
        }
        Ok(found)
    }

    /// Tells how large the reference's log-probabilities will be, and fails if there is no room for them.
    fn check_room(&self, model: &LoadedModel, blocks: &[&Block]) -> Result<(), StepError> {
        let positions = figures::scored_positions(self.context as usize).map_err(failed)?.len() as u64;
        let chunks: u64 = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        let needed = figures::size_of_reference(model.vocabulary_size() as u64, positions * chunks);
        let env = self.task.env;
        let found = env.store.free_space()?;
        self.task.tell(Event::Note {
            step: self.task.step.clone(),
            message: format!(
                "the reference's log-probabilities of {chunks} chunks take {} in the store",
                words::bytes(needed)
            ),
        });
        if found < needed {
            return Err(StepError::NoRoom {
                path: env.store.root().to_owned(),
                needed,
                found,
            });
        }
        Ok(())
    }

    fn reference_block(&self, model: &mut LoadedModel, block: &Block, total: u64) -> Result<BlobDigest, StepError> {
        let (task, env) = (self.task, self.task.env);
        let positions = figures::scored_positions(self.context as usize).map_err(failed)?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let broken = |error: std::io::Error| StepError::input(format!("the reference's log-probabilities: {error}"));
        let writer = env.store.writer()?;
        let vocabulary = count(model.vocabulary_size());
        let mut rows =
            figures::ReferenceWriter::new(writer, vocabulary, 0, count(block.chunks.len()), count(positions.len()))
                .map_err(broken)?;
        for chunk in &block.chunks {
            model
                .logits(chunk, positions.start, &env.cancel, &mut |start, all| {
                    for logits in up_to(positions.end, start, all) {
                        rows.row(logits)
                            .map_err(|error| EngineError::Consumer(Box::new(error)))?;
                    }
                    Ok(())
                })
                .map_err(StepError::engine("computing the reference's log-probabilities"))?;
            task.advance(Unit::ReferenceChunks, 1, total);
        }
        Ok(rows.finish().map_err(broken)?.commit()?)
    }

    /// Measures what `compute` computes on a block, compared with the reference's log-probabilities if these are given. `total`
    /// is how many chunks the progress has in all.
    pub fn measure(
        &self,
        compute: &mut Compute<'_>,
        block: &Block,
        reference: Option<&BlobDigest>,
        total: u64,
    ) -> Result<TokenBlock, StepError> {
        let (task, env) = (self.task, self.task.env);
        let positions = figures::scored_positions(self.context as usize).map_err(failed)?;
        let mapped = reference.map(|digest| env.store.map(digest)).transpose()?;
        let reference = mapped
            .as_ref()
            .map(|bytes| figures::ReferenceBlock::parse(bytes))
            .transpose()
            .map_err(failed)?;
        let mut measured = Vec::with_capacity(block.chunks.len() * positions.len());
        for (number, chunk) in block.chunks.iter().enumerate() {
            let scored = compute(chunk, positions.start, &mut |start, rows| {
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
            task.advance(Unit::Chunks, 1, total);
        }
        TokenBlock::new(0, positions.len() as u32, measured).map_err(failed)
    }
}

/// Returns the rows of positions before `end`, of rows from `start` on.
fn up_to<'a, 'l>(end: usize, start: usize, rows: &'a [&'l [f32]]) -> &'a [&'l [f32]] {
    &rows[..end.saturating_sub(start).min(rows.len())]
}

/// Says that an evaluation failed.
pub(crate) fn failed(error: FigureError) -> StepError {
    StepError::input(format!("the evaluation failed: {error}"))
}
