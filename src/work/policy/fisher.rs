//! `method = "fisher"`: the loss of each tensor in each type is predicted from gradients, and the best choice within the budget is solved
//! exactly. No type is measured on a dense model; on a mixture of experts a few are, for the decisions of the routers that change.
//!
//! Refined codes take much longer to compute than the quantizer's own. So options are priced by the quantizer's own bytes first, times
//! what refining left of the loss in the group's other types. Those that the solver chooses or nearly chooses are refined and priced
//! again, until it chooses refined ones only. The certificate is about these prices: those of options that were not refined are not in it.
//!
//! Then the choice is measured as a whole, and once more without each kind of tensor, as all queries. What a kind contributes to the
//! measured loss corrects the predicted losses of its tensors, and the choice is solved again. It counts if its loss on other chunks is
//! smaller.

mod corrections;
mod prices;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::action::Action;
use crate::action::Gradients;
use crate::allocation::Answer;
use crate::method::Chosen;
use crate::method::Limits;
use crate::method::Solving;
use crate::method::chosen;
use crate::method::fisher::Document;
use crate::policy;
use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::Prepared;
use crate::policy::Probe;
use crate::prose;
use crate::rounding::why_not_refined;
use crate::tensor_type::TensorType;
use crate::work::StepError;
use crate::work::join::Slices;

use super::stored::Stored;

use corrections::Corrections;
use prices::Prices;

/// How often the choice is solved with more refined options, at most.
const ROUNDS: usize = 8;

/// An option is refined if it would be chosen with so much less of its loss.
const NEAR: f64 = 0.15;

/// What refining leaves of a loss where nothing is known: about what it leaves of most types.
const USUAL_RATIO: f64 = 0.6;

/// Prices, and chooses.
pub(super) fn choose(stored: Stored<'_, '_>, method: &Document, slices: Slices) -> Result<Chosen, StepError> {
    let Stored { context, facts, has } = stored;
    let solving = Solving::of(facts, has, &method.constraints)?;
    let devices = &method.constraints.devices;
    let limits = solving.limits(&stored, &method.header, method.budget, devices, method.states)?;
    // If nothing fits the budget, this fails before anything is computed.
    let guessed = policy::prior(facts, &solving.groups, &solving.types);
    let _ = solving.solve(&stored, &guessed, &limits)?;
    let mut prices = Prices::new(stored, method, &solving, slices)?;
    let options: Vec<Probe> = solving
        .options()
        .into_iter()
        .map(|(group, ty)| (group.name.clone(), ty))
        .collect();
    prices.plain(&options)?;
    let mut search = Search {
        stored,
        solving: &solving,
        limits,
        options: &options,
        ratios: Ratios::default(),
    };
    let mut found = search.best(&mut prices)?;
    let mut probed = None;
    if method.corrections > 0 {
        let corrections = Corrections::new(stored, method)?;
        let mut measured = corrections.measure(&prices, &found)?;
        for round in 1..=method.corrections {
            context.check_cancel()?;
            let factors = corrections.factors(&prices, &found)?;
            prices.correct(&factors);
            let other = search.best(&mut prices)?;
            if other.types().eq(found.types()) {
                break;
            }
            let again = corrections.measure(&prices, &other)?;
            context.note(format!(
                "correction {round}: the loss of the complete choice is {:.6}, and was {:.6}",
                policy::mean(&again),
                policy::mean(&measured)
            ));
            if policy::mean(&again) >= policy::mean(&measured) {
                break;
            }
            (found, measured) = (other, again);
        }
        probed = Some(policy::Probed {
            mean: format!("{:e}", policy::mean(&measured)),
            deviation: format!("{:e}", policy::variance(&measured).sqrt()),
            chunks: u32::try_from(measured.len()).unwrap_or(u32::MAX),
            context: method.context,
        });
    }
    let mut table = found.prepared.table(&found.answer);
    table.probed_loss = probed;
    if !prices.is_in_nats() {
        table.predicted_loss = None;
    }
    Ok(chosen(&found.prepared, &found.answer, None, table)?)
}

/// A loss that was not measured.
fn exactly(mean: f64) -> Loss {
    Loss {
        mean,
        variance: 0.0,
        chunks: 0,
    }
}

/// A problem and its solution.
struct Found {
    prepared: Prepared,
    answer: Answer,
}

impl Found {
    /// Returns the type of each group that has a choice, and its loss.
    fn choice(&self) -> BTreeMap<Probe, f64> {
        let groups = self.prepared.problem().groups().iter().zip(&self.answer.choice);
        let scale = self.prepared.scale();
        groups
            .filter_map(|(group, at)| {
                let option = group.options.get(*at)?;
                let ty = TensorType::from_name(&option.name)?;
                Some(((group.name.clone(), ty), option.loss as f64 * scale.loss(1)))
            })
            .collect()
    }

    /// Returns the groups that have a choice, with their types.
    fn types(&self) -> impl Iterator<Item = Probe> {
        self.choice().into_keys()
    }
}

/// Finds the best choice.
struct Search<'s, 't> {
    stored: Stored<'s, 't>,
    solving: &'s Solving<'s>,
    limits: Limits,
    options: &'s [Probe],
    ratios: Ratios,
}

