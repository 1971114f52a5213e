//! From blocks of token figures to the figures of an evaluation.

use super::FigureError;
use super::bootstrap::Interval;
use super::bootstrap::Resampling;
use super::bootstrap::quantile;
use super::tokens::ChunkMeans;
use super::tokens::TokenBlock;

/// What a whole evaluation must consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Chunks, numbered from 0.
    pub chunks: u32,
    /// Scored positions of a chunk.
    pub positions: u32,
    /// The candidate's file is the reference's: only then may every KLD be exactly 0.
    pub same_file: bool,
}

/// The figures of one candidate against one reference on one text. Divergences are in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Figures {
    /// Scored positions in all.
    pub tokens: u64,
    /// Chunks.
    pub chunks: u32,
    /// Perplexity of the candidate.
    pub ppl: Interval,
    /// Perplexity of the reference, from its coded rows.
    pub ppl_ref: Interval,
    /// ln(PPL / PPL of the reference), paired over chunks.
    pub ln_ppl_ratio: Interval,
    /// Mean KL divergence.
    pub kld_mean: Interval,
    /// Share of positions with the same most probable token.
    pub top1_agreement: Interval,
    /// Root mean square difference of the true token's probability.
    pub rms_dp: Interval,
    /// Median KL divergence of a position.
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
}

/// Holds blocks against what an evaluation must consist of and returns them in order of chunks.
fn ordered<'a>(blocks: &'a [TokenBlock], expected: &Expected) -> Result<Vec<&'a TokenBlock>, FigureError> {
    let mut ordered: Vec<&TokenBlock> = blocks.iter().collect();
    ordered.sort_by_key(|block| block.first_chunk());
    let chunks = u64::from(expected.chunks);
    let mut next = 0;
    for block in &ordered {
        if block.positions() != expected.positions {
            return Err(FigureError::Positions {
                found: block.positions(),
                expected: expected.positions,
            });
        }
        if u64::from(block.first_chunk()) != next {
            return Err(FigureError::MissingChunk {
                missing: next.min(u64::from(block.first_chunk())),
                chunks,
            });
        }
        next += u64::from(block.chunks());
    }
    if next == chunks && chunks > 0 {
        Ok(ordered)
    } else {
        Err(FigureError::MissingChunk {
            missing: next.min(chunks),
            chunks,
        })
    }
}

/// Returns the means of every chunk in order, for [`super::paired_difference`]; an error if any is missing or twice.
pub fn chunk_means(blocks: &[TokenBlock], expected: &Expected) -> Result<Vec<ChunkMeans>, FigureError> {
    Ok(ordered(blocks, expected)?
        .into_iter()
        .flat_map(TokenBlock::means)
        .collect())
}

