//! Tokenizes corpora and divides the tokens into blocks of chunks. A chunk is a window of `context` tokens. A block is a number of
//! chunks, the unit in which imatrices and figures are cached. Tokens after the last whole chunk of a text are not used, as in
//! `llama-imatrix` and `llama-perplexity`.

use super::Context;
use super::StepError;
use super::corpus::Document;
use super::documents::TEXT_CAP;
use super::documents::decode;
use super::perform::fact_of;
use super::perform::output_of;
use crate::action::Action;
use crate::action::ActionResult;
use crate::action::Tokens;
use crate::digest::BlobDigest;
use crate::digest::Fingerprint;
use crate::store::Store;
use crate::vocab::Chunking;

/// How many times as many held-out chunks as chunks there can be. The final choices are few and close to each other, so comparing
/// them needs more chunks than comparing the types of single groups.
pub const HELD_OUT_FACTOR: usize = 4;

/// Some chunks.
#[derive(Debug, Clone)]
pub struct Block {
    /// The digest of the tokens, 32-bit little-endian.
    pub digest: BlobDigest,
    /// The tokens of each chunk.
    pub chunks: Vec<Vec<i32>>,
}

impl Block {
    /// Brings the tokens into the store, where the actions that read them find them.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn save(&self, store: &Store) -> Result<(), StepError> {
        let tokens: Vec<u8> = self.chunks.iter().flat_map(|chunk| encode(chunk)).collect();
        store.put(&tokens)?;
        Ok(())
    }

    /// Reads a block of chunks of `context` tokens from the store.
    ///
    /// # Errors
    ///
    /// [`StepError::Document`] if it is not whole chunks; errors of the store.
    pub fn load(store: &Store, digest: BlobDigest, context: u32) -> Result<Self, StepError> {
        let bytes = store.read(&digest, TEXT_CAP * 4)?;
        let chunk = context as usize * 4;
        if chunk == 0 || bytes.is_empty() || bytes.len() % chunk != 0 {
            return Err(StepError::Document {
                what: "block of tokens",
                problem: format!("{} bytes are not whole chunks of {context} tokens", bytes.len()),
            });
        }
        Ok(Self {
            digest,
            chunks: bytes.chunks_exact(chunk).map(decode_tokens).collect(),
        })
    }

    fn of(chunks: Vec<Vec<i32>>) -> Self {
        let tokens: Vec<u8> = chunks.iter().flat_map(|chunk| encode(chunk)).collect();
        Self {
            digest: BlobDigest::of(&tokens),
            chunks,
        }
    }
}

/// Returns the least number of blocks that have so many chunks together, and the chunks of those; all if there are not so many.
pub(super) fn first_blocks(blocks: &[Block], chunks: u64) -> (usize, usize) {
    let mut sum = 0;
    for (at, block) in blocks.iter().enumerate() {
        sum += block.chunks.len();
        if sum as u64 >= chunks {
            return (at + 1, sum);
        }
    }
    (blocks.len(), sum)
}

/// How a corpus is divided into chunks and blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlockOptions {
    /// Tokens per chunk.
    pub context: u32,
    /// The maximum number of chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Which chunks, if there are more.
    pub sample: ChunkSample,
}

impl BlockOptions {
    /// Returns the options of imatrices and evaluations: the first chunks.
    pub fn first(context: u32, chunks: Option<u64>, block: u32) -> Self {
        Self {
            context,
            chunks,
            block,
            sample: ChunkSample::First,
        }
    }

    /// Returns the options of probes: chunks spread over the whole corpus.
    pub fn spread(context: u32, chunks: u64, block: u32) -> Self {
        Self {
            context,
            chunks: Some(chunks),
            block,
            sample: ChunkSample::Spread,
        }
    }

    /// Returns the same options with held-out chunks.
    pub fn with_held_out(self) -> Self {
        Self {
            sample: ChunkSample::SpreadAndHeldOut,
            ..self
        }
    }
}

/// Which chunks of a corpus are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChunkSample {
    /// The first chunks, in blocks of consecutive chunks, as in `llama-imatrix` and `llama-perplexity`.
    First,
    /// Chunks spread evenly over the corpus, and each block spread over all of it, so that a few chunks do not represent only the
    /// first file.
    Spread,
    /// The same, followed by held-out chunks to evaluate the choices that the first ones lead to: four times as many, spread
    /// likewise, or all that are left. There are none if less than half as many are left. No block mixes the two kinds.
    SpreadAndHeldOut,
}

