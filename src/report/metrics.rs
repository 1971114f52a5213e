//! The figures of candidates (`metrics.json`, schema `forge.metrics.v1`).

use serde::Deserialize;
use serde::Serialize;

use crate::prose;

/// The name of the form of `metrics.json`.
pub const SCHEMA: &str = "forge.metrics.v1";

/// The maximum length of `metrics.json`: a row has some 800 bytes.
pub const CAP: u64 = 64 << 20;

/// What figures must have in common to be compared ([`Row::ground`]).
pub type Ground<'a> = (&'a str, u64, u64, u32, Option<u64>);

/// A candidate's figures in one evaluation. Figures that were not measured are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The candidate's name.
    pub candidate: String,
    /// The evaluation's name.
    pub eval: String,
    /// The size of the file.
    pub bytes: u64,
    /// Bits of the file per weight of the model.
    pub bpw: f64,
    /// Perplexity.
    pub ppl: f64,
    /// Its 95 % interval, by bootstrap over chunks.
    pub ppl_ci95: [f64; 2],
    /// The reference's perplexity on the same tokens.
    pub ppl_reference: Option<f64>,
    /// Mean KL divergence from the reference, in nats per token.
    pub kld_mean: Option<f64>,
    /// Its 95 % interval, by bootstrap over chunks.
    pub kld_mean_ci95: Option<[f64; 2]>,
    /// Median KL divergence.
    pub kld_median: Option<f64>,
    /// 90th percentile.
    pub kld_p90: Option<f64>,
    /// 95th percentile.
    pub kld_p95: Option<f64>,
    /// 99th percentile.
    pub kld_p99: Option<f64>,
    /// 99.9th percentile.
    pub kld_p999: Option<f64>,
    /// Largest KL divergence of a token.
    pub kld_max: Option<f64>,
    /// How often candidate and reference rank the same token first, 0 to 1.
    pub top1_agreement: Option<f64>,
    /// Its 95 % interval.
    pub top1_agreement_ci95: Option<[f64; 2]>,
    /// Root of the mean square of the difference in the true token's probability, 0 to 1.
    pub rms_dp: Option<f64>,
    /// The mean KL divergence that the candidate's policy measured on the text that it chose by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld_predicted: Option<f64>,
    /// Where the mean of this evaluation lies with a probability of 95 % if its chunks are like those of that text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kld_predicted_pi95: Option<[f64; 2]>,
    /// Whether it lies there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction_holds: Option<bool>,
    /// Chunks measured.
    pub chunks: u64,
    /// Tokens scored.
    pub tokens: u64,
    /// Tokens per chunk.
    pub context: u32,
    /// No other candidate of this evaluation is both smaller and better.
    pub pareto: bool,
    /// The BLAKE3 of the candidate's file.
    pub blake3: String,
    /// The fingerprint of the engine that measured.
    pub fingerprint: String,
    /// The texts that the candidate was calibrated on and that overlap with the text of this evaluation: its figures are not
    /// those of held-out text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overlaps: Vec<Overlap>,
}

/// A text that a candidate was calibrated on and that overlaps with the text of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overlap {
    /// The corpus.
    pub corpus: String,
    /// The number of files of the evaluation that it has, too.
    pub same_files: u64,
    /// The share of the evaluation's text that stands in it, 0 to 1.
    pub share: f64,
    /// The number of words of the longest common passage. Not counted where all files are the same.
    pub passage_words: Option<u64>,
}

impl Row {
    /// Returns what candidates are ranked by: KLD where it was measured, else perplexity. Lower is better.
    pub fn loss(&self) -> f64 {
        self.kld_mean.unwrap_or(self.ppl)
    }

    /// Returns what figures must have in common to be compared: the engine, the chunks, and the reference's perplexity, which
    /// differs if the text does.
    pub fn ground(&self) -> Ground<'_> {
        let reference = self.ppl_reference.map(f64::to_bits);
        (&self.fingerprint, self.chunks, self.tokens, self.context, reference)
    }

    /// Returns the names of the corpora that overlap with the text, as in "`prose` and `code`"; `None` if the text is held out.
    pub fn overlapping(&self) -> Option<String> {
        let corpora: Vec<&str> = self.overlaps.iter().map(|overlap| overlap.corpus.as_str()).collect();
        (!corpora.is_empty()).then(|| prose::names(&corpora, 3))
    }
}

