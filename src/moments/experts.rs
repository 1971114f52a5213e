//! Second moments of experts with few tokens.
//!
//! A mixture routes few tokens to each expert, fewer than a dependable second-moment matrix needs. Each expert's moments are drawn towards
//! the correlations of all of the layer's: H = (n H_e + k D C D) / (n + k), with n the expert's tokens, D the square roots of its own mean squares
//! and C the correlations of all tokens. This is linear shrinkage (Ledoit and Wolf 2004) with a fixed number k of tokens that the target counts for.

use super::MomentsFile;
use super::SecondMoments;
use super::start_of;

/// For how many tokens the target counts, for each column.
const TOKENS_PER_COLUMN: f64 = 0.5;

/// The second moments of all experts together.
#[derive(Debug)]
pub struct Experts {
    columns: usize,
    /// The mean squares of all tokens, by column.
    means: Vec<f64>,
    /// The correlations of all tokens: the upper triangle, row by row.
    correlations: Vec<f32>,
}

impl Experts {
    /// Adds up the experts of a file.
    pub fn of(file: &MomentsFile<'_>) -> Self {
        let columns = file.columns();
        let mut sums: Vec<f64> = Vec::new();
        for expert in (0..file.matrices()).filter_map(|at| file.matrix(at)) {
            if sums.is_empty() {
                sums = vec![0.0; expert.sums().len()];
            }
            for (sum, more) in sums.iter_mut().zip(expert.sums()) {
                *sum += f64::from(*more);
            }
        }
        let rows = file.rows().iter().sum::<u64>().max(1) as f64;
        let diagonal: Vec<f64> = (0..columns)
            .map(|row| sums.get(start_of(row, columns)).copied().unwrap_or(0.0))
            .collect();
        let correlations = pairs(columns).zip(&sums).map(|((i, j), sum)| {
            let scale = (diagonal[i] * diagonal[j]).sqrt();
            if scale > 0.0 { (sum / scale) as f32 } else { 0.0 }
        });
        Self {
            columns,
            correlations: correlations.collect(),
            means: diagonal.into_iter().map(|sum| sum / rows).collect(),
        }
    }

    /// Returns an expert's second moments, drawn towards the correlations of all. One without any token has those of all.
    pub fn shrunk(&self, expert: &SecondMoments) -> SecondMoments {
        let rows = expert.rows();
        let tokens = (TOKENS_PER_COLUMN * self.columns as f64).ceil().max(1.0);
        let roots: Vec<f64> = if rows == 0 {
            self.means.iter().map(|mean| mean.sqrt()).collect()
        } else {
            let mean = |sum: f32| (f64::from(sum) / rows as f64).max(0.0).sqrt();
            expert.diagonal().map(mean).collect()
        };
        let target = pairs(self.columns).zip(&self.correlations);
        let target = target.map(|((i, j), correlation)| tokens * roots[i] * roots[j] * f64::from(*correlation));
        let own = expert.sums().iter().map(|sum| f64::from(*sum));
        let sums = own.zip(target).map(|(own, target)| (own + target) as f32).collect();
        SecondMoments {
            columns: self.columns,
            rows: rows + tokens as u64,
            sums,
        }
    }
}

/// Returns the pairs of columns in the order of the sums.
fn pairs(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..columns).flat_map(move |row| (row..columns).map(move |column| (row, column)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::Header;

    fn file(rows: &[u64], sums: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header {
            columns: 2,
            rows: rows.to_vec(),
        };
        header.write(&mut bytes).unwrap();
        bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes
    }

    #[test]
    fn experts_are_drawn_towards_the_correlations_of_all() {
        // Two experts with opposite correlations, and one without tokens.
        let bytes = file(&[4, 2, 0], &[8.0, 4.0, 8.0, 4.0, -2.0, 1.0, 0.0, 0.0, 0.0]);
        let file = MomentsFile::parse(&bytes).unwrap();
        let experts = Experts::of(&file);
        let correlation = 2.0 / (12.0_f32 * 9.0).sqrt();
        assert!((experts.correlations[1] - correlation).abs() < 1e-6);
        let first = experts.shrunk(&file.matrix(0).unwrap());
        assert_eq!(first.rows(), 5);
        // The diagonal keeps its mean, the other entry moves towards the common correlation.
        for (found, expected) in first.sums().iter().zip([10.0, 4.0 + 2.0 * correlation, 10.0]) {
            assert!((found - expected).abs() < 1e-5, "{first:?}");
        }
        let empty = experts.shrunk(&file.matrix(2).unwrap());
        assert_eq!(empty.rows(), 1);
        for (found, expected) in empty.sums().iter().zip([2.0, 2.0 / 6.0, 1.5]) {
            assert!((found - expected).abs() < 1e-5, "{empty:?}");
        }
    }

    #[test]
    fn a_column_without_input_stays_so() {
        let bytes = file(&[3, 3], &[3.0, 0.0, 0.0, 6.0, 0.0, 0.0]);
        let file = MomentsFile::parse(&bytes).unwrap();
        let experts = Experts::of(&file);
        let shrunk = experts.shrunk(&file.matrix(1).unwrap());
        assert_eq!(shrunk.sums()[1..], [0.0, 0.0]);
    }
}
