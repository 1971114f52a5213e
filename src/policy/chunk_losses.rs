//! The losses that probes measured, by chunk, and the probes that are worth measuring on more chunks.
//!
//! A few chunks show that most options of a group can't be part of the best choice. So all options are measured on a few
//! chunks, and only those on more that a better measurement could still bring into the choice. Reduced costs decide this: the
//! loss of an option plus its bytes times the multiplier of the budget, minus the same for the best option of its group. Chunks
//! are the same for all options, so differences are paired, and noise that a chunk gives to all cancels out.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::allocation::Answer;
use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::Prepared;
use crate::tensor_type::TensorType;

/// How many standard errors a measured difference may be wrong by.
const DOUBT: f64 = 3.0;

/// A group in a type.
pub type Probe = (String, TensorType);

/// The loss of each chunk, in the chunks' order, for each group and type; for some of the first chunks only.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChunkLosses {
    of: BTreeMap<Probe, Vec<f64>>,
    chunks: usize,
}

impl ChunkLosses {
    /// Returns an empty set of losses, with at most `chunks` chunks for each probe.
    pub fn new(chunks: usize) -> Self {
        Self {
            of: BTreeMap::new(),
            chunks,
        }
    }

    /// Adds the losses of a probe on the first chunks. They replace losses on fewer chunks.
    pub fn insert(&mut self, probe: Probe, mut lost: Vec<f64>) {
        lost.truncate(self.chunks);
        let known = self.of.get(&probe).map_or(0, Vec::len);
        if lost.len() >= known {
            self.of.insert(probe, lost);
        }
    }

    /// Returns the losses of a probe on the chunks that it was measured on.
    pub fn get(&self, group: &str, ty: TensorType) -> Option<&[f64]> {
        self.of.get(&(group.to_owned(), ty)).map(Vec::as_slice)
    }

    /// Says whether a probe was measured on all chunks.
    pub fn is_whole(&self, probe: &Probe) -> bool {
        self.of.get(probe).is_some_and(|lost| lost.len() >= self.chunks)
    }

    /// Returns on how many chunks a probe was measured.
    pub fn measured_on(&self, probe: &Probe) -> usize {
        self.of.get(probe).map_or(0, Vec::len)
    }

    /// Returns the mean loss of every probe over the most chunks that any was measured on. Of those that were measured on fewer, it
    /// is estimated by the ratio of means over more and over fewer chunks of the group's probes that were measured on more, or of
    /// all such probes (the ratio estimator of survey sampling: Cochran, Sampling Techniques, 1977, chapter 6).
    pub fn losses(&self) -> Losses {
        let lengths: BTreeSet<usize> = self.of.values().map(Vec::len).filter(|length| *length > 0).collect();
        let mut known: BTreeMap<(&str, usize), f64> = BTreeMap::new();
        let mut losses = Losses::new();
        for (probe, lost) in &self.of {
            let scale = *known
                .entry((&probe.0, lost.len()))
                .or_insert_with(|| self.scale(&probe.0, lost.len(), &lengths));
            let loss = Loss {
                mean: scale * mean(lost),
                variance: scale * scale * variance_of_mean(lost),
                chunks: u32::try_from(lost.len()).unwrap_or(u32::MAX),
            };
            losses.insert(probe.clone(), loss);
        }
        losses
    }

    /// Returns the losses by chunk, scaled so that the mean of each probe is its mean in `losses`. If the mean of a probe is not positive,
    /// the difference is added to each chunk instead.
    pub fn rescaled(&self, losses: &Losses) -> Self {
        let measured = self.losses();
        let mut rescaled = self.clone();
        for (probe, lost) in &mut rescaled.of {
            let means = measured.get(probe).zip(losses.get(probe));
            let Some((measured, target)) = means.map(|(measured, target)| (measured.mean, target.mean)) else {
                continue;
            };
            for chunk in lost {
                *chunk = if measured > 0.0 {
                    *chunk * (target / measured)
                } else {
                    *chunk + (target - measured)
                };
            }
        }
        rescaled
    }

    /// Returns what a group loses on average over the most chunks for what it loses over the `first` ones: from each length to the
    /// next by the probes that have it.
    fn scale(&self, group: &str, first: usize, lengths: &BTreeSet<usize>) -> f64 {
        let mut scale = 1.0;
        let mut from = first;
        for &to in lengths.range(first + 1..) {
            if from > 0 {
                let ratio = self.ratio(Some(group), from, to).or_else(|| self.ratio(None, from, to));
                scale *= ratio.unwrap_or(1.0);
            }
            from = to;
        }
        scale
    }

