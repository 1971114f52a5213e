//! Names of sections.

/// Returns "`policy.small`".
pub(crate) fn section_words(kind: &str, name: &str) -> String {
    format!("`{kind}.{name}`")
}