/// A corpus in the tokens of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenizedCorpus {
    /// The corpus.
    pub corpus: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The engine that tokenizes.
    pub engine: Fingerprint,
}

impl TokenizedCorpus {
    /// Returns the actions that tokenize the texts, in order: one for each text that is divided by itself.
    fn actions(&self, store: &Store) -> Result<Vec<Action>, StepError> {
        let document: Document = decode(store, "corpus", self.corpus)?;
        let texts = match document.chunking {
            Chunking::PerFile => document.texts.chunks(1).map(<[BlobDigest]>::to_vec).collect(),
            Chunking::Joined => vec![document.texts],
        };
        let action = |texts| {
            Action::Tokens(Tokens {
                texts,
                tokenizer: self.tokenizer,
                parse_special: document.parse_special,
                engine: self.engine,
            })
        };
        Ok(texts.into_iter().map(action).collect())
    }

    /// Returns the corpus in blocks.
    ///
    /// # Errors
    ///
    /// [`StepError::Input`] if the corpus is shorter than a chunk; errors of tokenizing.
    pub fn blocks(&self, context: &Context<'_>, options: BlockOptions) -> Result<Vec<Block>, StepError> {
        Ok(self.builder(context, options)?.blocks())
    }

    /// Tokenizes all texts.
    fn builder(&self, context: &Context<'_>, options: BlockOptions) -> Result<BlockBuilder, StepError> {
        let mut builder = BlockBuilder::new(options);
        for (at, action) in self.actions(context.store())?.iter().enumerate() {
            let performed = context.perform_part(&format!("text {at}"), action)?;
            builder.add(&performed.result, context.store())?;
        }
        if builder.texts.iter().all(Vec::is_empty) {
            return Err(StepError::input_hint(
                format!(
                    "the corpus has {} tokens, less than one chunk of {}",
                    builder.tokens, options.context
                ),
                "give it more text, or lower `context`",
            ));
        }
        Ok(builder)
    }

    /// Returns the first chunks of a corpus in two lists of blocks: those to learn from, and those to validate with. Of each text every
    /// `every`-th chunk is for validation, none if that is 0. So more text at the end changes no earlier block.
    ///
    /// # Errors
    ///
    /// As [`TokenizedCorpus::blocks`].
    pub fn blocks_with_validation(
        &self,
        context: &Context<'_>,
        options: BlockOptions,
        every: u32,
    ) -> Result<(Vec<Block>, Vec<Block>), StepError> {
        let builder = self.builder(context, options)?;
        let block = options.block.max(1) as usize;
        let in_blocks = |chunks: Vec<Vec<Vec<i32>>>| -> Vec<Block> {
            let blocks = chunks.iter().flat_map(|text| text.chunks(block));
            blocks.map(|chunks| Block::of(chunks.to_vec())).collect()
        };
        let (mut learning, mut validation) = (Vec::new(), Vec::new());
        for text in builder.texts {
            let (mut own, mut held_out) = (Vec::new(), Vec::new());
            for (at, chunk) in (1_u64..).zip(text) {
                if every > 0 && at.is_multiple_of(u64::from(every)) {
                    held_out.push(chunk);
                } else {
                    own.push(chunk);
                }
            }
            learning.push(own);
            validation.push(held_out);
        }
        Ok((in_blocks(learning), in_blocks(validation)))
    }

    /// Returns the corpus in blocks if the store has the tokens of all its texts; otherwise `None`.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn known_blocks(&self, store: &Store, options: BlockOptions) -> Result<Option<Vec<Block>>, StepError> {
        let mut builder = BlockBuilder::new(options);
        for action in self.actions(store)? {
            let Some(result) = store.lookup(&action.digest())? else {
                return Ok(None);
            };
            builder.add(&result, store)?;
        }
        Ok(Some(builder.blocks()))
    }
}

/// Divides tokens into blocks, text by text.
struct BlockBuilder {
    options: BlockOptions,
    /// How many more chunks are used.
    left: usize,
    /// The tokens of all texts.
    tokens: usize,
    /// The chunks of each text.
    texts: Vec<Vec<Vec<i32>>>,
}

impl BlockBuilder {
    fn new(options: BlockOptions) -> Self {
        Self {
            options,
            left: match options.sample {
                ChunkSample::First => Self::most(options),
                // Which chunks are used depends on their number.
                ChunkSample::Spread | ChunkSample::SpreadAndHeldOut => usize::MAX,
            },
            tokens: 0,
            texts: Vec::new(),
        }
    }

