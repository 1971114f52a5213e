//! The words for what a build would do about a step and for what it did, and counts of steps by these words. Every command and
//! every document takes them from here.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde::Serializer;

/// A word that steps are counted by.
pub trait Word: Copy + Ord + 'static {
    /// All words that steps are counted by, in the order of summaries.
    const ALL: &'static [Self];

    /// Returns the word.
    fn as_str(self) -> &'static str;

    /// Returns whether summaries contain the word if it is true of no step.
    fn is_always_shown(self) -> bool;
}

/// What a build would do about a step, as `plan` and `why` say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Nothing: its result is in the store, and its files are in the output folder.
    Hit,
    /// Only write files to the output folder: their contents are in the store.
    Write,
    /// Run it.
    Miss,
    /// It depends on steps that run, and runs unless their results are the same as before.
    Unknown,
    /// Its state cannot be determined.
    Failed,
    /// For a tensor, and no step: nothing, its bytes are copied from the source as they are.
    Copied,
}

impl Verdict {
    /// The length of the longest word.
    pub const WIDTH: usize = 7;

    /// Returns true if something runs or is written, or may be.
    pub fn may_run(self) -> bool {
        matches!(self, Self::Write | Self::Miss | Self::Unknown | Self::Failed)
    }
}

impl Word for Verdict {
    const ALL: &'static [Self] = &[Self::Hit, Self::Write, Self::Miss, Self::Unknown, Self::Failed];

    fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Write => "write",
            Self::Miss => "miss",
            Self::Unknown => "unknown",
            Self::Failed => "failed",
            Self::Copied => "copied",
        }
    }

    fn is_always_shown(self) -> bool {
        matches!(self, Self::Hit | Self::Miss | Self::Unknown)
    }
}

/// How a step ended, as `build` and `log` say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepOutcome {
    /// Something ran.
    Ran,
    /// Its result was in the store; only files of it were written to the output folder.
    Wrote,
    /// Its result was in the store, and its files were in the output folder.
    Hit,
    /// It failed.
    Failed,
    /// It waited for a step that failed, or the build was stopped.
    Skipped,
}

impl StepOutcome {
    /// The length of the longest word.
    pub const WIDTH: usize = 7;

    /// Returns the outcome that a word stands for.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|outcome| outcome.as_str() == word)
    }
}

impl Word for StepOutcome {
    const ALL: &'static [Self] = &[Self::Ran, Self::Wrote, Self::Hit, Self::Failed, Self::Skipped];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ran => "ran",
            Self::Wrote => "wrote",
            Self::Hit => "hit",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }

    fn is_always_shown(self) -> bool {
        matches!(self, Self::Ran | Self::Hit | Self::Failed)
    }
}

/// How many steps have each word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts<W>(BTreeMap<W, usize>);

impl<W> Default for Counts<W> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<W: Word> Counts<W> {
    /// Adds steps.
    pub fn add(&mut self, word: W, steps: usize) {
        *self.0.entry(word).or_default() += steps;
    }

    /// Returns the number of steps that have a word.
    pub fn of(&self, word: W) -> usize {
        self.0.get(&word).copied().unwrap_or_default()
    }

    /// Returns the number of all steps.
    pub fn steps(&self) -> usize {
        self.0.values().sum()
    }

    /// Returns all words with their numbers, for JSON.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, usize)> {
        W::ALL.iter().map(|&word| (word.as_str(), self.of(word)))
    }
}

impl<W: Word> FromIterator<W> for Counts<W> {
    fn from_iter<I: IntoIterator<Item = W>>(words: I) -> Self {
        let mut counts = Self::default();
        words.into_iter().for_each(|word| counts.add(word, 1));
        counts
    }
}

/// As "4 hit, 2 miss, 0 unknown".
impl<W: Word> fmt::Display for Counts<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = W::ALL
            .iter()
            .filter(|word| word.is_always_shown() || self.of(**word) > 0);
        for (place, &word) in shown.enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{} {}", self.of(word), word.as_str())?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for StepOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl Serialize for StepOutcome {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_have_what_every_build_has_and_the_exceptions_that_there_are() {
        let mut counts: Counts<Verdict> = [Verdict::Miss, Verdict::Hit, Verdict::Miss].into_iter().collect();
        assert_eq!(counts.to_string(), "1 hit, 2 miss, 0 unknown");
        counts.add(Verdict::Write, 1);
        counts.add(Verdict::Failed, 1);
        assert_eq!(counts.to_string(), "1 hit, 1 write, 2 miss, 0 unknown, 1 failed");
        assert_eq!(counts.steps(), 5);
        assert_eq!(Counts::<StepOutcome>::default().to_string(), "0 ran, 0 hit, 0 failed");
    }

    #[test]
    fn the_widths_are_those_of_the_longest_words() {
        fn longest<W: Word>(words: &[W]) -> Option<usize> {
            words.iter().map(|word| word.as_str().len()).max()
        }
        assert_eq!(longest(Verdict::ALL), Some(Verdict::WIDTH));
        assert_eq!(longest(StepOutcome::ALL), Some(StepOutcome::WIDTH));
    }

    #[test]
    fn a_word_of_another_version_is_no_outcome() {
        assert_eq!(StepOutcome::of("wrote"), Some(StepOutcome::Wrote));
        assert_eq!(StepOutcome::of("cached"), None);
    }
}
