//! Sums over the inputs of a weight: their squares, and what rounding them to 8 bits loses.
//!
//! A product with a quantized weight quantizes its input, too: to 8 bits, in blocks with a scale each. For independent errors a of the
//! input, the mean divergence is 1/(2T) sum_r f_r sum_c w_rc^2 a_c^2, with f the output factor and w the weight.

use rayon::prelude::*;

use super::file::FactorsError;
use super::file::Reader;
use super::file::Writer;

/// What a file begins with.
const MAGIC: &[u8; 16] = b"forge-fisher-i1\n";

/// Columns that one thread adds up: a multiple of all blocks.
const TILE: usize = 256;

/// The largest magnitude of a number of 8 bits.
const LARGEST: f32 = 127.0;

/// How the input of a product is rounded: to 8 bits, with a scale for each block of so many numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InputRounding {
    /// Blocks of 32.
    Blocks32,
    /// Blocks of 256.
    Blocks256,
}

impl InputRounding {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Blocks32, Self::Blocks256];

    /// Returns the length of a block.
    pub const fn block(self) -> usize {
        match self {
            Self::Blocks32 => 32,
            Self::Blocks256 => 256,
        }
    }
}

/// The sums of squares of the inputs of a weight, by column.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSums {
    columns: usize,
    /// For each matrix how many inputs were added.
    rows: Vec<u64>,
    /// The squares of the inputs: the columns of one matrix after those of the other.
    squares: Vec<f64>,
    /// The squares of what each rounding loses.
    lost: [Vec<f64>; InputRounding::ALL.len()],
}

impl InputSums {
    /// Returns the sums over nothing, for a weight of so many matrices (experts) of `columns` columns.
    pub fn new(columns: usize, matrices: usize) -> Self {
        let sums = || vec![0.0; columns.saturating_mul(matrices)];
        Self {
            columns,
            rows: vec![0; matrices],
            squares: sums(),
            lost: InputRounding::ALL.map(|_| sums()),
        }
    }

    /// Returns the number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns how many inputs a matrix was multiplied with.
    pub fn rows(&self, matrix: usize) -> Option<u64> {
        self.rows.get(matrix).copied()
    }

    /// Returns the mean squares of the inputs of a matrix, by column; zeros if there are no inputs. `None` if there is no such matrix.
    pub fn mean_squares(&self, matrix: usize) -> Option<Vec<f64>> {
        self.means(&self.squares, matrix)
    }

    /// Returns the mean squares of what rounding the inputs of a matrix loses, by column.
    pub fn mean_lost(&self, rounding: InputRounding, matrix: usize) -> Option<Vec<f64>> {
        self.means(&self.lost[rounding as usize], matrix)
    }

    fn means(&self, sums: &[f64], matrix: usize) -> Option<Vec<f64>> {
        let rows = self.rows(matrix)?.max(1) as f64;
        let sums = sums.get(matrix * self.columns..)?.get(..self.columns)?;
        Some(sums.iter().map(|sum| sum / rows).collect())
    }

    /// Adds inputs of a matrix: rows of as many numbers as there are columns. The sums do not depend on the number of threads.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] if there is no such matrix or a row is not whole; [`FactorsError::NotFinite`].
    pub fn add(&mut self, matrix: usize, inputs: &[f32]) -> Result<(), FactorsError> {
        let columns = self.columns;
        let own = matrix.saturating_mul(columns)..matrix.saturating_add(1).saturating_mul(columns);
        if columns == 0 || matrix >= self.rows.len() || !inputs.len().is_multiple_of(columns) {
            return Err(FactorsError::Shape);
        }
        let [fine, coarse] = &mut self.lost;
        let sums = (
            self.squares[own.clone()].par_chunks_mut(TILE),
            fine[own.clone()].par_chunks_mut(TILE),
            coarse[own.clone()].par_chunks_mut(TILE),
        );
        sums.into_par_iter()
            .enumerate()
            .for_each(|(tile, (squares, fine, coarse))| {
                for row in inputs.chunks_exact(columns) {
                    let row = &row[tile * TILE..][..squares.len()];
                    for (sum, value) in squares.iter_mut().zip(row) {
                        *sum += f64::from(*value) * f64::from(*value);
                    }
                    add_lost(fine, row, InputRounding::Blocks32.block());
                    add_lost(coarse, row, InputRounding::Blocks256.block());
                }
            });
        self.rows[matrix] += (inputs.len() / columns) as u64;
        let sums = [&self.squares, &self.lost[0], &self.lost[1]];
        if sums
            .iter()
            .all(|sums| sums[own.clone()].iter().all(|sum| sum.is_finite()))
        {
            Ok(())
        } else {
            Err(FactorsError::NotFinite)
        }
    }

    /// Adds the sums over other inputs.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] for those of another shape.
    pub fn merge(&mut self, other: &Self) -> Result<(), FactorsError> {
        if (other.columns, other.rows.len()) != (self.columns, self.rows.len()) {
            return Err(FactorsError::Shape);
        }
        for (sum, more) in self.rows.iter_mut().zip(&other.rows) {
            *sum = sum.saturating_add(*more);
        }
        let own = std::iter::once(&mut self.squares).chain(&mut self.lost);
        for (own, other) in own.zip(std::iter::once(&other.squares).chain(&other.lost)) {
            for (sum, more) in own.iter_mut().zip(other) {
                *sum += more;
            }
        }
        Ok(())
    }

