//! The one owner of stdout and stderr. Data (tables, plans, JSON) go to stdout, all else to stderr.

use std::io::IsTerminal as _;
use std::io::Write as _;
use std::sync::OnceLock;

use anstream::AutoStream;
use anstream::ColorChoice;

use crate::cli::args::Color;
use crate::cli::args::Global;
use crate::cli::args::MessageFormat;
use crate::cli::check::Messages;
use crate::cli::diagnostic::Diagnostic;
use crate::cli::diagnostic::Style;
use crate::cli::escape::escape;
use crate::cli::escape::escape_lines;
use crate::settings::ColorChoice as Setting;

/// What can be printed, and how.
pub(super) struct Terminal {
    /// What the command line says.
    asked: Option<ColorChoice>,
    /// What the user's settings say, once they are read.
    preferred: OnceLock<ColorChoice>,
    /// The first error of writing data.
    write_error: OnceLock<std::io::Error>,
    pub(super) format: MessageFormat,
    pub(super) quiet: bool,
    pub(super) verbose: bool,
    pub(super) progress: bool,
}

impl Terminal {
    pub(super) fn new(global: &Global) -> Self {
        let asked = global.color.map(|color| match color {
            Color::Always => ColorChoice::Always,
            Color::Never => ColorChoice::Never,
            Color::Auto => ColorChoice::Auto,
        });
        let human = global.message_format == MessageFormat::Human;
        Self {
            asked,
            preferred: OnceLock::new(),
            write_error: OnceLock::new(),
            format: global.message_format,
            quiet: global.quiet,
            verbose: global.verbose,
            progress: human && !global.no_progress && !global.quiet && std::io::stderr().is_terminal(),
        }
    }

    /// Sets the color choice of the user's settings; the command line takes precedence.
    pub(super) fn set_preferred_color(&self, color: Option<Setting>) {
        let color = match color.unwrap_or_default() {
            Setting::Auto => ColorChoice::Auto,
            Setting::Always => ColorChoice::Always,
            Setting::Never => ColorChoice::Never,
        };
        // Settings are read once.
        let _ = self.preferred.set(color);
    }

    fn color(&self) -> ColorChoice {
        self.asked
            .or(self.preferred.get().copied())
            .unwrap_or(ColorChoice::Auto)
    }

    pub(super) fn is_json(&self) -> bool {
        self.format == MessageFormat::Json
    }

    /// Prints lines of data: JSON as it is (its strings hold no control character), all else escaped but for line breaks.
    pub(super) fn data(&self, text: &str) {
        if self.is_json() {
            self.styled(text);
        } else {
            self.styled(&escape_lines(text));
        }
    }

    /// Prints a document in a form that programs read: unchanged into a file or a pipe, escaped on a terminal.
    pub(super) fn document(&self, text: &str) {
        if std::io::stdout().is_terminal() {
            self.data(text);
        } else {
            self.styled(text);
        }
    }

    /// Prints data with colours, whose parts are escaped already. A reader that went away is no failure.
    pub(super) fn styled(&self, text: &str) {
        let mut out = AutoStream::new(std::io::stdout(), self.color());
        if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush())
            && error.kind() != std::io::ErrorKind::BrokenPipe
        {
            let _ = self.write_error.set(error);
        }
    }

    /// Returns why data could not be printed, if it could not.
    pub(super) fn write_error(&self) -> Option<&std::io::Error> {
        self.write_error.get()
    }

    /// Prints a line for people, escaped.
    pub(super) fn line(&self, text: &str) {
        self.styled_line(&escape(text));
    }

    /// Prints lines for people with colours, whose parts are escaped already.
    pub(super) fn styled_line(&self, text: &str) {
        let mut err = AutoStream::new(std::io::stderr(), self.color());
        let _ = writeln!(err, "{text}");
    }

    /// Returns whether questions can be asked.
    pub(super) fn can_ask(&self) -> bool {
        !self.is_json() && std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Asks a question. Anything but a clear yes means no, also where questions cannot be asked.
    pub(super) fn ask(&self, question: &str) -> bool {
        if !self.can_ask() {
            return false;
        }
        let mut err = AutoStream::new(std::io::stderr(), self.color());
        let _ = write!(err, "{question} [y/N] ").and_then(|()| err.flush());
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "Yes")
    }

    /// Prints a diagnostic: for people on stderr, for programs on stdout.
    pub(super) fn diagnostic(&self, diagnostic: &Diagnostic) {
        if self.is_json() {
            self.data(&format!("{}\n", diagnostic.to_json()));
        } else {
            self.styled_line(&diagnostic.render(self.style()));
        }
    }

    pub(super) fn messages(&self) -> Messages {
        if self.is_json() {
            Messages::Json
        } else {
            Messages::Text(self.style())
        }
    }

    fn style(&self) -> Style {
        let color = AutoStream::new(std::io::stderr(), self.color()).current_choice() != ColorChoice::Never;
        Style { color, width: 100 }
    }
}

/// Returns how many columns the terminal has that data is printed to; nothing where that is a file or a pipe.
pub(super) fn columns() -> Option<usize> {
    let (terminal_size::Width(columns), _) = terminal_size::terminal_size_of(std::io::stdout())?;
    Some(columns.into())
}
