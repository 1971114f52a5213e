//! Importance matrices: reading, writing, merging.
//!
//! An imatrix holds, for every weight matrix and every one of its input columns, the sum of the squared activations that
//! went through the column, and how many rows of activations that were. The quantizer takes sum / count as the weight of
//! an error in that column.
//!
//! Two formats: GGUF ([`Imatrix::parse_gguf`]) with raw sums and counts, per expert where a layer is routed, and the
//! legacy `.dat` ([`Imatrix::parse_dat`]) with means multiplied by a number of chunks. Facts of both: llama.cpp's
//! `tools/imatrix/imatrix.cpp` and `common/imatrix-loader.cpp`.

mod dat;
mod gguf_form;
mod merge;

use std::collections::BTreeMap;

pub use dat::DatError;
pub use gguf_form::GgufFormError;
pub use merge::{MergeError, Merged, PartialTensor, Weight};

use crate::gguf::MAGIC;

/// An importance matrix: what calibration saw of every weight's inputs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Imatrix {
    /// The names of the calibration texts, in the order they were added; repeats are kept, as llama.cpp keeps them.
    pub datasets: Vec<String>,
    /// How many chunks went through the model.
    pub chunk_count: u32,
    /// Tokens per chunk; 0 if unknown, which is so for legacy files: their counts are in chunks and not in tokens.
    pub chunk_size: u32,
    /// The weights by name.
    pub entries: BTreeMap<String, Entry>,
}

/// The statistics of one weight.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Entry {
    /// How many sums one count stands for. It is the weight's row length for routed experts (a count each) and for
    /// plain matrices; where one count stands for many matrices (legacy files, dense 3-D weights) it is a multiple.
    pub columns: usize,
    /// Sums of squared activations, count by count: `columns * counts.len()` of them.
    pub sums: Vec<f32>,
    /// How many rows of activations each run of `columns` sums saw: whole numbers, exact up to 2^24.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Joins sums and counts. None if the sums do not divide evenly among the counts, or there are no sums.
    pub fn new(sums: Vec<f32>, counts: Vec<f32>) -> Option<Self> {
        let columns = sums.len().checked_div(counts.len())?;
        let whole = columns > 0 && columns * counts.len() == sums.len();
        whole.then_some(Self { columns, sums, counts })
    }

    /// Returns how many counts there are: experts, or 1.
    pub fn matrices(&self) -> usize {
        self.counts.len()
    }

    /// Returns the numbers that the quantizer gets: sum / count, and 1 wherever the count is 0. In 32-bit arithmetic,
    /// so that they are llama-quantize's own to the bit.
    pub fn weights(&self) -> Vec<f32> {
        self.matrices_iter()
            .flat_map(|(sums, count)| sums.iter().map(move |sum| importance(*sum, count)))
            .collect()
    }

    /// Returns each run of sums with its count.
    pub(crate) fn matrices_iter(&self) -> impl Iterator<Item = (&[f32], f32)> {
        self.sums
            .chunks_exact(self.columns.max(1))
            .zip(self.counts.iter().copied())
    }
}

/// Returns one weight of the quantizer.
fn importance(sum: f32, count: f32) -> f32 {
    if count > 0.0 { sum / count } else { 1.0 }
}

/// What is wrong with an imatrix file.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ImatrixError {
    /// A GGUF that is no imatrix, or a broken one.
    #[error(transparent)]
    Gguf(#[from] GgufFormError),
    /// Neither form, or a broken legacy file.
    #[error(transparent)]
    Dat(#[from] DatError),
    /// A number that no statistics give.
    #[error(
        "entry `{entry}`: {what} number {index} is {value}, which is not a finite number of at least 0; collect it again"
    )]
    BadValue {
        /// The weight.
        entry: String,
        /// `sum` or `count`.
        what: &'static str,
        /// Which, from 0.
        index: usize,
        /// The number.
        value: f32,
    },
    /// No weight has any importance.
    #[error("all {entries} entries of the imatrix are zeros; collect it again, and check the model and the text")]
    Zeros {
        /// How many entries there are.
        entries: usize,
    },
    /// Statistics that do not belong together.
    #[error("entry `{entry}` has {sums} sums for {counts} counts, which do not divide evenly")]
    Shape {
        /// The weight.
        entry: String,
        /// How many sums.
        sums: usize,
        /// How many counts.
        counts: usize,
    },
}

