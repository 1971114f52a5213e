//! The error of a quantized tensor: compares its values with the dequantized ones, in a stream, so that memory does not grow with
//! the tensor.

use rayon::prelude::*;

use super::quantize::Plan;
use super::quantize::dequantize_rows;
use super::quantize::resize;
use crate::engine::Cancel;
use crate::engine::EngineError;
use crate::engine::MatrixError;
use crate::engine::QuantizeJob;
use crate::engine::ReadAt;
use crate::engine::RowPanel;
use crate::engine::SumsOfRows;

/// Returns what each matrix of a tensor lost. `quantized` are the bytes that [`quantize`](crate::engine::quantize) made of the
/// job; its weights are those of the columns, 1 without any, whether or not the type used them.
///
/// `progress` gets the number of source bytes done since its last call, on the calling thread. Works on rayon's threads of
/// the caller's pool. The sums are taken in an order that depends on the tensor's shape alone, so the figures are the same to the
/// bit for any number of threads.
///
/// # Errors
///
/// As for quantizing, and [`EngineError::Length`] if the quantized bytes are not as many as the job makes.
pub fn compare(
    job: &QuantizeJob<'_>,
    read: &ReadAt<'_>,
    quantized: &[u8],
    cancel: &Cancel,
    progress: &dyn Fn(u64),
) -> Result<Vec<MatrixError>, EngineError> {
    let plan = Plan::new(job)?;
    check_length(&plan, quantized)?;
    let mut matrices = vec![MatrixError::default(); usize::try_from(job.matrices).unwrap_or(usize::MAX)];
    let mut row = 0;
    while row < plan.rows {
        let end = plan.rows.min(row + plan.window_rows);
        let pieces = plan.pieces(row, end);
        let lost: Vec<MatrixError> = pieces
            .par_iter()
            .map_init(Buffers::default, |buffers, &(row, count)| {
                cancel.check()?;
                compare_piece(&plan, row, count, read, quantized, buffers)
            })
            .collect::<Result<_, EngineError>>()?;
        for ((first, _), lost) in pieces.into_iter().zip(lost) {
            matrices[(first / job.rows_per_matrix) as usize].add(lost);
        }
        progress((end - row) * plan.source_row);
        row = end;
    }
    Ok(matrices)
}

fn check_length(plan: &Plan<'_>, quantized: &[u8]) -> Result<(), EngineError> {
    let expected = plan.rows.saturating_mul(plan.result_row);
    if quantized.len() as u64 == expected {
        return Ok(());
    }
    Err(EngineError::Length {
        what: "quantized bytes",
        found: quantized.len() as u64,
        expected,
    })
}

/// Adds up sums over the rows of one matrix of a tensor: see [`Quantizer::sum_rows`](crate::engine::Quantizer::sum_rows). The job's weights
/// are not used.
///
/// # Errors
///
/// As [`compare`]; [`EngineError::Shape`] if there is no such matrix.
pub(super) fn sum_rows(
    job: &QuantizeJob<'_>,
    matrix: u64,
    read: &ReadAt<'_>,
    quantized: &[u8],
    cancel: &Cancel,
    progress: &dyn Fn(u64),
    sums: &SumsOfRows<'_>,
) -> Result<Vec<f64>, EngineError> {
    let plan = Plan::with_any_weights(job)?;
    check_length(&plan, quantized)?;
    if matrix >= job.matrices {
        return Err(EngineError::Shape {
            columns: job.columns,
            rows: job.rows_per_matrix,
            matrices: job.matrices,
        });
    }
    let start = matrix * job.rows_per_matrix;
    let mut total: Vec<f64> = Vec::new();
    let mut row = start;
    while row < start + job.rows_per_matrix {
        let end = (start + job.rows_per_matrix).min(row + plan.window_rows);
        let parts: Vec<Vec<f64>> = plan
            .pieces(row, end)
            .par_iter()
            .map_init(Buffers::default, |buffers, &(row, count)| {
                cancel.check()?;
                read_piece(&plan, row, count, read, quantized, buffers)?;
                Ok(sums(&RowPanel {
                    first: (row - start) as usize,
                    columns: job.columns as usize,
                    source: &buffers.values,
                    quantized: &buffers.restored,
                }))
            })
            .collect::<Result<_, EngineError>>()?;
        for part in parts {
            total.resize(part.len(), 0.0);
            total.iter_mut().zip(part).for_each(|(sum, more)| *sum += more);
        }
        progress((end - row) * plan.source_row);
        row = end;
    }
    Ok(total)
}

/// What a thread works in.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    values: Vec<f32>,
    restored: Vec<f32>,
}

/// Reads the values of `count` rows from `row`, all of one matrix, before and after.
fn read_piece(
    plan: &Plan<'_>,
    row: u64,
    count: u64,
    read: &ReadAt<'_>,
    quantized: &[u8],
    buffers: &mut Buffers,
) -> Result<(), EngineError> {
    let job = &plan.job;
    let values = (count * job.columns) as usize;
    resize(
        &mut buffers.source,
        (count * plan.source_row) as usize,
        "rows of the source",
    )?;
    let offset = row * plan.source_row;
    read(offset, &mut buffers.source).map_err(|source| EngineError::Read { offset, source })?;
    resize(&mut buffers.values, values, "rows of the source as numbers")?;
    resize(&mut buffers.restored, values, "restored rows")?;
    dequantize_rows(job.from, &buffers.source, job.columns, &mut buffers.values)?;
    let (from, to) = (row * plan.result_row, (row + count) * plan.result_row);
    let bytes = &quantized[from as usize..to as usize];
    dequantize_rows(job.to, bytes, job.columns, &mut buffers.restored)
}

/// Compares `count` rows from `row`, all of one matrix.
fn compare_piece(
    plan: &Plan<'_>,
    row: u64,
    count: u64,
    read: &ReadAt<'_>,
    quantized: &[u8],
    buffers: &mut Buffers,
) -> Result<MatrixError, EngineError> {
    let job = &plan.job;
    read_piece(plan, row, count, read, quantized, buffers)?;
    let weights = plan.weights(row / job.rows_per_matrix);
    let mut lost = MatrixError::default();
    let columns = job.columns as usize;
    for (values, restored) in buffers
        .values
        .chunks_exact(columns)
        .zip(buffers.restored.chunks_exact(columns))
    {
        for (at, (value, restored)) in values.iter().zip(restored).enumerate() {
            let weight = weights.map_or(1.0, |weights| f64::from(weights[at]));
            let (value, restored) = (f64::from(*value), f64::from(*restored));
            lost.error += weight * (value - restored) * (value - restored);
            lost.norm += weight * value * value;
        }
    }
    Ok(lost)
}
