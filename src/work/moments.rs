//! The second moments of all inputs of a model, block by block and input by input, and added up.

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::blocks::BlockOptions;
use super::blocks::TokenizedCorpus;
use super::documents::decode;
use super::documents::encode;
use super::model_documents::Shape;
use super::model_documents::facts_of;
use super::moments_batch::passes;
use crate::action::Action;
use crate::action::Moments;
use crate::action::MomentsBlock;
use crate::action::MomentsSum;
use crate::action::WeightInputs;
use crate::digest::BlobDigest;
use crate::engine::WeightInput;
use crate::observer::Unit;
use crate::policy;
use crate::policy::ModelFacts;

/// The second moments of the inputs of a model's weights: output `index`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MomentsIndex {
    /// [`Moments::FORM`].
    pub schema: u32,
    /// The name of the text.
    pub dataset: String,
    /// Tokens per chunk.
    pub context: u32,
    /// The number of chunks, without those for validation.
    pub chunks: u64,
    /// The number of chunks for validation.
    pub held_out: u64,
    /// The inputs, in the order in which the model computes.
    pub inputs: Vec<InputMoments>,
}

/// The second moments of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputMoments {
    /// The input.
    #[serde(flatten)]
    pub input: WeightInput,
    /// Its second moments, a [`crate::moments::MomentsFile`].
    pub moments: BlobDigest,
    /// Those over the chunks for validation.
    pub validation: Option<BlobDigest>,
}

impl MomentsIndex {
    /// Returns the input of a weight.
    pub fn of_weight(&self, weight: &str) -> Option<&InputMoments> {
        self.inputs.get(self.place_of(weight)?)
    }

    /// Returns the place of a weight's input.
    pub fn place_of(&self, weight: &str) -> Option<usize> {
        let has = |input: &InputMoments| input.input.weights.iter().any(|name| name == weight);
        self.inputs.iter().position(has)
    }
}

/// Returns whether any weight of an input can be quantized.
fn is_useful(input: &WeightInput, facts: &ModelFacts) -> bool {
    facts.tensors.iter().any(|tensor| {
        input.weights.contains(&tensor.name) && policy::quantizable(facts, &tensor.name, &tensor.dims).is_ok()
    })
}

impl Moments {
    fn block(&self, tokens: BlobDigest, input: &WeightInput) -> MomentsBlock {
        MomentsBlock {
            model: self.model,
            tokens,
            context: self.context,
            input: input.name().to_owned(),
            engine: self.engine,
            form: MomentsBlock::FORM,
        }
    }

    /// Adds up the inputs over each block. Returns them block by block, in the order of the inputs.
    fn collect(
        &self,
        context: &Context<'_>,
        blocks: &[&Block],
        inputs: &[WeightInput],
    ) -> Result<Vec<Vec<BlobDigest>>, StepError> {
        let mut found = Vec::with_capacity(blocks.len());
        for (at, block) in blocks.iter().enumerate() {
            let actions: Vec<Action> = inputs
                .iter()
                .map(|input| Action::MomentsBlock(self.block(block.digest, input)))
                .collect();
            let mut missing = Vec::new();
            for action in &actions {
                if context.may_run(action)? {
                    missing.push(action.clone());
                }
            }
            if missing.is_empty() {
                let passes = passes(inputs, context.machine.memory()).len();
                context.advance_known(Unit::Chunks, (passes * block.chunks.len()) as u64);
            } else {
                block.save(context.store())?;
                context.prepare(&missing)?;
            }
            let mut of_block = Vec::with_capacity(inputs.len());
            for (action, input) in actions.iter().zip(inputs) {
                let performed = context.perform_part(&format!("block {at}, {}", input.name()), action)?;
                of_block.push(performed.output(MomentsBlock::MOMENTS)?);
            }
            found.push(of_block);
        }
        Ok(found)
    }
}

/// Adds up an input's second moments over blocks. Nothing is added to those of a single block.
fn sum(context: &Context<'_>, input: &WeightInput, parts: Vec<BlobDigest>) -> Result<Option<BlobDigest>, StepError> {
    if let [] | [_] = parts.as_slice() {
        return Ok(parts.first().copied());
    }
    let action = Action::MomentsSum(MomentsSum { parts });
    let performed = context.perform_part(input.name(), &action)?;
    performed.output(MomentsSum::MOMENTS).map(Some)
}

impl Work for Moments {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let tokenized = TokenizedCorpus {
            corpus: self.corpus,
            tokenizer: self.tokenizer,
            engine: self.engine,
        };
        let options = BlockOptions::first(self.context, self.chunks, self.block);
        let (learning, validation) = tokenized.blocks_with_validation(context, options, self.held_out)?;
        if learning.is_empty() {
            return Err(StepError::input("the corpus has no chunk"));
        }
        let action = Action::WeightInputs(WeightInputs {
            model: self.model,
            context: self.context,
            engine: self.engine,
        });
        let found = context.perform_part("inputs", &action)?.output(WeightInputs::INPUTS)?;
        let mut inputs: Vec<WeightInput> = decode(store, "list of inputs", found)?;
        let shape: Shape = decode(store, "model shape", self.shape)?;
        let facts = facts_of(store, &shape)?;
        inputs.retain(|input| is_useful(input, &facts));
        let count = |blocks: &[Block]| blocks.iter().map(|block| block.chunks.len() as u64).sum::<u64>();
        let (chunks, held_out) = (count(&learning), count(&validation));
        let passes = passes(&inputs, context.machine.memory()).len() as u64;
        context.expect(Unit::Chunks, passes * (chunks + held_out));
        if held_out == 0 && self.held_out > 0 {
            context.warn(format!(
                "no text has {} chunks, so none is kept for validation: whether refined rounding generalizes is not checked",
                self.held_out
            ));
        }
        let blocks: Vec<&Block> = learning.iter().chain(&validation).collect();
        let mut of_blocks = self.collect(context, &blocks, &inputs)?;
        let of_validation = of_blocks.split_off(learning.len());
        let mut made = ActionOutputs::default();
        let mut index = MomentsIndex {
            schema: Self::FORM,
            dataset: self.dataset.clone(),
            context: self.context,
            chunks,
            held_out,
            inputs: Vec::with_capacity(inputs.len()),
        };
        let mut bytes = 0;
        for (at, input) in inputs.into_iter().enumerate() {
            context.check_cancel()?;
            let parts = |blocks: &[Vec<BlobDigest>]| blocks.iter().map(|block| block[at]).collect();
            let moments = sum(context, &input, parts(&of_blocks))?;
            let moments = moments.ok_or_else(|| StepError::input("the corpus has no chunk"))?;
            let validation = sum(context, &input, parts(&of_validation))?;
            bytes += moments.len + validation.map_or(0, |validation| validation.len);
            // As outputs of their own, so that the result counts only while they are there.
            made.outputs.insert(input.name().to_owned(), moments);
            made.outputs
                .extend(validation.map(|validation| (format!("{} (validation)", input.name()), validation)));
            index.inputs.push(InputMoments {
                input,
                moments,
                validation,
            });
        }
        made.output(Self::INDEX, store.put(&encode(&index)?)?);
        made.fact(Self::INPUTS, index.inputs.len());
        made.fact(Self::CHUNKS, chunks + held_out);
        made.fact(Self::HELD_OUT, held_out);
        made.fact(Self::BYTES, bytes);
        Ok(made)
    }
}