/// The table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// `forge.metrics.v1`.
    pub schema: String,
    /// The recipe's name.
    pub recipe: String,
    /// The rows, by evaluation, then in the recipe's order.
    pub rows: Vec<Row>,
}

impl Metrics {
    /// Makes a table of rows and marks its Pareto front.
    pub fn new(recipe: impl Into<String>, mut rows: Vec<Row>) -> Self {
        let front: Vec<bool> = rows
            .iter()
            .map(|row| !rows.iter().any(|other| dominates(other, row)))
            .collect();
        for (row, pareto) in rows.iter_mut().zip(front) {
            row.pareto = pareto;
        }
        Self {
            schema: SCHEMA.to_owned(),
            recipe: recipe.into(),
            rows,
        }
    }

    /// Reads `metrics.json`.
    ///
    /// # Errors
    ///
    /// Why it is not one: also where it has another schema.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let table: Self = serde_json::from_slice(bytes)?;
        if table.schema == SCHEMA {
            Ok(table)
        } else {
            Err(serde::de::Error::custom(format_args!(
                "its schema is `{}`",
                table.schema
            )))
        }
    }

    /// Returns `metrics.json`.
    pub fn json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Only rows of one evaluation and one engine are ranked against each other.
pub(super) fn dominates(other: &Row, row: &Row) -> bool {
    other.eval == row.eval
        && other.ground() == row.ground()
        && other.bytes <= row.bytes
        && other.loss() <= row.loss()
        && (other.bytes < row.bytes || other.loss() < row.loss())
}

/// Stands behind each figure that was measured on text that the candidate was calibrated on. A line below the table says so.
pub(super) const NOT_HELD_OUT: &str = "\u{2020}";

