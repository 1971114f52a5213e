//! Tables of candidates: which columns, in which order, and as what: text, Markdown, CSV or JSON (`forge.table.v1`).

use std::cmp::Ordering;
use std::fmt::Write;

use comfy_table::CellAlignment;
use comfy_table::TableStyle;
use comfy_table::presets;
use serde_json::Map;
use serde_json::Value as Json;
use serde_json::json;

use super::columns::COLUMNS;
use super::columns::Column;
use super::columns::Entry;
use super::columns::Value;
use super::metrics::Metrics;
use super::metrics::Row;
use super::metrics::dominates;
use super::metrics::evidence;
use crate::prose;

/// The name of the form of [`Table::document`].
pub const SCHEMA: &str = "forge.table.v1";

/// What `*` in the column `front` means.
const FRONT: &str = "front: * is on the Pareto front: no other candidate is both smaller and better";
/// What the word means.
const HISTORICAL: &str =
    "historical: measured by another engine, or on other text or chunks, than the first candidate; not to be compared";
/// Blanks between columns.
const GAP: u16 = 2;

/// What a narrow terminal can do without: first what says least besides the others.
const DISPENSABLE: [&str; 10] = [
    "rms_dp",
    "kld_max",
    "ppl_ci95",
    "kld_predicted",
    "kld_p99",
    "bpw",
    "top1_agreement",
    "kld_predicted_pi95",
    "ppl",
    "kld_mean_ci95",
];

/// A table of candidates.
#[derive(Debug, Clone)]
pub struct Table {
    recipes: Vec<String>,
    entries: Vec<Entry>,
    chosen: Option<Vec<&'static Column>>,
}

/// What rows are sorted by.
#[derive(Debug, Clone, Copy)]
pub struct Sort {
    /// The column.
    pub column: &'static Column,
    /// The largest first.
    pub descending: bool,
}

impl Table {
    /// Makes one table of several. The figures of an evaluation that do not have the ground of its first row are marked as
    /// historical; candidates that several tables have are listed once.
    pub fn of(tables: &[Metrics]) -> Self {
        let mut recipes: Vec<String> = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for table in tables {
            if !recipes.contains(&table.recipe) {
                recipes.push(table.recipe.clone());
            }
            for row in &table.rows {
                let same = |known: &Entry| {
                    let known = &known.row;
                    (&known.eval, &known.candidate, &known.blake3) == (&row.eval, &row.candidate, &row.blake3)
                        && known.ground() == row.ground()
                };
                if entries.iter().any(same) {
                    continue;
                }
                let first = entries.iter().find(|entry| entry.row.eval == row.eval);
                entries.push(Entry {
                    recipe: table.recipe.clone(),
                    row: row.clone(),
                    historical: first.is_some_and(|first| first.row.ground() != row.ground()),
                });
            }
        }
        let is_on_front =
            |entry: &Entry| !entry.historical && !entries.iter().any(|other| dominates(&other.row, &entry.row));
        let front: Vec<bool> = entries.iter().map(is_on_front).collect();
        for (entry, front) in entries.iter_mut().zip(front) {
            entry.row.pareto = front;
        }
        let order = evals(&entries).into_iter().map(str::to_owned).collect::<Vec<_>>();
        entries.sort_by_key(|entry| order.iter().position(|eval| *eval == entry.row.eval));
        Self {
            recipes,
            entries,
            chosen: None,
        }
    }

    /// Shows these columns, in this order, instead of the usual ones.
    pub fn choose(&mut self, columns: Vec<&'static Column>) {
        self.chosen = Some(columns);
    }

    /// Sorts the rows of each evaluation. Rows without a value come last.
    pub fn sort(&mut self, by: Sort) {
        let order: Vec<String> = evals(&self.entries).into_iter().map(str::to_owned).collect();
        self.entries.sort_by(|a, b| {
            let eval = |entry: &Entry| order.iter().position(|eval| *eval == entry.row.eval);
            eval(a).cmp(&eval(b)).then_with(|| by.compare(a, b))
        });
    }

