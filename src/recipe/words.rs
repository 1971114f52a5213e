//! Names in prose.

/// Returns words as a list in prose: "`a`, `b` and `c`".
pub(crate) fn listed<S: AsRef<str>>(words: &[S]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{}`", word.as_ref())).collect();
    match quoted.split_last() {
        None => "nothing".to_owned(),
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
    }
}

/// Returns a choice of a few words in prose: "`a`, `b` or `c`".
pub(crate) fn either<S: AsRef<str>>(words: &[S]) -> String {
    listed(words).replace("` and `", "` or `")
}

/// Returns "`policy.small`".
pub(crate) fn section_words(kind: &str, name: &str) -> String {
    format!("`{kind}.{name}`")
}
