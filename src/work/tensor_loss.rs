//! What a quantized tensor costs: the errors of its outputs, weighted by the gradients there.

use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::ActionOutputs;
use super::Context;
use super::SourceFile;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::gradients;
use super::moments_sum;
use super::perform::output_of;
use super::tensor_error::quantizing;
use crate::action;
use crate::action::TensorLoss;
use crate::engine::QuantizeJob;
use crate::engine::Role;
use crate::engine::RowPanel;
use crate::fisher::InputRounding;
use crate::fisher::LookupFactors;
use crate::fisher::WeightFactors;
use crate::fs;
use crate::moments::Experts;
use crate::moments::MomentsFile;
use crate::moments::SecondMoments;
use crate::observer::Unit;
use crate::rounding;

/// What a tensor costs in a type: output `loss`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct TensorLosses {
    /// [`TensorLoss::FORM`].
    pub schema: u32,
    /// What the errors of each matrix (an expert, or the tensor itself) cost as the factor of a product, in nats per token. Without
    /// gradients, their squared output errors, summed over outputs.
    pub products: Vec<f64>,
    /// What it costs that the inputs of the products are rounded, in nats per token; 0 without gradients.
    pub inputs: f64,
    /// What the errors of rows cost that are looked up, in nats per token; 0 without gradients.
    pub lookups: f64,
}

impl TensorLosses {
    /// Returns the sum, in nats per token.
    pub(super) fn total(&self) -> f64 {
        self.products.iter().sum::<f64>() + self.inputs + self.lookups
    }
}

/// Experts with fewer inputs than this in the second moments for validation are priced by the others.
const FEWEST: u64 = 64;

/// How the errors of a matrix's outputs are computed from the errors of its rows.
enum Form {
    /// Under the second moments of its inputs.
    Full(Arc<SecondMoments>),
    /// Columns are independent: the mean squares of its inputs.
    Diagonal(Vec<f64>),
}

impl Form {
    /// Returns the squared output error of each row of errors.
    fn errors(&self, errors: &[f32], columns: usize) -> Vec<f64> {
        match self {
            Self::Full(moments) => rounding::squared_errors(moments, errors),
            Self::Diagonal(squares) => errors.chunks_exact(columns).map(|row| weighted(squares, row)).collect(),
        }
    }
}

/// Returns the sum of squares, each with a weight.
fn weighted(weights: &[f64], values: &[f32]) -> f64 {
    let squares = weights
        .iter()
        .zip(values)
        .map(|(weight, value)| weight * f64::from(*value) * f64::from(*value));
    squares.sum()
}

/// The factors of one matrix.
struct Matrix<'f> {
    form: Option<Form>,
    /// The sums of squared gradients by output, and the number of tokens.
    outputs: Option<(&'f [f64], f64)>,
    /// The mean squares of what rounding loses of the inputs.
    lost: Option<Vec<f64>>,
    lookup: Option<&'f LookupFactors>,
}

impl Matrix<'_> {
    /// Returns the loss of the errors, of the inputs, and of looking up, over some rows.
    fn sums(&self, panel: &RowPanel<'_>) -> Vec<f64> {
        let columns = panel.columns;
        let errors: Vec<f32> = panel.source.iter().zip(panel.quantized).map(|(a, b)| a - b).collect();
        let mut sums = [0.0; 3];
        if let Some(form) = &self.form {
            let found = form.errors(&errors, columns);
            sums[0] = match self.outputs {
                Some((squares, tokens)) => {
                    let squares = squares.get(panel.first..).unwrap_or_default();
                    let sum: f64 = squares.iter().zip(&found).map(|(square, error)| square * error).sum();
                    sum / (2.0 * tokens)
                }
                None => found.iter().sum(),
            };
        }
        if let (Some((squares, tokens)), Some(lost)) = (self.outputs, &self.lost) {
            let squares = squares.get(panel.first..).unwrap_or_default();
            let rows = squares.iter().zip(panel.quantized.chunks_exact(columns));
            let sum: f64 = rows.map(|(square, row)| square * weighted(lost, row)).sum();
            sums[1] = sum / (2.0 * tokens);
        }
        if let Some(lookup) = self.lookup {
            let rows = (panel.first..).zip(errors.chunks_exact(columns));
            sums[2] = rows.filter_map(|(row, errors)| lookup.loss(row, errors)).sum();
        }
        sums.to_vec()
    }
}

