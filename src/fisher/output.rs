//! The output factor of a weight that is multiplied with.

use rayon::prelude::*;

use super::file::FactorsError;
use super::file::Reader;
use super::file::Writer;

/// Outputs that one thread adds up.
const TILE: usize = 64;

/// What a file begins with.
const MAGIC: &[u8; 16] = b"forge-fisher-o1\n";

/// The sums of squared gradients at the outputs of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFactors {
    outputs: usize,
    tokens: u64,
    /// For each matrix how many rows of deltas were added.
    rows: Vec<u64>,
    /// The outputs of one matrix after those of the other.
    squares: Vec<f64>,
}

impl OutputFactors {
    /// Returns the sums over nothing, for a weight of so many matrices (experts) of `outputs` rows.
    pub fn new(outputs: usize, matrices: usize) -> Self {
        Self {
            outputs,
            tokens: 0,
            rows: vec![0; matrices],
            squares: vec![0.0; outputs.saturating_mul(matrices)],
        }
    }

    /// Returns the rows of one matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Returns the number of matrices.
    pub fn matrices(&self) -> usize {
        self.rows.len()
    }

    /// Returns the tokens that labels were sampled at.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Returns how many inputs a matrix was multiplied with.
    pub fn rows(&self, matrix: usize) -> Option<u64> {
        self.rows.get(matrix).copied()
    }

    /// Returns the sums of squares of a matrix by output.
    pub fn squares(&self, matrix: usize) -> Option<&[f64]> {
        self.squares
            .get(matrix.checked_mul(self.outputs)?..)?
            .get(..self.outputs)
    }

    /// Counts tokens that labels were sampled at, whether or not they used this weight.
    pub fn add_tokens(&mut self, tokens: u64) {
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// Adds gradients at the outputs of a matrix: rows of as many numbers as it has outputs. The sums do not depend on the number of
    /// threads.
    ///
    /// # Errors
    ///
    /// [`FactorsError::Shape`] if there is no such matrix or a row is not whole; [`FactorsError::NotFinite`].
    pub fn add(&mut self, matrix: usize, deltas: &[f32]) -> Result<(), FactorsError> {
        let outputs = self.outputs;
        let start = matrix.saturating_mul(outputs);
        let Some(sums) = self.squares.get_mut(start..).and_then(|sums| sums.get_mut(..outputs)) else {
            return Err(FactorsError::Shape);
        };
        if outputs == 0 || !deltas.len().is_multiple_of(outputs) {
            return Err(FactorsError::Shape);
        }
        sums.par_chunks_mut(TILE).enumerate().for_each(|(tile, sums)| {
            let mut added = [0.0_f64; TILE];
            for row in deltas.chunks_exact(outputs) {
                for (sum, delta) in added.iter_mut().zip(&row[tile * TILE..][..sums.len()]) {
                    *sum += f64::from(*delta) * f64::from(*delta);
                }
            }
            for (sum, added) in sums.iter_mut().zip(added) {
                *sum += added;
            }
        });
        self.rows[matrix] += (deltas.len() / outputs) as u64;
        if sums_are_finite(&self.squares[start..start + outputs]) {
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
        if (other.outputs, other.rows.len()) != (self.outputs, self.rows.len()) {
            return Err(FactorsError::Shape);
        }
        self.add_tokens(other.tokens);
        for (sum, more) in self.rows.iter_mut().zip(&other.rows) {
            *sum = sum.saturating_add(*more);
        }
        for (sum, more) in self.squares.iter_mut().zip(&other.squares) {
            *sum += more;
        }
        Ok(())
    }

    /// Returns the estimated mean KL divergence per token, in nats, of an error in a matrix. `errors` has e H eT for each row e of the
    /// error, with H the mean of x xT over the inputs of that matrix. The estimates of the matrices of a weight add up.
    ///
    /// Returns `None` if there is no such matrix, or not one error for each of its rows. A matrix that no token used costs nothing.
    pub fn loss(&self, matrix: usize, errors: &[f64]) -> Option<f64> {
        let squares = self.squares(matrix)?;
        if errors.len() != squares.len() {
            return None;
        }
        let sum: f64 = squares.iter().zip(errors).map(|(square, error)| square * error).sum();
        Some(if self.tokens == 0 {
            0.0
        } else {
            sum / (2.0 * self.tokens as f64)
        })
    }

    /// Returns the bytes of a file of a weight of that shape.
    pub fn file_bytes(outputs: u64, matrices: u64) -> u64 {
        let numbers = matrices.saturating_mul(outputs.saturating_add(1)).saturating_add(3);
        numbers.saturating_mul(8).saturating_add(MAGIC.len() as u64)
    }

    /// Returns the sums as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut writer = Writer::new(MAGIC);
        writer.count(self.outputs as u64);
        writer.count(self.rows.len() as u64);
        writer.count(self.tokens);
        self.rows.iter().for_each(|rows| writer.count(*rows));
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
        let (outputs, matrices, tokens) = (reader.count()?, reader.count()?, reader.count()?);
        reader.expect(Self::file_bytes(outputs, matrices))?;
        let rows = (0..matrices).map(|_| reader.count()).collect::<Result<_, _>>()?;
        let squares = reader.rest()?;
        Ok(Self {
            outputs: outputs as usize,
            tokens,
            rows,
            squares,
        })
    }
}

fn sums_are_finite(sums: &[f64]) -> bool {
    sums.iter().all(|sum| sum.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same each time.
    fn numbers(count: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn estimates_are_those_of_the_exact_form_where_inputs_and_gradients_are_independent() {
        let (tokens, columns, outputs) = (20_000, 6, 5);
        let (inputs, deltas) = (numbers(tokens * columns, 7), numbers(tokens * outputs, 8));
        let errors = numbers(outputs * columns, 9);
        let mut factors = OutputFactors::new(outputs, 1);
        for deltas in deltas.chunks(1000 * outputs) {
            factors.add(0, deltas).unwrap();
        }
        factors.add_tokens(tokens as u64);
        let mut exact = 0.0;
        let mut means = vec![0.0; outputs];
        for (inputs, deltas) in inputs.chunks(columns).zip(deltas.chunks(outputs)) {
            for (row, delta) in deltas.iter().enumerate() {
                let error = errors[row * columns..][..columns].iter().zip(inputs);
                let change = f64::from(error.map(|(e, x)| e * x).sum::<f32>());
                exact += (f64::from(*delta) * change).powi(2) / (2.0 * tokens as f64);
                means[row] += change * change / tokens as f64;
            }
        }
        let estimate = factors.loss(0, &means).unwrap();
        assert!((estimate / exact - 1.0).abs() < 0.02, "{estimate} for {exact}");
    }

    #[test]
    fn sums_do_not_depend_on_threads_and_parts_add_up() {
        let deltas = numbers(300 * 170, 3);
        let of = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut factors = OutputFactors::new(170, 2);
                factors.add(1, &deltas).unwrap();
                factors
            })
        };
        assert_eq!(of(1), of(5));
        let mut sum = of(1);
        sum.add_tokens(10);
        sum.merge(&of(2)).unwrap();
        assert_eq!(sum.rows(1), Some(600));
        assert_eq!(sum.rows(0), Some(0));
        let (sum, once) = (sum.squares(1).unwrap()[5], of(1).squares(1).unwrap()[5]);
        assert_eq!(sum, 2.0 * once);
        assert!(once > 0.0);
    }

