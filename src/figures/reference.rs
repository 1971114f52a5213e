//! The reference's log-probabilities, compactly: 16 bits a token of the vocabulary, with a scale and a least value per row.
//!
//! The code is that of `llama-perplexity`'s base files: codes span from the largest logit down to the smallest, or to 16
//! below the largest if that is nearer, in 65,535 steps.
//!
//! What that costs. A code is rounded by half a step at most, so a log-probability down to 16 below the largest is off by
//! at most `8 / 65535` = 1.22e-4 (and on average by nothing); summed with weights that are the probabilities themselves,
//! the KLD of a position is off by at most about `1.22e-4 * (1 + mean |ln p - ln q|)`. Tokens that lie deeper are held at
//! 16 below the largest, where each counts for at most e^-16 = 1.1e-7 times the largest probability; those below e^-16
//! altogether are skipped. Measured: the KLD of a model against its own coded rows is below 5e-5 at every position.
//!
//! A block: `FRGR`, then little-endian u32 version, vocabulary, first chunk, chunks, positions per chunk; then
//! `chunks * positions` rows of f32 scale, f32 least log-probability, u16 codes.

use std::io;
use std::io::Write;

use super::FigureError;
use super::block::HEADER;
use super::block::header;

const MAGIC: [u8; 4] = *b"FRGR";
const VERSION: u32 = 1;
/// Logits this far below the largest and deeper share one code.
const DEPTH: f32 = 16.0;
const STEPS: f32 = 65_535.0;

/// Returns the bytes of one row.
pub fn row_bytes(vocabulary: u64) -> Option<u64> {
    vocabulary.checked_mul(2)?.checked_add(8)
}

/// Returns the bytes of the reference's rows of `positions` positions: what an evaluation will need on disk.
pub fn size_of_reference(vocabulary: u64, positions: u64) -> u64 {
    let rows = row_bytes(vocabulary).and_then(|row| row.checked_mul(positions));
    rows.and_then(|rows| rows.checked_add(HEADER as u64))
        .unwrap_or(u64::MAX)
}

/// A row's parameters, computed from logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Softmax {
    /// The largest logit.
    pub(super) largest: f32,
    /// The first token with it.
    pub(super) top: usize,
    /// The smallest logit.
    pub(super) smallest: f32,
    /// ln of the sum of e^(logit - largest).
    pub(super) log_sum: f64,
}

impl Softmax {
    /// Looks at all logits once for the extremes and once for the sum.
    pub(super) fn of(logits: &[f32]) -> Result<Self, FigureError> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(FigureError::NonFiniteLogit {
                token,
                value: logits[token].to_string(),
            });
        }
        let Some(first) = logits.first() else {
            return Err(FigureError::Vocabulary { found: 0, expected: 1 });
        };
        let (mut largest, mut smallest, mut top) = (*first, *first, 0);
        for (token, logit) in logits.iter().enumerate() {
            if *logit > largest {
                (largest, top) = (*logit, token);
            }
            smallest = smallest.min(*logit);
        }
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - largest).exp())).sum();
        Ok(Self {
            largest,
            top,
            smallest,
            log_sum: sum.ln(),
        })
    }

    /// Returns the scale and the least log-probability of the coded row.
    fn code(&self) -> (f32, f32) {
        let floor = self.floor();
        (
            (self.largest - floor) / STEPS,
            floor - self.largest - self.log_sum as f32,
        )
    }

    fn floor(&self) -> f32 {
        self.smallest.max(self.largest - DEPTH)
    }
}

/// Returns the code of a logit.
fn code(logit: f32, floor: f32, inverse: f32) -> u16 {
    if logit > floor {
        (inverse * (logit - floor)).round_ties_even() as u16
    } else {
        0
    }
}

/// One coded row: the reference's log-probabilities at one position.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceRow<'a> {
    scale: f32,
    least: f32,
    codes: &'a [[u8; 2]],
}

impl<'a> ReferenceRow<'a> {
    /// Codes logits and appends the row's bytes.
    pub fn encode(logits: &[f32], out: &mut Vec<u8>) -> Result<(), FigureError> {
        let softmax = Softmax::of(logits)?;
        let (scale, least) = softmax.code();
        out.reserve(8 + 2 * logits.len());
        out.extend(scale.to_le_bytes());
        out.extend(least.to_le_bytes());
        let floor = softmax.floor();
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        for logit in logits {
            out.extend(code(*logit, floor, inverse).to_le_bytes());
        }
        Ok(())
    }

