//! Reading the keys of one section: types, limits, defaults, what is missing, what is unknown.

use std::ops::RangeInclusive;

use crate::mix::Mix;
use crate::prose::either;
use crate::prose::is_near;
use crate::quantity::Decimal;
use crate::quantity::Quantity;
use crate::syntax::error::RecipeError;
use crate::syntax::id::Place;
use crate::syntax::id::ResolvedSection;
use crate::syntax::names;
use crate::syntax::names::MIXES;
use crate::syntax::names::TYPES;
use crate::syntax::pattern::Pattern;
use crate::syntax::raw::Raw;
use crate::syntax::raw::RawEntry;
use crate::syntax::raw::RawValue;
use crate::syntax::raw::inside;
use crate::syntax::sweep::MAX_VARIANTS;
use crate::syntax::sweep::Sweep;
use crate::tensor_type::TensorType;

/// Compiled patterns may take this much memory each.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// One value of a section, with what messages need.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) key: &'a str,
    pub(crate) raw: &'a Raw,
}

impl<'a> Field<'a> {
    pub(crate) fn place(&self) -> Place {
        self.raw.place.clone()
    }

    pub(crate) fn wrong_type(&self, expected: impl Into<String>) -> RecipeError {
        RecipeError::WrongType {
            place: self.place(),
            key: self.key.to_owned(),
            expected: expected.into(),
            found: self.raw.value.kind(),
        }
    }