    /// Returns the columns that people see: chosen ones, or those in which some row has a value.
    fn columns(&self, entries: &[&Entry]) -> Vec<&'static Column> {
        const USUAL: [&str; 13] = [
            "candidate",
            "bytes",
            "bpw",
            "ppl",
            "ppl_ci95",
            "kld_mean",
            "kld_mean_ci95",
            "kld_p99",
            "kld_max",
            "top1_agreement",
            "rms_dp",
            "kld_predicted",
            "kld_predicted_pi95",
        ];
        let mut columns = self.chosen.clone().unwrap_or_else(|| {
            let recipe = (self.recipes.len() > 1).then_some("recipe");
            let names = recipe.into_iter().chain(USUAL).chain(["pareto"]);
            let found = names.filter_map(Column::find);
            let has_value = |column: &&Column| {
                let mut values = entries.iter().map(|entry| (column.value)(entry));
                values.any(|value| value != Value::Missing)
            };
            found.filter(has_value).collect()
        });
        // The word is never left out.
        if entries.iter().any(|entry| entry.historical) && !columns.iter().any(|column| column.name == "historical") {
            columns.extend(Column::find("historical"));
        }
        columns
    }

    fn sections(&self) -> Vec<(&str, Vec<&Entry>)> {
        let sections = evals(&self.entries).into_iter().map(|eval| {
            let rows = self.entries.iter().filter(|entry| entry.row.eval == eval);
            (eval, rows.collect())
        });
        sections.collect()
    }

    /// Returns the table in Markdown (`metrics.md`).
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n", self.recipes.join(" and "));
        for (eval, entries) in self.sections() {
            let columns = self.columns(&entries);
            let table = layout(&columns, &entries, presets::ASCII_MARKDOWN);
            let _ = writeln!(text, "## {eval}\n\n{table}\n");
            let _ = writeln!(text, "{}\n", notes(&columns, &entries).join("  \n"));
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    }

    /// Returns the table as a terminal of `width` columns shows it; as wide as it is where there is none. No line is wider, unless a
    /// single column is: usual columns are left out and named, chosen ones are shown in several blocks of rows.
    pub fn text(&self, width: Option<usize>) -> String {
        let sections = self.sections();
        let several = sections.len() > 1;
        let mut text = String::new();
        for (eval, entries) in sections {
            if several {
                let _ = writeln!(text, "{}{eval}", if text.is_empty() { "" } else { "\n" });
            }
            let mut columns = self.columns(&entries);
            let mut left_out = Vec::new();
            if let (Some(width), None) = (width, &self.chosen) {
                left_out = fit(&mut columns, &entries, width);
            }
            for (at, block) in blocks(&columns, &entries, width).iter().enumerate() {
                let _ = write!(text, "{}{}", if at > 0 { "\n" } else { "" }, plain(block, &entries));
            }
            let mut lines = notes(&columns, &entries);
            if let (Some(width), false) = (width, left_out.is_empty()) {
                lines.push(format!("not shown in {width} columns: {}", left_out.join(", ")));
            }
            for line in lines {
                let _ = writeln!(text, "{}", prose::wrap(&line, width.unwrap_or(usize::MAX)));
            }
        }
        text
    }

    /// Returns the columns of programs: all, or the chosen ones with their intervals. Whether a row is historical is always said.
    fn fields(&self) -> Vec<&'static Column> {
        let Some(chosen) = &self.chosen else {
            return COLUMNS.iter().collect();
        };
        let mut columns: Vec<&'static Column> = Vec::new();
        let last = Column::find("historical");
        let with_intervals = chosen
            .iter()
            .copied()
            .flat_map(|column| std::iter::once(column).chain(column.interval.and_then(Column::find)));
        for column in with_intervals.chain(last) {
            if !columns.iter().any(|known| known.name == column.name) {
                columns.push(column);
            }
        }
        columns
    }

    /// Returns the table as CSV (RFC 4180): a line of names, then a line for each row. Figures are not rounded, sizes are in bytes.
    pub fn csv(&self) -> String {
        let columns = self.fields();
        let line = |fields: Vec<String>| {
            let quoted: Vec<String> = fields.iter().map(|field| quoted(field)).collect();
            format!("{}\r\n", quoted.join(","))
        };
        let mut text = line(columns.iter().flat_map(|column| column.fields()).collect());
        for entry in &self.entries {
            text.push_str(&line(columns.iter().flat_map(|column| column.csv(entry)).collect()));
        }
        text
    }

    /// Returns the table as a document, `forge.table.v1`: fields have the names that `metrics.json` has.
    pub fn document(&self) -> Json {
        let columns = self.fields();
        let rows = self.entries.iter().map(|entry| {
            let fields = columns
                .iter()
                .map(|column| (column.name.to_owned(), column.json(entry)));
            Json::Object(fields.collect::<Map<_, _>>())
        });
        let sections = self.sections();
        let notes = sections.iter().map(|(eval, entries)| {
            let rows: Vec<&Row> = entries.iter().map(|entry| &entry.row).collect();
            json!({ "eval": eval, "notes": evidence(&rows) })
        });
        json!({
            "schema": SCHEMA,
            "rows": rows.collect::<Vec<_>>(),
            "evidence": notes.collect::<Vec<_>>(),
        })
    }
}

