//! Merging imatrices.
//!
//! Let input i have weight w, and for one matrix sums s and count c. Its *importance* is x = s / c where c > 0; where c
//! is 0 it has none, and takes no part.
//!
//! | mode | importance of the result | count of the result |
//! |---|---|---|
//! | sum | Σ w s / Σ w c: every token weighs the same (times w) | Σ w c, rounded, at least 1 if anything was seen |
//! | mean | Σ w x / Σ w: every input weighs the same (times w), however long | Σ c |
//! | max | max x, column by column | Σ c |
//!
//! The result's sums are importance × count, so its own [`Entry::weights`] are the importances above (to rounding). The
//! counts say how many rows of activations stand behind a matrix; after mean and max they are no longer the divisor of
//! what was summed, so merging such a result again by sum weighs it like a collection of that many rows.
//!
//! With weights of 1, sum is what `llama-imatrix --in-file a --in-file b` computes, added up in 64 bits and rounded once
//! where that adds in 32. A matrix that no input saw stays with sums and count 0.
//!
//! All additions run in the order of the inputs: the same inputs in the same order give the same bytes.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::{Entry, Imatrix};
use crate::vocab::MergeMode;

/// The weight of an input, in millionths. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// The weight 1.
    pub const ONE: Self = Self(1_000_000);

    /// Returns the weight of so many millionths; none for 0, which would be an input that is not one.
    pub const fn from_millionths(millionths: u32) -> Option<Self> {
        if millionths == 0 { None } else { Some(Self(millionths)) }
    }

    /// Returns the millionths.
    pub const fn millionths(self) -> u32 {
        self.0
    }

    fn factor(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// A merged imatrix and what its inputs lacked.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The result.
    pub imatrix: Imatrix,
    /// The weights that some inputs did not have, by name. They are made of the inputs that have them.
    pub partial: Vec<PartialTensor>,
}

/// A weight that some inputs did not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialTensor {
    /// The weight.
    pub name: String,
    /// The inputs without it, by number from 0.
    pub missing_in: Vec<usize>,
}

/// Why inputs do not merge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("there is nothing to merge")]
    NoInputs,
    /// Counts in chunks and counts in tokens.
    #[error(
        "input number {legacy} is a legacy imatrix, whose counts are in chunks of unknown size; to merge it with \
         inputs that count tokens, say how many tokens its chunks had"
    )]
    ChunkSizeUnknown {
        /// The legacy input, from 0.
        legacy: usize,
    },
    /// Statistics of different models.
    #[error(
        "`{name}` has {first_len} columns in input number {first} and {other_len} in input number {other}: they were \
         collected from different models"
    )]
    Length {
        /// The weight.
        name: String,
        /// The first input that has it, from 0.
        first: usize,
        /// Its number of sums.
        first_len: usize,
        /// The other, from 0.
        other: usize,
        /// Its number of sums.
        other_len: usize,
    },
    /// Different numbers of experts.
    #[error(
        "`{name}` has {first_count} counts in input number {first} and {other_count} in input number {other}: they were \
         collected from different models"
    )]
    Counts {
        /// The weight.
        name: String,
        /// The input with the most counts, from 0.
        first: usize,
        /// How many.
        first_count: usize,
        /// The other, from 0.
        other: usize,
        /// How many.
        other_count: usize,
    },
    /// Weights where they mean nothing.
    #[error("inputs of different weights have no maximum; leave the weights out or merge by `mean`")]
    WeightedMax,
    /// A sum that 32 bits do not hold.
    #[error("the merged sums of `{name}` overflow; the inputs or their weights are too large")]
    Overflow {
        /// The weight.
        name: String,
    },
}