/// What is known of a tensor's inputs and outputs.
struct Known<'a> {
    factors: Option<&'a WeightFactors>,
    moments: Option<&'a MomentsFile<'a>>,
    experts: Option<&'a Experts>,
    rounding: Option<InputRounding>,
}

impl Known<'_> {
    fn matrix(&self, at: usize) -> Matrix<'_> {
        let product = self.factors.and_then(|factors| factors.product.as_ref());
        let outputs = product.and_then(|product| {
            let tokens = product.outputs.tokens() as f64;
            Some((product.outputs.squares(at)?, tokens)).filter(|_| tokens > 0.0)
        });
        let is_priced = outputs.is_some() || self.factors.is_none();
        let diagonal = || Some(Form::Diagonal(product?.inputs.mean_squares(at)?));
        let form = self.full(at).map(Form::Full).or_else(diagonal);
        let lost = |rounding| product?.inputs.mean_lost(rounding, at);
        Matrix {
            form: form.filter(|_| is_priced),
            outputs,
            lost: self.rounding.and_then(lost),
            lookup: self
                .factors
                .and_then(|factors| factors.lookup.as_ref())
                .filter(|_| at == 0),
        }
    }

    /// Returns the second moments of a matrix's inputs. Those of an expert with few inputs are drawn towards those of all experts.
    fn full(&self, at: usize) -> Option<Arc<SecondMoments>> {
        let own = self.moments?.matrix(at)?;
        Some(Arc::new(match self.experts {
            Some(experts) if own.rows() < FEWEST => experts.shrunk(&own),
            _ if own.rows() == 0 => return None,
            _ => own,
        }))
    }
}

impl Work for TensorLoss {
    fn reads(&self, context: &Context<'_>) -> Result<Vec<SourceFile>, StepError> {
        Ok(vec![quantizing(&self.tensor, context)?.place(context)?.0])
    }

    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let tensor = quantizing(&self.tensor, context)?;
        let store = context.store();
        let quantized = output_of(&context.result_of(&self.tensor)?, action::Tensor::TENSOR)?;
        let quantized = store.map(&quantized)?;
        let factors = self.factors.map(|digest| store.map(&digest)).transpose()?;
        let factors = factors.as_ref().map(|bytes| WeightFactors::parse(bytes)).transpose();
        let factors = factors.map_err(gradients::damaged)?;
        let moments = self.moments.map(|digest| store.map(&digest)).transpose()?;
        let moments = moments.as_ref().map(|bytes| MomentsFile::parse(bytes)).transpose();
        let moments = moments.map_err(moments_sum::damaged)?;
        let job: QuantizeJob<'_> = tensor.job()?;
        if let Some(moments) = &moments {
            moments_sum::check_shape(moments, &job)?;
        }
        let engine = context.machine.engine(Role::Quantizer, &self.quantizer)?;
        let what = || format!("comparing a tensor with its {}", job.to);
        let quantizer = engine.quantizer().map_err(StepError::engine(what()))?;
        let experts = moments.as_ref().filter(|_| job.matrices > 1).map(Experts::of);
        let known = Known {
            factors: factors.as_ref(),
            moments: moments.as_ref(),
            experts: experts.as_ref(),
            rounding: quantizer.input_rounding(job.to),
        };
        let (source, start) = tensor.place(context)?;
        let file = source.open()?;
        let read = |offset: u64, buffer: &mut [u8]| fs::read_exact_at(&file, buffer, start + offset);
        let progress = |bytes: u64| context.advance(Unit::BytesCompared, bytes);
        let mut document = TensorLosses {
            schema: Self::FORM,
            products: Vec::new(),
            inputs: 0.0,
            lookups: 0.0,
        };
        for at in 0..job.matrices {
            let matrix = known.matrix(usize::try_from(at).unwrap_or(usize::MAX));
            let sums = quantizer
                .sum_rows(&job, at, &read, &quantized, context.cancel(), &progress, &|panel| {
                    matrix.sums(panel)
                })
                .map_err(StepError::engine(what()))?;
            let sum = |at: usize| sums.get(at).copied().unwrap_or(0.0);
            document.products.push(sum(0));
            document.inputs += sum(1);
            document.lookups += sum(2);
        }
        let mut made = ActionOutputs::default();
        made.output(Self::LOSS, store.put(&encode(&document)?)?);
        Ok(made)
    }
}
