//! Bounds and comparisons that candidates must meet.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::documents::encode;
use super::eval::Chunk;
use super::eval::Document;
use super::metrics;
use crate::action::Gate;
use crate::action::MetricsRow;
use crate::figures;
use crate::figures::Resampling;
use crate::report::gate::Check;
use crate::report::gate::Verdict;
use crate::report::metrics::Row;
use crate::requirement::Bound;
use crate::requirement::Comparison;
use crate::requirement::Figure;
use crate::requirement::Requirement;
use crate::store::Store;

impl Work for Gate {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let verdict = evaluate(context.store(), self)?;
        let mut made = ActionOutputs::default();
        made.fact(Self::CHECKS, verdict.checks.len());
        made.fact(Self::FAILED, verdict.failures().len());
        made.output(Self::VERDICT, context.store().put(&encode(&verdict)?)?);
        Ok(made)
    }
}

fn requirement(text: &str) -> Result<Requirement, StepError> {
    Requirement::parse(text).map_err(|error| StepError::input(format!("`{text}`: {}", error.what)))
}

fn evaluate(store: &Store, gate: &Gate) -> Result<Verdict, StepError> {
    let requirements = gate.require.iter().map(|text| requirement(text));
    let requirements = requirements.collect::<Result<Vec<_>, StepError>>()?;
    let mut checks = Vec::new();
    let baselines = gate.baseline.iter().map(|row| Ok((row, metrics::load(store, row)?)));
    let baselines: Vec<(&MetricsRow, (Row, Document))> = baselines.collect::<Result<_, StepError>>()?;
    for row in &gate.rows {
        let (figures, document) = metrics::load(store, row)?;
        let baseline = baselines
            .iter()
            .find(|(base, _)| base.eval == row.eval)
            .map(|(_, loaded)| loaded);
        for (text, require) in gate.require.iter().zip(&requirements) {
            let check = match (&require.bound, baseline) {
                (Bound::Number { value, .. }, _) => absolute(require, &figures, *value)?,
                (Bound::Size(bytes), _) => absolute(require, &figures, *bytes as f64)?,
                (Bound::Baseline { factor, .. }, Some((base, base_document))) => {
                    let resampling = Resampling {
                        resamples: gate.bootstrap,
                        seed: gate.seed,
                        confidence: gate.confidence as f64 / 1e6,
                    };
                    compare(
                        require,
                        *factor,
                        (&figures, &document),
                        (base, base_document),
                        &resampling,
                    )?
                }
                (Bound::Baseline { .. }, None) => {
                    return Err(StepError::input(format!(
                        "`{text}` needs a baseline that `{}` measured",
                        row.eval
                    )));
                }
            };
            checks.push(Check {
                candidate: row.candidate.clone(),
                eval: row.eval.clone(),
                require: text.clone(),
                evidence: match figures.overlapping() {
                    Some(corpora) => format!("{}; not on held-out text: it overlaps with {corpora}", check.evidence),
                    None => check.evidence,
                },
                ..check
            });
        }
    }
    Ok(Verdict::new(checks))
}

/// Returns a figure of a row.
fn figure_of(figure: Figure, row: &Row) -> Result<f64, StepError> {
    let found = match figure {
        Figure::Bytes => Some(row.bytes as f64),
        Figure::Bpw => Some(row.bpw),
        Figure::Ppl => Some(row.ppl),
        Figure::KldMean => row.kld_mean,
        Figure::KldMedian => row.kld_median,
        Figure::KldP90 => row.kld_p90,
        Figure::KldP95 => row.kld_p95,
        Figure::KldP99 => row.kld_p99,
        Figure::KldP999 => row.kld_p999,
        Figure::KldMax => row.kld_max,
        Figure::Top1Agreement => row.top1_agreement,
        Figure::RmsDp => row.rms_dp,
    };
    found.ok_or_else(|| StepError::input(format!("`{}` did not measure `{figure}`: set `kld = true`", row.eval)))
}

