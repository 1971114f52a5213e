//! Quantizing rows with ggml's own kernels, streamed: read, convert, quantize, check and write overlap, and memory does
//! not grow with the tensor.
//!
//! A tensor is cut into windows, a window into pieces of whole rows that never cross a matrix (an expert). Pieces are
//! worked on in parallel; while one window is being quantized the window before it is written. ggml quantizes each row by
//! itself, so neither cut changes a byte: the result is what `llama-quantize` writes for the tensor.
#![allow(unsafe_code)]

use std::io::Write;

use llama_cpp_sys_2 as ffi;
use rayon::prelude::*;

use super::log;
use super::sys;
use crate::engine::Cancel;
use crate::engine::EngineError;
use crate::engine::QuantizeJob;
use crate::engine::ReadAt;
use crate::tensor_type::TensorType;

/// Values of a piece: large enough for one read and one kernel call to cost more than their start, small enough for the
/// cache.
const PIECE: u64 = 64 * 1024;
/// Values of a window. Two windows of results are alive at once, at most 4 bytes a value.
const WINDOW: u64 = 2 * 1024 * 1024;
/// Above this magnitude a scale may overflow its 16 bits, so the result is read back.
const SUSPECT: f32 = 32_768.0;

/// A job whose sizes were all checked.
#[derive(Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) job: QuantizeJob<'a>,
    pub(super) rows: u64,
    pub(super) source_row: u64,
    pub(super) result_row: u64,
    piece_rows: u64,
    pub(super) window_rows: u64,
}

/// Returns true if the engine has a kernel that writes `to`.
pub fn can_quantize(to: TensorType) -> bool {
    to.quantizable_target()
}

/// Returns true if the engine can turn `from` into numbers.
pub fn can_dequantize(from: TensorType) -> bool {
    // SAFETY: every `TensorType` is a number below ggml's count, for which a static table has an entry.
    from == TensorType::F32
        || unsafe {
            !ffi::ggml_get_type_traits(sys::ggml_type(from)).is_null()
                && (*ffi::ggml_get_type_traits(sys::ggml_type(from))).to_float.is_some()
        }
}

/// Returns true if the kernel of `to` stops the process without importances; [`quantize`] refuses such a job instead.
pub fn requires_weights(to: TensorType) -> bool {
    // SAFETY: takes any type and reads nothing.
    unsafe { ffi::ggml_quantize_requires_imatrix(sys::ggml_type(to)) }
}

impl<'a> Plan<'a> {
    pub(super) fn new(job: &QuantizeJob<'a>) -> Result<Self, EngineError> {
        let plan = Self::with_any_weights(job)?;
        if job.from != job.to && requires_weights(job.to) && job.weights.is_none() {
            return Err(EngineError::WeightsRequired { to: job.to });
        }
        Ok(plan)
    }

    /// Checks a job that does not quantize, so that its weights may be missing.
    pub(super) fn with_any_weights(job: &QuantizeJob<'a>) -> Result<Self, EngineError> {
        let QuantizeJob {
            from,
            to,
            columns,
            rows_per_matrix,
            matrices,
            weights,
        } = *job;
        let shape = || EngineError::Shape {
            columns,
            rows: rows_per_matrix,
            matrices,
        };
        let limit = i64::MAX as u64 / 4;
        let rows = rows_per_matrix.checked_mul(matrices).ok_or_else(shape)?;
        if columns == 0 || rows == 0 || rows.checked_mul(columns).is_none_or(|values| values > limit) {
            return Err(shape());
        }
        if from != to {
            if !can_dequantize(from) {
                return Err(EngineError::NoDequantizer { from });
            }
            if !can_quantize(to) {
                return Err(EngineError::NoQuantizer { to });
            }
        }
        let row_bytes = |ty: TensorType| {
            let block = ty.block_elements();
            ty.row_bytes(columns)
                .ok_or(EngineError::RowLength { ty, columns, block })
        };
        if let Some(weights) = weights {
            check_weights(weights, columns, matrices)?;
        }
        let piece_rows = (PIECE / columns).clamp(1, rows_per_matrix);
        Ok(Self {
            job: *job,
            rows,
            source_row: row_bytes(from)?,
            result_row: row_bytes(to)?,
            piece_rows,
            window_rows: (WINDOW / columns).max(1),
        })
    }

