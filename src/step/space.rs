//! What the reference's log-probabilities will take in the store, told before the first of them is computed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::action::Corpus;
use crate::action::InspectModel;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::engine::Role;
use crate::figures;
use crate::graph::Node;
use crate::graph::Work;
use crate::recipe::model::CorpusStep;
use crate::recipe::model::EngineRef;
use crate::recipe::model::SourceName;
use crate::recipe::model::Step;
use crate::recipe::model::StepBody;
use crate::recipe::model::StepId;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::policy;
use crate::work::Block;
use crate::work::Cut;
use crate::work::Reading;
use crate::work::Reference;
use crate::work::Take;
use crate::work::evaluation_failed;

/// More bytes than a token of a text has on average, in any language and with any vocabulary: before a corpus is read as
/// tokens, its length divided by this tells how many there are at the least.
const BYTES_PER_TOKEN: u64 = 8;

/// What is compared with a reference's log-probabilities.
pub struct Comparison<'n> {
    /// The reference.
    pub reference: &'n SourceName,
    /// The texts.
    pub corpus: &'n StepId,
    /// What is taken of them.
    cut: Cut,
    /// The digest of all that decides what the measured model computes; nothing where that is not known yet.
    compute: Option<BlobDigest>,
    /// The engine that runs the models.
    engine: &'n EngineRef,
}

impl<'n> Comparison<'n> {
    /// Returns what a step compares first, if it compares anything: an evaluation its candidate, a policy that measures the model
    /// itself, on all chunks that anything else is measured on. `known` is what the nodes before it have made, as far as that
    /// can be told.
    pub fn of(node: &'n Node, known: &Inputs) -> Option<Self> {
        let compute = |outcome: Result<&Outcome, StepError>| {
            outcome.and_then(|outcome| outcome.output(InspectModel::COMPUTE)).ok()
        };
        match &node.work {
            Work::Eval { step, candidate } => match &step.body {
                StepBody::Eval(eval) if eval.kld => Some(Self {
                    reference: &eval.reference,
                    corpus: &eval.corpus,
                    cut: Cut {
                        context: eval.context,
                        chunks: eval.chunks,
                        block: eval.block,
                        take: Take::First,
                    },
                    compute: compute(known.step(candidate)),
                    engine: &node.engine,
                }),
                _ => None,
            },
            Work::Step(Step {
                body: StepBody::Policy(policy),
                ..
            }) => {
                let (corpus, cut) = policy::measures_on(policy)?;
                Some(Self {
                    reference: &policy.model,
                    corpus,
                    cut,
                    compute: compute(known.source(&policy.model)),
                    engine: &node.engine,
                })
            }
            _ => None,
        }
    }
}

/// Corpora as blocks, each read once for all comparisons; nothing of one that was not yet read as tokens.
pub type Corpora<'n> = BTreeMap<(&'n SourceName, &'n StepId, Cut, Fingerprint), Option<Vec<Block>>>;

/// Returns how many bytes of the reference's log-probabilities a comparison still has to compute: for each block that it needs
/// and that is not in the store, by a name that is the same for all comparisons that share the block. Of a model that is yet
/// to be made, every block counts. Where the corpus was not yet read as tokens, one entry stands for all blocks of it in chunks of
/// that length, with the least that these can take.
/// `vocabulary` is how many tokens the model knows, `texts` is the corpus.
///
/// # Errors
///
/// What would fail the step, too.
pub fn foresee<'n>(
    comparison: &Comparison<'n>,
    known: &Inputs,
    env: &Env<'_>,
    vocabulary: u64,
    texts: (&Node, &CorpusStep),
    corpora: &mut Corpora<'n>,
) -> Result<Vec<(String, u64)>, StepError> {
    let Comparison {
        reference: model,
        corpus,
        cut,
        compute,
        engine,
    } = *comparison;
    let engine = env.fingerprint(engine, Role::Evaluator)?;
    let positions = figures::scored_positions(cut.context as usize)
        .map_err(evaluation_failed)?
        .len() as u64;
    let size = |chunks: u64| figures::size_of_reference(vocabulary, positions.saturating_mul(chunks));
    let outcome = known.source(model);
    let blocks = match corpora.entry((model, corpus, cut, engine)) {
        Entry::Occupied(read) => read.into_mut(),
        Entry::Vacant(free) => free.insert(match (&outcome, known.step(corpus)) {
            (Ok(model), Ok(corpus)) => {
                let reading = Reading {
                    corpus: corpus.output(Corpus::CORPUS)?,
                    tokenizer: model.output(InspectModel::TOKENIZER)?,
                    engine,
                };
                reading.known_blocks(env.store, cut)?
            }
            _ => None,
        }),
    };
    let (corpus_node, corpus_step) = texts;
    let (Ok(outcome), Some(blocks)) = (outcome, blocks) else {
        let files = env.corpus_files(&corpus_node.id, corpus_step)?;
        let bytes: u64 = files
            .iter()
            .filter_map(|path| crate::fs::Stamp::of(path).ok())
            .map(|stamp| stamp.size)
            .sum();
        let chunks = bytes / BYTES_PER_TOKEN / u64::from(cut.context.max(1));
        let chunks = cut.chunks.map_or(chunks, |most| most.min(chunks));
        let name = format!("{model} {corpus} {}", cut.context);
        return Ok(if chunks == 0 {
            Vec::new()
        } else {
            vec![(name, size(chunks))]
        });
    };
    let reference = Reference {
        model: outcome.output(InspectModel::COMPUTE)?,
        tokenizer: outcome.output(InspectModel::TOKENIZER)?,
        context: cut.context,
        engine,
    };
    let mut needed = Vec::new();
    for block in blocks.iter() {
        let is_known = match compute {
            Some(compute) => {
                let action = reference.block_action(compute, block, true);
                env.store.lookup(&action.digest())?.is_some()
            }
            None => false,
        };
        let key = reference.action(block).digest();
        if !is_known && env.store.lookup(&key)?.is_none() {
            needed.push((key.to_string(), size(block.chunks.len() as u64)));
        }
    }
    Ok(needed)
}
