//! One tensor, quantized, with codes that are chosen under the second moments of its input.

use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::locked;
use super::models::CachedFactor;
use super::moments_sum::check_shape;
use super::moments_sum::damaged;
use crate::action::Action;
use crate::action::RefinedTensor;
use crate::engine::EngineError;
use crate::engine::MatrixMoments;
use crate::engine::MatrixRefinement;
use crate::engine::QuantizeJob;
use crate::engine::Role;
use crate::engine::refine_peak_bytes;
use crate::fs;
use crate::moments::Experts;
use crate::moments::MomentsFile;
use crate::moments::SecondMoments;
use crate::observer::Unit;
use crate::prose;
use crate::rounding::Factor;
use crate::rounding::MomentsError;
use crate::tensor_type::TensorType;

/// What refining did to a tensor: output `report`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefinementReport {
    /// [`RefinementReport::SCHEMA`].
    pub schema: u32,
    /// The matrices, in order.
    pub matrices: Vec<RefinedMatrix>,
}

impl RefinementReport {
    /// The version of the document.
    pub const SCHEMA: u32 = 1;
}

/// What refining did to a matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RefinedMatrix {
    /// Why it keeps the quantizer's own bytes, if it does.
    pub kept: Option<String>,
    /// The error of its outputs, with damping, before and after; nothing if it was not tried.
    pub error: Option<BeforeAfter>,
    /// The same without damping on the chunks for validation; nothing without any.
    pub validation: Option<BeforeAfter>,
    /// Rows whose codes come from descent, from feedback of errors with descent after it, and from the quantizer.
    pub rows: [u64; 3],
}

/// A sum before and after.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BeforeAfter {
    /// Of the quantizer's own bytes.
    pub before: f64,
    /// Of the refined bytes.
    pub after: f64,
}

impl RefinedMatrix {
    fn of(refinement: &MatrixRefinement, validated: bool) -> Self {
        let outcome = refinement.outcome;
        let sums = |before, after| BeforeAfter { before, after };
        Self {
            kept: refinement.kept.as_ref().map(ToString::to_string),
            error: outcome.map(|found| sums(found.before, found.after)),
            validation: outcome
                .filter(|_| validated)
                .map(|found| sums(found.validation_before, found.validation_after)),
            rows: outcome.map_or([0; 3], |found| {
                [found.rows_by_descent, found.rows_by_feedback, found.rows_kept]
            }),
        }
    }
}

/// The second moments of a tensor's input.
struct Inputs<'a> {
    action: &'a RefinedTensor,
    context: &'a Context<'a>,
    moments: MomentsFile<'a>,
    validation: Option<MomentsFile<'a>>,
    experts: Option<Experts>,
}

impl Inputs<'_> {
    /// Returns what is known of the inputs of a matrix.
    fn of_matrix(&self, matrix: u64) -> Result<MatrixMoments, EngineError> {
        let at = usize::try_from(matrix).unwrap_or(usize::MAX);
        let known = |file: &MomentsFile<'_>| file.matrix(at);
        let factor = match self.factor(matrix, &|| self.own(at)) {
            Ok(factor) => factor,
            Err(MomentsError::Cancelled) => return Err(EngineError::Cancelled),
            Err(MomentsError::Memory { bytes }) => {
                let what = "the factorization of second moments";
                return Err(EngineError::Memory { what, bytes });
            }
            Err(error) => return Ok(MatrixMoments::Unusable(error.to_string())),
        };
        // An expert without rows for validation is not validated.
        let validation = self.validation.as_ref().and_then(known);
        let validation = validation.filter(|moments| moments.rows() > 0).map(Arc::new);
        Ok(MatrixMoments::Known { factor, validation })
    }

    /// Returns the second moments of a matrix; those of an expert are drawn towards those of all.
    fn own(&self, at: usize) -> Option<SecondMoments> {
        let own = self.moments.matrix(at)?;
        Some(match &self.experts {
            Some(experts) => experts.shrunk(&own),
            None => own,
        })
    }

    /// Returns the factorization of second moments: the last one, if these are the same.
    fn factor(&self, matrix: u64, moments: &dyn Fn() -> Option<SecondMoments>) -> Result<Arc<Factor>, MomentsError> {
        let key = (self.action.moments, matrix, self.action.damping);
        let last = &self.context.machine.models.factor;
        if let Some(CachedFactor { factor, .. }) = locked(last).as_ref().filter(|cached| cached.key == key) {
            return Ok(Arc::clone(factor));
        }
        // It frees its memory first.
        drop(locked(last).take());
        let moments = moments().ok_or(MomentsError::Empty)?;
        let damping = f64::from(self.action.damping) / 1e6;
        let cancel = self.context.cancel();
        let factor = Arc::new(Factor::new(&moments, damping, &|| cancel.is_cancelled())?);
        *locked(last) = Some(CachedFactor {
            key,
            factor: Arc::clone(&factor),
        });
        Ok(factor)
    }
}