    /// Cuts the rows from `start` to `end` into pieces that stay within a matrix: (first row, rows).
    pub(super) fn pieces(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut pieces = Vec::new();
        let mut row = start;
        while row < end {
            let matrix_end = (row / self.job.rows_per_matrix + 1) * self.job.rows_per_matrix;
            let count = self.piece_rows.min(matrix_end - row).min(end - row);
            pieces.push((row, count));
            row += count;
        }
        pieces
    }

    /// Returns the importances of a matrix.
    pub(super) fn weights(&self, matrix: u64) -> Option<&'a [f32]> {
        let columns = self.job.columns as usize;
        self.job.weights.map(|weights| {
            let start = if weights.len() == columns {
                0
            } else {
                matrix as usize * columns
            };
            &weights[start..start + columns]
        })
    }
}

/// Refuses importances of the wrong number, and values that the kernels divide by or take roots of.
fn check_weights(weights: &[f32], columns: u64, matrices: u64) -> Result<(), EngineError> {
    let found = weights.len() as u64;
    if found != columns && Some(found) != columns.checked_mul(matrices) {
        return Err(EngineError::WeightsLength {
            found,
            columns,
            matrices,
        });
    }
    match weights.iter().position(|w| !(w.is_finite() && *w >= 0.0)) {
        None => Ok(()),
        Some(at) => Err(EngineError::WeightsValue {
            matrix: at as u64 / columns,
            column: at as u64 % columns,
            value: weights[at].to_string(),
        }),
    }
}

/// Quantizes one tensor and writes the result to `sink` in order.
///
/// `progress` gets the number of source bytes done since its last call, on the calling thread. Works on rayon's
/// threads of the caller's pool; at most about 32 MiB are in flight for a tensor (two windows of results, and a piece of
/// source and numbers per thread), or two rows if those are longer.
///
/// The bytes are those of `llama-quantize` of the same build: ggml's kernel per row, importances per matrix. A source
/// with a NaN or an infinity is refused, and so is a result that is not finite though its source is (F16 above 65,504);
/// `llama-quantize` checks only the result. With `from == to` bytes are copied unseen, as it does.
pub fn quantize(
    job: &QuantizeJob<'_>,
    read: &ReadAt<'_>,
    sink: &mut dyn Write,
    cancel: &Cancel,
    progress: &dyn Fn(u64),
) -> Result<(), EngineError> {
    let plan = Plan::new(job)?;
    cancel.check()?;
    log::start_backend();
    // SAFETY: takes any type; ggml builds the tables of a type once, under its own lock.
    unsafe { ffi::ggml_quantize_init(sys::ggml_type(job.to)) };
    let mut ready: Option<(Vec<u8>, u64)> = None;
    let mut spare = Vec::new();
    let mut row = 0;
    while row < plan.rows || ready.is_some() {
        let end = plan.rows.min(row + plan.window_rows);
        let mut window = Ok(());
        let mut result = std::mem::take(&mut spare);
        let write_ready = |ready: Option<(Vec<u8>, u64)>, sink: &mut dyn Write| {
            ready.map_or(Ok(None), |(bytes, source)| write(sink, bytes, source).map(Some))
        };
        let written = if rayon::current_num_threads() > 1 {
            // The window is quantized on the pool while this thread writes the one before it.
            rayon::in_place_scope(|scope| {
                if row < end {
                    scope.spawn(|_| window = quantize_window(&plan, row, end, read, cancel, &mut result));
                }
                write_ready(ready.take(), sink)
            })?
        } else {
            let written = write_ready(ready.take(), sink)?;
            if row < end {
                window = quantize_window(&plan, row, end, read, cancel, &mut result);
            }
            written
        };
        window?;
        if let Some((buffer, source)) = written {
            spare = buffer;
            progress(source);
        }
        if row < end {
            ready = Some((result, (end - row) * plan.source_row));
        }
        row = end;
    }
    Ok(())
}