    /// Reads a row; the bytes are those of one row exactly.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, FigureError> {
        let bad = |what: &str| FigureError::Block {
            kind: "reference log-probabilities",
            what: what.to_owned(),
        };
        let (scale, rest) = bytes.split_first_chunk().ok_or_else(|| bad("a row is cut short"))?;
        let (least, rest) = rest.split_first_chunk().ok_or_else(|| bad("a row is cut short"))?;
        let (codes, odd) = rest.as_chunks::<2>();
        if codes.is_empty() || !odd.is_empty() {
            return Err(bad("a row is cut short"));
        }
        let (scale, least) = (f32::from_le_bytes(*scale), f32::from_le_bytes(*least));
        if !(scale.is_finite() && scale >= 0.0 && least.is_finite() && least <= 0.0) {
            return Err(bad("a row has a scale or a least value that no logits give"));
        }
        Ok(Self { scale, least, codes })
    }

    /// Returns the size of the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.codes.len()
    }

    /// Returns the log-probability of a token.
    pub fn log_probability(&self, token: usize) -> Option<f32> {
        self.codes.get(token).map(|code| self.value(*code))
    }

    fn value(&self, code: [u8; 2]) -> f32 {
        self.scale * f32::from(u16::from_le_bytes(code)) + self.least
    }

    /// Calls `each` with every token and its log-probability.
    pub(super) fn for_each(&self, mut each: impl FnMut(usize, f32)) {
        for (token, bytes) in self.codes.iter().enumerate() {
            each(token, self.value(*bytes));
        }
    }

    /// Returns true if these logits would be coded to exactly this row.
    pub(super) fn is_code_of(&self, logits: &[f32], softmax: &Softmax) -> bool {
        let (scale, least) = softmax.code();
        if (scale.to_bits(), least.to_bits()) != (self.scale.to_bits(), self.least.to_bits()) {
            return false;
        }
        let floor = softmax.floor();
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        logits
            .iter()
            .zip(self.codes)
            .all(|(logit, bytes)| code(*logit, floor, inverse) == u16::from_le_bytes(*bytes))
    }
}

/// Writes a block of rows to any writer, row by row.
#[derive(Debug)]
pub struct ReferenceWriter<W> {
    inner: W,
    vocabulary: usize,
    expected: u64,
    written: u64,
    row: Vec<u8>,
}

impl<W: Write> ReferenceWriter<W> {
    /// Begins a block of `chunks` chunks from `first_chunk` with `positions` scored positions each.
    pub fn new(mut inner: W, vocabulary: u32, first_chunk: u32, chunks: u32, positions: u32) -> io::Result<Self> {
        inner.write_all(&MAGIC)?;
        for number in [VERSION, vocabulary, first_chunk, chunks, positions] {
            inner.write_all(&number.to_le_bytes())?;
        }
        let expected = u64::from(chunks) * u64::from(positions);
        Ok(Self {
            inner,
            vocabulary: vocabulary as usize,
            expected,
            written: 0,
            row: Vec::new(),
        })
    }