/// Returns the most memory that refining a tensor takes, in bytes: for rows of `columns` values, and with second moments for validation for
/// a matrix of so many rows.
pub fn refining_memory(to: TensorType, columns: u64, validated_rows: Option<u64>) -> u64 {
    let threads = rayon::current_num_threads() as u64;
    Factor::peak_bytes(columns).saturating_add(refine_peak_bytes(to, columns, threads, validated_rows))
}

impl RefinedTensor {
    /// Fails if refining takes more memory than it may.
    fn check_memory(&self, context: &Context<'_>, job: &QuantizeJob<'_>) -> Result<(), StepError> {
        let validated = self.validation.map(|_| job.rows_per_matrix);
        let needed = refining_memory(job.to, job.columns, validated);
        let memory = context.machine.memory();
        if needed <= memory {
            return Ok(());
        }
        Err(StepError::input_hint(
            format!(
                "refining a tensor of {} columns takes {} of memory, and {} may be used",
                job.columns,
                prose::bytes(needed),
                prose::bytes(memory)
            ),
            "raise `memory` in `[pools]` of forge.toml, or leave `rounding = \"refined\"` out",
        ))
    }
}

impl Work for RefinedTensor {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(vec![self.plain().place(context)?.0])
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let plain = self.plain();
        let job = plain.job()?;
        self.check_memory(context, &job)?;
        // Candidates and policies that do not refine share it.
        let quantized = context.perform(&Action::Tensor(plain.clone()))?;
        let quantized = store.map(&quantized.output(Self::TENSOR)?)?;
        let moments = store.map(&self.moments)?;
        let moments = MomentsFile::parse(&moments).map_err(damaged)?;
        let validation = self.validation.map(|digest| store.map(&digest)).transpose()?;
        let validation = validation.as_ref().map(|bytes| MomentsFile::parse(bytes)).transpose();
        let validation = validation.map_err(damaged)?;
        for file in std::iter::once(&moments).chain(&validation) {
            check_shape(file, &job)?;
        }
        let experts = (job.matrices > 1).then(|| Experts::of(&moments));
        let inputs = Inputs {
            action: self,
            context,
            validation,
            moments,
            experts,
        };
        let engine = context.machine.engine(Role::Quantizer, &self.quantizer)?;
        let what = || format!("refining a tensor in {}", job.to);
        let refiner = engine.refiner().map_err(StepError::engine(what()))?;
        let (source, start) = plain.place(context)?;
        let file = source.open()?;
        let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, start + offset);
        let read_quantized = |offset: u64, buffer: &mut [u8]| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(buffer.len());
            let bytes = quantized.get(start..end).ok_or(std::io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        };
        let mut writer = store.writer()?;
        let progress = |bytes: u64| context.advance(Unit::BytesRefined, bytes);
        let refined = refiner
            .refine(
                &job,
                &mut |matrix| inputs.of_matrix(matrix),
                &read,
                &read_quantized,
                &mut writer,
                context.cancel(),
                &progress,
            )
            .map_err(StepError::engine(what()))?;
        let digest = writer.commit()?;
        if digest.len != quantized.len() as u64 {
            return Err(StepError::input(format!(
                "a tensor of {} bytes became {} bytes when it was refined",
                quantized.len(),
                digest.len
            )));
        }
        let validated = self.validation.is_some();
        let report = RefinementReport {
            schema: RefinementReport::SCHEMA,
            matrices: refined
                .iter()
                .map(|refinement| RefinedMatrix::of(refinement, validated))
                .collect(),
        };
        let mut made = ActionOutputs::default();
        made.output(Self::TENSOR, digest);
        made.output(Self::REPORT, store.put(&encode(&report)?)?);
        made.fact(Self::MATRICES, refined.len());
        made.fact(
            Self::KEPT,
            refined.iter().filter(|matrix| matrix.kept.is_some()).count(),
        );
        Ok(made)
    }
}
