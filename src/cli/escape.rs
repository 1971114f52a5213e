//! Text from recipes, models, manifests and file names, made fit for a terminal: it cannot control the terminal, imitate
//! another line, or reorder the text around it.

use std::fmt;
use std::fmt::Write as _;

/// Returns text for one line: control characters (line breaks too) and bidirectional controls as `\n` or `\u{202e}`.
pub(super) fn escape(text: &str) -> String {
    escaped(text, |_| false)
}

/// Returns text of several lines with all but its line breaks escaped.
pub(super) fn escape_lines(text: &str) -> String {
    escaped(text, |c| c == '\n')
}

/// Returns lines with colours, whose parts are escaped but for an excerpt of a file: what that leaves of controls is escaped.
pub(super) fn escape_excerpt(text: &str) -> String {
    escaped(text, |c| matches!(c, '\n' | '\u{1b}'))
}

fn escaped(text: &str, keeps: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_terminal_control(c) && !keeps(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Returns whether a terminal obeys the character instead of showing it: a control character, a separator of lines, or one
/// that changes the direction of the text after it.
pub(super) fn is_terminal_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Lines for a terminal. Each `writeln!` adds one line, and what is put into it cannot add another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Block(String);

impl Block {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Makes a block of one `format_args!`.
    pub(super) fn of(arguments: fmt::Arguments<'_>) -> Self {
        let mut block = Self::new();
        // A string takes everything.
        let _ = block.write_fmt(arguments);
        block
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Adds text in which only line breaks at the start and at the end stay what they are: those are the template's.
    pub(super) fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> fmt::Result {
        let mut text = String::new();
        text.write_fmt(arguments)?;
        let body = text.trim_start_matches('\n');
        self.0.push_str(&text[..text.len() - body.len()]);
        match body.strip_suffix('\n') {
            Some(body) => {
                self.0.push_str(&escape(body));
                self.0.push('\n');
            }
            None => self.0.push_str(&escape(body)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_sequences_are_escaped() {
        assert_eq!(
            escape("a\u{1b}[2J\r\nb\tc\0\u{7f}\u{9b}"),
            r"a\u{1b}[2J\r\nb\tc\u{0}\u{7f}\u{9b}"
        );
        for bidi in [
            '\u{202a}', '\u{202e}', '\u{2066}', '\u{2069}', '\u{200e}', '\u{200f}', '\u{061c}', '\u{2028}',
        ] {
            assert_eq!(escape(&format!("a{bidi}b")), format!("a\\u{{{:x}}}b", bidi as u32));
        }
        let plain = "Größe, 模型, שלום, `a\\nb`, \u{1f600}";
        assert_eq!(escape(plain), plain);
        assert_eq!(escape_lines("a\nb\r\n"), "a\nb\\r\n");
    }

    #[test]
    fn a_line_of_a_block_stays_one_line() {
        let name = "a\nforge: nothing to do\u{202e}";
        let mut block = Block::of(format_args!("{name}: {}\n", 7));
        let _ = writeln!(block, "\n  {name}");
        let _ = write!(block, "{}", 1);
        let line = r"a\nforge: nothing to do\u{202e}";
        assert_eq!(block.as_str(), format!("{line}: 7\n\n  {line}\n1"));
    }
}
