//! Moves (changes of the type of one group), measured with all other groups as in the choice.

use std::collections::BTreeMap;

use crate::allocation::Answer;
use crate::method::BaseChoice;
use crate::observer::Phase;
use crate::policy;
use crate::policy::LocalLosses;
use crate::policy::Prepared;
use crate::policy::Probe;
use crate::prose;
use crate::tensor_type::TensorType;
use crate::work::StepError;

use super::scan::Incumbent;
use super::scan::Scan;
use super::scan::choice_of;

/// The relative error of a difference measured alone, caused by the other groups.
const INTERACTION: f64 = 0.3;

/// The maximum number of moves of one group that are measured in a round.
const MOVES: usize = 4;

/// The maximum number of retries with fewer moves after a worse choice.
const RETRIES: u32 = 10;

/// The factor by which the penalty of moves grows with each retry.
const STEEPER: f64 = 1.6;

impl Scan<'_, '_> {
    /// Measures moves and solves again, until nothing better is found or after `rounds` rounds. A choice is taken only if its measured
    /// loss is smaller by more than the noise, on other chunks than those that the moves were measured on: a search that is evaluated
    /// on the data that it searched on finds noise.
    pub(super) fn refine(&mut self, mut incumbent: Incumbent, rounds: u32) -> Result<Incumbent, StepError> {
        self.is_refining = true;
        for round in 1..=rounds {
            let moves = self.moves(&incumbent);
            let together = self.together(&incumbent.choice)?;
            let chunk_losses = self.chunk_losses.clone();
            let mut local_losses = LocalLosses::new(&chunk_losses, incumbent.choice.clone());
            let what = format!(
                "round {round}: {}",
                prose::count(moves.len() as u64, "single-group change")
            );
            // The interactions of moves are small compared to the noise of a few chunks.
            let (half, _) = self.runner.first_blocks(together.len().div_ceil(2) as u64);
            self.measure_moves(&what, &moves, half.max(self.screened), &together, &mut local_losses)?;
            let (better, done) = self.step(round, &mut local_losses, &together, incumbent)?;
            incumbent = better;
            if done {
                break;
            }
        }
        Ok(incumbent)
    }

    /// Returns the moves that could improve the choice.
    fn moves(&self, incumbent: &Incumbent) -> Vec<Probe> {
        let open = self
            .chunk_losses
            .undecided(&incumbent.prepared, &incumbent.answer, INTERACTION);
        let mut moves: Vec<Probe> = Vec::new();
        let mut of_group = ("", 0);
        for (group, ty) in &open {
            if incumbent.choice.get(group) == Some(ty) {
                continue;
            }
            of_group = if of_group.0 == group {
                (group, of_group.1 + 1)
            } else {
                (group, 1)
            };
            if of_group.1 <= MOVES {
                moves.push((group.clone(), *ty));
            }
        }
        moves
    }

    /// Measures moves, one at a time, on the first blocks. `together` is the loss of the whole choice by chunk.
    fn measure_moves(
        &mut self,
        what: &str,
        moves: &[Probe],
        blocks: usize,
        together: &[f64],
        local_losses: &mut LocalLosses<'_>,
    ) -> Result<(), StepError> {
        let moved = |(group, ty): &Probe| {
            let mut choice = local_losses.choice().clone();
            choice.insert(group.clone(), *ty);
            self.variant(&choice)
        };
        let variants: Vec<_> = moves.iter().map(moved).collect();
        let found = self.runner.divergences(Phase::Refine, what, &variants, 0..blocks)?;
        for (probe, found) in moves.iter().zip(found) {
            let change = found.iter().zip(together).map(|(with, without)| with - without);
            local_losses.insert(probe.clone(), change.collect());
        }
        Ok(())
    }

    /// Returns the best choice by the measured moves. Each of its moves was measured on all chunks: else moves that look good on few
    /// chunks by chance would be preferred.
    fn propose(
        &mut self,
        local_losses: &mut LocalLosses<'_>,
        together: &[f64],
        penalty: f64,
    ) -> Result<Proposal, StepError> {
        loop {
            let (prepared, answer) = self.solve(&local_losses.losses(penalty))?;
            let choice = choice_of(&prepared, &answer);
            let moved: Vec<Probe> = choice
                .iter()
                .filter(|(group, ty)| local_losses.choice().get(*group) != Some(ty))
                .map(|(group, ty)| (group.clone(), *ty))
                .collect();
            let short: Vec<Probe> = moved
                .iter()
                .filter(|probe| local_losses.measured_on(probe) < together.len())
                .cloned()
                .collect();
            if short.is_empty() {
                return Ok(Proposal {
                    prepared,
                    answer,
                    choice,
                    moved,
                });
            }
            let what = format!(
                "more measurements: {}",
                prose::count(short.len() as u64, "single-group change")
            );
            self.measure_moves(&what, &short, self.measured, together, local_losses)?;
        }
    }

    /// Returns a better choice by the measured moves, or the same one, and whether the search is finished.
    fn step(
        &mut self,
        round: u32,
        local_losses: &mut LocalLosses<'_>,
        together: &[f64],
        incumbent: Incumbent,
    ) -> Result<(Incumbent, bool), StepError> {
        let mut penalty = 0.0;
        let mut tried: Vec<Vec<Probe>> = Vec::new();
        for _ in 0..=RETRIES {
            let proposal = self.propose(local_losses, together, penalty)?;
            let change = local_losses.change(&proposal.choice);
            let base = BaseChoice {
                choice: incumbent.choice.clone(),
                loss: incumbent.lost,
                penalty,
            };
            let predicted = incumbent.lost + change;
            if proposal.moved.is_empty() && penalty > 0.0 {
                break;
            }
            if proposal.moved.is_empty() {
                // The choice is the best one by the measured moves. Its certificate then proves that.
                let settled = Incumbent {
                    prepared: proposal.prepared,
                    answer: proposal.answer,
                    base: Some(base),
                    predicted,
                    ..incumbent
                };
                return Ok((settled, true));
            }
            // If this is worse, retry with fewer moves: those that gain least are dropped.
            let each = (-change / proposal.moved.len() as f64).max(0.0);
            penalty = if penalty > 0.0 { STEEPER * penalty } else { each / 4.0 };
            if !tried.contains(&proposal.moved) {
                let validation = self.validate(&proposal.choice)?;
                let lost = self.lost(&validation);
                if policy::is_less(&validation, &incumbent.validation) {
                    let better = Incumbent {
                        prepared: proposal.prepared,
                        answer: proposal.answer,
                        choice: proposal.choice,
                        base: Some(base),
                        predicted,
                        validation,
                        lost,
                        round,
                    };
                    return Ok((better, false));
                }
                tried.push(proposal.moved);
            }
            if penalty == 0.0 {
                break;
            }
        }
        Ok((incumbent, true))
    }
}

/// A better choice by the measured moves, not yet measured as a whole.
struct Proposal {
    prepared: Prepared,
    answer: Answer,
    choice: BTreeMap<String, TensorType>,
    moved: Vec<Probe>,
}
