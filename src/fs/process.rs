//! The signals that this process ignores.

use std::path::Path;

use crate::fs::read_small;

/// A set of signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalSet(u64);

impl SignalSet {
    /// Returns whether a signal is in the set, by its number.
    pub fn contains(self, signal: i32) -> bool {
        signal
            .checked_sub(1)
            .and_then(|bit| u32::try_from(bit).ok())
            .and_then(|bit| self.0.checked_shr(bit))
            .is_some_and(|bits| bits & 1 == 1)
    }
}

/// Returns the signals that this process ignores. Empty where the system does not show them as a file (all but Linux).
pub fn ignored_signals() -> SignalSet {
    let status = read_small(Path::new("/proc/self/status"), 64 << 10).unwrap_or_default();
    SignalSet(ignored(&status).unwrap_or(0))
}

fn ignored(status: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(status).ok()?;
    let mask = text.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_mask() {
        // SIGHUP (1) and SIGPIPE (13).
        let set = SignalSet(ignored(b"Name:\tforge\nSigIgn:\t0000000000001001\n").unwrap());
        assert!(set.contains(1) && set.contains(13));
        assert!(!set.contains(2) && !set.contains(15) && !set.contains(0) && !set.contains(-1) && !set.contains(65));
        assert_eq!(ignored(b"Name:\tforge\n"), None);
    }
}