    /// Codes and writes the logits of the next position.
    pub fn row(&mut self, logits: &[f32]) -> io::Result<()> {
        if logits.len() != self.vocabulary {
            let error = FigureError::Vocabulary {
                found: logits.len(),
                expected: self.vocabulary,
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        self.row.clear();
        ReferenceRow::encode(logits, &mut self.row)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.written += 1;
        self.inner.write_all(&self.row)
    }

    /// Ends the block and returns the writer; an error if rows are missing or there were too many.
    pub fn finish(self) -> io::Result<W> {
        if self.written == self.expected {
            return Ok(self.inner);
        }
        let error = FigureError::Rows {
            found: self.written,
            expected: self.expected,
        };
        Err(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A block of rows in memory or in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceBlock<'a> {
    vocabulary: u32,
    first_chunk: u32,
    chunks: u32,
    positions: u32,
    rows: &'a [u8],
}

impl<'a> ReferenceBlock<'a> {
    /// Reads the header and holds the length against it.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FigureError> {
        let bad = |what: String| FigureError::Block {
            kind: "reference log-probabilities",
            what,
        };
        let [version, vocabulary, first_chunk, chunks, positions] =
            header(MAGIC, bytes).ok_or_else(|| bad("it does not begin with `FRGR` and five numbers".to_owned()))?;
        if version != VERSION {
            return Err(bad(format!("version {version}, known is {VERSION}")));
        }
        let rows = bytes.get(HEADER..).unwrap_or_default();
        let count = u64::from(chunks) * u64::from(positions);
        let expected = row_bytes(u64::from(vocabulary)).and_then(|row| row.checked_mul(count));
        if vocabulary == 0 || expected != Some(rows.len() as u64) || first_chunk.checked_add(chunks).is_none() {
            return Err(bad(format!(
                "{} bytes for {count} rows of {vocabulary} tokens",
                rows.len()
            )));
        }
        Ok(Self {
            vocabulary,
            first_chunk,
            chunks,
            positions,
            rows,
        })
    }

    /// Returns the size of the vocabulary.
    pub fn vocabulary(&self) -> u32 {
        self.vocabulary
    }

    /// Returns the number of the first chunk.
    pub fn first_chunk(&self) -> u32 {
        self.first_chunk
    }

    /// Returns how many chunks there are.
    pub fn chunks(&self) -> u32 {
        self.chunks
    }

    /// Returns the scored positions of a chunk.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// Returns the row of a scored position, counted from 0, of a chunk of this block, counted from 0.
    pub fn row(&self, chunk: u32, position: u32) -> Result<ReferenceRow<'a>, FigureError> {
        let expected = u64::from(self.chunks) * u64::from(self.positions);
        let index = u64::from(chunk) * u64::from(self.positions) + u64::from(position);
        if chunk >= self.chunks || position >= self.positions {
            return Err(FigureError::Rows { found: index, expected });
        }
        let size = 8 + 2 * self.vocabulary as usize;
        let start = index as usize * size;
        ReferenceRow::decode(self.rows.get(start..start + size).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(seed: u64, count: usize) -> Vec<f32> {
        let mut random = super::super::bootstrap::Random::new(seed);
        (0..count)
            .map(|_| (random.below(20_000) as f32 - 10_000.0) / 700.0)
            .collect()
    }

    #[test]
    fn a_coded_row_is_within_half_a_step() {
        for seed in 0..20 {
            let logits = logits(seed, 501);
            let softmax = Softmax::of(&logits).unwrap();
            let mut bytes = Vec::new();
            ReferenceRow::encode(&logits, &mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, row_bytes(501).unwrap());
            let row = ReferenceRow::decode(&bytes).unwrap();
            assert!(row.is_code_of(&logits, &softmax));
            for (token, logit) in logits.iter().enumerate() {
                let exact = f64::from(*logit) - f64::from(softmax.largest) - softmax.log_sum;
                let coded = f64::from(row.log_probability(token).unwrap());
                if *logit > softmax.largest - DEPTH {
                    assert!(
                        (exact - coded).abs() <= 8.0 / 65_535.0 + 2e-6,
                        "{token}: {exact} {coded}"
                    );
                } else {
                    assert!(coded >= exact - 1e-4 && coded < -15.9, "{token}: {exact} {coded}");
                }
            }
        }
    }

    #[test]
    fn equal_logits_have_no_scale_and_nothing_is_divided_by_it() {
        let mut bytes = Vec::new();
        ReferenceRow::encode(&[3.0; 4], &mut bytes).unwrap();
        let row = ReferenceRow::decode(&bytes).unwrap();
        assert!((row.log_probability(2).unwrap() - 0.25_f32.ln()).abs() < 1e-6);
        assert_eq!(row.log_probability(4), None);
    }

    #[test]
    fn a_block_is_read_back_and_a_damaged_one_is_rejected() {
        let mut writer = ReferenceWriter::new(Vec::new(), 7, 5, 2, 3).unwrap();
        let rows: Vec<Vec<f32>> = (0..6).map(|seed| logits(seed, 7)).collect();
        for row in &rows {
            writer.row(row).unwrap();
        }
        let bytes = writer.finish().unwrap();
        assert_eq!(bytes.len() as u64, size_of_reference(7, 6));
        let block = ReferenceBlock::parse(&bytes).unwrap();
        assert_eq!(
            (
                block.first_chunk(),
                block.chunks(),
                block.positions(),
                block.vocabulary()
            ),
            (5, 2, 3, 7)
        );
        let row = block.row(1, 2).unwrap();
        assert!(row.is_code_of(&rows[5], &Softmax::of(&rows[5]).unwrap()));
        assert!(!row.is_code_of(&rows[4], &Softmax::of(&rows[4]).unwrap()));
        assert!(block.row(2, 0).is_err() && block.row(0, 3).is_err());
        for cut in [0, 3, 23, 24, bytes.len() - 1] {
            assert!(ReferenceBlock::parse(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in [0, 4, 8, 16, 20] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert!(ReferenceBlock::parse(&damaged).is_err(), "{at}");
        }
    }

    #[test]
    fn a_writer_wants_all_rows_of_the_right_length_and_finite() {
        let mut writer = ReferenceWriter::new(Vec::new(), 2, 0, 1, 1).unwrap();
        assert!(writer.row(&[1.0]).is_err());
        assert!(writer.row(&[1.0, f32::NAN]).is_err());
        assert!(
            writer
                .row(&[f32::NEG_INFINITY, 1.0])
                .unwrap_err()
                .to_string()
                .contains("token 0 is -inf")
        );
        assert!(writer.finish().is_err());
    }
}