/// Gives a buffer a length. A row may be as long as a file says, so there may be no memory for it.
pub(super) fn resize<T: Copy + Default>(
    buffer: &mut Vec<T>,
    len: usize,
    what: &'static str,
) -> Result<(), EngineError> {
    let more = len.saturating_sub(buffer.len());
    buffer.try_reserve_exact(more).map_err(|_| EngineError::Memory {
        what,
        bytes: (len as u64).saturating_mul(size_of::<T>() as u64),
    })?;
    buffer.resize(len, T::default());
    Ok(())
}

/// Writes a window and hands its buffer back.
fn write(sink: &mut dyn Write, bytes: Vec<u8>, source: u64) -> Result<(Vec<u8>, u64), EngineError> {
    sink.write_all(&bytes).map_err(|source| EngineError::Write { source })?;
    Ok((bytes, source))
}

/// Quantizes the rows from `start` to `end` into `result`, which it resizes.
fn quantize_window(
    plan: &Plan<'_>,
    start: u64,
    end: u64,
    read: &ReadAt<'_>,
    cancel: &Cancel,
    result: &mut Vec<u8>,
) -> Result<(), EngineError> {
    let result_row = plan.result_row as usize;
    resize(result, (end - start) as usize * result_row, "quantized rows")?;
    let mut rest = result.as_mut_slice();
    let mut work = Vec::new();
    for (row, count) in plan.pieces(start, end) {
        let (mine, others) = rest.split_at_mut(count as usize * result_row);
        work.push((row, count, mine));
        rest = others;
    }
    work.into_par_iter().try_for_each_init(
        || (Vec::new(), Vec::new()),
        |(source, values), (row, count, out)| {
            cancel.check()?;
            quantize_piece(plan, row, count, read, source, values, out)
        },
    )
}

/// Reads, converts, checks and quantizes `count` rows from `row`, all of one matrix.
fn quantize_piece(
    plan: &Plan<'_>,
    row: u64,
    count: u64,
    read: &ReadAt<'_>,
    source: &mut Vec<u8>,
    values: &mut Vec<f32>,
    out: &mut [u8],
) -> Result<(), EngineError> {
    let QuantizeJob {
        from,
        to,
        columns,
        rows_per_matrix,
        ..
    } = plan.job;
    let offset = row * plan.source_row;
    let read = |bytes: &mut [u8]| read(offset, bytes).map_err(|source| EngineError::Read { offset, source });
    if from == to {
        return read(out);
    }
    resize(source, (count * plan.source_row) as usize, "rows of the source")?;
    resize(values, (count * columns) as usize, "rows of the source as numbers")?;
    read(source)?;
    convert(from, source, values);
    let (matrix, matrix_row) = (row / rows_per_matrix, row % rows_per_matrix);
    let largest = check_finite(values, columns, matrix, matrix_row)?;
    let weights = plan.weights(matrix);
    // SAFETY: `values` holds `count * columns` numbers and `out` as many rows of `to`; rows are whole blocks; the weights
    // are one row; types that need weights have them (all checked in `Plan::new`).
    let written = unsafe {
        ffi::ggml_quantize_chunk(
            sys::ggml_type(to),
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            count.cast_signed(),
            columns.cast_signed(),
            weights.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    debug_assert_eq!(written, out.len());
    if is_finite(to, out, values, largest) {
        Ok(())
    } else {
        Err(EngineError::NotRepresentable {
            matrix,
            row: matrix_row,
            end: matrix_row + count,
            to,
            largest: largest.to_string(),
        })
    }
}

/// Returns the largest magnitude of rows of a matrix, the first of which is `row`.
///
/// # Errors
///
/// [`EngineError::NonFinite`].
pub(super) fn check_finite(values: &[f32], columns: u64, matrix: u64, row: u64) -> Result<f32, EngineError> {
    let largest = largest_magnitude(values);
    if largest.is_finite() {
        return Ok(largest);
    }
    let at = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(EngineError::NonFinite {
        matrix,
        row: row + at as u64 / columns,
        column: at as u64 % columns,
        value: values[at].to_string(),
    })
}

/// Returns the largest magnitude, or a NaN or an infinity if there is one: magnitudes order like their bits.
fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(
        values
            .iter()
            .fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff)),
    )
}

