//! The form in which second moments are stored: a header, and for each matrix the upper triangle of its sums, row by row, as 32-bit
//! little-endian floats.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `moments1` |
//! | 8 | length of the input vectors, n |
//! | 8 | number of matrices, m |
//! | 8 m | number of input vectors of each matrix |
//! | 4 m n (n + 1) / 2 | sums |

use std::io;
use std::io::Write;

use super::SecondMoments;
use super::start_of;

const MAGIC: &[u8; 8] = b"moments1";
/// Bytes before the numbers of input vectors.
const FIXED: usize = 24;

/// Returns how many sums there are for an input of `columns` numbers; `None` if that is beyond all memory.
pub fn packed_len(columns: usize) -> Option<usize> {
    Some(columns.checked_mul(columns.checked_add(1)?)? / 2)
}

/// What is wrong with stored second moments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MomentsError {
    /// It does not begin as such a file does.
    #[error("not second moments of this version of forge")]
    Magic,
    /// Its length is not what its header says.
    #[error("{found} bytes of second moments where the header says {expected}")]
    Length {
        /// Bytes.
        found: u64,
        /// What they should be; `u64::MAX` if that is more than there can be.
        expected: u64,
    },
    /// Moments of different inputs are to be added.
    #[error(
        "second moments of {columns} columns and {matrices} matrices cannot be added to those of {other_columns} and {other_matrices}"
    )]
    Shape {
        /// Columns of the first.
        columns: usize,
        /// Matrices of the first.
        matrices: usize,
        /// Columns of the other.
        other_columns: usize,
        /// Matrices of the other.
        other_matrices: usize,
    },
    /// There is nothing to add.
    #[error("no second moments to add")]
    Nothing,
}

/// What stands before the sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The length of the input vectors.
    pub columns: usize,
    /// The number of input vectors of each matrix.
    pub rows: Vec<u64>,
}

impl Header {
    /// Returns the bytes of a file with `matrices` inputs of `columns` numbers; `u64::MAX` if that is more than there can be.
    pub fn file_bytes(columns: u64, matrices: u64) -> u64 {
        let sums = columns
            .checked_add(1)
            .and_then(|next| columns.checked_mul(next))
            .map(|twice| twice / 2);
        let bytes = sums.and_then(|sums| {
            sums.checked_mul(4)?
                .checked_add(8)?
                .checked_mul(matrices)?
                .checked_add(FIXED as u64)
        });
        bytes.unwrap_or(u64::MAX)
    }

    /// Writes it.
    ///
    /// # Errors
    ///
    /// Errors of writing.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(MAGIC)?;
        let numbers = [self.columns as u64, self.rows.len() as u64];
        let bytes: Vec<u8> = numbers
            .iter()
            .chain(&self.rows)
            .flat_map(|number| number.to_le_bytes())
            .collect();
        out.write_all(&bytes)
    }
}

/// Stored second moments: bytes, of which the sums are read when they are asked for.
#[derive(Debug, Clone)]
pub struct MomentsFile<'b> {
    header: Header,
    sums: &'b [u8],
}

impl<'b> MomentsFile<'b> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// [`MomentsError::Magic`] and [`MomentsError::Length`].
    pub fn parse(bytes: &'b [u8]) -> Result<Self, MomentsError> {
        let Some(rest) = bytes.strip_prefix(MAGIC) else {
            return Err(MomentsError::Magic);
        };
        let found = bytes.len() as u64;
        let length = |expected| MomentsError::Length { found, expected };
        let (numbers, _) = rest.as_chunks::<8>();
        let mut numbers = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let (Some(columns), Some(matrices)) = (numbers.next(), numbers.next()) else {
            return Err(length(FIXED as u64));
        };
        let expected = Header::file_bytes(columns, matrices);
        if found != expected {
            return Err(length(expected));
        }
        // No more than there are bytes, as the length agrees.
        let rows: Vec<u64> = numbers.take(matrices as usize).collect();
        let header = Header {
            columns: columns as usize,
            rows,
        };
        Ok(Self {
            sums: &bytes[FIXED + 8 * header.rows.len()..],
            header,
        })
    }

    /// Returns the length of the input vectors.
    pub fn columns(&self) -> usize {
        self.header.columns
    }

    /// Returns the number of matrices.
    pub fn matrices(&self) -> usize {
        self.header.rows.len()
    }

    /// Returns the number of input vectors of each matrix.
    pub fn rows(&self) -> &[u64] {
        &self.header.rows
    }

    /// Returns the sums of a matrix; `None` if there is no such matrix.
    pub fn matrix(&self, matrix: usize) -> Option<SecondMoments> {
        let rows = *self.header.rows.get(matrix)?;
        let sums = self.packed(matrix)?.map(f32::from_le_bytes).collect();
        SecondMoments::new(self.header.columns, rows, sums)
    }

    /// Returns the sums of squares of a matrix by column; `None` if there is no such matrix.
    pub fn diagonal(&self, matrix: usize) -> Option<Vec<f32>> {
        let columns = self.header.columns;
        let sums = self.bytes_of(matrix)?.as_chunks::<4>().0;
        let of = |row| f32::from_le_bytes(sums[start_of(row, columns)]);
        Some((0..columns).map(of).collect())
    }

    fn bytes_of(&self, matrix: usize) -> Option<&'b [u8]> {
        let len = packed_len(self.header.columns)? * 4;
        self.sums.get(matrix.checked_mul(len)?..)?.get(..len)
    }

    fn packed(&self, matrix: usize) -> Option<impl Iterator<Item = [u8; 4]> + use<'b>> {
        Some(self.bytes_of(matrix)?.as_chunks::<4>().0.iter().copied())
    }
}

