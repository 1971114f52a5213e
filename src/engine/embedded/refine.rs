//! Refining the codes of quantized tensors with ggml's own kernels, streamed: panels of rows are read, refined in parallel and written in
//! order. [`crate::rounding`] has the algorithms.
#![allow(unsafe_code)]

use std::io::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use llama_cpp_sys_2 as ffi;
use rayon::prelude::*;

use super::log;
use super::quantize::Plan;
use super::quantize::check_finite;
use super::quantize::dequantize_rows;
use super::quantize::resize;
use super::sys;
use crate::engine::Cancel;
use crate::engine::EngineError;
use crate::engine::KeptBytes;
use crate::engine::MatrixMoments;
use crate::engine::MatrixRefinement;
use crate::engine::MomentsOf;
use crate::engine::QuantizeJob;
use crate::engine::ReadAt;
use crate::moments::SecondMoments;
use crate::rounding;
use crate::rounding::Factor;
use crate::rounding::Kernels;
use crate::rounding::Outcome;
use crate::rounding::PANEL;
use crate::rounding::Panel;
use crate::rounding::Rounding;
use crate::rounding::Workspace;
use crate::tensor_type::TensorType;

/// Panels of a window for each thread. A window is written when all of its panels are done.
const PANELS_PER_THREAD: usize = 2;
/// Panels of a matrix that keep most machines busy.
const MANY_PANELS: u64 = 16;
/// The fewest rows of a panel: fewer do not fill the vectors.
const LEAST_PANEL: usize = 32;
/// Bytes that are copied at a time.
const COPY: u64 = 4 << 20;

/// ggml's kernels.
struct Ggml<'a> {
    cancel: &'a Cancel,
}

impl Kernels for Ggml<'_> {
    type Error = EngineError;

    fn quantize(
        &self,
        ty: TensorType,
        values: &[f32],
        columns: usize,
        importances: &[f32],
        out: &mut [u8],
    ) -> Result<(), EngineError> {
        let rows = values.len() / columns.max(1);
        let fits = ty.row_bytes(columns as u64).map(|bytes| bytes as usize * rows) == Some(out.len());
        if !fits || importances.len() != columns || values.len() != rows * columns {
            return Err(EngineError::Length {
                what: "the blocks of a scale search",
                found: out.len() as u64,
                expected: ty.row_bytes(columns as u64).unwrap_or(0) * rows as u64,
            });
        }
        // SAFETY: `values` holds `rows` rows of `columns` numbers, and `out` as many rows of `ty`; rows are whole blocks; the
        // importances are one row (all checked above). The type was initialized in `refine`.
        unsafe {
            ffi::ggml_quantize_chunk(
                sys::ggml_type(ty),
                values.as_ptr(),
                out.as_mut_ptr().cast(),
                0,
                (rows as u64).cast_signed(),
                (columns as u64).cast_signed(),
                importances.as_ptr(),
            );
        }
        Ok(())
    }

    fn dequantize(&self, ty: TensorType, bytes: &[u8], out: &mut [f32]) -> Result<(), EngineError> {
        dequantize_rows(ty, bytes, ty.block_elements(), out)
    }

    fn check(&self) -> Result<(), EngineError> {
        self.cancel.check()
    }
}

/// What a thread works in.
#[derive(Default)]
struct Buffers {
    source: Vec<u8>,
    values: Vec<f32>,
    quantized: Vec<u8>,
    workspace: Workspace,
}

/// Returns the most bytes that [`refine`] takes for rows of `columns` values of type `to` on a number of threads, beside the factor
/// ([`Factor::bytes`]) and the moments. With moments for validation the bytes of a matrix, which are `rows` times a row's, are added.
pub fn refine_peak_bytes(to: TensorType, columns: u64, threads: u64, validated_rows: Option<u64>) -> u64 {
    /// What a product allocates while it runs, at most: packed parts of both factors.
    const PRODUCT: u64 = 4 << 20;
    let row = to.row_bytes(columns).unwrap_or(0);
    let panel = PANEL as u64;
    let values = columns.saturating_mul(panel).saturating_mul(8);
    let buffers = Workspace::bytes(to, columns)
        .saturating_add(values)
        .saturating_add(row * panel + PRODUCT);
    let window = row * panel * PANELS_PER_THREAD as u64;
    let held = validated_rows.map_or(0, |rows| row.saturating_mul(rows));
    threads
        .saturating_mul(buffers.saturating_add(window))
        .saturating_add(held)
}

