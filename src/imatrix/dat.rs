//! The legacy form, `.dat`: no magic, little-endian.
//!
//! ```text
//! i32 entries
//! each:  i32 length, name, i32 calls, i32 values, f32[values]     value = (sum / count) * calls
//! then, or nothing:  i32 chunks, i32 length, name of the text
//! ```
//!
//! `calls` is a number of chunks, so a file read from this form has counts in chunks ([`Imatrix::chunk_size`] 0) and one
//! count for all experts of a layer: what each of them saw is not in the file.

use std::collections::BTreeMap;

use super::{Entry, Imatrix, ImatrixError, NoMemory};

/// The fewest bytes an entry takes: a name of one byte, one value.
const MIN_ENTRY: usize = 4 + 1 + 4 + 4 + 4;

/// What is wrong with a legacy file, or cannot be written as one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatError {
    /// Its numbers do not fit into memory.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// Too short for anything.
    #[error("not an imatrix: the file has only {len} bytes; it is empty or truncated")]
    TooShort {
        /// The length.
        len: usize,
    },
    /// A number of entries that cannot be.
    #[error(
        "not an imatrix: it does not begin with `GGUF`, and as a legacy file it would have {count} entries in {left} bytes"
    )]
    Count {
        /// The claim.
        count: i32,
        /// Bytes left.
        left: usize,
    },
    /// A length that cannot be.
    #[error("{what} of {} is {claim}, with {left} bytes left (at byte {offset}); the file is truncated or damaged", entry_name(.entry.as_deref(), *.index))]
    Length {
        /// What.
        what: &'static str,
        /// Which entry, from 0.
        index: usize,
        /// Its name, where known.
        entry: Option<String>,
        /// The claim.
        claim: i64,
        /// Bytes left.
        left: usize,
        /// Where.
        offset: usize,
    },
    /// The file ends inside something.
    #[error("the file ends inside {} (at byte {offset}); it is truncated", entry_name(.entry.as_deref(), *.index))]
    Truncated {
        /// Which entry, from 0.
        index: usize,
        /// Its name, where known.
        entry: Option<String>,
        /// Where.
        offset: usize,
    },
    /// A name that is empty, no UTF-8, or holds a zero byte.
    #[error("the name of entry number {index} is not a name (at byte {offset}); the file is damaged")]
    Name {
        /// Which entry, from 0.
        index: usize,
        /// Where.
        offset: usize,
    },
    /// The same weight twice.
    #[error("entry `{entry}` occurs twice")]
    Duplicate {
        /// The weight.
        entry: String,
    },
    /// A trailer that cannot be.
    #[error("the trailer with chunk count and text name is damaged (at byte {offset})")]
    Trailer {
        /// Where.
        offset: usize,
    },
    /// More bytes than the file should have.
    #[error("{left} bytes follow the end of the imatrix (at byte {offset}); the file is damaged or not an imatrix")]
    LeftOver {
        /// How many.
        left: usize,
        /// Where.
        offset: usize,
    },
    /// Nothing to write.
    #[error("there is no entry with data")]
    NoEntries,
    /// A number that does not fit the form's 31 bits.
    #[error("entry `{entry}` is too large for the legacy format; write GGUF")]
    TooLarge {
        /// The weight.
        entry: String,
    },
}

fn entry_name(entry: Option<&str>, index: usize) -> String {
    entry.map_or_else(|| format!("entry number {index}"), |name| format!("entry `{name}`"))
}

