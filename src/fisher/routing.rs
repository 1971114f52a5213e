//! What errors cost in a mixture beyond the Fisher information: some tokens are routed to other experts.
//!
//! Gradients take the router's decisions as fixed. An error moves the router's logits in proportion to its size, and a token whose experts
//! were nearly tied gets others, which costs about the same however small the error was. So this part of the loss grows with the size
//! of an error, not with its square, and with the number of routers that come after the weight. With the estimate F of the factors,
//!
//! ```text
//! KLD = F + rate * routers * sqrt(F)
//! ```
//!
//! The rate is a property of the model. It is fitted to a few measured losses.

/// A measured loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The estimate of the factors, in nats.
    pub estimate: f64,
    /// The measured mean KL divergence, in nats.
    pub loss: f64,
    /// How many layers route tokens after the weight: for a weight of attention, its own layer, too.
    pub routers: u64,
}

/// The part of losses in a mixture that comes from other decisions of the routers.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Routing {
    rate: f64,
}

/// Rates are fitted between these bounds, as powers of 10.
const LOWEST: f64 = -8.0;
const HIGHEST: f64 = 0.0;
/// Steps of the search: 100 for a power of 10.
const STEPS: u32 = 800;

impl Routing {
    /// Fits the rate so that the logarithms of losses differ least from the measured ones, in the sum of squares. Measurements without
    /// routers after the weight, and those that are not positive, say nothing. Returns `None` if no measurement is left.
    pub fn fit(measured: &[Measured]) -> Option<Self> {
        let usable: Vec<Measured> = measured
            .iter()
            .copied()
            .filter(|one| one.routers > 0 && one.estimate > 0.0 && one.loss > 0.0)
            .filter(|one| one.estimate.is_finite() && one.loss.is_finite())
            .collect();
        if usable.is_empty() {
            return None;
        }
        let error = |routing: &Self| -> f64 {
            let terms = usable.iter().map(|one| {
                let loss = routing.loss(one.estimate, one.routers);
                (loss / one.loss).ln().powi(2)
            });
            terms.sum()
        };
        let rates = (0..=STEPS).map(|step| {
            let power = LOWEST + (HIGHEST - LOWEST) * f64::from(step) / f64::from(STEPS);
            Self {
                rate: 10_f64.powf(power),
            }
        });
        // Also none at all: then the estimates are right, or too large.
        let candidates = std::iter::once(Self::default()).chain(rates);
        candidates.min_by(|a, b| error(a).total_cmp(&error(b)))
    }

    /// Returns the rate, in square roots of nats for each router.
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns the loss of an error with that estimate in a weight with so many routers after it.
    pub fn loss(&self, estimate: f64, routers: u64) -> f64 {
        estimate + self.rate * routers as f64 * estimate.max(0.0).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fit_finds_the_rate_behind_noisy_measurements() {
        let truth = Routing { rate: 0.004 };
        let measured: Vec<Measured> = (1..20_u32)
            .map(|at| {
                let estimate = 1e-6 * f64::from(at).powi(3);
                let routers = u64::from(at % 6);
                let noise = if at % 2 == 0 { 1.2 } else { 1.0 / 1.2 };
                Measured {
                    estimate,
                    loss: truth.loss(estimate, routers) * noise,
                    routers,
                }
            })
            .collect();
        let found = Routing::fit(&measured).unwrap().rate();
        assert!((found / truth.rate - 1.0).abs() < 0.2, "{found}");
    }

    #[test]
    fn a_model_whose_estimates_hold_has_no_rate() {
        let measured = [1e-5, 1e-4, 1e-3].map(|estimate| Measured {
            estimate,
            loss: estimate * 0.9,
            routers: 2,
        });
        assert_eq!(Routing::fit(&measured), Some(Routing::default()));
        assert_eq!(Routing::default().loss(2.0, 5), 2.0);
    }

    #[test]
    fn measurements_that_say_nothing_fit_nothing() {
        let one = |estimate, loss, routers| Measured {
            estimate,
            loss,
            routers,
        };
        let useless = [
            one(1.0, 2.0, 0),
            one(0.0, 1.0, 1),
            one(1.0, f64::NAN, 1),
            one(1.0, -1.0, 1),
        ];
        assert_eq!(Routing::fit(&useless), None);
        assert_eq!(Routing::fit(&[]), None);
    }
}
