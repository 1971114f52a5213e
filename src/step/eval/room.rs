//! What the reference's log-probabilities will take in the store, told before the first of them is computed.

use crate::figures;
use crate::graph::Node;
use crate::recipe::model::CorpusStep;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::StepError;
use crate::step::Task;
use crate::step::eval::Reference;
use crate::step::eval::eval;
use crate::step::eval::failed;
use crate::step::tokens;
use crate::step::tokens::Cut;
use crate::step::tokens::Take;

/// More bytes than a token of a text has on average, in any language and with any vocabulary: before a corpus is read as
/// tokens, its length divided by this tells how many there are at the least.
const BYTES_PER_TOKEN: u64 = 8;

/// Returns how many bytes of the reference's log-probabilities an evaluation still has to compute: for each block that it needs
/// and that is not in the store, by a name that is the same for all evaluations that share the block. `known` is what
/// the nodes before it have made, as far as that can be told; of a candidate that is yet to be made, every block
/// counts. Where the corpus was not yet read as tokens, one entry stands for all blocks of it in chunks of that length, with the
/// least that this evaluation's can take.
/// `vocabulary` is how many tokens the model knows, `texts` is the corpus.
///
/// # Errors
///
/// What would fail the evaluation, too.
pub fn foresee(
    node: &Node,
    known: &Inputs,
    env: &Env<'_>,
    vocabulary: u64,
    texts: (&Node, &CorpusStep),
) -> Result<Vec<(String, u64)>, StepError> {
    let (step, candidate) = eval(node)?;
    if !step.kld {
        return Ok(Vec::new());
    }
    let positions = figures::scored_positions(step.context as usize).map_err(failed)?.len() as u64;
    let size = |chunks: u64| figures::size_of_reference(vocabulary, positions.saturating_mul(chunks));
    let cut = Cut {
        context: step.context,
        chunks: step.chunks,
        block: step.block,
        take: Take::First,
    };
    let blocks = match (known.source(&step.reference), known.step(&step.corpus)) {
        (Ok(model), Ok(corpus)) => tokens::known_blocks(env, model, corpus, cut)?.map(|blocks| (model, blocks)),
        _ => None,
    };
    let Some((model, blocks)) = blocks else {
        let (corpus, step_of_corpus) = texts;
        let files = env.corpus_files(&corpus.id, step_of_corpus)?;
        let bytes: u64 = files
            .iter()
            .filter_map(|path| crate::fs::Stamp::of(path).ok())
            .map(|stamp| stamp.size)
            .sum();
        let chunks = bytes / BYTES_PER_TOKEN / u64::from(step.context.max(1));
        let chunks = step.chunks.map_or(chunks, |most| most.min(chunks));
        let name = format!("{} {} {}", step.reference, step.corpus, step.context);
        return Ok(if chunks == 0 {
            Vec::new()
        } else {
            vec![(name, size(chunks))]
        });
    };
    let task = Task::new(node.id.to_string(), env);
    let reference = Reference {
        task: &task,
        model,
        context: step.context,
    };
    let measured = known
        .step(candidate)
        .and_then(|candidate| candidate.output("compute"))
        .ok();
    let mut needed = Vec::new();
    for block in &blocks {
        let is_known = match measured {
            Some(candidate) => {
                let action = reference.block_action(candidate, block, true)?;
                env.store.lookup(&action.digest())?.is_some()
            }
            None => false,
        };
        let key = reference.action(block)?.digest();
        if !is_known && env.store.lookup(&key)?.is_none() {
            needed.push((key.to_string(), size(block.chunks.len() as u64)));
        }
    }
    Ok(needed)
}
