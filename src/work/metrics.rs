//! The table of candidates.

use super::ActionOutputs;
use super::Context;
use super::StepError;
use super::Work;
use super::documents::decode;
use super::eval;
use crate::action::Metrics;
use crate::action::MetricsRow;
use crate::action::RowOverlap;
use crate::figures;
use crate::figures::Interval;
use crate::policy;
use crate::prose;
use crate::report;
use crate::report::metrics::Metrics as Table;
use crate::report::metrics::Overlap;
use crate::report::metrics::Row;
use crate::store::Store;

impl Work for Metrics {
    fn run(&self, context: &Context<'_>) -> Result<ActionOutputs, StepError> {
        let store = context.store();
        let table = table_of(store, &self.recipe, &self.rows)?;
        let broken = |error: serde_json::Error| StepError::Document {
            what: "table",
            problem: error.to_string(),
        };
        let mut made = ActionOutputs::default();
        made.output(Self::JSON, store.put(&table.json().map_err(broken)?)?);
        made.output(
            Self::MARKDOWN,
            store.put(
                report::table::Table::of(std::slice::from_ref(&table))
                    .markdown()
                    .as_bytes(),
            )?,
        );
        made.fact(Self::ROWS, table.rows.len());
        made.fact(Self::FRONT, table.rows.iter().filter(|row| row.pareto).count());
        Ok(made)
    }
}

/// Returns the table of rows.
///
/// # Errors
///
/// The figures of a row cannot be read.
pub fn table_of(store: &Store, recipe: &str, rows: &[MetricsRow]) -> Result<Table, StepError> {
    let loaded = rows.iter().map(|row| load(store, row).map(|(row, _)| row));
    Ok(Table::new(recipe, loaded.collect::<Result<Vec<_>, _>>()?))
}

/// Reads the figures of a row.
pub(super) fn load(store: &Store, row: &MetricsRow) -> Result<(Row, eval::Document), StepError> {
    let figures: eval::Document = decode(store, "figures", row.figures)?;
    let of = |get: fn(&eval::Divergence) -> f64| figures.divergence.as_ref().map(get);
    let ci = |get: fn(&eval::Divergence) -> [f64; 2]| figures.divergence.as_ref().map(get);
    let prediction = row.probed.as_deref().and_then(|probed| predict(probed, &figures));
    let loaded = Row {
        candidate: row.candidate.clone(),
        eval: row.eval.clone(),
        bytes: row.file.len,
        bpw: prose::bpw(row.file.len, row.elements),
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
        overlaps: row.overlaps.iter().map(overlap).collect(),
    };
    Ok((loaded, figures))
}

fn overlap(found: &RowOverlap) -> Overlap {
    Overlap {
        corpus: found.corpus.clone(),
        same_files: found.same_files,
        share: f64::from(found.share) / 1000.0,
        passage_words: found.passage,
    }
}

/// Parts of a nat in what is said of a candidate's probing: keys hold whole numbers only.
const PARTS: f64 = 1e12;

/// Returns what a policy measured of its choice as keys hold it: mean and deviation of a chunk's divergence in parts of a nat,
/// chunks, tokens in a chunk.
pub(super) fn probed(probed: &policy::Probed) -> Option<String> {
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
