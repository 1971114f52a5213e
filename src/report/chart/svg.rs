//! The chart as a picture: SVG that needs nothing outside itself, with colours for light and for dark surroundings.

use std::fmt::Write as _;

use super::Chart;
use super::Point;
use super::axis::Axis;
use super::axis::figure;
use super::axis::unit;
use super::labels;
use super::labels::Around;
use super::labels::Frame;
use super::labels::Line;
use super::labels::Wanted;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const FIELD: f64 = 470.0;
/// Half of a mark.
const MARK: f64 = 5.0;
/// The width of a character of text, as a share of its size: enough for all but the widest, whatever the font.
const CHARACTER: f64 = 0.62;
const TEXT: f64 = 12.0;
/// How far a label may be from its mark without a line to it.
const BESIDE: f64 = 14.0;

/// Series differ by colour and by shape. The colours are distinguishable with any kind of colour vision (Okabe and Ito); those for the dark are
/// lighter.
const COLOURS: &[(&str, &str)] = &[
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9a4d"),
    ("#007a5a", "#2fc79b"),
    ("#a8467e", "#e69ac6"),
    ("#8a6d00", "#f0e442"),
];
const SHAPES: &[Shape] = &[Shape::Circle, Shape::Square, Shape::Triangle];

#[derive(Clone, Copy)]
enum Shape {
    Circle,
    Square,
    Triangle,
    Diamond,
}

impl Shape {
    fn draw(self, (x, y): (f64, f64), class: &str) -> String {
        let path = |corners: &[(f64, f64)]| {
            let corners: Vec<String> = corners
                .iter()
                .map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy))
                .collect();
            format!(r#"<polygon class="{class}" points="{}"/>"#, corners.join(" "))
        };
        let m = MARK;
        match self {
            Self::Circle => format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{m}"/>"#),
            Self::Square => path(&[(-m, -m), (m, -m), (m, m), (-m, m)]),
            Self::Triangle => path(&[(0.0, -m * 1.2), (m * 1.15, m * 0.8), (-m * 1.15, m * 0.8)]),
            Self::Diamond => path(&[(0.0, -m * 1.25), (m * 1.25, 0.0), (0.0, m * 1.25), (-m * 1.25, 0.0)]),
        }
    }
}

/// Text that may hold anything, as XML.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // No other control character may stand in XML.
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * TEXT * CHARACTER
}

/// Where things are.
struct Field {
    sizes: Axis,
    scale: f64,
    losses: Axis,
    top: f64,
}

impl Field {
    fn x(&self, value: f64) -> f64 {
        LEFT + self.sizes.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, loss: f64) -> f64 {
        self.top + (1.0 - self.losses.place(loss)) * FIELD
    }

    fn place(&self, point: &Point) -> (f64, f64) {
        (self.x(point.bytes as f64 / self.scale), self.y(point.loss))
    }
}

/// The style of a series: its class, and the shape of its marks.
struct Style {
    class: String,
    shape: Shape,
}

