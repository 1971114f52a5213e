//! Measures options on as many chunks as the decision needs.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::stored::Stored;
use crate::allocation::Answer;
use crate::method::BaseChoice;
use crate::method::Limits;
use crate::method::Solving;
use crate::observer::Phase;
use crate::policy;
use crate::policy::ChunkLosses;
use crate::policy::Losses;
use crate::policy::Prepared;
use crate::policy::Probe;
use crate::policy::mean;
use crate::prose;
use crate::tensor_type::TensorType;
use crate::work::Context;
use crate::work::StepError;
use crate::work::probe::ProbeRunner;
use crate::work::probe::Variant;

/// Measures options and solves for choices.
pub(super) struct Scan<'r, 't> {
    pub(super) context: &'r Context<'t>,
    stored: Stored<'r, 't>,
    solving: &'r Solving<'r>,
    limits: Limits,
    pub(super) runner: ProbeRunner<'r, 't>,
    pub(super) chunk_losses: ChunkLosses,
    /// The divergence of the unchanged model from its rounded reference, by chunk of those that options are measured on.
    null: Vec<f64>,
    /// The number of these blocks.
    pub(super) measured: usize,
    /// The validation blocks: other blocks, if the corpus has enough.
    judging: Range<usize>,
    /// The mean divergence of the unchanged model there.
    validation_null: f64,
    /// The number of blocks of the first measurements.
    pub(super) screened: usize,
    first_loss: f64,
    pub(super) is_refining: bool,
}

/// A choice that was measured as a whole.
pub(super) struct Incumbent {
    /// The problem that it solves.
    pub(super) prepared: Prepared,
    pub(super) answer: Answer,
    /// The type of each group that has a choice.
    pub(super) choice: BTreeMap<String, TensorType>,
    /// The choice that the losses of this problem are differences to; `None` if they are absolute.
    pub(super) base: Option<BaseChoice>,
    /// The loss that this problem predicts for it.
    pub(super) predicted: f64,
    /// The divergence of the whole choice by validation chunk.
    pub(super) validation: Vec<f64>,
    /// The mean of that minus that of the unchanged model.
    pub(super) lost: f64,
    /// The round of refinement that found it; 0 for none.
    pub(super) round: u32,
}

impl<'r, 't> Scan<'r, 't> {
    pub(super) fn new(
        stored: Stored<'r, 't>,
        solving: &'r Solving<'r>,
        limits: Limits,
        mut runner: ProbeRunner<'r, 't>,
        (chunks, screen): (u64, u64),
    ) -> Result<Self, StepError> {
        let all = runner.block_count();
        let itself = runner.divergences(Phase::Unchanged, "the unchanged model", &[Variant::new()], 0..all)?;
        let mut null = itself.into_iter().next().unwrap_or_default();
        let (measured, length) = runner.first_blocks(chunks);
        let others = null.split_off(length);
        let (judging, validation_null) = if others.is_empty() {
            (0..measured, mean(&null))
        } else {
            (measured..all, mean(&others))
        };
        let (screened, _) = runner.first_blocks(screen.min(chunks));
        Ok(Self {
            context: stored.context,
            stored,
            solving,
            limits,
            runner,
            chunk_losses: ChunkLosses::new(null.len()),
            null,
            measured,
            judging,
            validation_null,
            screened,
            first_loss: 0.0,
            is_refining: false,
        })
    }

    /// Returns whether the validation chunks are other chunks than those that options are measured on.
    pub(super) fn has_validation_chunks(&self) -> bool {
        self.judging.start > 0
    }

    /// Returns the measured loss of the first choice.
    pub(super) fn first_loss(&self) -> f64 {
        self.first_loss
    }

    /// Measures all probes on the first chunks, and those that could be part of the best choice on more and finally on all. Returns the
    /// best choice by these losses.
    pub(super) fn screen(&mut self, probes: &[Probe]) -> Result<Incumbent, StepError> {
        // A group that keeps its type has no loss.
        for group in &self.solving.groups {
            if let Some(own) = group.own_type(self.stored.facts) {
                self.chunk_losses
                    .insert((group.name.clone(), own), vec![0.0; self.null.len()]);
            }
        }
        let what = format!(
            "first measurements: {} of {}",
            prose::count(probes.len() as u64, "type"),
            prose::count(self.solving.groups.len() as u64, "group")
        );
        self.probe(Phase::Screen, &what, probes, self.screened)?;
        loop {
            let losses = self.chunk_losses.losses();
            let (prepared, answer) = self.solve(&losses)?;
            let mut open = self.chunk_losses.undecided(&prepared, &answer, 0.0);
            open.retain(|probe| !self.chunk_losses.is_whole(probe));
            if open.is_empty() {
                return self.as_a_whole(prepared, answer);
            }
            // Twice as many chunks each time: most undecided probes are decided with a few more.
            let mut of_length: BTreeMap<usize, Vec<Probe>> = BTreeMap::new();
            for probe in open {
                of_length
                    .entry(self.chunk_losses.measured_on(&probe))
                    .or_default()
                    .push(probe);
            }
            for (chunks, open) in of_length {
                let blocks = self.runner.first_blocks(2 * chunks as u64).0.min(self.measured);
                let what = format!(
                    "more measurements: {} that could change the choice",
                    prose::count(open.len() as u64, "type")
                );
                self.probe(Phase::Undecided, &what, &open, blocks)?;
            }
        }
    }

