//! The refinement of a panel of rows of one matrix.
//!
//! A panel is kept column by column, so that the inner loops are over rows. Matrix products give the objective and the products of A with the
//! errors once, through A = R RT: each takes one multiplication and addition for every two columns. In each pass of descent the columns are taken in blocks. Inside a
//! block the products are updated with every change; after it, those of all other columns with the changes of the block.

use ndarray::linalg::general_mat_mul;
use ndarray::s;

use super::codebook;
use super::codebook::Grid;
use super::codec::Codec;
use super::codec::Codes;
use super::codec::MAX_BLOCK;
use super::codec::codec;
use super::descent;
use super::descent::LANES;
use super::descent::Levels;
use super::descent::Scales;
use super::factor::Factor;
use super::factor::view;
use super::factor::view_mut;
use super::kernels::Kernels;
use super::objective;
use super::products::Changes;
use super::products::Products;
use crate::moments::SecondMoments;
use crate::tensor_type::TensorType;

/// Rows of a panel. The results do not depend on it.
pub const PANEL: usize = 128;
/// Columns of a block of descent.
const BLOCK: usize = 128;
/// Columns of a block of feedback whose scales are already known.
const FEEDBACK: usize = 64;
/// Passes of descent from ggml's bytes.
const PASSES: usize = 4;
/// Passes of descent after the feedback of errors.
const PASSES_AFTER_FEEDBACK: usize = 3;
/// Passes of descent over a codebook.
const PASSES_OF_CODEBOOK: usize = 3;
/// If feedback with descent leaves a row less than this share of its objective, descent from ggml's bytes is not tried for it.
const FEEDBACK_SUFFICES: f64 = 0.9;
/// A row changes only if that lowers its objective by more than this share of it: more than the rounding of the objective.
const LEAST_GAIN: f64 = 1e-5;

/// Rows to refine.
#[derive(Clone, Copy)]
pub struct Panel<'a> {
    /// The moments of the inputs that decide.
    pub factor: &'a Factor,
    /// The moments of other inputs, to report the error on.
    pub validation: Option<&'a SecondMoments>,
    /// The source, row by row; all values are finite.
    pub values: &'a [f32],
    /// The bytes that ggml's quantizer made of the rows.
    pub quantized: &'a [u8],
}

/// What came of the rows of one or several panels.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Outcome {
    /// The objective eT A e of ggml's bytes, summed over the rows. A = H + damping * mean(diag H) * I.
    pub before: f64,
    /// The same of the result.
    pub after: f64,
    /// eT H e of ggml's bytes with the moments for validation; 0 without.
    pub validation_before: f64,
    /// The same of the result.
    pub validation_after: f64,
    /// Rows whose codes come from descent from ggml's bytes.
    pub rows_by_descent: u64,
    /// Rows whose codes come from feedback of errors and descent after it.
    pub rows_by_feedback: u64,
    /// Rows that keep ggml's bytes.
    pub rows_kept: u64,
}

impl Outcome {
    /// Adds what came of other rows.
    pub fn add(&mut self, other: &Self) {
        self.before += other.before;
        self.after += other.after;
        self.validation_before += other.validation_before;
        self.validation_after += other.validation_after;
        self.rows_by_descent += other.rows_by_descent;
        self.rows_by_feedback += other.rows_by_feedback;
        self.rows_kept += other.rows_kept;
    }
}

/// What the rows of a panel are worked on in. One for each thread.
#[derive(Default)]
pub struct Workspace {
    source: Vec<f32>,
    errors: Vec<f32>,
    chosen: Vec<f32>,
    codes: Vec<u16>,
    signs: Vec<u8>,
    scales: Scales,
    /// The products of a block, or compensated columns.
    work: Vec<f32>,
    /// The compensated columns of a block as they would be without rounding, and the source less these.
    ahead: Vec<f32>,
    moved: Vec<f32>,
    /// The part of A or of the feedback for a block.
    matrix: Vec<f32>,
    /// D RT e / unit for the errors, with D the diagonal of R: A e = R D^-1 (D RT e).
    scaled: Vec<f32>,
    /// How much the values of a block grew, all of them and those that did.
    made: Vec<f32>,
    changes: Changes,
    /// A e.
    products: Products,
    /// Rows as numbers, row by row.
    rows: Vec<f32>,
    /// Blocks of a column of blocks, and the rows' bytes after each way.
    blocks: Vec<u8>,
    descended: Vec<u8>,
    fed_back: Vec<u8>,
    forms: objective::Buffers,
    failed: Vec<bool>,
}

