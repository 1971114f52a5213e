//! Numbers with units, kept exactly: `4.5 bpw`, `5700 MiB`, `95 %`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::prose::nearest;

/// A decimal number that is not negative, kept exactly in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decimal(u64);

const MILLION: u64 = 1_000_000;

impl Decimal {
    /// One.
    pub const ONE: Self = Self(MILLION);

    /// Wraps a number of millionths.
    pub const fn from_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    /// Returns the number of millionths.
    pub const fn millionths(self) -> u64 {
        self.0
    }

    /// Returns the nearest floating-point number.
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / MILLION as f64
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / MILLION, self.0 % MILLION);
        if part == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{part:06}").trim_end_matches('0'))
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Decimal {
    type Err = QuantityProblem;

    /// Reads digits with at most six after the point, without sign or exponent.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, rest) = split_number(text);
        if number.is_empty() || !rest.is_empty() {
            return Err(QuantityProblem::NotANumber(text.to_owned()));
        }
        let (digits, scale) = digits_and_scale(number)?;
        // digits / 10^scale * 10^6, exactly
        let millionths = match scale.checked_sub(6) {
            None | Some(0) => digits.checked_mul(10u128.pow(6 - scale)),
            Some(_) => return Err(QuantityProblem::TooFine),
        };
        let millionths = millionths
            .and_then(|m| u64::try_from(m).ok())
            .ok_or(QuantityProblem::TooLarge)?;
        Ok(Self(millionths))
    }
}

/// A number with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Quantity {
    /// Bytes; a fraction of a byte is dropped.
    Bytes(u64),
    /// Bits per weight.
    BitsPerWeight(Decimal),
    /// Hundredths.
    Percent(Decimal),
}

/// Units of bytes and how many bytes they are.
pub const BYTE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityProblem {
    /// It does not begin with a number, or is not one.
    #[error("`{0}` is not a number")]
    NotANumber(String),
    /// There is no unit.
    #[error("the unit is missing")]
    NoUnit,
    /// There is no such unit.
    #[error("unknown unit `{found}`")]
    UnknownUnit {
        /// As written.
        found: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// More than six digits after the point.
    #[error("it has more than six decimal places")]
    TooFine,
    /// It can't be kept.
    #[error("the number is too large")]
    TooLarge,
}

impl Quantity {
    /// Returns the quantity as part of a file name: `4.5bpw`, `5700MiB`, `95pct`.
    pub fn slug(self) -> String {
        match self {
            Self::Percent(percent) => format!("{percent}pct"),
            other => other.to_string().replace(' ', ""),
        }
    }

    /// Returns whether a text is a byte quantity's unit, a rate's or a share's: all the units there are.
    pub fn units() -> impl Iterator<Item = &'static str> {
        BYTE_UNITS.iter().map(|(unit, _)| *unit).chain(["bpw", "%"])
    }
}

impl FromStr for Quantity {
    type Err = QuantityProblem;

    /// Reads a number, spaces if you like, and a unit.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let (number, unit) = split_number(text);
        if number.is_empty() {
            return Err(QuantityProblem::NotANumber(text.to_owned()));
        }
        let unit = unit.trim_start();
        match unit {
            "" => return Err(QuantityProblem::NoUnit),
            "bpw" => return number.parse().map(Self::BitsPerWeight),
            "%" => return number.parse().map(Self::Percent),
            _ => {}
        }
        let Some((_, factor)) = BYTE_UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(QuantityProblem::UnknownUnit {
                found: unit.to_owned(),
                nearest: nearest(unit, Self::units()),
            });
        };
        let (digits, scale) = digits_and_scale(number)?;
        let bytes = digits
            .checked_mul(u128::from(*factor))
            .ok_or(QuantityProblem::TooLarge)?
            / 10u128.pow(scale);
        u64::try_from(bytes)
            .map(Self::Bytes)
            .map_err(|_| QuantityProblem::TooLarge)
    }
}

impl fmt::Display for Quantity {
    /// Writes the largest unit that keeps the number whole; reading it back gives the same quantity.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BitsPerWeight(rate) => write!(f, "{rate} bpw"),
            Self::Percent(percent) => write!(f, "{percent} %"),
            Self::Bytes(bytes) => {
                let whole = |(_, factor): &&(&str, u64)| *bytes != 0 && bytes % factor == 0;
                // The fewest digits win; among equals the binary unit, which stands later in the table.
                let best = BYTE_UNITS.iter().filter(whole).max_by_key(|(_, factor)| *factor);
                let (unit, factor) = best.copied().unwrap_or(("B", 1));
                write!(f, "{} {unit}", bytes / factor)
            }
        }
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Splits the digits, points and underscores at the start from the rest.
pub(crate) fn split_number(text: &str) -> (&str, &str) {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '_')))
        .unwrap_or(text.len());
    text.split_at(end)
}

