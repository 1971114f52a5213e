//! How much of the machine an engine uses.

/// How much of the machine to use. Never part of a key: results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads of one computation; 0 is taken as 1.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}