    /// Returns the bytes of a file of a weight of that shape.
    pub fn file_bytes(columns: u64, matrices: u64) -> u64 {
        let sums = 1 + InputRounding::ALL.len() as u64;
        let numbers = matrices.saturating_mul(columns.saturating_mul(sums).saturating_add(1));
        let numbers = numbers.saturating_add(2);
        numbers.saturating_mul(8).saturating_add(MAGIC.len() as u64)
    }

    /// Returns the sums as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        writer.count(self.columns as u64);
        writer.count(self.rows.len() as u64);
        self.rows.iter().for_each(|count| writer.count(*count));
        let sums = std::iter::once(&self.squares).chain(&self.lost);
        sums.flatten().for_each(|sum| writer.number(*sum));
        writer.finish()
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Magic`], [`FactorsError::Length`]; [`FactorsError::NotFinite`] for sums that are negative or not finite.
    pub fn parse(bytes: &[u8]) -> Result<Self, FactorsError> {
        let mut reader = Reader::new(bytes, MAGIC)?;
        let (columns, matrices) = (reader.count()?, reader.count()?);
        reader.expect(Self::file_bytes(columns, matrices))?;
        let rows: Vec<u64> = (0..matrices).map(|_| reader.count()).collect::<Result<_, _>>()?;
        let mut squares = reader.rest()?;
        let columns = usize::try_from(columns).map_err(|_| FactorsError::Shape)?;
        let count = columns * rows.len();
        let mut fine = squares.split_off(count);
        let coarse = fine.split_off(count);
        Ok(Self {
            columns,
            rows,
            squares,
            lost: [fine, coarse],
        })
    }
}

/// Adds the squares of what is lost if each block of a row is rounded to 8 bits.
fn add_lost(sums: &mut [f64], row: &[f32], block: usize) {
    for (sums, values) in sums.chunks_mut(block).zip(row.chunks(block)) {
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let step = largest / LARGEST;
        if step == 0.0 {
            continue;
        }
        let inverse = 1.0 / step;
        for (sum, value) in sums.iter_mut().zip(values) {
            let lost = f64::from(*value - (value * inverse).round() * step);
            *sum += lost * lost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_loses_what_8_bits_lose() {
        let columns = 300;
        let value = |at: usize| ((at * 37 % 101) as f32 - 50.0) * if at < 32 { 1.0 } else { 0.01 };
        let row: Vec<f32> = (0..columns).map(value).collect();
        let mut sums = InputSums::new(columns, 2);
        sums.add(1, &row).unwrap();
        sums.add(1, &row).unwrap();
        assert_eq!((sums.rows(0), sums.rows(1), sums.rows(2)), (Some(0), Some(2), None));
        for rounding in InputRounding::ALL {
            let lost = sums.mean_lost(rounding, 1).unwrap();
            for (at, lost) in lost.iter().enumerate() {
                let start = at / rounding.block() * rounding.block();
                let block = &row[start..columns.min(start + rounding.block())];
                let step = block.iter().fold(0.0_f32, |most, value| most.max(value.abs())) / 127.0;
                assert!(lost.sqrt() <= f64::from(step) * 0.501, "{rounding:?} {at}");
            }
            assert!(lost.iter().sum::<f64>() > 0.0);
        }
        let total = |rounding| sums.mean_lost(rounding, 1).unwrap().iter().sum::<f64>();
        assert!(total(InputRounding::Blocks32) < 0.5 * total(InputRounding::Blocks256));
        let square = sums.mean_squares(1).unwrap()[3];
        assert!((square - f64::from(row[3]).powi(2)).abs() < 1e-9);
        assert_eq!(sums.mean_squares(0), Some(vec![0.0; columns]));
        assert_eq!(sums.mean_squares(2), None);
    }

    #[test]
    fn files_come_back() {
        let mut sums = InputSums::new(3, 2);
        sums.add(0, &[1.0, 2.0, 3.0]).unwrap();
        sums.add(1, &[0.3, 0.7, -2.0, 0.0, 0.0, 0.0]).unwrap();
        let bytes = sums.to_bytes();
        assert_eq!(bytes.len() as u64, InputSums::file_bytes(3, 2));
        assert_eq!(InputSums::parse(&bytes), Ok(sums.clone()));
        for len in 0..bytes.len() {
            assert!(InputSums::parse(&bytes[..len]).is_err());
        }
        let mut twice = sums.clone();
        twice.merge(&sums).unwrap();
        assert_eq!(twice.rows(1), Some(4));
        assert_eq!(twice.mean_squares(1), sums.mean_squares(1));
        assert_eq!(twice.merge(&InputSums::new(3, 1)), Err(FactorsError::Shape));
    }

    #[test]
    fn bad_inputs_are_refused() {
        let mut sums = InputSums::new(2, 1);
        assert_eq!(sums.add(1, &[0.0; 2]), Err(FactorsError::Shape));
        assert_eq!(sums.add(0, &[0.0; 3]), Err(FactorsError::Shape));
        assert_eq!(sums.add(0, &[0.0, f32::INFINITY]), Err(FactorsError::NotFinite));
    }
}
