//! Losses near a choice. Where tensors lose much, the loss of one depends on the types of the others. So moves (changes of the type
//! of one group) are measured with all other groups as in the choice.

use std::collections::BTreeMap;

use crate::policy::ChunkLosses;
use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::Probe;
use crate::policy::chunk_losses::mean;
use crate::policy::chunk_losses::variance;
use crate::tensor_type::TensorType;

/// Limits of the ratio of a group's loss near the choice to its loss alone, if the ratio is taken from its other moves.
const RATIOS: (f64, f64) = (0.25, 4.0);

/// A choice, with the changes of the loss that single moves cause.
#[derive(Debug, Clone)]
pub struct LocalLosses<'a> {
    chunk_losses: &'a ChunkLosses,
    /// The loss of each group in each type alone.
    alone: Losses,
    /// The type of each group.
    choice: BTreeMap<String, TensorType>,
    /// By how much the loss of the first chunks changes when one group alone moves.
    moves: BTreeMap<Probe, Vec<f64>>,
}

impl<'a> LocalLosses<'a> {
    /// Returns a choice without measured moves.
    pub fn new(chunk_losses: &'a ChunkLosses, choice: BTreeMap<String, TensorType>) -> Self {
        Self {
            chunk_losses,
            alone: chunk_losses.losses(),
            choice,
            moves: BTreeMap::new(),
        }
    }

    /// Returns the type of each group.
    pub fn choice(&self) -> &BTreeMap<String, TensorType> {
        &self.choice
    }

    /// Adds by how much the loss of the first chunks changes when a group moves to a type.
    pub fn insert(&mut self, probe: Probe, change: Vec<f64>) {
        self.moves.insert(probe, change);
    }

    /// Returns on how many chunks a move was measured.
    pub fn measured_on(&self, probe: &Probe) -> usize {
        self.moves.get(probe).map_or(0, Vec::len)
    }

    /// Returns by how much the mean loss would change with another choice, if moves did not influence each other.
    pub fn change(&self, choice: &BTreeMap<String, TensorType>) -> f64 {
        let losses = self.losses(0.0);
        let of = |(group, ty): (&String, &TensorType)| losses.get(&(group.clone(), *ty)).map(|loss| loss.mean);
        choice.iter().filter_map(of).sum()
    }

    /// Returns the change of the mean loss that every move would bring, with `penalty` for each that is one; 0 for what the choice
    /// has. A measured move counts as what it loses alone over all chunks, corrected by what it loses more or less than alone
    /// on the chunks that it was measured on, as far as that stands out of the noise. Others count as what they lose alone, times
    /// what their group's measured moves lose beside the others for what they lose alone.
    pub fn losses(&self, penalty: f64) -> Losses {
        let alone = &self.alone;
        let interaction = self.interaction();
        let ratios = self.ratios(&interaction);
        let mut losses = Losses::new();
        for (probe, loss) in alone {
            let (group, ty) = probe;
            let Some(own) = self.choice.get(group) else { continue };
            let Some(stays) = alone.get(&(group.clone(), *own)) else {
                continue;
            };
            if ty == own {
                losses.insert(
                    probe.clone(),
                    Loss {
                        mean: 0.0,
                        variance: 0.0,
                        chunks: stays.chunks,
                    },
                );
                continue;
            }
            let change = loss.mean - stays.mean;
            let around = match self.measured(probe) {
                Some(Measured { more, .. }) => {
                    let shrinkage = interaction.shrinkage(more.len());
                    Loss {
                        mean: change + shrinkage * mean(&more),
                        variance: shrinkage * variance(&more) / more.len() as f64,
                        chunks: u32::try_from(more.len()).unwrap_or(u32::MAX),
                    }
                }
                None => Loss {
                    mean: change * ratios.get(group).copied().unwrap_or(1.0),
                    variance: 0.0,
                    chunks: 0,
                },
            };
            losses.insert(
                probe.clone(),
                Loss {
                    mean: around.mean + penalty,
                    ..around
                },
            );
        }
        losses
    }

    /// Returns the effect of a measured move.
    fn measured(&self, probe: &Probe) -> Option<Measured> {
        let (group, ty) = probe;
        let own = *self.choice.get(group)?;
        let change = self.moves.get(probe)?;
        let (to, from) = (self.chunk_losses.get(group, *ty)?, self.chunk_losses.get(group, own)?);
        let alone: Vec<f64> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        let more: Vec<f64> = change.iter().zip(&alone).map(|(with, alone)| with - alone).collect();
        (!more.is_empty()).then(|| Measured {
            own,
            alone: mean(&alone[..more.len()]),
            more,
        })
    }

    /// Returns all measured moves with their effects.
    fn all_measured(&self) -> impl Iterator<Item = (&Probe, Measured)> {
        let moves = self.moves.keys();
        moves.filter_map(|probe| Some((probe, self.measured(probe)?)))
    }

    /// Estimates the interactions of moves with other groups, and their noise.
    ///
    /// A divergence is about the square of an error, so two errors beside each other lose more than alone by twice their product:
    /// moves are compared in units of the square root of what they lose alone, before and after. Their mean square is
    /// that of the interactions plus that of the noise, which is estimated from the chunks (empirical Bayes: Efron and Morris, Stein's
    /// estimation rule and its competitors, JASA 68, 1973).
    fn interaction(&self) -> Interaction {
        let (mut squares, mut noise, mut count) = (0.0, 0.0, 0.0);
        for ((group, ty), Measured { own, more, .. }) in self.all_measured() {
            let lost = |ty| {
                let loss = self.alone.get(&(group.clone(), ty));
                loss.map_or(0.0, |loss| loss.mean.max(0.0))
            };
            let unit = lost(own) + lost(*ty);
            if unit > 0.0 && more.len() > 1 {
                let of_chunk = variance(&more);
                squares += (mean(&more).powi(2) - of_chunk / more.len() as f64) / unit;
                noise += of_chunk / unit;
                count += 1.0;
            }
        }
        if count == 0.0 {
            return Interaction::default();
        }
        Interaction {
            spread: (squares / count).max(0.0),
            noise: noise / count,
        }
    }