/// Returns the figures of a whole evaluation: all chunks once each, in any order of blocks.
///
/// Intervals are those of `resampling` over chunks, so it takes at least two. Keeps one f64 per position in memory for the
/// percentiles.
pub fn summarize(blocks: &[TokenBlock], expected: &Expected, resampling: &Resampling) -> Result<Figures, FigureError> {
    let means = chunk_means(blocks, expected)?;
    let mut klds: Vec<f64> = blocks
        .iter()
        .flat_map(|block| block.figures().iter().map(|figures| f64::from(figures.kld)))
        .collect();
    if !expected.same_file && klds.iter().all(|kld| *kld == 0.0) {
        return Err(FigureError::Identical);
    }
    klds.sort_by(f64::total_cmp);
    let columns: Vec<[f64; 5]> = means.iter().map(|m| [m.nll, m.nll_ref, m.kld, m.dp2, m.top1]).collect();
    let [ppl, ppl_ref, ln_ppl_ratio, kld_mean, rms_dp, top1_agreement] = resampling
        .intervals(&columns, |[nll, nll_ref, kld, dp2, top1]| {
            [nll.exp(), nll_ref.exp(), nll - nll_ref, *kld, dp2.sqrt(), *top1]
        })?;
    let figures = Figures {
        tokens: klds.len() as u64,
        chunks: expected.chunks,
        ppl,
        ppl_ref,
        ln_ppl_ratio,
        kld_mean,
        top1_agreement,
        rms_dp,
        kld_median: quantile(&klds, 0.5),
        kld_p90: quantile(&klds, 0.9),
        kld_p95: quantile(&klds, 0.95),
        kld_p99: quantile(&klds, 0.99),
        kld_p999: quantile(&klds, 0.999),
        kld_max: quantile(&klds, 1.0),
    };
    for (figure, interval) in [
        ("ppl", ppl),
        ("ppl_ref", ppl_ref),
        ("ln_ppl_ratio", ln_ppl_ratio),
        ("kld_mean", kld_mean),
    ] {
        for value in [interval.value, interval.low, interval.high] {
            if !value.is_finite() {
                return Err(FigureError::NonFinite {
                    figure,
                    chunk: 0,
                    position: 0,
                    value: value.to_string(),
                });
            }
        }
    }
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::super::tokens::TokenFigures;
    use super::*;

    fn block(first: u32, chunks: u32, kld: f32) -> TokenBlock {
        let figures = (0..chunks * 4)
            .map(|i| TokenFigures {
                nll: 2.0 + (i % 4) as f32,
                nll_ref: 1.0 + (i % 4) as f32,
                kld: kld * (first * 4 + i) as f32,
                dp: -0.5,
                top1_same: i % 4 != 0,
            })
            .collect();
        TokenBlock::new(first, 4, figures).unwrap()
    }

    const EXPECTED: Expected = Expected {
        chunks: 5,
        positions: 4,
        same_file: false,
    };

    #[test]
    fn figures_do_not_depend_on_blocks_and_their_order() {
        let figures = summarize(&[block(0, 5, 0.01)], &EXPECTED, &Resampling::default()).unwrap();
        let cut = [block(2, 3, 0.01), block(0, 2, 0.01)];
        assert_eq!(figures, summarize(&cut, &EXPECTED, &Resampling::default()).unwrap());
        assert!((figures.ppl.value - 3.5_f64.exp()).abs() < 1e-9);
        assert!((figures.ln_ppl_ratio.value - 1.0).abs() < 1e-12 && (figures.rms_dp.value - 0.5).abs() < 1e-12);
        assert_eq!(
            (figures.top1_agreement.value, figures.tokens, figures.chunks),
            (0.75, 20, 5)
        );
        assert!((figures.kld_median - 0.095).abs() < 1e-6 && (figures.kld_max - 0.19).abs() < 1e-6);
        assert!((figures.kld_mean.value - 0.095).abs() < 1e-6);
        assert!(figures.kld_mean.low < 0.095 && figures.kld_mean.high > 0.095);
        assert_eq!(chunk_means(&cut, &EXPECTED).unwrap().len(), 5);
    }

    #[test]
    fn holes_doubles_and_other_windows_are_refused() {
        let missing = |blocks: &[TokenBlock]| match summarize(blocks, &EXPECTED, &Resampling::default()) {
            Err(FigureError::MissingChunk { missing, chunks: 5 }) => missing,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(&[]), 0);
        assert_eq!(missing(&[block(0, 2, 1.0)]), 2);
        assert_eq!(missing(&[block(0, 2, 1.0), block(3, 2, 1.0)]), 2);
        assert_eq!(missing(&[block(0, 3, 1.0), block(2, 3, 1.0)]), 2);
        assert_eq!(missing(&[block(0, 6, 1.0)]), 5);
        let other = Expected {
            positions: 3,
            ..EXPECTED
        };
        let found = summarize(&[block(0, 5, 1.0)], &other, &Resampling::default());
        assert_eq!(found, Err(FigureError::Positions { found: 4, expected: 3 }));
    }

    #[test]
    fn exactly_nothing_between_different_files_is_a_mistake() {
        let blocks = [block(0, 5, 0.0)];
        assert_eq!(
            summarize(&blocks, &EXPECTED, &Resampling::default()),
            Err(FigureError::Identical)
        );
        let same = Expected {
            same_file: true,
            ..EXPECTED
        };
        assert_eq!(
            summarize(&blocks, &same, &Resampling::default())
                .unwrap()
                .kld_mean
                .value,
            0.0
        );
    }

    #[test]
    fn one_chunk_gives_no_interval() {
        let one = Expected { chunks: 1, ..EXPECTED };
        let found = summarize(&[block(0, 1, 1.0)], &one, &Resampling::default());
        assert!(matches!(found, Err(FigureError::Interval { .. })), "{found:?}");
    }
}
