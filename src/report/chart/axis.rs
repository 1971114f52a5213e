//! Scales of axes, and where their ticks are.

/// An axis: a range, linear or logarithmic.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

/// How much of an axis is left free on either side of the values.
const MARGIN: f64 = 0.06;

impl Axis {
    /// A linear axis on which all values from `low` to `high` have their place, with a margin around them.
    pub(super) fn linear(low: f64, high: f64) -> Self {
        // One value stands in the middle.
        let margin = if high > low {
            (high - low) * MARGIN
        } else {
            (low.abs() * 0.05).max(1.0)
        };
        Self {
            low: (low - margin).max(0.0),
            high: high + margin,
            log: false,
        }
    }

    /// The same, logarithmic; both must be more than 0.
    pub(super) fn log(low: f64, high: f64) -> Self {
        let (low, high) = (low.log10(), high.log10());
        let margin = if high > low {
            ((high - low) * MARGIN).max(0.02)
        } else {
            0.1
        };
        Self {
            low: low - margin,
            high: high + margin,
            log: true,
        }
    }

    /// Returns where a value is, 0 at the lower end and 1 at the upper one; what lies beyond is at the end.
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = match self.log {
            true if value <= 0.0 => self.low,
            true => value.log10(),
            false => value,
        };
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// Returns round values on the axis: at most `most`, and at least two where `most` allows.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        if self.log {
            self.log_ticks(most)
        } else {
            linear_ticks(self.low, self.high, most)
        }
    }

    fn log_ticks(&self, most: usize) -> Vec<f64> {
        const STEPS: [&[f64]; 4] = [
            &[1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0],
            &[1.0, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 2.0, 5.0],
            &[1.0],
        ];
        let decades = (self.low.floor() as i32)..=(self.high.ceil() as i32);
        let on_axis = |value: &f64| (self.low..=self.high).contains(&value.log10());
        for steps in STEPS {
            let ticks: Vec<f64> = decades
                .clone()
                .flat_map(|decade| steps.iter().map(move |step| step * 10_f64.powi(decade)))
                .filter(on_axis)
                .collect();
            if (2..=most).contains(&ticks.len()) {
                return ticks;
            }
            if ticks.len() < 2 {
                break;
            }
        }
        let (low, high) = (10_f64.powf(self.low), 10_f64.powf(self.high));
        if self.high - self.low < 1.0 {
            return linear_ticks(low, high, most);
        }
        // More decades than fit.
        let every = ((self.high - self.low) / most.max(1) as f64).ceil() as i32;
        decades
            .filter(|decade| decade.rem_euclid(every.max(1)) == 0)
            .map(|decade| 10_f64.powi(decade))
            .filter(on_axis)
            .collect()
    }
}

fn linear_ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
    let rough = (high - low) / most.max(1) as f64;
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * decade)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * decade);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|at| at as f64 * step).collect()
}

/// Writes a number with no more digits than it needs: `0.002`, `35`, `1.5e-5`.
pub(super) fn figure(value: f64) -> String {
    // Ticks are sums of round steps, off by a last bit.
    let rounded: f64 = format!("{value:.6e}").parse().unwrap_or(value);
    if rounded != 0.0 && rounded.abs() < 1e-4 {
        format!("{rounded:e}")
    } else {
        format!("{rounded}")
    }
}

/// The unit for sizes up to this one, and its name.
pub(super) fn unit(bytes: u64) -> (f64, &'static str) {
    const MIB: u64 = 1 << 20;
    const TEN_GIB: u64 = 10 << 30;
    match bytes {
        ..MIB => (1024.0, "KiB"),
        MIB..TEN_GIB => (f64::from(1 << 20), "MiB"),
        TEN_GIB.. => (f64::from(1 << 30), "GiB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let figures = |axis: Axis, most| axis.ticks(most).into_iter().map(figure).collect::<Vec<_>>();
        assert_eq!(figures(Axis::log(2e-4, 0.05), 6), ["0.001", "0.01"]);
        assert_eq!(
            figures(Axis::log(2e-4, 0.05), 10),
            ["0.0002", "0.0005", "0.001", "0.002", "0.005", "0.01", "0.02", "0.05"]
        );
        assert_eq!(
            figures(Axis::log(0.011, 0.0125), 6),
            ["0.011", "0.0115", "0.012", "0.0125", "0.013"]
        );
        assert_eq!(figures(Axis::log(3e-7, 4e-6), 6).first().unwrap(), "3e-7");
        assert_eq!(figures(Axis::linear(2.4, 5.7), 6), ["3", "4", "5"]);
        assert_eq!(figures(Axis::linear(7.0, 7.0), 5), ["6", "6.5", "7", "7.5", "8"]);
        let wide = Axis::log(1e-12, 1e3).ticks(5);
        assert!(wide.len() >= 2 && wide.len() <= 6, "{wide:?}");
    }

    #[test]
    fn values_outside_an_axis_are_at_its_ends() {
        let axis = Axis::log(0.001, 0.1);
        assert!((axis.place(0.01) - 0.5).abs() < 1e-9);
        assert!(axis.place(0.001) > 0.0 && axis.place(0.1) < 1.0);
        assert_eq!((axis.place(0.0), axis.place(-1.0), axis.place(9.0)), (0.0, 0.0, 1.0));
    }

    #[test]
    fn sizes_have_the_unit_that_suits_them() {
        assert_eq!(unit(500_000).1, "KiB");
        assert_eq!(unit(5 << 20).1, "MiB");
        assert_eq!(unit(5 << 30).1, "MiB");
        assert_eq!(unit(50 << 30).1, "GiB");
    }
}
