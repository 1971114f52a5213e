//! The chart in cells of a terminal.

use std::fmt::Write as _;

use comfy_table::CellAlignment;
use comfy_table::Table;
use comfy_table::presets;

use super::Chart;
use super::Point;
use super::axis::Axis;
use super::axis::figure;
use super::axis::unit;
use super::labels;
use super::labels::Around;
use super::labels::Frame;
use super::labels::Wanted;

/// How the chart is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Columns of the whole.
    pub width: usize,
    /// Rows of the field with the marks.
    pub height: usize,
    /// Only characters of ASCII.
    pub ascii: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            width: 80,
            height: 22,
            ascii: false,
        }
    }
}

/// What is drawn with.
struct Signs {
    /// Of a series in turn: on the front, and not.
    marks: &'static [(char, char)],
    mixes: (char, char),
    predicted: char,
    line: char,
    bar: char,
    upright: char,
    level: char,
    corner: char,
    tick: char,
}

const UNICODE: Signs = Signs {
    marks: &[('●', '○'), ('■', '□'), ('▲', '△'), ('★', '☆')],
    mixes: ('◆', '◇'),
    predicted: '×',
    line: '·',
    bar: '│',
    upright: '│',
    level: '─',
    corner: '└',
    tick: '┤',
};

const ASCII: Signs = Signs {
    marks: &[('A', 'a'), ('B', 'b'), ('C', 'c'), ('D', 'd')],
    mixes: ('#', 'o'),
    predicted: 'x',
    line: '.',
    bar: '!',
    upright: '|',
    level: '-',
    corner: '+',
    tick: '+',
};

/// The field with the marks: rows of cells.
struct Field {
    cells: Vec<Vec<char>>,
    width: usize,
    height: usize,
}

impl Field {
    fn new(width: usize, height: usize) -> Self {
        Self {
            cells: vec![vec![' '; width]; height],
            width,
            height,
        }
    }

    fn put(&mut self, column: usize, row: usize, sign: char) {
        if let Some(cell) = self.cells.get_mut(row).and_then(|row| row.get_mut(column)) {
            *cell = sign;
        }
    }

    fn column(&self, axis: &Axis, bytes: f64) -> usize {
        (axis.place(bytes) * (self.width - 1) as f64).round() as usize
    }

    fn row(&self, axis: &Axis, loss: f64) -> usize {
        ((1.0 - axis.place(loss)) * (self.height - 1) as f64).round() as usize
    }
}

