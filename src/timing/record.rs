//! What is known of the time that work takes on a machine: its speeds, and what earlier builds took. A document in the store.

use serde::Deserialize;
use serde::Serialize;

use super::History;
use super::PhaseWork;
use super::Speeds;
use super::forecast::Expected;
use super::forecast::Took;
use super::phase::TimeRange;
use super::speeds;

/// What is known of the time that work takes on a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The speeds.
    pub speeds: Speeds,
    /// What earlier builds took.
    pub history: History,
}

#[derive(Serialize, Deserialize)]
struct Document {
    speeds: speeds::Document,
    history: History,
}

impl Timing {
    /// Returns what is assumed of a machine of which nothing is known.
    pub fn assumed(threads: usize) -> Self {
        Self {
            speeds: Speeds::assumed(threads),
            history: History::default(),
        }
    }

    /// Reads a document; `None` if it is not one of this version.
    pub fn parse(document: &[u8], threads: usize) -> Option<Self> {
        let Document { speeds, history } = serde_json::from_slice(document).ok()?;
        let speeds = Speeds::of_document(&speeds, threads)?;
        Some(Self { speeds, history })
    }

    /// Returns the document.
    pub fn document(&self) -> Vec<u8> {
        let document = Document {
            speeds: self.speeds.document(),
            history: self.history.clone(),
        };
        // Numbers and texts can always be written.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Adds what a phase took.
    pub fn add(&mut self, took: &Took) {
        self.history.add(took.phase, &took.model, took.ratio);
    }

    /// Returns how long a phase is expected to take. `model` identifies the model that it computes.
    pub fn expected(&self, model: &str, work: &PhaseWork) -> Expected {
        let (factor, spread) = self.history.correction(work.phase, model, &self.speeds);
        Expected {
            phase: work.phase,
            total: work.total,
            by_speeds_ms: self.speeds.milliseconds(&work.amounts),
            factor,
            spread: spread * work.spread,
        }
    }
}

impl Expected {
    /// Returns the expected duration.
    pub fn range(&self) -> TimeRange {
        TimeRange::within(self.by_speeds_ms * self.factor, self.spread)
    }
}
