//! The loss: minus the log-likelihood of labels, which are sampled from the model's own distribution.

use rayon::prelude::*;

use crate::digest::Hash;

/// What is to be predicted at the positions of a chunk.
#[derive(Debug, Clone, Copy)]
pub enum Labels<'a> {
    /// Labels that are sampled from the model's distribution, so that the mean of squared gradients is the Fisher information. The
    /// seed and the tokens of the chunk decide them.
    Sampled {
        /// Another seed samples other labels.
        seed: u64,
    },
    /// These: one for each position.
    Given(&'a [i32]),
}

/// Labels and the loss that they have.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// A token for each position.
    pub labels: Vec<i32>,
    /// The sum of their negative log-likelihoods in nats.
    pub sum: f64,
}

/// Returns a number in [0, 1) for a position of a chunk.
fn uniform(seed: &[u8; 32], position: usize) -> f64 {
    let mut bytes = [0; 40];
    bytes[..32].copy_from_slice(seed);
    bytes[32..].copy_from_slice(&(position as u64).to_le_bytes());
    let hash = Hash::of(&bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Turns rows of logits into the gradient of the loss by the logits, in place: the distribution minus 1 at the label. Positions
/// before `first` count nothing. Returns the labels, or nothing if one is not in the vocabulary.
pub(in crate::engine) fn to_gradient(
    logits: &mut [f32],
    vocabulary: usize,
    chunk: &[i32],
    first: usize,
    labels: Labels<'_>,
) -> Option<Loss> {
    let mut key = Vec::with_capacity(8 + chunk.len() * 4);
    if let Labels::Sampled { seed } = labels {
        key.extend_from_slice(&seed.to_le_bytes());
    }
    key.extend(chunk.iter().flat_map(|token| token.to_le_bytes()));
    let seed = *Hash::of(&key).as_bytes();
    let rows: Vec<Option<(i32, f64)>> = logits
        .par_chunks_mut(vocabulary.max(1))
        .enumerate()
        .map_init(Vec::new, |weights, (position, row)| {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            weights.clear();
            weights.extend(row.iter().map(|logit| f64::from(logit - greatest).exp()));
            let sum: f64 = weights.iter().sum();
            let label = match labels {
                Labels::Given(labels) => *labels.get(position)?,
                Labels::Sampled { .. } => {
                    let mut left = uniform(&seed, position) * sum;
                    let found = weights.iter().position(|weight| {
                        left -= weight;
                        left < 0.0
                    });
                    // Rounding may leave a little: the last token that can be drawn.
                    let last = || weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0);
                    i32::try_from(found.unwrap_or_else(last)).ok()?
                }
            };
            let at = usize::try_from(label).ok().filter(|at| *at < row.len())?;
            let loss = sum.ln() - f64::from(row[at] - greatest);
            if position < first {
                row.fill(0.0);
                return Some((label, 0.0));
            }
            for (logit, weight) in row.iter_mut().zip(weights.iter()) {
                *logit = (weight / sum) as f32;
            }
            row[at] -= 1.0;
            Some((label, loss))
        })
        .collect();
    let rows: Option<Vec<(i32, f64)>> = rows.into_iter().collect();
    let rows = rows?;
    Some(Loss {
        labels: rows.iter().map(|(label, _)| *label).collect(),
        sum: rows.iter().map(|(_, loss)| loss).sum(),
    })
}
