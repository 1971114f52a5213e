//! An imatrix, collected block by block and added up.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::blocks::BlockOptions;
use super::blocks::TokenizedCorpus;
use super::imatrix;
use crate::action::Action;
use crate::action::ImatrixBlock;
use crate::action::ImatrixCollect;
use crate::imatrix::Imatrix;
use crate::observer::ActionOutcome;
use crate::observer::Unit;

impl Work for ImatrixCollect {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let tokenized = TokenizedCorpus {
            corpus: self.corpus,
            tokenizer: self.tokenizer,
            engine: self.engine,
        };
        let layout = BlockOptions::first(self.context, self.chunks, self.block);
        let blocks = tokenized.blocks(context, layout)?;
        let total: u64 = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        context.expect(Unit::Chunks, total);
        let mut sum: Option<Imatrix> = None;
        for (at, block) in blocks.iter().enumerate() {
            let action = Action::ImatrixBlock(ImatrixBlock {
                model: self.model,
                tokens: block.digest,
                context: self.context,
                process_output: self.process_output,
                engine: self.engine,
            });
            if context.may_run(&action)? {
                block.save(context.store())?;
            }
            let performed = context.perform_part(&format!("block {at}"), &action)?;
            if performed.outcome != ActionOutcome::Ran {
                context.advance_known(Unit::Chunks, block.chunks.len() as u64);
            }
            let part = imatrix::load(context.store(), performed.output(ImatrixBlock::IMATRIX)?)?;
            sum = Some(match sum.take() {
                None => part,
                Some(sum) => imatrix::add(&sum, &part)?,
            });
        }
        let mut imatrix = sum.ok_or_else(|| StepError::input("the corpus has no chunk"))?;
        imatrix.datasets = vec![self.dataset.clone()];
        imatrix.chunk_count = u32::try_from(total).unwrap_or(u32::MAX);
        imatrix.chunk_size = self.context;
        imatrix::save(context.store(), &imatrix)
    }
}
