//! Why a node runs, as a phrase.

use crate::observer::FieldChange;
use crate::plan::Reason;
use crate::prose;
use crate::report::gate;

/// The number of unmet requirements that are listed.
const SHOWN: usize = 3;

/// Returns the differences from the last run, for run records.
pub(super) fn changes(reason: &Reason) -> Vec<FieldChange> {
    let Reason::Changed(differences) = reason else {
        return Vec::new();
    };
    let changes = differences.iter().map(|difference| FieldChange {
        field: difference.field.clone(),
        before: difference.before.as_deref().map(without_digests),
        after: difference.after.as_deref().map(without_digests),
    });
    changes.collect()
}

/// Shortens digests to eight digits. A run record that names a digest in full would keep its blob in the store.
fn without_digests(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while !rest.is_empty() {
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let digits = rest.find(|c| !is_digit(c)).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(digits);
        if head.len() == 64 {
            text.push_str(&head[..8]);
            text.push_str("...");
        } else {
            text.push_str(head);
        }
        let other = tail.find(is_digit).unwrap_or(tail.len());
        text.push_str(&tail[..other]);
        rest = &tail[other..];
    }
    text
}

/// Describes in a few words why a node runs.
pub fn sentence(reason: &Reason) -> String {
    match reason {
        Reason::New => "it has not run for this recipe yet".to_owned(),
        Reason::Unread { files, bytes } => {
            format!(
                "{} of {} must be read first",
                prose::count(*files as u64, "file"),
                prose::bytes(*bytes)
            )
        }
        Reason::Changed(differences) => {
            let fields: Vec<&str> = differences
                .iter()
                .map(|difference| difference.field.trim_start_matches("inputs."))
                .collect();
            format!("{} changed", prose::names(&fields, 3))
        }
        Reason::Incomplete => "its result was incomplete or damaged in the store".to_owned(),
        Reason::OutputGone => "a file is not in the output folder".to_owned(),
        Reason::OutputChanged => "a file in the output folder was changed".to_owned(),
        Reason::Unmet(checks) => format!("failed last time: {}", gate::shown(checks, SHOWN)),
        Reason::ManifestGone => "its manifest is missing, was edited or is incomplete".to_owned(),
        Reason::Forgotten => "its result is no longer in the store".to_owned(),
        Reason::Again => "it runs once more, to compare the results".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_in_records_are_cut_and_all_else_stays() {
        let hash = "0123456789abcdef".repeat(4);
        let value = format!("{{\"file\":\"{hash}:12\",\"name\":\"Q4_0 face\",\"n\":77}}");
        assert_eq!(
            without_digests(&value),
            "{\"file\":\"01234567...:12\",\"name\":\"Q4_0 face\",\"n\":77}"
        );
        assert_eq!(without_digests(""), "");
    }
}
