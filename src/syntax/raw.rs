//! Raw recipes: every key and value with its position, before anything is checked.

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

use crate::syntax::error::RecipeError;
use crate::syntax::id::Place;
use crate::text::Source;
use crate::text::Span;

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    pub(crate) value: RawValue,
    pub(crate) place: Place,
    /// Which of the recipe's files states it.
    pub(crate) file: usize,
}

/// A TOML value. Numbers stay texts, so that nothing is lost.
#[derive(Debug, Clone)]
pub(crate) enum RawValue {
    String(String),
    /// The value (if it fits) and how it is written.
    Integer(Option<i64>, String),
    Float(String),
    Boolean(bool),
    Datetime,
    Array(Vec<Raw>),
    Table(Vec<RawEntry>),
}

impl RawValue {
    /// Returns the type with an article.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(..) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime => "a date",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

/// A key with its value.
#[derive(Debug, Clone)]
pub(crate) struct RawEntry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Raw,
}

/// Reads one file into entries in the order of the text.
pub(crate) fn read(source: &Source, file: usize) -> Result<Vec<RawEntry>, Vec<RecipeError>> {
    let (table, errors) = DeTable::parse_recoverable(source.text());
    if errors.is_empty() {
        return Ok(entries(table.get_ref(), source, file));
    }
    let end = source.text().len();
    let error = |error: toml::de::Error| {
        let span = error
            .span()
            .map_or(end..end, |span| span.start.min(end)..span.end.min(end));
        let mut message = error.message().trim_end().to_owned();
        if let ("duplicate key", Some(key)) = (message.as_str(), source.text().get(span.clone())) {
            message = format!("the key `{key}` is there already");
        }
        RecipeError::Syntax {
            place: Place::new(source, span),
            message,
        }
    };
    Err(errors.into_iter().map(error).collect())
}

fn entries(table: &DeTable<'_>, source: &Source, file: usize) -> Vec<RawEntry> {
    let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        RawEntry {
            key: name.clone().into_owned(),
            key_place: Place::new(source, key.span()),
            value: raw(value, source, file),
        }
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|entry| entry.key_place.span);
    entries
}

fn raw(value: &Spanned<DeValue<'_>>, source: &Source, file: usize) -> Raw {
    let parsed = match value.get_ref() {
        DeValue::String(text) => RawValue::String(text.clone().into_owned()),
        DeValue::Integer(number) => RawValue::Integer(
            i64::from_str_radix(number.as_str(), number.radix()).ok(),
            number.to_string(),
        ),
        DeValue::Float(number) => RawValue::Float(number.as_str().to_owned()),
        DeValue::Boolean(value) => RawValue::Boolean(*value),
        DeValue::Datetime(_) => RawValue::Datetime,
        DeValue::Array(values) => RawValue::Array(values.iter().map(|value| raw(value, source, file)).collect()),
        DeValue::Table(table) => RawValue::Table(entries(table, source, file)),
    };
    Raw {
        value: parsed,
        place: Place::new(source, value.span()),
        file,
    }
}

/// Returns the place of `range` (bytes of the decoded `text`) inside a string value, or of the whole value where escapes
/// or line breaks make the bytes of the file differ.
pub(crate) fn inside(place: &Place, text: &str, range: std::ops::Range<usize>) -> Place {
    let Span { start, end } = place.span;
    let inner = place.source.text().get(start + 1..end.saturating_sub(1));
    if inner == Some(text) && range.start <= range.end && range.end <= text.len() {
        Place {
            source: place.source.clone(),
            span: (start + 1 + range.start..start + 1 + range.end).into(),
        }
    } else {
        place.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_inside_strings_are_exact_where_they_can_be() {
        let source = Source::new("r", "a = \"kld < 1\"\nb = \"k\\u006cd < 1\"\n");
        let entries = read(&source, 0).unwrap();
        let at = |index: usize| inside(&entries[index].value.place, "kld < 1", 0..3).span.range();
        assert_eq!(&source.text()[at(0)], "kld");
        assert_eq!(&source.text()[at(1)], "\"k\\u006cd < 1\"", "escapes: the whole value");
    }

    #[test]
    fn all_syntax_errors_are_reported() {
        let errors = read(&Source::new("r", "a = \nb = 2\nc = \"x\nd = 3\n"), 0).unwrap_err();
        assert!(errors.len() >= 2, "{errors:?}");
    }

    #[test]
    fn deep_nesting_is_refused_without_a_stack_overflow() {
        let arrays = format!("a = {}{}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(read(&Source::new("r", arrays), 0).is_err());
        let dotted = format!("{}a = 1", "a.".repeat(20_000));
        let _ = read(&Source::new("r", dotted), 0);
        let header = format!("[{}a]\n", "a.".repeat(20_000));
        let _ = read(&Source::new("r", header), 0);
    }
}