/// A place in the file.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    index: usize,
    entry: Option<String>,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DatError> {
        let truncated = || DatError::Truncated {
            index: self.index,
            entry: self.entry.clone(),
            offset: self.at,
        };
        let end = self.at.checked_add(count).ok_or_else(truncated)?;
        let bytes = self.bytes.get(self.at..end).ok_or_else(truncated)?;
        self.at = end;
        Ok(bytes)
    }

    fn i32(&mut self) -> Result<i32, DatError> {
        let bytes = self.take(4)?;
        Ok(bytes.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes)))
    }

    /// Takes a length of `least` or more things of `size` bytes, all of which must be there.
    fn length(&mut self, what: &'static str, least: i32, size: usize) -> Result<usize, DatError> {
        let offset = self.at;
        let claim = self.i32()?;
        let bytes = usize::try_from(claim).ok().and_then(|length| length.checked_mul(size));
        match bytes {
            Some(bytes) if claim >= least && bytes <= self.left() => Ok(claim as usize),
            _ => {
                let (index, entry, left) = (self.index, self.entry.clone(), self.left());
                Err(DatError::Length {
                    what,
                    index,
                    entry,
                    claim: claim.into(),
                    left,
                    offset,
                })
            }
        }
    }

    fn name(&mut self) -> Result<String, DatError> {
        let offset = self.at;
        let length = self.length("the length of the name", 1, 1)?;
        let name = std::str::from_utf8(self.take(length)?)
            .ok()
            .filter(|name| !name.contains('\0'));
        name.map(str::to_owned).ok_or(DatError::Name {
            index: self.index,
            offset,
        })
    }

    fn entry(&mut self) -> Result<Entry, DatError> {
        let offset = self.at;
        let calls = self.i32()?;
        if calls < 0 {
            let (index, entry, left) = (self.index, self.entry.clone(), self.left());
            let what = "the number of calls";
            return Err(DatError::Length {
                what,
                index,
                entry,
                claim: calls.into(),
                left,
                offset,
            });
        }
        let values = self.length("the number of values", 1, 4)?;
        let sums = floats(self.take(values * 4)?)?;
        // Zero calls mean that nothing is divided: the same as one.
        Ok(Entry {
            columns: values,
            sums,
            counts: vec![calls.max(1) as f32],
        })
    }

    /// Takes the trailer: nothing, or a chunk count, or that and the name of the text.
    fn trailer(&mut self, imatrix: &mut Imatrix) -> Result<(), DatError> {
        let offset = self.at;
        let damaged = |_| DatError::Trailer { offset };
        if self.left() > 0 {
            imatrix.chunk_count =
                u32::try_from(self.i32().map_err(damaged)?).map_err(|_| DatError::Trailer { offset })?;
        }
        if self.left() > 0 {
            let length = self.length("the length of the text's name", 0, 1).map_err(damaged)?;
            let name = self.take(length)?;
            if !name.is_empty() {
                imatrix.datasets.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        match self.left() {
            0 => Ok(()),
            left => Err(DatError::LeftOver { left, offset: self.at }),
        }
    }
}

pub(super) fn floats(bytes: &[u8]) -> Result<Vec<f32>, NoMemory> {
    let chunks = bytes.as_chunks::<4>().0;
    let mut floats = Vec::new();
    floats.try_reserve_exact(chunks.len()).map_err(|_| NoMemory {
        bytes: bytes.len() as u64,
    })?;
    floats.extend(chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)));
    Ok(floats)
}

impl Imatrix {
    /// Reads the legacy form. Counts come back in chunks, [`Self::chunk_size`] is 0; see [`Self::with_chunk_size`].
    pub fn parse_dat(bytes: &[u8]) -> Result<Self, ImatrixError> {
        let mut reader = Reader {
            bytes,
            at: 0,
            index: 0,
            entry: None,
        };
        let count = reader.i32().map_err(|_| DatError::TooShort { len: bytes.len() })?;
        let left = reader.left();
        let entries = usize::try_from(count)
            .ok()
            .filter(|count| (1..=left / MIN_ENTRY).contains(count));
        let entries = entries.ok_or(DatError::Count { count, left })?;
        let mut imatrix = Self::default();
        for index in 0..entries {
            reader.index = index;
            reader.entry = None;
            let name = reader.name()?;
            reader.entry = Some(name.clone());
            let entry = reader.entry()?;
            if imatrix.entries.insert(name.clone(), entry).is_some() {
                return Err(DatError::Duplicate { entry: name }.into());
            }
        }
        reader.trailer(&mut imatrix)?;
        imatrix.checked()
    }

