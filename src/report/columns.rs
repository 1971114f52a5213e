//! The columns of tables of candidates: their names, their values, and how people see them.

use serde_json::Value as Json;
use serde_json::json;

use super::metrics::NOT_HELD_OUT;
use super::metrics::Row;

/// A row and what it is compared with.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The recipe that the candidate is of.
    pub recipe: String,
    /// Its figures.
    pub row: Row,
    /// They were measured by another engine, or on other chunks, than the first of the evaluation: not to be compared with them.
    pub historical: bool,
}

/// The value of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// It was not measured.
    Missing,
    /// A name or a digest.
    Text(String),
    /// A whole number.
    Integer(u64),
    /// A figure.
    Number(f64),
    /// An interval: lower and upper end.
    Interval([f64; 2]),
    /// Yes or no.
    Flag(bool),
}

/// A column.
#[derive(Debug)]
pub struct Column {
    /// The name: the field of `metrics.json`, if it is one.
    pub name: &'static str,
    /// Shorter names that users may write.
    pub aliases: &'static [&'static str],
    /// The heading of text and Markdown.
    pub head: &'static str,
    /// The column with its interval.
    pub interval: Option<&'static str>,
    /// Its value.
    pub value: fn(&Entry) -> Value,
    /// Whether it depends on the text of the evaluation.
    on_text: bool,
    /// Digits after the point; percentages if negative.
    digits: i8,
}

