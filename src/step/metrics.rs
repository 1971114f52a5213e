//! `[metrics.NAME]`: the table of candidates.

use crate::action;
use crate::action::Action;
use crate::action::MetricsRow;
use crate::figures;
use crate::figures::Interval;
use crate::graph::FiguresOf;
use crate::graph::Node;
use crate::graph::Work;
use crate::policy;
use crate::report::metrics::Metrics as Table;
use crate::report::metrics::Row;
use crate::report::words;
use crate::step::Env;
use crate::step::Inputs;
use crate::step::Key;
use crate::step::Kind;
use crate::step::Outcome;
use crate::step::StepError;
use crate::step::Task;
use crate::step::eval;
use crate::step::key_of;
use crate::step::misplaced;
use crate::step::model::decode;
use crate::step::output;
use crate::step::promote;

/// The version of the table: raise it when its form changes.
const TABLE: u32 = 2;

/// A table of candidates.
pub struct Metrics;

fn rows(node: &Node) -> Result<(&str, &[FiguresOf]), StepError> {
    match &node.work {
        Work::Figures { step, rows } => Ok((&step.id.name, rows)),
        _ => Err(misplaced(node)),
    }
}

/// Returns the inputs of a row.
pub fn row_of(of: &FiguresOf, inputs: &Inputs, env: &Env<'_>) -> Result<MetricsRow, StepError> {
    let candidate = inputs.step(&of.candidate)?;
    Ok(MetricsRow {
        eval: of.eval.label(),
        candidate: of.candidate.label(),
        file: promote::file_digest(candidate)?,
        elements: candidate.number("elements")?,
        figures: inputs.of(&of.node())?.output("figures")?,
        probed: Some(candidate.fact("probed").to_owned()).filter(|probed| !probed.is_empty()),
        engine: env.evaluator.fingerprint(),
    })
}

/// Reads the figures of a row.
pub fn load(env: &Env<'_>, row: &MetricsRow) -> Result<(Row, eval::Document), StepError> {
    let figures: eval::Document = decode(env, "figures", row.figures)?;
    let of = |get: fn(&eval::Divergence) -> f64| figures.divergence.as_ref().map(get);
    let ci = |get: fn(&eval::Divergence) -> [f64; 2]| figures.divergence.as_ref().map(get);
    let prediction = row.probed.as_deref().and_then(|probed| predict(probed, &figures));
    let loaded = Row {
        candidate: row.candidate.clone(),
        eval: row.eval.clone(),
        bytes: row.file.len,
        bpw: row.file.len as f64 * 8.0 / row.elements.max(1) as f64,
        ppl: figures.ppl.value,
        ppl_ci95: figures.ppl.ci95,
        ppl_reference: of(|d| d.ppl_reference.value),
        kld_mean: of(|d| d.kld_mean.value),
        kld_mean_ci95: ci(|d| d.kld_mean.ci95),
        kld_median: of(|d| d.kld_median),
        kld_p90: of(|d| d.kld_p90),
        kld_p95: of(|d| d.kld_p95),
        kld_p99: of(|d| d.kld_p99),
        kld_p999: of(|d| d.kld_p999),
        kld_max: of(|d| d.kld_max),
        top1_agreement: of(|d| d.top1_agreement.value),
        top1_agreement_ci95: ci(|d| d.top1_agreement.ci95),
        rms_dp: of(|d| d.rms_dp.value),
        kld_predicted: prediction.map(|prediction| prediction.value),
        kld_predicted_pi95: prediction.map(|prediction| [prediction.low, prediction.high]),
        prediction_holds: prediction
            .zip(of(|d| d.kld_mean.value))
            .map(|(prediction, found)| prediction.low <= found && found <= prediction.high),
        chunks: figures.chunks.len() as u64,
        tokens: figures.tokens,
        context: figures.context,
        pareto: false,
        blake3: row.file.hash.to_string(),
        fingerprint: row.engine.to_string(),
    };
    Ok((loaded, figures))
}

/// Parts of a nat in what is said of a candidate's probing: keys hold whole numbers only.
const PARTS: f64 = 1e12;

