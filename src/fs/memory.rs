//! How much memory the machine has to give.

use std::path::Path;

use crate::fs::read_small;

/// Returns how many bytes of memory programs can still get without others being pushed out, where the system shows that as a
/// file (Linux: `MemAvailable`); nothing elsewhere.
pub fn free_memory() -> Option<u64> {
    available(&read_small(Path::new("/proc/meminfo"), 64 << 10).ok()?)
}

fn available(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_own_words_are_read() {
        let text = b"MemTotal:  100 kB\nMemAvailable:   24 kB\nBuffers: 3 kB\n";
        assert_eq!(available(text), Some(24 * 1024));
        assert_eq!(available(b"MemTotal: 100 kB\n"), None);
        if cfg!(target_os = "linux") {
            assert!(free_memory().unwrap() > 1 << 20);
        }
    }
}
