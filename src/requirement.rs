//! Requirements of a gate: `kld_mean < 0.02`, `bytes <= 5700 MiB`, `ppl <= 1.05 * baseline`.

use std::fmt;
use std::ops::Range;

use serde::{Serialize, Serializer};

use crate::prose;
use crate::prose::nearest;
use crate::quantity::Quantity;
use crate::quantity::QuantityProblem;

/// A figure of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Figure {
    /// Size of the file.
    Bytes,
    /// Bits per weight.
    Bpw,
    /// Perplexity.
    Ppl,
    /// Mean divergence from the reference, in nats.
    KldMean,
    /// Its median.
    KldMedian,
    /// Its 90th percentile.
    KldP90,
    /// Its 95th percentile.
    KldP95,
    /// Its 99th percentile.
    KldP99,
    /// Its 99.9th percentile.
    KldP999,
    /// Its maximum.
    KldMax,
    /// The share (0 to 1) of tokens where candidate and reference like the same token best.
    Top1Agreement,
    /// Root mean square (0 to 1) of the change of the true token's probability.
    RmsDp,
}

impl Figure {
    /// All figures.
    pub const ALL: [Self; 12] = [
        Self::Bytes,
        Self::Bpw,
        Self::Ppl,
        Self::KldMean,
        Self::KldMedian,
        Self::KldP90,
        Self::KldP95,
        Self::KldP99,
        Self::KldP999,
        Self::KldMax,
        Self::Top1Agreement,
        Self::RmsDp,
    ];

    /// Returns the word that recipes use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Bpw => "bpw",
            Self::Ppl => "ppl",
            Self::KldMean => "kld_mean",
            Self::KldMedian => "kld_median",
            Self::KldP90 => "kld_p90",
            Self::KldP95 => "kld_p95",
            Self::KldP99 => "kld_p99",
            Self::KldP999 => "kld_p999",
            Self::KldMax => "kld_max",
            Self::Top1Agreement => "top1_agreement",
            Self::RmsDp => "rms_dp",
        }
    }

    /// Returns whether the figure is there only after an evaluation.
    pub const fn needs_eval(self) -> bool {
        !matches!(self, Self::Bytes | Self::Bpw)
    }

    /// Returns whether the figure compares with the reference's probabilities (`kld = true`).
    pub const fn needs_kld(self) -> bool {
        self.needs_eval() && !matches!(self, Self::Ppl)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Figure {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Comparison {
    /// `<`
    Less,
    /// `<=`
    AtMost,
    /// `>`
    Greater,
    /// `>=`
    AtLeast,
}

impl Comparison {
    /// Returns the sign.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }

    /// Returns whether `left` compares so to `right`; never, when one is not a number.
    pub fn holds(self, left: f64, right: f64) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::Greater => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

/// What a figure is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Bound {
    /// A number; a percentage was divided by 100.
    Number {
        /// Its value, finite.
        value: f64,
        /// As written, with its unit.
        text: String,
    },
    /// A size in bytes.
    Size(u64),
    /// The baseline's figure, times a factor.
    Baseline {
        /// The factor, finite.
        factor: f64,
        /// The factor as written; `None` where there is none.
        text: Option<String>,
    },
}

/// One requirement.
#[derive(Debug, Clone, PartialEq)]
pub struct Requirement {
    /// What is looked at.
    pub figure: Figure,
    /// How it is compared.
    pub op: Comparison,
    /// With what.
    pub bound: Bound,
}

impl fmt::Display for Requirement {
    /// Writes the requirement as a recipe would; reading it back gives the same one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ", self.figure, self.op.as_str())?;
        match &self.bound {
            Bound::Number { text, .. } => f.write_str(text),
            Bound::Size(bytes) => Quantity::Bytes(*bytes).fmt(f),
            Bound::Baseline { text: Some(text), .. } => write!(f, "{text} * baseline"),
            Bound::Baseline { text: None, .. } => f.write_str("baseline"),
        }
    }
}

impl Serialize for Requirement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Returns a number with so many significant digits, never in exponential form.
fn significant(value: f64, digits: u8) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let exponent = value.abs().log10().floor() as i64;
    let decimals = usize::try_from(i64::from(digits) - 1 - exponent).unwrap_or(0);
    format!("{value:.decimals$}")
}

