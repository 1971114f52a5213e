//! Texts as tokens, and tokens as blocks of chunks. A chunk is a window of `context` tokens; a block is some chunks,
//! the unit in which imatrices and figures are cached. What is left over after the last whole chunk of
//! a text is not used, as in `llama-imatrix` and `llama-perplexity`.

use super::Context;
use super::StepError;
use super::corpus::Document;
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

/// The longest text that is tokenized in one piece, in bytes: what llama.cpp takes.
pub(super) const TEXT_CAP: u64 = (1 << 31) - 128;

/// For each chunk of a cut, how many others may come after it: whole choices are few and close to each other, so they are told
/// apart by more chunks than their many options.
const OTHERS: usize = 4;

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

/// How a corpus is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cut {
    /// Tokens per chunk.
    pub context: u32,
    /// At most so many chunks.
    pub chunks: Option<u64>,
    /// Chunks per block.
    pub block: u32,
    /// Which chunks, if there are more.
    pub take: Take,
}

impl Cut {
    /// Returns the cut that probes take: some chunks from everywhere.
    pub fn spread(context: u32, chunks: u64, block: u32) -> Self {
        Self {
            context,
            chunks: Some(chunks),
            block,
            take: Take::Spread,
        }
    }

    /// Returns the same cut with others after it.
    pub fn and_others(self) -> Self {
        Self {
            take: Take::SpreadAndOthers,
            ..self
        }
    }
}

/// Which of a corpus's chunks are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Take {
    /// The first, in blocks of chunks that follow each other, as `llama-imatrix` and `llama-perplexity` do.
    First,
    /// As many from every part of the corpus, and each block again from all of it: what a few chunks show is then not the
    /// first file's alone.
    Spread,
    /// Those, and after them four times as many others, again from every part, or all others if there are fewer, but at least half
    /// as many: what was chosen by the first ones is judged on them. Blocks have chunks of one kind only.
    SpreadAndOthers,
}

/// A corpus as a model reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reading {
    /// The corpus.
    pub corpus: BlobDigest,
    /// The model's vocabulary.
    pub tokenizer: BlobDigest,
    /// The engine that tokenizes.
    pub engine: Fingerprint,
}

impl Reading {
    /// Returns the actions that tokenize the texts, in order: one for each text that is cut by itself.
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
    pub fn blocks(&self, context: &Context<'_>, cut: Cut) -> Result<Vec<Block>, StepError> {
        let mut cutter = Cutter::new(cut);
        for (at, action) in self.actions(context.store())?.iter().enumerate() {
            let performed = context.perform_part(&format!("text {at}"), action)?;
            cutter.add(&performed.result, context.store())?;
        }
        let tokens = cutter.tokens;
        let blocks = cutter.blocks();
        if blocks.is_empty() {
            return Err(StepError::input_hint(
                format!("the corpus has {tokens} tokens, less than one chunk of {}", cut.context),
                "give it more text, or lower `context`",
            ));
        }
        Ok(blocks)
    }

    /// Returns the corpus in blocks if all of its texts were tokenized before; nothing is tokenized now.
    ///
    /// # Errors
    ///
    /// Errors of the store.
    pub fn known_blocks(&self, store: &Store, cut: Cut) -> Result<Option<Vec<Block>>, StepError> {
        let mut cutter = Cutter::new(cut);
        for action in self.actions(store)? {
            let Some(result) = store.lookup(&action.digest())? else {
                return Ok(None);
            };
            cutter.add(&result, store)?;
        }
        Ok(Some(cutter.blocks()))
    }
}

/// Cuts tokens into blocks, text by text.
struct Cutter {
    cut: Cut,
    /// How many chunks more there may be.
    left: usize,
    /// The tokens of all texts.
    tokens: usize,
    /// The chunks of each text.
    texts: Vec<Vec<Vec<i32>>>,
}

