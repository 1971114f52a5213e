//! What the machine is: its processor, and how much memory it has to give.

use std::path::Path;

use crate::fs::read_small;

/// Returns how many bytes of memory programs can still get without others being pushed out, where the system shows that as a
/// file (Linux: `MemAvailable`); nothing elsewhere.
pub fn free_memory() -> Option<u64> {
    available(&read_small(Path::new("/proc/meminfo"), 64 << 10).ok()?)
}

/// Returns the name of the processor, where the system shows that as a file (Linux); nothing elsewhere.
pub fn processor() -> Option<String> {
    let text = read_small(Path::new("/proc/cpuinfo"), 16 << 20).ok()?;
    let text = String::from_utf8_lossy(&text);
    let names = ["model name", "CPU implementer", "CPU part", "Hardware"];
    let lines = text
        .lines()
        .filter(|line| names.iter().any(|name| line.starts_with(name)));
    let mut lines: Vec<&str> = lines.collect();
    lines.sort_unstable();
    lines.dedup();
    Some(lines.join("\n"))
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