/// What the figures rest on, a line for each distinct ground.
pub(super) fn evidence(rows: &[&Row]) -> Vec<String> {
    let mut lines: Vec<String> = overlaps(rows);
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| row.prediction_holds == Some(false))
        .map(|row| row.candidate.as_str())
        .collect();
    if !missed.is_empty() {
        lines.push(format!(
            "! what the policy measured of {} does not hold here: this text is not like the one it chose by",
            prose::names(&missed, 3)
        ));
    }
    lines.extend(unranked(rows));
    for row in rows {
        let reference = row
            .ppl_reference
            .map(|ppl| format!(", reference PPL {ppl:.3}"))
            .unwrap_or_default();
        let line = format!(
            "{} chunks of {} tokens, {} scored{reference}; intervals by bootstrap over chunks; engine {}",
            row.chunks,
            row.context,
            row.tokens,
            row.fingerprint.get(..8).unwrap_or(&row.fingerprint),
        );
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

/// Explains [`NOT_HELD_OUT`]: a line for all rows whose text overlaps in the same way.
fn overlaps(rows: &[&Row]) -> Vec<String> {
    let mut groups: Vec<(&[Overlap], Vec<&str>)> = Vec::new();
    for row in rows.iter().filter(|row| !row.overlaps.is_empty()) {
        match groups.iter_mut().find(|(overlaps, _)| *overlaps == row.overlaps) {
            Some((_, candidates)) => candidates.push(&row.candidate),
            None => groups.push((&row.overlaps, vec![&row.candidate])),
        }
    }
    let line = |(overlaps, candidates): (&[Overlap], Vec<&str>)| {
        let texts: Vec<String> = overlaps.iter().map(Overlap::describe).collect();
        format!(
            "{NOT_HELD_OUT} not on held-out text: it overlaps with what {} were calibrated on: {}",
            prose::names(&candidates, 3),
            texts.join(", ")
        )
    };
    groups.into_iter().map(line).collect()
}

impl Overlap {
    /// Returns as in "`prose` (2 files, 87.0 % of the text)".
    fn describe(&self) -> String {
        let files = match self.same_files {
            0 => String::new(),
            files => format!("{}, ", prose::count(files, "file")),
        };
        format!("`{}` ({files}{:.1} % of the text)", self.corpus, self.share * 100.0)
    }
}

/// How many pairs that cannot be ranked are named.
const UNRANKED: usize = 3;

/// Names adjacent candidates whose KLD differs by less than the error of their predicted losses: their order may depend on the
/// text.
fn unranked(rows: &[&Row]) -> Option<String> {
    let off = |row: &Row| Some((row.kld_mean? - row.kld_predicted?).abs());
    let mut known: Vec<(&Row, f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((*row, row.kld_mean?, off(row)?)))
        .collect();
    known.sort_by(|a, b| a.1.total_cmp(&b.1));
    let pairs = known.windows(2).filter_map(|pair| {
        let [(a, first, off_a), (b, second, off_b)] = pair else {
            return None;
        };
        let (differ, off) = (second - first, off_a.max(*off_b));
        (a.fingerprint == b.fingerprint && differ < off).then(|| {
            format!(
                "`{}` and `{}` (they differ by {differ:.6}, predictions by {off:.6})",
                a.candidate, b.candidate
            )
        })
    });
    let mut pairs: Vec<String> = pairs.collect();
    let more = pairs.len().saturating_sub(UNRANKED);
    pairs.truncate(UNRANKED);
    if more > 0 {
        pairs.push(format!("{more} more"));
    }
    (!pairs.is_empty()).then(|| format!("cannot be ranked by what was predicted: {}", pairs.join("; ")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn row(candidate: &str, bytes: u64, kld: f64) -> Row {
        Row {
            candidate: candidate.to_owned(),
            eval: "quality".to_owned(),
            bytes,
            bpw: 4.5,
            ppl: 20.0,
            ppl_ci95: [19.0, 21.0],
            ppl_reference: Some(19.5),
            kld_mean: Some(kld),
            kld_mean_ci95: Some([kld * 0.9, kld * 1.1]),
            kld_median: Some(kld),
            kld_p90: Some(kld),
            kld_p95: Some(kld),
            kld_p99: Some(kld),
            kld_p999: Some(kld),
            kld_max: Some(kld),
            top1_agreement: Some(0.9),
            top1_agreement_ci95: Some([0.89, 0.91]),
            rms_dp: Some(0.01),
            kld_predicted: None,
            kld_predicted_pi95: None,
            prediction_holds: None,
            chunks: 8,
            tokens: 2040,
            context: 512,
            pareto: false,
            blake3: "b".repeat(64),
            fingerprint: "f".repeat(64),
            overlaps: Vec::new(),
        }
    }

    #[test]
    fn the_front_contains_only_candidates_that_no_other_dominates() {
        let mut other = row("elsewhere", 1, 0.0);
        other.fingerprint = "e".repeat(64);
        let rows = vec![
            row("a", 100, 0.3),
            row("b", 200, 0.1),
            row("c", 210, 0.2),
            row("d", 200, 0.1),
            other,
        ];
        let front: Vec<_> = Metrics::new("r", rows).rows.iter().map(|row| row.pareto).collect();
        assert_eq!(
            front,
            [true, true, false, true, true],
            "equals do not beat each other, nor do other engines"
        );
    }

    #[test]
    fn choices_within_the_error_of_predictions_are_not_ranked() {
        let predicted = |candidate: &str, kld: f64, predicted: f64| Row {
            kld_predicted: Some(predicted),
            ..row(candidate, 100, kld)
        };
        let mut elsewhere = predicted("elsewhere", 0.1005, 0.2);
        elsewhere.fingerprint = "e".repeat(64);
        let rows = [
            predicted("a", 0.1, 0.104),
            predicted("b", 0.103, 0.103),
            predicted("c", 0.2, 0.203),
            row("d", 100, 0.1031),
        ];
        let said = |rows: &[Row]| unranked(&rows.iter().collect::<Vec<_>>());
        assert_eq!(
            said(&rows).unwrap(),
            "cannot be ranked by what was predicted: `a` and `b` (they differ by 0.003000, predictions by 0.004000)"
        );
        assert_eq!(said(&rows[1..]), None, "nothing was predicted of `d`");
        assert_eq!(said(&[rows[0].clone(), elsewhere]), None, "measured by another engine");
    }
}
