//! Numbers, counted nouns, lists and suggestions, as messages write them.

use std::fmt::Display;

/// This many letters of a word may be wrong by a slip.
const SLIP: usize = 2;

/// No name is longer that others are compared with.
const COMPARED: usize = 32;

/// Returns a number with commas between groups of three digits: `15,980`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a count of bytes with a binary unit: `5.7 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value < 10.0 {
        format!("{value:.2} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Returns bits per weight.
pub fn bpw(bytes: u64, weights: u64) -> f64 {
    bytes as f64 * 8.0 / weights.max(1) as f64
}

/// Writes a size of weights: `3.61 MiB, 5.242 bpw`. The size of a candidate is that of its file, wherever it is shown.
pub fn size(bytes: u64, weights: u64) -> String {
    format!("{}, {:.3} bpw", self::bytes(bytes), bpw(bytes, weights))
}

/// Writes a span of time: `0.02 s`, `12.3 s`, `4 m 05 s`, `2 h 03 m`.
pub fn duration_ms(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0 => format!("{:.2} s", milliseconds as f64 / 1000.0),
        1..=59 => format!("{:.1} s", milliseconds as f64 / 1000.0),
        60..=3599 => format!("{} m {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Writes an estimated span of time, rounded to what can be known of it: `less than a second`, `8 s`, `40 s`, `3 min`, `5.5 h`, `4 days`.
pub fn about_ms(milliseconds: u64) -> String {
    let seconds = milliseconds as f64 / 1000.0;
    let (minutes, hours) = (seconds / 60.0, seconds / 3600.0);
    match seconds {
        ..1.0 => "less than a second".to_owned(),
        ..10.0 => format!("{seconds:.0} s"),
        ..87.5 => format!("{:.0} s", (seconds / 5.0).round() * 5.0),
        ..5370.0 => format!("{minutes:.0} min"),
        ..36_000.0 => format!("{} h", (hours * 2.0).round() / 2.0),
        ..172_800.0 => format!("{hours:.0} h"),
        _ => format!("{:.0} days", hours / 24.0),
    }
}

/// Writes an estimated span of time with its range: `3 min (2 min to 5 min)`.
pub fn about_range_ms(likely: u64, least: u64, most: u64) -> String {
    let (likely, least, most) = (about_ms(likely), about_ms(least), about_ms(most));
    if least == most {
        likely
    } else {
        format!("{likely} ({least} to {most})")
    }
}

/// Breaks a line between words so that no line is wider than `width`, as far as words allow.
pub fn wrap(line: &str, width: usize) -> String {
    let mut text = String::with_capacity(line.len());
    let mut used = 0;
    for word in line.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            text.push('\n');
            used = 0;
        } else if used > 0 {
            text.push(' ');
            used += 1;
        }
        text.push_str(word);
        used += length;
    }
    text
}

/// Writes a count with its noun: `1 tensor`, `15,980 tensors`.
pub fn count(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(number))
}

/// Writes a list for prose, cut after `most`: "a, b and c", "a, b and 1,234 more".
pub fn list(items: impl ExactSizeIterator<Item: Display>, most: usize) -> String {
    joined(items, most, "and")
}

/// Writes a list of names for prose, cut after `most`: "`a`, `b` and 3 more".
pub fn names<S: AsRef<str>>(names: &[S], most: usize) -> String {
    joined(names.iter().map(quoted), most, "and")
}

/// Writes a choice of names for prose, cut after `most`: "`a`, `b` or `c`", "`a`, `b` and 3 more".
pub fn choice<S: AsRef<str>>(names: &[S], most: usize) -> String {
    joined(names.iter().map(quoted), most, "or")
}

/// Returns words as a list in prose: "`a`, `b` and `c`"; "nothing" for none.
pub fn listed<S: AsRef<str>>(words: &[S]) -> String {
    if words.is_empty() {
        return "nothing".to_owned();
    }
    names(words, words.len())
}

/// Returns a choice of a few words in prose: "`a`, `b` or `c`"; "nothing" for none.
pub fn either<S: AsRef<str>>(words: &[S]) -> String {
    if words.is_empty() {
        return "nothing".to_owned();
    }
    choice(words, words.len())
}

fn quoted(word: impl AsRef<str>) -> String {
    format!("`{}`", word.as_ref())
}

/// Joins items, with a word before the last of them. If there are more than `most`, it says how many more.
fn joined(items: impl ExactSizeIterator<Item: Display>, most: usize, word: &str) -> String {
    let more = items.len().saturating_sub(most);
    let shown: Vec<String> = items.take(most).map(|item| item.to_string()).collect();
    match (shown.as_slice(), more) {
        ([], _) => String::new(),
        ([only], 0) => only.clone(),
        ([head @ .., last], 0) => format!("{} {word} {last}", head.join(", ")),
        (all, more) => format!("{} and {} more", all.join(", "), thousands(more as u64)),
    }
}