    fn most(options: BlockOptions) -> usize {
        usize::try_from(options.chunks.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
    }

    fn add(&mut self, text: &ActionResult, store: &Store) -> Result<(), StepError> {
        let bytes = store.read(&output_of(text, Tokens::TOKENS)?, TEXT_CAP * 4)?;
        let bos: i32 = fact_of(text, Tokens::BOS).unwrap_or(-1);
        self.tokens += bytes.len() / 4;
        let mut chunks = Vec::new();
        for chunk in bytes.chunks_exact(self.options.context as usize * 4) {
            if self.left == 0 {
                break;
            }
            let mut chunk = decode_tokens(chunk);
            // Every chunk begins with BOS, as a text does. It is set here, so that the digest covers it.
            if bos >= 0 {
                chunk[0] = bos;
            }
            chunks.push(chunk);
            self.left -= 1;
        }
        self.texts.push(chunks);
        Ok(())
    }

    fn blocks(self) -> Vec<Block> {
        let block = self.options.block.max(1) as usize;
        match self.options.sample {
            ChunkSample::First => self
                .texts
                .iter()
                .flat_map(|chunks| chunks.chunks(block))
                .map(|chunks| Block::of(chunks.to_vec()))
                .collect(),
            ChunkSample::Spread | ChunkSample::SpreadAndHeldOut => {
                let all: Vec<Vec<i32>> = self.texts.into_iter().flatten().collect();
                let most = Self::most(self.options);
                let taken: Vec<usize> = spread(all.len(), most).collect();
                let held_out = match self.options.sample {
                    ChunkSample::SpreadAndHeldOut => held_out(all.len(), &taken),
                    _ => Vec::new(),
                };
                [&taken, &held_out]
                    .into_iter()
                    .flat_map(|indices| distribute(indices, block))
                    .map(|chosen| Block::of(chosen.map(|at| all[at].clone()).collect()))
                    .collect()
            }
        }
    }
}

/// Returns the indices of at most `most` of `all` chunks, spread evenly.
fn spread(all: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = most.min(all);
    // The middle of each of `taken` equal parts.
    (0..taken).map(move |at| ((2 * at as u128 + 1) * all as u128 / (2 * taken as u128)) as usize)
}

/// Returns the indices of held-out chunks: [`HELD_OUT_FACTOR`] times as many as are taken, or all that are left; none if less than
/// half as many are left.
fn held_out(all: usize, taken: &[usize]) -> Vec<usize> {
    let left: Vec<usize> = (0..all).filter(|at| taken.binary_search(at).is_err()).collect();
    if 2 * left.len() < taken.len() {
        return Vec::new();
    }
    let most = taken.len().saturating_mul(HELD_OUT_FACTOR);
    spread(left.len(), most).map(|at| left[at]).collect()
}

/// Distributes indices to blocks of at most `block` in round-robin order, so that each block is spread over all of them.
fn distribute(taken: &[usize], block: usize) -> impl Iterator<Item = impl Iterator<Item = usize>> {
    let blocks = taken.len().div_ceil(block);
    (0..blocks).map(move |first| taken.iter().copied().skip(first).step_by(blocks))
}

pub(super) fn encode(tokens: &[i32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

fn decode_tokens(bytes: &[u8]) -> Vec<i32> {
    bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| i32::from_le_bytes(*bytes))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_spread_evenly_and_so_are_those_of_a_block() {
        assert_eq!(spread(10, 2).collect::<Vec<_>>(), [2, 7]);
        assert_eq!(spread(3, 9).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(0, 9).count(), 0);
        let taken: Vec<usize> = spread(160, 8).collect();
        assert_eq!(taken, [10, 30, 50, 70, 90, 110, 130, 150]);
        let blocks: Vec<Vec<usize>> = distribute(&taken, 3).map(Iterator::collect).collect();
        assert_eq!(blocks, [vec![10, 70, 130], vec![30, 90, 150], vec![50, 110]]);
    }

    #[test]
    fn held_out_chunks_are_not_among_the_taken_ones() {
        assert_eq!(held_out(20, &[5, 15]), [1, 3, 6, 8, 11, 13, 16, 18]);
        assert_eq!(held_out(5, &[0, 2, 4]), [1, 3], "all that are left");
        assert!(held_out(4, &[0, 1, 3]).is_empty(), "too few to evaluate with");
        assert!(held_out(3, &[0, 1, 2]).is_empty());
    }
}