    /// Reads a string; `expected` says what it is.
    pub(crate) fn string(&self, expected: &str) -> Result<&'a str, RecipeError> {
        match &self.raw.value {
            RawValue::String(text) => Ok(text),
            _ => Err(self.wrong_type(expected)),
        }
    }

    pub(crate) fn boolean(&self) -> Result<bool, RecipeError> {
        match self.raw.value {
            RawValue::Boolean(value) => Ok(value),
            _ => Err(self.wrong_type("`true` or `false`")),
        }
    }

    pub(crate) fn array(&self, expected: &str) -> Result<&'a [Raw], RecipeError> {
        match &self.raw.value {
            RawValue::Array(values) => Ok(values),
            _ => Err(self.wrong_type(expected)),
        }
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, RecipeError> {
        let expected = || match (*range.start(), *range.end()) {
            (start, end) if end >= i64::MAX as u64 => format!("a whole number, {start} or larger"),
            (start, end) => format!("a whole number from {start} to {end}"),
        };
        let RawValue::Integer(value, text) = &self.raw.value else {
            return Err(self.wrong_type(expected()));
        };
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| range.contains(value))
            .ok_or_else(|| RecipeError::OutOfRange {
                place: self.place(),
                key: self.key.to_owned(),
                expected: expected(),
                found: text.clone(),
            })
    }

    pub(crate) fn integer32(&self, range: RangeInclusive<u32>) -> Result<u32, RecipeError> {
        self.integer(u64::from(*range.start())..=u64::from(*range.end()))
            .map(|value| value as u32)
    }

    /// Reads a number that is not negative, exactly.
    pub(crate) fn decimal(&self, expected: &str) -> Result<Decimal, RecipeError> {
        let (RawValue::Integer(_, text) | RawValue::Float(text)) = &self.raw.value else {
            return Err(self.wrong_type(expected));
        };
        let out_of_range = |_| RecipeError::OutOfRange {
            place: self.place(),
            key: self.key.to_owned(),
            expected: format!("{expected}, with at most six decimal places"),
            found: text.clone(),
        };
        text.parse().map_err(out_of_range)
    }

    /// Reads one of the words in `table`; those in `reserved` are not available yet.
    pub(crate) fn word<T: Copy>(&self, table: &[(&'static str, T)], reserved: &[&str]) -> Result<T, RecipeError> {
        let known: Vec<&'static str> = table.iter().map(|(word, _)| *word).collect();
        let what = either(&known);
        let found = self.string(&what)?;
        if let Some((_, value)) = table.iter().find(|(word, _)| *word == found) {
            return Ok(*value);
        }
        if reserved.contains(&found) {
            let key = self.key.to_owned();
            return Err(RecipeError::Reserved {
                place: self.place(),
                key,
                found: found.to_owned(),
                available: known,
            });
        }
        Err(self.unknown_word(found, &what, known))
    }

    fn unknown_word(&self, found: &str, what: &str, known: Vec<&'static str>) -> RecipeError {
        RecipeError::UnknownWord {
            place: self.place(),
            key: self.key.to_owned(),
            found: found.to_owned(),
            what: what.to_owned(),
            known,
        }
    }

    pub(crate) fn mix(&self) -> Result<Mix, RecipeError> {
        let what = "a mix of llama.cpp";
        let found = self.string(what)?;
        let known = || MIXES.iter().map(|mix| mix.name()).collect();
        names::mix_of(found).ok_or_else(|| self.unknown_word(found, what, known()))
    }

    pub(crate) fn tensor_type(&self) -> Result<TensorType, RecipeError> {
        self.type_among(TYPES, "a tensor type")
    }

    /// Reads one of these types, which `what` describes.
    pub(crate) fn type_among(&self, types: &[TensorType], what: &str) -> Result<TensorType, RecipeError> {
        let found = self.string(what)?;
        let known = || types.iter().map(|ty| ty.name()).collect();
        names::type_of(found, types).ok_or_else(|| self.unknown_word(found, what, known()))
    }

    pub(crate) fn pattern(&self) -> Result<Pattern, RecipeError> {
        let text = self.string("a regular expression")?;
        match regex::RegexBuilder::new(text).size_limit(REGEX_SIZE_LIMIT).build() {
            Ok(regex) => Ok(Pattern::new(regex)),
            Err(error) => {
                let (message, at) = regex_problem(text, &error);
                Err(RecipeError::BadRegex {
                    place: at.map_or_else(|| self.place(), |at| inside(&self.raw.place, text, at)),
                    pattern: text.to_owned(),
                    message,
                })
            }
        }
    }

    pub(crate) fn quantity(&self, expected: &str, example: &'static str) -> Result<Quantity, RecipeError> {
        let text = self.string(expected)?;
        text.parse().map_err(|problem| RecipeError::BadQuantity {
            place: self.place(),
            key: self.key.to_owned(),
            text: text.to_owned(),
            problem,
            example,
        })
    }
}

/// Returns what is wrong with an expression in one line, and where, if that is known. `regex` gives its message as a
/// picture: the last line says what is wrong, the line of carets where.
fn regex_problem(text: &str, error: &regex::Error) -> (String, Option<std::ops::Range<usize>>) {
    let picture = match error {
        regex::Error::CompiledTooBig(_) => return ("it takes too much memory".to_owned(), None),
        regex::Error::Syntax(picture) => picture,
        other => return (other.to_string(), None),
    };
    let last = picture.lines().last().unwrap_or_default();
    let message = last.strip_prefix("error: ").unwrap_or(last).to_owned();
    // The expression is indented by four columns when it is one line.
    let carets = picture
        .lines()
        .find(|line| line.contains('^') && line.trim().bytes().all(|b| b == b'^'));
    let at = carets
        .filter(|_| text.is_ascii() && !text.contains('\n'))
        .and_then(|line| {
            let start = line.find('^')?.checked_sub(4)?;
            let end = start + line.trim().len();
            (end <= text.len()).then_some(start..end)
        });
    (message, at)
}

/// Reads one section key by key, and gathers what is wrong.
pub(crate) struct Reader<'a, 'e> {
    /// The section in words: "`policy.small`", "a recipe".
    pub(crate) words: String,
    /// The section's name.
    pub(crate) head: Place,
    entries: &'a [RawEntry],
    pub(crate) errors: &'e mut Vec<RecipeError>,
    known: Vec<&'static str>,
    missing: Vec<(&'static str, &'static str)>,
    pub(crate) resolved: ResolvedSection,
    errors_before: usize,
    /// Whether unknown keys are accepted, because the kind of the section is not known.
    pub(crate) any_key: bool,
}

impl<'a, 'e> Reader<'a, 'e> {
    pub(crate) fn new(
        words: String,
        head: Place,
        section: (&'static str, &str),
        entries: &'a [RawEntry],
        errors: &'e mut Vec<RecipeError>,
    ) -> Self {
        let resolved = ResolvedSection {
            kind: section.0,
            name: section.1.to_owned(),
            entries: Vec::new(),
        };
        let errors_before = errors.len();
        Self {
            words,
            head,
            entries,
            errors,
            known: Vec::new(),
            missing: Vec::new(),
            resolved,
            errors_before,
            any_key: false,
        }
    }

    /// Returns the entry of a key, which from now on is known.
    pub(crate) fn entry(&mut self, key: &'static str) -> Option<&'a RawEntry> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        let entries = self.entries;
        entries.iter().find(|entry| entry.key == key)
    }

    pub(crate) fn has(&mut self, key: &'static str) -> bool {
        self.entry(key).is_some()
    }

    fn keep<T>(&mut self, result: Result<T, RecipeError>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }

    /// Reads a key; `None` when it is absent, or wrong and reported.
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(Field<'a>) -> Result<T, RecipeError>,
    ) -> Option<T> {
        let entry = self.entry(key)?;
        self.keep(read(Field { key, raw: &entry.value }))
    }

    /// Reads a key that must be there.
    pub(crate) fn required<T>(
        &mut self,
        key: &'static str,
        example: &'static str,
        read: impl FnOnce(Field<'a>) -> Result<T, RecipeError>,
    ) -> Option<T> {
        self.need(key, example);
        self.read(key, read)
    }

    /// Notes that a key must be there.
    pub(crate) fn need(&mut self, key: &'static str, example: &'static str) {
        if !self.has(key) {
            self.missing.push((key, example));
        }
    }

    /// Reads a list, each element by itself; `None` when it is absent, or anything in it is wrong and reported.
    pub(crate) fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        mut read: impl FnMut(Field<'a>) -> Result<T, RecipeError>,
    ) -> Option<Vec<(T, Place)>> {
        let field = Field {
            key,
            raw: &self.entry(key)?.value,
        };
        let array = field.array(expected);
        let array = self.keep(array)?;
        if array.is_empty() {
            self.errors.push(RecipeError::EmptyList {
                place: field.place(),
                key: key.to_owned(),
            });
            return None;
        }
        let mut values = Vec::with_capacity(array.len());
        for raw in array {
            let value = read(Field { key, raw });
            values.extend(self.keep(value).map(|value| (value, raw.place.clone())));
        }
        (values.len() == array.len()).then_some(values)
    }

    /// Reads a value, or a list of values that makes a sweep.
    pub(crate) fn sweep<T: PartialEq>(
        &mut self,
        key: &'static str,
        show: impl Fn(&T) -> String,
        mut read: impl FnMut(Field<'a>) -> Result<T, RecipeError>,
    ) -> Option<Sweep<T>> {
        let entry = self.entry(key)?;
        if !matches!(entry.value.value, RawValue::Array(_)) {
            let value = read(Field { key, raw: &entry.value });
            return self.keep(value).map(|value| Sweep {
                values: vec![(value, entry.value.place.clone())],
                list: false,
            });
        }
        let values = self.list(key, "a list", read)?;
        // Before values are compared with each other: an expansion takes no more anyway.
        if values.len() > MAX_VARIANTS {
            self.errors.push(RecipeError::TooMany {
                place: self.head.clone(),
                what: self.words.clone(),
                count: values.len(),
                limit: MAX_VARIANTS,
            });
            return None;
        }
        for (at, (value, place)) in values.iter().enumerate() {
            if let Some((_, first)) = values[..at].iter().find(|(earlier, _)| earlier == value) {
                self.errors.push(RecipeError::Duplicate {
                    what: "variant",
                    name: show(value),
                    first: first.clone(),
                    second: place.clone(),
                    only_case: false,
                });
                return None;
            }
        }
        Some(Sweep { values, list: true })
    }

    /// Reports that none of these keys is there, unless an unknown key is nearly one of them.
    pub(crate) fn needs_one_of(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.entry(key);
        }
        let near = |entry: &RawEntry| keys.iter().any(|key| is_near(&entry.key, key));
        if !self.entries.iter().any(near) {
            self.errors.push(RecipeError::NeedsOneOf {
                place: self.head.clone(),
                section: self.words.clone(),
                keys: keys.to_vec(),
            });
        }
    }

    /// Reports two keys that exclude each other, if both are there.
    pub(crate) fn conflict(&mut self, one: &'static str, other: &'static str) -> bool {
        let mut place_of = |key| self.entry(key).map(|entry| (key, entry.key_place.clone()));
        let (Some(one), Some(other)) = (place_of(one), place_of(other)) else {
            return false;
        };
        let mut pair = [one, other];
        pair.sort_by_key(|(_, place)| place.span);
        let [(first_key, first), (second_key, second)] = pair;
        self.errors.push(RecipeError::Conflict {
            section: self.words.clone(),
            first,
            first_key,
            second,
            second_key,
        });
        true
    }

    /// Notes a key of the resolved recipe.
    pub(crate) fn put(&mut self, key: &'static str, value: impl Into<toml::Value>) {
        self.resolved.entries.push((key, value.into()));
    }

    /// Reports each of these keys that is there: they go with something else than what the section says.
    pub(crate) fn misplaced(&mut self, keys: &[&'static str], belongs_to: &str, instead: Option<&Place>) {
        for key in keys {
            if let Some(entry) = self.entry(key) {
                let error = RecipeError::MisplacedKey {
                    place: entry.key_place.clone(),
                    key: (*key).to_owned(),
                    section: self.words.clone(),
                    belongs_to: belongs_to.to_owned(),
                    instead: instead.cloned(),
                };
                self.errors.push(error);
            }
        }
    }

    /// Reports what is unknown and what is missing. Returns the resolved section, or `None` when anything was wrong.
    pub(crate) fn finish(mut self) -> Option<ResolvedSection> {
        for entry in self.entries.iter().filter(|_| !self.any_key) {
            if self.known.contains(&entry.key.as_str()) {
                continue;
            }
            // A required key that is missing and differs in two letters is what was meant: said once.
            let meant = self
                .missing
                .iter()
                .position(|(key, _)| is_near(&entry.key, key))
                .map(|at| self.missing.remove(at).0);
            self.errors.push(RecipeError::UnknownKey {
                place: entry.key_place.clone(),
                found: entry.key.clone(),
                section: self.words.clone(),
                known: self.known.clone(),
                missing: meant,
            });
        }
        for (key, example) in std::mem::take(&mut self.missing) {
            self.errors.push(RecipeError::MissingKey {
                place: self.head.clone(),
                section: self.words.clone(),
                key,
                example,
                because: None,
            });
        }
        (self.errors.len() == self.errors_before).then_some(self.resolved)
    }
}
