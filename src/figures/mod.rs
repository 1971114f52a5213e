//! The mathematics of evaluations: from logits to figures with intervals. Names no engine and does no I/O.
//!
//! The steps are those of `llama-perplexity`, so that figures can be compared with its: each chunk is a window of its own,
//! the positions of its second half are scored ([`scored_positions`]), the reference's log-probabilities are kept as 16-bit
//! codes ([`ReferenceRow`]), and each scored position gives one [`TokenFigures`]. Where it goes its own way:
//!
//! - Intervals come from a bootstrap over chunks ([`summarize`]). Tokens of one window are not independent, and the
//!   errors that `llama-perplexity` prints for the mean KLD are 1.2 to 2.2 times too small.
//! - A candidate whose logits are the reference's own, bit for bit, has a KLD of exactly 0, not that of the codes'
//!   rounding. So a mean of exactly 0 between different files is known to be a mistake, and is an error.

mod block;
mod bootstrap;
mod prediction;
mod reference;
mod summary;
mod tokens;

use std::ops::Range;

pub use self::bootstrap::Interval;
pub use self::bootstrap::Resampling;
pub use self::bootstrap::paired_difference;
pub use self::prediction::prediction;
pub use self::reference::ReferenceBlock;
pub use self::reference::ReferenceRow;
pub use self::reference::ReferenceWriter;
pub use self::reference::row_bytes;
pub use self::reference::size_of_reference;
pub use self::summary::Expected;
pub use self::summary::Figures;
pub use self::summary::chunk_means;
pub use self::summary::summarize;
pub use self::tokens::ChunkMeans;
pub use self::tokens::TokenBlock;
pub use self::tokens::TokenFigures;
pub use self::tokens::negative_log_likelihood;
pub use self::tokens::score;

/// What is wrong with what figures are made from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FigureError {
    /// No position of the window would be scored.
    #[error("a context of {context} tokens has no positions to score; the least is 4")]
    Context {
        /// Tokens of the window.
        context: usize,
    },
    /// A logit is a NaN or an infinity.
    #[error("the logit of token {token} is {value}")]
    NonFiniteLogit {
        /// Which of the vocabulary.
        token: usize,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// Logits of another vocabulary.
    #[error("{found} logits where the reference has a vocabulary of {expected}")]
    Vocabulary {
        /// How many were given.
        found: usize,
        /// The reference's.
        expected: usize,
    },
    /// The token to predict is not in the vocabulary.
    #[error("token {token} is not in a vocabulary of {vocabulary}")]
    Token {
        /// The token.
        token: i64,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// Bytes that are no block of this kind, or a damaged one.
    #[error("these bytes are not a block of {kind}: {what}")]
    Block {
        /// What was expected.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// More or fewer rows than were announced.
    #[error("{found} rows where {expected} were announced")]
    Rows {
        /// How many came.
        found: u64,
        /// How many were announced.
        expected: u64,
    },
    /// The blocks do not cover the chunks once each.
    #[error("the evaluation has no figures of chunk {missing} of {chunks}, or has some twice")]
    MissingChunk {
        /// The first chunk that is not covered once.
        missing: u64,
        /// All chunks.
        chunks: u64,
    },
    /// Two blocks score different numbers of positions.
    #[error("a block scores {found} positions per chunk, the others {expected}")]
    Positions {
        /// In this block.
        found: u32,
        /// In the blocks before, or asked for.
        expected: u32,
    },
    /// A figure is a NaN or an infinity.
    #[error("{figure} of position {position} in chunk {chunk} is {value}")]
    NonFinite {
        /// Which figure.
        figure: &'static str,
        /// The chunk.
        chunk: u64,
        /// The scored position, counted from 0.
        position: u64,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// Two different files that compute exactly the same.
    #[error("the KL divergence is exactly 0 though the files differ: the reference was compared with itself")]
    Identical,
    /// A comparison of unequal numbers of chunks.
    #[error("{a} chunks cannot be paired with {b}")]
    Pairs {
        /// Chunks of the first.
        a: usize,
        /// Chunks of the second.
        b: usize,
    },
    /// Too few chunks, no resamples, or a confidence that is none.
    #[error("no interval: {what}")]
    Interval {
        /// Why not.
        what: &'static str,
    },
}

/// Returns the positions of a window whose logits are scored, as `llama-perplexity` does: from `context / 2` to
/// `context - 2`. Position `i` predicts token `i + 1`, so every prediction has half a window before it.
pub fn scored_positions(context: usize) -> Result<Range<usize>, FigureError> {
    let range = context / 2..context.saturating_sub(1);
    if range.is_empty() || context < 4 {
        Err(FigureError::Context { context })
    } else {
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_half_of_a_window_is_scored() {
        assert_eq!(scored_positions(512).unwrap(), 256..511);
        assert_eq!(scored_positions(5).unwrap(), 2..4);
        assert_eq!(scored_positions(4).unwrap(), 2..3);
        for context in 0..4 {
            assert_eq!(scored_positions(context), Err(FigureError::Context { context }));
        }
    }
}
