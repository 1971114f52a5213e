//! Measured losses as integers.

/// Sums of scaled losses stay below two to the power of this, so that products with bytes fit into 128 bits.
const BITS: i32 = 60;

/// The largest power of two that is used either way: multiplying by it is exact.
const MOST: i32 = 1000;

/// A loss that is no number.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("a loss must be a finite number, found {found}")]
pub struct ScaleError {
    /// The number.
    pub found: f64,
}

/// How losses become integers: one unit is `2^-exponent`, and a loss is rounded to the nearest unit, halves to even.
///
/// The exponent is the largest for which the losses of any assignment add up to less than `2^60` units. So an assignment's
/// true loss differs from its scaled one by at most half a unit for each group, that is by less than `groups * largest loss * 2^-59`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    exponent: i32,
}

impl Scale {
    /// Returns the scale for losses of a number of groups.
    ///
    /// # Errors
    /// [`ScaleError`] for an infinite loss, or one that is not a number.
    pub fn of(groups: usize, losses: impl IntoIterator<Item = f64>) -> Result<Self, ScaleError> {
        let mut largest = 0.0_f64;
        for loss in losses {
            if !loss.is_finite() {
                return Err(ScaleError { found: loss });
            }
            largest = largest.max(loss.abs());
        }
        // `largest` is below two to the power of this. Bits, not logarithms: those differ between platforms.
        let above = ((largest.to_bits() >> 52) & 0x7ff) as i32 - 1022;
        let many = (usize::BITS - groups.leading_zeros()).cast_signed();
        Ok(Self {
            exponent: if largest == 0.0 {
                0
            } else {
                (BITS - above - many).clamp(-MOST, MOST)
            },
        })
    }

    /// Returns the scale of this exponent, as a document holds it.
    pub fn from_exponent(exponent: i32) -> Option<Self> {
        (-MOST..=MOST).contains(&exponent).then_some(Self { exponent })
    }

    /// Returns the exponent: a unit is two to the power of minus this.
    pub fn exponent(self) -> i32 {
        self.exponent
    }

    /// Returns a loss in units; a loss larger than those the scale is for becomes the largest integer.
    pub fn units(self, loss: f64) -> i64 {
        (loss * power(self.exponent)).round_ties_even() as i64
    }

    /// Returns the loss that units stand for, to the precision of a float.
    pub fn loss(self, units: i64) -> f64 {
        self.loss_of(i128::from(units))
    }

    /// Returns the loss that a larger number of units stands for, to the precision of a float.
    pub fn loss_of(self, units: i128) -> f64 {
        units as f64 * power(-self.exponent)
    }
}

fn power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_losses_keep_their_digits_beside_large_ones() {
        let scale = Scale::of(1000, [1e-9, 1e3, -0.5]).unwrap();
        assert_eq!(scale.exponent(), 40);
        assert!((scale.loss(scale.units(1e-9)) - 1e-9).abs() <= 0.5 / 2_f64.powi(40));
        assert_eq!(scale.units(-0.5), -(1 << 39));
        assert!(1000 * scale.units(1e3) < 1 << 60);
    }

    #[test]
    fn halves_round_to_even_and_extreme_losses_stay_in_range() {
        let unit = Scale::from_exponent(0).unwrap();
        assert_eq!(
            [0.5, 1.5, 2.5, -0.5, -1.5].map(|loss| unit.units(loss)),
            [0, 2, 2, 0, -2]
        );
        assert_eq!(Scale::of(3, []).unwrap(), unit);
        assert_eq!(Scale::of(3, [0.0]).unwrap(), unit);
        for extreme in [f64::MIN_POSITIVE, f64::MAX, 5e-324, 1.0] {
            let scale = Scale::of(1, [extreme]).unwrap();
            assert!(scale.units(extreme) < 1 << 60, "{extreme}");
        }
        assert!(Scale::of(1, [f64::NAN]).is_err());
        assert!(Scale::of(1, [1.0, f64::NEG_INFINITY]).is_err());
        assert_eq!(Scale::from_exponent(1001), None);
    }
}