/// Refines the codes of a tensor and writes its bytes to `sink`. See [`Refiner::refine`](crate::engine::Refiner::refine).
///
/// Works on rayon's threads of the caller's pool. The results have the same bits for any number of threads.
pub fn refine(
    job: &QuantizeJob<'_>,
    moments: &mut MomentsOf<'_>,
    read: &ReadAt<'_>,
    quantized: &ReadAt<'_>,
    sink: &mut dyn Write,
    cancel: &Cancel,
    progress: &dyn Fn(u64),
) -> Result<Vec<MatrixRefinement>, EngineError> {
    let plan = Plan::with_any_weights(job)?;
    cancel.check()?;
    log::start_backend();
    // SAFETY: takes any type; ggml builds the tables of a type once, under its own lock.
    unsafe { ffi::ggml_quantize_init(sys::ggml_type(job.to)) };
    let kernels = Ggml { cancel };
    let (rounding, kept) = if job.from == job.to {
        (None, Some(KeptBytes::Copied { ty: job.to }))
    } else {
        let reason = rounding::why_not_refined(job.to);
        let kept = reason.map(|reason| KeptBytes::Type { ty: job.to, reason });
        (Rounding::new(job.to, &kernels)?, kept)
    };
    let mut tensor = Tensor {
        plan: &plan,
        kernels: &kernels,
        read,
        quantized,
        buffers: Mutex::default(),
    };
    let mut refinements = Vec::new();
    for matrix in 0..job.matrices {
        cancel.check()?;
        let (Some(rounding), None) = (&rounding, &kept) else {
            tensor.copy(matrix, sink, progress)?;
            refinements.push(MatrixRefinement {
                outcome: None,
                kept: kept.clone(),
            });
            continue;
        };
        refinements.push(match moments(matrix)? {
            MatrixMoments::Known { factor, validation } => {
                tensor.refine_matrix(rounding, matrix, &factor, validation.as_ref(), sink, progress)?
            }
            MatrixMoments::Unusable(reason) => {
                tensor.copy(matrix, sink, progress)?;
                MatrixRefinement {
                    outcome: None,
                    kept: Some(KeptBytes::Moments(reason)),
                }
            }
        });
    }
    Ok(refinements)
}

/// A tensor being refined.
struct Tensor<'a> {
    plan: &'a Plan<'a>,
    kernels: &'a Ggml<'a>,
    read: &'a ReadAt<'a>,
    quantized: &'a ReadAt<'a>,
    /// Buffers that no thread uses now.
    buffers: Mutex<Vec<Buffers>>,
}

