//! The table of candidates (`metrics.json`, schema `forge.metrics.v1`, and `metrics.md`).

use std::fmt::Write;

use comfy_table::CellAlignment;
use comfy_table::Table;
use comfy_table::TableStyle;
use comfy_table::presets;
use serde::Deserialize;
use serde::Serialize;

use crate::prose;

/// The name of the form of `metrics.json`.
pub const SCHEMA: &str = "forge.metrics.v1";

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
}

impl Row {
    /// Returns what candidates are ranked by: KLD where it was measured, else perplexity. Lower is better.
    pub fn loss(&self) -> f64 {
        self.kld_mean.unwrap_or(self.ppl)
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

    /// Returns `metrics.json`.
    pub fn json(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        Ok(json)
    }

    /// Returns `metrics.md`.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.recipe);
        for eval in self.evals() {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.eval == eval).collect();
            let _ = writeln!(
                text,
                "## {eval}\n\n{}\n",
                table(&columns(&rows), presets::ASCII_MARKDOWN)
            );
            let _ = writeln!(text, "{}\n", evidence(&rows).join("  \n"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    /// Returns the table as a terminal shows it. Where that has fewer columns than the table, figures are left out that tell least,
    /// and named.
    pub fn terminal(&self, width: Option<usize>) -> String {
        let evals = self.evals();
        let mut text = String::new();
        for eval in &evals {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.eval == *eval).collect();
            if evals.len() > 1 {
                let _ = writeln!(text, "{eval}");
            }
            let mut columns = columns(&rows);
            let left_out = fit(&mut columns, width.unwrap_or(usize::MAX));
            let _ = writeln!(text, "{}", table(&columns, presets::NOTHING));
            for line in evidence(&rows) {
                let _ = writeln!(text, "{line}");
            }
            if !left_out.is_empty() {
                let _ = writeln!(
                    text,
                    "not shown in {} columns: {}",
                    width.unwrap_or_default(),
                    left_out.join(", ")
                );
            }
        }
        text
    }

    fn evals(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !names.contains(&row.eval.as_str()) {
                names.push(&row.eval);
            }
        }
        names
    }
}

/// Only rows of one evaluation and one engine are ranked against each other.
fn dominates(other: &Row, row: &Row) -> bool {
    other.eval == row.eval
        && other.fingerprint == row.fingerprint
        && other.bytes <= row.bytes
        && other.loss() <= row.loss()
        && (other.bytes < row.bytes || other.loss() < row.loss())
}

fn table(columns: &[Column], style: TableStyle) -> Table {
    let mut table = Table::new();
    table.load_style(style);
    table.set_header(columns.iter().map(|column| column.name));
    let rows = columns.first().map_or(0, |column| column.cells.len());
    for row in 0..rows {
        table.add_row(columns.iter().map(|column| &column.cells[row]));
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A figure of all rows.
struct Column {
    name: &'static str,
    cells: Vec<String>,
}

fn columns(rows: &[&Row]) -> Vec<Column> {
    let of = |name, cell: fn(&Row) -> String| Column {
        name,
        cells: rows.iter().map(|row| cell(row)).collect(),
    };
    let mut columns = vec![
        of("candidate", |row| row.candidate.clone()),
        of("MiB", |row| format!("{:.2}", row.bytes as f64 / f64::from(1 << 20))),
        of("bpw", |row| format!("{:.3}", row.bpw)),
        of("PPL", |row| format!("{:.3}", row.ppl)),
        of("PPL 95 %", |row| interval(Some(row.ppl_ci95), 3)),
    ];
    if rows.iter().any(|row| row.kld_mean.is_some()) {
        columns.extend([
            of("KLD", |row| number(row.kld_mean, 5)),
            of("KLD 95 %", |row| interval(row.kld_mean_ci95, 5)),
            of("KLD p99", |row| number(row.kld_p99, 4)),
            of("KLD max", |row| number(row.kld_max, 3)),
            of("same top", |row| percent(row.top1_agreement)),
            of("RMS dp", |row| percent(row.rms_dp)),
        ]);
    }
    if rows.iter().any(|row| row.kld_predicted.is_some()) {
        columns.extend([
            of("predicted", |row| number(row.kld_predicted, 5)),
            of("predicted 95 %", |row| {
                let misses = row.prediction_holds == Some(false);
                interval(row.kld_predicted_pi95, 5) + if misses { " !" } else { "" }
            }),
        ]);
    }
    columns.push(of("front", |row| if row.pareto { "*" } else { "" }.to_owned()));
    columns
}

/// What a narrow terminal can do without, first what tells least besides the others.
const DISPENSABLE: [&str; 8] = [
    "RMS dp",
    "KLD max",
    "PPL 95 %",
    "predicted",
    "KLD p99",
    "bpw",
    "same top",
    "predicted 95 %",
];

/// Takes out columns until the table has the width, as far as that goes. Returns their names.
fn fit(columns: &mut Vec<Column>, width: usize) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    for name in DISPENSABLE {
        let lines = table(columns, presets::NOTHING);
        if lines.lines().all(|line| line.trim_end().chars().count() <= width) {
            break;
        }
        if columns.iter().any(|column| column.name == name) {
            columns.retain(|column| column.name != name);
            left_out.push(name);
        }
    }
    left_out
}

/// What the figures rest on, a line for each distinct ground.
pub(super) fn evidence(rows: &[&Row]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
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

fn number(value: Option<f64>, digits: usize) -> String {
    value.map(|value| format!("{value:.digits$}")).unwrap_or_default()
}

fn interval(value: Option<[f64; 2]>, digits: usize) -> String {
    value
        .map(|[low, high]| format!("{low:.digits$} - {high:.digits$}"))
        .unwrap_or_default()
}

fn percent(value: Option<f64>) -> String {
    value.map(|value| format!("{:.2} %", value * 100.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
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
    fn a_narrow_terminal_has_fewer_columns_and_a_note_lists_the_others() {
        let predicted = Row {
            kld_predicted: Some(0.1),
            kld_predicted_pi95: Some([0.09, 0.11]),
            prediction_holds: Some(false),
            ..row("best-Q4_K_M", 5 << 30, 0.2)
        };
        let metrics = Metrics::new("r", vec![row("mix-Q4_K_M", 5 << 30, 0.3), predicted]);
        let shown = |width| {
            let text = metrics.terminal(width);
            let table: Vec<String> = text.lines().take(3).map(|line| line.trim_end().to_owned()).collect();
            let left_out = text
                .lines()
                .find(|line| line.starts_with("not shown"))
                .map(str::to_owned);
            (table, left_out)
        };
        let widest = |table: &[String]| table.iter().map(|line| line.chars().count()).max().unwrap();
        let (whole, left_out) = shown(None);
        assert_eq!(left_out, None);
        assert_eq!(shown(Some(widest(&whole))), (whole.clone(), None));
        let (table, left_out) = shown(Some(widest(&whole) - 1));
        assert_eq!(
            left_out.unwrap(),
            format!("not shown in {} columns: RMS dp", widest(&whole) - 1)
        );
        assert!(
            table[0].contains("KLD max") && !table[0].contains("RMS dp"),
            "{table:?}"
        );
        let (table, left_out) = shown(Some(80));
        assert!(widest(&table) <= 80 && left_out.is_some(), "{table:?}");
        assert!(table[2].contains("0.20000"), "{table:?}");
        let missed = "! what the policy measured of `best-Q4_K_M`";
        assert!(metrics.terminal(Some(80)).contains(missed), "said whatever is left out");
        // What is compared is never left out, however narrow.
        let (table, _) = shown(Some(1));
        assert!(
            ["candidate", "MiB", "PPL", "KLD", "KLD 95 %"]
                .iter()
                .all(|name| table[0].contains(name))
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
        let text = Metrics::new("tiny", rows.into()).markdown();
        assert!(
            text.contains("cannot be ranked by what was predicted: `a` and `b`"),
            "{text}"
        );
    }

    #[test]
    fn the_table_is_markdown_and_names_its_data() {
        let text = Metrics::new("tiny", vec![row("a", 3 << 20, 0.0123456)]).markdown();
        assert!(text.starts_with("# tiny\n\n## quality\n\n| candidate |"), "{text}");
        assert!(text.contains("| a         | 3.00 | 4.500 |"), "{text}");
        assert!(text.contains("0.01235"), "{text}");
        assert!(text.ends_with("8 chunks of 512 tokens, 2040 scored, reference PPL 19.500; intervals by bootstrap over chunks; engine ffffffff\n"), "{text}");
    }
}