impl Figure {
    /// Writes a value of the figure, rounded, with its unit if it has one. A `finer` value is written with more digits.
    fn shown(self, value: f64, finer: u8) -> String {
        match self {
            Self::Bytes if finer == 0 => prose::bytes(value as u64),
            Self::Bytes => prose::count(value as u64, "byte"),
            Self::Bpw => format!("{value:.*} bpw", usize::from(3 + finer)),
            Self::Ppl => format!("{value:.*}", usize::from(3 + finer)),
            Self::Top1Agreement | Self::RmsDp => format!("{:.*} %", usize::from(2 + finer), value * 100.0),
            _ => significant(value, 3 + finer),
        }
    }

    /// Reads back what [`Self::shown`] wrote.
    fn read(shown: &str) -> Option<f64> {
        let (number, unit) = shown.split_once(' ').unwrap_or((shown, ""));
        let value: f64 = number.replace(',', "").parse().ok()?;
        Some(match unit {
            "KiB" => value * 1024.0,
            "MiB" => value * 1024.0 * 1024.0,
            "GiB" => value * 1024.0 * 1024.0 * 1024.0,
            "TiB" => value * 1024.0 * 1024.0 * 1024.0 * 1024.0,
            "%" => value / 100.0,
            _ => value,
        })
    }
}

impl Requirement {
    /// Writes a value of its figure, rounded, with its unit. The rounded value compares with `bound` as the exact one does: a
    /// value that misses the bound by little is written with as many digits as that takes.
    pub fn shown(&self, value: f64, bound: f64) -> String {
        const MOST: u8 = 14;
        let holds = self.op.holds(value, bound);
        let same = |shown: &String| {
            let read = Figure::read(shown);
            read.is_some_and(|rounded| self.op.holds(rounded, bound) == holds)
        };
        let mut all = (0..=MOST).map(|finer| self.figure.shown(value, finer));
        all.find(same).unwrap_or_else(|| value.to_string())
    }
}

/// Why a text is not a requirement, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct RequirementError {
    /// What is wrong.
    pub what: RequirementProblem,
    /// The bytes of the text that are meant.
    pub at: Range<usize>,
}

/// Why a text is not a requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequirementProblem {
    /// There is no such figure.
    #[error("unknown figure `{found}`")]
    UnknownFigure {
        /// As written.
        found: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// Nothing compares.
    #[error("a comparison is missing")]
    NoComparison,
    /// A sign that is not a comparison of the language.
    #[error("`{0}` is not a comparison")]
    BadComparison(String),
    /// Nothing to compare with.
    #[error("there is nothing to compare with")]
    NoBound,
    /// Not a number, quantity or `baseline`.
    #[error("`{0}` is neither a number nor `baseline`")]
    BadBound(String),
    /// A quantity with something wrong.
    #[error("{0}")]
    Quantity(QuantityProblem),
    /// A unit that the figure does not have.
    #[error("`{figure}` is not measured in `{unit}`")]
    WrongUnit {
        /// The figure.
        figure: Figure,
        /// The unit.
        unit: String,
    },
}

impl Requirement {
    /// Reads `FIGURE OP BOUND`.
    pub fn parse(text: &str) -> Result<Self, RequirementError> {
        let fail = |what, at: Range<usize>| Err(RequirementError { what, at });
        let sign = |c: char| matches!(c, '<' | '>' | '=' | '!');
        let Some(start) = text.find(sign) else {
            let word = trimmed(text, 0..text.find(char::is_whitespace).unwrap_or(text.len()));
            return match Figure::ALL.iter().find(|figure| figure.as_str() == &text[word.clone()]) {
                None if !word.is_empty() => fail(unknown_figure(&text[word.clone()]), word),
                _ => fail(RequirementProblem::NoComparison, 0..text.len()),
            };
        };
        let end = text[start..]
            .find(|c| !sign(c))
            .map_or(text.len(), |length| start + length);
        let word = trimmed(text, 0..start);
        let Some(figure) = Figure::ALL
            .into_iter()
            .find(|figure| figure.as_str() == &text[word.clone()])
        else {
            return fail(
                unknown_figure(&text[word.clone()]),
                if word.is_empty() { start..end } else { word },
            );
        };
        let op = match &text[start..end] {
            "<" => Comparison::Less,
            "<=" => Comparison::AtMost,
            ">" => Comparison::Greater,
            ">=" => Comparison::AtLeast,
            other => return fail(RequirementProblem::BadComparison(other.to_owned()), start..end),
        };
        let right = trimmed(text, end..text.len());
        if right.is_empty() {
            return fail(RequirementProblem::NoBound, start..end);
        }
        match bound(figure, &text[right.clone()]) {
            Ok(bound) => Ok(Self { figure, op, bound }),
            Err(what) => fail(what, right),
        }
    }
}