impl Workspace {
    /// Returns the bytes that the workspace holds now.
    #[cfg(test)]
    pub(crate) fn held(&self) -> u64 {
        let numbers = [
            &self.source,
            &self.errors,
            &self.chosen,
            &self.scales.factors,
            &self.scales.inverses,
            &self.scales.minimums,
            &self.work,
            &self.ahead,
            &self.moved,
            &self.matrix,
            &self.scaled,
            &self.made,
            &self.rows,
        ];
        let numbers: usize = numbers.iter().map(|values| 4 * values.capacity()).sum();
        let bytes = [&self.blocks, &self.descended, &self.fed_back, &self.signs];
        let bytes: usize = bytes.iter().map(|bytes| bytes.capacity()).sum();
        (numbers + bytes + 2 * self.codes.capacity()) as u64 + self.forms.held() + self.products.held(&self.changes)
    }

    /// Returns the most bytes that a workspace takes for rows of so many values of a type.
    pub fn bytes(ty: TensorType, columns: u64) -> u64 {
        let panel = columns.saturating_mul(PANEL as u64);
        let Some(codec) = codec(ty) else { return 0 };
        let scales = panel / codec.group as u64 * if codec.minimums { 12 } else { 8 };
        let codes = match codec.codes {
            Codes::Codebook(book) => panel / book.width as u64 * 2 + panel / 8,
            _ => panel * 4,
        };
        // Source, errors, rows as numbers, factored errors.
        let numbers = panel * 16;
        let bytes = panel / codec.block() as u64 * codec.bytes() as u64 * 2;
        let blocks = ((3 * MAX_BLOCK + BLOCK) * PANEL * 4 + BLOCK * BLOCK * 4 + codec.bytes() * PANEL) as u64;
        let products = Products::bytes(columns, PANEL as u64, BLOCK as u64);
        numbers + scales + codes + bytes + blocks + products + objective::Buffers::bytes(PANEL)
    }
}

/// The refinement of one type, ready to work on panels.
#[derive(Clone)]
pub struct Rounding {
    codec: &'static Codec,
    method: Method,
}

#[derive(Clone)]
enum Method {
    Levels(Levels),
    Codebook(std::sync::Arc<Grid>),
}

