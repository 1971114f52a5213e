//! Signals: those that stop a build, and the one that a limit on file size sends.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering;

use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::consts::SIGXFSZ;
use signal_hook::iterator::Signals;

use crate::cli::terminal::Terminal;
use crate::engine::Cancel;
use crate::fs;

/// The signal that stopped the build. It is kept for the whole process, as signals are.
static STOPPED_BY: AtomicI32 = AtomicI32::new(SIGINT);

/// Returns the exit status of a program that a signal stopped, as shells report it: 128 and the signal's number.
pub(super) fn exit_status() -> u8 {
    status_of(STOPPED_BY.load(Ordering::Relaxed))
}

fn status_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Makes a write beyond the limit on file size (`ulimit -f`) fail with `EFBIG`. Without a handler SIGXFSZ ends the process.
/// A handler that does nothing is as good as ignoring the signal, which would take unsafe code.
pub(super) fn survive_file_size_limit() {
    // Refused only for signals that cannot be caught.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Keeps SIGINT, SIGTERM and SIGHUP, which a terminal sends to a build and its workers alike, from ending a worker: the build
/// stops it, by a request or by closing its input.
pub(super) fn ignore_stop_signals() {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Refused only for signals that cannot be caught.
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// The first SIGINT, SIGTERM or SIGHUP cancels the work, the second ends the program at once. A signal that the caller
/// ignores, as `nohup` does with SIGHUP, stays ignored.
pub(super) fn stop_on_signals(cancel: &Cancel, terminal: &Terminal) {
    let ignored = fs::ignored_signals();
    let stopping = [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| !ignored.contains(*signal));
    // Refused only where the process has no file descriptor left; then signals end it at once.
    let Ok(mut signals) = Signals::new(stopping) else {
        return;
    };
    let cancel = cancel.clone();
    let is_json = terminal.is_json();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if cancel.is_cancelled() {
                #[expect(clippy::exit, reason = "the user asked twice; the store is whole at every moment")]
                std::process::exit(status_of(signal).into());
            }
            STOPPED_BY.store(signal, Ordering::Relaxed);
            cancel.cancel();
            if !is_json {
                let _ = writeln!(
                    std::io::stderr(),
                    "\nforge: stopping; finished results are kept (Ctrl-C again to stop at once)"
                );
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_that_of_a_shell() {
        assert_eq!([SIGINT, SIGTERM, SIGHUP].map(status_of), [130, 143, 129]);
    }
}
