//! The factors of a weight whose rows are looked up: an embedding.

use super::file::FactorsError;
use super::file::Reader;
use super::file::Writer;

/// What a file begins with.
const MAGIC: &[u8; 16] = b"forge-fisher-l1\n";

/// How often rows were looked up, and the sums of squared gradients at their columns. The input of such a product is a token's number, so
/// that the second moments of inputs are counts of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct LookupFactors {
    /// Also the number of labels: each token of a text is looked up.
    tokens: u64,
    counts: Vec<u64>,
    squares: Vec<f64>,
}

impl LookupFactors {
    /// Returns the sums over nothing, for a weight of so many rows and columns.
    pub fn new(rows: usize, columns: usize) -> Self {
        Self {
            tokens: 0,
            counts: vec![0; rows],
            squares: vec![0.0; columns],
        }
    }

    /// Returns the number of its rows.
    pub fn rows(&self) -> usize {
        self.counts.len()
    }

    /// Returns the number of its columns.
    pub fn columns(&self) -> usize {
        self.squares.len()
    }

    /// Returns how many rows were looked up.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds gradients at rows that were looked up: for each of `rows` as many numbers as there are columns.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] if there is no such row, or the numbers are not as many; [`FactorsError::NotFinite`].
    pub fn add(&mut self, rows: &[i64], deltas: &[f32]) -> Result<(), FactorsError> {
        let columns = self.squares.len();
        if columns == 0 || rows.len().checked_mul(columns) != Some(deltas.len()) {
            return Err(FactorsError::Shape);
        }
        for row in rows {
            let count = usize::try_from(*row).ok().and_then(|row| self.counts.get_mut(row));
            *count.ok_or(FactorsError::Shape)? += 1;
        }
        self.tokens += rows.len() as u64;
        for deltas in deltas.chunks_exact(columns) {
            for (sum, delta) in self.squares.iter_mut().zip(deltas) {
                *sum += f64::from(*delta) * f64::from(*delta);
            }
        }
        if self.squares.iter().all(|sum| sum.is_finite()) {
            Ok(())
        } else {
            Err(FactorsError::NotFinite)
        }
    }

    /// Adds the sums over other tokens.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] for those of another shape.
    pub fn merge(&mut self, other: &Self) -> Result<(), FactorsError> {
        if (other.counts.len(), other.squares.len()) != (self.counts.len(), self.squares.len()) {
            return Err(FactorsError::Shape);
        }
        self.tokens = self.tokens.saturating_add(other.tokens);
        for (sum, more) in self.counts.iter_mut().zip(&other.counts) {
            *sum = sum.saturating_add(*more);
        }
        for (sum, more) in self.squares.iter_mut().zip(&other.squares) {
            *sum += more;
        }
        Ok(())
    }

    /// Returns the estimated mean KL divergence per token, in nats, of the error of one row. The estimates of rows add up.
    ///
    /// Returns `None` if there is no such row, or not one number for each column.
    pub fn loss(&self, row: usize, error: &[f32]) -> Option<f64> {
        let count = *self.counts.get(row)?;
        if error.len() != self.squares.len() {
            return None;
        }
        if count == 0 {
            return Some(0.0);
        }
        let square = |(square, error): (&f64, &f32)| square * f64::from(*error) * f64::from(*error);
        let sum: f64 = self.squares.iter().zip(error).map(square).sum();
        let tokens = self.tokens as f64;
        Some(sum * (count as f64 / tokens) / (2.0 * tokens))
    }

    /// Returns the bytes of a file of a weight of that shape.
    pub fn file_bytes(rows: u64, columns: u64) -> u64 {
        let numbers = rows.saturating_add(columns).saturating_add(3);
        numbers.saturating_mul(8).saturating_add(MAGIC.len() as u64)
    }

    /// Returns the sums as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        writer.count(self.counts.len() as u64);
        writer.count(self.squares.len() as u64);
        writer.count(self.tokens);
        self.counts.iter().for_each(|count| writer.count(*count));
        self.squares.iter().for_each(|square| writer.number(*square));
        writer.finish()
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Magic`], [`FactorsError::Length`]; [`FactorsError::NotFinite`] for sums that are negative or not finite.
    pub fn parse(bytes: &[u8]) -> Result<Self, FactorsError> {
        let mut reader = Reader::new(bytes, MAGIC)?;
        let (rows, columns, tokens) = (reader.count()?, reader.count()?, reader.count()?);
        reader.expect(Self::file_bytes(rows, columns))?;
        let counts = (0..rows).map(|_| reader.count()).collect::<Result<_, _>>()?;
        let squares = reader.rest()?;
        Ok(Self {
            tokens,
            counts,
            squares,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_costs_as_often_as_it_is_looked_up() {
        let mut factors = LookupFactors::new(3, 2);
        factors
            .add(&[0, 2, 2, 2], &[1.0, 0.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0])
            .unwrap();
        // Columns have the squares 4 and 4; the row 2 has 3 of 4 tokens.
        assert_eq!(factors.loss(2, &[1.0, 2.0]), Some(20.0 * 0.75 / 8.0));
        assert_eq!(factors.loss(0, &[1.0, 2.0]), Some(20.0 * 0.25 / 8.0));
        assert_eq!(factors.loss(1, &[1.0, 2.0]), Some(0.0));
        assert_eq!(factors.loss(3, &[1.0, 2.0]), None);
        assert_eq!(factors.loss(0, &[1.0]), None);
        assert_eq!(factors.add(&[3], &[0.0, 0.0]), Err(FactorsError::Shape));
        assert_eq!(factors.add(&[0], &[0.0]), Err(FactorsError::Shape));
        assert_eq!(factors.add(&[-1], &[0.0, 0.0]), Err(FactorsError::Shape));
    }

    #[test]
    fn files_come_back() {
        let mut factors = LookupFactors::new(3, 2);
        factors.add(&[0, 2], &[1.0, 0.0, 1.0, 0.5]).unwrap();
        let bytes = factors.to_bytes();
        assert_eq!(bytes.len() as u64, LookupFactors::file_bytes(3, 2));
        assert_eq!(LookupFactors::parse(&bytes), Ok(factors.clone()));
        assert!(LookupFactors::parse(&bytes[..bytes.len() - 8]).is_err());
        assert!(OutputBytes(&bytes).is_refused());
        let mut twice = factors.clone();
        twice.merge(&factors).unwrap();
        assert_eq!(twice.tokens(), 4);
        assert_eq!(twice.loss(2, &[1.0, 1.0]), factors.loss(2, &[1.0, 1.0]));
    }

    /// A file of the other kind of factors.
    struct OutputBytes<'b>(&'b [u8]);

    impl OutputBytes<'_> {
        fn is_refused(&self) -> bool {
            super::super::OutputFactors::parse(self.0) == Err(FactorsError::Magic)
        }
    }
}