impl Search<'_, '_> {
    /// Returns the best choice by prices.
    fn best(&mut self, prices: &mut Prices<'_, '_>) -> Result<Found, StepError> {
        let mut own = Losses::new();
        // A group that keeps its type has no loss.
        for group in &self.solving.groups {
            if let Some(ty) = group.own_type(self.stored.facts) {
                own.insert((group.name.clone(), ty), exactly(0.0));
            }
        }
        let losses = if prices.refines() {
            self.refine(prices, own)?
        } else {
            let priced = self.options.iter().filter_map(|probe| prices.of_plain(probe));
            own.into_iter().chain(priced).collect()
        };
        let (prepared, answer) = self.solve(&losses)?;
        Ok(Found { prepared, answer })
    }

    fn solve(&self, losses: &Losses) -> Result<(Prepared, Answer), StepError> {
        self.solving.solve(&self.stored, losses, &self.limits)
    }

    /// Refines options until the solver chooses none that was not. Returns the losses of those that were, and of types that are never
    /// refined.
    fn refine(&mut self, prices: &mut Prices<'_, '_>, own: Losses) -> Result<Losses, StepError> {
        let mut known = own;
        let never = self.options.iter().filter(|(_, ty)| why_not_refined(*ty).is_some());
        known.extend(never.filter_map(|probe| prices.of_plain(probe)));
        known.extend(prices.of_refined());
        for round in 0..ROUNDS {
            let mut losses = known.clone();
            for probe in self.options.iter().filter(|probe| !known.contains_key(*probe)) {
                if let Some((probe, loss)) = prices.of_plain(probe) {
                    let mean = loss.mean * self.ratios.of(&probe);
                    losses.insert(probe, exactly(mean));
                }
            }
            let (prepared, answer) = self.solve(&losses)?;
            // The first choice only teaches what refining leaves of losses.
            let near = if self.ratios.is_empty() { 0.0 } else { NEAR };
            let mut wanted = BTreeSet::new();
            for (group, options) in prepared.priced(&answer) {
                for option in options {
                    let probe = (group.clone(), option.ty);
                    let is_near = losses.get(&probe).is_some_and(|loss| option.cost < near * loss.mean);
                    if (option.chosen || is_near) && !known.contains_key(&probe) {
                        wanted.insert(probe);
                    }
                }
            }
            if wanted.is_empty() {
                break;
            }
            let wanted: Vec<Probe> = wanted.into_iter().collect();
            self.stored.context.note(format!(
                "refining {} of {}, round {}",
                prose::count(wanted.len() as u64, "option"),
                self.options.len(),
                round + 1
            ));
            for (probe, loss) in prices.refined(&wanted)? {
                if let Some((_, plain)) = prices.of_plain(&probe) {
                    self.ratios.learn(&probe, loss.mean / plain.mean);
                }
                known.insert(probe, loss);
            }
        }
        Ok(known)
    }
}

/// What refining leaves of losses, learned from options that were refined.
#[derive(Debug, Default)]
struct Ratios {
    /// For each group the sum of logarithms, and how many.
    of_group: BTreeMap<String, (f64, u32)>,
    all: (f64, u32),
}

impl Ratios {
    fn is_empty(&self) -> bool {
        self.all.1 == 0
    }

    fn learn(&mut self, (group, _): &Probe, ratio: f64) {
        // Without a loss nothing can be left of it.
        if !(ratio.is_finite() && ratio > 0.0) {
            return;
        }
        for sum in [self.of_group.entry(group.clone()).or_default(), &mut self.all] {
            sum.0 += ratio.ln();
            sum.1 += 1;
        }
    }

    /// Returns the ratio of an option: the geometric mean of those of its group, else of all.
    fn of(&self, (group, _): &Probe) -> f64 {
        let known = self.of_group.get(group).filter(|(_, count)| *count > 0);
        let (sum, count) = known.copied().unwrap_or(self.all);
        if count == 0 {
            USUAL_RATIO
        } else {
            (sum / f64::from(count)).exp()
        }
    }
}

impl Document {
    fn gradients(&self) -> Action {
        Action::Gradients(Gradients {
            model: self.model,
            tokenizer: self.tokenizer,
            corpus: self.corpus,
            context: self.context,
            chunks: self.chunks,
            block: self.block,
            engine: self.evaluator,
            form: Gradients::FORM,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_learned_by_group() {
        let probe = |group: &str| (group.to_owned(), TensorType::Q4_K);
        let mut ratios = Ratios::default();
        assert!(ratios.is_empty());
        assert_eq!(ratios.of(&probe("a")), USUAL_RATIO);
        ratios.learn(&probe("a"), 0.25);
        ratios.learn(&probe("a"), 1.0);
        ratios.learn(&probe("b"), f64::NAN);
        ratios.learn(&probe("b"), 0.0);
        assert!((ratios.of(&probe("a")) - 0.5).abs() < 1e-12);
        assert!((ratios.of(&probe("b")) - 0.5).abs() < 1e-12);
        ratios.learn(&probe("b"), 0.5_f64.powi(4));
        assert!((ratios.of(&probe("b")) - 0.0625).abs() < 1e-12);
        assert!((ratios.of(&probe("c")) - 0.25).abs() < 1e-12);
    }
}
