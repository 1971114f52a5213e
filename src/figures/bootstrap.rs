//! The bootstrap over chunks: how far a figure may be off because the text was no longer.
//!
//! Chunks are drawn with replacement, the figure is computed of each draw, and the interval lies between the quantiles of
//! these (the percentile method of Efron and Tibshirani, *An Introduction to the Bootstrap*, chapter 13). The generator is
//! SplitMix64 (Steele, Lea and Flood 2014) from a fixed seed: equal inputs give equal intervals on every machine.

use super::FigureError;

/// A figure with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The figure of all chunks.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// How to resample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resampling {
    /// Draws; at least 1.
    pub resamples: u32,
    /// Start of the generator.
    pub seed: u64,
    /// Share of draws inside the interval, between 0 and 1.
    pub confidence: f64,
}

impl Default for Resampling {
    /// 95 % intervals of 2,000 draws.
    fn default() -> Self {
        Self {
            resamples: 2000,
            seed: 0x666f_7267,
            confidence: 0.95,
        }
    }
}

/// SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`, uniform up to 2^-40 for bounds that chunks have.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

impl Resampling {
    /// Returns the interval of each of `N` figures, which `figures` computes from the means of `M` columns over a draw.
    pub(super) fn intervals<const M: usize, const N: usize>(
        &self,
        chunks: &[[f64; M]],
        figures: impl Fn(&[f64; M]) -> [f64; N],
    ) -> Result<[Interval; N], FigureError> {
        let bad = |what| Err(FigureError::Interval { what });
        if chunks.len() < 2 {
            return bad("it takes at least 2 chunks");
        }
        if self.resamples == 0 {
            return bad("it takes at least 1 resample");
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return bad("the confidence lies between 0 and 1");
        }
        let count = chunks.len() as f64;
        let mean = |sum: [f64; M]| sum.map(|sum| sum / count);
        let add = |mut sum: [f64; M], chunk: &[f64; M]| {
            sum.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
            sum
        };
        let values = figures(&mean(chunks.iter().fold([0.0; M], add)));
        let mut random = Random::new(self.seed);
        let mut draws = vec![Vec::with_capacity(self.resamples as usize); N];
        for _ in 0..self.resamples {
            let mut sum = [0.0; M];
            for _ in 0..chunks.len() {
                sum = add(sum, &chunks[random.below(chunks.len() as u64) as usize]);
            }
            for (draws, figure) in draws.iter_mut().zip(figures(&mean(sum))) {
                draws.push(figure);
            }
        }
        let tail = (1.0 - self.confidence) / 2.0;
        let mut intervals = [Interval {
            value: 0.0,
            low: 0.0,
            high: 0.0,
        }; N];
        for ((interval, draws), value) in intervals.iter_mut().zip(&mut draws).zip(values) {
            draws.sort_by(f64::total_cmp);
            *interval = Interval {
                value,
                low: quantile(draws, tail),
                high: quantile(draws, 1.0 - tail),
            };
        }
        Ok(intervals)
    }
}

/// Returns a quantile of sorted values, linearly interpolated (as `llama-perplexity` does); 0 of none.
pub(super) fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let at = fraction.clamp(0.0, 1.0) * last as f64;
    let (below, part) = (at.floor() as usize, at.fract());
    (1.0 - part) * sorted[below] + part * sorted[(below + 1).min(last)]
}

/// Returns the mean of `a - b` over chunks with its interval. Both were measured on the same chunks, so the effect
/// of a chunk on both cancels out, and far smaller differences are significant than with two separate intervals.
pub fn paired_difference(a: &[f64], b: &[f64], resampling: &Resampling) -> Result<Interval, FigureError> {
    if a.len() != b.len() {
        return Err(FigureError::Pairs { a: a.len(), b: b.len() });
    }
    if let Some(chunk) = a.iter().zip(b).position(|(a, b)| !(a - b).is_finite()) {
        let value = (a[chunk] - b[chunk]).to_string();
        return Err(FigureError::NonFinite {
            figure: "the difference",
            chunk: chunk as u64,
            position: 0,
            value,
        });
    }
    let differences: Vec<[f64; 1]> = a.iter().zip(b).map(|(a, b)| [a - b]).collect();
    resampling
        .intervals(&differences, |mean| *mean)
        .map(|[interval]| interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The reference implementation's first numbers from seed 1234567.
        let mut random = Random::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423_u64,
        ];
        assert_eq!([random.next(), random.next(), random.next()], expected);
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[random.below(3) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
    }

    #[test]
    fn an_interval_of_a_mean_has_the_width_of_theory() {
        let mut random = Random::new(1);
        let chunks: Vec<[f64; 1]> = (0..400).map(|_| [random.below(1_000_001) as f64 / 1e6]).collect();
        let [interval] = Resampling::default().intervals(&chunks, |mean| *mean).unwrap();
        // A uniform number has a standard deviation of 1/sqrt(12); the mean of 400 has a twentieth of it.
        let expected = 2.0 * 1.96 / 12.0_f64.sqrt() / 20.0;
        let width = interval.high - interval.low;
        assert!((width / expected - 1.0).abs() < 0.1, "{width} {expected}");
        assert!(interval.low < interval.value && interval.value < interval.high);
        assert_eq!(
            [interval],
            Resampling::default().intervals(&chunks, |mean| *mean).unwrap()
        );
        let other = Resampling {
            seed: 2,
            ..Resampling::default()
        };
        assert_ne!([interval], other.intervals(&chunks, |mean| *mean).unwrap());
    }

    #[test]
    fn paired_intervals_show_differences_that_single_ones_do_not() {
        let mut random = Random::new(3);
        let b: Vec<f64> = (0..50).map(|_| random.below(1000) as f64).collect();
        let a: Vec<f64> = b.iter().map(|b| b + 1.0 + random.below(1000) as f64 / 1e3).collect();
        let interval = paired_difference(&a, &b, &Resampling::default()).unwrap();
        assert!(interval.low > 1.0 && interval.high < 2.0, "{interval:?}");
        assert_eq!(
            paired_difference(&a, &b[1..], &Resampling::default()),
            Err(FigureError::Pairs { a: 50, b: 49 })
        );
        assert!(paired_difference(&a[..1], &b[..1], &Resampling::default()).is_err());
        assert!(paired_difference(&[1.0, f64::NAN], &[1.0, 1.0], &Resampling::default()).is_err());
        for bad in [0.0, 1.0, f64::NAN] {
            let resampling = Resampling {
                confidence: bad,
                ..Resampling::default()
            };
            assert!(paired_difference(&a, &b, &resampling).is_err(), "{bad}");
        }
    }

    #[test]
    fn quantiles_are_linear_between_values() {
        let values = [1.0, 2.0, 4.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|f| quantile(&values, f)),
            [1.0, 1.5, 2.0, 3.0, 4.0]
        );
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
