//! Losses from squared errors: what quantizing costs a tensor's outputs, scaled by what that costs the model.
//!
//! The squared error of a tensor's weights, each column weighted by its mean squared activation, is the squared error of its
//! outputs if columns err independently. How much of that reaches the model's predictions differs from tensor to tensor, but
//! hardly from type to type of one tensor: so a measured divergence, divided by the error of the same type, tells what the
//! other types cost.

use std::collections::BTreeMap;

use crate::policy::Loss;
use crate::policy::Losses;
use crate::policy::Probe;
use crate::tensor_type::TensorType;

/// Returns the squared error that a tensor makes for a token, of the errors of its matrices. Where the matrices are experts, each
/// counts as often as tokens were routed to it: `counts` rows of the `tokens` that the imatrix saw. Without a count for each, they
/// count alike, as one of them.
pub fn squared_error(matrices: &[f64], counts: &[f32], tokens: f64) -> f64 {
    if matrices.len() > 1 && matrices.len() == counts.len() && tokens > 0.0 {
        let routed = matrices.iter().zip(counts);
        return routed.map(|(error, count)| error * f64::from(*count) / tokens).sum();
    }
    matrices.iter().sum::<f64>() / matrices.len().max(1) as f64
}

/// Returns the types of a group that are measured, of those that it may have: as many as asked for, spread evenly over the
/// list, ordered by bits per weight; a single one is the middle one.
pub fn probed_types(options: &[TensorType], count: usize) -> Vec<TensorType> {
    let mut sorted: Vec<TensorType> = options.to_vec();
    sorted.sort_by(|a, b| a.bpw().total_cmp(&b.bpw()).then_with(|| a.name().cmp(b.name())));
    sorted.dedup();
    let count = count.min(sorted.len());
    (0..count)
        .map(|at| sorted[(2 * at + 1) * sorted.len() / (2 * count)])
        .collect()
}

/// What a squared error of one costs, in the unit of the measurements.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sensitivity {
    /// The cost.
    pub mean: f64,
    /// The variance of this mean.
    pub variance: f64,
    /// How many chunks it was measured on; 0 where it was not measured.
    pub chunks: u32,
}

impl Sensitivity {
    /// What all groups have where nothing is measured.
    pub const ONE: Self = Self {
        mean: 1.0,
        variance: 0.0,
        chunks: 0,
    };

    /// Returns the sensitivity of a group from its measurements: each the squared error of the group in a type, and the divergence
    /// of each chunk. It is the ratio of the sums, so that what stands out of the noise decides. Nothing without an error.
    pub fn of(measured: &[(f64, Vec<f64>)]) -> Option<Self> {
        let error: f64 = measured.iter().map(|(error, _)| error).sum();
        let chunks = measured.iter().map(|(_, chunks)| chunks.len()).min()?;
        if chunks == 0 || error <= 0.0 || !error.is_finite() {
            return None;
        }
        let sums = (0..chunks).map(|at| measured.iter().map(|(_, chunks)| chunks[at]).sum::<f64>() / error);
        let ratios: Vec<f64> = sums.collect();
        let count = chunks as f64;
        let mean = ratios.iter().sum::<f64>() / count;
        let squares: f64 = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum();
        Some(Self {
            mean,
            variance: if chunks > 1 {
                squares / (count - 1.0) / count
            } else {
                0.0
            },
            chunks: u32::try_from(chunks).unwrap_or(u32::MAX),
        })
    }

    /// Returns what a group with this squared error loses.
    pub fn loss(&self, error: f64) -> Loss {
        Loss {
            mean: self.mean * error,
            variance: self.variance * error * error,
            chunks: self.chunks,
        }
    }
}

/// Gives groups with a measured sensitivity of zero or less, which is noise, the least positive sensitivity of all groups: no group
/// is insensitive.
pub fn lift_sensitivities(found: &mut BTreeMap<String, Sensitivity>) {
    let above = found.values().map(|found| found.mean).filter(|mean| *mean > 0.0);
    let least = above.min_by(f64::total_cmp).unwrap_or(0.0);
    for found in found.values_mut().filter(|found| found.mean <= 0.0) {
        found.mean = least;
    }
}

