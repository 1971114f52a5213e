//! Figures of single positions, and the blocks they are kept in.
//!
//! A block: `FRGT`, then little-endian u32 version, first chunk, chunks, positions per chunk, 0; then per chunk all `nll`,
//! all `nll_ref`, all `kld`, all `dp` as f32, and one byte `top1_same` per position.

use super::FigureError;
use super::block::HEADER;
use super::block::header;
use super::reference::ReferenceRow;
use super::reference::Softmax;

const MAGIC: [u8; 4] = *b"FRGT";
const VERSION: u32 = 1;
/// Bytes of one position.
const POSITION: u64 = 17;
/// The reference's log-probabilities at or below this do not count, as in `llama-perplexity`.
const LEAST_LOG_PROBABILITY: f32 = -16.0;

/// What one scored position says of the candidate (q) and the reference (p). Logarithms are natural.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenFigures {
    /// -ln q of the true token.
    pub nll: f32,
    /// -ln p of the true token, from the coded row.
    pub nll_ref: f32,
    /// KL divergence of q from p over the vocabulary, in nats. Rounding of the codes can make it slightly negative.
    pub kld: f32,
    /// Probability of the true token under q, minus that under p.
    pub dp: f32,
    /// Both have the same most probable token.
    pub top1_same: bool,
}

/// Returns -ln of the probability that logits give to a token.
pub fn negative_log_likelihood(logits: &[f32], token: i32) -> Result<f64, FigureError> {
    let index = index(token, logits.len())?;
    let softmax = Softmax::of(logits)?;
    Ok(softmax.log_sum - f64::from(logits[index] - softmax.largest))
}

fn index(token: i32, vocabulary: usize) -> Result<usize, FigureError> {
    let index = usize::try_from(token).ok().filter(|index| *index < vocabulary);
    index.ok_or(FigureError::Token {
        token: i64::from(token),
        vocabulary,
    })
}

/// Scores a candidate's logits at one position against the reference's row, given the token that came next.
///
/// Sums run in 64 bits over 32-bit exponentials, as in `llama-perplexity`. If the logits code to exactly the reference's
/// row, all differences are exactly 0.
pub fn score(reference: &ReferenceRow<'_>, logits: &[f32], token: i32) -> Result<TokenFigures, FigureError> {
    let expected = reference.vocabulary();
    if logits.len() != expected {
        return Err(FigureError::Vocabulary {
            found: logits.len(),
            expected,
        });
    }
    let index = index(token, expected)?;
    let softmax = Softmax::of(logits)?;
    let nll_ref = -reference.log_probability(index).unwrap_or_default();
    if reference.is_code_of(logits, &softmax) {
        return Ok(TokenFigures {
            nll: nll_ref,
            nll_ref,
            kld: 0.0,
            dp: 0.0,
            top1_same: true,
        });
    }
    let nll = softmax.log_sum - f64::from(logits[index] - softmax.largest);
    let shift = f64::from(softmax.largest) + softmax.log_sum;
    let (mut kld, mut top, mut top_value) = (0.0_f64, 0, f32::NEG_INFINITY);
    reference.for_each(|at, log_p| {
        if log_p > top_value {
            (top, top_value) = (at, log_p);
        }
        if log_p > LEAST_LOG_PROBABILITY {
            let log_q = f64::from(logits[at]) - shift;
            kld += f64::from(log_p.exp()) * (f64::from(log_p) - log_q);
        }
    });
    // Tokens that share the reference's top code are equally its top.
    let top1_same = top == softmax.top || reference.log_probability(softmax.top) == Some(top_value);
    let dp = (-nll).exp() - f64::from(-nll_ref).exp();
    Ok(TokenFigures {
        nll: nll as f32,
        nll_ref,
        kld: kld as f32,
        dp: dp as f32,
        top1_same,
    })
}

/// The figures of some chunks, all positions of each.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenBlock {
    first_chunk: u32,
    positions: u32,
    figures: Vec<TokenFigures>,
}

/// Means over the positions of one chunk: what intervals and comparisons are made from.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChunkMeans {
    /// Mean negative log-likelihood of the candidate.
    pub nll: f64,
    /// Mean negative log-likelihood of the reference.
    pub nll_ref: f64,
    /// Mean KL divergence.
    pub kld: f64,
    /// Mean square of the difference in probability.
    pub dp2: f64,
    /// Share of positions with the same most probable token.
    pub top1: f64,
}