impl Imatrix {
    /// Merges imatrices of one model.
    ///
    /// Datasets are joined in order, repeats kept; chunks are added up (in units of the first input's chunk size).
    pub fn merge(inputs: &[(&Self, Weight)], mode: MergeMode) -> Result<Merged, MergeError> {
        let Some((first, weight)) = inputs.first() else {
            return Err(MergeError::NoInputs);
        };
        if mode == MergeMode::Max && inputs.iter().any(|(_, other)| other != weight) {
            return Err(MergeError::WeightedMax);
        }
        let legacy = inputs.iter().position(|(input, _)| input.chunk_size == 0);
        if let Some(legacy) = legacy.filter(|_| inputs.iter().any(|(input, _)| input.chunk_size != 0)) {
            return Err(MergeError::ChunkSizeUnknown { legacy });
        }
        let mut entries = BTreeMap::new();
        let mut partial = Vec::new();
        for name in inputs
            .iter()
            .flat_map(|(input, _)| input.entries.keys())
            .collect::<BTreeSet<_>>()
        {
            let parts: Vec<_> = inputs
                .iter()
                .enumerate()
                .filter_map(|(index, (input, weight))| {
                    Some(Part {
                        index,
                        weight,
                        entry: input.entries.get(name)?,
                    })
                })
                .collect();
            if parts.len() < inputs.len() {
                let missing_in = (0..inputs.len()).filter(|index| parts.iter().all(|part| part.index != *index));
                partial.push(PartialTensor {
                    name: name.clone(),
                    missing_in: missing_in.collect(),
                });
            }
            entries.insert(name.clone(), merge_entry(name, &parts, mode)?);
        }
        let imatrix = Self {
            datasets: inputs
                .iter()
                .flat_map(|(input, _)| input.datasets.iter().cloned())
                .collect(),
            chunk_count: chunk_count(inputs, first.chunk_size),
            chunk_size: first.chunk_size,
            entries,
        };
        Ok(Merged { imatrix, partial })
    }
}

/// What one input has of a weight.
struct Part<'a> {
    index: usize,
    weight: &'a Weight,
    entry: &'a Entry,
}

impl Part<'_> {
    /// The count of a matrix; one count for all stands for each.
    fn count(&self, matrix: usize) -> f64 {
        let counts = &self.entry.counts;
        f64::from(if counts.len() == 1 { counts[0] } else { counts[matrix] })
    }
}

