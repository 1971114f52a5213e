//! `[eval.NAME]`, for one candidate: perplexity and divergence from the reference, block by block. The reference's
//! log-probabilities are computed once for all candidates, and only where a candidate's block is not known yet.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::action;
use crate::action::Action;
use crate::action::EvalBlock;
use crate::action::ReferenceBlock;
use crate::digest::BlobDigest;
use crate::engine::EngineError;
use crate::engine::LoadedModel;
use crate::figures;
use crate::figures::ChunkMeans;
use crate::figures::Expected;
use crate::figures::FigureError;
use crate::figures::Interval;
use crate::figures::Resampling;
use crate::figures::TokenBlock;
use crate::figures::TokenFigures;
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
            };
            let blocks = tokens::blocks(task, reference, inputs.step(&step.corpus)?, cut)?;
            let run = Run {
                task,
                step,
                candidate,
                reference,
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
    task: &'r Task<'t>,
    step: &'r EvalStep,
    candidate: &'r Outcome,
    reference: &'r Outcome,
    blocks: &'r [Block],
}

impl Run<'_, '_> {
    fn reference_action(&self, block: &Block) -> Result<Action, StepError> {
        Ok(Action::ReferenceBlock(ReferenceBlock {
            model: self.reference.output("compute")?,
            tokens: block.digest,
            context: self.step.context,
            codec: CODEC,
            engine: self.task.env.evaluator.fingerprint(),
        }))
    }

    fn block_action(&self, block: &Block) -> Result<Action, StepError> {
        let reference = if self.step.kld {
            Some(self.reference_action(block)?.digest())
        } else {
            None
        };
        Ok(Action::EvalBlock(EvalBlock {
            candidate: self.candidate.output("compute")?,
            reference,
            tokens: block.digest,
            context: self.step.context,
            codec: CODEC,
            engine: self.task.env.evaluator.fingerprint(),
        }))
    }

    fn figures(&self) -> Result<Document, StepError> {
        let (task, store) = (self.task, self.task.env.store);
        let mut missing = Vec::new();
        for block in self.blocks {
            if task.env.is_twice(&task.step) || store.lookup(&self.block_action(block)?.digest())?.is_none() {
                missing.push(block);
            }
        }
        let references = if self.step.kld && !missing.is_empty() {
            self.references(&missing)?
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
                let block = self.measure(model, block, references.get(&block.digest), total)?;
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

    /// Returns the reference's log-probabilities of blocks, computing those that are not there.
    fn references(&self, blocks: &[&Block]) -> Result<BTreeMap<BlobDigest, BlobDigest>, StepError> {
        let task = self.task;
        let mut loaded: Option<LoadedModel> = None;
        let mut found = BTreeMap::new();
        let total = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        for (at, block) in blocks.iter().enumerate() {
            let part = format!("block {at}");
            let action = self.reference_action(block)?;
            let performed = task.perform_part(&part, &action, &self.reference.files, |made| {
                let model = match &mut loaded {
                    Some(model) => model,
                    none => {
                        let model = none.insert(load_model(task.env, self.reference, self.step.context)?);
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
        let positions = figures::scored_positions(self.step.context as usize)
            .map_err(failed)?
            .len() as u64;
        let chunks: u64 = blocks.iter().map(|block| block.chunks.len() as u64).sum();
        let needed = figures::size_of_reference(model.vocabulary_size() as u64, positions * chunks);
        let env = self.task.env;
        let found = env.store.free_space()?;
        self.task.tell(crate::observer::Event::Note {
            step: self.task.step.clone(),
            message: format!(
                "the reference's log-probabilities of {chunks} chunks take {} in the store",
                crate::report::words::bytes(needed)
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
        let positions = figures::scored_positions(self.step.context as usize).map_err(failed)?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let broken = |error: std::io::Error| StepError::input(format!("the reference's log-probabilities: {error}"));
        let writer = env.store.writer()?;
        let vocabulary = count(model.vocabulary_size());
        let mut rows =
            figures::ReferenceWriter::new(writer, vocabulary, 0, count(block.chunks.len()), count(positions.len()))
                .map_err(broken)?;
        for chunk in &block.chunks {
            model
                .logits(chunk, positions.start, &env.cancel, &mut |position, logits| {
                    if positions.contains(&position) {
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

    fn measure(
        &self,
        model: &mut LoadedModel,
        block: &Block,
        reference: Option<&BlobDigest>,
        total: u64,
    ) -> Result<TokenBlock, StepError> {
        let (task, env) = (self.task, self.task.env);
        let positions = figures::scored_positions(self.step.context as usize).map_err(failed)?;
        let mapped = reference.map(|digest| env.store.map(digest)).transpose()?;
        let reference = mapped
            .as_ref()
            .map(|bytes| figures::ReferenceBlock::parse(bytes))
            .transpose()
            .map_err(failed)?;
        let mut measured = Vec::with_capacity(block.chunks.len() * positions.len());
        for (number, chunk) in block.chunks.iter().enumerate() {
            model
                .logits(chunk, positions.start, &env.cancel, &mut |position, logits| {
                    if !positions.contains(&position) {
                        return Ok(());
                    }
                    let token = chunk[position + 1];
                    let scored = match &reference {
                        Some(reference) => reference
                            .row(number as u32, (position - positions.start) as u32)
                            .and_then(|row| figures::score(&row, logits, token)),
                        None => figures::negative_log_likelihood(logits, token).map(|nll| TokenFigures {
                            nll: nll as f32,
                            nll_ref: nll as f32,
                            kld: 0.0,
                            dp: 0.0,
                            top1_same: true,
                        }),
                    };
                    measured.push(scored.map_err(|error| EngineError::Consumer(Box::new(error)))?);
                    Ok(())
                })
                .map_err(StepError::engine("measuring the candidate"))?;
            task.advance(Unit::Chunks, 1, total);
        }
        TokenBlock::new(0, positions.len() as u32, measured).map_err(failed)
    }

    fn document(&self, blocks: &[TokenBlock], chunks: u32) -> Result<Document, StepError> {
        let positions = figures::scored_positions(self.step.context as usize)
            .map_err(failed)?
            .len() as u32;
        let same = self.candidate.output("compute")? == self.reference.output("compute")?;
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

fn failed(error: FigureError) -> StepError {
    StepError::input(format!("the evaluation failed: {error}"))
}