impl Chart {
    /// Draws the chart for a terminal, with a table of its candidates below.
    pub fn terminal(&self, style: Style) -> String {
        let signs = if style.ascii { &ASCII } else { &UNICODE };
        let (low, high) = self.losses();
        let losses = Axis::log(low, high);
        let (least, most) = self.bytes();
        let (scale, name) = unit(most);
        let sizes = Axis::linear(least as f64 / scale, most as f64 / scale);
        let height = style.height.max(6);
        let ticks = losses.ticks(height.div_ceil(3));
        let margin = ticks.iter().map(|tick| figure(*tick).len()).max().unwrap_or(0);
        let mut field = Field::new(style.width.max(40).saturating_sub(margin + 3), height);
        self.draw(&mut field, (&sizes, scale), &losses, signs);

        let mut text = format!("{}\n\n", self.title);
        let _ = writeln!(text, "{}", self.loss.title());
        let rows: Vec<usize> = ticks.iter().map(|tick| field.row(&losses, *tick)).collect();
        for (at, cells) in field.cells.iter().enumerate() {
            let line: String = cells.iter().collect();
            let tick = rows.iter().position(|row| *row == at).map(|at| figure(ticks[at]));
            let sign = if tick.is_some() { signs.tick } else { signs.upright };
            let line = format!("{:>margin$} {sign}{line}", tick.unwrap_or_default());
            let _ = writeln!(text, "{}", line.trim_end());
        }
        let level: String = std::iter::repeat_n(signs.level, field.width).collect();
        let _ = writeln!(text, "{:margin$} {}{level}", "", signs.corner);
        let _ = writeln!(text, "{:margin$}  {}", "", below(&sizes, &field, name));
        let _ = writeln!(text, "\n{}", self.key(signs, style.width.max(40)));
        for line in self.table(signs).lines() {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        text
    }

    fn draw(&self, field: &mut Field, (sizes, scale): (&Axis, f64), losses: &Axis, signs: &Signs) {
        let place =
            |field: &Field, bytes: u64, loss: f64| (field.column(sizes, bytes as f64 / scale), field.row(losses, loss));
        for series in self.series.iter().filter(|series| !series.mixes) {
            for pair in series.points.windows(2) {
                let from = place(field, pair[0].bytes, pair[0].loss);
                let to = place(field, pair[1].bytes, pair[1].loss);
                let steps = from.0.abs_diff(to.0).max(from.1.abs_diff(to.1)).max(1);
                for step in 0..=steps {
                    let at = |from: usize, to: usize| {
                        let (from, to) = (from as f64, to as f64);
                        (from + (to - from) * step as f64 / steps as f64).round() as usize
                    };
                    field.put(at(from.0, to.0), at(from.1, to.1), signs.line);
                }
            }
        }
        let mut marks: Vec<(usize, usize)> = Vec::new();
        let mut wanted = Vec::new();
        let mut names = Vec::new();
        for (series, of_series) in self.series.iter().zip(self.signs(signs)) {
            for point in &series.points {
                let (column, row) = place(field, point.bytes, point.loss);
                if let Some([low, high]) = point.interval {
                    for row in field.row(losses, high)..=field.row(losses, low) {
                        field.put(column, row, signs.bar);
                    }
                }
                if let Some(predicted) = point.predicted {
                    let row = field.row(losses, predicted);
                    field.put(column, row, signs.predicted);
                    marks.push((column, row));
                }
                marks.push((column, row));
                wanted.push(Wanted {
                    at: (column as f64 + 0.5, row as f64 + 0.5),
                    width: point.label.chars().count() as f64 + 1.0,
                    height: 1.0,
                });
                names.push((point, column, row, sign_of(point, of_series)));
            }
        }
        // Marks go before predictions and bars of others.
        for (_, column, row, sign) in &names {
            field.put(*column, *row, *sign);
        }
        let taken: Vec<Frame> = marks
            .iter()
            .map(|(column, row)| Frame::around((*column as f64 + 0.5, *row as f64 + 0.5), 1.0, 1.0))
            .collect();
        let around = Around {
            within: Frame {
                x: 0.0,
                y: 0.0,
                width: field.width as f64,
                height: field.height as f64,
            },
            taken: &taken,
            lines: &[],
            step: (1.5, 0.5),
        };
        // What is too far from its mark tells nothing: the table below has it.
        let near = |label: &Wanted, frame: &Frame| {
            let (x, y) = frame.nearest(label.at);
            (x - label.at.0).abs() <= 3.0 && (y - label.at.1).abs() <= 1.6
        };
        for ((label, frame), (point, ..)) in wanted.iter().zip(labels::place(&wanted, &around)).zip(&names) {
            let Some(frame) = frame.filter(|frame| near(label, frame)) else {
                continue;
            };
            let (column, row) = (frame.x.round() as usize, frame.y.round() as usize);
            for (at, c) in point.label.chars().enumerate() {
                field.put(column + at, row, c);
            }
        }
    }

    /// The signs of each series.
    fn signs(&self, signs: &Signs) -> Vec<(char, char)> {
        let mut turn = signs.marks.iter().cycle();
        let of_series = self.series.iter().map(|series| {
            if series.mixes {
                Some(signs.mixes)
            } else {
                turn.next().copied()
            }
        });
        of_series.map(|sign| sign.unwrap_or(signs.mixes)).collect()
    }

    /// What the signs mean, on as many lines as that takes.
    fn key(&self, signs: &Signs, width: usize) -> String {
        let series = self.series.iter().zip(self.signs(signs));
        let mut said: Vec<String> = series
            .map(|(series, (front, other))| format!("{front} {other} {}", series.name))
            .collect();
        if self.has(|point| point.predicted.is_some()) {
            said.push(format!("{} predicted", signs.predicted));
        }
        if self.has(|point| point.interval.is_some()) {
            said.push(format!("{} 95 % interval", signs.bar));
        }
        said.push("(the first of two: on the front)".to_owned());
        let mut text = String::new();
        let mut used = 0;
        for word in said {
            let length = word.chars().count();
            if used > 0 && used + 3 + length > width {
                text.push('\n');
                used = 0;
            }
            let gap = if used > 0 { "   " } else { "" };
            text.push_str(gap);
            text.push_str(&word);
            used += gap.len() + length;
        }
        text
    }

    fn table(&self, signs: &Signs) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let predicted = self.has(|point| point.predicted.is_some());
        let mut header = vec!["", "candidate", "MiB", "bpw", self.loss.short(), "95 %"];
        if predicted {
            header.push("predicted");
        }
        header.push("");
        table.set_header(header);
        for (series, of_series) in self.series.iter().zip(self.signs(signs)) {
            for point in &series.points {
                let interval = point
                    .interval
                    .map(|[low, high]| format!("{} - {}", short(low), short(high)));
                let mut cells = vec![
                    sign_of(point, of_series).to_string(),
                    point.candidate.clone(),
                    format!("{:.2}", point.bytes as f64 / f64::from(1 << 20)),
                    format!("{:.3}", point.bpw),
                    short(point.loss),
                    interval.unwrap_or_default(),
                ];
                if predicted {
                    cells.push(point.predicted.map(short).unwrap_or_default());
                }
                cells.push(
                    match (point.historical, point.front) {
                        (true, _) => "historical",
                        (_, true) => "front",
                        _ => "",
                    }
                    .to_owned(),
                );
                table.add_row(cells);
            }
        }
        let columns = table.column_count();
        for (at, column) in table.column_iter_mut().enumerate() {
            if (2..columns - 1).contains(&at) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }
}

fn sign_of(point: &Point, (front, other): (char, char)) -> char {
    if point.front { front } else { other }
}

/// Three digits that count.
fn short(value: f64) -> String {
    let digits = 2 - value.abs().max(1e-9).log10().floor() as i32;
    format!("{value:.*}", usize::try_from(digits).unwrap_or(0).min(8))
}

/// The sizes below the axis, each under its place.
fn below(sizes: &Axis, field: &Field, name: &str) -> String {
    let mut line = String::new();
    for tick in sizes.ticks((field.width / 12).max(2)) {
        let text = figure(tick);
        let start = field.column(sizes, tick).saturating_sub(text.len() / 2);
        let free = line.chars().count();
        if start < free || start + text.len() > field.width.saturating_sub(name.len() + 1) {
            continue;
        }
        let _ = write!(line, "{:1$}{text}", "", start - free);
    }
    let width = field.width.saturating_sub(line.chars().count());
    let _ = write!(line, "{name:>width$}");
    line
}
