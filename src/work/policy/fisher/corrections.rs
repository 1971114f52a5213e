//! What a choice loses as a whole, and what each kind of tensor contributes to that.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::method::fisher::Document;
use crate::observer::Phase;
use crate::policy;
use crate::policy::Role;
use crate::prose;
use crate::work::StepError;
use crate::work::blocks::Block;
use crate::work::blocks::BlockOptions;
use crate::work::blocks::TokenizedCorpus;
use crate::work::blocks::first_blocks;
use crate::work::probe::Variant;

use super::super::stored::Stored;
use super::Found;
use super::prices::Prices;

/// By how much the predicted contributions of kinds usually differ from the measured ones: the standard deviation of the logarithm of
/// the ratio. It decides how far a noisy ratio counts.
const SPREAD: f64 = 0.3;

/// The largest correction.
const MOST: f64 = 3.0;

/// The chunks that choices are measured on.
pub(super) struct Corrections<'s, 't> {
    stored: Stored<'s, 't>,
    blocks: Vec<Block>,
    /// The blocks that losses are corrected by: those that gradients are of.
    learning: Range<usize>,
    /// The blocks that choices are compared on: others, if the corpus has as many.
    validation: Range<usize>,
}

impl<'s, 't> Corrections<'s, 't> {
    pub(super) fn new(stored: Stored<'s, 't>, method: &Document) -> Result<Self, StepError> {
        let tokenized = TokenizedCorpus {
            corpus: method.corpus,
            tokenizer: method.tokenizer,
            engine: method.evaluator,
        };
        let layout = BlockOptions::spread(method.context, method.chunks, method.block).with_held_out();
        let blocks = tokenized.blocks(stored.context, layout)?;
        let (end, _) = first_blocks(&blocks, method.chunks);
        let (others, _) = first_blocks(&blocks[end..], method.chunks);
        let (learning, others) = (0..end, end..end + others);
        Ok(Self {
            stored,
            validation: if others.is_empty() { learning.clone() } else { others },
            learning,
            blocks,
        })
    }

    /// Returns what a choice loses on each chunk for validation, in nats per token.
    pub(super) fn measure(&self, prices: &Prices<'_, '_>, found: &Found) -> Result<Vec<f64>, StepError> {
        let variants = [self.variant(prices, found, None)];
        let what = "a complete choice, on the validation chunks";
        let measured = prices.measure(Phase::Choices, what, &variants, &self.blocks[self.validation.clone()])?;
        Ok(measured.into_iter().next().unwrap_or_default())
    }

    /// Returns what the predicted losses of each kind of tensor have to be multiplied with, so that they are what the kind contributes to
    /// the measured loss of a choice.
    pub(super) fn factors(&self, prices: &Prices<'_, '_>, found: &Found) -> Result<BTreeMap<Role, f64>, StepError> {
        let mut predicted: BTreeMap<Role, f64> = BTreeMap::new();
        for ((group, _), loss) in found.choice() {
            if let Some(role) = prices.role(&group) {
                *predicted.entry(role).or_default() += loss;
            }
        }
        predicted.retain(|_, loss| *loss > 0.0);
        let without = predicted.keys().map(|role| self.variant(prices, found, Some(*role)));
        let variants: Vec<Variant> = std::iter::once(self.variant(prices, found, None))
            .chain(without)
            .collect();
        let what = format!(
            "the complete choice, and without each of {} of tensors",
            prose::count(predicted.len() as u64, "kind")
        );
        let blocks = &self.blocks[self.learning.clone()];
        let measured = prices.measure(Phase::Choices, &what, &variants, blocks)?;
        let Some((all, without)) = measured.split_first() else {
            return Ok(BTreeMap::new());
        };
        let factors = predicted.into_iter().zip(without).map(|((role, predicted), without)| {
            let contributions = all.iter().zip(without).map(|(all, without)| all - without);
            (role, factor(predicted, &contributions.collect::<Vec<_>>()))
        });
        Ok(factors.collect())
    }

    /// Returns the tensors that a choice changes, without those of a kind.
    fn variant(&self, prices: &Prices<'_, '_>, found: &Found, without: Option<Role>) -> Variant {
        let facts = self.stored.facts;
        let mut variant = Variant::new();
        for (group, ty) in found.choice().into_keys() {
            if without.is_some() && prices.role(&group) == without {
                continue;
            }
            let members = prices.members(&group).iter();
            variant.extend(
                members
                    .map(|at| (*at, ty))
                    .filter(|(at, ty)| facts.tensors[*at].ty != *ty),
            );
        }
        variant
    }
}

/// Returns the ratio of measured contributions, by chunk, to the predicted one: the more noise there is in it, the nearer to 1.
fn factor(predicted: f64, contributions: &[f64]) -> f64 {
    let measured = policy::mean(contributions);
    let ratio = (measured / predicted).clamp(1.0 / MOST, MOST);
    // That of the logarithm of the ratio.
    let noise = policy::variance(contributions) / contributions.len().max(1) as f64 / (ratio * predicted).powi(2);
    let share = SPREAD * SPREAD / (SPREAD * SPREAD + noise);
    if share.is_finite() { ratio.powf(share) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noisy_contributions_correct_little() {
        assert!((factor(1.0, &[2.0; 4]) - 2.0).abs() < 1e-12);
        assert!((factor(1.0, &[9.0; 4]) - MOST).abs() < 1e-12);
        assert!((factor(1.0, &[-1.0; 4]) - 1.0 / MOST).abs() < 1e-12);
        let noisy = factor(1.0, &[12.0, -8.0, 12.0, -8.0]);
        assert!((1.0..1.02).contains(&noisy), "{noisy}");
        assert!((factor(0.0, &[0.0; 4]) - 1.0).abs() < 1e-12);
    }
}
