//! Adds up second moments while a model computes.

use std::io;
use std::io::Write;

use ndarray::ArrayView2;
use ndarray::ArrayViewMut2;
use ndarray::linalg::general_mat_mul;
use rayon::prelude::*;

use super::file::Header;

/// Columns of a tile. Each tile of the triangle is one matrix product and one piece of parallel work.
const TILE: usize = 256;

/// The sums of some inputs of one length: one for a plain product, one for each expert of a routed one.
///
/// The sums do not depend on the number of threads: each tile is added up by one thread at a time, in the order of the calls. They are the
/// same on every processor with fused multiply-add, for the order of additions within a product is fixed, too.
#[derive(Debug)]
pub struct Accumulator {
    columns: usize,
    rows: Vec<u64>,
    /// For each matrix the tiles of the upper triangle, row by row. Empty until the matrix has input.
    tiles: Vec<Vec<Tile>>,
}

/// The sums of x_i x_j for i and j from two ranges of columns.
#[derive(Debug)]
struct Tile {
    row: usize,
    column: usize,
    height: usize,
    width: usize,
    sums: Vec<f32>,
}

impl Accumulator {
    /// Prepares sums for `matrices` inputs of `columns` numbers.
    pub fn new(columns: usize, matrices: usize) -> Self {
        Self {
            columns,
            rows: vec![0; matrices],
            tiles: (0..matrices).map(|_| Vec::new()).collect(),
        }
    }

    /// Returns the bytes of memory that the sums of `matrices` inputs of `columns` numbers take.
    pub fn bytes(columns: u64, matrices: u64) -> u64 {
        let (columns, tile) = (u128::from(columns), TILE as u128);
        let (whole, rest) = (columns / tile, columns % tile);
        // Whole tiles above and on the diagonal, the column of partial tiles, and the last one.
        let sums = whole * (whole + 1) / 2 * tile * tile + whole * tile * rest + rest * rest;
        let bytes = sums.saturating_mul(4).saturating_mul(u128::from(matrices));
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Returns the multiply-adds of adding `rows` input vectors of `columns` numbers.
    pub fn multiply_adds(columns: u64, rows: f64) -> f64 {
        Self::bytes(columns, 1) as f64 / 4.0 * rows
    }

    /// Returns the length of the input vectors.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the number of inputs.
    pub fn matrices(&self) -> usize {
        self.rows.len()
    }

    /// Adds input vectors, one after the other: some for each of the given matrices, which must be different ones. Vectors of another
    /// length, and matrices that there are not, are a mistake of the caller.
    pub fn add(&mut self, inputs: &[(usize, &[f32])]) {
        let columns = self.columns;
        let mut of_matrix: Vec<Option<&[f32]>> = vec![None; self.rows.len()];
        for &(matrix, vectors) in inputs {
            debug_assert!(vectors.len() % columns == 0 && of_matrix[matrix].is_none());
            self.rows[matrix] += (vectors.len() / columns) as u64;
            if self.tiles[matrix].is_empty() {
                self.tiles[matrix] = tiles_of(columns);
            }
            of_matrix[matrix] = Some(vectors);
        }
        let work = self.tiles.iter_mut().zip(of_matrix);
        let work = work.filter_map(|(tiles, vectors)| Some((tiles, vectors?)));
        let work: Vec<(&mut Tile, &[f32])> = work
            .flat_map(|(tiles, vectors)| tiles.iter_mut().map(move |tile| (tile, vectors)))
            .collect();
        work.into_par_iter()
            .for_each(|(tile, vectors)| tile.add(vectors, columns));
    }

    /// Says whether all sums are finite.
    pub fn is_finite(&self) -> bool {
        // Every NaN and infinity of an input reaches its square.
        self.tiles
            .iter()
            .flatten()
            .filter(|tile| tile.row == tile.column)
            .all(|tile| (0..tile.height).all(|at| tile.sums[at * tile.width + at].is_finite()))
    }

    /// Writes the sums as a file ([`super::MomentsFile`]).
    ///
    /// # Errors
    ///
    /// Errors of writing.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let header = Header {
            columns: self.columns,
            rows: self.rows.clone(),
        };
        header.write(out)?;
        let mut line: Vec<u8> = Vec::with_capacity(self.columns * 4);
        for tiles in &self.tiles {
            let mut band = tiles.as_slice();
            for row in 0..self.columns {
                line.clear();
                if tiles.is_empty() {
                    line.resize((self.columns - row) * 4, 0);
                } else {
                    if row % TILE == 0 && row > 0 {
                        band = &band[self.columns.div_ceil(TILE) + 1 - row / TILE..];
                    }
                    let first = row - row % TILE;
                    for tile in band.iter().take_while(|tile| tile.row == first) {
                        let at = row - tile.row;
                        let from = if tile.column == tile.row { at } else { 0 };
                        let sums = &tile.sums[at * tile.width + from..(at + 1) * tile.width];
                        line.extend(sums.iter().flat_map(|sum| sum.to_le_bytes()));
                    }
                }
                out.write_all(&line)?;
            }
        }
        Ok(())
    }
}