/// Returns losses that are proportional to squared errors: the factor of a group is the sum of the measured losses of `count` of its
/// types ([`probed_types`]) divided by the sum of their squared errors. So a loss that any change of a tensor causes, however small
/// (some tokens are routed to other experts), and that a candidate has only once, has little weight. Options without an error keep
/// their measured loss.
pub fn in_proportion(measured: &Losses, errors: &BTreeMap<Probe, f64>, count: usize) -> Losses {
    let mut of_group: BTreeMap<&str, Vec<TensorType>> = BTreeMap::new();
    let known = errors
        .iter()
        .filter(|(probe, error)| **error > 0.0 && measured.contains_key(*probe));
    for ((group, ty), _) in known {
        of_group.entry(group).or_default().push(*ty);
    }
    let mut found: BTreeMap<String, Sensitivity> = BTreeMap::new();
    for (group, types) in of_group {
        let probes = probed_types(&types, count).into_iter().map(|ty| (group.to_owned(), ty));
        let (loss, error) = probes.fold((0.0, 0.0), |sums: (f64, f64), probe| {
            (sums.0 + measured[&probe].mean, sums.1 + errors[&probe])
        });
        let mean = loss / error;
        found.insert(
            group.to_owned(),
            Sensitivity {
                mean,
                ..Sensitivity::ONE
            },
        );
    }
    lift_sensitivities(&mut found);
    let mut losses = measured.clone();
    for (probe, loss) in &mut losses {
        if let (Some(sensitivity), Some(error)) = (found.get(&probe.0), errors.get(probe)) {
            loss.mean = sensitivity.loss(*error).mean;
        }
    }
    losses
}

