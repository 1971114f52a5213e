//! Diagnostics: how errors and warnings look, as text with excerpts and as JSON. The only module that draws them.

mod overlap;
mod recipe;

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::AnnotationKind;
use annotate_snippets::Group;
use annotate_snippets::Level as Drawn;
use annotate_snippets::Patch;
use annotate_snippets::Renderer;
use annotate_snippets::Snippet;
use serde::Serialize;

use crate::cli::escape::escape;
use crate::cli::escape::escape_excerpt;
use crate::recipe::Place;

/// The version of JSON messages (`cache-schema/message.v3.json`).
pub const SCHEMA: u32 = 3;

/// The severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// The command cannot continue.
    Error,
    /// The command continues.
    Warning,
}

/// A place with what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub place: Place,
    /// What; may be empty.
    pub text: String,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// A sentence.
    Text(String),
    /// An edit that likely helps.
    Patch {
        /// What the edit does.
        text: String,
        /// What it replaces.
        place: Place,
        /// With what.
        replacement: String,
    },
}

impl Hint {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Patch { text, .. } => text,
        }
    }
}

/// One message to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// The severity.
    pub level: Level,
    /// `group::what-is-wrong`, stable.
    pub code: Option<String>,
    /// A sentence that makes sense alone.
    pub message: String,
    /// What led to it, nearest first.
    pub causes: Vec<String>,
    /// The place that it is about.
    pub primary: Option<Label>,
    /// Other places that matter.
    pub context: Vec<Label>,
    /// What to do.
    pub hints: Vec<Hint>,
}

/// How diagnostics are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether to use colour.
    pub color: bool,
    /// Columns to fit into.
    pub width: usize,
}

impl Style {
    /// No colour, 80 columns.
    pub const PLAIN: Self = Self {
        color: false,
        width: 80,
    };
}

