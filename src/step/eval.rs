//! `[eval.NAME]`, for one candidate: perplexity and divergence from the reference, block by block. The reference's
//! log-probabilities are computed once for all candidates, and only where a candidate's block is not known yet.

mod blocks;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::action;
use crate::action::Action;
use crate::engine::EachLogits;
use crate::figures;
use crate::figures::ChunkMeans;
use crate::figures::Expected;
use crate::figures::Interval;
use crate::figures::Resampling;
use crate::figures::TokenBlock;
use crate::graph::Node;
use crate::graph::Work;
use crate::observer::ActionOutcome;
use crate::observer::Unit;
use crate::recipe::model::EvalStep;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::Pool;
use crate::step::StepError;
use crate::step::Task;
use crate::step::imatrix::load_model;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::model::DOCUMENT_CAP;
use crate::step::model::encode;
use crate::step::tokens;
use crate::step::tokens::Block;

pub use blocks::Compute;
pub use blocks::Reference;

pub(crate) use blocks::failed;

/// The version of the figures' form: raise it when figures change.
const CODEC: u32 = 1;

/// The confidence of the intervals in tables.
const CONFIDENCE: f64 = 0.95;

/// An evaluation of a candidate.
pub struct Eval;

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

fn eval(node: &Node) -> Result<(&EvalStep, &StepId), StepError> {
    match &node.work {
        Work::Eval { step, candidate } => match &step.body {
            StepBody::Eval(eval) => Ok((eval, candidate)),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (eval, candidate) = eval(node)?;
    let reference = inputs.source(&eval.reference)?;
    Ok(Action::Eval(action::Eval {
        candidate: inputs.step(candidate)?.output("compute")?,
        reference: if eval.kld {
            Some(reference.output("compute")?)
        } else {
            None
        },
        tokenizer: reference.output("tokenizer")?,
        corpus: inputs.step(&eval.corpus)?.output("corpus")?,
        context: eval.context,
        chunks: eval.chunks,
        block: eval.block,
        bootstrap: eval.bootstrap,
        seed: eval.seed,
        codec: CODEC,
        engine: env.evaluator.fingerprint(),
    }))
}

impl Kind for Eval {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    fn pool(&self, _node: &Node) -> Pool {
        Pool::Model
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let (step, candidate) = eval(node)?;
        let action = action_of(node, inputs, task.env)?;
        let candidate = inputs.step(candidate)?;
        let reference = inputs.source(&step.reference)?;
        let performed = task.perform(&action, &[], |made| {
            let cut = tokens::Cut {
                context: step.context,
                chunks: step.chunks,
                block: step.block,
                take: tokens::Take::First,
            };
            let blocks = tokens::blocks(task, reference, inputs.step(&step.corpus)?, cut)?;
            let run = Run {
                reference: Reference {
                    task,
                    model: reference,
                    context: step.context,
                },
                step,
                candidate,
                blocks: &blocks,
            };
            let document = run.figures()?;
            made.output("figures", task.env.store.put(&encode(&document)?)?);
            made.fact("chunks", document.chunks.len());
            made.fact("ppl", format!("{:.4}", document.ppl.value));
            if let Some(divergence) = &document.divergence {
                made.fact("kld_mean", format!("{:.6}", divergence.kld_mean.value));
            }
            Ok(())
        })?;
        Ok(Outcome::of(performed, Vec::new()))
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let ppl = outcome.fact("ppl");
        match outcome.result.facts.get("kld_mean") {
            Some(kld) => format!("KLD {kld}, PPL {ppl}"),
            None => format!("PPL {ppl}"),
        }
    }
}

/// One evaluation of one candidate.
struct Run<'r, 't> {
    reference: Reference<'r, 't>,
    step: &'r EvalStep,
    candidate: &'r Outcome,
    blocks: &'r [Block],
}

impl Run<'_, '_> {
    fn block_action(&self, block: &Block) -> Result<Action, StepError> {
        let candidate = self.candidate.output("compute")?;
        self.reference.block_action(candidate, block, self.step.kld)
    }

    fn figures(&self) -> Result<Document, StepError> {
        let (task, store) = (self.reference.task, self.reference.task.env.store);
        let mut missing = Vec::new();
        for block in self.blocks {
            if task.env.is_twice(&task.step) || store.lookup(&self.block_action(block)?.digest())?.is_none() {
                missing.push(block);
            }
        }
        let references = if self.step.kld && !missing.is_empty() {
            self.reference.compute(&missing)?
        } else {
            BTreeMap::new()
        };
        let total: u64 = self.blocks.iter().map(|block| block.chunks.len() as u64).sum();
        let mut loaded = None;
        let mut measured = Vec::with_capacity(self.blocks.len());
        let mut first = 0;
        for (at, block) in self.blocks.iter().enumerate() {
            let part = format!("block {at}");
            let action = self.block_action(block)?;
            let performed = task.perform_part(&part, &action, &self.candidate.files, |made| {
                let model = match &mut loaded {
                    Some(model) => model,
                    none => none.insert(load_model(task.env, self.candidate, self.step.context)?),
                };
                let mut compute = |chunk: &[i32], first: usize, each: &mut EachLogits<'_>| {
                    model.logits(chunk, first, &task.env.cancel, each)
                };
                let known = references.get(&block.digest);
                let block = self.reference.measure(&mut compute, block, known, total)?;
                made.output("figures", store.put(&block.encode())?);
                Ok(())
            })?;
            if performed.outcome != ActionOutcome::Ran {
                task.advance(Unit::Chunks, block.chunks.len() as u64, total);
            }
            let bytes = store.read(&Outcome::of(performed, Vec::new()).output("figures")?, DOCUMENT_CAP)?;
            let part = TokenBlock::decode(&bytes).map_err(failed)?;
            // A block does not know where in the corpus it stands: its place is not part of its key.
            measured.push(TokenBlock::new(first, part.positions(), part.figures().to_vec()).map_err(failed)?);
            first += block.chunks.len() as u32;
        }
        self.document(&measured, first)
    }

    fn document(&self, blocks: &[TokenBlock], chunks: u32) -> Result<Document, StepError> {
        let positions = figures::scored_positions(self.step.context as usize)
            .map_err(failed)?
            .len() as u32;
        let same = self.candidate.output("compute")? == self.reference.model.output("compute")?;
        let expected = Expected {
            chunks,
            positions,
            same_file: same || !self.step.kld,
        };
        let resampling = Resampling {
            resamples: self.step.bootstrap,
            seed: self.step.seed,
            confidence: CONFIDENCE,
        };
        let figures = figures::summarize(blocks, &expected, &resampling).map_err(failed)?;
        let means = figures::chunk_means(blocks, &expected).map_err(failed)?;
        let divergence = self.step.kld.then(|| Divergence {
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
            context: self.step.context,
            tokens: figures.tokens,
            ppl: figures.ppl.into(),
            divergence,
            chunks: means.into_iter().map(Chunk::from).collect(),
        })
    }
}