/// Returns true if a result holds no NaN and no infinity. `values` are overwritten.
fn is_finite(to: TensorType, bytes: &[u8], values: &mut [f32], largest: f32) -> bool {
    if to == TensorType::F32 {
        return true;
    }
    // What ggml's validation finds it also prints to stderr, so what is likely to fail is read back instead.
    if largest >= SUSPECT || to == TensorType::F16 || to == TensorType::BF16 {
        convert(to, bytes, values);
        return largest_magnitude(values).is_finite();
    }
    // SAFETY: `bytes` are whole rows of that type.
    unsafe { ffi::ggml_validate_row_data(sys::ggml_type(to), bytes.as_ptr().cast(), bytes.len()) }
}

/// Converts whole rows to numbers. The caller has checked that `ty` can be converted and that the lengths agree.
fn convert(ty: TensorType, bytes: &[u8], values: &mut [f32]) {
    let count = values.len().cast_signed() as i64;
    match ty {
        TensorType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        TensorType::BF16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
            }
        }
        _ => {
            // SAFETY: `bytes` holds as many blocks of the type as `values` has values for; the kernel exists
            // (checked by the callers); the bytes begin where an allocator placed them or at a multiple of four.
            unsafe {
                let traits = ffi::ggml_get_type_traits(sys::ggml_type(ty));
                if let Some(to_float) = (*traits).to_float {
                    to_float(bytes.as_ptr().cast(), values.as_mut_ptr(), count);
                }
            }
        }
    }
}

/// Converts whole rows of any type that ggml can read to numbers.
pub fn dequantize_rows(ty: TensorType, bytes: &[u8], columns: u64, out: &mut [f32]) -> Result<(), EngineError> {
    if !can_dequantize(ty) {
        return Err(EngineError::NoDequantizer { from: ty });
    }
    let block = ty.block_elements();
    let row = ty
        .row_bytes(columns)
        .filter(|_| columns > 0)
        .ok_or(EngineError::RowLength { ty, columns, block })?;
    let found = bytes.len() as u64;
    if !found.is_multiple_of(row) {
        return Err(EngineError::Length {
            what: "rows",
            found,
            expected: found.next_multiple_of(row),
        });
    }
    let expected = (found / row).checked_mul(columns);
    if Some(out.len() as u64) != expected {
        let expected = expected.unwrap_or(u64::MAX);
        return Err(EngineError::Length {
            what: "the buffer for numbers",
            found: out.len() as u64,
            expected,
        });
    }
    log::start_backend();
    if bytes.as_ptr().align_offset(align_of::<u32>()) == 0 {
        convert(ty, bytes, out);
    } else {
        // A slice may begin anywhere; the blocks of ggml have fields of two and four bytes.
        let aligned = bytes.to_vec();
        convert(ty, &aligned, out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_memory_does_not_hold_is_an_error() {
        let mut buffer = vec![1.0_f32; 3];
        resize(&mut buffer, 5, "rows").unwrap();
        assert_eq!(buffer, [1.0, 1.0, 1.0, 0.0, 0.0]);
        // More than there are addresses, and more than a length can be.
        for len in [1 << 50, usize::MAX] {
            let error = resize(&mut buffer, len, "rows").unwrap_err();
            assert!(matches!(error, EngineError::Memory { what: "rows", .. }), "{error}");
        }
        assert_eq!(buffer.len(), 5);
    }
}