/// Returns what an error message says of words that may have been meant: "; did you mean `a` or `b`?"; nothing for none.
pub fn did_you_mean<S: AsRef<str>>(words: &[S]) -> String {
    if words.is_empty() {
        return String::new();
    }
    format!("; did you mean {}?", either(words))
}

/// Returns the word nearest to `found` among `known`, if one is near enough to be what was meant.
pub fn nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = found.to_lowercase();
    let length = lower.chars().count();
    // A third of the letters may be wrong, at least one: enough for a slip, too little for another word.
    let reach = (length / 3).clamp(1, 3);
    let distance = |word: &str| strsim::damerau_levenshtein(&lower, &word.to_lowercase());
    known
        .into_iter()
        .map(|word| (distance(word), word))
        .filter(|(distance, word)| *distance <= reach || (length >= 4 && word.to_lowercase().starts_with(&lower)))
        .min_by_key(|(distance, word)| (*distance, std::cmp::Reverse(common_start(&lower, word))))
        .map(|(_, word)| word)
}

/// Returns the name closest to `found` among `known`; `None` if more than half of the letters differ. For names of several parts,
/// of which one may be left out or be another; single words have [`nearest`].
pub fn closest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::damerau_levenshtein(name, found);
    let longer = |name: &str| name.chars().count().max(found.chars().count());
    known
        .into_iter()
        .filter(|name| 2 * distance(name) <= longer(name))
        .min_by_key(|name| distance(name))
}

/// Returns the names nearest to `found` among `known`: those with the fewest wrong letters, two at most. There are at most
/// three. Upper and lower case count as alike, `-` as `_`.
pub fn all_nearest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let folded = |word: &str| {
        let start: String = word.chars().take(COMPARED).collect();
        start.to_lowercase().replace('-', "_")
    };
    let found = folded(found);
    let near: Vec<(usize, &str)> = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&found, &folded(name)), name))
        .filter(|(distance, _)| *distance <= SLIP)
        .collect();
    let least = near.iter().map(|(distance, _)| *distance).min();
    near.into_iter()
        .filter(|(distance, _)| Some(*distance) == least)
        .map(|(_, name)| name)
        .take(3)
        .collect()
}

/// Returns whether two words differ in two letters at most, in either case.
pub fn is_near(a: &str, b: &str) -> bool {
    strsim::damerau_levenshtein(&a.to_lowercase(), &b.to_lowercase()) <= SLIP
}

/// Returns how many characters two words begin with alike, in either case.
fn common_start(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a.eq_ignore_ascii_case(b))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(5_976_883), "5.70 MiB");
        assert_eq!(bytes(500 << 30), "500.0 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(duration_ms(23), "0.02 s");
        assert_eq!(duration_ms(12_345), "12.3 s");
        assert_eq!(duration_ms(245_000), "4 m 05 s");
        assert_eq!(duration_ms(7_385_000), "2 h 03 m");
    }

    #[test]
    fn lists_are_sentences() {
        assert_eq!(names::<&str>(&[], 3), "");
        assert_eq!(names(&["a"], 3), "`a`");
        assert_eq!(names(&["a", "b", "c"], 3), "`a`, `b` and `c`");
        assert_eq!(names(&["a", "b", "c"], 2), "`a`, `b` and 1 more");
        assert_eq!(names(&vec!["a"; 2000], 1), "`a` and 1,999 more");
        assert_eq!(list([1, 2, 3].iter(), 3), "1, 2 and 3");
        assert_eq!(choice(&["a", "b"], 2), "`a` or `b`");
        assert_eq!(choice(&["a", "b"], 1), "`a` and 1 more");
        assert_eq!(listed(&["a", "b"]), "`a` and `b`");
        assert_eq!(either(&["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(
            (listed::<&str>(&[]), either::<&str>(&[])),
            ("nothing".to_owned(), "nothing".to_owned())
        );
        assert_eq!(did_you_mean(&["a", "b"]), "; did you mean `a` or `b`?");
        assert_eq!(did_you_mean::<&str>(&[]), "");
        assert_eq!(
            (count(1_u64, "step"), count(1234_u64, "step")),
            ("1 step".to_owned(), "1,234 steps".to_owned())
        );
    }

    #[test]
    fn the_nearest_word_is_near() {
        let mixes = ["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M"];
        assert_eq!(nearest("polcy", ["policy", "promote"]), Some("policy"));
        assert_eq!(nearest("q4_k_m", mixes), Some("Q4_K_M"));
        assert_eq!(nearest("Q4_K_XL", mixes), Some("Q4_K_S"));
        assert_eq!(nearest("banana", ["policy", "promote"]), None);
        assert_eq!(all_nearest("q4-k-x", mixes), ["Q4_K_S", "Q4_K_M"]);
        assert_eq!(all_nearest("banana", mixes), [""; 0]);
        assert!(is_near("Polcy", "policy") && !is_near("pol", "policy"));
    }
}
