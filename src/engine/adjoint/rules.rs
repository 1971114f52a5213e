//! The chain rule of operations on single numbers and on rows. Slices are dense.

use super::graph::Gate;
use super::graph::Rope;
use super::graph::Unary;
use super::strided::map;
use super::strided::map_rows;

/// The factors of ggml's GELU.
const GELU_CUBIC: f32 = 0.044_715;
const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const GELU_QUICK: f32 = 1.702;
const ROOT_HALF: f32 = std::f32::consts::FRAC_1_SQRT_2;

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Returns the error function with an absolute error of at most 1.5e-7 (Abramowitz and Stegun, 7.1.26). Gradients multiply it with
/// numbers of other rounding errors of that size.
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let sum = t * (0.254_829_6 + t * (-0.284_496_73 + t * (1.421_413_8 + t * (-1.453_152_1 + t * 1.061_405_4))));
    (1.0 - sum * (-x * x).exp()).copysign(x)
}

/// Returns what a function gives, for those that gates use. `None` for others.
fn gate_value(unary: Unary, x: f32) -> Option<f32> {
    Some(match unary {
        Unary::Relu => x.max(0.0),
        Unary::Silu => x * sigmoid(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::GeluQuick => x * sigmoid(GELU_QUICK * x),
        Unary::GeluErf => 0.5 * x * (1.0 + erf(x * ROOT_HALF)),
        Unary::Gelu => 0.5 * x * (1.0 + (ROOT_2_OVER_PI * x * (1.0 + GELU_CUBIC * x * x)).tanh()),
        _ => return None,
    })
}

/// Returns the derivative of a function. `x` is what it is applied to; for [`Unary::Root`] it is the result.
fn slope(unary: Unary, x: f32) -> f32 {
    match unary {
        Unary::Abs => {
            if x == 0.0 {
                0.0
            } else {
                x.signum()
            }
        }
        Unary::Neg => -1.0,
        Unary::Tanh => {
            let y = x.tanh();
            1.0 - y * y
        }
        Unary::Elu => {
            if x > 0.0 {
                1.0
            } else {
                x.exp()
            }
        }
        Unary::Relu => f32::from(u8::from(x > 0.0)),
        Unary::Sigmoid => {
            let y = sigmoid(x);
            y * (1.0 - y)
        }
        Unary::Silu => {
            let y = sigmoid(x);
            y * (1.0 + x * (1.0 - y))
        }
        Unary::GeluQuick => {
            let y = sigmoid(GELU_QUICK * x);
            y * (1.0 + GELU_QUICK * x * (1.0 - y))
        }
        Unary::GeluErf => {
            let density = (-0.5 * x * x).exp() * (0.5 * ROOT_2_OVER_PI);
            0.5 * (1.0 + erf(x * ROOT_HALF)) + x * density
        }
        Unary::Gelu => {
            let y = (ROOT_2_OVER_PI * x * (1.0 + GELU_CUBIC * x * x)).tanh();
            let inner = ROOT_2_OVER_PI * (1.0 + 3.0 * GELU_CUBIC * x * x);
            0.5 * (1.0 + y) + 0.5 * x * (1.0 - y * y) * inner
        }
        Unary::Exp => x.exp(),
        Unary::Softplus => sigmoid(x),
        Unary::Square => 2.0 * x,
        Unary::Root => {
            if x > 0.0 {
                0.5 / x
            } else {
                0.0
            }
        }
        Unary::Log => 1.0 / x,
        Unary::Clamp(least, most) => f32::from(u8::from(least < x && x < most)),
    }
}

/// A function of each number.
pub(super) fn unary(unary: Unary, x: &[f32], g: &[f32]) -> Vec<f32> {
    map(g.len(), |at| g[at] * slope(unary, x[at]))
}

/// A gated linear unit: returns the gradients of the gate and of the other half, or nothing for a gate without a rule.
pub(super) fn glu(gate: Gate, x: &[f32], y: &[f32], g: &[f32]) -> Option<(Vec<f32>, Vec<f32>)> {
    let both = |each: &(dyn Fn(f32, f32) -> (f32, f32) + Sync)| {
        let first = map(g.len(), |at| g[at] * each(x[at], y[at]).0);
        let second = map(g.len(), |at| g[at] * each(x[at], y[at]).1);
        (first, second)
    };
    let inside = |value: f32, limit: f32| f32::from(u8::from(-limit < value && value < limit));
    Some(match gate {
        Gate::Of(function) => {
            gate_value(function, 0.0)?;
            both(&|x, y| (slope(function, x) * y, gate_value(function, x).unwrap_or(0.0)))
        }
        Gate::Oai { alpha, limit } => both(&|x, y| {
            let low = x.min(limit);
            let s = sigmoid(alpha * low);
            let along = s * (1.0 + alpha * low * (1.0 - s)) * f32::from(u8::from(x < limit));
            (along * (y.clamp(-limit, limit) + 1.0), low * s * inside(y, limit))
        }),
        Gate::Clamped { limit } => both(&|x, y| {
            let low = x.min(limit);
            let along = slope(Unary::Silu, low) * f32::from(u8::from(x < limit));
            (along * y.clamp(-limit, limit), low * sigmoid(low) * inside(y, limit))
        }),
    })
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Rows divided by their root mean square.
pub(super) fn rms_norm(epsilon: f32, columns: usize, x: &[f32], g: &[f32]) -> Vec<f32> {
    map_rows(g.len() / columns.max(1), columns, |row, out| {
        let (x, g) = (&x[row * columns..][..columns], &g[row * columns..][..columns]);
        let mean = dot(x, x) / columns as f64;
        let r = 1.0 / (mean + f64::from(epsilon)).sqrt();
        let along = dot(x, g) / columns as f64 * r * r * r;
        for ((out, x), g) in out.iter_mut().zip(x).zip(g) {
            *out = (r * f64::from(*g) - along * f64::from(*x)) as f32;
        }
    })
}

/// Rows minus their mean, divided by their standard deviation.
pub(super) fn norm(epsilon: f32, columns: usize, x: &[f32], g: &[f32]) -> Vec<f32> {
    map_rows(g.len() / columns.max(1), columns, |row, out| {
        let (x, g) = (&x[row * columns..][..columns], &g[row * columns..][..columns]);
        let n = columns as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        let r = 1.0 / (variance + f64::from(epsilon)).sqrt();
        let level = g.iter().map(|g| f64::from(*g)).sum::<f64>() / n;
        let along = x
            .iter()
            .zip(g)
            .map(|(x, g)| (f64::from(*x) - mean) * f64::from(*g))
            .sum::<f64>()
            / n;
        for ((out, x), g) in out.iter_mut().zip(x).zip(g) {
            *out = (r * (f64::from(*g) - level - r * r * along * (f64::from(*x) - mean))) as f32;
        }
    })
}

/// Rows divided by their length, or by epsilon if that is greater.
pub(super) fn l2_norm(epsilon: f32, columns: usize, x: &[f32], g: &[f32]) -> Vec<f32> {
    map_rows(g.len() / columns.max(1), columns, |row, out| {
        let (x, g) = (&x[row * columns..][..columns], &g[row * columns..][..columns]);
        let length = dot(x, x).sqrt();
        let r = 1.0 / length.max(f64::from(epsilon));
        let along = if length > f64::from(epsilon) {
            dot(x, g) * r * r * r
        } else {
            0.0
        };
        for ((out, x), g) in out.iter_mut().zip(x).zip(g) {
            *out = (r * f64::from(*g) - along * f64::from(*x)) as f32;
        }
    })
}

/// Softmax of rows times a factor. `y` is its result. Terms of the denominator that have no column change nothing here.
pub(super) fn soft_max(scale: f32, columns: usize, y: &[f32], g: &[f32]) -> Vec<f32> {
    map_rows(g.len() / columns.max(1), columns, |row, out| {
        let (y, g) = (&y[row * columns..][..columns], &g[row * columns..][..columns]);
        let mean = dot(y, g) as f32;
        for ((out, y), g) in out.iter_mut().zip(y).zip(g) {
            *out = scale * y * (g - mean);
        }
    })
}

/// A rotary position embedding: turns gradients back. `counts` are those of its output; there is a position for each step of its
/// third dimension. Returns nothing if there are too few positions or factors.
///
/// The angles are those of ggml's `rope_yarn` and `ggml_rope_cache_init`.
pub(super) fn rope(
    rope: &Rope,
    counts: [usize; 4],
    positions: &[i64],
    factors: Option<&[f32]>,
    g: &[f32],
) -> Option<Vec<f32>> {
    let pairs = rope.dimensions / 2;
    let is_short = factors.is_some_and(|factors| factors.len() < pairs);
    if positions.len() < counts[2] || is_short || rope.first + rope.dimensions > counts[0] {
        return None;
    }
    let scale = rope.base.powf(-2.0 / rope.dimensions as f32);
    let limit = |turns: f32| {
        let ratio = rope.original_context as f32 / (turns * 2.0 * std::f32::consts::PI);
        rope.dimensions as f32 * ratio.ln() / (2.0 * rope.base.ln())
    };
    let low = limit(rope.beta_fast).floor().max(0.0);
    let high = limit(rope.beta_slow).ceil().min(rope.dimensions as f32 - 1.0);
    let magnitude = if rope.extrapolation == 0.0 {
        rope.magnitude
    } else {
        rope.magnitude * (1.0 + 0.1 * (1.0 / rope.scale).ln())
    };
    let turns = map_rows(counts[2], pairs * 2, |token, out| {
        let mut theta = positions[token] as f32;
        for (pair, out) in out.chunks_exact_mut(2).enumerate() {
            let extrapolated = theta / factors.map_or(1.0, |factors| factors[pair]);
            let interpolated = rope.scale * extrapolated;
            let mut angle = interpolated;
            if rope.extrapolation != 0.0 {
                let ramp = 1.0 - ((pair as f32 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                let mix = ramp * rope.extrapolation;
                angle = interpolated * (1.0 - mix) + extrapolated * mix;
            }
            out[0] = angle.cos() * magnitude;
            out[1] = angle.sin() * magnitude;
            theta *= scale;
        }
    });
    let columns = counts[0];
    let rows: usize = counts[1..].iter().product();
    Some(map_rows(rows, columns, |row, out| {
        let g = &g[row * columns..][..columns];
        out.copy_from_slice(g);
        let token = row / counts[1] % counts[2];
        for (pair, turn) in turns[token * pairs * 2..][..pairs * 2].chunks_exact(2).enumerate() {
            let (a, b) = if rope.halves {
                (rope.first + pair, rope.first + pair + pairs)
            } else {
                (rope.first + 2 * pair, rope.first + 2 * pair + 1)
            };
            out[a] = g[a] * turn[0] + g[b] * turn[1];
            out[b] = g[b] * turn[0] - g[a] * turn[1];
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers from -2 to 2 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Compares gradients with the change of the sum of `g` times what `forward` gives.
    fn check(what: &str, x: &[f32], g: &[f32], found: &[f32], forward: impl Fn(&[f64]) -> Vec<f64>) {
        let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        for at in 0..x.len() {
            let moved = |step: f64| -> f64 {
                let mut x = x.clone();
                x[at] += step;
                forward(&x).iter().zip(g).map(|(y, g)| y * f64::from(*g)).sum()
            };
            let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            let difference = (f64::from(found[at]) - expected).abs();
            assert!(
                difference < 1e-4 * (1.0 + expected.abs()),
                "{what} at {}: {} for {expected}",
                x[at],
                found[at]
            );
        }
    }

    fn s(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    /// The error function by the trapezoidal rule.
    fn exact_erf(x: f64) -> f64 {
        let steps = 4000;
        let width = x / f64::from(steps);
        let inner: f64 = (1..steps).map(|at| (-(width * f64::from(at)).powi(2)).exp()).sum();
        (inner + 0.5 * (1.0 + (-x * x).exp())) * width * 2.0 / std::f64::consts::PI.sqrt()
    }

    fn exact(function: Unary, x: f64) -> f64 {
        match function {
            Unary::Abs => x.abs(),
            Unary::Neg => -x,
            Unary::Tanh => x.tanh(),
            Unary::Elu if x > 0.0 => x,
            Unary::Elu => x.exp_m1(),
            Unary::Relu => x.max(0.0),
            Unary::Sigmoid => s(x),
            Unary::Gelu => 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * x * (1.0 + 0.044_715 * x * x)).tanh()),
            Unary::GeluQuick => x * s(1.702 * x),
            Unary::GeluErf => 0.5 * x * (1.0 + exact_erf(x / 2.0_f64.sqrt())),
            Unary::Silu => x * s(x),
            Unary::Exp => x.exp(),
            Unary::Softplus => (1.0 + x.exp()).ln(),
            Unary::Square => x * x,
            Unary::Root => x.sqrt(),
            Unary::Log => x.ln(),
            Unary::Clamp(least, most) => x.clamp(f64::from(least), f64::from(most)),
        }
    }

    #[test]
    fn functions_of_one_number() {
        let (x, g) = (numbers(40, 1), numbers(40, 2));
        let positive: Vec<f32> = x.iter().map(|x| x.abs() + 0.1).collect();
        for function in [
            Unary::Abs,
            Unary::Neg,
            Unary::Tanh,
            Unary::Elu,
            Unary::Relu,
            Unary::Sigmoid,
            Unary::Gelu,
            Unary::GeluQuick,
            Unary::GeluErf,
            Unary::Silu,
            Unary::Exp,
            Unary::Softplus,
            Unary::Square,
            Unary::Log,
            Unary::Clamp(-0.5, 0.7),
        ] {
            let x = if function == Unary::Log { &positive } else { &x };
            let name = format!("{function:?}");
            check(&name, x, &g, &unary(function, x, &g), |x| {
                x.iter().map(|x| exact(function, *x)).collect()
            });
        }
        let roots: Vec<f32> = positive.iter().map(|x| x.sqrt()).collect();
        check("Root", &positive, &g, &unary(Unary::Root, &roots, &g), |x| {
            x.iter().map(|x| x.sqrt()).collect()
        });
    }

    #[test]
    fn gated_units() {
        let (x, y, g) = (numbers(40, 3), numbers(40, 4), numbers(40, 5));
        let gates = [
            Unary::Relu,
            Unary::Silu,
            Unary::Gelu,
            Unary::GeluErf,
            Unary::GeluQuick,
            Unary::Sigmoid,
        ];
        let all = gates.map(Gate::Of).into_iter().chain([
            Gate::Oai {
                alpha: 1.702,
                limit: 0.9,
            },
            Gate::Clamped { limit: 0.9 },
        ]);
        for gate in all {
            let forward = |x: f64, y: f64| match gate {
                Gate::Of(function) => exact(function, x) * y,
                Gate::Oai { alpha, limit } => {
                    let (low, limit) = (x.min(f64::from(limit)), f64::from(limit));
                    low * s(f64::from(alpha) * low) * (y.clamp(-limit, limit) + 1.0)
                }
                Gate::Clamped { limit } => {
                    let (low, limit) = (x.min(f64::from(limit)), f64::from(limit));
                    low * s(low) * y.clamp(-limit, limit)
                }
            };
            let (by_x, by_y) = glu(gate, &x, &y, &g).unwrap();
            let name = format!("{gate:?}");
            check(&name, &x, &g, &by_x, |moved| {
                moved.iter().zip(&y).map(|(x, y)| forward(*x, f64::from(*y))).collect()
            });
            check(&name, &y, &g, &by_y, |moved| {
                x.iter().zip(moved).map(|(x, y)| forward(f64::from(*x), *y)).collect()
            });
        }
        assert!(glu(Gate::Of(Unary::Log), &x, &y, &g).is_none());
    }

    #[test]
    fn rows() {
        let columns = 7;
        let (x, g) = (numbers(3 * columns, 6), numbers(3 * columns, 7));
        let each =
            |x: &[f64], row: &dyn Fn(&[f64]) -> Vec<f64>| -> Vec<f64> { x.chunks(columns).flat_map(row).collect() };
        let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
        let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
        check("RMS_NORM", &x, &g, &rms_norm(1e-3, columns, &x, &g), |x| {
            each(x, &|x| {
                let r = (square(x) / columns as f64 + f64::from(1e-3_f32)).sqrt();
                x.iter().map(|x| x / r).collect()
            })
        });
        check("NORM", &x, &g, &norm(1e-3, columns, &x, &g), |x| {
            each(x, &|x| {
                let level = mean(x);
                let centered: Vec<f64> = x.iter().map(|x| x - level).collect();
                let r = (square(&centered) / columns as f64 + f64::from(1e-3_f32)).sqrt();
                centered.iter().map(|x| x / r).collect()
            })
        });
        for epsilon in [1e-3, 100.0] {
            check("L2_NORM", &x, &g, &l2_norm(epsilon, columns, &x, &g), |x| {
                each(x, &|x| {
                    let r = square(x).sqrt().max(f64::from(epsilon));
                    x.iter().map(|x| x / r).collect()
                })
            });
        }
        let soft = |x: &[f64]| -> Vec<f64> {
            each(x, &|x| {
                // With a term in the denominator that has no column.
                let sum: f64 = x.iter().map(|x| (0.7 * x).exp()).sum::<f64>() + 0.5;
                x.iter().map(|x| (0.7 * x).exp() / sum).collect()
            })
        };
        let y: Vec<f32> = soft(&x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>())
            .iter()
            .map(|y| *y as f32)
            .collect();
        check("SOFT_MAX", &x, &g, &soft_max(0.7, columns, &y, &g), soft);
    }

    #[test]
    fn turned_pairs_turn_back() {
        for halves in [false, true] {
            let turn = Rope {
                dimensions: 6,
                first: 1,
                halves,
                original_context: 64,
                base: 100.0,
                scale: 1.0,
                extrapolation: 0.0,
                magnitude: 1.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
            };
            let counts = [8, 2, 3, 1];
            let g = numbers(48, 8);
            let found = rope(&turn, counts, &[0, 5, 9], None, &g).unwrap();
            // The first token is not turned; lengths stay; numbers outside stay.
            assert_eq!(found[..16], g[..16]);
            assert!((dot(&found, &found) / dot(&g, &g) - 1.0).abs() < 1e-6);
            assert_eq!((found[24], found[31]), (g[24], g[31]));
            assert!(found[26] != g[26]);
            assert!(rope(&turn, counts, &[0, 5], None, &g).is_none());
            assert!(rope(&turn, counts, &[0, 5, 9], Some(&[1.0]), &g).is_none());
        }
    }
}
