//! The limits of a search. If it reaches them, its answer has a gap.

/// The default limit of states that a search may make: some seconds, some hundred MiB.
pub const DEFAULT_STATES: u64 = 20_000_000;

/// How hard to try.
#[derive(Clone, Copy)]
pub struct Effort<'a> {
    /// How many states the search may make before it answers with a gap. Counted, not timed: the answer is the same
    /// everywhere.
    pub states: u64,
    /// Asked now and then; `true` ends the search, and the answer is then the one that was known before it began, with its
    /// gap.
    pub stop: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl Effort<'_> {
    pub(crate) fn stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop())
    }
}

impl Default for Effort<'_> {
    fn default() -> Self {
        Self {
            states: DEFAULT_STATES,
            stop: None,
        }
    }
}

impl std::fmt::Debug for Effort<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effort")
            .field("states", &self.states)
            .finish_non_exhaustive()
    }
}