impl Diagnostic {
    /// A message without a place.
    pub fn error(message: impl Into<String>) -> Self {
        Self {
            level: Level::Error,
            code: None,
            message: message.into(),
            causes: Vec::new(),
            primary: None,
            context: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// A warning without a place.
    pub fn warning(message: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            ..Self::error(message)
        }
    }

    /// A message about an error and everything that led to it. A cause that a message before it has already is left out.
    pub fn from_error(error: &dyn std::error::Error) -> Self {
        let mut this = Self::error(error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            let text = cause.to_string();
            let known = std::iter::once(&this.message).chain(&this.causes);
            if !known.into_iter().any(|message| message.contains(&text)) {
                this.causes.push(text);
            }
            source = cause.source();
        }
        this
    }

    /// Adds the stable word.
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Adds a cause.
    pub fn caused_by(mut self, cause: impl Into<String>) -> Self {
        self.causes.push(cause.into());
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(Hint::Text(hint.into()));
        self
    }

    /// Returns the diagnostic as text, ending with a line break.
    pub fn render(&self, style: Style) -> String {
        let mut text = match &self.primary {
            Some(primary) => self.render_with_excerpt(primary, style),
            None => self.render_plainly(style),
        };
        // The renderer replaces escape sequences of an excerpt, but not every control.
        text = escape_excerpt(&text);
        while text.ends_with('\n') {
            text.pop();
        }
        let mut lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.push("");
        lines.join("\n")
    }

    fn render_plainly(&self, style: Style) -> String {
        let (red, cyan, reset) = match (style.color, self.level) {
            (false, _) => ("", "", ""),
            (true, Level::Error) => ("\x1b[1m\x1b[91m", "\x1b[1m\x1b[96m", "\x1b[0m"),
            (true, Level::Warning) => ("\x1b[1m\x1b[33m", "\x1b[1m\x1b[96m", "\x1b[0m"),
        };
        let word = if self.level == Level::Error { "error" } else { "warning" };
        let code = self.code.as_ref().map(|code| format!("[{code}]")).unwrap_or_default();
        let mut text = format!("{red}{word}{code}{reset}: {}\n", escape(&self.message));
        for cause in &self.causes {
            let _ = writeln!(text, "  caused by: {}", escape(cause));
        }
        for (at, hint) in self.hints.iter().enumerate() {
            let gap = if at == 0 { "\n" } else { "" };
            let _ = writeln!(text, "{gap}{cyan}hint{reset}: {}", escape(hint.text()));
        }
        text
    }

    fn render_with_excerpt(&self, primary: &Label, style: Style) -> String {
        let level = if self.level == Level::Error {
            Drawn::ERROR
        } else {
            Drawn::WARNING
        };
        let mut title = level.primary_title(escape(&self.message));
        if let Some(code) = &self.code {
            title = title.id(code.as_str());
        }
        let mut group = Group::with_title(title);
        // Places of one file share a picture.
        let mut files = vec![primary.place.source.clone()];
        for label in &self.context {
            if !files.contains(&label.place.source) {
                files.push(label.place.source.clone());
            }
        }
        for file in &files {
            let first = (AnnotationKind::Primary, primary);
            let others = self.context.iter().map(|label| (AnnotationKind::Context, label));
            let labels = [first].into_iter().chain(others);
            let of_file: Vec<_> = labels.filter(|(_, label)| label.place.source == *file).collect();
            let spans: Vec<Range<usize>> = of_file.iter().map(|(_, label)| drawable(&label.place)).collect();
            for excerpt in excerpts(file.text(), &spans) {
                let mut snippet = Snippet::source(&file.text()[excerpt.range.clone()])
                    .path(escape(file.name()))
                    .line_start(excerpt.line);
                for ((kind, label), span) in of_file.iter().zip(&spans) {
                    if !excerpt.holds(span) {
                        continue;
                    }
                    let annotation = kind.span(excerpt.inside(span));
                    let text = escape(&label.text);
                    snippet = snippet.annotation(if text.is_empty() {
                        annotation
                    } else {
                        annotation.label(text)
                    });
                }
                group = group.element(snippet);
            }
        }
        for cause in &self.causes {
            group = group.element(Drawn::NOTE.message(escape(cause)));
        }
        let mut groups = vec![group];
        for hint in &self.hints {
            match hint {
                Hint::Text(text) => groups.push(Group::with_title(Drawn::HELP.secondary_title(escape(text)))),
                Hint::Patch {
                    text,
                    place,
                    replacement,
                } => {
                    let mut snippets =
                        excerpts(place.source.text(), &[place.span.range()])
                            .into_iter()
                            .map(|excerpt| {
                                let patch = Patch::new(excerpt.inside(&place.span.range()), replacement.as_str());
                                Snippet::source(&place.source.text()[excerpt.range.clone()])
                                    .path(escape(place.source.name()))
                                    .line_start(excerpt.line)
                                    .patch(patch)
                            });
                    let Some(snippet) = snippets.next() else { continue };
                    groups.push(Group::with_title(Drawn::HELP.secondary_title(escape(text))).element(snippet));
                }
            }
        }
        let renderer = if style.color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        renderer.term_width(style.width).render(&groups)
    }

    /// Returns the diagnostic as a JSON document.
    pub fn to_json(&self) -> serde_json::Value {
        let place = self.primary.as_ref().map(|label| &label.place);
        let line_column = place.map(|place| place.source.line_column(place.span.start));
        serde_json::json!({
            "schema": SCHEMA,
            "reason": "diagnostic",
            "level": self.level,
            "code": self.code,
            "message": self.message,
            "causes": self.causes,
            "file": place.map(|place| place.source.name()),
            "line": line_column.map(|(line, _)| line),
            "column": line_column.map(|(_, column)| column),
            "span": place.map(|place| [place.span.start, place.span.end]),
            "hints": self.hints.iter().map(Hint::text).collect::<Vec<_>>(),
            "rendered": self.render(Style::PLAIN),
        })
    }
}

/// Texts up to this length are handed to the renderer whole: it takes time for every line of what it is given.
const MAX_WHOLE_TEXT: usize = 1 << 16;
/// So many lines around a place are handed to the renderer.
const CONTEXT_LINES: usize = 5;

/// A part of a text, of whole lines.
#[derive(Debug, PartialEq, Eq)]
struct Excerpt {
    /// The bytes of the text.
    range: Range<usize>,
    /// The number of its first line, from 1.
    line: usize,
}

impl Excerpt {
    fn holds(&self, span: &Range<usize>) -> bool {
        self.range.start <= span.start && span.end <= self.range.end
    }

