//! A candidate, measured: perplexity and divergence from the reference, block by block. The reference's log-probabilities
//! are computed once for all candidates, and only where a candidate's block is not known yet.

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::blocks::Block;
use super::blocks::BlockOptions;
use super::blocks::TokenizedCorpus;
use super::documents::DOCUMENT_CAP;
use super::documents::encode;
use super::references::Reference;
use super::scoring::CODEC;
use super::scoring::failed;
use crate::action::Eval;
use crate::action::EvalBlock;
use crate::digest::BlobDigest;
use crate::figures;
use crate::figures::ChunkMeans;
use crate::figures::Expected;
use crate::figures::Interval;
use crate::figures::Resampling;
use crate::figures::TokenBlock;
use crate::observer::ActionOutcome;
use crate::observer::Unit;

/// The confidence of the intervals in tables.
const CONFIDENCE: f64 = 0.95;

/// A figure with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// The figure.
    pub value: f64,
    /// Its interval.
    pub ci95: [f64; 2],
}

impl From<Interval> for Figure {
    fn from(interval: Interval) -> Self {
        Self {
            value: interval.value,
            ci95: [interval.low, interval.high],
        }
    }
}

/// What is known against a reference.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// The reference's perplexity.
    pub ppl_reference: Figure,
    /// ln(PPL / PPL of the reference).
    pub ln_ppl_ratio: Figure,
    /// Mean KL divergence, in nats.
    pub kld_mean: Figure,
    /// Median.
    pub kld_median: f64,
    /// 90th percentile.
    pub kld_p90: f64,
    /// 95th percentile.
    pub kld_p95: f64,
    /// 99th percentile.
    pub kld_p99: f64,
    /// 99.9th percentile.
    pub kld_p999: f64,
    /// Largest.
    pub kld_max: f64,
    /// Share of positions with the same most probable token.
    pub top1_agreement: Figure,
    /// Root mean square difference of the true token's probability.
    pub rms_dp: Figure,
}

/// The means of a chunk, for paired comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Mean negative log-likelihood.
    pub nll: f64,
    /// Mean KL divergence.
    pub kld: f64,
    /// Mean square of the difference in probability.
    pub dp2: f64,
    /// Share of positions with the same most probable token.
    pub top1: f64,
}

impl From<ChunkMeans> for Chunk {
    fn from(means: ChunkMeans) -> Self {
        Self {
            nll: means.nll,
            kld: means.kld,
            dp2: means.dp2,
            top1: means.top1,
        }
    }
}

/// The figures of a candidate: output `figures`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// The version of this form.
    pub schema: u32,
    /// Tokens per chunk.
    pub context: u32,
    /// Tokens scored.
    pub tokens: u64,
    /// Perplexity.
    pub ppl: Figure,
    /// Against the reference, if it was compared.
    pub divergence: Option<Divergence>,
    /// Chunk by chunk.
    pub chunks: Vec<Chunk>,
}

impl Work for Eval {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let tokenized = TokenizedCorpus {
            corpus: self.corpus,
            tokenizer: self.tokenizer,
            engine: self.engine,
        };
        let layout = BlockOptions::first(self.context, self.chunks, self.block);
        let blocks = tokenized.blocks(context, layout)?;
        let document = figures(self, context, &blocks)?;
        let mut made = ActionOutputs::default();
        made.output(Self::FIGURES, context.store().put(&encode(&document)?)?);
        made.fact(Self::CHUNKS, document.chunks.len());
        made.fact(Self::PPL, format!("{:.4}", document.ppl.value));
        if let Some(divergence) = &document.divergence {
            made.fact(Self::KLD_MEAN, format!("{:.6}", divergence.kld_mean.value));
        }
        Ok(made)
    }
}

fn figures(eval: &Eval, context: &Context<'_>, blocks: &[Block]) -> Result<Document, StepError> {
    let compared = eval.reference.is_some();
    let reference = Reference {
        // Without a reference, nothing is asked of it.
        model: eval.reference.unwrap_or(eval.candidate),
        tokenizer: eval.tokenizer,
        context: eval.context,
        engine: eval.engine,
    };
    let actions: Vec<_> = blocks
        .iter()
        .map(|block| reference.block_action(eval.candidate, block, compared))
        .collect();
    let mut missing = Vec::new();
    for (block, action) in blocks.iter().zip(&actions) {
        if context.may_run(action)? {
            block.save(context.store())?;
            missing.push(block);
        }
    }
    if compared {
        reference.compute(context, &missing)?;
    }
    context.expect(Unit::Chunks, blocks.iter().map(|block| block.chunks.len() as u64).sum());
    let mut measured = Vec::with_capacity(blocks.len());
    let mut first = 0;
    for (at, (block, action)) in blocks.iter().zip(&actions).enumerate() {
        let performed = context.perform_part(&format!("block {at}"), action)?;
        if performed.outcome != ActionOutcome::Ran {
            context.advance(Unit::Chunks, block.chunks.len() as u64);
        }
        let figures: BlobDigest = performed.output(EvalBlock::FIGURES)?;
        let part = TokenBlock::decode(&context.store().read(&figures, DOCUMENT_CAP)?).map_err(failed)?;
        // A block does not know where in the corpus it is: its place is not part of its key.
        measured.push(TokenBlock::new(first, part.positions(), part.figures().to_vec()).map_err(failed)?);
        first += block.chunks.len() as u32;
    }
    summarize(eval, &measured, first)
}

fn summarize(eval: &Eval, blocks: &[TokenBlock], chunks: u32) -> Result<Document, StepError> {
    let positions = figures::scored_positions(eval.context as usize).map_err(failed)?.len() as u32;
    let expected = Expected {
        chunks,
        positions,
        same_file: eval.reference.is_none_or(|reference| reference == eval.candidate),
    };
    let resampling = Resampling {
        resamples: eval.bootstrap,
        seed: eval.seed,
        confidence: CONFIDENCE,
    };
    let figures = figures::summarize(blocks, &expected, &resampling).map_err(failed)?;
    let means = figures::chunk_means(blocks, &expected).map_err(failed)?;
    let divergence = eval.reference.is_some().then(|| Divergence {
        ppl_reference: figures.ppl_ref.into(),
        ln_ppl_ratio: figures.ln_ppl_ratio.into(),
        kld_mean: figures.kld_mean.into(),
        kld_median: figures.kld_median,
        kld_p90: figures.kld_p90,
        kld_p95: figures.kld_p95,
        kld_p99: figures.kld_p99,
        kld_p999: figures.kld_p999,
        kld_max: figures.kld_max,
        top1_agreement: figures.top1_agreement.into(),
        rms_dp: figures.rms_dp.into(),
    });
    Ok(Document {
        schema: CODEC,
        context: eval.context,
        tokens: figures.tokens,
        ppl: figures.ppl.into(),
        divergence,
        chunks: means.into_iter().map(Chunk::from).collect(),
    })
}