    #[test]
    fn an_expert_that_few_tokens_use_costs_less() {
        let mut factors = OutputFactors::new(1, 2);
        factors.add(0, &[2.0; 90]).unwrap();
        factors.add(1, &[2.0; 10]).unwrap();
        factors.add_tokens(100);
        assert_eq!(factors.loss(0, &[0.5]), Some(0.9));
        assert_eq!(factors.loss(1, &[0.5]), Some(0.1));
    }

    #[test]
    fn files_come_back_and_bad_ones_are_refused() {
        let mut factors = OutputFactors::new(3, 2);
        factors.add(1, &[1.0, 2.0, 3.0, -1.0, 0.5, 0.25]).unwrap();
        factors.add_tokens(4);
        let bytes = factors.to_bytes();
        assert_eq!(bytes.len() as u64, OutputFactors::file_bytes(3, 2));
        assert_eq!(OutputFactors::parse(&bytes), Ok(factors));
        assert_eq!(OutputFactors::parse(&bytes[1..]), Err(FactorsError::Magic));
        for len in 16..bytes.len() {
            assert!(matches!(
                OutputFactors::parse(&bytes[..len]),
                Err(FactorsError::Length { .. })
            ));
        }
        let mut huge = bytes.clone();
        huge[16..32].fill(0xff);
        assert!(matches!(OutputFactors::parse(&huge), Err(FactorsError::Length { .. })));
        let mut negative = bytes;
        let last = negative.len() - 1;
        negative[last] |= 0x80;
        assert_eq!(OutputFactors::parse(&negative), Err(FactorsError::NotFinite));
    }

    #[test]
    fn bad_gradients_are_refused() {
        let mut factors = OutputFactors::new(2, 1);
        assert_eq!(factors.add(1, &[0.0; 2]), Err(FactorsError::Shape));
        assert_eq!(factors.add(0, &[0.0; 3]), Err(FactorsError::Shape));
        assert_eq!(factors.add(0, &[0.0, f32::NAN]), Err(FactorsError::NotFinite));
        assert_eq!(factors.loss(0, &[1.0]), None);
        assert_eq!(factors.loss(1, &[1.0, 1.0]), None);
    }
}