    /// Returns what probes of a group, or of all, lost on so many chunks for what they lost on fewer.
    fn ratio(&self, group: Option<&str>, few: usize, more: usize) -> Option<f64> {
        let (mut over, mut under) = (0.0, 0.0);
        let mut add = |lost: &Vec<f64>| {
            if lost.len() >= more {
                over += mean(&lost[..more]);
                under += mean(&lost[..few]);
            }
        };
        match group {
            Some(group) => self.of.range(of_group(group)).for_each(|(_, lost)| add(lost)),
            None => self.of.values().for_each(add),
        }
        (over > 0.0 && under > 0.0).then(|| over / under)
    }

    /// Returns the probes that could be part of the best choice: those that the answer chooses, and those whose reduced cost is
    /// within the noise of the measurements plus the optimality gap of the answer. By group, the least reduced cost first. The
    /// noise of a difference is at least `least` times the difference.
    pub fn undecided(&self, prepared: &Prepared, answer: &Answer, least: f64) -> Vec<Probe> {
        let rest = prepared.scale().loss(answer.loss.saturating_sub(answer.least()));
        let relative = self.usual_noise();
        let mut found = Vec::new();
        for (group, options) in prepared.priced(answer) {
            let Some(best) = options.first() else { continue };
            for option in &options {
                let difference = self.difference(&group, option.ty, best.ty);
                let doubt = difference.map_or(0.0, |(mean, error)| {
                    (DOUBT * error.max(relative * mean.abs())).max(least * mean.abs())
                });
                if option.chosen || option.cost <= rest + doubt {
                    found.push((group.clone(), option.ty));
                }
            }
        }
        found
    }

    /// Returns by how much one option of a group loses more than another, and the standard error of that.
    fn difference(&self, group: &str, a: TensorType, b: TensorType) -> Option<(f64, f64)> {
        let (a, b) = (self.get(group, a)?, self.get(group, b)?);
        let lost: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        (!lost.is_empty()).then(|| (mean(&lost), variance_of_mean(&lost).sqrt()))
    }

    /// Returns the median over probes of the standard error relative to the loss: a few chunks that happen to agree look
    /// surer than they are.
    fn usual_noise(&self) -> f64 {
        let of = |lost: &Vec<f64>| {
            let mean = mean(lost);
            (lost.len() > 1 && mean > 0.0).then(|| variance_of_mean(lost).sqrt() / mean)
        };
        let mut noise: Vec<f64> = self.of.values().filter_map(of).collect();
        noise.sort_by(f64::total_cmp);
        noise.get(noise.len() / 2).copied().unwrap_or(0.0)
    }
}

/// Returns the range of a group's probes: a name and what follows it directly.
fn of_group(group: &str) -> impl std::ops::RangeBounds<Probe> {
    let least = (group.to_owned(), TensorType::F32);
    let above = (format!("{group}\0"), TensorType::F32);
    least..above
}

/// Returns the mean; 0 for an empty slice.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}

/// Returns the variance of values; 0 of fewer than two.
pub fn variance(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64
}

/// Returns whether losses by chunk are less than others on the same chunks, by more than the standard error of the difference. A
/// search that took smaller differences would follow the noise of the chunks (the rule of one standard error:
/// Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984, section 3.4.3).
pub fn is_less(a: &[f64], b: &[f64]) -> bool {
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    mean(&differences) > variance_of_mean(&differences).sqrt()
}