impl Tensor<'_> {
    /// Writes the bytes that a matrix has.
    fn copy(&mut self, matrix: u64, sink: &mut dyn Write, progress: &dyn Fn(u64)) -> Result<(), EngineError> {
        let rows = self.plan.job.rows_per_matrix;
        let mut bytes = Vec::new();
        let window = (COPY / self.plan.result_row.max(1)).max(1);
        let mut row = 0;
        while row < rows {
            self.kernels.cancel.check()?;
            let count = window.min(rows - row);
            self.read_quantized(matrix * rows + row, count, &mut bytes)?;
            sink.write_all(&bytes).map_err(|source| EngineError::Write { source })?;
            progress(count * self.plan.source_row);
            row += count;
        }
        Ok(())
    }

    fn read_quantized(&self, row: u64, count: u64, bytes: &mut Vec<u8>) -> Result<(), EngineError> {
        resize(bytes, (count * self.plan.result_row) as usize, "quantized rows")?;
        let offset = row * self.plan.result_row;
        (self.quantized)(offset, bytes).map_err(|source| EngineError::Read { offset, source })
    }

    fn refine_matrix(
        &mut self,
        rounding: &Rounding,
        matrix: u64,
        factor: &Arc<Factor>,
        validation: Option<&Arc<SecondMoments>>,
        sink: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<MatrixRefinement, EngineError> {
        let QuantizeJob {
            columns,
            rows_per_matrix: rows,
            ..
        } = self.plan.job;
        for found in [Some(factor.columns()), validation.map(|moments| moments.columns())] {
            if found.is_some_and(|found| found as u64 != columns) {
                return Err(EngineError::Length {
                    what: "columns of the second moments",
                    found: found.unwrap_or(0) as u64,
                    expected: columns,
                });
            }
        }
        // A small matrix has small panels, so that many threads get some. The size does not depend on the number of threads: the bytes would
        // be the same, but the errors are added up panel by panel.
        let threads = rayon::current_num_threads();
        let sizes = [PANEL, PANEL / 2, LEAST_PANEL];
        let enough = |size: &&usize| rows.div_ceil(**size as u64) >= MANY_PANELS;
        let panel = *sizes.iter().find(enough).unwrap_or(&LEAST_PANEL) as u64;
        let mut held = Vec::new();
        if validation.is_some() {
            resize(&mut held, (rows * self.plan.result_row) as usize, "refined rows")?;
        }
        let mut outcome = Outcome::default();
        let mut row = 0;
        while row < rows {
            let end = rows.min(row + panel * (threads * PANELS_PER_THREAD) as u64);
            let starts: Vec<u64> = (row..end).step_by(panel as usize).collect();
            let done: Vec<(Vec<u8>, Outcome)> = starts
                .into_par_iter()
                .map(|start| {
                    let count = panel.min(rows - start);
                    let mut buffers = self.lock().pop().unwrap_or_default();
                    let done = self.refine_panel(rounding, matrix, start, count, factor, validation, &mut buffers);
                    self.lock().push(buffers);
                    done
                })
                .collect::<Result<_, EngineError>>()?;
            let mut at = (row * self.plan.result_row) as usize;
            for (bytes, part) in done {
                outcome.add(&part);
                if validation.is_some() {
                    held[at..at + bytes.len()].copy_from_slice(&bytes);
                    at += bytes.len();
                } else {
                    sink.write_all(&bytes).map_err(|source| EngineError::Write { source })?;
                }
            }
            progress((end - row) * self.plan.source_row);
            row = end;
        }
        let mut kept = None;
        if validation.is_some() {
            if outcome.validation_after < outcome.validation_before {
                sink.write_all(&held).map_err(|source| EngineError::Write { source })?;
            } else {
                kept = Some(KeptBytes::Validation);
                drop(held);
                self.copy(matrix, sink, &|_| {})?;
            }
        }
        Ok(MatrixRefinement {
            outcome: Some(outcome),
            kept,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Buffers>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "which rows, of which matrix, under which moments"
    )]
    fn refine_panel(
        &self,
        rounding: &Rounding,
        matrix: u64,
        start: u64,
        count: u64,
        factor: &Factor,
        validation: Option<&Arc<SecondMoments>>,
        buffers: &mut Buffers,
    ) -> Result<(Vec<u8>, Outcome), EngineError> {
        let QuantizeJob { from, columns, .. } = self.plan.job;
        let row = matrix * self.plan.job.rows_per_matrix + start;
        let offset = row * self.plan.source_row;
        resize(
            &mut buffers.source,
            (count * self.plan.source_row) as usize,
            "rows of the source",
        )?;
        (self.read)(offset, &mut buffers.source).map_err(|source| EngineError::Read { offset, source })?;
        resize(
            &mut buffers.values,
            (count * columns) as usize,
            "rows of the source as numbers",
        )?;
        dequantize_rows(from, &buffers.source, columns, &mut buffers.values)?;
        check_finite(&buffers.values, columns, matrix, start)?;
        self.read_quantized(row, count, &mut buffers.quantized)?;
        let panel = Panel {
            factor,
            validation: validation.map(Arc::as_ref),
            values: &buffers.values,
            quantized: &buffers.quantized,
        };
        let mut out = Vec::new();
        resize(&mut out, buffers.quantized.len(), "refined rows")?;
        let outcome = rounding.refine(self.kernels, &panel, &mut buffers.workspace, &mut out)?;
        Ok((out, outcome))
    }
}

#[cfg(test)]
mod tests;