/// Reads `12.50` as (1250, 2).
fn digits_and_scale(number: &str) -> Result<(u128, u32), QuantityProblem> {
    let not_a_number = || QuantityProblem::NotANumber(number.to_owned());
    let plain = number.replace('_', "");
    let (whole, part) = plain.split_once('.').unwrap_or((&plain, ""));
    if whole.is_empty() || part.contains('.') || (plain.ends_with('.')) {
        return Err(not_a_number());
    }
    let part = part.trim_end_matches('0');
    if part.len() > 12 {
        return Err(QuantityProblem::TooFine);
    }
    if whole.trim_start_matches('0').len() > 20 {
        return Err(QuantityProblem::TooLarge);
    }
    let digits = format!("{whole}{part}").parse().map_err(|_| not_a_number())?;
    Ok((digits, part.len() as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Quantity, QuantityProblem> {
        text.parse()
    }

    #[test]
    fn quantities_are_exact() {
        assert_eq!(
            read("4.5 bpw"),
            Ok(Quantity::BitsPerWeight(Decimal::from_millionths(4_500_000)))
        );
        assert_eq!(read("5700 MiB"), Ok(Quantity::Bytes(5700 << 20)));
        assert_eq!(read("6GB"), Ok(Quantity::Bytes(6_000_000_000)));
        assert_eq!(read(" 24  GiB "), Ok(Quantity::Bytes(24 << 30)));
        assert_eq!(read("1.5 KiB"), Ok(Quantity::Bytes(1536)));
        assert_eq!(
            read("5.7 GiB"),
            Ok(Quantity::Bytes(6_120_328_396)),
            "a fraction of a byte is dropped"
        );
        assert_eq!(
            read("95 %"),
            Ok(Quantity::Percent(Decimal::from_millionths(95_000_000)))
        );
        assert_eq!(read("1_000 B"), Ok(Quantity::Bytes(1000)));
        assert_eq!(read("18446744073709551615 B"), Ok(Quantity::Bytes(u64::MAX)));
    }

    #[test]
    fn errors_of_quantities_name_the_problem() {
        let unknown = |found: &str, nearest| {
            Err(QuantityProblem::UnknownUnit {
                found: found.to_owned(),
                nearest,
            })
        };
        assert_eq!(read("24 GiBs"), unknown("GiBs", Some("GiB")));
        assert_eq!(read("24 parsecs"), unknown("parsecs", None));
        assert_eq!(read("24"), Err(QuantityProblem::NoUnit));
        assert_eq!(read(""), Err(QuantityProblem::NotANumber(String::new())));
        assert_eq!(read("GiB"), Err(QuantityProblem::NotANumber("GiB".to_owned())));
        assert_eq!(read("-1 GiB"), Err(QuantityProblem::NotANumber("-1 GiB".to_owned())));
        assert_eq!(read("1.2.3 GiB"), Err(QuantityProblem::NotANumber("1.2.3".to_owned())));
        assert_eq!(read("1. GiB"), Err(QuantityProblem::NotANumber("1.".to_owned())));
        assert_eq!(read("1.2345678 bpw"), Err(QuantityProblem::TooFine));
        assert_eq!(read("18446744073709551616 B"), Err(QuantityProblem::TooLarge));
        assert_eq!(
            read("99999999999999999999999999999999999999999 B"),
            Err(QuantityProblem::TooLarge)
        );
        assert_eq!(read("99999999999999999999 bpw"), Err(QuantityProblem::TooLarge));
    }

    #[test]
    fn slugs_are_safe_in_file_names() {
        assert_eq!(read("4.5 bpw").unwrap().slug(), "4.5bpw");
        assert_eq!(read("95 %").unwrap().slug(), "95pct");
        assert_eq!(read("5700 MiB").unwrap().slug(), "5700MiB");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(bytes: u64, millionths: u64) {
            for quantity in [
                Quantity::Bytes(bytes),
                Quantity::Percent(Decimal::from_millionths(millionths)),
                Quantity::BitsPerWeight(Decimal::from_millionths(millionths)),
            ] {
                prop_assert_eq!(read(&quantity.to_string()), Ok(quantity));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = read(&text);
            let _ = text.parse::<Decimal>();
        }
    }
}