fn unknown_figure(found: &str) -> RequirementProblem {
    let nearest = nearest(found, Figure::ALL.iter().map(|figure| figure.as_str()));
    RequirementProblem::UnknownFigure {
        found: found.to_owned(),
        nearest,
    }
}

fn bound(figure: Figure, text: &str) -> Result<Bound, RequirementProblem> {
    if text == "baseline" {
        return Ok(Bound::Baseline {
            factor: 1.0,
            text: None,
        });
    }
    if let Some((left, right)) = text.split_once('*') {
        let (left, right) = (left.trim(), right.trim());
        let (("baseline", factor) | (factor, "baseline")) = (left, right) else {
            return Err(RequirementProblem::BadBound(text.to_owned()));
        };
        let value = number(factor).ok_or_else(|| RequirementProblem::BadBound(factor.to_owned()))?;
        return Ok(Bound::Baseline {
            factor: value,
            text: Some(factor.to_owned()),
        });
    }
    if let Some(value) = number(text) {
        if figure == Figure::Bytes {
            let whole = text.parse().ok();
            return whole
                .map(Bound::Size)
                .ok_or_else(|| RequirementProblem::BadBound(text.to_owned()));
        }
        return Ok(Bound::Number {
            value,
            text: text.to_owned(),
        });
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(RequirementProblem::BadBound(text.to_owned()));
    }
    let quantity: Quantity = text.parse().map_err(RequirementProblem::Quantity)?;
    match (figure, quantity) {
        (Figure::Bytes, Quantity::Bytes(bytes)) => Ok(Bound::Size(bytes)),
        (Figure::Bpw, Quantity::BitsPerWeight(rate)) => Ok(Bound::Number {
            value: rate.as_f64(),
            text: quantity.to_string(),
        }),
        (Figure::Top1Agreement | Figure::RmsDp, Quantity::Percent(percent)) => Ok(Bound::Number {
            value: percent.as_f64() / 100.0,
            text: quantity.to_string(),
        }),
        _ => {
            let unit = text
                .trim_start_matches(|c: char| !c.is_alphabetic() && c != '%')
                .to_owned();
            Err(RequirementProblem::WrongUnit { figure, unit })
        }
    }
}

/// Reads a plain decimal number with an exponent if need be; not `inf`, `nan` or a sign.
fn number(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'-' | b'+'));
    let value: f64 = if plain { text.parse().ok()? } else { return None };
    value.is_finite().then_some(value)
}