impl Cutter {
    fn new(cut: Cut) -> Self {
        Self {
            cut,
            left: match cut.take {
                Take::First => Self::most(cut),
                // Which of them are taken depends on how many there are.
                Take::Spread | Take::SpreadAndOthers => usize::MAX,
            },
            tokens: 0,
            texts: Vec::new(),
        }
    }

    fn most(cut: Cut) -> usize {
        usize::try_from(cut.chunks.unwrap_or(u64::MAX)).unwrap_or(usize::MAX)
    }

    fn add(&mut self, text: &ActionResult, store: &Store) -> Result<(), StepError> {
        let bytes = store.read(&output_of(text, Tokens::TOKENS)?, TEXT_CAP * 4)?;
        let bos: i32 = fact_of(text, Tokens::BOS).unwrap_or(-1);
        self.tokens += bytes.len() / 4;
        let mut chunks = Vec::new();
        for chunk in bytes.chunks_exact(self.cut.context as usize * 4) {
            if self.left == 0 {
                break;
            }
            let mut chunk = decode_tokens(chunk);
            // Every window begins as a text does. Done here, so that the digest covers it.
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
        let block = self.cut.block.max(1) as usize;
        match self.cut.take {
            Take::First => self
                .texts
                .iter()
                .flat_map(|chunks| chunks.chunks(block))
                .map(|chunks| Block::of(chunks.to_vec()))
                .collect(),
            Take::Spread | Take::SpreadAndOthers => {
                let all: Vec<Vec<i32>> = self.texts.into_iter().flatten().collect();
                let most = Self::most(self.cut);
                let taken: Vec<usize> = spread(all.len(), most).collect();
                let others = match self.cut.take {
                    Take::SpreadAndOthers => others(all.len(), &taken),
                    _ => Vec::new(),
                };
                [&taken, &others]
                    .into_iter()
                    .flat_map(|places| deal(places, block))
                    .map(|dealt| Block::of(dealt.map(|at| all[at].clone()).collect()))
                    .collect()
            }
        }
    }
}

/// Returns `most` of so many places, as far from each other as they can be.
fn spread(all: usize, most: usize) -> impl Iterator<Item = usize> {
    let taken = most.min(all);
    // The middle of each of `taken` equal parts.
    (0..taken).map(move |at| ((2 * at as u128 + 1) * all as u128 / (2 * taken as u128)) as usize)
}

/// Returns [`OTHERS`] times as many places as were taken, of those that were not, or all of these; none if they are less than half as
/// many.
fn others(all: usize, taken: &[usize]) -> Vec<usize> {
    let left: Vec<usize> = (0..all).filter(|at| taken.binary_search(at).is_err()).collect();
    if 2 * left.len() < taken.len() {
        return Vec::new();
    }
    let most = taken.len().saturating_mul(OTHERS);
    spread(left.len(), most).map(|at| left[at]).collect()
}

/// Returns places in blocks of at most `block`, dealt like cards: each block has some from everywhere.
fn deal(taken: &[usize], block: usize) -> impl Iterator<Item = impl Iterator<Item = usize>> {
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
    fn chunks_come_from_everywhere_and_so_do_those_of_a_block() {
        assert_eq!(spread(10, 2).collect::<Vec<_>>(), [2, 7]);
        assert_eq!(spread(3, 9).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(0, 9).count(), 0);
        let taken: Vec<usize> = spread(160, 8).collect();
        assert_eq!(taken, [10, 30, 50, 70, 90, 110, 130, 150]);
        let blocks: Vec<Vec<usize>> = deal(&taken, 3).map(Iterator::collect).collect();
        assert_eq!(blocks, [vec![10, 70, 130], vec![30, 90, 150], vec![50, 110]]);
    }

    #[test]
    fn others_are_none_of_those_that_were_taken() {
        assert_eq!(others(20, &[5, 15]), [1, 3, 6, 8, 11, 13, 16, 18]);
        assert_eq!(others(5, &[0, 2, 4]), [1, 3], "all that are left");
        assert!(others(4, &[0, 1, 3]).is_empty(), "too few to judge by");
        assert!(others(3, &[0, 1, 2]).is_empty());
    }
}