/// The system gives no memory for numbers of an imatrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not enough memory for {bytes} bytes of the imatrix")]
pub struct NoMemory {
    /// How many bytes the file has for them.
    pub bytes: u64,
}

impl ImatrixError {
    /// Returns whether the machine is at fault, and not the file.
    pub fn is_no_memory(&self) -> bool {
        matches!(
            self,
            Self::Gguf(GgufFormError::Memory(_)) | Self::Dat(DatError::Memory(_))
        )
    }
}

impl Imatrix {
    /// Reads either form: GGUF by its magic, else the legacy form (which has none).
    pub fn parse(bytes: &[u8]) -> Result<Self, ImatrixError> {
        if bytes.starts_with(&MAGIC) {
            Self::parse_gguf(bytes)
        } else {
            Self::parse_dat(bytes)
        }
    }

    /// Returns the same statistics with counts in tokens, given how many a chunk had. For a legacy file, whose counts
    /// are in chunks: sums and counts are multiplied, as llama-imatrix does on reading one. Others come back unchanged.
    pub fn with_chunk_size(mut self, chunk_size: u32) -> Self {
        if self.chunk_size != 0 || chunk_size == 0 {
            return self;
        }
        self.chunk_size = chunk_size;
        for entry in self.entries.values_mut() {
            let numbers = entry.sums.iter_mut().chain(&mut entry.counts);
            numbers.for_each(|number| *number *= chunk_size as f32);
        }
        self
    }

    /// Checks every number and shape.
    fn check(&self) -> Result<(), ImatrixError> {
        for (name, entry) in &self.entries {
            if entry.columns == 0 || entry.columns.checked_mul(entry.counts.len()) != Some(entry.sums.len()) {
                let (sums, counts) = (entry.sums.len(), entry.counts.len());
                return Err(ImatrixError::Shape {
                    entry: name.clone(),
                    sums,
                    counts,
                });
            }
            for (what, numbers) in [("sum", &entry.sums), ("count", &entry.counts)] {
                let bad = numbers
                    .iter()
                    .enumerate()
                    .find(|(_, value)| !value.is_finite() || **value < 0.0);
                if let Some((index, value)) = bad {
                    return Err(ImatrixError::BadValue {
                        entry: name.clone(),
                        what,
                        index,
                        value: *value,
                    });
                }
            }
        }
        let has_value = |entry: &Entry| entry.sums.iter().any(|sum| *sum > 0.0);
        if !self.entries.is_empty() && !self.entries.values().any(has_value) {
            return Err(ImatrixError::Zeros {
                entries: self.entries.len(),
            });
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, ImatrixError> {
        self.check().map(|()| self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain matrix of four columns, and three experts of two columns of which the last saw nothing.
    pub(super) fn sample() -> Imatrix {
        let plain = Entry::new(vec![20.0, 0.0, 0.3, 1e-3], vec![2000.0]).unwrap();
        let experts = Entry::new(vec![3.0, 6.0, 0.5, 0.25, 0.0, 0.0], vec![30.0, 7.0, 0.0]).unwrap();
        Imatrix {
            datasets: vec!["a.txt".to_owned(), "b.txt".to_owned()],
            chunk_count: 4,
            chunk_size: 512,
            entries: BTreeMap::from([
                ("blk.0.ffn_up_exps.weight".to_owned(), experts),
                ("blk.0.attn_q.weight".to_owned(), plain),
            ]),
        }
    }

    #[test]
    fn weights_are_means_and_ones_where_nothing_was_seen() {
        let sample = sample();
        let plain = sample.entries["blk.0.attn_q.weight"].weights();
        assert_eq!(plain, [20.0 / 2000.0, 0.0, 0.3f32 / 2000.0, 1e-3f32 / 2000.0]);
        let experts = sample.entries["blk.0.ffn_up_exps.weight"].weights();
        assert_eq!(experts, [0.1, 0.2, 0.5f32 / 7.0, 0.25f32 / 7.0, 1.0, 1.0]);
    }

    #[test]
    fn sums_must_divide_evenly() {
        assert!(Entry::new(vec![1.0; 3], vec![1.0; 2]).is_none());
        assert!(Entry::new(vec![1.0; 3], vec![]).is_none());
        assert!(Entry::new(vec![], vec![1.0]).is_none());
        assert_eq!(Entry::new(vec![1.0; 6], vec![1.0; 2]).unwrap().columns, 3);
    }
}