/// Returns the geometric means of losses; arithmetic means if one of the two is not positive.
pub fn geometric_means(a: &Losses, b: &Losses) -> Losses {
    let mut losses = a.clone();
    for (probe, loss) in &mut losses {
        if let Some(other) = b.get(probe) {
            let product = loss.mean * other.mean;
            loss.mean = if loss.mean > 0.0 && product > 0.0 {
                product.sqrt()
            } else {
                f64::midpoint(loss.mean, other.mean)
            };
        }
    }
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(of: &[(&str, TensorType, f64)]) -> Losses {
        let loss = |mean| Loss {
            mean,
            variance: 0.5,
            chunks: 4,
        };
        of.iter()
            .map(|(group, ty, mean)| (((*group).to_owned(), *ty), loss(*mean)))
            .collect()
    }

    fn means(losses: &Losses) -> Vec<f64> {
        losses.values().map(|loss| loss.mean).collect()
    }

    #[test]
    fn the_measured_loss_of_a_group_is_shared_by_errors() {
        use TensorType::{F16, Q4_K, Q8_0};
        // By group, then by type in the order of the enum.
        let measured = losses(&[
            ("a", Q4_K, 9.0),
            ("a", Q8_0, 3.0),
            ("a", F16, 0.0),
            ("b", Q4_K, -1.0),
            ("c", Q4_K, 7.0),
        ]);
        let errors = [("a", Q4_K, 11.0), ("a", Q8_0, 1.0), ("b", Q4_K, 5.0), ("d", Q4_K, 1.0)];
        let errors = errors.map(|(group, ty, error)| ((group.to_owned(), ty), error)).into();
        let scaled = in_proportion(&measured, &errors, usize::MAX);
        let of = |group: &str, ty| scaled[&(group.to_owned(), ty)].mean;
        assert_eq!(scaled.len(), measured.len(), "what was not measured has no loss");
        assert_eq!((of("a", Q4_K), of("a", Q8_0), of("a", F16)), (11.0, 1.0, 0.0));
        assert_eq!(of("b", Q4_K), 5.0, "the least sensitivity above zero");
        assert_eq!(of("c", Q4_K), 7.0, "nothing is known of its errors");
        assert_eq!(scaled[&("a".to_owned(), Q4_K)].variance, 0.5);
        // Of two types the upper one is the middle.
        let scaled = in_proportion(&measured, &errors, 1);
        assert_eq!(scaled[&("a".to_owned(), Q4_K)].mean, 33.0);
    }

    #[test]
    fn geometric_means_need_positive_losses() {
        use TensorType::Q4_K;
        let a = losses(&[("a", Q4_K, 1.0), ("b", Q4_K, -1.0), ("c", Q4_K, 0.0), ("d", Q4_K, 3.0)]);
        let b = losses(&[("a", Q4_K, 4.0), ("b", Q4_K, 5.0), ("c", Q4_K, 0.0)]);
        assert_eq!(means(&geometric_means(&a, &b)), [2.0, 2.0, 0.0, 3.0]);
    }

    #[test]
    fn experts_count_as_often_as_they_are_routed_to() {
        assert_eq!(squared_error(&[6.0], &[100.0], 100.0), 6.0);
        // Two of four experts for each of 100 tokens.
        let counts = [100.0, 60.0, 40.0, 0.0];
        assert_eq!(squared_error(&[1.0, 5.0, 10.0, 1e9], &counts, 100.0), 1.0 + 3.0 + 4.0);
        assert_eq!(
            squared_error(&[1.0, 5.0], &[3.0], 100.0),
            3.0,
            "nobody counted them apart"
        );
        assert_eq!(squared_error(&[], &[], 0.0), 0.0);
    }

    #[test]
    fn probes_spread_over_the_sorted_types() {
        use TensorType::{IQ4_XS, Q2_K, Q4_K, Q6_K, Q8_0};
        let options = [Q8_0, Q2_K, Q6_K, IQ4_XS, Q4_K];
        assert_eq!(probed_types(&options, 1), [Q4_K]);
        assert_eq!(probed_types(&options, 2), [IQ4_XS, Q6_K]);
        assert_eq!(probed_types(&options, 9), [Q2_K, IQ4_XS, Q4_K, Q6_K, Q8_0]);
        assert!(probed_types(&[], 1).is_empty());
        assert!(probed_types(&options, 0).is_empty());
    }

    #[test]
    fn a_sensitivity_is_divergence_for_error() {
        let found = Sensitivity::of(&[(3.0, vec![0.3, 0.9]), (1.0, vec![0.1, 0.3])]).unwrap();
        assert!((found.mean - 0.2).abs() < 1e-15, "{found:?}");
        assert!((found.variance - 0.01).abs() < 1e-15, "{found:?}");
        let loss = found.loss(10.0);
        assert!(
            (loss.mean - 2.0).abs() < 1e-12 && (loss.variance - 1.0).abs() < 1e-12,
            "{loss:?}"
        );
        assert_eq!(loss.chunks, 2);
        assert_eq!(Sensitivity::of(&[(0.0, vec![0.3])]), None);
        assert_eq!(Sensitivity::of(&[(1.0, vec![])]), None);
        assert_eq!(Sensitivity::of(&[]), None);
        assert_eq!(Sensitivity::ONE.loss(7.0).mean, 7.0);
    }

    #[test]
    fn no_group_is_insensitive() {
        let named = |mean| Sensitivity {
            mean,
            ..Sensitivity::ONE
        };
        let mut found: BTreeMap<String, Sensitivity> = [("a", 0.5), ("b", -0.1), ("c", 0.2), ("d", 0.0)]
            .map(|(name, mean)| (name.to_owned(), named(mean)))
            .into();
        lift_sensitivities(&mut found);
        let means: Vec<f64> = found.values().map(|found| found.mean).collect();
        assert_eq!(means, [0.5, 0.2, 0.2, 0.2]);
    }
}