impl Chart {
    /// Draws the chart as SVG.
    pub fn svg(&self) -> String {
        let styles = self.styles();
        let (key, key_height) = self.key_svg(&styles);
        let (low, high) = self.losses();
        let (least, most) = self.bytes();
        let (scale, unit_name) = unit(most);
        let field = Field {
            sizes: Axis::linear(least as f64 / scale, most as f64 / scale),
            scale,
            losses: Axis::log(low, high),
            top: 44.0 + key_height,
        };
        let bottom = field.top + FIELD;
        let height = bottom + 52.0 + 16.0 * self.notes.len() as f64;
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="{TEXT}">"#
        );
        let title = escaped(&self.title);
        let _ = write!(svg, "\n<title>{title}</title>\n{}", style());
        let _ = writeln!(svg, r#"<rect class="paper" width="{WIDTH}" height="{height}"/>"#);
        let _ = writeln!(
            svg,
            r#"<text class="ink" x="{LEFT}" y="26" font-size="16" font-weight="600">{title}</text>"#
        );
        svg.push_str(&key);
        self.axes(&mut svg, &field, unit_name);
        self.series_svg(&mut svg, &field, &styles);
        for (at, note) in self.notes.iter().enumerate() {
            let y = bottom + 56.0 + 16.0 * at as f64;
            let _ = writeln!(
                svg,
                r#"<text class="faint" x="{LEFT}" y="{y}" font-size="11">{}</text>"#,
                escaped(note)
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn styles(&self) -> Vec<Style> {
        let mut turn = 0;
        let of_series = self.series.iter().map(|series| {
            if series.mixes {
                return Style {
                    class: "mix".to_owned(),
                    shape: Shape::Diamond,
                };
            }
            let at = turn;
            turn += 1;
            Style {
                class: format!("s{}", at % COLOURS.len()),
                shape: SHAPES[at % SHAPES.len()],
            }
        });
        of_series.collect()
    }

    /// The key, on as many lines as it needs, and their height.
    fn key_svg(&self, styles: &[Style]) -> (String, f64) {
        let mut entries: Vec<(String, String)> = Vec::new();
        for (series, style) in self.series.iter().zip(styles) {
            let mark = style.shape.draw((0.0, 0.0), &format!("{} full", style.class));
            entries.push((mark, series.name.clone()));
        }
        let plain = Shape::Circle;
        entries.push((plain.draw((0.0, 0.0), "ink-mark full"), "on the front".to_owned()));
        if self.has(|point| !point.front) {
            entries.push((plain.draw((0.0, 0.0), "ink-mark open"), "not on the front".to_owned()));
        }
        if self.has(|point| point.historical) {
            entries.push((plain.draw((0.0, 0.0), "ink-mark open old"), "historical".to_owned()));
        }
        if self.has(|point| point.interval.is_some()) {
            entries.push((bar("ink-bar", 0.0, -7.0, 7.0), "95 % interval".to_owned()));
        }
        if self.has(|point| point.predicted.is_some()) {
            entries.push((cross("ink-bar", (0.0, 0.0)), "predicted".to_owned()));
        }
        let (mut x, mut y) = (LEFT + MARK, 48.0);
        let mut svg = String::new();
        for (mark, name) in entries {
            let width = 14.0 + width_of(&name) + 22.0;
            if x + width > WIDTH - RIGHT && x > LEFT + MARK {
                (x, y) = (LEFT + MARK, y + 20.0);
            }
            let _ = writeln!(
                svg,
                r#"<g transform="translate({x:.1} {y:.1})">{mark}<text class="ink" x="12" y="4">{}</text></g>"#,
                escaped(&name)
            );
            x += width;
        }
        (svg, y - 48.0 + 22.0)
    }

    fn axes(&self, svg: &mut String, field: &Field, unit_name: &str) {
        let (right, bottom) = (WIDTH - RIGHT, field.top + FIELD);
        for tick in field.losses.ticks(10) {
            let (y, text) = (field.y(tick), figure(tick));
            let _ = writeln!(svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/>"#);
            let _ = writeln!(
                svg,
                r#"<text class="faint" x="{:.1}" y="{:.1}" text-anchor="end">{text}</text>"#,
                LEFT - 8.0,
                y + 4.0
            );
        }
        for tick in field.sizes.ticks(10) {
            let (x, text) = (field.x(tick), figure(tick));
            let _ = writeln!(svg, r#"<path class="grid" d="M{x:.1} {:.1}V{bottom:.1}"/>"#, field.top);
            let _ = writeln!(
                svg,
                r#"<text class="faint" x="{x:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                bottom + 17.0
            );
        }
        let _ = writeln!(
            svg,
            r#"<path class="axis" d="M{LEFT} {:.1}V{bottom:.1}H{right}"/>"#,
            field.top
        );
        let _ = writeln!(
            svg,
            r#"<text class="ink" x="{right}" y="{:.1}" text-anchor="end">file size, {unit_name}</text>"#,
            bottom + 34.0
        );
        let (x, y) = (18.0, field.top + FIELD / 2.0);
        let _ = writeln!(
            svg,
            r#"<text class="ink" x="{x}" y="{y}" text-anchor="middle" transform="rotate(-90 {x} {y})">{}</text>"#,
            self.loss.title()
        );
    }

    fn series_svg(&self, svg: &mut String, field: &Field, styles: &[Style]) {
        let mut lines: Vec<Line> = Vec::new();
        let mut taken: Vec<Frame> = Vec::new();
        let (mut under, mut over) = (String::new(), String::new());
        for (series, style) in self.series.iter().zip(styles) {
            let class = &style.class;
            let places: Vec<(f64, f64)> = series.points.iter().map(|point| field.place(point)).collect();
            if !series.mixes && places.len() > 1 {
                let path: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let _ = writeln!(under, r#"<polyline class="line {class}" points="{}"/>"#, path.join(" "));
                lines.extend(places.windows(2).map(|pair| [pair[0], pair[1]]));
            }
            for (point, place) in series.points.iter().zip(&places) {
                let (x, y) = *place;
                if let Some([low, high]) = point.interval {
                    let (top, end) = (field.y(high), field.y(low));
                    let _ = writeln!(under, "{}", bar(&format!("bar {class}"), x, top, end));
                    lines.push([(x, top), (x, end)]);
                }
                if let Some(predicted) = point.predicted {
                    let at = (x, field.y(predicted));
                    let _ = writeln!(over, "{}", cross(&format!("cross {class}"), at));
                    taken.push(Frame::around(at, 9.0, 9.0));
                }
                taken.push(Frame::around((x, y), MARK * 2.6, MARK * 2.6));
                let fill = if point.front { "full" } else { "open" };
                let old = if point.historical { " old" } else { "" };
                let mark = style.shape.draw(*place, &format!("{class} {fill}{old}"));
                let _ = writeln!(over, "<g><title>{}</title>{mark}</g>", escaped(&self.tooltip(point)));
            }
        }
        svg.push_str(&under);
        self.labels_svg(svg, field, &lines, &taken);
        svg.push_str(&over);
    }

    /// Writes the labels where nothing else is, each with a line to its mark if that is far.
    fn labels_svg(&self, svg: &mut String, field: &Field, lines: &[Line], taken: &[Frame]) {
        let points: Vec<&Point> = self.points().collect();
        let wanted: Vec<Wanted> = points
            .iter()
            .map(|point| Wanted {
                at: field.place(point),
                width: width_of(&point.label),
                height: TEXT * 1.25,
            })
            .collect();
        let around = Around {
            within: Frame {
                x: LEFT + 2.0,
                y: field.top,
                width: WIDTH - LEFT - 4.0,
                height: FIELD - 2.0,
            },
            taken,
            lines,
            step: (MARK * 1.6, MARK * 1.4),
        };
        for ((point, label), frame) in points.iter().zip(&wanted).zip(labels::place(&wanted, &around)) {
            // One without a place has its name in the mark's title.
            let Some(frame) = frame else { continue };
            let (x, y) = frame.nearest(label.at);
            if (x - label.at.0).hypot(y - label.at.1) > BESIDE {
                let _ = writeln!(
                    svg,
                    r#"<path class="lead" d="M{:.1} {:.1}L{x:.1} {y:.1}"/>"#,
                    label.at.0, label.at.1
                );
            }
            // Words stand at the side of their frame that is nearer to the mark.
            let (anchor, at) = if frame.x >= label.at.0 {
                ("start", frame.x)
            } else if frame.x + frame.width <= label.at.0 {
                ("end", frame.x + frame.width)
            } else {
                ("middle", frame.x + frame.width / 2.0)
            };
            let weight = if point.front { r#" font-weight="600""# } else { "" };
            let _ = writeln!(
                svg,
                r#"<text class="ink" x="{at:.1}" y="{:.1}" text-anchor="{anchor}"{weight}>{}</text>"#,
                frame.y + frame.height * 0.76,
                escaped(&point.label)
            );
        }
    }

    /// All of a candidate in a line.
    fn tooltip(&self, point: &Point) -> String {
        let mut text = format!(
            "{}: {}, {:.3} bpw, {} {:.4e}",
            point.candidate,
            crate::prose::bytes(point.bytes),
            point.bpw,
            self.loss.short(),
            point.loss
        );
        if let Some([low, high]) = point.interval {
            let _ = write!(text, " ({low:.3e} to {high:.3e})");
        }
        if let Some(predicted) = point.predicted {
            let _ = write!(text, ", predicted {predicted:.3e}");
        }
        if point.historical {
            text.push_str(", historical");
        }
        text
    }
}

/// An upright bar with ends.
fn bar(class: &str, x: f64, top: f64, bottom: f64) -> String {
    let (left, right) = (x - 3.0, x + 3.0);
    format!(
        r#"<path class="{class}" d="M{x:.1} {top:.1}V{bottom:.1}M{left:.1} {top:.1}H{right:.1}M{left:.1} {bottom:.1}H{right:.1}"/>"#
    )
}

fn cross(class: &str, (x, y): (f64, f64)) -> String {
    let d = 4.0;
    let (left, right, top, bottom) = (x - d, x + d, y - d, y + d);
    format!(
        r#"<path class="{class}" d="M{left:.1} {top:.1}L{right:.1} {bottom:.1}M{left:.1} {bottom:.1}L{right:.1} {top:.1}"/>"#
    )
}

/// Colours stand in one place, so that whoever reads in the dark gets others.
fn style() -> String {
    let colours = |dark: bool| {
        let ink = if dark {
            ("#14181c", "#e8eaed", "#a8afb7", "#2b3138", "#c3c9d0")
        } else {
            ("#ffffff", "#1c2024", "#5b636c", "#e3e6ea", "#555c64")
        };
        let (paper, ink, faint, grid, mix) = ink;
        let mut css = format!(
            ".paper{{fill:{paper}}}.ink{{fill:{ink}}}.faint{{fill:{faint}}}.grid{{stroke:{grid}}}.axis,.ink-mark,.ink-bar{{stroke:{ink}}}\
             .ink-mark.full{{fill:{ink}}}.lead{{stroke:{faint}}}.mix{{stroke:{mix}}}.mix.full{{fill:{mix}}}"
        );
        for (at, (light, night)) in COLOURS.iter().enumerate() {
            let colour = if dark { night } else { light };
            let _ = write!(css, ".s{at}{{stroke:{colour}}}.s{at}.full{{fill:{colour}}}");
        }
        let _ = write!(css, ".open{{fill:{paper}}}");
        css
    };
    format!(
        "<style>\n.grid,.axis,.lead,.line,.bar,.cross,.ink-bar{{fill:none}}.line{{stroke-width:1.5}}.bar{{stroke-width:1.2;opacity:.75}}\
         .cross,.ink-bar{{stroke-width:1.6}}.full,.open{{stroke-width:1.6}}.old{{stroke-dasharray:2 2}}.lead{{stroke-width:.8}}\n\
         {}\n@media (prefers-color-scheme:dark){{{}}}\n</style>\n",
        colours(false),
        colours(true)
    )
}