const fn column(name: &'static str, aliases: &'static [&'static str], head: &'static str) -> Column {
    Column {
        name,
        aliases,
        head,
        interval: None,
        value: |_| Value::Missing,
        on_text: false,
        digits: 0,
    }
}

/// A figure that was measured on the text of the evaluation.
const fn measured(name: &'static str, aliases: &'static [&'static str], head: &'static str) -> Column {
    Column {
        on_text: true,
        ..column(name, aliases, head)
    }
}

const fn figure(column: Column, digits: i8, value: fn(&Entry) -> Value) -> Column {
    Column {
        value,
        digits,
        ..column
    }
}

const fn with_interval(column: Column, interval: &'static str) -> Column {
    Column {
        interval: Some(interval),
        ..column
    }
}

fn number(value: Option<f64>) -> Value {
    value.map_or(Value::Missing, Value::Number)
}

fn interval(value: Option<[f64; 2]>) -> Value {
    value.map_or(Value::Missing, Value::Interval)
}

/// All columns, in the order in which CSV and JSON have them.
pub const COLUMNS: &[Column] = &[
    figure(column("recipe", &[], "recipe"), 0, |entry| {
        Value::Text(entry.recipe.clone())
    }),
    figure(column("eval", &["evaluation"], "evaluation"), 0, |entry| {
        Value::Text(entry.row.eval.clone())
    }),
    figure(column("candidate", &["name"], "candidate"), 0, |entry| {
        Value::Text(entry.row.candidate.clone())
    }),
    figure(column("bytes", &["size", "mib"], "MiB"), 2, |entry| {
        Value::Integer(entry.row.bytes)
    }),
    figure(column("bpw", &[], "bpw"), 3, |entry| Value::Number(entry.row.bpw)),
    with_interval(
        figure(measured("ppl", &[], "PPL"), 3, |entry| Value::Number(entry.row.ppl)),
        "ppl_ci95",
    ),
    figure(measured("ppl_ci95", &["ppl_ci"], "PPL 95 %"), 3, |entry| {
        Value::Interval(entry.row.ppl_ci95)
    }),
    figure(measured("ppl_reference", &[], "PPL ref"), 3, |entry| {
        number(entry.row.ppl_reference)
    }),
    with_interval(
        figure(measured("kld_mean", &["kld"], "KLD"), 5, |entry| {
            number(entry.row.kld_mean)
        }),
        "kld_mean_ci95",
    ),
    figure(
        measured("kld_mean_ci95", &["kld_ci95", "kld_ci"], "KLD 95 %"),
        5,
        |entry| interval(entry.row.kld_mean_ci95),
    ),
    figure(measured("kld_median", &["median"], "KLD p50"), 5, |entry| {
        number(entry.row.kld_median)
    }),
    figure(measured("kld_p90", &["p90"], "KLD p90"), 4, |entry| {
        number(entry.row.kld_p90)
    }),
    figure(measured("kld_p95", &["p95"], "KLD p95"), 4, |entry| {
        number(entry.row.kld_p95)
    }),
    figure(measured("kld_p99", &["p99"], "KLD p99"), 4, |entry| {
        number(entry.row.kld_p99)
    }),
    figure(measured("kld_p999", &["p999"], "KLD p99.9"), 4, |entry| {
        number(entry.row.kld_p999)
    }),
    figure(measured("kld_max", &["max"], "KLD max"), 3, |entry| {
        number(entry.row.kld_max)
    }),
    with_interval(
        figure(
            measured("top1_agreement", &["top1", "same_top"], "same top"),
            -2,
            |entry| number(entry.row.top1_agreement),
        ),
        "top1_agreement_ci95",
    ),
    figure(
        measured("top1_agreement_ci95", &["top1_ci95", "top1_ci"], "same top 95 %"),
        -2,
        |entry| interval(entry.row.top1_agreement_ci95),
    ),
    figure(measured("rms_dp", &["rms"], "RMS dp"), -2, |entry| {
        number(entry.row.rms_dp)
    }),
    with_interval(
        figure(column("kld_predicted", &["predicted"], "predicted"), 5, |entry| {
            number(entry.row.kld_predicted)
        }),
        "kld_predicted_pi95",
    ),
    figure(
        column("kld_predicted_pi95", &["predicted_pi"], "predicted 95 %"),
        5,
        |entry| interval(entry.row.kld_predicted_pi95),
    ),
    figure(column("prediction_holds", &["holds"], "holds"), 0, |entry| {
        entry.row.prediction_holds.map_or(Value::Missing, Value::Flag)
    }),
    figure(column("chunks", &[], "chunks"), 0, |entry| {
        Value::Integer(entry.row.chunks)
    }),
    figure(column("tokens", &[], "tokens"), 0, |entry| {
        Value::Integer(entry.row.tokens)
    }),
    figure(column("context", &[], "context"), 0, |entry| {
        Value::Integer(entry.row.context.into())
    }),
    figure(column("pareto", &["front"], "front"), 0, |entry| {
        Value::Flag(entry.row.pareto)
    }),
    figure(column("blake3", &["digest"], "BLAKE3"), 0, |entry| {
        Value::Text(entry.row.blake3.clone())
    }),
    figure(column("fingerprint", &["engine"], "engine"), 0, |entry| {
        Value::Text(entry.row.fingerprint.clone())
    }),
    figure(column("historical", &["note"], "note"), 0, |entry| {
        Value::Flag(entry.historical)
    }),
];

impl Column {
    /// Returns the column of a name, or of a shorter one; a hyphen counts as an underscore.
    pub fn find(name: &str) -> Option<&'static Self> {
        let name = name.trim().to_ascii_lowercase().replace('-', "_");
        COLUMNS
            .iter()
            .find(|column| column.name == name || column.aliases.contains(&name.as_str()))
    }

    /// Returns whether its cells are numbers, which are aligned to the right.
    pub fn is_number(&self) -> bool {
        !matches!(
            self.name,
            "recipe" | "eval" | "candidate" | "blake3" | "fingerprint" | "historical"
        )
    }

    /// Returns what people see in a cell. Sizes are in MiB.
    pub fn shown(&self, entry: &Entry) -> String {
        let text = self.unmarked(entry);
        if entry.row.overlaps.is_empty() || text.is_empty() || !self.on_text {
            text
        } else {
            text + NOT_HELD_OUT
        }
    }

    fn unmarked(&self, entry: &Entry) -> String {
        let places = usize::from(self.digits.unsigned_abs());
        let one = |number: f64| match self.digits {
            ..0 => format!("{:.places$} %", number * 100.0),
            _ => format!("{number:.places$}"),
        };
        let misses = self.name == "kld_predicted_pi95" && entry.row.prediction_holds == Some(false);
        match ((self.value)(entry), self.name) {
            (Value::Missing, _) => String::new(),
            (Value::Integer(bytes), "bytes") => one(bytes as f64 / f64::from(1 << 20)),
            (Value::Integer(number), _) => number.to_string(),
            (Value::Number(number), _) => one(number),
            (Value::Interval([low, high]), _) => {
                format!("{} - {}{}", one(low), one(high), if misses { " !" } else { "" })
            }
            (Value::Text(digest), "blake3" | "fingerprint") => digest.get(..8).unwrap_or(&digest).to_owned(),
            (Value::Text(text), _) => text,
            (Value::Flag(flag), "pareto") => if flag { "*" } else { "" }.to_owned(),
            (Value::Flag(flag), "historical") => if flag { "historical" } else { "" }.to_owned(),
            (Value::Flag(flag), _) => if flag { "yes" } else { "no" }.to_owned(),
        }
    }

    /// Returns the names of its fields in CSV: an interval has two.
    pub fn fields(&self) -> Vec<String> {
        if self.name.ends_with("95") && self.name.contains("_ci") || self.name.ends_with("_pi95") {
            vec![format!("{}_low", self.name), format!("{}_high", self.name)]
        } else {
            vec![self.name.to_owned()]
        }
    }

    /// Returns the values of these fields.
    pub fn csv(&self, entry: &Entry) -> Vec<String> {
        match (self.value)(entry) {
            Value::Missing => vec![String::new(); self.fields().len()],
            Value::Text(text) => vec![text],
            Value::Integer(number) => vec![number.to_string()],
            Value::Number(number) => vec![number.to_string()],
            Value::Interval(ends) => ends.map(|end| end.to_string()).to_vec(),
            Value::Flag(flag) => vec![flag.to_string()],
        }
    }

    /// Returns the value in JSON.
    pub fn json(&self, entry: &Entry) -> Json {
        match (self.value)(entry) {
            Value::Missing => Json::Null,
            Value::Text(text) => text.into(),
            Value::Integer(number) => number.into(),
            Value::Number(number) => json!(number),
            Value::Interval(ends) => json!(ends),
            Value::Flag(flag) => flag.into(),
        }
    }
}