impl Sort {
    fn compare(self, a: &Entry, b: &Entry) -> Ordering {
        let (a, b) = ((self.column.value)(a), (self.column.value)(b));
        let number = |value: &Value| match value {
            Value::Integer(number) => Some(*number as f64),
            Value::Number(number) => Some(*number),
            Value::Interval([low, _]) => Some(*low),
            // What is on the front, or holds, comes first.
            Value::Flag(flag) => Some(if *flag { 0.0 } else { 1.0 }),
            Value::Missing | Value::Text(_) => None,
        };
        let ordering = match (&a, &b) {
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            _ => match (number(&a), number(&b)) {
                (Some(a), Some(b)) => a.total_cmp(&b),
                (Some(_), None) => return Ordering::Less,
                (None, Some(_)) => return Ordering::Greater,
                (None, None) => Ordering::Equal,
            },
        };
        if self.descending { ordering.reverse() } else { ordering }
    }
}

fn evals(entries: &[Entry]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for entry in entries {
        if !names.contains(&entry.row.eval.as_str()) {
            names.push(&entry.row.eval);
        }
    }
    names
}

/// What the figures of a section rest on, and what its signs mean.
fn notes(columns: &[&Column], entries: &[&Entry]) -> Vec<String> {
    let rows: Vec<&Row> = entries.iter().map(|entry| &entry.row).collect();
    let mut notes = Vec::new();
    if columns.iter().any(|column| column.name == "pareto") {
        notes.push(FRONT.to_owned());
    }
    if entries.iter().any(|entry| entry.historical) {
        notes.push(HISTORICAL.to_owned());
    }
    notes.extend(evidence(&rows));
    notes
}

