//! What the mean over some chunks says of the mean over others.

use statrs::distribution::ContinuousCDF;
use statrs::distribution::StudentsT;

use super::bootstrap::Interval;

/// The probability that the mean to come lies in the interval.
const CONFIDENCE: f64 = 0.95;

/// Returns the mean of `chunks` chunks' figures, whose standard deviation is `deviation`, with the interval in which the mean of
/// `to_come` other chunks of such text lies with a probability of 95 %: `mean ± t * deviation * sqrt(1 / chunks + 1 / to_come)`,
/// `t` of Student's distribution with `chunks - 1` degrees of freedom (Hahn and Meeker, Statistical Intervals, 1991, section
/// 4.7). None for fewer than two chunks, none to come, or figures that are no finite numbers. A divergence is not negative, and so
/// is no end of the interval.
pub fn prediction(mean: f64, deviation: f64, chunks: u32, to_come: usize) -> Option<Interval> {
    if chunks < 2 || to_come == 0 || !mean.is_finite() || !deviation.is_finite() || deviation < 0.0 {
        return None;
    }
    let student = StudentsT::new(0.0, 1.0, f64::from(chunks - 1)).ok()?;
    let t = student.inverse_cdf(f64::midpoint(1.0, CONFIDENCE));
    let reach = t * deviation * (1.0 / f64::from(chunks) + 1.0 / to_come as f64).sqrt();
    Some(Interval {
        value: mean,
        low: (mean - reach).max(0.0),
        high: mean + reach,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_students() {
        // t of 15 degrees of freedom at 97.5 %: 2.131450 (any table).
        let found = prediction(1.0, 0.4, 16, 16).unwrap();
        assert!(
            (found.high - 1.0 - 2.131_449_5 * 0.4 / 8.0_f64.sqrt()).abs() < 1e-6,
            "{found:?}"
        );
        assert!((found.high + found.low - 2.0).abs() < 1e-12);
        assert_eq!(prediction(0.1, 0.4, 2, 1).unwrap().low, 0.0);
        assert!(prediction(1.0, 0.4, 1, 16).is_none());
        assert!(prediction(1.0, f64::NAN, 16, 16).is_none());
    }
}