fn merge_entry(name: &str, parts: &[Part<'_>], mode: MergeMode) -> Result<Entry, MergeError> {
    let (columns, matrices) = shape(name, parts)?;
    let mut sums = Vec::with_capacity(columns * matrices);
    let mut counts = Vec::with_capacity(matrices);
    for matrix in 0..matrices {
        // Who saw nothing of a matrix has no say in it.
        let seen: Vec<_> = parts.iter().filter(|part| part.count(matrix) > 0.0).collect();
        let weighted: f64 = seen.iter().map(|part| part.weight.factor() * part.count(matrix)).sum();
        let count = match mode {
            MergeMode::Sum => whole(weighted),
            MergeMode::Mean | MergeMode::Max => seen.iter().map(|part| part.count(matrix)).sum(),
        };
        let weights: f64 = seen.iter().map(|part| part.weight.factor()).sum();
        for column in matrix * columns..(matrix + 1) * columns {
            let sum = |part: &Part<'_>| f64::from(part.entry.sums[column]);
            let importances = seen
                .iter()
                .map(|part| (part.weight.factor(), sum(part) / part.count(matrix)));
            let merged = match mode {
                _ if seen.is_empty() => 0.0,
                MergeMode::Sum => {
                    let total: f64 = seen.iter().map(|part| part.weight.factor() * sum(part)).sum();
                    // Whole counts leave the sums alone, so that plain merging only adds.
                    if count == weighted {
                        total
                    } else {
                        total * (count / weighted)
                    }
                }
                MergeMode::Mean => importances.map(|(weight, x)| weight * x).sum::<f64>() / weights * count,
                MergeMode::Max => importances.map(|(_, x)| x).fold(0.0, f64::max) * count,
            };
            sums.push(merged as f32);
        }
        counts.push(count as f32);
    }
    if sums.iter().chain(&counts).any(|number| !number.is_finite()) {
        return Err(MergeError::Overflow { name: name.to_owned() });
    }
    Ok(Entry { columns, sums, counts })
}

/// Rounds a weighted count, but not down to "nothing seen".
fn whole(count: f64) -> f64 {
    if count > 0.0 { count.round().max(1.0) } else { 0.0 }
}

/// Returns columns and matrices of the result after all inputs agreed on them.
fn shape(name: &str, parts: &[Part<'_>]) -> Result<(usize, usize), MergeError> {
    let length = |part: &Part<'_>| part.entry.sums.len();
    let Some(first) = parts.first() else { return Ok((0, 0)) };
    if let Some(other) = parts.iter().find(|part| length(part) != length(first)) {
        return Err(MergeError::Length {
            name: name.to_owned(),
            first: first.index,
            first_len: length(first),
            other: other.index,
            other_len: length(other),
        });
    }
    let counts = |part: &Part<'_>| part.entry.counts.len();
    // The first of those with the most: what has a count per expert decides, one count is spread over them.
    let most = parts.iter().rev().max_by_key(|part| counts(part)).unwrap_or(first);
    if let Some(other) = parts
        .iter()
        .find(|part| counts(part) != counts(most) && counts(part) != 1)
    {
        return Err(MergeError::Counts {
            name: name.to_owned(),
            first: most.index,
            first_count: counts(most),
            other: other.index,
            other_count: counts(other),
        });
    }
    Ok((most.entry.columns, counts(most)))
}

/// Adds up chunks of possibly different sizes in units of one.
fn chunk_count(inputs: &[(&Imatrix, Weight)], unit: u32) -> u32 {
    let size = |input: &Imatrix| u128::from(input.chunk_size.max(1));
    let tokens: u128 = inputs
        .iter()
        .map(|(input, _)| u128::from(input.chunk_count) * size(input))
        .sum();
    u32::try_from(tokens / u128::from(unit.max(1))).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imatrix::tests::sample;

    const EXPERTS: &str = "blk.0.ffn_up_exps.weight";
    const PLAIN: &str = "blk.0.attn_q.weight";

    fn other() -> Imatrix {
        let mut other = sample();
        other.datasets = vec!["c.txt".to_owned()];
        other.chunk_count = 2;
        other.chunk_size = 1024;
        let experts = other.entries.get_mut(EXPERTS).unwrap();
        *experts = Entry::new(vec![10.0, 10.0, 4.0, 4.0, 0.0, 0.0], vec![10.0, 1.0, 0.0]).unwrap();
        other.entries.remove(PLAIN);
        other
    }

    fn merge(mode: MergeMode, weights: [u32; 2]) -> Merged {
        let weights = weights.map(|weight| Weight::from_millionths(weight).unwrap());
        Imatrix::merge(&[(&sample(), weights[0]), (&other(), weights[1])], mode).unwrap()
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        let ok = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
        assert!(ok, "{found:?} is not {expected:?}");
    }

    #[test]
    fn sum_adds() {
        let Merged { imatrix, partial } = merge(MergeMode::Sum, [1_000_000; 2]);
        let experts = &imatrix.entries[EXPERTS];
        assert_eq!(experts.sums, [13.0, 16.0, 4.5, 4.25, 0.0, 0.0]);
        assert_eq!(experts.counts, [40.0, 8.0, 0.0]);
        assert_eq!(imatrix.entries[PLAIN], sample().entries[PLAIN]);
        assert_eq!(
            partial,
            [PartialTensor {
                name: PLAIN.to_owned(),
                missing_in: vec![1]
            }]
        );
        assert_eq!(imatrix.datasets, ["a.txt", "b.txt", "c.txt"]);
        assert_eq!((imatrix.chunk_count, imatrix.chunk_size), (8, 512));
    }

    #[test]
    fn sum_with_weights_keeps_whole_counts_and_the_right_means() {
        let experts = &merge(MergeMode::Sum, [1_000_000, 250_000]).imatrix.entries[EXPERTS];
        // 30 + 2.5 = 32.5 rounds to 33, 7 + 0.25 to 7.
        assert_eq!(experts.counts, [33.0, 7.0, 0.0]);
        close(
            &experts.weights(),
            &[5.5 / 32.5, 8.5 / 32.5, 1.5 / 7.25, 1.25 / 7.25, 1.0, 1.0],
        );
        let faint = &merge(MergeMode::Sum, [1, 1]).imatrix.entries[EXPERTS];
        assert_eq!(faint.counts, [1.0, 1.0, 0.0], "little is not nothing");
    }

    #[test]
    fn mean_weighs_inputs_and_not_tokens() {
        let experts = &merge(MergeMode::Mean, [3_000_000, 1_000_000]).imatrix.entries[EXPERTS];
        assert_eq!(experts.counts, [40.0, 8.0, 0.0]);
        let first = (3.0 * 0.5 / 7.0 + 4.0) / 4.0;
        let second = (3.0 * 0.25 / 7.0 + 4.0) / 4.0;
        close(
            &experts.weights(),
            &[(0.3 + 1.0) / 4.0, (0.6 + 1.0) / 4.0, first, second, 1.0, 1.0],
        );
    }

    #[test]
    fn max_takes_each_columns_largest() {
        let experts = &merge(MergeMode::Max, [1_000_000; 2]).imatrix.entries[EXPERTS];
        close(&experts.weights(), &[1.0, 1.0, 4.0, 4.0, 1.0, 1.0]);
        let weights = [Weight::ONE, Weight::from_millionths(5).unwrap()];
        let error = Imatrix::merge(&[(&sample(), weights[0]), (&other(), weights[1])], MergeMode::Max);
        assert_eq!(error.unwrap_err(), MergeError::WeightedMax);
    }

    #[test]
    fn merging_one_is_the_identity_and_blocks_add_up_to_the_whole() {
        let one = Imatrix::merge(&[(&sample(), Weight::ONE)], MergeMode::Sum).unwrap();
        assert_eq!(one.imatrix, sample());
        assert!(one.partial.is_empty());
    }

    #[test]
    fn one_count_spreads_over_the_experts_of_the_others() {
        let mut flat = other();
        flat.entries
            .insert(EXPERTS.to_owned(), Entry::new(vec![1.0; 6], vec![10.0]).unwrap());
        for (inputs, name) in [([&flat, &sample()], "flat first"), ([&sample(), &flat], "flat last")] {
            let inputs = inputs.map(|input| (input, Weight::ONE));
            let merged = Imatrix::merge(&inputs, MergeMode::Sum).unwrap().imatrix;
            assert_eq!(merged.entries[EXPERTS].counts, [40.0, 17.0, 10.0], "{name}");
            assert_eq!(merged.entries[EXPERTS].columns, 2, "{name}");
        }
    }

    #[test]
    fn what_does_not_belong_together_is_named() {
        let against = |other: &Imatrix| {
            Imatrix::merge(&[(&sample(), Weight::ONE), (other, Weight::ONE)], MergeMode::Sum).unwrap_err()
        };
        let mut longer = other();
        longer
            .entries
            .insert(EXPERTS.to_owned(), Entry::new(vec![1.0; 9], vec![1.0; 3]).unwrap());
        let error = against(&longer).to_string();
        assert!(
            error.starts_with(&format!("`{EXPERTS}` has 6 columns in input number 0 and 9 in")),
            "{error}"
        );
        let mut fewer = other();
        fewer
            .entries
            .insert(EXPERTS.to_owned(), Entry::new(vec![1.0; 6], vec![1.0; 2]).unwrap());
        assert!(matches!(
            against(&fewer),
            MergeError::Counts {
                first_count: 3,
                other_count: 2,
                ..
            }
        ));
        let mut legacy = other();
        legacy.chunk_size = 0;
        assert_eq!(against(&legacy), MergeError::ChunkSizeUnknown { legacy: 1 });
        let mut huge = sample();
        huge.entries
            .insert(EXPERTS.to_owned(), Entry::new(vec![f32::MAX; 6], vec![1.0; 3]).unwrap());
        let error = Imatrix::merge(&[(&huge, Weight::ONE), (&huge, Weight::ONE)], MergeMode::Sum).unwrap_err();
        assert_eq!(
            error,
            MergeError::Overflow {
                name: EXPERTS.to_owned()
            }
        );
        assert_eq!(Imatrix::merge(&[], MergeMode::Sum).unwrap_err(), MergeError::NoInputs);
    }
}