    /// Returns a span of the text as one of this part.
    fn inside(&self, span: &Range<usize>) -> Range<usize> {
        span.start - self.range.start..span.end - self.range.start
    }
}

/// Returns the parts of a text that show these spans: of a short text all of it, of a long one the lines around each span.
fn excerpts(text: &str, spans: &[Range<usize>]) -> Vec<Excerpt> {
    if text.len() <= MAX_WHOLE_TEXT {
        return vec![Excerpt {
            range: 0..text.len(),
            line: 1,
        }];
    }
    let around = |span: &Range<usize>| {
        let before = text.as_bytes()[..span.start].iter().enumerate().rev();
        let start = before
            .filter(|(_, byte)| **byte == b'\n')
            .nth(CONTEXT_LINES)
            .map_or(0, |(at, _)| at + 1);
        let after = text.as_bytes()[span.end..].iter().enumerate();
        let end = after.filter(|(_, byte)| **byte == b'\n').nth(CONTEXT_LINES);
        start..end.map_or(text.len(), |(at, _)| span.end + at + 1)
    };
    let mut ranges: Vec<Range<usize>> = spans.iter().map(around).collect();
    ranges.sort_by_key(|range| range.start);
    let mut parts: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match parts.last_mut() {
            Some(last) if range.start < last.end + MAX_WHOLE_TEXT => last.end = last.end.max(range.end),
            _ => parts.push(range),
        }
    }
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let numbered = parts.into_iter().map(|range| Excerpt {
        line: line(range.start),
        range,
    });
    numbered.collect()
}

/// Returns a span that a picture can show: inside the text, on character boundaries, of one line.
fn drawable(place: &Place) -> Range<usize> {
    let text = place.source.text();
    let boundary = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(place.span.start);
    let end = boundary(place.span.end.max(place.span.start));
    let line = text[start..end].find('\n').map_or(end, |at| start + at);
    start..line.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_without_a_place_has_causes_and_hints() {
        let diagnostic = Diagnostic::error("step `q4` failed")
            .code("engine::failed")
            .caused_by("it ran out of memory")
            .hint("give it more")
            .hint("or less to do");
        assert_eq!(
            diagnostic.render(Style::PLAIN),
            "error[engine::failed]: step `q4` failed\n  caused by: it ran out of memory\n\nhint: give it more\n\
             hint: or less to do\n"
        );
        assert!(
            diagnostic
                .render(Style { color: true, width: 80 })
                .contains("\u{1b}[1m")
        );
        let json = diagnostic.to_json();
        assert_eq!(json["reason"], "diagnostic");
        assert_eq!(json["level"], "error");
        assert_eq!(json["file"], serde_json::Value::Null);
    }

    #[test]
    fn long_texts_are_cut_to_the_lines_around_the_places() {
        let short = "a = 1\n".repeat(100);
        assert_eq!(
            excerpts(&short, std::slice::from_ref(&(6..7))),
            [Excerpt { range: 0..600, line: 1 }]
        );
        let long = "a = 1\n".repeat(100_000);
        let place = |line: usize| line * 6..line * 6 + 1;
        let lines = |from: usize, to: usize| Excerpt {
            range: from * 6..to * 6,
            line: from + 1,
        };
        // Places that are near each other share a part.
        let near = [place(50_000), place(50_100), place(2), place(99_999)];
        assert_eq!(
            excerpts(&long, &near),
            [lines(0, 8), lines(49_995, 50_106), lines(99_994, 100_000)]
        );
        let source = crate::text::Source::new("long.toml", long);
        let mut diagnostic = Diagnostic::error("two places");
        let label = |line: usize| Label {
            place: Place::new(&source, place(line)),
            text: format!("line {}", line + 1),
        };
        diagnostic.primary = Some(label(99_999));
        diagnostic.context = vec![label(2)];
        let text = diagnostic.render(Style::PLAIN);
        assert!(text.contains("long.toml:100000:1"), "{text}");
        assert!(text.contains("100000 | a = 1\n       | ^ line 100000"), "{text}");
        assert!(text.contains("3 | a = 1\n"), "{text}");
        assert!(text.lines().count() < 20, "{text}");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let text = Diagnostic::error("bad \u{1b}[2J name").render(Style::PLAIN);
        assert_eq!(text, "error: bad \\u{1b}[2J name\n");
    }
}
