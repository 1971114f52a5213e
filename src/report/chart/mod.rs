//! Loss against bytes: a mark for every measured candidate, a line for those of one policy, and the front highlighted.
//!
//! Drawn by own code: `plotters` knows no dark mode, no titles of marks and no places for labels that keep clear of each other, and
//! `textplots` and `rasciigraph` neither logarithmic axes nor labels; what is left are two scales and a list of shapes.

mod axis;
mod labels;
mod svg;
mod terminal;

use std::cmp::Ordering;

pub use self::terminal::Style;

use crate::report::metrics;

/// What is known of a candidate besides its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateInfo {
    /// The candidates that belong together: those of one `promote` section.
    pub series: String,
    /// The candidate among them: the variant's name, or the candidate's where there is one only.
    pub label: String,
    /// Whether a named mix of llama.cpp decided.
    pub mix: bool,
    /// What the policy predicted of the loss, where the table of metrics does not tell it.
    pub predicted: Option<f64>,
}

/// A row of a table of metrics, and what is known besides.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The figures.
    pub row: metrics::Row,
    /// The rest.
    pub info: CandidateInfo,
}

/// What the loss is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Mean KL divergence, nats per token.
    Kld,
    /// Perplexity, where some candidate has no divergence.
    Ppl,
}

impl Loss {
    /// Returns the axis' name.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Kld => "mean KLD, nats per token",
            Self::Ppl => "perplexity",
        }
    }

    const fn short(self) -> &'static str {
        match self {
            Self::Kld => "KLD",
            Self::Ppl => "PPL",
        }
    }
}

/// A candidate in the chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its name.
    pub candidate: String,
    /// What stands beside its mark.
    pub label: String,
    /// The length of its file.
    pub bytes: u64,
    /// Bits of the file per weight of the model.
    pub bpw: f64,
    /// The loss that was measured, more than 0.
    pub loss: f64,
    /// Its 95 % interval.
    pub interval: Option<[f64; 2]>,
    /// The loss that was predicted, if it is more than 0.
    pub predicted: Option<f64>,
    /// None other is both smaller and better.
    pub front: bool,
    /// Measured by another engine, or on other text or chunks, than the first.
    pub historical: bool,
}

/// Candidates that belong together, by size.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Their name.
    pub name: String,
    /// Whether named mixes of llama.cpp decided on their types: these are marks without a line.
    pub mixes: bool,
    /// The candidates.
    pub points: Vec<Point>,
}

/// A chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// The recipes that the candidates are of.
    pub title: String,
    /// What the loss is.
    pub loss: Loss,
    /// The candidates: mixes first.
    pub series: Vec<Series>,
    /// What the figures rest on, and what could not be shown.
    pub notes: Vec<String>,
}

impl Chart {
    /// Makes a chart of candidates that were measured in one evaluation, or in the same evaluation of several builds. Only those that
    /// were measured as the first are compared for the front; the others are historical. Nothing where nothing can be drawn.
    pub fn of(title: impl Into<String>, measured: &[Measured]) -> Option<Self> {
        let first = &measured.first()?.row;
        let kld = measured.iter().all(|measured| measured.row.kld_mean.is_some());
        let loss = if kld { Loss::Kld } else { Loss::Ppl };
        let mut notes = Vec::new();
        let mut series: Vec<Series> = Vec::new();
        let mut seen: Vec<&metrics::Row> = Vec::new();
        for Measured { row, info } in measured {
            let again = |other: &&metrics::Row| other.blake3 == row.blake3 && other.ground() == row.ground();
            if seen.iter().any(again) {
                continue;
            }
            seen.push(row);
            let (value, interval) = match (loss, row.kld_mean) {
                (Loss::Kld, Some(kld)) => (kld, row.kld_mean_ci95),
                _ => (row.ppl, Some(row.ppl_ci95)),
            };
            if !(value > 0.0 && value.is_finite()) {
                notes.push(format!(
                    "{} is not shown: its loss of {value} has no place on a logarithmic axis",
                    row.candidate
                ));
                continue;
            }
            let point = Point {
                candidate: row.candidate.clone(),
                label: info.label.clone(),
                bytes: row.bytes,
                bpw: row.bpw,
                loss: value,
                interval,
                // A perplexity is not what policies predict.
                predicted: (row.kld_predicted.or(info.predicted)).filter(|loss| kld && *loss > 0.0 && loss.is_finite()),
                front: false,
                historical: row.ground() != first.ground(),
            };
            match series
                .iter_mut()
                .find(|known| known.name == info.series && known.mixes == info.mix)
            {
                Some(known) => known.points.push(point),
                None => series.push(Series {
                    name: info.series.clone(),
                    mixes: info.mix,
                    points: vec![point],
                }),
            }
        }
        if series.is_empty() {
            return None;
        }
        let all: Vec<Point> = series.iter().flat_map(|series| series.points.clone()).collect();
        for point in series.iter_mut().flat_map(|series| &mut series.points) {
            point.front = !point.historical && !all.iter().any(|other| dominates(other, point));
        }
        for series in &mut series {
            series
                .points
                .sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.loss.total_cmp(&b.loss)));
        }
        // Mixes are what the others are seen against.
        series.sort_by_key(|series| !series.mixes);
        let rows: Vec<&metrics::Row> = seen
            .iter()
            .copied()
            .filter(|row| row.ground() == first.ground())
            .collect();
        notes.splice(0..0, metrics::evidence(&rows));
        if all.iter().any(|point| point.historical) {
            notes.push(
                "historical: measured by another engine, or on other text or chunks; not to be compared".to_owned(),
            );
        }
        Some(Self {
            title: title.into(),
            loss,
            series,
            notes,
        })
    }

    fn points(&self) -> impl Iterator<Item = &Point> {
        self.series.iter().flat_map(|series| &series.points)
    }

    /// The least and the largest loss of all that is drawn.
    fn losses(&self) -> (f64, f64) {
        let all = self.points().flat_map(|point| {
            let [low, high] = point.interval.unwrap_or([point.loss; 2]);
            [Some(point.loss), Some(low), Some(high), point.predicted]
        });
        let shown = all.flatten().filter(|loss| *loss > 0.0 && loss.is_finite());
        shown.fold((f64::INFINITY, 0.0), |(low, high), loss| {
            (low.min(loss), high.max(loss))
        })
    }

    fn bytes(&self) -> (u64, u64) {
        let all = self.points().map(|point| point.bytes);
        all.fold((u64::MAX, 0), |(low, high), bytes| (low.min(bytes), high.max(bytes)))
    }

    fn has(&self, what: impl Fn(&Point) -> bool) -> bool {
        self.points().any(what)
    }
}

fn dominates(other: &Point, point: &Point) -> bool {
    if other.historical || other.bytes > point.bytes {
        return false;
    }
    match other.loss.total_cmp(&point.loss) {
        Ordering::Less => true,
        Ordering::Equal => other.bytes < point.bytes,
        Ordering::Greater => false,
    }
}

#[cfg(test)]
mod tests;
