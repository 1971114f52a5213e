//! The factors of gradients at the weights of a model, collected block by block and added up.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::blocks::BlockOptions;
use super::blocks::TokenizedCorpus;
use super::documents::encode;
use super::perform::fact_of;
use crate::action::Action;
use crate::action::Gradients;
use crate::action::GradientsBlock;
use crate::digest::BlobDigest;
use crate::fisher::FactorsError;
use crate::fisher::ModelFactors;
use crate::observer::ActionOutcome;
use crate::observer::Unit;

/// The factors of gradients at the weights of a model: output `index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GradientsIndex {
    /// [`Gradients::FORM`].
    pub schema: u32,
    /// The factors of each weight, a [`crate::fisher::WeightFactors`].
    pub weights: BTreeMap<String, BlobDigest>,
}

pub(super) fn damaged(error: FactorsError) -> StepError {
    StepError::Document {
        what: "factors of gradients",
        problem: error.to_string(),
    }
}

impl Work for Gradients {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let tokenized = TokenizedCorpus {
            corpus: self.corpus,
            tokenizer: self.tokenizer,
            engine: self.engine,
        };
        let layout = BlockOptions::spread(self.context, self.chunks, self.block);
        let blocks = tokenized.blocks(context, layout)?;
        let total: u64 = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        context.expect(Unit::Chunks, total);
        let mut made = ActionOutputs::default();
        made.fact(Self::CHUNKS, total);
        let mut sum: Option<ModelFactors> = None;
        for (at, block) in blocks.iter().enumerate() {
            let action = Action::GradientsBlock(GradientsBlock {
                model: self.model,
                tokens: block.digest,
                context: self.context,
                engine: self.engine,
                form: GradientsBlock::FORM,
            });
            if context.may_run(&action)? {
                block.save(store)?;
            }
            let performed = context.perform_part(&format!("block {at}"), &action)?;
            if performed.outcome != ActionOutcome::Ran {
                context.advance_known(Unit::Chunks, block.chunks.len() as u64);
            }
            if let Ok(missing) = fact_of::<String>(&performed.result, GradientsBlock::MISSING) {
                made.fact(Self::MISSING, missing);
                return Ok(made);
            }
            let part = store.map(&performed.output(GradientsBlock::FACTORS)?)?;
            let part = ModelFactors::parse(&part).map_err(damaged)?;
            match &mut sum {
                Some(sum) => sum.merge(&part).map_err(damaged)?,
                None => sum = Some(part),
            }
        }
        let sum = sum.ok_or_else(|| StepError::input("the corpus has no chunk"))?;
        let mut index = GradientsIndex {
            schema: Self::FORM,
            weights: BTreeMap::new(),
        };
        for (name, factors) in &sum.weights {
            let digest = store.put(&factors.to_bytes())?;
            // As outputs of their own, so that the result counts only while they are there.
            made.outputs.insert(name.clone(), digest);
            index.weights.insert(name.clone(), digest);
        }
        made.output(Self::INDEX, store.put(&encode(&index)?)?);
        Ok(made)
    }
}
