//! The actions that measure models on blocks of chunks against a reference.

use super::Context;
use super::StepError;
use super::blocks::Block;
use super::documents::decode_metadata;
use super::scoring::CODEC;
use super::scoring::failed;
use crate::action::Action;
use crate::action::EvalBlock;
use crate::action::ReferenceBlock;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::figures;
use crate::observer::Unit;
use crate::prose;

/// A model that others are compared with, on chunks of one length.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    /// The document of its tensors and hyperparameters.
    pub model: BlobDigest,
    /// Its vocabulary.
    pub tokenizer: BlobDigest,
    /// Tokens in a chunk.
    pub context: u32,
    /// The engine that runs the models.
    pub engine: Fingerprint,
}

impl Reference {
    /// Returns the action that computes a block's log-probabilities.
    pub fn action(&self, block: &Block) -> Action {
        Action::ReferenceBlock(ReferenceBlock {
            model: self.model,
            tokens: block.digest,
            context: self.context,
            codec: CODEC,
            engine: self.engine,
        })
    }

    /// Returns the action that measures a model, given by the document of its tensors and hyperparameters, on a block:
    /// `compared` with the reference, or by itself.
    pub fn block_action(&self, candidate: BlobDigest, block: &Block, compared: bool) -> Action {
        Action::EvalBlock(EvalBlock {
            candidate,
            reference: compared.then(|| self.action(block).digest()),
            tokens: block.digest,
            context: self.context,
            codec: CODEC,
            engine: self.engine,
        })
    }

    /// Computes the log-probabilities of blocks that are not in the store.
    ///
    /// # Errors
    ///
    /// [`StepError::NoSpace`] if they do not fit on the disk; errors of the engine.
    pub fn compute(&self, context: &Context<'_>, blocks: &[&Block]) -> Result<(), StepError> {
        let mut missing = Vec::with_capacity(blocks.len());
        for block in blocks {
            block.save(context.store())?;
            if context.may_run(&self.action(block))? {
                missing.push(*block);
            }
        }
        if !missing.is_empty() {
            context.expect(Unit::ReferenceChunks, chunks_of(&missing));
            self.check_space(context, &missing)?;
        }
        for (at, block) in blocks.iter().enumerate() {
            context.perform_part(&format!("block {at}"), &self.action(block))?;
        }
        Ok(())
    }

    /// Reports how large the log-probabilities will be, and fails if they do not fit on the disk.
    fn check_space(&self, context: &Context<'_>, blocks: &[&Block]) -> Result<(), StepError> {
        let positions = figures::scored_positions(self.context as usize).map_err(failed)?.len() as u64;
        let chunks = chunks_of(blocks);
        let metadata = decode_metadata(context.store(), self.tokenizer)?;
        let vocabulary = metadata.get_array_len("tokenizer.ggml.tokens").unwrap_or(0);
        let needed = figures::size_of_reference(vocabulary, positions * chunks);
        let store = context.store();
        let found = store.free_space()?;
        context.note(format!(
            "the reference's log-probabilities of {chunks} chunks take {} in the store",
            prose::bytes(needed)
        ));
        if found < needed {
            return Err(StepError::NoSpace {
                path: store.root().to_owned(),
                needed,
                found,
            });
        }
        Ok(())
    }
}

fn chunks_of(blocks: &[&Block]) -> u64 {
    blocks.iter().map(|block| block.chunks.len() as u64).sum()
}