    /// Returns for each group the ratio of the changes by its measured moves to their changes alone.
    fn ratios(&self, interaction: &Interaction) -> BTreeMap<String, f64> {
        let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for ((group, _), Measured { alone, more, .. }) in self.all_measured() {
            let with = alone + interaction.shrinkage(more.len()) * mean(&more);
            // Signs are taken out, or moves up and down would cancel.
            let sum = sums.entry(group.clone()).or_default();
            sum.0 += with * alone.signum();
            sum.1 += alone.abs();
        }
        sums.into_iter()
            .filter(|(_, (_, alone))| *alone > 0.0)
            .map(|(group, (with, alone))| (group, (with / alone).clamp(RATIOS.0, RATIOS.1)))
            .collect()
    }
}

/// The effect of a move.
struct Measured {
    /// The type that its group has.
    own: TensorType,
    /// The mean change of the loss of the group alone, on the chunks that it was measured on.
    alone: f64,
    /// How much more it loses than alone, by chunk.
    more: Vec<f64>,
}

/// By how much moves lose more or less than alone: variances, in units of their losses alone.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Interaction {
    /// The variance of the interactions.
    spread: f64,
    /// The variance of the noise of one chunk.
    noise: f64,
}

impl Interaction {
    /// Returns the shrinkage factor for a mean over chunks; 1 if the noise is not known.
    fn shrinkage(&self, chunks: usize) -> f64 {
        let noise = self.noise / (chunks as f64).max(1.0);
        if noise > 0.0 {
            self.spread / (self.spread + noise)
        } else {
            1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measured_move_corrects_its_own_loss_and_scales_others_of_its_group() {
        let mut chunk_losses = ChunkLosses::new(4);
        let probe = |group: &str, ty| (group.to_owned(), ty);
        chunk_losses.insert(probe("a", TensorType::Q2_K), vec![8.0, 8.0, 12.0, 12.0]);
        chunk_losses.insert(probe("a", TensorType::Q4_K), vec![2.0, 2.0, 4.0, 4.0]);
        chunk_losses.insert(probe("a", TensorType::Q6_K), vec![1.0, 1.0, 1.0, 1.0]);
        chunk_losses.insert(probe("b", TensorType::Q4_K), vec![5.0; 4]);
        chunk_losses.insert(probe("b", TensorType::Q6_K), vec![3.0; 4]);
        let choice = BTreeMap::from([("a".to_owned(), TensorType::Q4_K), ("b".to_owned(), TensorType::Q4_K)]);
        let mut around = LocalLosses::new(&chunk_losses, choice);
        // Alone: 6 more on the first two chunks, 7 on all four. Beside the others: twice as much.
        around.insert(probe("a", TensorType::Q2_K), vec![12.0, 12.0]);
        let losses = around.losses(0.5);
        let mean = |group: &str, ty| losses[&probe(group, ty)].mean;
        assert_eq!(mean("a", TensorType::Q2_K), 7.0 + 6.0 + 0.5);
        assert_eq!(mean("a", TensorType::Q4_K), 0.0, "what it has costs no penalty");
        assert_eq!(
            mean("a", TensorType::Q6_K),
            -2.0 * 2.0 + 0.5,
            "twice, as its other move"
        );
        assert_eq!(
            mean("b", TensorType::Q6_K),
            -2.0 + 0.5,
            "nothing is known beside others"
        );
    }
    #[test]
    fn interactions_of_moves_are_shrunk_by_their_noise() {
        let types = [TensorType::Q2_K, TensorType::Q3_K, TensorType::Q5_K, TensorType::Q6_K];
        let around = |more: &dyn Fn(usize, usize) -> f64| {
            let mut chunk_losses = ChunkLosses::new(4);
            chunk_losses.insert(("a".to_owned(), TensorType::Q4_K), vec![1.0; 4]);
            for ty in types {
                chunk_losses.insert(("a".to_owned(), ty), vec![3.0; 4]);
            }
            let mut around = LocalLosses::new(&chunk_losses, BTreeMap::from([("a".to_owned(), TensorType::Q4_K)]));
            for (which, ty) in types.into_iter().enumerate() {
                let change = (0..4).map(|chunk| 2.0 + more(which, chunk)).collect();
                around.insert(("a".to_owned(), ty), change);
            }
            let losses = around.losses(0.0);
            types.map(|ty| losses[&("a".to_owned(), ty)].mean - 2.0)
        };
        let sign = |at: usize| if at.is_multiple_of(2) { 1.0 } else { -1.0 };
        // Chunks that contradict each other about a move that does nothing in the mean.
        let noise = around(&|which, chunk| sign(which) * if chunk == 0 { 1.0 } else { -0.2 });
        assert_eq!(noise, [0.0; 4]);
        let sure = around(&|which, _| sign(which));
        assert_eq!(sure, [1.0, -1.0, 1.0, -1.0]);
        let both = around(&|which, chunk| sign(which) + sign(chunk));
        // A mean square of 1, of which a variance of 4/3 by chunk makes 1/3.
        for (which, more) in both.into_iter().enumerate() {
            assert!((more - sign(which) * 2.0 / 3.0).abs() < 1e-12, "{both:?}");
        }
    }
}