    /// Measures the choice of an answer as a whole.
    fn as_a_whole(&mut self, prepared: Prepared, answer: Answer) -> Result<Incumbent, StepError> {
        let predicted = prepared.predicted(&answer).0;
        let choice = choice_of(&prepared, &answer);
        let validation = self.validate(&choice)?;
        let lost = self.lost(&validation);
        Ok(Incumbent {
            prepared,
            answer,
            choice,
            base: None,
            predicted,
            validation,
            lost,
            round: 0,
        })
    }

    /// Returns the best of four choices, each measured as a whole: by measured losses, by squared errors that are scaled with all types of
    /// a group or with its middle type, and by geometric means of the first two.
    ///
    /// Measured losses include all effects of a type on a group. But they are noisy, and they do not add up if several groups cause
    /// the same effect, such as a different routing of tokens to experts. The search then corrects the losses that led to the
    /// best choice.
    pub(super) fn second_opinions(
        &mut self,
        first: Incumbent,
        errors: &BTreeMap<Probe, f64>,
    ) -> Result<Incumbent, StepError> {
        let measured = self.chunk_losses.losses();
        let by_errors = policy::in_proportion(&measured, errors, usize::MAX);
        let by_the_middle = policy::in_proportion(&measured, errors, 1);
        let by_both = policy::geometric_means(&measured, &by_errors);
        let mut found = vec![first.lost];
        let (mut best, mut best_losses) = (first, None);
        for losses in [by_errors, by_the_middle, by_both] {
            let (prepared, answer) = self.solve(&losses)?;
            let other = self.as_a_whole(prepared, answer)?;
            found.push(other.lost);
            if other.lost < best.lost {
                (best, best_losses) = (other, Some(losses));
            }
        }
        self.context.note(format!(
                "measured losses of four choices: {:.6} by measured losses, {:.6} by squared errors scaled with all types, {:.6} by squared \
                 errors scaled with the middle type, {:.6} by the geometric mean of the first two",
                found[0], found[1], found[2], found[3]
            ));
        if let Some(losses) = best_losses {
            self.chunk_losses = self.chunk_losses.rescaled(&losses);
        }
        self.first_loss = best.lost;
        Ok(best)
    }

    /// Returns the best choice by losses.
    pub(super) fn solve(&self, losses: &Losses) -> Result<(Prepared, Answer), StepError> {
        self.solving.solve(&self.stored, losses, &self.limits)
    }

    /// Returns the divergence of a choice by chunk, measured as a whole on the chunks that options are measured on.
    pub(super) fn together(&mut self, choice: &BTreeMap<String, TensorType>) -> Result<Vec<f64>, StepError> {
        self.whole(Phase::Refine, "the complete choice", choice, 0..self.measured)
    }

    /// Returns the divergence of a choice by chunk, measured as a whole on the validation chunks.
    pub(super) fn validate(&mut self, choice: &BTreeMap<String, TensorType>) -> Result<Vec<f64>, StepError> {
        let phase = if self.is_refining {
            Phase::Refine
        } else {
            Phase::Choices
        };
        self.whole(
            phase,
            "a complete choice, on the validation chunks",
            choice,
            self.judging.clone(),
        )
    }

    fn whole(
        &mut self,
        phase: Phase,
        what: &str,
        choice: &BTreeMap<String, TensorType>,
        blocks: Range<usize>,
    ) -> Result<Vec<f64>, StepError> {
        let variant = self.variant(choice);
        let found = self.runner.divergences(phase, what, &[variant], blocks)?;
        Ok(found.into_iter().next().unwrap_or_default())
    }

    /// Returns the mean of divergences on the validation chunks, minus that of the unchanged model.
    pub(super) fn lost(&self, validation: &[f64]) -> f64 {
        mean(validation) - self.validation_null
    }

    /// Returns the tensors that a choice changes.
    pub(super) fn variant(&self, choice: &BTreeMap<String, TensorType>) -> Variant {
        let groups = self.solving.groups.iter();
        let changed = groups.filter_map(|group| Some((group, *choice.get(&group.name)?)));
        changed
            .flat_map(|(group, ty)| group.members.iter().map(move |at| (*at, ty)))
            .filter(|(at, ty)| self.stored.facts.tensors[*at].ty != *ty)
            .collect()
    }

    /// Measures groups in types, each alone.
    fn probe(&mut self, phase: Phase, what: &str, probes: &[Probe], blocks: usize) -> Result<(), StepError> {
        let variants: Vec<Variant> = probes
            .iter()
            .map(|(group, ty)| self.variant(&BTreeMap::from([(group.clone(), *ty)])))
            .collect();
        let found = self.runner.divergences(phase, what, &variants, 0..blocks)?;
        for (probe, found) in probes.iter().zip(found) {
            let lost = found.iter().zip(&self.null).map(|(with, without)| with - without);
            self.chunk_losses.insert(probe.clone(), lost.collect());
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