/// Adds stored second moments of the same input and writes the result, matrix by matrix. Each sum is added up in 64 bits, in the order of
/// the parts, and rounded once.
///
/// # Errors
///
/// [`MomentsError::Shape`], [`MomentsError::Nothing`]; inside, errors of writing.
pub fn add(parts: &[MomentsFile<'_>], out: &mut dyn Write) -> Result<io::Result<()>, MomentsError> {
    let first = parts.first().ok_or(MomentsError::Nothing)?;
    let (columns, matrices) = (first.columns(), first.matrices());
    let mut rows = vec![0_u64; matrices];
    for part in parts {
        if (part.columns(), part.matrices()) != (columns, matrices) {
            return Err(MomentsError::Shape {
                columns,
                matrices,
                other_columns: part.columns(),
                other_matrices: part.matrices(),
            });
        }
        for (sum, more) in rows.iter_mut().zip(part.rows()) {
            *sum = sum.saturating_add(*more);
        }
    }
    Ok(write_sum(parts, &Header { columns, rows }, out))
}

fn write_sum(parts: &[MomentsFile<'_>], header: &Header, out: &mut dyn Write) -> io::Result<()> {
    /// Sums that are added up at once.
    const PIECE: usize = 1 << 16;
    header.write(out)?;
    let total = parts.iter().map(|part| part.sums.len()).min().unwrap_or(0);
    let mut sums = vec![0.0_f64; PIECE];
    let mut bytes = Vec::with_capacity(PIECE * 4);
    for start in (0..total).step_by(PIECE * 4) {
        let end = total.min(start + PIECE * 4);
        let sums = &mut sums[..(end - start) / 4];
        sums.fill(0.0);
        for part in parts {
            let values = part.sums[start..end].as_chunks::<4>().0;
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += f64::from(f32::from_le_bytes(*value));
            }
        }
        bytes.clear();
        bytes.extend(sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes()));
        out.write_all(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(columns: usize, rows: &[u64], sums: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = Header {
            columns,
            rows: rows.to_vec(),
        };
        header.write(&mut bytes).unwrap();
        bytes.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
        bytes
    }

    #[test]
    fn sums_are_found_matrix_by_matrix() {
        let bytes = file(2, &[5, 7], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(Header::file_bytes(2, 2), bytes.len() as u64);
        let file = MomentsFile::parse(&bytes).unwrap();
        assert_eq!(
            (file.columns(), file.matrices(), file.rows()),
            (2, 2, [5, 7].as_slice())
        );
        let second = file.matrix(1).unwrap();
        assert_eq!((second.rows(), second.sums()), (7, [4.0, 5.0, 6.0].as_slice()));
        assert_eq!(file.diagonal(1).unwrap(), [4.0, 6.0]);
        assert!(file.matrix(2).is_none() && file.diagonal(2).is_none());
    }

    #[test]
    fn other_bytes_are_refused() {
        let bytes = file(2, &[5], &[1.0, 2.0, 3.0]);
        assert_eq!(MomentsFile::parse(b"GGUF").unwrap_err(), MomentsError::Magic);
        assert_eq!(MomentsFile::parse(&bytes[1..]).unwrap_err(), MomentsError::Magic);
        for end in 8..bytes.len() {
            let error = MomentsFile::parse(&bytes[..end]).unwrap_err();
            assert!(matches!(error, MomentsError::Length { .. }), "{end}: {error}");
        }
        // A header that asks for more than there can be.
        for columns in [u64::MAX, 1 << 40] {
            let mut huge = bytes.clone();
            huge[8..16].copy_from_slice(&columns.to_le_bytes());
            huge[16..24].copy_from_slice(&(u64::MAX / 3).to_le_bytes());
            assert!(MomentsFile::parse(&huge).is_err());
        }
    }

    #[test]
    fn parts_are_added() {
        let (a, b) = (file(2, &[5], &[1.0, 2.0, 3.0]), file(2, &[2], &[0.5, -2.0, 0.0]));
        let parts = [&a, &b].map(|bytes| MomentsFile::parse(bytes).unwrap());
        let mut sum = Vec::new();
        add(&parts, &mut sum).unwrap().unwrap();
        assert_eq!(sum, file(2, &[7], &[1.5, 0.0, 3.0]));
        let other = file(1, &[2], &[0.5]);
        let parts = [&a, &other].map(|bytes| MomentsFile::parse(bytes).unwrap());
        assert!(matches!(add(&parts, &mut Vec::new()), Err(MomentsError::Shape { .. })));
        assert!(matches!(add(&[], &mut Vec::new()), Err(MomentsError::Nothing)));
    }
}