fn layout(columns: &[&Column], entries: &[&Entry], style: TableStyle) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(style);
    table.set_header(columns.iter().map(|column| column.head));
    for entry in entries {
        table.add_row(columns.iter().map(|column| column.shown(entry)));
    }
    for (shown, column) in table.column_iter_mut().zip(columns) {
        if column.is_number() {
            shown.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Returns rows without borders; no line ends with blanks.
fn plain(columns: &[&Column], entries: &[&Entry]) -> String {
    let mut table = layout(columns, entries, presets::NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns how wide a column is.
fn width_of(column: &Column, entries: &[&Entry]) -> usize {
    let cells = entries.iter().map(|entry| column.shown(entry).chars().count());
    cells.chain([column.head.chars().count()]).max().unwrap_or(0)
}

/// Returns how wide columns are side by side.
fn width_of_all(columns: &[&Column], entries: &[&Entry]) -> usize {
    let gaps = columns.len().saturating_sub(1) * usize::from(GAP);
    gaps + columns.iter().map(|column| width_of(column, entries)).sum::<usize>()
}

/// Takes out columns until the rest has the width, as far as that goes. Returns their headings.
fn fit(columns: &mut Vec<&'static Column>, entries: &[&Entry], width: usize) -> Vec<&'static str> {
    let mut left_out = Vec::new();
    for name in DISPENSABLE {
        if width_of_all(columns, entries) <= width {
            break;
        }
        // The only loss is not dispensable.
        let is_only_loss = name == "ppl" && !columns.iter().any(|column| column.name == "kld_mean");
        if let Some(at) = columns
            .iter()
            .position(|column| column.name == name)
            .filter(|_| !is_only_loss)
        {
            left_out.push(columns.remove(at).head);
        }
    }
    left_out
}

/// Divides columns into blocks that have the width. Each begins with the candidates' names.
fn blocks(columns: &[&'static Column], entries: &[&Entry], width: Option<usize>) -> Vec<Vec<&'static Column>> {
    let Some(width) = width else {
        return vec![columns.to_vec()];
    };
    let is_name = |column: &&&Column| matches!(column.name, "recipe" | "candidate");
    let names: Vec<&'static Column> = columns.iter().filter(is_name).copied().collect();
    let mut blocks = vec![Vec::new()];
    for column in columns.iter().copied() {
        let block = blocks.last_mut();
        let Some(block) = block else { continue };
        let mut wider = block.clone();
        wider.push(column);
        let only_names = block.iter().all(|column| is_name(&column));
        if only_names || width_of_all(&wider, entries) <= width {
            *block = wider;
        } else {
            let mut next = names.clone();
            next.push(column);
            blocks.push(next);
        }
    }
    blocks
}

/// Returns a field of CSV, in quotes where that is needed.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::tests::row;
    use super::*;

    fn column(name: &str) -> &'static Column {
        Column::find(name).unwrap()
    }

    fn widest(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap()
    }

    fn mixes() -> Metrics {
        Metrics::new(
            "tiny",
            vec![
                row("tiny-Q2_K", 2_736_000, 0.049_58),
                row("tiny-IQ3_XXS", 2_652_000, 0.035_33),
                row("tiny-Q4_K_M", 3_785_000, 0.0047),
            ],
        )
    }

    #[test]
    fn a_terminal_of_60_80_and_140_columns() {
        let table = Table::of(&[mixes()]);
        for width in [60, 80, 140] {
            assert!(widest(&table.text(Some(width))) <= width, "{width}");
        }
        insta::assert_snapshot!(table.text(Some(60)), @r"
        candidate      MiB      KLD           KLD 95 %  front
        tiny-Q2_K     2.61  0.04958  0.04462 - 0.05454
        tiny-IQ3_XXS  2.53  0.03533  0.03180 - 0.03886      *
        tiny-Q4_K_M   3.61  0.00470  0.00423 - 0.00517      *
        front: * is on the Pareto front: no other candidate is both
        smaller and better
        8 chunks of 512 tokens, 2040 scored, reference PPL 19.500;
        intervals by bootstrap over chunks; engine ffffffff
        not shown in 60 columns: RMS dp, KLD max, PPL 95 %, KLD p99,
        bpw, same top, PPL
        ");
        insta::assert_snapshot!(table.text(Some(80)), @r"
        candidate      MiB    bpw     PPL      KLD           KLD 95 %  same top  front
        tiny-Q2_K     2.61  4.500  20.000  0.04958  0.04462 - 0.05454   90.00 %
        tiny-IQ3_XXS  2.53  4.500  20.000  0.03533  0.03180 - 0.03886   90.00 %      *
        tiny-Q4_K_M   3.61  4.500  20.000  0.00470  0.00423 - 0.00517   90.00 %      *
        front: * is on the Pareto front: no other candidate is both smaller and better
        8 chunks of 512 tokens, 2040 scored, reference PPL 19.500; intervals by
        bootstrap over chunks; engine ffffffff
        not shown in 80 columns: RMS dp, KLD max, PPL 95 %, KLD p99
        ");
        insta::assert_snapshot!(table.text(Some(140)), @r"
        candidate      MiB    bpw     PPL         PPL 95 %      KLD           KLD 95 %  KLD p99  KLD max  same top  RMS dp  front
        tiny-Q2_K     2.61  4.500  20.000  19.000 - 21.000  0.04958  0.04462 - 0.05454   0.0496    0.050   90.00 %  1.00 %
        tiny-IQ3_XXS  2.53  4.500  20.000  19.000 - 21.000  0.03533  0.03180 - 0.03886   0.0353    0.035   90.00 %  1.00 %      *
        tiny-Q4_K_M   3.61  4.500  20.000  19.000 - 21.000  0.00470  0.00423 - 0.00517   0.0047    0.005   90.00 %  1.00 %      *
        front: * is on the Pareto front: no other candidate is both smaller and better
        8 chunks of 512 tokens, 2040 scored, reference PPL 19.500; intervals by bootstrap over chunks; engine ffffffff
        ");
        assert!(!table.text(None).contains("not shown"));
    }

    #[test]
    fn what_a_narrow_terminal_leaves_out_is_named() {
        let predicted = Row {
            kld_predicted: Some(0.1),
            kld_predicted_pi95: Some([0.09, 0.11]),
            prediction_holds: Some(false),
            ..row("best-Q4_K_M", 5 << 30, 0.2)
        };
        let table = Table::of(&[Metrics::new("r", vec![row("mix-Q4_K_M", 5 << 30, 0.3), predicted])]);
        let whole = table.text(None);
        let rows = whole.lines().take(3).collect::<Vec<_>>().join("\n");
        let text = table.text(Some(widest(&rows)));
        assert!(!text.contains("not shown"), "{text}");
        let text = table.text(Some(widest(&rows) - 1));
        assert!(text.contains("columns: RMS dp\n"), "{text}");
        let missed = "! what the policy measured of `best-Q4_K_M`";
        assert!(table.text(Some(80)).contains(missed), "said whatever is left out");
        // What is compared is never left out, however narrow.
        let header = table.text(Some(1));
        assert!(
            ["candidate", "MiB", "KLD"].iter().all(|name| header.contains(name)),
            "{header}"
        );
    }

    #[test]
    fn chosen_columns_are_shown_in_blocks_where_they_do_not_fit() {
        let mut table = Table::of(&[mixes()]);
        let names = [
            "candidate",
            "size",
            "kld",
            "kld-ci",
            "top1",
            "p99",
            "ppl",
            "ppl_ci",
            "engine",
        ];
        table.choose(names.map(column).to_vec());
        let text = table.text(Some(60));
        assert!(widest(&text) <= 60, "{text}");
        assert!(!text.contains("not shown"), "{text}");
        assert_eq!(text.matches("candidate").count(), 2, "{text}");
    }

    #[test]
    fn rows_are_sorted_within_an_evaluation_and_what_has_no_value_comes_last() {
        let mut unmeasured = row("alone", 1, 0.1);
        unmeasured.kld_mean = None;
        let mut metrics = mixes();
        metrics.rows.insert(0, unmeasured);
        metrics.rows.push(Row {
            eval: "code".to_owned(),
            ..row("tiny-Q2_K", 2_736_000, 0.001)
        });
        let mut table = Table::of(&[metrics]);
        let mut names = |descending| {
            table.sort(Sort {
                column: column("kld"),
                descending,
            });
            let csv = table.csv();
            let lines = csv.lines().skip(1);
            lines
                .map(|line| line.split(',').nth(2).unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(false),
            ["tiny-Q4_K_M", "tiny-IQ3_XXS", "tiny-Q2_K", "alone", "tiny-Q2_K"]
        );
        assert_eq!(
            names(true),
            ["tiny-Q2_K", "tiny-IQ3_XXS", "tiny-Q4_K_M", "alone", "tiny-Q2_K"]
        );
    }

    #[test]
    fn figures_of_another_engine_are_historical_in_every_form() {
        let mut old = mixes();
        "old".clone_into(&mut old.recipe);
        for row in &mut old.rows {
            row.fingerprint = "e".repeat(64);
            row.bytes = 1;
        }
        let mut table = Table::of(&[mixes(), old]);
        table.choose(vec![column("candidate"), column("kld")]);
        let text = table.text(Some(60));
        assert_eq!(text.matches("  historical\n").count(), 3, "{text}");
        assert!(text.contains("historical: measured by another engine"), "{text}");
        assert_eq!(table.markdown().matches("| historical |").count(), 3);
        let csv = table.csv();
        assert!(
            csv.starts_with("candidate,kld_mean,kld_mean_ci95_low,kld_mean_ci95_high,historical\r\n"),
            "{csv}"
        );
        assert_eq!(csv.matches(",true\r\n").count(), 3, "{csv}");
        let rows = &table.document()["rows"];
        assert_eq!(
            (&rows[0]["historical"], &rows[3]["historical"]),
            (&json!(false), &json!(true))
        );
        assert_eq!(rows[0]["kld_mean_ci95"].as_array().unwrap().len(), 2);
        // What is historical is neither on the front nor keeps others from it.
        let csv = Table::of(&[mixes(), Metrics::new("same", mixes().rows)]).csv();
        assert_eq!(csv.lines().count(), 4, "the same candidates are listed once");
    }

    #[test]
    fn markdown_says_what_it_rests_on() {
        let text = Table::of(&[Metrics::new("tiny", vec![row("a", 3 << 20, 0.012_345_6)])]).markdown();
        assert!(text.starts_with("# tiny\n\n## quality\n\n| candidate |"), "{text}");
        assert!(text.contains("| a         | 3.00 | 4.500 |"), "{text}");
        assert!(text.contains("0.01235"), "{text}");
        assert!(text.contains("no other candidate is both smaller and better"), "{text}");
        assert!(text.ends_with("8 chunks of 512 tokens, 2040 scored, reference PPL 19.500; intervals by bootstrap over chunks; engine ffffffff\n"), "{text}");
    }
}