impl TokenBlock {
    /// Takes the figures of whole chunks from `first_chunk`, with `positions` each, in order.
    pub fn new(first_chunk: u32, positions: u32, figures: Vec<TokenFigures>) -> Result<Self, FigureError> {
        let found = figures.len() as u64;
        let expected = found.checked_next_multiple_of(u64::from(positions)).unwrap_or(0);
        let chunks = found
            .checked_div(u64::from(positions))
            .and_then(|chunks| u32::try_from(chunks).ok());
        if found == 0 || found != expected || chunks.and_then(|chunks| first_chunk.checked_add(chunks)).is_none() {
            return Err(FigureError::Rows { found, expected });
        }
        let block = Self {
            first_chunk,
            positions,
            figures,
        };
        block.check()?;
        Ok(block)
    }

    /// Returns the number of the first chunk.
    pub fn first_chunk(&self) -> u32 {
        self.first_chunk
    }

    /// Returns how many chunks there are.
    pub fn chunks(&self) -> u32 {
        (self.figures.len() / self.positions as usize) as u32
    }

    /// Returns the scored positions of a chunk.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// Returns all figures, chunk after chunk.
    pub fn figures(&self) -> &[TokenFigures] {
        &self.figures
    }

    /// Returns the means of each chunk.
    pub fn means(&self) -> Vec<ChunkMeans> {
        self.figures
            .chunks_exact(self.positions as usize)
            .map(ChunkMeans::of)
            .collect()
    }