fn blank(found: f64, bound: f64) -> Check {
    Check {
        candidate: String::new(),
        eval: String::new(),
        require: String::new(),
        found,
        bound,
        difference: None,
        met: false,
        evidence: String::new(),
    }
}

fn absolute(require: &Requirement, row: &Row, bound: f64) -> Result<Check, StepError> {
    let found = figure_of(require.figure, row)?;
    let met = require.op.holds(found, bound);
    let evidence = format!(
        "`{}`: {} is {found}, required: {require}",
        row.candidate, require.figure
    );
    Ok(Check {
        met,
        evidence,
        ..blank(found, bound)
    })
}

/// Compares with the baseline. Figures that are means over chunks are paired chunk by chunk: the comparison is met only
/// if the whole interval of the difference lies on the right side. Others are compared as they are, and say so.
fn compare(
    require: &Requirement,
    factor: f64,
    (row, document): (&Row, &Document),
    (base, base_document): (&Row, &Document),
    resampling: &Resampling,
) -> Result<Check, StepError> {
    let found = figure_of(require.figure, row)?;
    let bound = factor * figure_of(require.figure, base)?;
    let exact = matches!(require.figure, Figure::Bytes | Figure::Bpw);
    let Some((column, shift)) = column_of(require.figure, factor) else {
        let how = if exact {
            ""
        } else {
            " (compared without an interval: not a mean over chunks)"
        };
        let evidence = format!(
            "`{}`: {} is {found}, `{}` has {bound}, required: {require}{how}",
            row.candidate, require.figure, base.candidate
        );
        return Ok(Check {
            met: require.op.holds(found, bound),
            evidence,
            ..blank(found, bound)
        });
    };
    let ours: Vec<f64> = document.chunks.iter().map(|chunk| column(chunk) - shift.add).collect();
    let theirs: Vec<f64> = base_document
        .chunks
        .iter()
        .map(|chunk| shift.times * column(chunk))
        .collect();
    let difference = figures::paired_difference(&ours, &theirs, resampling)
        .map_err(|error| StepError::input(format!("`{}` and `{}`: {error}", row.candidate, base.candidate)))?;
    let met = match require.op {
        Comparison::Less | Comparison::AtMost => require.op.holds(difference.high, 0.0),
        Comparison::Greater | Comparison::AtLeast => require.op.holds(difference.low, 0.0),
    };
    let evidence = format!(
        "`{}`: {} is {found:.6}, `{}` has {bound:.6}; paired difference {:.6} ({:.6} to {:.6} at {} %), required: {require}",
        row.candidate,
        require.figure,
        base.candidate,
        difference.value,
        difference.low,
        difference.high,
        resampling.confidence * 100.0
    );
    Ok(Check {
        met,
        difference: Some([difference.low, difference.high]),
        evidence,
        ..blank(found, bound)
    })
}

/// What a chunk counts with.
type Column = fn(&Chunk) -> f64;

/// How a factor on the baseline's figure acts on a column of chunk means.
struct Shift {
    times: f64,
    add: f64,
}

/// Returns the column of chunk means behind a figure. Perplexity is compared by its logarithm, where a factor adds; the
/// root of a mean square by the mean square, where it is squared.
fn column_of(figure: Figure, factor: f64) -> Option<(Column, Shift)> {
    let times = Shift {
        times: factor,
        add: 0.0,
    };
    Some(match figure {
        Figure::KldMean => (|chunk| chunk.kld, times),
        Figure::Top1Agreement => (|chunk| chunk.top1, times),
        Figure::Ppl if factor > 0.0 => (
            |chunk| chunk.nll,
            Shift {
                times: 1.0,
                add: factor.ln(),
            },
        ),
        Figure::RmsDp => (
            |chunk| chunk.dp2,
            Shift {
                times: factor * factor,
                add: 0.0,
            },
        ),
        _ => return None,
    })
}