impl Rounding {
    /// Makes the refinement of a type; nothing for a type that is not refined ([`why_not_refined`](super::why_not_refined)). The grids of codebooks
    /// are read from the dequantizer.
    ///
    /// # Errors
    ///
    /// Those of the kernels.
    pub fn new<K: Kernels>(ty: TensorType, kernels: &K) -> Result<Option<Self>, K::Error> {
        let Some(codec) = codec(ty) else { return Ok(None) };
        let method = match (&codec.codes, Levels::new(&codec.codes)) {
            (_, Some(levels)) => Method::Levels(levels),
            (Codes::Codebook(book), None) => {
                let per_block = codec.codes_per_block();
                let mut blocks = vec![0_u8; book.entries / per_block * codec.bytes()];
                for (at, block) in blocks.chunks_exact_mut(codec.bytes()).enumerate() {
                    // Every codebook type begins with `d`.
                    block[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
                    let codes: Vec<u16> = (0..per_block).map(|code| (at * per_block + code) as u16).collect();
                    (codec.write_codes)(block, &codes);
                }
                let mut numbers = vec![0.0; book.entries * book.width];
                kernels.dequantize(ty, &blocks, &mut numbers)?;
                for number in &mut numbers {
                    *number /= book.unit;
                }
                Method::Codebook(std::sync::Arc::new(Grid::new(book, &numbers)))
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { codec, method }))
    }

    /// Computes the values that whole blocks stand for from their scales and codes as the refinement reads them, to compare with the engine's
    /// dequantizer. `out` has as many values as the blocks.
    pub fn values(&self, bytes: &[u8], out: &mut [f32]) {
        let codec = self.codec;
        let mut codes = [0_u16; MAX_BLOCK];
        let mut signs = [0_u8; MAX_BLOCK / 8];
        let levels = code_levels(codec);
        for (bytes, out) in bytes
            .chunks_exact(codec.bytes())
            .zip(out.chunks_exact_mut(codec.block()))
        {
            let (mut scales, mut minimums) = ([0.0; 16], [0.0; 16]);
            (codec.read_scales)(bytes, &mut scales, &mut minimums);
            (codec.read_codes)(bytes, &mut codes[..codec.codes_per_block()]);
            if let Some((read_signs, _)) = codec.signs {
                read_signs(bytes, &mut signs);
            }
            for (column, value) in out.iter_mut().enumerate() {
                let scale = scales[column / codec.group];
                *value = match &self.method {
                    Method::Levels(_) => scale * levels[usize::from(codes[column])] - minimums[column / codec.group],
                    Method::Codebook(grid) => {
                        let negative = signs[column / 8] >> (column % 8) & 1 == 1;
                        grid.value(scale, codes[column / grid.width], column % grid.width, negative)
                    }
                };
            }
        }
    }

    /// Reads the codes and signs of whole blocks and writes them again, which changes nothing.
    pub fn rewrite_codes(&self, bytes: &mut [u8]) {
        let codec = self.codec;
        let mut codes = [0_u16; MAX_BLOCK];
        let mut signs = [0_u8; MAX_BLOCK / 8];
        for bytes in bytes.chunks_exact_mut(codec.bytes()) {
            let codes = &mut codes[..codec.codes_per_block()];
            (codec.read_codes)(bytes, codes);
            (codec.write_codes)(bytes, codes);
            if let Some((read, write)) = codec.signs {
                read(bytes, &mut signs);
                write(bytes, &signs);
            }
        }
    }

    /// Returns the additions and multiplications of refining rows of a type, without those of rows that feedback hardly improves, and without
    /// the updates after changes, which are few.
    pub fn operations(ty: TensorType, columns: u64, rows: u64, validation: bool) -> f64 {
        let Some(codec) = codec(ty) else { return 0.0 };
        let columns = columns as f64;
        let square = columns.powi(2);
        // The objective of ggml's bytes and of the result.
        let forms = if validation { 4.0 } else { 2.0 } * square;
        // The products of A with the errors, and the updates inside blocks.
        let descent = |passes: usize| square + columns * (passes * BLOCK) as f64;
        let row = match &codec.codes {
            Codes::Codebook(book) => {
                descent(PASSES_OF_CODEBOOK) + columns * PASSES_OF_CODEBOOK as f64 * Grid::operations(book)
            }
            _ if codec.few_levels() => square + descent(PASSES_AFTER_FEEDBACK) + descent(PASSES),
            _ => square + descent(PASSES_AFTER_FEEDBACK),
        };
        rows as f64 * (row + forms)
    }

    /// Refines the codes of a panel of at most [`PANEL`] rows into `out`. Each row gets the bytes with the lowest objective of
    /// ggml's, of feedback with descent, and of descent from ggml's where that is tried. The objectives are computed from the final bytes.
    ///
    /// # Errors
    ///
    /// Those of the kernels.
    pub fn refine<K: Kernels>(
        &self,
        kernels: &K,
        panel: &Panel<'_>,
        workspace: &mut Workspace,
        out: &mut [u8],
    ) -> Result<Outcome, K::Error> {
        let n = panel.factor.columns();
        let count = panel.values.len() / n;
        let work = &mut Work {
            rounding: self,
            kernels,
            panel,
            n,
            count,
            rows: count.next_multiple_of(LANES),
            row_bytes: n / self.codec.block() * self.codec.bytes(),
            space: workspace,
        };
        work.run(out)
    }
}

/// A panel being worked on.
struct Work<'a, K> {
    rounding: &'a Rounding,
    kernels: &'a K,
    panel: &'a Panel<'a>,
    n: usize,
    /// Rows.
    count: usize,
    /// Rows with those that fill the last lanes.
    rows: usize,
    row_bytes: usize,
    space: &'a mut Workspace,
}