/// Divides inputs into groups whose sums fit into some bytes of memory together, in order. An input that does not fit alone is a group.
pub fn passes<T>(inputs: &[T], bytes_of: impl Fn(&T) -> u64, memory: u64) -> Vec<&[T]> {
    let mut passes: Vec<&[T]> = Vec::new();
    let (mut start, mut sum) = (0, 0_u64);
    for (at, input) in inputs.iter().enumerate() {
        let bytes = bytes_of(input);
        sum = sum.saturating_add(bytes);
        if sum > memory && at > start {
            passes.push(&inputs[start..at]);
            (start, sum) = (at, bytes);
        }
    }
    if start < inputs.len() {
        passes.push(&inputs[start..]);
    }
    passes
}

/// Returns the tiles of the upper triangle, row by row, with sums of zero.
fn tiles_of(columns: usize) -> Vec<Tile> {
    let starts = || (0..columns).step_by(TILE);
    let size = |start: usize| TILE.min(columns - start);
    starts()
        .flat_map(|row| {
            starts()
                .filter(move |column| *column >= row)
                .map(move |column| (row, column))
        })
        .map(|(row, column)| Tile {
            row,
            column,
            height: size(row),
            width: size(column),
            sums: vec![0.0; size(row) * size(column)],
        })
        .collect()
}

impl Tile {
    fn add(&mut self, vectors: &[f32], columns: usize) {
        let shape = (vectors.len() / columns, columns);
        let Ok(vectors) = ArrayView2::from_shape(shape, vectors) else {
            return;
        };
        let Ok(mut sums) = ArrayViewMut2::from_shape((self.height, self.width), &mut self.sums) else {
            return;
        };
        let left = vectors.slice(ndarray::s![.., self.row..self.row + self.height]);
        let right = vectors.slice(ndarray::s![.., self.column..self.column + self.width]);
        general_mat_mul(1.0, &left.t(), &right, 1.0, &mut sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moments::MomentsFile;

    /// Some numbers between -1 and 1.
    fn numbers(count: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        std::iter::repeat_with(next).take(count).collect()
    }

    fn file_of(columns: usize, matrices: usize, calls: &[Vec<(usize, &[f32])>]) -> Vec<u8> {
        let mut sums = Accumulator::new(columns, matrices);
        for inputs in calls {
            sums.add(inputs);
        }
        let mut file = Vec::new();
        sums.write(&mut file).unwrap();
        file
    }

    #[test]
    fn sums_are_those_of_all_pairs_of_columns() {
        for columns in [1, 3, 255, 256, 257, 600] {
            let (first, second) = (numbers(7 * columns), numbers(2 * columns));
            let file = file_of(columns, 3, &[vec![(0, &first), (2, &second)], vec![(2, &first)]]);
            let file = MomentsFile::parse(&file).unwrap();
            assert_eq!((file.columns(), file.matrices()), (columns, 3));
            for (matrix, parts) in [(0, vec![&first]), (1, vec![]), (2, vec![&second, &first])] {
                let moments = file.matrix(matrix).unwrap();
                let vectors: Vec<&[f32]> = parts.iter().flat_map(|part| part.chunks(columns)).collect();
                assert_eq!(moments.rows(), vectors.len() as u64);
                let mut sums = moments.sums().iter();
                for i in 0..columns {
                    for j in i..columns {
                        let expected: f64 = vectors.iter().map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
                        let found = f64::from(*sums.next().unwrap());
                        assert!(
                            (found - expected).abs() < 1e-5,
                            "{columns} {matrix} {i} {j}: {found} {expected}"
                        );
                    }
                }
                let diagonal: Vec<f32> = moments.diagonal().collect();
                assert_eq!(diagonal.len(), columns);
                let last: f64 = vectors.iter().map(|x| f64::from(x[columns - 1]).powi(2)).sum();
                assert!((f64::from(diagonal[columns - 1]) - last).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_number_of_threads() {
        let columns = 700;
        let inputs = numbers(600 * columns);
        let file = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| file_of(columns, 1, &[vec![(0, &inputs)], vec![(0, &inputs[..columns * 9])]]))
        };
        let one = file(1);
        assert!([2, 3, 7].into_iter().all(|threads| file(threads) == one));
    }

    #[test]
    fn the_memory_of_sums_is_known() {
        for columns in [1_usize, 255, 256, 257, 600, 1024] {
            let tiles: usize = tiles_of(columns).iter().map(|tile| tile.sums.len()).sum();
            assert_eq!(Accumulator::bytes(columns as u64, 3), 3 * 4 * tiles as u64, "{columns}");
        }
        assert_eq!(Accumulator::bytes(u64::MAX / 2, 1 << 40), u64::MAX);
    }

    #[test]
    fn numbers_that_are_not_finite_are_seen() {
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            let mut sums = Accumulator::new(300, 1);
            let mut vectors = numbers(300);
            sums.add(&[(0, &vectors)]);
            assert!(sums.is_finite());
            vectors[299] = bad;
            sums.add(&[(0, &vectors)]);
            assert!(!sums.is_finite());
        }
    }
}