    /// Returns the block's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.figures.len() * POSITION as usize);
        bytes.extend(MAGIC);
        for number in [VERSION, self.first_chunk, self.chunks(), self.positions, 0] {
            bytes.extend(number.to_le_bytes());
        }
        for chunk in self.figures.chunks_exact(self.positions as usize) {
            let columns: [fn(&TokenFigures) -> f32; 4] = [|f| f.nll, |f| f.nll_ref, |f| f.kld, |f| f.dp];
            for column in columns {
                bytes.extend(chunk.iter().flat_map(|figures| column(figures).to_le_bytes()));
            }
            bytes.extend(chunk.iter().map(|figures| u8::from(figures.top1_same)));
        }
        bytes
    }

    /// Reads a block; its length must be what its header says, and every figure finite.
    pub fn decode(bytes: &[u8]) -> Result<Self, FigureError> {
        let bad = |what: String| FigureError::Block {
            kind: "token figures",
            what,
        };
        let [version, first_chunk, chunks, positions, reserved] =
            header(MAGIC, bytes).ok_or_else(|| bad("it does not begin with `FRGT` and five numbers".to_owned()))?;
        if version != VERSION || reserved != 0 {
            return Err(bad(format!("version {version}.{reserved}, known is {VERSION}.0")));
        }
        let body = bytes.get(HEADER..).unwrap_or_default();
        let count = u64::from(chunks) * u64::from(positions);
        if count.checked_mul(POSITION) != Some(body.len() as u64) {
            return Err(bad(format!("{} bytes for {count} positions", body.len())));
        }
        let size = positions as usize;
        let mut figures = Vec::with_capacity(count as usize);
        for chunk in body.chunks_exact((size * POSITION as usize).max(1)) {
            let (floats, flags) = chunk.split_at(16 * size);
            let floats = floats.as_chunks::<4>().0;
            let value = |column: usize, at: usize| f32::from_le_bytes(floats[column * size + at]);
            for (at, flag) in flags.iter().enumerate() {
                let top1_same = match flag {
                    0 => false,
                    1 => true,
                    other => return Err(bad(format!("{other} where 0 or 1 is expected"))),
                };
                let (nll, nll_ref, kld, dp) = (value(0, at), value(1, at), value(2, at), value(3, at));
                figures.push(TokenFigures {
                    nll,
                    nll_ref,
                    kld,
                    dp,
                    top1_same,
                });
            }
        }
        Self::new(first_chunk, positions, figures)
    }

    fn check(&self) -> Result<(), FigureError> {
        for (at, figures) in self.figures.iter().enumerate() {
            let TokenFigures {
                nll, nll_ref, kld, dp, ..
            } = *figures;
            for (figure, value) in [("nll", nll), ("nll_ref", nll_ref), ("kld", kld), ("dp", dp)] {
                if !value.is_finite() {
                    let (chunk, position) = (
                        at as u64 / u64::from(self.positions),
                        at as u64 % u64::from(self.positions),
                    );
                    let chunk = chunk + u64::from(self.first_chunk);
                    return Err(FigureError::NonFinite {
                        figure,
                        chunk,
                        position,
                        value: value.to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

impl ChunkMeans {
    fn of(figures: &[TokenFigures]) -> Self {
        let mean = |value: fn(&TokenFigures) -> f64| figures.iter().map(value).sum::<f64>() / figures.len() as f64;
        Self {
            nll: mean(|f| f64::from(f.nll)),
            nll_ref: mean(|f| f64::from(f.nll_ref)),
            kld: mean(|f| f64::from(f.kld)),
            dp2: mean(|f| f64::from(f.dp) * f64::from(f.dp)),
            top1: mean(|f| f64::from(u8::from(f.top1_same))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(logits: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ReferenceRow::encode(logits, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn figures_of_three_tokens_are_those_computed_by_hand() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KLD = 1/2 ln 2 - 1/4 ln 2 = ln 2 / 4.
        let ln = f32::ln;
        let bytes = row(&[ln(0.5), ln(0.25), ln(0.25)]);
        let p = ReferenceRow::decode(&bytes).unwrap();
        let figures = score(&p, &[ln(0.25) + 3.0, ln(0.5) + 3.0, ln(0.25) + 3.0], 1).unwrap();
        assert!((figures.kld - ln(2.0) / 4.0).abs() < 2e-5, "{figures:?}");
        assert!(
            (figures.nll - ln(2.0)).abs() < 1e-6 && (figures.nll_ref - ln(4.0)).abs() < 2e-5,
            "{figures:?}"
        );
        assert!((figures.dp - 0.25).abs() < 1e-5 && !figures.top1_same, "{figures:?}");
        assert!((negative_log_likelihood(&[0.0; 8], 3).unwrap() - 8.0_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn the_reference_against_itself_is_exactly_zero_and_a_tiny_change_is_not() {
        let logits: Vec<f32> = (0..1000_u16).map(|i| (f32::from(i) * 0.7).sin() * 9.0).collect();
        let bytes = row(&logits);
        let reference = ReferenceRow::decode(&bytes).unwrap();
        let same = score(&reference, &logits, 5).unwrap();
        assert_eq!(
            (same.kld, same.dp, same.nll, same.top1_same),
            (0.0, 0.0, same.nll_ref, true)
        );
        let mut other = logits;
        other[17] += 0.01;
        let other = score(&reference, &other, 5).unwrap();
        assert!(other.kld != 0.0 && other.kld.abs() < 1e-3, "{other:?}");
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let bytes = row(&[1.0, 2.0]);
        let reference = ReferenceRow::decode(&bytes).unwrap();
        assert!(matches!(
            score(&reference, &[1.0], 0),
            Err(FigureError::Vocabulary { found: 1, expected: 2 })
        ));
        assert!(matches!(
            score(&reference, &[1.0, 2.0], 2),
            Err(FigureError::Token { token: 2, .. })
        ));
        assert!(matches!(
            score(&reference, &[1.0, 2.0], -1),
            Err(FigureError::Token { token: -1, .. })
        ));
        assert!(matches!(
            score(&reference, &[1.0, f32::NAN], 0),
            Err(FigureError::NonFiniteLogit { token: 1, .. })
        ));
    }

    #[test]
    fn a_block_is_read_back_and_a_damaged_one_is_rejected() {
        let figures: Vec<TokenFigures> = (0..6_u8)
            .map(|i| TokenFigures {
                nll: f32::from(i),
                nll_ref: 2.0,
                kld: 0.5,
                dp: -0.25,
                top1_same: i % 2 == 0,
            })
            .collect();
        let block = TokenBlock::new(3, 2, figures.clone()).unwrap();
        assert_eq!((block.chunks(), block.positions(), block.first_chunk()), (3, 2, 3));
        assert_eq!(block.means()[1].nll, 2.5);
        let bytes = block.encode();
        assert_eq!(TokenBlock::decode(&bytes).unwrap(), block);
        for cut in [0, 23, 24, bytes.len() - 1] {
            assert!(TokenBlock::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        let mut flag = bytes.clone();
        *flag.last_mut().unwrap() = 2;
        assert!(TokenBlock::decode(&flag).is_err());
        let mut infinite = figures.clone();
        infinite[3].kld = f32::INFINITY;
        let error = TokenBlock::new(3, 2, infinite).unwrap_err();
        assert!(
            matches!(
                error,
                FigureError::NonFinite {
                    figure: "kld",
                    chunk: 4,
                    position: 1,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(TokenBlock::new(0, 4, figures.clone()).is_err());
        assert!(TokenBlock::new(0, 0, figures).is_err());
        assert!(TokenBlock::new(0, 4, Vec::new()).is_err());
    }
}