    /// Writes the legacy form as llama-imatrix does: entries without any data are left out, matrices without data among
    /// others get ones, and what each expert saw is lost.
    pub fn to_dat(&self) -> Result<Vec<u8>, ImatrixError> {
        let with_data: BTreeMap<_, _> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.counts.iter().any(|count| *count > 0.0))
            .collect();
        if with_data.is_empty() {
            return Err(DatError::NoEntries.into());
        }
        let mut out = Vec::new();
        push_i32(&mut out, with_data.len(), "the number of entries")?;
        for (name, entry) in with_data {
            push_string(&mut out, name)?;
            let calls = calls(entry, self.chunk_size);
            push_i32(&mut out, calls as usize, name)?;
            push_i32(&mut out, entry.sums.len(), name)?;
            for (matrix, (sums, count)) in entry.matrices_iter().enumerate() {
                for (column, sum) in sums.iter().enumerate() {
                    let value = match count {
                        0.0 => calls as f32,
                        // What came from this form goes back as it came.
                        _ if self.chunk_size == 0 && entry.counts.len() == 1 => *sum,
                        count => (sum / count) * calls as f32,
                    };
                    if !value.is_finite() {
                        let index = matrix * entry.columns + column;
                        return Err(ImatrixError::BadValue {
                            entry: name.clone(),
                            what: "sum",
                            index,
                            value,
                        });
                    }
                    out.extend(value.to_le_bytes());
                }
            }
        }
        push_i32(&mut out, self.chunk_count as usize, "the number of chunks")?;
        push_string(&mut out, self.datasets.last().map_or("", String::as_str))?;
        Ok(out)
    }
}

/// Returns the largest count in chunks, rounded up.
fn calls(entry: &Entry, chunk_size: u32) -> u64 {
    let largest = entry.counts.iter().copied().fold(0.0, f32::max);
    (largest as u64).div_ceil(chunk_size.max(1).into())
}

fn push_i32(out: &mut Vec<u8>, value: usize, entry: &str) -> Result<(), DatError> {
    let value = i32::try_from(value).map_err(|_| DatError::TooLarge {
        entry: entry.to_owned(),
    })?;
    out.extend(value.to_le_bytes());
    Ok(())
}

fn push_string(out: &mut Vec<u8>, text: &str) -> Result<(), DatError> {
    push_i32(out, text.len(), text)?;
    out.extend(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imatrix::tests::sample;

    #[test]
    fn a_legacy_file_is_written_back_byte_for_byte() {
        let first = sample().to_dat().unwrap();
        let read = Imatrix::parse_dat(&first).unwrap();
        assert_eq!(read.chunk_size, 0);
        assert_eq!(read.chunk_count, 4);
        assert_eq!(read.datasets, ["b.txt"]);
        assert_eq!(read.to_dat().unwrap(), first);
    }

    #[test]
    fn the_weights_of_both_forms_agree() {
        let gguf = sample();
        let dat = Imatrix::parse_dat(&gguf.to_dat().unwrap()).unwrap();
        for (name, entry) in &dat.entries {
            for (a, b) in entry.weights().iter().zip(gguf.entries[name].weights()) {
                assert!((a - b).abs() <= 1e-6 * b.abs(), "{name}: {a} {b}");
            }
        }
    }

    #[test]
    fn counts_in_chunks_become_tokens() {
        let dat = Imatrix::parse_dat(&sample().to_dat().unwrap()).unwrap();
        let before = dat.entries["blk.0.attn_q.weight"].clone();
        let tokens = dat.with_chunk_size(512);
        let after = &tokens.entries["blk.0.attn_q.weight"];
        assert_eq!(after.counts[0], before.counts[0] * 512.0);
        assert_eq!(after.weights(), before.weights());
        assert_eq!(tokens.clone().with_chunk_size(9), tokens, "tokens stay tokens");
    }

    #[test]
    fn the_trailer_may_be_absent() {
        let mut bytes = sample().to_dat().unwrap();
        let trailer = 4 + 4 + "b.txt".len();
        bytes.truncate(bytes.len() - trailer);
        let read = Imatrix::parse_dat(&bytes).unwrap();
        assert_eq!((read.chunk_count, read.datasets.len()), (0, 0));
    }
}
