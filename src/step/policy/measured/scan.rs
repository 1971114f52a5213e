//! Options measured on as many chunks as the decision needs.

use std::collections::BTreeMap;

use crate::allocation::Answer;
use crate::policy::Evidence;
use crate::policy::Losses;
use crate::policy::ModelFacts;
use crate::policy::Prepared;
use crate::policy::Probe;
use crate::policy::mean;
use crate::report::words;
use crate::step::StepError;
use crate::step::Task;
use crate::step::measure::Bench;
use crate::step::measure::Variant;
use crate::step::policy::solving::Limits;
use crate::step::policy::solving::Solving;
use crate::tensor_type::TensorType;

/// Measures options and solves for choices.
pub(super) struct Scan<'r, 't> {
    pub(super) task: &'r Task<'t>,
    facts: &'r ModelFacts,
    solving: &'r Solving<'r>,
    limits: Limits,
    pub(super) bench: Bench<'r, 't>,
    pub(super) evidence: Evidence,
    /// What the model itself shows against its own coded reference, by chunk.
    null: Vec<f64>,
    /// The blocks of the first look.
    pub(super) screened: usize,
    first_loss: f64,
}

/// A choice that was measured as a whole.
pub(super) struct Incumbent {
    /// The problem that it is the best choice of.
    pub(super) prepared: Prepared,
    pub(super) answer: Answer,
    /// The type of each group that has a choice.
    pub(super) choice: BTreeMap<String, TensorType>,
    /// What that problem's losses predicted for it.
    pub(super) predicted: f64,
    /// Its divergence by chunk, all of it together.
    pub(super) together: Vec<f64>,
    /// The mean of that, less the model's own.
    pub(super) lost: f64,
    /// How many rounds of moves it took to find it.
    pub(super) round: u32,
}

impl<'r, 't> Scan<'r, 't> {
    pub(super) fn new(
        task: &'r Task<'t>,
        facts: &'r ModelFacts,
        solving: &'r Solving<'r>,
        limits: Limits,
        mut bench: Bench<'r, 't>,
        screen: u64,
    ) -> Result<Self, StepError> {
        let itself = bench.divergences("the model itself", &[Variant::new()], usize::MAX)?;
        let null = itself.into_iter().next().unwrap_or_default();
        let (screened, _) = bench.first_blocks(screen);
        Ok(Self {
            task,
            facts,
            solving,
            limits,
            bench,
            evidence: Evidence::new(null.len()),
            null,
            screened,
            first_loss: 0.0,
        })
    }

    /// Returns what the first choice lost, all of it together.
    pub(super) fn first_loss(&self) -> f64 {
        self.first_loss
    }

    /// Measures all probes on the first chunks and those that the choice hangs on, on more and in the end on all; returns the best
    /// choice by them.
    pub(super) fn screen(&mut self, probes: &[Probe]) -> Result<Incumbent, StepError> {
        // What stays as it is loses nothing.
        for group in &self.solving.groups {
            if let Some(own) = group.own_type(self.facts) {
                self.evidence
                    .insert((group.name.clone(), own), vec![0.0; self.null.len()]);
            }
        }
        let what = format!(
            "a first look at {} of {}",
            words::count(probes.len() as u64, "type"),
            words::count(self.solving.groups.len() as u64, "group")
        );
        self.probe(&what, probes, self.screened)?;
        loop {
            let losses = self.evidence.losses();
            let (prepared, answer) = self.solve(&losses)?;
            let mut open = self.evidence.undecided(&prepared, &answer, 0.0);
            open.retain(|probe| !self.evidence.is_whole(probe));
            if open.is_empty() {
                let predicted = prepared.predicted(&answer).0;
                let choice = choice_of(&prepared, &answer);
                let together = self.together(&choice)?;
                let lost = self.lost(&together);
                self.first_loss = lost;
                return Ok(Incumbent {
                    prepared,
                    answer,
                    choice,
                    predicted,
                    together,
                    lost,
                    round: 0,
                });
            }
            // Twice as many chunks each time: most of what looks open on few is not on some more.
            let mut of_length: BTreeMap<usize, Vec<Probe>> = BTreeMap::new();
            for probe in open {
                of_length
                    .entry(self.evidence.measured_on(&probe))
                    .or_default()
                    .push(probe);
            }
            for (chunks, open) in of_length {
                let (blocks, _) = self.bench.first_blocks(2 * chunks as u64);
                let what = format!(
                    "a closer look at {}, on which the choice hangs",
                    words::count(open.len() as u64, "type")
                );
                self.probe(&what, &open, blocks)?;
            }
        }
    }

    /// Returns the best choice by losses.
    pub(super) fn solve(&self, losses: &Losses) -> Result<(Prepared, Answer), StepError> {
        self.solving.solve(self.task.env, losses, &self.limits)
    }

    /// Returns the divergence of a choice by chunk, measured as a whole on all chunks.
    pub(super) fn together(&mut self, choice: &BTreeMap<String, TensorType>) -> Result<Vec<f64>, StepError> {
        let variant = self.variant(choice);
        let found = self
            .bench
            .divergences("the choice as a whole", &[variant], usize::MAX)?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// Returns the mean of divergences, less what the model itself shows.
    pub(super) fn lost(&self, together: &[f64]) -> f64 {
        mean(together) - mean(&self.null)
    }

    /// Returns the tensors that a choice changes.
    pub(super) fn variant(&self, choice: &BTreeMap<String, TensorType>) -> Variant {
        let groups = self.solving.groups.iter();
        let changed = groups.filter_map(|group| Some((group, *choice.get(&group.name)?)));
        changed
            .flat_map(|(group, ty)| group.members.iter().map(move |at| (*at, ty)))
            .filter(|(at, ty)| self.facts.tensors[*at].ty != *ty)
            .collect()
    }

    /// Measures groups in types, each alone.
    fn probe(&mut self, what: &str, probes: &[Probe], blocks: usize) -> Result<(), StepError> {
        let variants: Vec<Variant> = probes
            .iter()
            .map(|(group, ty)| self.variant(&BTreeMap::from([(group.clone(), *ty)])))
            .collect();
        let found = self.bench.divergences(what, &variants, blocks)?;
        for (probe, found) in probes.iter().zip(found) {
            let lost = found.iter().zip(&self.null).map(|(with, without)| with - without);
            self.evidence.insert(probe.clone(), lost.collect());
        }
        Ok(())
    }
}

/// Returns the type that an answer gives each group.
pub(super) fn choice_of(prepared: &Prepared, answer: &Answer) -> BTreeMap<String, TensorType> {
    let groups = prepared.problem().groups().iter().zip(&answer.choice);
    groups
        .filter_map(|(group, at)| Some((group.name.clone(), TensorType::from_name(&group.options[*at].name)?)))
        .collect()
}