/// Returns the part of `range` without white space at its ends.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Requirement {
        Requirement::parse(text).unwrap()
    }

    fn problem(text: &str) -> (RequirementProblem, &str) {
        let error = Requirement::parse(text).unwrap_err();
        (error.what, &text[error.at])
    }

    #[test]
    fn rounded_figures_compare_as_the_exact_ones() {
        for (require, value, bound, expected) in [
            ("kld_mean < 0.004", 0.004_991_2, 0.004, "0.00499"),
            ("kld_mean < 0.004", 12.3456, 0.004, "12.3"),
            ("kld_mean < 0.004", 0.004_000_1, 0.004, "0.00400"),
            ("kld_mean <= 0.004", 0.004_000_1, 0.004, "0.0040001"),
            ("bytes <= 6 MiB", 7_000_000.0, 6_291_456.0, "6.68 MiB"),
            ("bytes <= 6 MiB", 6_291_457.0, 6_291_456.0, "6,291,457 bytes"),
            ("top1_agreement >= 90 %", 0.889_99, 0.9, "89.00 %"),
            ("top1_agreement >= 90 %", 0.899_99, 0.9, "89.999 %"),
            ("bpw < 4.5", 4.512_34, 4.5, "4.512 bpw"),
            ("ppl < 20", 21.234_56, 20.0, "21.235"),
        ] {
            let require = Requirement::parse(require).unwrap();
            assert_eq!(require.shown(value, bound), expected, "{require}");
        }
    }

    #[test]
    fn requirements_are_read() {
        let mean = read("kld_mean < 0.02");
        assert_eq!((mean.figure, mean.op), (Figure::KldMean, Comparison::Less));
        assert_eq!(
            mean.bound,
            Bound::Number {
                value: 0.02,
                text: "0.02".to_owned()
            }
        );
        assert_eq!(read("bytes<=5700MiB").bound, Bound::Size(5700 << 20));
        assert_eq!(read("bytes <= 5977").bound, Bound::Size(5977));
        assert_eq!(
            read("kld_p999 >= baseline").bound,
            Bound::Baseline {
                factor: 1.0,
                text: None
            }
        );
        assert_eq!(
            read("ppl <= 1.05 * baseline").bound,
            Bound::Baseline {
                factor: 1.05,
                text: Some("1.05".to_owned())
            }
        );
        assert_eq!(read("ppl <= baseline*1.05"), read("ppl <= 1.05 * baseline"));
        assert_eq!(
            read("top1_agreement > 95 %").bound,
            Bound::Number {
                value: 0.95,
                text: "95 %".to_owned()
            }
        );
        assert_eq!(
            read("bpw <= 4.5 bpw").bound,
            Bound::Number {
                value: 4.5,
                text: "4.5 bpw".to_owned()
            }
        );
        assert_eq!(
            read("kld_max < 1e-3").bound,
            Bound::Number {
                value: 1e-3,
                text: "1e-3".to_owned()
            }
        );
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "kld_mean < 0.02",
            "bytes <= 5700 MiB",
            "bytes < 5977 B",
            "ppl <= 1.05 * baseline",
            "kld_p99 < baseline",
            "top1_agreement >= 95 %",
        ] {
            assert_eq!(read(text).to_string(), text);
        }
    }

    #[test]
    fn problems_are_reported_with_their_places() {
        use RequirementProblem as P;
        let figure = |found: &str, nearest| P::UnknownFigure {
            found: found.to_owned(),
            nearest,
        };
        assert_eq!(problem("kld_men < 1"), (figure("kld_men", Some("kld_mean")), "kld_men"));
        assert_eq!(problem("  banana < 1"), (figure("banana", None), "banana"));
        assert_eq!(problem("< 1"), (figure("", None), "<"));
        assert_eq!(problem("kld_mean"), (P::NoComparison, "kld_mean"));
        assert_eq!(problem("kld_mean == 1"), (P::BadComparison("==".to_owned()), "=="));
        assert_eq!(problem("kld_mean <"), (P::NoBound, "<"));
        assert_eq!(problem("kld_mean < bse"), (P::BadBound("bse".to_owned()), "bse"));
        assert_eq!(problem("kld_mean < nan"), (P::BadBound("nan".to_owned()), "nan"));
        assert_eq!(problem("kld_mean < 2 * 3"), (P::BadBound("2 * 3".to_owned()), "2 * 3"));
        assert_eq!(problem("bytes < 1.5"), (P::BadBound("1.5".to_owned()), "1.5"));
        assert_eq!(
            problem("ppl < 3 GiB"),
            (
                P::WrongUnit {
                    figure: Figure::Ppl,
                    unit: "GiB".to_owned()
                },
                "3 GiB"
            )
        );
        let unit = QuantityProblem::UnknownUnit {
            found: "GiBs".to_owned(),
            nearest: Some("GiB"),
        };
        assert_eq!(problem("bytes < 3 GiBs"), (P::Quantity(unit), "3 GiBs"));
    }

    #[test]
    fn comparisons_with_nan_are_false() {
        assert!(Comparison::Less.holds(1.0, 2.0));
        assert!(!Comparison::Less.holds(2.0, 2.0));
        assert!(Comparison::AtMost.holds(2.0, 2.0));
        assert!(!Comparison::AtMost.holds(f64::NAN, 2.0));
        assert!(!Comparison::Greater.holds(f64::NAN, 2.0));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}", tail in "[a-z_]{0,10} ?[<>=]{0,3} ?[0-9.eé* a-zA-Z%]{0,12}") {
            let _ = Requirement::parse(&text);
            if let Ok(requirement) = Requirement::parse(&tail) {
                prop_assert_eq!(Requirement::parse(&requirement.to_string()), Ok(requirement));
            }
        }
    }
}