impl<K: Kernels> Work<'_, K> {
    fn run(&mut self, out: &mut [u8]) -> Result<Outcome, K::Error> {
        let (n, rows, count) = (self.n, self.rows, self.count);
        for buffer in [&mut self.space.source, &mut self.space.errors] {
            buffer.clear();
            buffer.resize(n * rows, 0.0);
        }
        transpose(self.panel.values, n, rows, &mut self.space.source);
        self.load_errors(self.panel.quantized)?;
        let before = self.forms();
        let mut outcome = Outcome::default();
        if let Some(moments) = self.panel.validation {
            outcome.validation_before = self.validate(moments);
        }

        // Descent from ggml's bytes takes as long as feedback and wins in few rows of types of more than 2 bits: there it is tried
        // only for rows that feedback hardly improves. Whether a row is tried depends on this row alone.
        let mut descended = std::mem::take(&mut self.space.descended);
        let mut by_descent = vec![f64::INFINITY; rows];
        let always = self.rounding.codec.few_levels() || matches!(self.rounding.method, Method::Codebook(_));
        if always {
            by_descent = self.descend_from_quantized(&mut descended, &before)?;
        }
        let mut fed_back = std::mem::take(&mut self.space.fed_back);
        let by_feedback = match &self.rounding.method {
            Method::Levels(levels) => self.feed_back(&levels.clone(), &mut fed_back)?,
            Method::Codebook(_) => vec![f64::INFINITY; rows],
        };
        let suffices = |row: usize| by_feedback[row] < before[row] * FEEDBACK_SUFFICES;
        if !always && !(0..count).all(suffices) {
            self.load_errors(self.panel.quantized)?;
            let _ = self.forms();
            by_descent = self.descend_from_quantized(&mut descended, &before)?;
            for row in (0..count).filter(|row| suffices(*row)) {
                by_descent[row] = f64::INFINITY;
            }
        }

        // The estimates decide between the two ways, and the form of the final bytes whether the better is accepted.
        let row_bytes = self.row_bytes;
        let ways: Vec<&[u8]> = (0..count)
            .map(|row| {
                let bytes = row * row_bytes..(row + 1) * row_bytes;
                if by_feedback[row] < by_descent[row] {
                    &fed_back[bytes]
                } else {
                    &descended[bytes]
                }
            })
            .collect();
        for (out, way) in out.chunks_exact_mut(row_bytes).zip(ways) {
            out.copy_from_slice(way);
        }
        self.load_errors(out)?;
        let mut after = self.forms();
        let mut restored = false;
        for row in 0..count {
            let bytes = row * row_bytes..(row + 1) * row_bytes;
            let lower = after[row] < before[row] * (1.0 - LEAST_GAIN);
            if lower {
                if by_feedback[row] < by_descent[row] {
                    outcome.rows_by_feedback += 1;
                } else {
                    outcome.rows_by_descent += 1;
                }
            } else {
                out[bytes.clone()].copy_from_slice(&self.panel.quantized[bytes]);
                after[row] = before[row];
                outcome.rows_kept += 1;
                restored = true;
            }
            outcome.before += before[row];
            outcome.after += after[row];
        }
        if let Some(moments) = self.panel.validation {
            if restored {
                self.load_errors(out)?;
            }
            outcome.validation_after = self.validate(moments);
        }
        self.space.descended = descended;
        self.space.fed_back = fed_back;
        Ok(outcome)
    }

    /// Sets the errors to the source less what bytes stand for.
    fn load_errors(&mut self, bytes: &[u8]) -> Result<(), K::Error> {
        let space = &mut *self.space;
        space.rows.resize(self.count * self.n, 0.0);
        self.kernels
            .dequantize(self.rounding.codec.ty, bytes, &mut space.rows)?;
        transpose(&space.rows, self.n, self.rows, &mut space.errors);
        for (error, source) in space.errors.iter_mut().zip(&space.source) {
            *error = source - *error;
        }
        self.kernels.check()
    }

    /// Returns the objectives of the errors, and keeps what their products with A are made of.
    fn forms(&mut self) -> Vec<f64> {
        let space = &mut *self.space;
        space.scaled.resize(self.n * self.rows, 0.0);
        let mut sums = vec![0.0; self.rows];
        let matrix = &mut space.matrix;
        objective::add_forms(self.panel.factor, &space.errors, &mut space.scaled, matrix, &mut sums);
        sums
    }

    /// Returns the sum of eT H e of all rows with other moments.
    fn validate(&mut self, moments: &SecondMoments) -> f64 {
        let space = &mut *self.space;
        let mut sums = vec![0.0; self.rows];
        space.forms.add_forms(moments, &space.errors, &mut sums);
        sums[..self.count].iter().sum()
    }

    /// Descends from ggml's bytes, whose objectives have been computed, into `bytes`, and returns the objectives as the steps add up.
    fn descend_from_quantized(&mut self, bytes: &mut Vec<u8>, before: &[f64]) -> Result<Vec<f64>, K::Error> {
        bytes.clear();
        bytes.extend_from_slice(self.panel.quantized);
        let codec = self.rounding.codec;
        self.start_scales();
        for block in 0..self.n / codec.block() {
            self.load_scales(bytes, self.row_bytes, block * codec.bytes(), block);
        }
        self.load_codes(bytes);
        let mut objective = before.to_vec();
        let passes = match &self.rounding.method {
            Method::Levels(_) => PASSES,
            Method::Codebook(_) => PASSES_OF_CODEBOOK,
        };
        self.descend(passes, &mut objective)?;
        self.store_codes(bytes);
        self.mark_failed(&mut objective);
        Ok(objective)
    }

    fn mark_failed(&self, objective: &mut [f64]) {
        for (objective, failed) in objective.iter_mut().zip(&self.space.failed) {
            if *failed || objective.is_nan() {
                *objective = f64::INFINITY;
            }
        }
    }

    /// Computes the products of A with the errors from what the objective was computed from.
    fn start_products(&mut self) -> Result<(), K::Error> {
        let (n, rows) = (self.n, self.rows);
        let factor = self.panel.factor;
        let mixed = factor.mixed();
        let space = &mut *self.space;
        space.products.start(n, rows);
        space.work.resize(MAX_BLOCK * rows, 0.0);
        for start in (0..n).step_by(BLOCK) {
            self.kernels.check()?;
            let end = n.min(start + BLOCK);
            let width = end - start;
            let products = &mut space.work[..width * rows];
            let scaled = &space.scaled[start * rows..];
            let (own, after) = scaled.split_at(width * rows);
            products.copy_from_slice(own);
            factor.load_lower(start, width, &mut space.matrix);
            let (tile, own) = (view(&space.matrix, width, width), view(own, width, rows));
            let mut result = view_mut(products, width, rows);
            general_mat_mul(1.0, &tile.t(), &own, 1.0, &mut result);
            if end < n {
                let part = mixed.slice(s![end.., start..end]);
                general_mat_mul(1.0, &part.t(), &view(after, n - end, rows), 1.0, &mut result);
            }
            space.products.store(start, products);
        }
        Ok(())
    }

    /// Passes over all columns, until nothing changes. The objective of the errors has just been computed.
    fn descend(&mut self, passes: usize, objective: &mut [f64]) -> Result<(), K::Error> {
        let (n, rows) = (self.n, self.rows);
        self.start_products()?;
        let space = &mut *self.space;
        space.made.resize(BLOCK * rows, 0.0);
        let mut gains = vec![0.0; rows];
        for pass in 1..=passes {
            let mut changed = false;
            for start in (0..n).step_by(BLOCK) {
                self.kernels.check()?;
                let end = n.min(start + BLOCK);
                let width = end - start;
                space.matrix.resize(width * width, 0.0);
                let matrix = &mut space.matrix[..];
                for row in start..end {
                    let values = &self.panel.factor.upper_row(row)[..end - row];
                    for (column, value) in (row..end).zip(values) {
                        matrix[(row - start) * width + column - start] = *value;
                        matrix[(column - start) * width + row - start] = *value;
                    }
                }
                let work = &mut space.work[..width * rows];
                space.products.load(start, work);
                let made = &mut space.made[..width * rows];
                let columns = start * rows..end * rows;
                let any = match &self.rounding.method {
                    Method::Levels(levels) => descent::descend(
                        levels,
                        &space.scales,
                        matrix,
                        &mut descent::Block {
                            start,
                            rows,
                            source: &space.source[columns.clone()],
                            errors: &mut space.errors[columns.clone()],
                            chosen: &mut space.chosen[columns],
                            work,
                            made,
                            objective: &mut gains,
                        },
                    ),
                    Method::Codebook(grid) => codebook::descend(
                        grid,
                        &space.scales,
                        matrix,
                        &mut codebook::Block {
                            start,
                            rows,
                            source: &space.source[columns.clone()],
                            errors: &mut space.errors[columns],
                            work,
                            made,
                            codes: &mut space.codes[start / grid.width * rows..end / grid.width * rows],
                            signs: &mut space.signs[start / 8 * rows..end / 8 * rows],
                            objective: &mut gains,
                        },
                    ),
                };
                if any {
                    changed = true;
                    space.changes.collect(made, rows);
                    // In the last pass nobody reads the products before the block again.
                    let from = if pass == passes { end } else { 0 };
                    space.products.update(self.panel.factor, start, &space.changes, from);
                }
            }
            if !changed {
                break;
            }
        }
        for (objective, gain) in objective.iter_mut().zip(&gains) {
            *objective += gain * self.panel.factor.unit();
        }
        Ok(())
    }

    /// Rounds the columns from left to right with feedback of the errors, on scales that ggml finds for the compensated columns, and
    /// descends from there. Returns the objectives as the steps add up.
    fn feed_back(&mut self, levels: &Levels, bytes: &mut Vec<u8>) -> Result<Vec<f64>, K::Error> {
        let (n, rows) = (self.n, self.rows);
        let codec = self.rounding.codec;
        let step = if codec.block() == MAX_BLOCK {
            FEEDBACK
        } else {
            codec.block()
        };
        bytes.clear();
        bytes.resize(self.count * self.row_bytes, 0);
        self.start_scales();
        self.space.chosen.clear();
        self.space.chosen.resize(n * rows, 0.0);
        self.space.work.resize(MAX_BLOCK * rows, 0.0);
        self.space.scaled.resize(n * rows, 0.0);
        let mut objective = vec![0.0; rows];
        let mixed = self.panel.factor.mixed();
        for outer in (0..n).step_by(MAX_BLOCK) {
            self.kernels.check()?;
            let outer_end = n.min(outer + MAX_BLOCK);
            {
                let space = &mut *self.space;
                let work = &mut space.work[..(outer_end - outer) * rows];
                work.copy_from_slice(&space.source[outer * rows..outer_end * rows]);
                if outer > 0 {
                    let errors = view(&space.errors[..outer * rows], outer, rows);
                    let part = mixed.slice(s![outer..outer_end, ..outer]);
                    general_mat_mul(1.0, &part, &errors, 1.0, &mut view_mut(work, outer_end - outer, rows));
                }
            }
            for start in (outer..outer_end).step_by(step) {
                let end = outer_end.min(start + step);
                let width = end - start;
                if start > outer {
                    let space = &mut *self.space;
                    let errors = view(&space.errors[outer * rows..start * rows], start - outer, rows);
                    let part = mixed.slice(s![start..end, outer..start]);
                    let work = &mut space.work[(start - outer) * rows..(end - outer) * rows];
                    general_mat_mul(1.0, &part, &errors, 1.0, &mut view_mut(work, width, rows));
                }
                if start.is_multiple_of(codec.block()) {
                    self.find_scales(outer, start, bytes)?;
                }
                let space = &mut *self.space;
                load_feedback(self.panel.factor, start, width, &mut space.matrix);
                let matrix = &space.matrix[..width * width];
                let columns = start * rows..end * rows;
                descent::feed_back(
                    levels,
                    &space.scales,
                    matrix,
                    &self.panel.factor.pivots()[start..end],
                    &mut descent::Block {
                        start,
                        rows,
                        source: &space.source[columns.clone()],
                        errors: &mut space.errors[columns.clone()],
                        chosen: &mut space.chosen[columns.clone()],
                        made: &mut space.scaled[columns],
                        work: &mut space.work[(start - outer) * rows..(end - outer) * rows],
                        objective: &mut objective,
                    },
                );
            }
        }
        for objective in &mut objective {
            *objective *= self.panel.factor.unit();
        }
        self.descend(PASSES_AFTER_FEEDBACK, &mut objective)?;
        self.store_codes(bytes);
        self.mark_failed(&mut objective);
        Ok(objective)
    }

    /// Quantizes the compensated columns of a block with the engine, for its scales. `outer` is the column that the compensated
    /// columns begin with.
    fn find_scales(&mut self, outer: usize, start: usize, bytes: &mut [u8]) -> Result<(), K::Error> {
        let codec = self.rounding.codec;
        let (block, rows, count) = (codec.block(), self.rows, self.count);
        let step = block.min(FEEDBACK);
        let space = &mut *self.space;
        // What the columns would be rounded to if they were not rounded: each moves the ones after it. This is the least of the
        // objective over all columns that are not rounded yet, as in GPTQ.
        space.ahead.clear();
        space
            .ahead
            .extend_from_slice(&space.work[(start - outer) * rows..][..block * rows]);
        space.moved.resize(block * rows, 0.0);
        for first in (start..start + block).step_by(step) {
            let (done, width) = (first - start, step.min(start + block - first));
            let (moved, rest) = space.moved.split_at_mut(done * rows);
            let ahead = &mut space.ahead[done * rows..(done + width) * rows];
            if done > 0 {
                let part = self.panel.factor.mixed();
                let part = part.slice(s![first..first + width, start..first]);
                let mut ahead = view_mut(ahead, width, rows);
                general_mat_mul(1.0, &part, &view(moved, done, rows), 1.0, &mut ahead);
            }
            load_feedback(self.panel.factor, first, width, &mut space.matrix);
            let source = &space.source[first * rows..(first + width) * rows];
            let matrix = &space.matrix[..width * width];
            descent::move_ahead(matrix, rows, source, ahead, &mut rest[..width * rows]);
        }
        let values = &mut space.rows;
        values.resize(count * self.n, 0.0);
        let values = &mut values[..count * block];
        let compensated = &space.ahead[..];
        for (row, values) in values.chunks_exact_mut(block).enumerate() {
            for (value, column) in values.iter_mut().zip(compensated.chunks_exact(rows)) {
                *value = column[row];
            }
            if values.iter().any(|value| !value.is_finite()) {
                // The scale search expects finite numbers.
                space.failed[row] = true;
                values.fill(0.0);
            }
        }
        space.blocks.resize(count * codec.bytes(), 0);
        let importances = &self.panel.factor.importances()[start..start + block];
        self.kernels
            .quantize(codec.ty, values, block, importances, &mut space.blocks)?;
        let at = start / block * codec.bytes();
        for (bytes, block) in bytes
            .chunks_exact_mut(self.row_bytes)
            .zip(space.blocks.chunks_exact(codec.bytes()))
        {
            bytes[at..at + codec.bytes()].copy_from_slice(block);
        }
        self.load_scales(bytes, self.row_bytes, at, start / block);
        Ok(())
    }

    /// Makes space for the scales, and sets those of all rows to zero.
    fn start_scales(&mut self) {
        let codec = self.rounding.codec;
        let (groups, rows) = (self.n / codec.group, self.rows);
        let space = &mut *self.space;
        space.scales.group = codec.group;
        for values in [&mut space.scales.factors, &mut space.scales.inverses] {
            values.clear();
            values.resize(groups * rows, 0.0);
        }
        space.scales.minimums.clear();
        space
            .scales
            .minimums
            .resize(if codec.minimums { groups * rows } else { 0 }, 0.0);
        space.failed.clear();
        space.failed.resize(rows, false);
    }

    /// Reads the scales of a block of all rows, each at an offset in its bytes.
    fn load_scales(&mut self, bytes: &[u8], row_bytes: usize, offset: usize, block: usize) {
        let codec = self.rounding.codec;
        let rows = self.rows;
        let groups = codec.block() / codec.group;
        let space = &mut *self.space;
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            let (mut scales, mut minimums) = ([0.0; 16], [0.0; 16]);
            (codec.read_scales)(&bytes[offset..offset + codec.bytes()], &mut scales, &mut minimums);
            for group in 0..groups {
                let at = (block * groups + group) * rows + row;
                if !(scales[group].is_finite() && minimums[group].is_finite()) {
                    space.failed[row] = true;
                    continue;
                }
                let inverse = 1.0 / scales[group];
                space.scales.factors[at] = scales[group];
                space.scales.inverses[at] = if inverse.is_finite() { inverse } else { 0.0 };
                if codec.minimums {
                    space.scales.minimums[at] = minimums[group];
                }
            }
        }
    }

    /// Reads the codes of all rows, and sets the errors to what they and the scales make.
    fn load_codes(&mut self, bytes: &[u8]) {
        let codec = self.rounding.codec;
        let (n, rows) = (self.n, self.rows);
        let (per_block, blocks) = (codec.codes_per_block(), n / codec.block());
        let space = &mut *self.space;
        let mut codes = [0_u16; MAX_BLOCK];
        match &self.rounding.method {
            Method::Levels(_) => {
                let levels = code_levels(codec);
                space.chosen.clear();
                space.chosen.resize(n * rows, 0.0);
                for (row, bytes) in bytes.chunks_exact(self.row_bytes).enumerate() {
                    for (block, bytes) in bytes.chunks_exact(codec.bytes()).enumerate() {
                        (codec.read_codes)(bytes, &mut codes[..per_block]);
                        for (at, code) in codes[..per_block].iter().enumerate() {
                            space.chosen[(block * per_block + at) * rows + row] = levels[usize::from(*code)];
                        }
                    }
                }
                for column in 0..n {
                    let group = column / codec.group * rows;
                    for row in 0..rows {
                        let at = column * rows + row;
                        let minimum = if codec.minimums {
                            space.scales.minimums[group + row]
                        } else {
                            0.0
                        };
                        let value = space.scales.factors[group + row] * space.chosen[at] - minimum;
                        space.errors[at] = space.source[at] - value;
                    }
                }
            }
            Method::Codebook(grid) => {
                let (read_signs, _) = codec.signs.unwrap_or((|_, _| {}, |_, _| {}));
                space.codes.clear();
                space.codes.resize(blocks * per_block * rows, 0);
                space.signs.clear();
                space.signs.resize(n / 8 * rows, 0);
                let mut signs = [0_u8; MAX_BLOCK / 8];
                for (row, bytes) in bytes.chunks_exact(self.row_bytes).enumerate() {
                    for (block, bytes) in bytes.chunks_exact(codec.bytes()).enumerate() {
                        (codec.read_codes)(bytes, &mut codes[..per_block]);
                        for (at, code) in codes[..per_block].iter().enumerate() {
                            space.codes[(block * per_block + at) * rows + row] = *code;
                        }
                        read_signs(bytes, &mut signs);
                        for (at, signs) in signs.iter().enumerate() {
                            space.signs[(block * signs_per_block(codec) + at) * rows + row] = *signs;
                        }
                    }
                }
                for column in 0..n {
                    let group = column / codec.group * rows;
                    for row in 0..rows {
                        let at = column * rows + row;
                        let code = space.codes[column / grid.width * rows + row];
                        let negative = space.signs[column / 8 * rows + row] >> (column % 8) & 1 == 1;
                        let scale = space.scales.factors[group + row];
                        let value = grid.value(scale, code, column % grid.width, negative);
                        space.errors[at] = space.source[at] - value;
                    }
                }
            }
        }
    }

    /// Writes the codes of all rows.
    fn store_codes(&self, bytes: &mut [u8]) {
        let codec = self.rounding.codec;
        let rows = self.rows;
        let per_block = codec.codes_per_block();
        let space = &*self.space;
        let mut codes = [0_u16; MAX_BLOCK];
        let code_of = level_codes(codec);
        for (row, bytes) in bytes.chunks_exact_mut(self.row_bytes).enumerate() {
            for (block, bytes) in bytes.chunks_exact_mut(codec.bytes()).enumerate() {
                for (at, code) in codes[..per_block].iter_mut().enumerate() {
                    let at = (block * per_block + at) * rows + row;
                    *code = match &self.rounding.method {
                        Method::Levels(_) => code_of[(space.chosen[at] as i16 + 128) as usize & 255],
                        Method::Codebook(_) => space.codes[at],
                    };
                }
                (codec.write_codes)(bytes, &codes[..per_block]);
                if let Some((_, write_signs)) = codec.signs {
                    let mut signs = [0_u8; MAX_BLOCK / 8];
                    for (at, signs) in signs.iter_mut().enumerate() {
                        *signs = space.signs[(block * signs_per_block(codec) + at) * rows + row];
                    }
                    write_signs(bytes, &signs);
                }
            }
        }
    }
}