fn variance_of_mean(values: &[f64]) -> f64 {
    variance(values) / (values.len() as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_of_few_chunks_is_scaled_by_the_losses_of_other_probes_on_them() {
        let mut chunk_losses = ChunkLosses::new(4);
        let probe = |group: &str, ty| (group.to_owned(), ty);
        chunk_losses.insert(probe("a", TensorType::Q4_K), vec![1.0, 1.0, 3.0, 3.0]);
        chunk_losses.insert(probe("a", TensorType::Q2_K), vec![5.0, 7.0]);
        chunk_losses.insert(probe("b", TensorType::Q2_K), vec![10.0, 10.0]);
        let losses = chunk_losses.losses();
        let of = |group: &str, ty| losses[&probe(group, ty)];
        assert_eq!(of("a", TensorType::Q4_K).mean, 2.0);
        assert_eq!(
            of("a", TensorType::Q2_K).mean,
            12.0,
            "the first chunks were half as hard as all"
        );
        assert_eq!(of("a", TensorType::Q2_K).variance, 4.0 * 2.0 / 2.0);
        assert_eq!(of("b", TensorType::Q2_K).mean, 20.0, "by the probes of other groups");
        assert_eq!(of("b", TensorType::Q2_K).chunks, 2);
        assert!(chunk_losses.is_whole(&probe("a", TensorType::Q4_K)));
        assert!(!chunk_losses.is_whole(&probe("a", TensorType::Q2_K)));
    }

    #[test]
    fn probes_of_many_lengths_are_brought_to_the_longest_step_by_step() {
        let mut chunk_losses = ChunkLosses::new(8);
        let probe = |group: &str, ty| (group.to_owned(), ty);
        chunk_losses.insert(probe("a", TensorType::Q2_K), vec![4.0]);
        chunk_losses.insert(probe("a", TensorType::Q3_K), vec![2.0, 6.0]);
        chunk_losses.insert(probe("b", TensorType::Q3_K), vec![1.0, 1.0, 3.0, 3.0]);
        let losses = chunk_losses.losses();
        // Twice by its own group's probe, twice by the other's: all chunks were measured for none.
        assert_eq!(losses[&probe("a", TensorType::Q2_K)].mean, 16.0);
        assert_eq!(losses[&probe("a", TensorType::Q3_K)].mean, 8.0);
        assert_eq!(losses[&probe("b", TensorType::Q3_K)].mean, 2.0);
        assert_eq!(chunk_losses.measured_on(&probe("a", TensorType::Q3_K)), 2);
        assert_eq!(chunk_losses.measured_on(&probe("c", TensorType::Q3_K)), 0);
    }

    #[test]
    fn rescaled_losses_keep_the_ratios_between_chunks() {
        let mut chunk_losses = ChunkLosses::new(2);
        let probe = |ty| ("a".to_owned(), ty);
        chunk_losses.insert(probe(TensorType::Q2_K), vec![1.0, 3.0]);
        chunk_losses.insert(probe(TensorType::Q4_K), vec![0.5, -0.5]);
        chunk_losses.insert(probe(TensorType::F16), vec![0.0, 0.0]);
        let mut losses = chunk_losses.losses();
        losses.get_mut(&probe(TensorType::Q2_K)).unwrap().mean = 1.0;
        losses.get_mut(&probe(TensorType::Q4_K)).unwrap().mean = 0.25;
        let rescaled = chunk_losses.rescaled(&losses);
        assert_eq!(rescaled.get("a", TensorType::Q2_K), Some(&[0.5, 1.5][..]));
        assert_eq!(rescaled.get("a", TensorType::Q4_K), Some(&[0.75, -0.25][..]));
        assert_eq!(rescaled.get("a", TensorType::F16), Some(&[0.0, 0.0][..]));
        assert_eq!(rescaled.losses()[&probe(TensorType::Q2_K)].mean, 1.0);
        assert_eq!(chunk_losses.rescaled(&chunk_losses.losses()), chunk_losses);
    }

    #[test]
    fn less_means_by_more_than_the_standard_error_of_the_difference() {
        let chunks = [1.0, 5.0, 2.0, 8.0];
        let less = |by: [f64; 4]| -> Vec<f64> { chunks.iter().zip(by).map(|(loss, by)| loss - by).collect() };
        assert!(
            is_less(&less([0.1; 4]), &chunks),
            "the same in each chunk, however unlike they are"
        );
        assert!(!is_less(&chunks, &less([0.1; 4])));
        assert!(!is_less(&chunks, &chunks));
        // Means of 0.1, with standard errors of 0.19 and of 0.07.
        assert!(!is_less(&less([0.4, 0.0, 0.4, -0.4]), &chunks));
        assert!(is_less(&less([0.2, 0.1, 0.2, -0.1]), &chunks));
    }

    #[test]
    fn more_chunks_replace_fewer_and_never_the_other_way() {
        let mut chunk_losses = ChunkLosses::new(2);
        let probe = ("a".to_owned(), TensorType::Q4_K);
        chunk_losses.insert(probe.clone(), vec![1.0, 2.0, 9.0]);
        assert_eq!(chunk_losses.get("a", TensorType::Q4_K), Some(&[1.0, 2.0][..]));
        chunk_losses.insert(probe, vec![7.0]);
        assert_eq!(chunk_losses.get("a", TensorType::Q4_K), Some(&[1.0, 2.0][..]));
    }
}
