//! `[gate.NAME]`: bounds and comparisons that candidates must meet, or the build fails with the evidence.

use crate::action;
use crate::action::Action;
use crate::action::MetricsRow;
use crate::figures;
use crate::figures::Resampling;
use crate::graph::FiguresOf;
use crate::graph::Node;
use crate::graph::Work;
use crate::recipe::model::GateStep;
use crate::recipe::model::StepBody;
use crate::recipe::requirement::Bound;
use crate::recipe::requirement::Comparison;
use crate::recipe::requirement::Figure;
use crate::recipe::requirement::Requirement;
use crate::report::gate::Check;
use crate::report::gate::Verdict;
use crate::report::metrics::Row;
use crate::report::words;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::eval::Chunk;
use crate::step::eval::Document;
use crate::step::key_of;
use crate::step::metrics;
use crate::step::misplaced;
use crate::step::model::decode;
use crate::step::model::encode;

/// Resamples of a comparison.
const BOOTSTRAP: u32 = 10_000;

/// A gate.
pub struct Gate;

fn gate(node: &Node) -> Result<(&GateStep, &[FiguresOf]), StepError> {
    match &node.work {
        Work::Figures { step, rows } => match &step.body {
            StepBody::Gate(gate) => Ok((gate, rows)),
            _ => Err(misplaced(node)),
        },
        _ => Err(misplaced(node)),
    }
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (step, of) = gate(node)?;
    let mut rows = Vec::new();
    let mut baseline = Vec::new();
    for of in of {
        if step.candidates.contains(&of.candidate) && step.baseline.as_ref() != Some(&of.candidate) {
            rows.push(metrics::row_of(of, inputs, env)?);
        }
        if step.baseline.as_ref() == Some(&of.candidate) {
            baseline.push(metrics::row_of(of, inputs, env)?);
        }
    }
    if rows.is_empty() {
        return Err(StepError::input("no evaluation measured any of the gate's candidates"));
    }
    Ok(Action::Gate(action::Gate {
        rows,
        baseline,
        require: step.require.iter().map(ToString::to_string).collect(),
        confidence: step.confidence.millionths() / 100,
        bootstrap: BOOTSTRAP,
        seed: 0,
    }))
}

impl Kind for Gate {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    /// A verdict that failed is known, but no hit: the build must fail again, with the evidence.
    fn intact(&self, _node: &Node, outcome: &mut Outcome, _inputs: &Inputs, _env: &Env<'_>) -> Result<bool, StepError> {
        Ok(outcome.fact("failed") == "0")
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let (step, _) = gate(node)?;
        let action = action_of(node, inputs, task.env)?;
        let Action::Gate(gate) = &action else {
            return Err(misplaced(node));
        };
        let performed = task.perform(&action, &[], |made| {
            let verdict = judge(task.env, step, gate)?;
            made.fact("checks", verdict.checks.len());
            made.fact("failed", verdict.failures().len());
            made.output("verdict", task.env.store.put(&encode(&verdict)?)?);
            Ok(())
        })?;
        let outcome = Outcome::of(performed, Vec::new());
        let verdict: Verdict = decode(task.env, "verdict", outcome.output("verdict")?)?;
        let failures = verdict.failures();
        if failures.is_empty() {
            return Ok(outcome);
        }
        Err(StepError::Gate {
            failed: failures.len(),
            all: verdict.checks.len(),
            evidence: failures.iter().map(|check| check.evidence.clone()).collect(),
        })
    }

    fn summary(&self, outcome: &Outcome) -> String {
        format!(
            "{} met",
            words::count(outcome.number("checks").unwrap_or_default(), "requirement")
        )
    }
}

fn judge(env: &Env<'_>, step: &GateStep, gate: &action::Gate) -> Result<Verdict, StepError> {
    let mut checks = Vec::new();
    let baselines = gate.baseline.iter().map(|row| Ok((row, metrics::load(env, row)?)));
    let baselines: Vec<(&MetricsRow, (Row, Document))> = baselines.collect::<Result<_, StepError>>()?;
    for row in &gate.rows {
        let (figures, document) = metrics::load(env, row)?;
        let baseline = baselines
            .iter()
            .find(|(base, _)| base.eval == row.eval)
            .map(|(_, loaded)| loaded);
        for require in &step.require {
            let text = require.to_string();
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
                require: text,
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
