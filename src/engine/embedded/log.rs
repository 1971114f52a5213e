//! Where llama.cpp's and ggml's log lines go: into a buffer of the thread that asked for them, never to the terminal.
//!
//! llama.cpp has one log callback for the process. Loading and computing log from the thread that called, so a buffer
//! per thread tells calls apart; lines of ggml's own worker threads, and of threads that capture nothing, are dropped.
//! Beside that, a thread may keep a [`Transcript`] of all that is said while a step runs on it.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::CStr;
use std::ffi::c_char;
use std::ffi::c_void;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Once;

/// Lines kept of one call; an error carries the last [`TAIL`].
const KEPT: usize = 200;
/// Lines that an error carries.
const TAIL: usize = 12;
/// Longest line kept, in bytes.
const LINE: usize = 1000;

/// Lines of a transcript that are kept from its start, and as many from its end.
const TRANSCRIPT: usize = 5000;

thread_local! {
    static CAPTURES: RefCell<Vec<Lines>> = const { RefCell::new(Vec::new()) };
    static TRANSCRIPTS: RefCell<Vec<Whole>> = const { RefCell::new(Vec::new()) };
    static ALIASES: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Starts llama.cpp, once per process, and directs its log lines here instead of to the terminal.
pub(super) fn start_backend() {
    static ONCE: Once = Once::new();
    // SAFETY: both calls may be made at any time before other calls, and happen once; `receive` is a plain function.
    ONCE.call_once(|| unsafe {
        llama_cpp_sys_2::llama_log_set(Some(receive), std::ptr::null_mut());
        llama_cpp_sys_2::llama_backend_init();
    });
}

/// While it lives, paths in this thread's log are replaced by those that users know.
pub(super) struct Aliases {
    /// Ends on the thread it began on.
    _here: std::marker::PhantomData<*const ()>,
}

impl Aliases {
    /// Begins to replace the first of each pair by the second. Of several that live, the last one counts.
    pub(super) fn begin(paths: &[(PathBuf, &Path)]) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let pairs = paths.iter().map(|(inner, known)| (text(inner), text(known))).collect();
        ALIASES.set(pairs);
        Self {
            _here: std::marker::PhantomData,
        }
    }
}

impl Drop for Aliases {
    fn drop(&mut self) {
        ALIASES.take();
    }
}

/// Whole lines, and the start of one that has no newline yet.
#[derive(Default)]
struct Lines {
    done: VecDeque<String>,
    open: String,
}

impl Lines {
    fn push(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            let (piece, ended) = piece.strip_suffix('\n').map_or((piece, false), |piece| (piece, true));
            let left = LINE.saturating_sub(self.open.len());
            self.open.extend(piece.chars().filter(|c| !c.is_control()).take(left));
            if ended {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let line = std::mem::take(&mut self.open);
        if !line.trim().is_empty() {
            self.done.push_back(line);
        }
    }

    fn keep(&mut self, most: usize) {
        while self.done.len() > most {
            self.done.pop_front();
        }
    }
}

/// All lines, but for the middle of a very long text.
#[derive(Default)]
struct Whole {
    start: Vec<String>,
    end: Lines,
    dropped: u64,
}

impl Whole {
    fn push(&mut self, text: &str) {
        self.end.push(text);
        while !self.end.done.is_empty() && self.start.len() < TRANSCRIPT {
            self.start.extend(self.end.done.pop_front());
        }
        while self.end.done.len() > TRANSCRIPT {
            self.end.done.pop_front();
            self.dropped += 1;
        }
    }

    fn finish(mut self) -> Vec<String> {
        self.end.close();
        let mut lines = self.start;
        if self.dropped > 0 {
            lines.push(format!("[{} lines are left out here]", self.dropped));
        }
        lines.extend(self.end.done);
        lines
    }
}

/// Keeps what the engine says on this thread from its making to its end.
pub struct Transcript {
    /// Ends on the thread it began on.
    _here: std::marker::PhantomData<*const ()>,
}

impl Transcript {
    /// Begins on this thread.
    pub fn begin() -> Self {
        TRANSCRIPTS.with_borrow_mut(|all| all.push(Whole::default()));
        Self {
            _here: std::marker::PhantomData,
        }
    }

