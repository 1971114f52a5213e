//! Numbers, counted nouns, lists and suggestions, as messages write them.

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

/// Writes a count with its noun: `1 tensor`, `3 tensors`.
pub fn count(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    if number == 1 {
        format!("{number} {noun}")
    } else {
        format!("{number} {noun}s")
    }
}

/// Writes a list of names for prose, cut after `most`: "`a`, `b` and 3 more".
pub fn names<S: AsRef<str>>(names: &[S], most: usize) -> String {
    let quoted: Vec<String> = names
        .iter()
        .take(most)
        .map(|name| format!("`{}`", name.as_ref()))
        .collect();
    match (quoted.as_slice(), names.len().saturating_sub(most)) {
        ([], _) => String::new(),
        ([only], 0) => only.clone(),
        ([head @ .., last], 0) => format!("{} and {last}", head.join(", ")),
        (all, more) => format!("{} and {more} more", all.join(", ")),
    }
}

/// Returns words as a list in prose: "`a`, `b` and `c`"; "nothing" for none.
pub fn listed<S: AsRef<str>>(words: &[S]) -> String {
    if words.is_empty() {
        return "nothing".to_owned();
    }
    names(words, words.len())
}

/// Returns a choice of a few words in prose: "`a`, `b` or `c`".
pub fn either<S: AsRef<str>>(words: &[S]) -> String {
    listed(words).replace("` and `", "` or `")
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

/// Returns the word closest to `found` among `known`, however different it is; `None` if there are none.
pub fn closest<'a>(found: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .min_by_key(|name| strsim::damerau_levenshtein(name, found))
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
    }

    #[test]
    fn the_nearest_word_is_near() {
        let mixes = ["Q4_0", "Q4_K_S", "Q4_K_M", "Q5_K_M"];
        assert_eq!(nearest("polcy", ["policy", "promote"]), Some("policy"));
        assert_eq!(nearest("q4_k_m", mixes), Some("Q4_K_M"));
        assert_eq!(nearest("Q4_K_XL", mixes), Some("Q4_K_S"));
        assert_eq!(nearest("banana", ["policy", "promote"]), None);
    }
}
