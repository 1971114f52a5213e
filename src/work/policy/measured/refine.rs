//! Moves around a choice, measured with all else as the choice has it.

use std::collections::BTreeMap;

use crate::allocation::Answer;
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

/// By which part of itself a difference measured alone may be wrong beside the other groups.
const INTERACTION: f64 = 0.3;

/// How many moves of one group are measured in a round.
const MOVES: usize = 4;

/// How often a choice that turned out worse is asked for again with fewer moves.
const RETRIES: u32 = 10;

/// By how much moves are charged more each time.
const STEEPER: f64 = 1.6;

impl Scan<'_, '_> {
    /// Measures moves around a choice and solves again, until nothing is better or so many rounds are over. A choice is taken
    /// only if it loses less when all of it is measured together, by more than chunks make of themselves, and on other chunks than
    /// those that speak for it: a search that is judged by what it searched in finds noise.
    pub(super) fn refine(&mut self, mut incumbent: Incumbent, rounds: u32) -> Result<Incumbent, StepError> {
        for round in 1..=rounds {
            let moves = self.moves(&incumbent);
            let together = self.together(&incumbent.choice)?;
            let chunk_losses = self.chunk_losses.clone();
            let mut local_losses = LocalLosses::new(&chunk_losses, incumbent.choice.clone());
            let what = format!(
                "round {round}: {}",
                prose::count(moves.len() as u64, "single-group change")
            );
            // What moves lose more or less than alone is small beside the noise of a few chunks.
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

    /// Returns the moves that could be worth making.
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

    /// Measures moves, one at a time, on the first blocks. `together` is what the choice loses as a whole.
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
        let found = self.runner.divergences(what, &variants, 0..blocks)?;
        for (probe, found) in moves.iter().zip(found) {
            let change = found.iter().zip(together).map(|(with, without)| with - without);
            local_losses.insert(probe.clone(), change.collect());
        }
        Ok(())
    }

    /// Returns the best choice by the moves that were measured, where each that it makes was measured on all chunks: one that
    /// a few chunks only made look good would else be preferred to all others.
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

    /// Returns a better choice by the moves that were measured, or the same one; and whether there is nothing more to find.
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
            let predicted = incumbent.lost + change;
            if proposal.moved.is_empty() && penalty > 0.0 {
                break;
            }
            if proposal.moved.is_empty() {
                // The choice is the best one of what was measured around it: that is what its certificate then says.
                let settled = Incumbent {
                    prepared: proposal.prepared,
                    answer: proposal.answer,
                    predicted,
                    ..incumbent
                };
                return Ok((settled, true));
            }
            // Fewer moves next time, if this turns out worse: what gains least for each is not worth it.
            let each = (-change / proposal.moved.len() as f64).max(0.0);
            penalty = if penalty > 0.0 { STEEPER * penalty } else { each / 4.0 };
            if !tried.contains(&proposal.moved) {
                let judged = self.judge(&proposal.choice)?;
                let lost = self.lost(&judged);
                if policy::is_less(&judged, &incumbent.judged) {
                    let better = Incumbent {
                        prepared: proposal.prepared,
                        answer: proposal.answer,
                        choice: proposal.choice,
                        predicted,
                        judged,
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

/// A choice that the moves around another one speak for.
struct Proposal {
    prepared: Prepared,
    answer: Answer,
    choice: BTreeMap<String, TensorType>,
    moved: Vec<Probe>,
}