    /// Returns the lines, oldest first; of a very long text the middle is left out.
    pub fn lines(self) -> Vec<String> {
        TRANSCRIPTS
            .with_borrow_mut(|all| all.last_mut().map(std::mem::take))
            .map_or_else(Vec::new, Whole::finish)
    }
}

impl Drop for Transcript {
    fn drop(&mut self) {
        TRANSCRIPTS.with_borrow_mut(Vec::pop);
    }
}

/// Captures the log of this thread from its making to its end. Captures nest: the innermost takes the lines.
pub(super) struct Capture {
    /// Ends on the thread it began on.
    _here: std::marker::PhantomData<*const ()>,
}

impl Capture {
    /// Begins to capture on this thread.
    pub(super) fn begin() -> Self {
        start_backend();
        CAPTURES.with_borrow_mut(|captures| captures.push(Lines::default()));
        Self {
            _here: std::marker::PhantomData,
        }
    }

    /// Returns the last lines, oldest first. Lines that do not help (progress dots) are short and few enough to stay.
    #[allow(clippy::unused_self, reason = "only a capture that has not ended has lines")]
    pub(super) fn tail(&self) -> Vec<String> {
        CAPTURES.with_borrow_mut(|captures| {
            let Some(lines) = captures.last_mut() else {
                return Vec::new();
            };
            lines.close();
            let skip = lines.done.len().saturating_sub(TAIL);
            lines.done.iter().skip(skip).cloned().collect()
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        CAPTURES.with_borrow_mut(Vec::pop);
    }
}

/// llama.cpp's log callback. Text comes in pieces, in no certain encoding.
unsafe extern "C" fn receive(_level: llama_cpp_sys_2::ggml_log_level, text: *const c_char, _data: *mut c_void) {
    if text.is_null() {
        return;
    }
    // SAFETY: llama.cpp hands over a string that ends in a zero byte and lives during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    let mut text = text.into_owned();
    let _ = ALIASES.try_with(|aliases| {
        if let Ok(aliases) = aliases.try_borrow() {
            for (inner, known) in &*aliases {
                text = text.replace(inner, known);
            }
        }
    });
    // A thread that is ending has no buffer any more, and a capture that is being read logs nothing: both lose the line.
    let _ = CAPTURES.try_with(|captures| {
        if let Ok(mut captures) = captures.try_borrow_mut()
            && let Some(lines) = captures.last_mut()
        {
            lines.push(&text);
            lines.keep(KEPT);
        }
    });
    let _ = TRANSCRIPTS.try_with(|all| {
        if let Ok(mut all) = all.try_borrow_mut()
            && let Some(whole) = all.last_mut()
        {
            whole.push(&text);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_joined_bounded_and_kept_in_order() {
        let mut lines = Lines::default();
        lines.push("load");
        lines.push("ing\nsecond\n\n");
        assert_eq!(lines.done, ["loading", "second"]);
        for i in 0..2 * KEPT {
            lines.push(&format!("{i}\n"));
            lines.keep(KEPT);
        }
        assert_eq!(lines.done.len(), KEPT);
        assert_eq!(lines.done.back().unwrap(), &format!("{}", 2 * KEPT - 1));
        lines.push(&"x".repeat(3 * LINE));
        assert_eq!(lines.open.len(), LINE);
    }

    #[test]
    fn a_transcript_has_all_lines_or_the_number_of_missing_ones() {
        let mut whole = Whole::default();
        whole.push("one\ntwo");
        assert_eq!(whole.finish(), ["one", "two"]);
        let mut whole = Whole::default();
        for i in 0..2 * TRANSCRIPT + 7 {
            whole.push(&format!("{i}\n"));
        }
        let lines = whole.finish();
        assert_eq!(lines.len(), 2 * TRANSCRIPT + 1);
        assert_eq!(lines[TRANSCRIPT], "[7 lines are left out here]");
        assert_eq!(lines[2 * TRANSCRIPT], format!("{}", 2 * TRANSCRIPT + 6));
    }
}