/// Returns what a policy measured of its choice as keys hold it: mean and deviation of a chunk's divergence in parts of a nat,
/// chunks, tokens in a chunk.
pub fn probed(probed: &policy::Probed) -> Option<String> {
    let parts = |number: &str| {
        let number: f64 = number.parse().ok()?;
        number.is_finite().then(|| (number.max(0.0) * PARTS).round() as u64)
    };
    let (mean, deviation) = (parts(&probed.mean)?, parts(&probed.deviation)?);
    Some(format!("{mean},{deviation},{},{}", probed.chunks, probed.context))
}

/// Returns what the policy's own measurement says of the mean divergence on the chunks of an evaluation; nothing if their
/// chunks are not of one length.
fn predict(probed: &str, figures: &eval::Document) -> Option<Interval> {
    let mut numbers = probed.split(',').map(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    let (mean, deviation, chunks, context) = (next()?, next()?, next()?, next()?);
    if context != u64::from(figures.context) || figures.divergence.is_none() {
        return None;
    }
    let chunks = u32::try_from(chunks).ok()?;
    figures::prediction(
        mean as f64 / PARTS,
        deviation as f64 / PARTS,
        chunks,
        figures.chunks.len(),
    )
}

fn action_of(node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Action, StepError> {
    let (_, rows) = rows(node)?;
    let rows = rows
        .iter()
        .map(|row| row_of(row, inputs, env))
        .collect::<Result<_, _>>()?;
    Ok(Action::Metrics(action::Metrics {
        recipe: env.recipe.clone(),
        rows,
        table: TABLE,
    }))
}

/// Returns the names of the table's files: a recipe's only table is `metrics`, of several each bears its name.
fn file_names(node: &Node, env: &Env<'_>) -> Result<[(String, &'static str); 2], StepError> {
    let (name, _) = rows(node)?;
    let stem = if env.only_table {
        "metrics".to_owned()
    } else {
        format!("metrics-{name}")
    };
    Ok([(format!("{stem}.json"), "json"), (format!("{stem}.md"), "markdown")])
}

impl Kind for Metrics {
    fn key(&self, node: &Node, inputs: &Inputs, env: &Env<'_>) -> Result<Key, StepError> {
        Ok(key_of(action_of(node, inputs, env)?))
    }

    fn intact(&self, node: &Node, outcome: &mut Outcome, _inputs: &Inputs, env: &Env<'_>) -> Result<bool, StepError> {
        for (name, output) in file_names(node, env)? {
            match output::intact(env, &output::path(env, &name)?, &outcome.output(output)?)? {
                Some(file) => outcome.files.push(file),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    fn run(&self, node: &Node, inputs: &Inputs, task: &Task<'_>) -> Result<Outcome, StepError> {
        let action = action_of(node, inputs, task.env)?;
        let Action::Metrics(table) = &action else {
            return Err(misplaced(node));
        };
        let performed = task.perform(&action, &[], |made| {
            let loaded = table.rows.iter().map(|row| load(task.env, row).map(|(row, _)| row));
            let rows = loaded.collect::<Result<Vec<_>, _>>()?;
            let table = Table::new(table.recipe.clone(), rows);
            let broken = |error: serde_json::Error| StepError::Document {
                what: "table",
                problem: error.to_string(),
            };
            made.output("json", task.env.store.put(&table.json().map_err(broken)?)?);
            made.output("markdown", task.env.store.put(table.markdown().as_bytes())?);
            made.fact("rows", table.rows.len());
            made.fact("front", table.rows.iter().filter(|row| row.pareto).count());
            Ok(())
        })?;
        let mut outcome = Outcome::of(performed, Vec::new());
        for (name, output) in file_names(node, task.env)? {
            let digest = outcome.output(output)?;
            outcome.files.push(output::place(task, &name, outcome.key, &digest)?);
        }
        outcome.ran |= task.counts().0 > 0;
        Ok(outcome)
    }

    fn summary(&self, outcome: &Outcome) -> String {
        let rows = outcome.number("rows").unwrap_or_default();
        format!("{}, {} on the front", words::count(rows, "row"), outcome.fact("front"))
    }
}