/// Copies the feedback between the columns of a block: what column `i` gives to column `k` in row `i` and column `k`.
fn load_feedback(factor: &Factor, start: usize, width: usize, matrix: &mut Vec<f32>) {
    matrix.resize(width * width, 0.0);
    for row in start..start + width {
        let values = &factor.lower_row(row)[start..];
        for (column, value) in values.iter().enumerate() {
            matrix[column * width + row - start] = *value;
        }
    }
}

fn signs_per_block(codec: &Codec) -> usize {
    codec.block() / 8
}

/// Returns the level of each code.
fn code_levels(codec: &Codec) -> [f32; 256] {
    let mut levels = [0.0; 256];
    for (code, level) in (0_i16..).zip(&mut levels) {
        *level = match codec.codes {
            Codes::Linear { zero, .. } => f32::from(code - zero),
            Codes::Table(table) => f32::from(table[code as usize & 15]),
            Codes::Codebook(_) => 0.0,
        };
    }
    levels
}

/// Returns the code of each level from -128 to 127, the first of equals.
fn level_codes(codec: &Codec) -> [u16; 256] {
    let mut codes = [0; 256];
    match codec.codes {
        Codes::Linear { zero, least, most } => {
            for code in least..=most {
                codes[(code - zero + 128) as usize & 255] = code.cast_unsigned();
            }
        }
        Codes::Table(table) => {
            for (code, level) in table.iter().enumerate().rev() {
                codes[(i16::from(*level) + 128) as usize & 255] = code as u16;
            }
        }
        Codes::Codebook(_) => {}
    }
    codes
}

/// Copies rows of `n` numbers to columns of `rows`.
fn transpose(values: &[f32], n: usize, rows: usize, columns: &mut [f32]) {
    /// Rows that are copied together, so that neighbours in a column are written together.
    const TOGETHER: usize = 8;
    for (start, group) in (0..).step_by(TOGETHER).zip(values.chunks(TOGETHER * n)) {
        for column in 0..n {
            let to = &mut columns[column * rows + start..];
            for (to, row) in to.iter_mut().zip(group.chunks_exact(n)) {
                *to = row[column];
            }
        }
    }
}
